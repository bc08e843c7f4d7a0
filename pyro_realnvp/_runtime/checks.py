"""Checks arguments and values that many functions share."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from .arguments import is_integer, is_number, shown
from .autocast import has_autocast

_LARGEST = 2**31 - 1  #: of a size or a count; beyond it torch's own arithmetic may overflow


def at_least(argument: str, value: int, least: int = 1) -> int:
    """Returns the value of an argument that counts something, or raises a ValueError if it is too small."""
    if not is_integer(value):
        raise ValueError(f"{argument} must be an integer, but got {shown(value)}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, but got {value}.")
    return int(value)


def count_of(argument: str, value: int, least: int = 1) -> int:
    """Returns the number of things that are to be built; a ValueError if it is too small, or too large for torch."""
    if at_least(argument, value, least) > _LARGEST:
        raise ValueError(f"{argument} must be at most {_LARGEST}, but got {shown(value)}.")
    return int(value)


def number(argument: str, value: float) -> float:
    """Returns the value of an argument as a float, or raises a ValueError if it is no number."""
    if not is_number(value):
        raise ValueError(f"{argument} must be a number, but got {shown(value)}.")
    return float(value)


def finite_number(argument: str, value: float) -> float:
    """Returns the value of an argument, or raises a ValueError if it is not finite as a tensor of the default dtype."""
    dtype = torch.get_default_dtype()
    if not abs(number(argument, value)) <= torch.finfo(dtype).max:
        raise ValueError(f"{argument} must be finite in {dtype}, but got {value}.")
    return float(value)


def positive(argument: str, value: float) -> float:
    """Returns the value of an argument, or raises a ValueError if it is not positive and finite, as a tensor too."""
    dtype = torch.get_default_dtype()
    if not torch.finfo(dtype).tiny <= number(argument, value) <= torch.finfo(dtype).max:
        raise ValueError(f"{argument} must be positive and finite in {dtype}, but got {value}.")
    return float(value)


def in_unit_interval(argument: str, value: float) -> float:
    """Returns the value of an argument, or raises a ValueError if it does not lie in [0, 1)."""
    if not 0 <= number(argument, value) < 1:
        raise ValueError(f"{argument} must lie in [0, 1), but got {value}.")
    return float(value)


def zero_or_one(argument: str, value: int) -> int:
    """Returns the value of an argument, or raises a ValueError if it is neither 0 nor 1."""
    if not isinstance(value, Integral) or value not in (0, 1):
        raise ValueError(f"{argument} must be 0 or 1, but got {shown(value)}.")
    return int(value)


def shape_of(name: str, shape: Sequence[int]) -> Size:
    """Returns a shape that was given as a sequence of integers; a ValueError if it is none."""
    try:
        return Size(shape)
    except (TypeError, ValueError) as error:  # of something else than integers, or of huge ones
        raise ValueError(f"{name} needs a shape of integers, but got {shown(shape)}.") from error


def integers(name: str, what: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """Returns one integer, or several, as a tuple; ``name`` is that of the class or function, ``what`` of the value.

    Raises:
        ValueError: if there is anything else among them, or one is so large that torch's arithmetic may overflow.
    """
    several: Any = (value,) if is_integer(value) else value
    if (
        not isinstance(several, Sequence)
        or isinstance(several, str | bytes)
        or not all(is_integer(each) for each in several)
    ):
        raise ValueError(f"{name} needs an integer or a sequence of integers as {what}, but got {shown(value)}.")
    if any(abs(each) > _LARGEST for each in several) or math.prod(several) > _LARGEST:
        raise ValueError(f"{name} needs at most {_LARGEST} elements in {what}, but got {shown(value)}.")
    return tuple(int(each) for each in several)


def sizes(name: str, event_shape: int | Sequence[int]) -> Size:
    """Returns the shape of an event; a ValueError if a size is not positive. ``name`` is that of the class."""
    shape = Size(integers(name, "event shape", event_shape))
    if any(size < 1 for size in shape):
        raise ValueError(f"{name} needs an event shape of sizes 1 or more, but got {tuple(shape)}.")
    return shape


def draws(argument: str, sample_shape: int | Sequence[int]) -> Size:
    """Returns the shape of a batch of draws; a ValueError if a size is negative."""
    shape = Size(integers("sample", argument, sample_shape))
    if any(size < 0 for size in shape):
        raise ValueError(f"{argument} must have sizes of 0 or more, but got {tuple(shape)}.")
    return shape


def built_by(argument: str, build: Callable[..., Any], *args: Any, kind: type, **kwargs: Any) -> Any:
    """Calls a function that was given as an argument of another.

    Raises:
        TypeError: if it does not take these arguments; the message names the argument, and says what was passed.
        ValueError: if it returns something else than a ``kind``.
    """
    try:
        made = build(*args, **kwargs)
    except TypeError as error:
        passed = ", ".join([*map(shown, args), *(f"{key}={shown(value)}" for key, value in kwargs.items())])
        reason = " ".join(str(error).split()).removesuffix(".")
        raise TypeError(f"{argument} was called with ({passed}), which it does not take: {reason}.") from error
    if not isinstance(made, kind):
        raise ValueError(f"{argument} must build a {kind.__name__}, but built {shown(made)}.")
    return made


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
    if value.layout != torch.strided:
        raise ValueError(f"{name} needs a dense tensor as {what}, but got one of {value.layout}; call to_dense().")


def check_dtype(module: nn.Module, what: str, value: Tensor) -> None:
    """Raises a ValueError if a value has another dtype than the parameters of a Module, which cannot compute with it.

    Not under autocast, which converts, and not in compiled code.
    """
    if torch.compiler.is_compiling() or has_autocast(value):
        return
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if own is None:
        own = next((b.dtype for b in module.buffers() if b.is_floating_point()), None)
    if own not in (None, value.dtype):
        raise ValueError(
            f"{type(module).__name__} has parameters of {own}, but got {what} of {value.dtype}; convert the values, "
            f"or the Module by .to({value.dtype})."
        )


def check_broadcast(batch: Size, context_batch: Size) -> Size:
    """Returns the common batch shape of values and contexts; a ValueError if there is none."""
    for i, j in zip(reversed(batch), reversed(context_batch), strict=False):
        if i != j and i != 1 and j != 1:
            raise ValueError(
                f"Values of batch shape {tuple(batch)} and contexts of batch shape {tuple(context_batch)} do not "
                f"broadcast."
            )
    return torch.broadcast_shapes(batch, context_batch)


def check_context(name: str, context: Tensor) -> None:
    """Raises a ValueError unless a context is floating point and, with validation on, finite."""
    check_floating(name, "context", context)
    if Distribution._validate_args and values_are_known(context) and not context.isfinite().all():
        raise ValueError(f"{name} needs a finite context, but got NaN or infinite values in it.")
