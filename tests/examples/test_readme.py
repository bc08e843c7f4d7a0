"""The README's examples run as they stand, in order, and it stays short."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore")  # NUTS and SVI emit warnings of their own
def test_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["samples"].shape == (1000, 2)
    assert {name: value.shape for name, value in names["posterior"].items()} == {"scale": (50,), "x": (50, 3)}
    assert torch.isfinite(torch.tensor(names["svi"].step()))


def test_length() -> None:
    assert len(README.read_text().splitlines()) <= 120
