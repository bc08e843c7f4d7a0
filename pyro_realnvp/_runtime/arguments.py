"""Checks the types of the arguments of a call against the annotations of the function, before anything is made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor, nn
from torch.distributions import Transform

_WORDS = {int: "an integer", float: "a number", bool: "True or False", NoneType: "None", Tensor: "a tensor"}


def check_types(name: str, annotations: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the first argument whose type is not the annotated one.

    Numbers of numpy count as numbers. Annotations of other kinds than those in this module are not checked.

    Args:
        name: of the function or class that is called.
        annotations: of its arguments, resolved.
        arguments: the values that were given.
    """
    for argument, value in arguments.items():
        wanted = annotations.get(argument, Any)
        if not _fits(value, wanted):
            raise ValueError(f"{name} needs {_words(wanted)} as {argument}, but got {shown(value)}.")


def shown(value: object) -> str:
    """Returns a value for an error in one line: as Python writes it, or its type where that is long or too deep."""
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        return type(value).__name__
    return text if len(text) <= 60 and not isinstance(value, Tensor | nn.Module) else type(value).__name__


def _fits(value: Any, wanted: Any) -> bool:
    origin = get_origin(wanted)
    if origin is Annotated:
        return _fits(value, get_args(wanted)[0])
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(wanted))
    if origin is Literal:
        return any(value == each for each in get_args(wanted))
    if wanted is int:
        return is_integer(value)
    if wanted is float:
        return is_number(value)
    if wanted is bool:
        return isinstance(value, Integral) or type(value).__name__ in ("bool", "bool_")  # those of numpy
    if origin is Callable:
        return callable(value)
    if origin is Sequence:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes | nn.Module | Transform):
            return False
        return all(_fits(each, get_args(wanted)[0]) for each in value)
    if origin is Iterable:
        return isinstance(value, Iterable) and not isinstance(value, str | bytes | Tensor)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def is_integer(value: Any) -> bool:
    """Returns whether a value is an integer; True and False are none, as torch takes neither for a size."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number that a float can hold, or a tensor of no dimensions with one."""
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()):
        return False
    try:
        float(value)
    except OverflowError:  # an integer of more than 308 digits
        return False
    return True


def _words(wanted: Any) -> str:
    """Writes an annotation as a part of a sentence; ``Annotated[kind, text]`` brings its own text."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return str(args[1])
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in args)
    if origin is Sequence:
        inner = get_args(args[0]) or args
        return "a sequence of " + " or ".join(_words(each).split()[-1] + "s" for each in inner)
    if origin is Callable:
        return "a callable"
    if origin is Iterable:
        return "an iterable of " + "s or ".join(each.__name__ for each in args) + "s"
    kind = getattr(wanted, "__name__", str(wanted))
    return _WORDS.get(wanted, f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}")
