"""Checks arguments that many functions share."""

from numbers import Integral


def at_least(argument: str, value: int, least: int = 1) -> int:
    """Returns the value of an argument that counts something, or raises a ValueError if it is too small."""
    if not isinstance(value, Integral):
        raise ValueError(f"{argument} must be an integer, but got {value!r}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, but got {value}.")
    return value
