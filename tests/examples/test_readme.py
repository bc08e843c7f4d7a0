"""The README's examples run in order, and it stays short."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"
COUNT = re.compile(r"\b(steps=|num_samples=|warmup_steps=|range\()(\d+)")


def shortened(code: str) -> str:
    """Takes a tenth of the steps and samples; everything else runs as it stands."""
    return COUNT.sub(lambda found: f"{found[1]}{int(found[2]) // 10}", code)


@pytest.mark.filterwarnings("ignore")  # NUTS and SVI emit warnings of their own
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they write a file
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(shortened(block), str(README), "exec"), names)
    assert int(names["history"].step[-1]) == 10
    assert names["samples"].shape == (1000, 2)
    assert (tmp_path / "flow.safetensors").is_file()
    assert {name: value.shape for name, value in names["posterior"].items()} == {"scale": (5,), "x": (5, 3)}
    assert torch.isfinite(torch.tensor(names["svi"].step()))


def test_length() -> None:
    assert len(README.read_text().splitlines()) <= 120
