"""Composition: bijections one after another, and torch's and Pyro's own transforms among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from .bijection import Bijection, Inverse, sum_rightmost
from .coupling import SplitCoupling
from .replay import can_replay
from .reversible import Step, run_reversibly

__all__ = ["Chain", "Lift"]


class Chain(Bijection):
    """The composition of bijections, applied from the first to the last.

        y = f_n(... f_2(f_1(x))),   log|det dy/dx| = sum_i log|det df_i|

    A sequence: ``len(chain)``, ``chain[i]``, ``chain[i:j]`` (again a Chain) and iteration. Torch and Pyro transforms
    among the parts are wrapped in :class:`Lift`. The parts are registered as ``"0"``, ``"1"``, ...

    Args:
        bijections: the parts.
        event_shape: shape of one x; by default what the first part that knows its shape implies.
        cache_size: 1 remembers the last result, 0 does not.

    With ``rebuilds``, which :func:`~pyro_realnvp.rebuild` sets, backward inverts reversible parts instead of storing
    what they have computed.

    Raises:
        ValueError: if there is no part, or one does not fit the shape that the part before it gives.
    """

    rebuilds = False
    tolerance: float | None = None

    def __init__(
        self, bijections: Iterable[Transform], event_shape: Sequence[int] | None = None, *, cache_size: int = 1
    ) -> None:
        parts = list(bijections)
        if not parts:
            raise ValueError("Chain needs at least one bijection, but got none.")
        for part in parts:
            if not isinstance(part, Transform | ConditionalTransform):
                raise ValueError(f"Chain needs torch or Pyro transforms, but got {type(part).__name__}.")
        first = shape = Size(_entering(parts) if event_shape is None else event_shape)
        lifted: list[Bijection] = []
        for part in parts:
            lifted.append(part if isinstance(part, Bijection) else _lift(part, shape))
            shape = lifted[-1].forward_shape(shape)
        super().__init__(first, shape, cache_size=cache_size)
        for index, bijection in enumerate(lifted):
            self.add_module(str(index), bijection)

    @property
    def bijections(self) -> list[Bijection]:
        return list(self._modules.values())  # type: ignore[arg-type]

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        first = self[0].domain
        return constraints.independent(first, len(self.event_shape) - first.event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        last = self[-1].codomain
        return constraints.independent(last, len(self.output_shape) - last.event_dim)

    @property
    def context_shape(self) -> Size | None:
        return next((part.context_shape for part in self if part.context_shape is not None), None)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(x, context, inverse=False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(y, context, inverse=True)

    def _through(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.rebuilds and can_replay():
            return run_reversibly(self._steps(inverse=inverse), x, context, self.tolerance)
        ndim = len(self.output_shape if inverse else self.event_shape)
        log_dets: list[Tensor] = []
        event = _Event(x)
        for part in reversed(self.bijections) if inverse else self.bijections:
            given, made = (part.output_shape, part.event_shape) if inverse else (part.event_shape, part.output_shape)
            log_det = event.passed(part, context, inverse=inverse)
            extra = ndim - len(given)
            log_dets.append(sum_rightmost(log_det, extra) if extra else log_det)
            ndim = extra + len(made)
        return event.whole(), sum(log_dets[1:], log_dets[0])

    def _steps(self, *, inverse: bool) -> list[Step]:
        ndim = len(self.output_shape if inverse else self.event_shape)
        steps: list[Step] = []
        for part in reversed(self.bijections) if inverse else self.bijections:
            given, made = part.event_shape, part.output_shape
            if inverse:
                given, made = made, given
            steps.append(Step(part, inverse, ndim - len(given)))
            ndim += len(made) - len(given)
        return steps

    def with_cache(self, cache_size: int = 1) -> Bijection:
        if cache_size == self._cache_size:
            return self
        chain = Chain(self, self.event_shape, cache_size=cache_size)
        chain.rebuilds, chain.tolerance = self.rebuilds, self.tolerance
        return chain

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)

    @overload
    def __getitem__(self, index: int) -> Bijection: ...

    @overload
    def __getitem__(self, index: slice) -> Chain: ...

    def __getitem__(self, index: int | slice) -> Bijection | Chain:
        return Chain(self.bijections[index]) if isinstance(index, slice) else self.bijections[index]

    def extra_repr(self) -> str:
        return super().extra_repr() + (", rebuilds=True" if self.rebuilds else "")


class _Event:
    """An event on its way: whole, or in the two parts between which split couplings work, until something else comes.

    Merging the parts behind every coupling, to split them again in the next, took a twentieth of a training step of
    small networks, and kept both parts for backward where one is needed.
    """

    def __init__(self, x: Tensor) -> None:
        self._parts: tuple[Tensor, ...] = (x,)
        self._sizes: tuple[int, int] | None = None
        self._dim = 0

    def whole(self) -> Tensor:
        if self._sizes is not None:
            self._parts, self._sizes = (torch.cat(self._parts, self._dim),), None
        return self._parts[0]

    def passed(self, part: Bijection, context: Tensor | None, *, inverse: bool) -> Tensor:
        """Takes the event through a bijection or back, and returns the log-determinant."""
        coupling, backwards = (part.bijection, not inverse) if type(part) is Inverse else (part, inverse)
        if type(coupling) is not SplitCoupling or coupling.recomputes:
            function = part.inverse_and_log_det if inverse else part.forward_and_log_det
            x, log_det = function(self.whole(), context)
            self._parts = (x,)
            return log_det
        if self._sizes != coupling.sizes or self._dim != coupling._dim:
            self._parts = self.whole().split_with_sizes(coupling.sizes, coupling._dim)
            self._sizes, self._dim = coupling.sizes, coupling._dim
        first, second = self._parts
        first, second, log_det = coupling.move(first, second, context, inverse=backwards)
        self._parts = (first, second)
        return log_det


def _entering(parts: Sequence[Transform]) -> Size:
    """The event shape that the first part with a known one asks for, seen through those before it."""
    for index, part in enumerate(parts):
        if isinstance(part, Bijection) and part.event_shape:
            shape = part.event_shape
            for earlier in reversed(parts[:index]):
                shape = earlier.inverse_shape(shape) if isinstance(earlier, Transform) else shape
            return Size(shape)
    return Size()  # elementwise parts alone fit any shape


def _lift(part: Transform, shape: Size) -> Lift:
    elementwise = isinstance(part, Transform) and not part.domain.event_dim and not part.codomain.event_dim
    return Lift(part, () if elementwise else shape)


class Lift(Bijection):
    """Any bijective torch or Pyro transform as a :class:`Bijection`, to stand inside a :class:`Chain`.

        y = t(x),   log|det dy/dx| = t.log_abs_det_jacobian(x, y)

    Modules keep their parameters, conditional transforms receive the context. A tensor that a lifted transform holds
    without being a Module (the ``loc`` of an ``AffineTransform``, say) is not watched: call ``clear_cache()`` after
    changing it in place.

    Args:
        transform: the transform.
        event_shape: shape of one x; may stay ``()`` for elementwise transforms.

    Raises:
        ValueError: if the transform is not bijective, or needs an event shape and none is given.
    """

    def __init__(self, transform: Transform | ConditionalTransform, event_shape: Sequence[int] = ()) -> None:
        name = type(transform).__name__
        inner = transform
        if isinstance(transform, Transform):
            if not transform.bijective:
                raise ValueError(f"Lift needs a bijective transform, but got {name}.")
            if len(event_shape) < transform.domain.event_dim:
                raise ValueError(
                    f"Lift of {name} needs the shape of its events, of at least {transform.domain.event_dim} "
                    f"dimensions, but got {tuple(event_shape)}."
                )
            output_shape = transform.forward_shape(Size(event_shape))
        elif isinstance(transform, ConditionalTransform):
            output_shape = Size(event_shape)
        else:
            raise ValueError(f"Lift needs a torch or Pyro transform, but got {name}.")
        super().__init__(event_shape, output_shape)
        self.transform = inner

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        if not isinstance(self.transform, Transform):
            return super().domain
        return constraints.independent(self.transform.domain, len(self.event_shape) - self.transform.domain.event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        if not isinstance(self.transform, Transform):
            return super().codomain
        return constraints.independent(
            self.transform.codomain, len(self.output_shape) - self.transform.codomain.event_dim
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = self._given(context)
        x = x.view_as(x)  # a tensor of its own, which no cache inside the transform can mistake for an earlier one
        y = transform(x)
        return y, self._log_det(transform, x, y)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = self._given(context)
        y = y.view_as(y)
        x = transform.inv(y)
        return x, -self._log_det(transform, x, y)

    def _given(self, context: Tensor | None) -> Transform:
        if isinstance(self.transform, Transform):
            return self.transform
        if context is None:
            raise ValueError(f"Lift of {type(self.transform).__name__} needs a context, but got none.")
        return self.transform.condition(context)

    def _log_det(self, transform: Transform, x: Tensor, y: Tensor) -> Tensor:
        log_det = transform.log_abs_det_jacobian(x, y)
        return sum_rightmost(log_det, len(self.event_shape) - transform.domain.event_dim)

    def clear_cache(self) -> None:
        super().clear_cache()
        if hasattr(self.transform, "clear_cache"):
            self.transform.clear_cache()
