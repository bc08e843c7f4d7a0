"""Remembers the calls that an object was made by, so that :func:`pyro_realnvp.save` can write them down.

:func:`recorded` marks the public classes and functions that flows are made of. Their arguments are kept on the objects
that they return: plain values, tensors and parts. An argument that is a function or class without the mark is kept as
text alone, so that a record can be copied and pickled wherever the object can.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar, cast, get_type_hints

from torch import Tensor, nn
from torch.distributions import Transform

from .arguments import check_types

T = TypeVar("T", bound=Callable[..., Any])

MARKED: dict[str, Callable[..., Any]] = {}  #: by name, every class and function that a record may call
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish),
        *(nn.ReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh),
    )
}


@dataclass(frozen=True, eq=False)
class Call:
    """A marked class or function and its arguments; ``partial`` if it is yet to be called, with further arguments."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    partial: bool = False


@dataclass(frozen=True, eq=False)
class Item:
    """One of the layers that a call returned."""

    call: Call
    index: int


@dataclass(frozen=True)
class Name:
    """A marked class or function itself, or an activation of ``torch.nn``."""

    name: str


@dataclass(frozen=True)
class Unrecordable:
    """Text that stands for a value which cannot be written down."""

    text: str


def recorded(made: T) -> T:
    """Marks a class, or a function that returns a list of layers, so that the objects it makes remember the call.

    Before the call the types of the arguments are checked against the annotations.
    """
    name, signature = made.__name__, inspect.signature(made)
    annotations = get_type_hints(made.__init__ if isinstance(made, type) else made, include_extras=True)  # type: ignore[misc]

    def check(*args: Any, **kwargs: Any) -> None:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return  # too many or too few, of which Python tells in the call itself
        check_types(name, annotations, arguments)

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(name, (), {key: _kept(value) for key, value in signature.bind(*args, **kwargs).arguments.items()})

    if isinstance(made, type):
        init = made.__init__  # type: ignore[misc]

        @wraps(init)
        def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            kwargs = {key: list(value) if isinstance(value, Iterator) else value for key, value in kwargs.items()}
            check(*args, **kwargs)
            init(self, *args, **kwargs)
            if type(self) is made:  # not for a user's subclass, which this class cannot stand for
                self.__dict__["_record"] = call(args, kwargs)

        made.__init__ = initialize  # type: ignore[misc]
        MARKED[name] = made
        return made

    @wraps(made)
    def function(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        layers = made(*args, **kwargs)
        record = call(args, kwargs)
        for index, layer in enumerate(layers):
            layer.__dict__["_record"] = Item(record, index)
        return layers

    MARKED[name] = function
    return cast(T, function)


def record_of(made: object) -> Call | Item | None:
    """Returns how an object was made, or None if it does not remember."""
    return made.__dict__.get("_record")


def _kept(value: Any) -> Any:
    if value is None or isinstance(value, bool | str | nn.Module | Transform):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, partial):
        function = _kept(value.func)
        if isinstance(function, Name):
            kwargs = {key: _kept(argument) for key, argument in value.keywords.items()}
            return Call(function.name, [_kept(argument) for argument in value.args], kwargs, partial=True)
        return function
    if isinstance(value, Sequence):
        return [_kept(each) for each in value]
    name = getattr(value, "__name__", "")
    if MARKED.get(name) is value or ACTIVATIONS.get(name) is value:
        return Name(name)
    kind = getattr(value, "__qualname__", type(value).__qualname__)
    return Unrecordable(f"{getattr(value, '__module__', None) or type(value).__module__}.{kind}")
