"""Composition: bijections one after another, and torch's and Pyro's own transforms among them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from .._runtime.construction import recorded
from .._runtime.recomputation import can_recompute
from .bijection import Bijection, Composite, Inverse
from .coupling import compute_splits, split_of
from .lift import Lift
from .reversible import DirectedLayer, compute_reversibly
from .support import events, finite, rearranged


@recorded
class Chain(Composite):
    """The composition of bijections, applied from the first to the last.

        y = f_n(... f_2(f_1(x))),   log|det dy/dx| = sum_i log|det df_i|

    A sequence: ``len(chain)``, ``chain[i]``, ``chain[i:j]`` (again a Chain) and iteration. Torch and Pyro transforms
    among the parts are wrapped in :class:`Lift`. The parts are registered as ``"0"``, ``"1"``, ...

    Args:
        bijections: the parts.
        event_shape: shape of one x; by default that of the first part which knows its shape, seen from the beginning.
        cache_size: 1 remembers the last result, 0 does not.

    With ``rebuilds``, which :func:`~pyro_realnvp.rebuild` sets, backward inverts reversible parts instead of storing
    their activations.

    Raises:
        ValueError: if there is no part, or one does not fit the shape of the output of the part before it.

    Example:
        >>> f = Chain([FixedAffine(torch.zeros(2), torch.tensor([2.0, 3.0])), Permute((2,), [1, 0])])
        >>> y, log_det = f.forward_and_log_det(torch.tensor([1.0, 1.0]))
        >>> y, round(log_det.exp().item(), 4)
        (tensor([3., 2.]), 6.0)
        >>> len(f), len(f[:1])
        (2, 1)
    """

    rebuilds = False
    tolerance: float | None = None

    def __init__(
        self, bijections: Iterable[Transform], event_shape: Sequence[int] | None = None, *, cache_size: int = 1
    ) -> None:
        transforms = list(bijections)
        if not transforms:
            raise ValueError("Chain needs at least one bijection, but got none.")
        for transform in transforms:
            if not isinstance(transform, Transform | ConditionalTransform):
                raise ValueError(f"Chain needs torch or Pyro transforms, but got {type(transform).__name__}.")
        first = shape = Size(_input_shape(transforms) if event_shape is None else event_shape)
        parts: list[Bijection] = []
        self._event_dims: list[int] = []  # by part: how many dimensions the event of the chain has more
        for transform in transforms:
            part = transform if isinstance(transform, Bijection) else _lift(transform, shape)
            parts.append(part)
            self._event_dims.append(len(shape) - len(part.event_shape))
            shape = part.forward_shape(shape)
        # Parts that take no context receive none where others do; where none does, they say that they take none.
        conditional = [part.is_conditional for part in parts]
        self._takes_context = any(conditional)
        self._conditional = conditional if self._takes_context else [True] * len(parts)
        super().__init__(first, shape, cache_size=cache_size)
        self._known_constraints: dict[bool, constraints.Constraint] = {}
        for index, part in enumerate(parts):
            self.add_module(str(index), part)

    @property
    def bijections(self) -> list[Bijection]:
        return list(self._modules.values())  # type: ignore[arg-type]

    @property
    def is_conditional(self) -> bool:
        return self._takes_context

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        # Remembered: torch asks for it 25 times as it makes a distribution.
        if torch.compiler.is_compiling():  # Dynamo would compile again for a dictionary that has changed
            return self._find_constraint(output=output)
        if output not in self._known_constraints:
            self._known_constraints[output] = self._find_constraint(output=output)
        return self._known_constraints[output]

    def _find_constraint(self, *, output: bool) -> constraints.Constraint:
        dims = len(self.output_shape if output else self.event_shape)
        parts = self.bijections[::-1] if output else self.bijections
        index = next((i for i, part in enumerate(parts) if not part.rearranges), 0)  # what bounds the elements
        inner = parts[index].codomain if output else parts[index].domain
        for part in reversed(parts[:index]):
            inner = _behind(part, inner, output=output)
        return events(inner, dims - inner.event_dim)

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        layers: list[DirectedLayer] = []
        for part, dims, conditional in zip(self, self._event_dims, self._conditional, strict=True):
            bijection, flipped = (part.bijection, not inverse) if type(part) is Inverse else (part, inverse)
            layers.append(DirectedLayer(bijection, flipped, dims, conditional))
        if inverse:
            layers.reverse()
        if self.rebuilds and can_recompute():
            return compute_reversibly(layers, x, context, self.tolerance)
        log_dets: list[Tensor] = []
        start = 0
        while start < len(layers):
            split, end = split_of(layers[start]), start + 1
            if split is None:
                x, log_det = layers[start].compute(x, context)
                log_dets.append(log_det)
            else:
                while end < len(layers) and split_of(layers[end]) == split:
                    end += 1
                x, found = compute_splits(layers[start:end], split, x, context)
                log_dets += found
            start = end
        return x, sum(log_dets[1:], log_dets[0])

    def _apply(self, fn: Any, recurse: bool = True) -> Bijection:
        self._known_constraints.clear()  # bounds are on the device of the parts
        return super()._apply(fn, recurse)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)

    def __getitem__(self, index: int | slice) -> Any:
        return Chain(self.bijections[index]) if isinstance(index, slice) else self.bijections[index]

    def extra_repr(self) -> str:
        return super().extra_repr() + (", rebuilds=True" if self.rebuilds else "")


def _behind(part: Bijection, constraint: constraints.Constraint, *, output: bool) -> constraints.Constraint:
    """Returns the constraint of the elements on the other side of a part that rearranges them."""
    device = next((buffer.device for buffer in part.buffers()), None)

    def move(bound: Tensor) -> Tensor:
        return (part.forward_and_log_det if output else part.inverse_and_log_det)(bound.to(device))[0]

    return rearranged(constraint, move, part.event_shape if output else part.output_shape) or finite


def _input_shape(transforms: Sequence[Transform]) -> Size:
    """Returns the event shape of the first part that knows its own, seen through the parts before it."""
    for index, part in enumerate(transforms):
        if isinstance(part, Bijection) and part.event_shape:
            shape = part.event_shape
            for earlier in reversed(transforms[:index]):
                shape = earlier.inverse_shape(shape) if isinstance(earlier, Transform) else shape
            return Size(shape)
    return Size()  # elementwise parts alone fit any shape


def _lift(transform: Transform, shape: Size) -> Lift:
    elementwise = (
        isinstance(transform, Transform) and not transform.domain.event_dim and not transform.codomain.event_dim
    )
    return Lift(transform, () if elementwise else shape)
