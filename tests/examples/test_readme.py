"""The README's examples run in order, and it stays short."""

import math
from pathlib import Path

import pytest

from snippets import blocks_of, run

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.filterwarnings("ignore")  # NUTS and SVI emit warnings of their own
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they write a file
    assert len(blocks_of(README)) == 3
    names = run(README)
    assert int(names["history"].step[-1]) == 10
    assert names["samples"].shape == (1000, 2)
    assert (tmp_path / "flow.safetensors").is_file()
    assert {name: value.shape for name, value in names["posterior"].items()} == {"scale": (5,), "x": (5, 3)}
    assert math.isfinite(names["report"].elbo)
    assert names["draws"]["x"].shape == (500, 3)


def test_length() -> None:
    assert len(README.read_text().splitlines()) <= 120
