"""A script whose files cannot be written ends with one sentence that names the file; once they can, it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from limits import largest_file
from safetensors.torch import load_file

import two_moons as moons

TINY = ["--steps", "6", "--interval", "2", "--batch", "16", "--couplings", "2", "--hidden", "8", "--device", "cpu"]


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which only the numbers matter: the picture takes most of the time."""
    monkeypatch.setattr(moons, "draw", lambda *_: None)


def sentence(out: Path) -> str:
    """What the script says at its end."""
    with pytest.raises(SystemExit) as ended:
        moons.main([*TINY, "--out", str(out)])
    message = ended.value.code
    assert isinstance(message, str), message
    assert message.isprintable()
    assert message.startswith("A file cannot be read or written: ")
    assert message.endswith(".")
    return message


@pytest.mark.usefixtures("no_picture")
def test_a_full_disk(tmp_path: Path) -> None:
    moons.main([*TINY, "--out", str(tmp_path / "one")])
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "one").iterdir()}
    out = tmp_path / "full"
    for size, name in (
        (0, "training.safetensors.lock"),
        (4000, "training.safetensors"),  # what is printed goes into files, too, and is shorter
        (sizes["flow.safetensors"] - 1, "training.safetensors"),
        (sizes["flow.safetensors"] + 1, "training.safetensors"),
    ):
        with largest_file(size):
            message = sentence(out)
        assert "File too large" in message
        assert str(out / name) in message
        assert not list(out.glob("*.part"))
    moons.main([*TINY, "--out", str(out)])
    one, other = (load_file(folder / "flow.safetensors") for folder in (tmp_path / "one", out))
    assert all(one[key].equal(other[key]) for key in one)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    "name", ["training.safetensors", "training.safetensors.lock", "metrics.jsonl", "flow.safetensors"]
)
def test_a_folder_in_the_place_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert str(tmp_path / name) in sentence(tmp_path)
    (tmp_path / name).rmdir()
    moons.main([*TINY, "--out", str(tmp_path)])
    assert (tmp_path / name).is_file()


def test_a_folder_in_the_place_of_the_picture(tmp_path: Path) -> None:
    (tmp_path / "two_moons.png").mkdir()
    assert str(tmp_path / "two_moons.png") in sentence(tmp_path)
