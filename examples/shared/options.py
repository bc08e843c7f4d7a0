"""Command line options that every script has, and ways in which a script ends with one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pyro
import torch

from pyro_realnvp.training.loop import DivergedError

from shared.option_types import COUNT, LARGEST_SEED, SEED, out_folder

Config = dict[str, Any]


def fail(message: str) -> NoReturn:
    """Ends the script with one sentence instead of a traceback."""
    raise SystemExit(message)


@contextmanager
def ending_if_diverged() -> Iterator[None]:
    """Ends the script with one sentence if a training inside the ``with`` block diverges."""
    try:
        yield
    except DivergedError as error:
        fail(str(error))


def add_options(parser: argparse.ArgumentParser, *, out: str, steps: int | None) -> None:
    """Adds the options that every script has."""
    parser.add_argument("--seed", type=SEED, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=COUNT, default=steps, help="gradient steps (default: %(default)s)")
    # The default is text, which argparse passes through the type too.
    parser.add_argument("--out", type=out_folder, default=out, help="folder of the results (default: %(default)s)")


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
