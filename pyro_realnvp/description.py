"""Descriptions of flows as JSON, and flows made from descriptions.

A description is a list of nodes, each an object that was made by a call of a marked class or function
(:mod:`pyro_realnvp._runtime.construction`), or one of a few classes of torch. Arguments are plain values, or refer to
nodes and tensors. Reading looks every name up in a fixed table: it imports and executes nothing else.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn
from torch.distributions import Transform, transforms

from ._runtime.arguments import check_types, shown
from ._runtime.construction import ACTIVATIONS, MARKED, Call, Item, Name, Unrecordable, record_of
from ._runtime.reasons import ERRORS, reason
from ._runtime.state import load_all_or_nothing
from .bases import Base
from .bijections.bijection import Inverse

Description = dict[str, Any]
_INVERSE = type(transforms.ExpTransform().inv)
_NUMBERS = float | Tensor


def _activation(kind: type) -> tuple[type, dict[str, Any]]:
    hints = {"approximate": Literal["none", "tanh"]} if kind is nn.GELU else get_type_hints(kind.__init__)  # type: ignore[misc]
    return kind, {name: hints.get(name, Any) for name in inspect.signature(kind).parameters}


# Classes of torch, and the attributes that hold the arguments of their constructors, with the types that these take.
_TORCH: dict[str, tuple[type, Mapping[str, Any]]] = {
    **{name: _activation(kind) for name, kind in ACTIVATIONS.items()},
    "Dropout": (nn.Dropout, {"p": float}),
    "Flatten": (nn.Flatten, {"start_dim": int, "end_dim": int}),
    "Linear": (nn.Linear, {"in_features": int, "out_features": int, "bias": bool}),
    "AffineTransform": (transforms.AffineTransform, {"loc": _NUMBERS, "scale": _NUMBERS, "event_dim": int}),
    "ComposeTransform": (transforms.ComposeTransform, {"parts": Sequence[Transform]}),
    "ExpTransform": (transforms.ExpTransform, {}),
    "IndependentTransform": (
        transforms.IndependentTransform,
        {"base_transform": Transform, "reinterpreted_batch_ndims": int},
    ),
    "PowerTransform": (transforms.PowerTransform, {"exponent": _NUMBERS}),
    "ReshapeTransform": (transforms.ReshapeTransform, {"in_shape": Sequence[int], "out_shape": Sequence[int]}),
    "SigmoidTransform": (transforms.SigmoidTransform, {}),
    "SoftplusTransform": (transforms.SoftplusTransform, {}),
    "StickBreakingTransform": (transforms.StickBreakingTransform, {}),
    "TanhTransform": (transforms.TanhTransform, {}),
}
_NAMES = {kind: name for name, (kind, _) in _TORCH.items()}


def describe(module: nn.Module) -> tuple[Description, dict[str, Tensor]]:
    """Describes a Module by the calls that it was made by; returns the description and the tensors it refers to.

    Raises:
        ValueError: if a part was made by a function or class that is not known here; the message names it.
    """
    writer = _Writer()
    root = writer.node(module, "")
    return {"nodes": writer.nodes, "root": root}, writer.tensors


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[int, int] = {}

    def node(self, made: Any, place: str) -> int:
        """Returns the number of the node of an object or a call, which is added if it is new."""
        if id(made) not in self._known:
            node = self._describe(made, place)
            self._known[id(made)] = len(self.nodes)  # behind its parts, so that a node refers to earlier ones alone
            self.nodes.append(node)
        return self._known[id(made)]

    def _describe(self, made: Any, place: str) -> dict[str, Any]:
        record = made if isinstance(made, Call) else record_of(made)
        if isinstance(record, Item):
            return {"item": [self.node(record.call, place), record.index]}
        if isinstance(record, Call):
            return {"call": record.name, "arguments": self._arguments(record.kwargs, record.name)}
        if isinstance(made, Inverse):
            return {"inverse": self.node(made.bijection, place)}
        if type(made) is _INVERSE:
            return {"inverse": self.node(made.inv, place)}
        if type(made) is nn.Sequential:
            return {"sequential": [self.node(part, place) for part in made]}
        if type(made) in _NAMES:
            name = _NAMES[type(made)]
            arguments = {key: getattr(made, key) for key in _TORCH[name][1] if hasattr(made, key)}
            if type(made) is nn.Linear:
                arguments["bias"] = made.bias is not None
            return {"torch": name, "arguments": self._arguments(arguments, name)}
        raise ValueError(_cannot(f"{type(made).__module__}.{type(made).__qualname__}", place))

    def _arguments(self, arguments: Mapping[str, Any], of: str) -> dict[str, Any]:
        return {key: self._value(value, f"the argument {key!r} of {of}") for key, value in arguments.items()}

    def _value(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            key = f"argument.{len(self.tensors)}"
            self.tensors[key] = value.detach()
            return {"tensor": key}
        if isinstance(value, Call) and value.partial:
            args = [self._value(each, place) for each in value.args]
            return {"partial": value.name, "args": args, "arguments": self._arguments(value.kwargs, value.name)}
        if isinstance(value, Name):
            return {"name": value.name}
        if isinstance(value, Unrecordable):
            raise ValueError(_cannot(value.text, place))
        if isinstance(value, Sequence) and not isinstance(value, nn.Module | Transform):
            return [self._value(each, place) for each in value]
        return {"node": self.node(value, place)}


def _cannot(what: str, place: str) -> str:
    return (
        f"save cannot write down {what}{' in ' + place if place else ''}: it is no class or function of pyro_realnvp. "
        f"Pass save(..., build=arguments), and load(..., build=function) with a function that makes the flow of them."
    )


def make(description: Description, tensors: Mapping[str, Tensor]) -> Any:
    """Makes the object that a description describes.

    Raises:
        ValueError: if the description is no description, or names something that is not in the tables.
    """
    reader = _Reader(tensors)
    try:
        for node in description["nodes"]:
            reader.made.append(reader.node(node))
        return reader.made[description["root"]]
    except ERRORS as error:
        raise ValueError(f"the configuration describes no flow: {reason(error)}") from error


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.made: list[Any] = []

    def node(self, node: Mapping[str, Any]) -> Any:
        match node:
            case {"item": [int(call), int(index)]}:
                return self.made[call][index]
            case {"call": str(name), "arguments": dict(arguments)}:
                return self._called(name, self._arguments(arguments))
            case {"inverse": int(index)}:
                return self.made[index].inv
            case {"sequential": list(parts)}:
                modules = [self.made[part] for part in parts]
                if any(isinstance(module, Base | Transform) for module in modules):
                    raise ValueError("the configuration has a bijection, or the base of a flow, within a network.")
                return nn.Sequential(*modules)
            case {"torch": str(name), "arguments": dict(arguments)} if name in _TORCH:
                return _of_torch(name, self._arguments(arguments))
        raise ValueError(f"the configuration has a part that is not known, {shown(node)}.")

    def _called(self, name: str, arguments: Mapping[str, Any]) -> Any:
        function = self._marked(name)
        for key, value in arguments.items():
            if isinstance(value, Base) and (name, key) not in (("Flow", "base"), ("AugmentedFlow", "noise")):
                raise ValueError(f"{name} takes no {type(value).__name__} as {key}.")
        return function(**arguments)

    def _marked(self, name: str) -> Any:
        if name not in MARKED:
            raise ValueError(f"the configuration names {shown(name)}, which is no class or function of pyro_realnvp.")
        return MARKED[name]

    def _arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._value(value) for key, value in arguments.items()}

    def _value(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case list():
                return [self._value(each) for each in value]
            case {"node": int(index)}:
                return self.made[index]
            case {"tensor": str(key)}:
                return self.tensors[key]
            case {"name": str(name)}:
                return ACTIVATIONS[name] if name in ACTIVATIONS else self._marked(name)
            case {"partial": str(name), "args": list(args), "arguments": dict(arguments)}:
                return partial(self._marked(name), *map(self._value, args), **self._arguments(arguments))
        raise ValueError(f"the configuration has a value that is not known, {shown(value)}.")


def _of_torch(name: str, arguments: Mapping[str, Any]) -> Any:
    """Makes an object of torch, whose constructors take what they cannot compute with."""
    kind, types = _TORCH[name]
    check_types(name, types, arguments)
    arguments = {
        key: float(value) if types.get(key) is _NUMBERS and not isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    if "scale" in arguments and (torch.as_tensor(arguments["scale"], device="cpu") == 0).any():
        raise ValueError(f"{name} needs a scale other than 0.")
    return kind(**arguments)


def load_state(
    module: nn.Module, load: Callable[..., Any], state_dict: Mapping[str, Any], *, strict: bool, assign: bool
) -> Any:
    """Loads a state all or nothing, and leaves nothing on the meta device; see :func:`load_all_or_nothing`."""
    result = load_all_or_nothing(module, load, state_dict, strict=strict, assign=assign)
    if assign and _fill_meta_buffers(module):
        load(state_dict, strict=strict, assign=False)  # again, for buffers that follow from others
    return result


def _fill_meta_buffers(module: nn.Module) -> bool:
    """Computes the buffers that no state has (masks, say) of a Module that was made on the meta device.

    Returns whether there were any.

    Raises:
        ValueError: if the Module does not remember how it was made.
    """
    buffers = {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if buffer.is_meta}
    if not buffers:
        return False
    device = next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
    with torch.random.fork_rng(), device:
        again = make(*describe(module))
    for name, buffer in again.named_buffers(remove_duplicate=False):
        if name in buffers:
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._buffers[last] = buffer.to(buffers[name].dtype)
    return True
