"""Warns about names and arguments that will go in the next version."""

import warnings
from typing import TypeVar

T = TypeVar("T")


def renamed(value: T, old: str, new: str, *, stacklevel: int = 3) -> T:
    """Returns the value given under an old name, with a DeprecationWarning that says the new one."""
    warnings.warn(f"{old} is deprecated, use {new}.", DeprecationWarning, stacklevel=stacklevel)
    return value
