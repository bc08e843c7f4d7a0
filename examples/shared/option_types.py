"""Types of command line options: each turns text into a value, or says in one sentence why it cannot.

    parser.add_argument("--rounds", type=whole(1))
    parser.add_argument("--start", type=real(above=0, at_most=1))

argparse puts the name of the option before the sentence, and ends the script with code 2. That happens before anything
is computed or written.
"""

from __future__ import annotations

import math
import operator
import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**32 - 1  # of NumPy


def whole(low: int, high: int | None = None, *, or_zero: bool = False) -> Callable[[str], int]:
    """Makes the type of a whole number from ``low`` to ``high``, or without an end; ``or_zero``: 0 is allowed too."""
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    if or_zero:
        wanted = f"0 or {wanted}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"must be a whole number, but got {text!r}") from None
        fits = low <= value and (high is None or value <= high)
        if not (fits or (or_zero and value == 0)):
            raise ArgumentTypeError(f"must be {wanted}, but got {text}")
        return value

    return convert


def real(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> Callable[[str], float]:
    """Makes the type of a number within the given limits; with ``finite=False``, infinity can be among them."""
    limits = [
        (words, limit, holds)
        for words, limit, holds in (
            ("at least", at_least, operator.ge),
            ("greater than", above, operator.gt),
            ("at most", at_most, operator.le),
            ("less than", below, operator.lt),
        )
        if limit is not None
    ]
    wanted = " and ".join(f"{words} {limit:g}" for words, limit, _ in limits)

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(f"must be a number, but got {text!r}") from None
        if math.isnan(value) or (finite and math.isinf(value)):
            raise ArgumentTypeError(f"must be a {'finite ' if finite else ''}number, but got {text}")
        if not all(holds(value, limit) for _, limit, holds in limits):
            raise ArgumentTypeError(f"must be {wanted}, but got {text}")
        return value

    return convert


COUNT = whole(1)
TEN_OR_NONE = whole(10, or_zero=True)  # of data: enough to be divided
SEED = whole(0, LARGEST_SEED)
RATE = real(at_least=0)
SHARE = real(at_least=0, below=1)
LIMIT = real(above=0, finite=False)  # inf: none


def out_folder(text: str) -> Path:
    """Returns the path of a folder that can be written to, or made; it is not made yet."""
    if not text:
        raise ArgumentTypeError("must name a folder, but got ''")
    path = Path(text)
    try:
        nearest = next(place for place in (path, *path.parents) if _is_there(place))
        if not nearest.is_dir():
            raise ArgumentTypeError(f"must be a folder, but {nearest} is none")
        with tempfile.TemporaryFile(dir=nearest):  # permissions alone do not tell: a disk can be read-only
            pass
    except OSError as error:
        raise ArgumentTypeError(f"must be a folder that can be written to, but got {path}: {error.strerror}") from None
    return path


def checkpoint(text: str) -> Path:
    """Returns the path of a checkpoint that exists."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"there is no checkpoint {text}")
    return Path(text)


def _is_there(place: Path) -> bool:
    """Tells whether something has this name, be it a link that leads nowhere."""
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
