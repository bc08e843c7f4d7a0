"""Coupling: a conditioner reads one part of an event, a transformer moves the other part.

        y_unchanged = x_unchanged,   y_changed = g(x_changed; theta(x_unchanged, context)),
        log|det dy/dx| = sum log|dg/dx_changed|

Dinh et al. (2017), section 3.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Size, Tensor, nn

from .bijection import sum_rightmost
from .replay import can_replay, recomputed
from .reversible import Retraced, Reversible
from .statistics import hold_statistics
from .transformers import Transformer

__all__ = ["Elementwise", "MaskedCoupling", "SplitCoupling"]

Map = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _theta(conditioner: Any, x: Tensor, context: Tensor | None, channels: int, dim: int) -> Tensor:
    params = conditioner(x) if context is None else conditioner(x, context)
    if params.shape[dim] != channels:  # fewer would broadcast, to a wrong log-determinant
        raise ValueError(
            f"A coupling needs {channels} parameters at every place, but its conditioner {type(conditioner).__name__} "
            f"gave {params.shape[dim]}."
        )
    # Under autocast the map is computed in the precision of x, or it would not be inverted.
    return params if params.dtype == x.dtype else params.to(x.dtype)


class _Coupling(Reversible):
    """With ``recomputes``, which :func:`~pyro_realnvp.recompute` sets, backward evaluates the network again."""

    recomputes = False

    def __init__(
        self, event_shape: Sequence[int], conditioner: nn.Module | None, transformer: Transformer, *, changed: int
    ) -> None:
        super().__init__(event_shape)
        self.conditioner = conditioner
        self.transformer = transformer
        self._dim = -len(event_shape)  # of the channels
        self._channels = transformer.num_parameters * changed

    @property
    def context_shape(self) -> Size | None:
        return getattr(self.conditioner, "context_shape", None)

    @abstractmethod
    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads, which is the same for x and y, and what g moves."""

    @abstractmethod
    def _merged(self, read: Tensor, moved: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        """The event with y in the place of what g moved, and log_det summed over it."""

    def _params(self, read: Tensor, context: Tensor | None) -> Tensor:
        return _theta(self.conditioner, read, context, self._channels, self._dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._computed(self._forward, x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._computed(self._backward, y, context)

    def _computed(self, function: Direction, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.recomputes and can_replay():
            return recomputed(self, function, x, context)
        return function(x, context)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        read, moved = self._parts(x)
        return self._merged(read, moved, *self._mapped(read, moved, context, inverse=False))

    def _backward(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        read, moved = self._parts(y)
        return self._merged(read, moved, *self._mapped(read, moved, context, inverse=True))

    def _mapped(self, read: Tensor, moved: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """g of what it moves, or its inverse, and log|dg/dx|, elementwise."""
        if not inverse:
            return self.transformer.forward_and_log_det(moved, self._params(read, context), self._dim)
        with hold_statistics():
            params = self._params(read, context)
        return self.transformer.inverse_and_log_det(moved, params, self._dim)

    @property
    def is_reversible(self) -> bool:
        return self.transformer.closed_form

    def retrace(self, y: Tensor, context: Tensor | None, *, inverse: bool) -> Retraced:
        # One evaluation of the network, since it sees the same in x and in y; so theta is what it was, to the last bit.
        unchanged = y.detach().requires_grad_()
        with hold_statistics() if inverse else nullcontext():
            params = self._params(self._parts(unchanged)[0], context)
        g: Map = self.transformer.forward_and_log_det
        g_inverse: Map = self.transformer.inverse_and_log_det
        there, back = (g_inverse, g) if inverse else (g, g_inverse)
        with torch.no_grad():
            read, moved = self._parts(y)
            x = self._merged(read, moved, *back(moved, params, self._dim))[0]
        leaf = x.detach().requires_grad_()
        read, moved = self._parts(leaf)
        return Retraced(x, (unchanged, leaf), *self._merged(read, moved, *there(moved, params, self._dim)))


class MaskedCoupling(_Coupling):
    """Transforms the elements where the mask is False, given those where it is True.

    Dinh et al. (2017), section 3.4, equation 9.

    Args:
        mask: boolean, of the event shape (C, H, W) or (D,); True = passes unchanged.
        conditioner: theta, maps (\\*batch, C, H, W), zero where the mask is False, and a context to
            (\\*batch, P C, H, W).
        transformer: g, with P parameters per element.

    Raises:
        ValueError: if the mask is not boolean, or leaves nothing to transform or nothing to condition on.
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

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask, x, 0), x

    def _merged(self, read: Tensor, moved: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask, moved, y), sum_rightmost(torch.where(self.mask, 0, log_det), -self._dim)


class SplitCoupling(_Coupling):
    """Transforms the second part of the channels (of a vector: the coordinates) given the first.

    Dinh et al. (2017), section 3.2; Kingma & Dhariwal (2018), table 1. An odd vector is split behind its middle.

    Args:
        event_shape: (C, H, W) or (D,).
        conditioner: theta, maps the first part (\\*batch, C/2, H, W) and a context to (\\*batch, P C/2, H, W).
        transformer: g, with P parameters per element.
        swap: transforms the first part given the second instead.

    Raises:
        ValueError: if an image has an odd number of channels, or a vector fewer than two coordinates.
    """

    def __init__(
        self, event_shape: Sequence[int], conditioner: nn.Module, transformer: Transformer, *, swap: bool = False
    ) -> None:
        channels = event_shape[0]
        if len(event_shape) == 3 and channels % 2:
            raise ValueError(f"SplitCoupling needs an even number of channels, but got {tuple(event_shape)}.")
        if channels < 2:
            raise ValueError(f"SplitCoupling needs two channels or more, but got event shape {tuple(event_shape)}.")
        self.swap = swap
        self.sizes = (channels - channels // 2, channels // 2)
        super().__init__(event_shape, conditioner, transformer, changed=self.sizes[0 if swap else 1])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split_with_sizes(self.sizes, self._dim)
        return (second, first) if self.swap else (first, second)

    def _merged(self, read: Tensor, moved: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((y, read) if self.swap else (read, y), self._dim), sum_rightmost(log_det, -self._dim)

    def move(
        self, first: Tensor, second: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The two parts of y and the log-determinant, given those of x; with ``inverse`` the other way round.

        What :class:`~pyro_realnvp.Chain` calls, so that neighbours with the same parts neither merge nor split them.
        """
        read, moved = (second, first) if self.swap else (first, second)
        y, log_det = self._mapped(read, moved, context, inverse=inverse)
        log_det = sum_rightmost(log_det, -self._dim)
        return (y, read, log_det) if self.swap else (read, y, log_det)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", swap=True" if self.swap else "")


class Elementwise(_Coupling):
    """Transforms every element without looking at the others: y = g(x; theta(context)).

    What remains of a coupling when there is nothing to condition on, as in one dimension.

    Args:
        event_shape: (C, H, W) or (D,).
        transformer: g, with P parameters per element.
        conditioner: theta, maps an empty x (\\*batch, 0, ...) and a context, if it takes one, to (\\*batch, P C, ...);
            without a conditioner theta is a learned tensor that starts at zero.
    """

    def __init__(
        self, event_shape: Sequence[int], transformer: Transformer, conditioner: nn.Module | None = None
    ) -> None:
        super().__init__(event_shape, conditioner, transformer, changed=event_shape[0])
        self.theta = nn.Parameter(torch.zeros(self._channels, *event_shape[1:])) if conditioner is None else None

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.narrow(self._dim, 0, 0), x

    def _params(self, read: Tensor, context: Tensor | None) -> Tensor:
        if self.theta is None:
            return super()._params(read, context)
        if context is not None:
            raise ValueError(
                f"Elementwise was built without a context, but got one of shape {tuple(context.shape)}; "
                f"pass context_dim or context_shape when building."
            )
        return self.theta

    def _merged(self, read: Tensor, moved: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return y, sum_rightmost(log_det.expand_as(y), -self._dim)
