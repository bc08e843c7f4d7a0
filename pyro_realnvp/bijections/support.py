"""The supports of flows: the finite real numbers, and boxes of bounded coordinates."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor
from torch.distributions import (
    IndependentTransform,
    Transform,
    biject_to,
    constraints,
    identity_transform,
    transform_to,
)
from torch.nn.functional import logsigmoid

from .._runtime.coordinates import REAL, Coordinate


class _Finite(type(constraints.real)):  # type: ignore[misc]
    """The finite real numbers; torch's ``real`` accepts infinities."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


finite = _Finite()


class Box(constraints.Constraint):
    """Each channel between bounds of its own, both included; finite where they are infinite.

    Args:
        low, high: broadcastable to the shape of an event.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (value >= self.low.to(value)) & (value <= self.high.to(value)) & value.isfinite()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and torch.equal(self.low, other.low) and torch.equal(self.high, other.high)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        bounds = zip(self.low.flatten().tolist(), self.high.flatten().tolist(), strict=True)
        sets = [f"[{low:.5g}, {high:.5g}]" if high < math.inf else "R" for low, high in bounds]
        powers = [(each, len(list(group))) for each, group in itertools.groupby(sets)]
        return " x ".join(each if count == 1 else f"{each}^{count}" for each, count in powers)


def box(coordinates: Sequence[Coordinate], dims: int) -> Box | None:
    """Returns the box of channels that lie there, for events of ``dims`` dimensions; None if all are real."""
    if all(each == REAL for each in coordinates):
        return None
    bounds = torch.tensor([each[:2] for each in coordinates], dtype=torch.float64, device="cpu")
    low, high = bounds.reshape(-1, 2, *[1] * (dims - 1)).unbind(1)
    return Box(low, high)


class _OntoBox(Transform):
    """Maps real numbers into a box: y = low + (high - low) sigmoid(x), and y = x where there are no bounds."""

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, box: Box, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.box = box

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.box

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bounded = (self.box.high < math.inf).to(x.device)
        low, high = self.box.low.to(x), self.box.high.to(x)
        return bounded, torch.where(bounded, low, 0), torch.where(bounded, high - low, 1)

    def _call(self, x: Tensor) -> Tensor:
        bounded, low, width = self._bounds(x)
        return torch.where(bounded, low + width * x.sigmoid(), x)

    def _inverse(self, y: Tensor) -> Tensor:
        bounded, low, width = self._bounds(y)
        tiny = torch.finfo(y.dtype).eps
        return torch.where(bounded, ((y - low) / width).clamp(tiny, 1 - tiny).logit(), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        bounded, _, width = self._bounds(x)
        return torch.where(bounded, width.log() + logsigmoid(x) + logsigmoid(-x), 0)

    def with_cache(self, cache_size: int = 1) -> Transform:
        return self if cache_size == self._cache_size else _OntoBox(self.box, cache_size)


class _Events(constraints.independent):
    """Holds for an event if it holds for all its elements; unlike its base class it can check an empty batch."""

    def check(self, value: Tensor) -> Tensor:
        result = self.base_constraint.check(value)
        dims: int = self.reinterpreted_batch_ndims
        if result.dim() < dims:
            raise ValueError(f"Events of {dims} dimensions or more are expected, but got a tensor of {result.dim()}.")
        return result.flatten(-dims).all(-1) if dims else result


def events(constraint: constraints.Constraint, dims: int) -> constraints.Constraint:
    """Returns the constraint that an event satisfies if all its elements, over ``dims`` dimensions, satisfy this."""
    return _Events(constraint, dims)


def elementwise(constraint: constraints.Constraint) -> constraints.Constraint | None:
    """Returns the constraint of every element by itself, or None if there is none."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if isinstance(constraint, Box) and any(len(bound.unique()) > 1 for bound in (constraint.low, constraint.high)):
        return None
    return None if constraint.event_dim else constraint


def rearranged(
    constraint: constraints.Constraint, move: Callable[[Tensor], Tensor], shape: Size
) -> constraints.Constraint | None:
    """Returns the constraint of every element of events of this shape behind a map that only moves elements.

    None if the constraint is not one of every element by itself.
    """
    inner = constraint
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    if isinstance(inner, Box):
        return Box(*(move(bound.expand(shape)) for bound in (inner.low, inner.high)))
    return elementwise(constraint)


def unbounded(constraint: constraints.Constraint) -> bool:
    """Returns whether a constraint is the whole real line, for every element of an event."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is finite or constraint is constraints.real


def without_infinities(constraint: constraints.Constraint) -> constraints.Constraint:
    """Returns a constraint of torch in which the real numbers are the finite ones."""
    if isinstance(constraint, constraints.independent):
        return events(without_infinities(constraint.base_constraint), constraint.reinterpreted_batch_ndims)
    return finite if constraint is constraints.real else constraint


for _registry in (biject_to, transform_to):
    _registry.register(Box, _OntoBox)
biject_to.register(_Finite, lambda constraint: identity_transform)
transform_to.register(_Finite, lambda constraint: identity_transform)
for _registry in (biject_to, transform_to):
    _registry.register(
        _Events,
        lambda constraint, of=_registry: IndependentTransform(
            of(constraint.base_constraint), constraint.reinterpreted_batch_ndims
        ),
    )
