"""Passes events through a flow layer by layer, also those inside of layers, and measures each on the way."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.batch_statistics import hold_statistics
from .._runtime.batches import sum_rightmost
from ..bijections.bijection import Bijection, Inverse, compute
from ..bijections.chain import Chain
from ..bijections.context import EmbedContext
from ..bijections.coupling import Coupling, MaskedCoupling
from ..bijections.multiscale import FactorOut, Halves, Sandwich
from ..bijections.normalization import BatchNorm
from ..summary import layer_name

Range = tuple[float, float]
ENOUGH_ROWS = 10  #: of a batch, to say that an element is the same in all of them


class Stopped(Exception):  # noqa: N818  # no error: it ends the walk, and what has happened is in the last visit
    """Ends a walk at a layer that has raised an error."""


@dataclass
class Visit:
    """What was measured at one layer, in the direction of the walk.

    Attributes:
        name: dotted path of the layer in the flow.
        kind: its class, with ``.inv`` if it was run backwards.
        module: the layer.
        shape: of one event behind it.
        values, log_dets: smallest and largest; None where there are none.
        bad: (N,), the events with something not finite in value or log-determinant.
        inverse_error: largest absolute difference between x and its way through the layer and back.
        relative_error: the same, relative where abs(x) is more than 1, if x and y are finite.
        at_bound: share of the scales that are at a bound; None for a layer that bounds none.
        stuck: an element of the changed part whose scale is at its bound in every event of a large batch, or None.
        error, error_back: message of what the layer raised, on this way and on the way back.
    """

    name: str
    kind: str
    module: nn.Module
    shape: tuple[int, ...] = ()
    values: Range | None = None
    log_dets: Range | None = None
    bad: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    inverse_error: float | None = None
    relative_error: float | None = None
    at_bound: float | None = None
    stuck: int | None = None
    error: str | None = None
    error_back: str | None = None

    def see(self, values: Tensor, log_dets: Tensor | None) -> None:
        """Notes shape and range of values (N, \\*event) and log-determinants (N,), and where they are not finite."""
        self.shape, self.values = tuple(values.shape[1:]), range_of(values)
        finite = finite_rows(values)
        if log_dets is not None:
            self.log_dets = range_of(log_dets)
            finite = finite & log_dets.isfinite()
        self.bad = ~finite


class Walk:
    """One way of N events through chains of layers, in the mode that the layers are in.

    Running statistics may change, so that it is to be done inside of
    :func:`~pyro_realnvp._runtime.state.preserved`; an ActNorm is not initialised.

    Attributes:
        visits: of all layers so far, in the order of computing.
        reaching_coupling: name of the first coupling on the way to the latents and the events (N, \\*event) it gets.
    """

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.reaching_coupling: tuple[str, Tensor] | None = None
        self._log_dets: list[Tensor] = []

    def through(
        self, name: str, f: Bijection, x: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Passes x (N, \\*event) through f or its inverse, with one context (N, ...) an event.

        Returns:
            The value, and the log-determinant (N,).

        Raises:
            Stopped: if a layer has raised an error.
        """
        self._log_dets = [x.new_zeros(len(x))]
        y = self._pass(name, f, x, context, inverse, 0)
        return y, torch.stack(self._log_dets).sum(0)

    def end(self, name: str, base: nn.Module, z: Tensor, log_prob: Any) -> Tensor:
        """Notes the base as the last layer; ``log_prob()`` computes the log-density (N,) of the latents z."""
        visit = self._arrive(name, type(base).__name__, base)
        found: Tensor = self._guard(visit, log_prob)
        visit.see(z.detach(), found.detach())
        return found

    def _pass(
        self, name: str, f: Bijection, x: Tensor, context: Tensor | None, inverse: bool, event_dims: int
    ) -> Tensor:
        """Passes x through a layer, or through its parts. ``event_dims``: how many of its batch are of the event."""
        inside = f"{name}.bijection"
        if type(f) is Inverse:
            return self._pass(inside, f.bijection, x, context, not inverse, event_dims)
        if type(f) is Chain:
            parts = list(zip(range(len(f)), f, f._event_dims, f._conditional, strict=True))
            for index, part, dims, conditional in reversed(parts) if inverse else parts:
                own = context if conditional else None
                x = self._pass(f"{name}.{index}", part, x, own, inverse, event_dims + dims)
            return x
        if type(f) is Sandwich:
            if f.context is not None and context is not None:
                context = f.context.forward_and_log_det(context)[0]
            x = self._pass(f"{name}.outer", f.outer, x, None, False, event_dims)
            x = self._pass(inside, f.bijection, x, context, inverse, event_dims)
            return self._pass(f"{name}.outer", f.outer, x, None, True, event_dims)
        if type(f) is FactorOut:
            changed, kept = x.chunk(2, -3)
            return torch.cat([self._pass(inside, f.bijection, changed, context, inverse, event_dims), kept], -3)
        if type(f) is Halves:
            halves = zip(("first", "second"), (f.first, f.second), x.chunk(2, -3), strict=True)
            return torch.cat([self._pass(f"{name}.{n}", g, h, context, inverse, event_dims) for n, g, h in halves], -3)
        if type(f) is EmbedContext and context is not None:
            embedded = self._embed(f"{name}.embedding", f.embedding, context)
            return self._pass(inside, f.bijection, x, embedded, inverse, event_dims)
        return self._layer(name, f, x, context, inverse, event_dims)

    def _embed(self, name: str, embedding: nn.Module, context: Tensor) -> Tensor:
        visit = self._arrive(name, type(embedding).__name__, embedding)
        with hold_statistics():
            embedded: Tensor = self._guard(visit, lambda: embedding(context))
        visit.see(embedded.detach(), None)
        return embedded

    def _layer(
        self, name: str, layer: Bijection, x: Tensor, context: Tensor | None, inverse: bool, event_dims: int
    ) -> Tensor:
        visit = self._arrive(name, layer_name(layer, inverse=inverse), layer)
        if isinstance(layer, Coupling) and self.reaching_coupling is None:
            self.reaching_coupling = name, x.detach()
        with _statistics(layer, x):
            y, log_det = self._guard(visit, lambda: compute(layer, x, context, inverse=inverse))
            log_det = sum_rightmost(log_det, event_dims).expand(len(x))
            visit.see(y.detach(), log_det.detach())
            with torch.no_grad(), hold_statistics():
                _measure_back(visit, layer, x, y, context, inverse=inverse)
                _measure_scales(visit, layer, x, context)
        self._log_dets.append(log_det)
        return y

    def _arrive(self, name: str, kind: str, module: nn.Module) -> Visit:
        self.visits.append(Visit(name, kind, module))
        return self.visits[-1]

    def _guard(self, visit: Visit, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # whatever a network raises at values that it was not made for
            visit.error = _message(error)
            raise Stopped from error


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())  # in one line
    return f"{type(error).__name__}: {text[:400]}".rstrip(".")


def _statistics(layer: Bijection, x: Tensor) -> AbstractContextManager[Any]:
    """Holds statistics; not those of a batch normalization in training mode, whose inverse needs them.

    That raises an error at values which are not finite, and they would not be seen to go on.
    """
    follows = isinstance(layer, BatchNorm) and layer.training and bool(x.isfinite().all())
    return nullcontext() if follows else hold_statistics()


def _measure_back(
    visit: Visit, layer: Bijection, x: Tensor, y: Tensor, context: Tensor | None, *, inverse: bool
) -> None:
    try:
        back = compute(layer, y.detach(), context, inverse=not inverse)[0]
    except Exception as error:
        visit.error_back = _message(error)
        return
    distance = (back - x).abs()
    visit.inverse_error = float(distance.max())
    good = ~visit.bad & finite_rows(x)
    if good.any():
        visit.relative_error = float((distance / x.abs().clamp(min=1))[good].max())


def _measure_scales(visit: Visit, layer: Bijection, x: Tensor, context: Tensor | None) -> None:
    if not isinstance(layer, Coupling):
        return
    try:
        params = layer._theta(layer._split(x)[0], context)  # the part that is read is equal in x and y
        at_bound = layer.transformer.at_bound(params, layer._dim)
    except Exception:  # of a transformer of another kind, or a scale that has no derivative
        return
    if at_bound is None:
        return
    event_shape = at_bound.shape[at_bound.dim() + layer._dim :]
    at_bound = at_bound.expand(len(x), *event_shape)  # learned parameters have no batch
    at_bound = at_bound[:, ~layer.mask] if isinstance(layer, MaskedCoupling) else at_bound.flatten(1)
    visit.at_bound = float(at_bound.double().mean())
    everywhere = at_bound.all(0)
    if len(x) >= ENOUGH_ROWS and bool(everywhere.any()):
        visit.stuck = int(everywhere.nonzero()[0])


def finite_rows(values: Tensor) -> Tensor:
    """Returns which of the events (N, \\*event) are finite, (N,)."""
    return values.isfinite().reshape(len(values), -1).all(1)


def range_of(values: Tensor) -> Range:
    """Returns the smallest and the largest value; both NaN if there is a NaN, and NaN of none."""
    if not values.numel():
        return float("nan"), float("nan")
    low, high = values.aminmax()
    return float(low), float(high)
