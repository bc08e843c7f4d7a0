"""What is written down of a run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.provenance import CODE, command_of, commit_of, provenance, write_provenance

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "examples" / "images.py")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--flow", "glow", "--fresh", "--out", "/x/y"], "--flow glow"),
        (["--root", "/home/me", "--seed", "3"], "--root DIR --seed 3"),
        (["--root=/home/me", "--out=/x", "--bf16"], "--root DIR --bf16"),
        (["nice", "--download"], "nice"),
    ],
)
def test_commands_name_no_place(words: list[str], expected: str) -> None:
    assert command_of([SCRIPT, *words]) == f"python examples/images.py {expected}"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = commit_of(tmp_path)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == f"{clean}-dirty"
    assert commit_of(tmp_path, code=("other",)) == clean


def test_what_is_written() -> None:
    run = provenance([SCRIPT])
    assert run["commit"] == commit_of(ROOT, code=CODE)
    assert set(run) == {"command", "commit", "version", "torch", "python", "device", "threads"}


@pytest.mark.parametrize(("keep", "seed"), [(True, "1"), (False, "2")])
def test_the_process_that_counts(keep: bool, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [SCRIPT, "--seed", each])
        write_provenance(tmp_path, keep=keep)
    assert json.loads((tmp_path / "run.json").read_text())["command"].endswith(f"--seed {seed}")
