"""Checks arguments and values that many functions share."""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Size, Tensor
from torch.distributions import Distribution


def at_least(argument: str, value: int, least: int = 1) -> int:
    """Returns the value of an argument that counts something, or raises a ValueError if it is too small."""
    if not isinstance(value, Integral):
        raise ValueError(f"{argument} must be an integer, but got {value!r}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, but got {value}.")
    return value


def positive(argument: str, value: float) -> float:
    """Returns the value of an argument, or raises a ValueError if it is not positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{argument} must be positive and finite, but got {value}.")
    return value


def in_unit_interval(argument: str, value: float) -> float:
    """Returns the value of an argument, or raises a ValueError if it does not lie in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{argument} must lie in [0, 1), but got {value}.")
    return value


def zero_or_one(argument: str, value: int) -> int:
    """Returns the value of an argument, or raises a ValueError if it is neither 0 nor 1."""
    if value not in (0, 1):
        raise ValueError(f"{argument} must be 0 or 1, but got {value}.")
    return value


def sizes(name: str, event_shape: int | Sequence[int]) -> Size:
    """Returns the shape of an event; a ValueError if a size is not positive. ``name`` is that of the class."""
    shape = Size((event_shape,) if isinstance(event_shape, int) else event_shape)
    if any(size < 1 for size in shape):
        raise ValueError(f"{name} needs an event shape of sizes 1 or more, but got {tuple(shape)}.")
    return shape


def values_are_known(x: Tensor) -> bool:
    """Returns whether values can be looked at: neither on the meta device nor in compiled code, which cannot branch."""
    return not x.is_meta and not torch.compiler.is_compiling()


def check_floating(name: str, what: str, value: object) -> None:
    """Raises a ValueError unless a value is a floating point tensor; ``name`` is that of the class that needs it."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} needs a tensor as {what}, but got {type(value).__name__}; torch.as_tensor(...) makes one."
        )
    if not value.is_floating_point():
        raise ValueError(f"{name} needs floating point values as {what}, but got a tensor of {value.dtype}.")


def check_context(name: str, context: Tensor) -> None:
    """Raises a ValueError unless a context is floating point and, with validation on, finite."""
    check_floating(name, "context", context)
    if Distribution._validate_args and values_are_known(context) and not context.isfinite().all():
        raise ValueError(f"{name} needs a finite context, but got NaN or infinite values in it.")
