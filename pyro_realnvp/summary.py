"""Tables of the layers of a flow: every layer, and the few lines that ``print(flow)`` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn
from torch.distributions import ExpTransform
from torch.nn.parameter import is_lazy

from .bases import Base
from .bijections.bijection import Bijection, Inverse
from .bijections.chain import Chain
from .bijections.lift import Lift

LONGEST = 60  #: lines of an outline; a longer one is folded
_TORCH_INVERSE = type(ExpTransform().inv)


class _Node(NamedTuple):
    """A line about a layer, and its parts. Equal nodes print equal lines."""

    name: str
    shape: str
    parameters: int
    trainable: int
    parts: tuple[_Node, ...] = ()


def summary(transforms: Chain, base: nn.Module) -> str:
    """Returns a line for every layer, from the data to the latent side, and one for the base."""
    return _table([line for node in _nodes(transforms, base) for line in _lines(node, 1)], trainable=True)


def outline(flow: nn.Module) -> str:
    """Returns a heading with the number of parameters, and a line a layer; repeated layers once if they are many.

    It reads shapes and no values, and never raises: of a flow whose parts are missing it is what any Module prints.
    """
    try:
        nodes = _nodes(flow.transforms, flow.base)  # type: ignore[arg-type]
        lines = [line for node in nodes for line in _lines(node, 1)]
        if len(lines) > LONGEST:
            lines = [line for node in _folded(nodes) for line in _lines(node, 1)]
        if len(lines) > LONGEST:
            left, half = len(lines) - LONGEST, LONGEST // 2
            omitted = _Node(f"... {left} more lines: see summary()", "", 0, 0)
            lines = [*lines[:half], (1, omitted), *lines[-half:]]
        return f"{_heading(flow)}\n{_table(lines, trainable=False)}"
    except Exception:  # a debugger prints flows whose __init__ has failed
        try:
            return nn.Module.__repr__(flow)
        except Exception:
            return object.__repr__(flow)


def layer_name(layer: Bijection, *, inverse: bool) -> str:
    """Returns the class of a layer, ``Lift(ExpTransform)`` say, with ``.inv`` behind it if it is run backwards."""
    name = type(layer).__name__
    if isinstance(layer, Lift):
        inner = layer.transform
        inner_name = type(inner).__name__
        if isinstance(inner, _TORCH_INVERSE):
            inner_name = type(inner.inv).__name__ + ".inv"
        name += f"({inner_name})"
    return name + ".inv" if inverse else name


def count(module: nn.Module) -> int:
    """Counts the parameters of a Module, each once; those of a lazy Module count from its first call on."""
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _heading(flow: nn.Module) -> str:
    total, trainable = count(flow), _trainable(flow)
    frozen = "" if total == trainable else f", of which {trainable:,} are trainable"
    return f"{type(flow).__name__} of events {tuple(flow.event_shape)}, {total:,} parameters{frozen}"  # type: ignore[arg-type]


def _trainable(module: nn.Module) -> int:
    return sum(
        parameter.numel() for parameter in module.parameters() if parameter.requires_grad and not is_lazy(parameter)
    )


def _nodes(transforms: Chain, base: nn.Module) -> list[_Node]:
    """Describes a flow from the data to the latent side."""
    layers = [_describe(part, inverse=True) for part in reversed(transforms.bijections)]
    shape = base.event_shape if isinstance(base, Base) else transforms.event_shape
    return [*layers, _Node(type(base).__name__, str(tuple(shape)), count(base), _trainable(base))]


def _describe(layer: Bijection, *, inverse: bool) -> _Node:
    while isinstance(layer, Inverse):
        layer, inverse = layer.bijection, not inverse
    parts = [_describe(part, inverse=inverse) for part in layer.children() if isinstance(part, Bijection)]
    if inverse and isinstance(layer, Chain):
        parts.reverse()
    shape = str(tuple(layer.output_shape if inverse else layer.event_shape) or "any shape")
    name = layer_name(layer, inverse=inverse)
    return _Node(name, shape, count(layer), _trainable(layer), tuple(parts))


def _folded(nodes: Sequence[_Node]) -> list[_Node]:
    """Replaces neighbours that repeat, alone or in a pattern, by one node that says how often."""
    found: list[_Node] = []
    start = 0
    while start < len(nodes):
        period, times = _repetition(nodes[start:])
        block = _folded_parts(nodes[start : start + period])
        if times == 1:
            found += block
        else:
            total = times * sum(node.parameters for node in block)
            trainable = times * sum(node.trainable for node in block)
            found.append(_Node(f"{times} times:", "", total, trainable, tuple(block)))
        start += period * times
    return found


def _folded_parts(nodes: Sequence[_Node]) -> list[_Node]:
    return [node._replace(parts=tuple(_folded(node.parts))) for node in nodes]


def _repetition(nodes: Sequence[_Node]) -> tuple[int, int]:
    """Returns the length of the pattern at the beginning that covers most nodes, and how often it stands there."""
    best = (1, 1)
    for period in range(1, len(nodes) // 2 + 1):
        times = 1
        while list(nodes[times * period : (times + 1) * period]) == list(nodes[:period]):
            times += 1
        if times > 1 and times * period > best[0] * best[1]:
            best = (period, times)
    return best


def _lines(node: _Node, depth: int) -> Iterator[tuple[int, _Node]]:
    yield depth, node
    for part in node.parts:
        yield from _lines(part, depth + 1)


def _table(lines: Sequence[tuple[int, _Node]], *, trainable: bool) -> str:
    rows = []
    for depth, node in lines:
        number = node.trainable if trainable else node.parameters
        rows.append(("  " * depth + node.name, node.shape, f"{number:>12,}" if node.shape or node.parts else ""))
    first = max(24, *(len(name) for name, shape, _ in rows if shape))
    return "\n".join(f"{name:<{first}} {shape:<16} {number}".rstrip() for name, shape, number in rows)
