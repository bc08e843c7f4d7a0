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

Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _theta(conditioner: Any, x: Tensor, context: Tensor | None, channels: int, dim: int) -> Tensor:
    params = conditioner(x) if context is None else conditioner(x, context)
    if params.shape[dim] != channels:  # fewer would broadcast, to a wrong log-determinant
        raise ValueError(
            f"A coupling needs {channels} parameters at every place, but its conditioner {type(conditioner).__name__} "
            f"gave {params.shape[dim]}."
        )
    return params.to(x.dtype)  # under autocast the map is computed in the precision of x, or it would not be inverted


def _applied(transformer: Transformer, inverse: bool) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    return transformer.inverse_and_log_det if inverse else transformer.forward_and_log_det


class _Coupling(Reversible):
    """With ``recomputes``, which :func:`~pyro_realnvp.recompute` sets, backward evaluates the network again."""

    recomputes = False

    def __init__(self, event_shape: Sequence[int], conditioner: nn.Module | None, transformer: Transformer) -> None:
        super().__init__(event_shape)
        self.conditioner = conditioner
        self.transformer = transformer

    @property
    def context_shape(self) -> Size | None:
        return getattr(self.conditioner, "context_shape", None)

    @abstractmethod
    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """theta, which depends on the unchanged part of x alone, and so is the same for x and y."""

    @abstractmethod
    def _moved(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """x with its other part moved by g or its inverse, and the log-determinant."""

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._computed(self._forward, x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._computed(self._backward, y, context)

    def _computed(self, function: Direction, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.recomputes and can_replay():
            return recomputed(self, function, x, context)
        return function(x, context)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._moved(x, self._params(x, context), inverse=False)

    def _backward(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with hold_statistics():
            params = self._params(y, context)
        return self._moved(y, params, inverse=True)

    @property
    def is_reversible(self) -> bool:
        return self.transformer.closed_form

    def retrace(self, y: Tensor, context: Tensor | None, *, inverse: bool) -> Retraced:
        # One evaluation of the network, since it sees the same in x and in y; so theta is what it was, to the last bit.
        unchanged = y.detach().requires_grad_()
        with hold_statistics() if inverse else nullcontext():
            params = self._params(unchanged, context)
        with torch.no_grad():
            x = self._moved(y, params, inverse=not inverse)[0]
        leaf = x.detach().requires_grad_()
        return Retraced(x, (unchanged, leaf), *self._moved(leaf, params, inverse=inverse))


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
        super().__init__(mask.shape, conditioner, transformer)
        self.register_buffer("mask", mask, persistent=False)
        self._channels = transformer.num_parameters * mask.shape[0]

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        return _theta(self.conditioner, torch.where(self.mask, x, 0), context, self._channels, -self.mask.dim())

    def _moved(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_det = _applied(self.transformer, inverse)(x, params, -self.mask.dim())
        return torch.where(self.mask, x, y), sum_rightmost(torch.where(self.mask, 0, log_det), self.mask.dim())


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
        super().__init__(event_shape, conditioner, transformer)
        self.swap = swap
        self.sizes = (channels - channels // 2, channels // 2)
        self._channels = transformer.num_parameters * self.sizes[0 if swap else 1]

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        dim = -len(self.event_shape)
        return _theta(self.conditioner, self._split(x, dim)[0], context, self._channels, dim)

    def _moved(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        dim = -len(self.event_shape)
        kept, x2 = self._split(x, dim)
        y2, log_det = _applied(self.transformer, inverse)(x2, params, dim)
        return self._merge(kept, y2, dim), sum_rightmost(log_det, -dim)

    def _split(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, dim)
        return (second, first) if self.swap else (first, second)

    def _merge(self, kept: Tensor, changed: Tensor, dim: int) -> Tensor:
        return torch.cat((changed, kept) if self.swap else (kept, changed), dim)

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
        super().__init__(event_shape, conditioner, transformer)
        count = transformer.num_parameters * event_shape[0]
        self.theta = nn.Parameter(torch.zeros(count, *event_shape[1:])) if conditioner is None else None

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.conditioner is not None:
            dim = -len(self.event_shape)
            channels = self.transformer.num_parameters * self.event_shape[0]
            return _theta(self.conditioner, x.narrow(dim, 0, 0), context, channels, dim)
        if context is not None:
            raise ValueError(
                f"Elementwise was built without a context, but got one of shape {tuple(context.shape)}; "
                f"pass context_dim or context_shape when building."
            )
        return self.theta  # type: ignore[return-value]

    def _moved(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        dim = -len(self.event_shape)
        y, log_det = _applied(self.transformer, inverse)(x, params, dim)
        return y, sum_rightmost(log_det.expand_as(y), -dim)
