"""Couplings: a conditioner reads one part of an event, and a transformer changes the other part.

        y_unchanged = x_unchanged,   y_changed = g(x_changed; theta(x_unchanged, context)),
        log|det dy/dx| = sum log|dg/dx_changed|

Dinh et al. (2017), section 3.2.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from .._runtime.batch_statistics import hold_statistics
from .._runtime.batches import sum_rightmost
from .._runtime.construction import recorded
from .._runtime.coordinates import REAL, Coordinates
from .._runtime.recomputation import can_recompute, compute_and_recompute
from .bijection import Composite
from .reversible import DirectedLayer, LayerGraph, Reversible
from .support import box, events
from .transformers import Transformer


class Coupling(Composite, Reversible):
    """Base class of the couplings: evaluates the network, and applies the transformer in either direction.

    With ``recomputes``, which :func:`~pyro_realnvp.recompute` sets, backward evaluates the network again.

    Args:
        event_shape: (C, H, W) or (D,).
        conditioner: theta, the network; None where a subclass has parameters of its own.
        transformer: g, with P parameters per element.
        changed: number of channels that g changes.

    Where x and y lie, channel by channel, is what the transformer says of the part that it changes and, in the
    attribute ``coordinates``, the conditioner of the part that it reads; real, if it has none.
    """

    recomputes = False

    def __init__(
        self, event_shape: Sequence[int], conditioner: nn.Module | None, transformer: Transformer, *, changed: int
    ) -> None:
        if not event_shape:
            raise ValueError(f"{type(self).__name__} needs events (D,) or (C, H, W), but got the event shape ().")
        super().__init__(event_shape)
        self.conditioner = conditioner
        self.transformer = transformer
        self._dim = -len(event_shape)  # of the channels
        self._changed = changed
        self._channels = transformer.channels(changed)
        self._theta_shape = Size((self._channels, *self.event_shape[1:]))

    @property
    def context_shape(self) -> Size | None:
        return getattr(self.conditioner, "context_shape", None)

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        bounds = box(self._coordinates(), len(self.event_shape))
        return super()._constraint(output=output) if bounds is None else events(bounds, len(self.event_shape))

    def _coordinates(self) -> Coordinates:
        """Returns where the channels of an event lie."""
        return self.transformer.coordinates(self._changed)

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Splits an event into the part that the conditioner reads, equal in x and y, and the part that g changes."""

    @abstractmethod
    def _merge(self, read: Tensor, changed: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the event with y in the place of the changed part, and log_det summed over it."""

    def _theta(self, read: Tensor, context: Tensor | None) -> Tensor:
        network: Any = self.conditioner
        params: Tensor = network(read) if context is None else network(read, context)
        if params.shape[self._dim :] != self._theta_shape:  # fewer would broadcast, to a wrong log-determinant
            raise ValueError(
                f"A coupling needs {self._channels} parameter channels, {tuple(self._theta_shape)} for an event, but "
                f"its conditioner {type(network).__name__} returned a tensor of {tuple(params.shape)}."
            )
        # Under autocast the map is computed in the precision of x, or it would not be inverted.
        return params if params.dtype == read.dtype else params.to(read.dtype)

    def _transform(
        self, read: Tensor, changed: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Applies g or its inverse to the changed part; returns log|dg/dx| elementwise."""
        with hold_statistics() if inverse else nullcontext():
            params = self._theta(read, context)
        g = self.transformer.inverse_and_log_det if inverse else self.transformer.forward_and_log_det
        return g(changed, params, self._dim)

    def _apply_event(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        read, changed = self._split(x)
        return self._merge(read, changed, *self._transform(read, changed, context, inverse=inverse))

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.recomputes and can_recompute():
            return compute_and_recompute(self, partial(self._apply_event, inverse=inverse), x, context)
        return self._apply_event(x, context, inverse=inverse)

    @property
    def is_reversible(self) -> bool:
        return self.transformer.closed_form

    def recompute_from_output(self, y: Tensor, context: Tensor | None, *, inverse: bool) -> LayerGraph:
        # One evaluation of the network, which reads the same part of x and of y: theta is equal to the last bit.
        unchanged = y.detach().requires_grad_()
        with hold_statistics() if inverse else nullcontext():
            params = self._theta(self._split(unchanged)[0], context)
        maps = self.transformer.forward_and_log_det, self.transformer.inverse_and_log_det
        there, back = reversed(maps) if inverse else maps
        with torch.no_grad():
            read, changed = self._split(y)
            x = self._merge(read, changed, *back(changed, params, self._dim))[0]
        leaf = x.detach().requires_grad_()
        read, changed = self._split(leaf)
        return LayerGraph(x, (unchanged, leaf), *self._merge(read, changed, *there(changed, params, self._dim)))


@recorded
class MaskedCoupling(Coupling):
    """Transforms the elements where the mask is False, given those where it is True.

    Dinh et al. (2017), section 3.4, equation 9.

    Args:
        mask: boolean, of the event shape (C, H, W) or (D,); True = passes unchanged.
        conditioner: theta, maps (\\*batch, C, H, W), zero where the mask is False, and a context to
            (\\*batch, P C, H, W).
        transformer: g, with P parameters per element.

    Raises:
        ValueError: if the mask is not boolean, or leaves nothing to transform or nothing to condition on.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> mask = checkerboard((1, 2, 2))
        >>> f = MaskedCoupling(mask, ResNet(1, 2, hidden=4, blocks=1, mask=mask), Affine())
        >>> randomize(f)
        >>> x = torch.randn(5, 1, 2, 2)
        >>> bool(((f(x) == x) == mask).all())
        True
    """

    mask: Tensor

    def __init__(self, mask: Tensor, conditioner: nn.Module, transformer: Transformer) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"MaskedCoupling needs a boolean mask, but got {mask.dtype}.")
        if not mask.is_meta and (mask.all() or not mask.any()):
            raise ValueError(
                f"MaskedCoupling needs a mask with both True and False, but got {mask.sum()} of {mask.numel()} True."
            )
        super().__init__(mask.shape, conditioner, transformer, changed=mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask, x, 0), x

    def _merge(self, read: Tensor, changed: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask, changed, y), sum_rightmost(torch.where(self.mask, 0, log_det), -self._dim)


@recorded
class SplitCoupling(Coupling):
    """Transforms the second part of the channels (of a vector: the coordinates) given the first.

    Dinh et al. (2017), section 3.2; Kingma & Dhariwal (2018), table 1. An odd vector is split behind its middle.

    Args:
        event_shape: (C, H, W) or (D,).
        conditioner: theta, maps the first part (\\*batch, C/2, H, W) and a context to (\\*batch, P C/2, H, W).
        transformer: g, with P parameters per element.
        swap: transforms the first part given the second instead.

    Raises:
        ValueError: if an image has an odd number of channels, or a vector fewer than two coordinates.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> f = SplitCoupling((3,), MLP(2, 2), Affine())  # reads two coordinates, changes the third
        >>> randomize(f)
        >>> x = torch.randn(5, 3)
        >>> (f(x) == x).all(0)
        tensor([ True,  True, False])
    """

    def __init__(
        self, event_shape: Sequence[int], conditioner: nn.Module, transformer: Transformer, *, swap: bool = False
    ) -> None:
        if not event_shape:
            raise ValueError("SplitCoupling needs events (D,) or (C, H, W), but got the event shape ().")
        channels = event_shape[0]
        if len(event_shape) == 3 and channels % 2:
            raise ValueError(f"SplitCoupling needs an even number of channels, but got {tuple(event_shape)}.")
        if channels < 2:
            raise ValueError(f"SplitCoupling needs two channels or more, but got event shape {tuple(event_shape)}.")
        self.swap = swap
        self.sizes = (channels - channels // 2, channels // 2)
        super().__init__(event_shape, conditioner, transformer, changed=self.sizes[0 if swap else 1])
        self._read = tuple(getattr(conditioner, "coordinates", (REAL,) * (channels - self._changed)))
        if len(self._read) != channels - self._changed:
            raise ValueError(
                f"SplitCoupling of {tuple(event_shape)} has a conditioner that reads {channels - self._changed} "
                f"channels, but {type(conditioner).__name__} has coordinates for {len(self._read)}."
            )

    def _coordinates(self) -> Coordinates:
        changed = self.transformer.coordinates(self._changed)
        return (*changed, *self._read) if self.swap else (*self._read, *changed)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split_with_sizes(self.sizes, self._dim)
        return (second, first) if self.swap else (first, second)

    def _merge(self, read: Tensor, changed: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((y, read) if self.swap else (read, y), self._dim), sum_rightmost(log_det, -self._dim)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", swap=True" if self.swap else "")


def split_of(layer: DirectedLayer) -> tuple[tuple[int, int], int] | None:
    """Returns how a layer splits its event, sizes and dimension, if it is a plain :class:`SplitCoupling`."""
    coupling = layer.layer
    return (coupling.sizes, coupling._dim) if type(coupling) is SplitCoupling and not coupling.recomputes else None


def compute_splits(
    layers: Sequence[DirectedLayer], split: tuple[tuple[int, int], int], x: Tensor, context: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Passes x through neighbouring couplings that split it alike, so that it is split and merged only once.

    Merging behind every coupling took a twentieth of a training step with small networks, and kept both parts for
    backward where one is needed.
    """
    log_dets: list[Tensor] = []
    sizes, dim = split
    first, second = x.split_with_sizes(sizes, dim)
    for layer in layers:
        coupling = cast(SplitCoupling, layer.layer)
        read, changed = (second, first) if coupling.swap else (first, second)
        y, log_det = coupling._transform(read, changed, context if layer.conditional else None, inverse=layer.inverse)
        first, second = (y, read) if coupling.swap else (read, y)
        log_dets.append(sum_rightmost(log_det, layer.event_dims - dim))
    return torch.cat((first, second), dim), log_dets


@recorded
class Elementwise(Coupling):
    """Transforms every element without looking at the others: y = g(x; theta(context)).

    It takes the place of a coupling where there is nothing to condition on, as in one dimension.

    Args:
        event_shape: (C, H, W) or (D,).
        transformer: g, with P parameters per element.
        conditioner: theta, maps an empty x (\\*batch, 0, ...) and a context, if it takes one, to (\\*batch, P C, ...);
            without a conditioner theta is a learned tensor that starts at zero.

    Example:
        >>> f = Elementwise((3,), Affine())
        >>> _ = f.theta.data.copy_(torch.tensor([10.0, 20.0, 30.0, 0.0, 0.0, 0.0]))  # shifts, then log-scales
        >>> f(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [11.0, 22.0, 33.0]
    """

    def __init__(
        self, event_shape: Sequence[int], transformer: Transformer, conditioner: nn.Module | None = None
    ) -> None:
        super().__init__(event_shape, conditioner, transformer, changed=event_shape[0] if event_shape else 0)
        self.theta = nn.Parameter(torch.zeros(self._theta_shape)) if conditioner is None else None

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.narrow(self._dim, 0, 0), x

    def _merge(self, read: Tensor, changed: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return y, sum_rightmost(log_det.expand_as(y), -self._dim)

    def _theta(self, read: Tensor, context: Tensor | None) -> Tensor:
        if self.theta is None:
            return super()._theta(read, context)
        if context is not None:
            raise ValueError(
                f"Elementwise was built without a context, but got one of shape {tuple(context.shape)}; "
                f"pass context_shape when building."
            )
        return self.theta
