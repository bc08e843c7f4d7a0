"""Writes run.json beside the figures of a run: the command, the commit, and the machine that they come from."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyro_realnvp

FOLDERS = ("--root", "--out")  # options whose values are paths of one machine
PLACES = {"--root": "DIR"}
CODE = ("pyro_realnvp", "examples/*.py", "benchmarks/*.py")  # what decides a figure


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Returns what identifies a run, as JSON takes it.

    Args:
        argv: of the script, with its path first.
    """
    return {
        "command": command_of(argv),
        "commit": commit_of(Path(argv[0]).resolve().parents[1], code=CODE),
        "version": pyro_realnvp.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
    }


def command_of(argv: Sequence[str]) -> str:
    """Returns the command line, without ``--fresh`` and ``--out``, and with DIR for the folder of the data."""
    script = Path(argv[0]).resolve()
    words, rest = [f"python {script.parent.name}/{script.name}"], iter(argv[1:])
    for word in rest:
        name, given, _ = word.partition("=")
        if name in FOLDERS and not given:
            next(rest, None)
        if name in PLACES:
            words += [name, PLACES[name]]
        elif name not in ("--out", "--fresh", "--download"):
            words.append(word)
    return " ".join(words)


def commit_of(folder: Path, *, code: Sequence[str] = (".",)) -> str | None:
    """Returns the short hash of the commit that is checked out in a folder, or None outside of a repository.

    It ends with "-dirty" if files differ from that commit.

    Args:
        folder: in the repository.
        code: the paths below it whose changes count.
    """
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode != 0
    return commit.stdout.strip() + ("-dirty" if changed else "")


def write_provenance(folder: Path, *, keep: bool) -> None:
    """Writes run.json of this process into the folder of a run.

    Args:
        folder: is made.
        keep: whether the file of an earlier process, whose run this one goes on with, stays.
    """
    path = folder / "run.json"
    if not (keep and path.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(provenance(sys.argv), indent=2) + "\n")
