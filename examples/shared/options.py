"""Command line options that every script has, and ways in which a script ends with one sentence."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

import pyro
import torch

from shared.option_types import COUNT, LARGEST_SEED, SEED, out_folder

Config = dict[str, Any]
ON_NAN_HELP = "end, or go on from the last good state with half the rate, three times at most (default: %(default)s)"


def fail(message: str) -> NoReturn:
    """Ends the script with one sentence instead of a traceback."""
    raise SystemExit(message)


def add_options(parser: argparse.ArgumentParser, *, out: str, steps: int | None) -> None:
    """Adds the options that every script has."""
    parser.add_argument("--seed", type=SEED, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=COUNT, default=steps, help="gradient steps (default: %(default)s)")
    # The default is text, which argparse passes through the type too.
    parser.add_argument("--out", type=out_folder, default=out, help="folder of the results (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="begin anew, where an earlier run was stopped or finished")
    parser.add_argument("--on-nan", choices=("stop", "skip"), default="stop", help=ON_NAN_HELP)


def resolve_device(name: str) -> torch.device:
    """Returns the device of that name, tried out at once; ``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name} cannot be used here: {str(error).splitlines()[0]}")


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device; a seed that was made of another one may be too large for NumPy."""
    pyro.set_rng_seed(seed % (LARGEST_SEED + 1))
