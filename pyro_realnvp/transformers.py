"""Elementwise maps given parameters, and the maps from a raw network output to a scale.

A transformer knows nothing of couplings and networks: it receives x of shape (\\*batch, C, ...) and parameters of
shape (\\*batch, P C, ...), where the first C channels are the first parameter of every element, and so on. ``dim`` is
the axis of the channels, counted from the right.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Additive", "Affine", "SigmoidScale", "SoftClipScale", "SoftplusScale", "TanhScale", "Transformer"]


class Transformer(nn.Module):
    """A monotone map of every element x, given P parameters for it."""

    num_parameters: int
    closed_form = False  #: whether the inverse is as exact as the forward map: no search, no saturation

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|, both of the shape of x."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """x and log|dx/dy|, both of the shape of y."""


class Additive(Transformer):
    """y = x + shift, with log|dy/dx| = 0. Dinh et al. (2014), equation 9. One parameter: shift."""

    num_parameters = 1
    closed_form = True

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return x + params, torch.zeros_like(x)

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return y - params, torch.zeros_like(y)


class Affine(Transformer):
    """y = x exp(log_scale) + shift, with log|dy/dx| = log_scale. Dinh et al. (2017), equations 7 and 8.

    Two parameters: shift and raw, with log_scale = scale(raw).

    Args:
        scale: the map from the raw network output to the *logarithm* of the scale, elementwise; any callable, finite
            and with a finite gradient for every finite input.
    """

    num_parameters = 2
    closed_form = True

    def __init__(self, scale: nn.Module | None = None) -> None:
        super().__init__()
        self.scale = SoftClipScale() if scale is None else scale

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        log_scale = self.scale(raw)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        log_det = -self.scale(raw)
        return (y - shift) * log_det.exp(), log_det


class TanhScale(nn.Module):
    """log_scale = alpha tanh(raw), alpha one learned number. Dinh et al. (2017), section 4.1.

    Args:
        initial: alpha at the start. With 0 the network must not end in a layer of zeros: the gradient of alpha would
            be 0, and that of the network too.
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, raw: Tensor) -> Tensor:
        return self.alpha * raw.tanh()


class SigmoidScale(nn.Module):
    """scale = floor + (1 - floor) sigmoid(raw + 2), in (floor, 1). The released code of Kingma & Dhariwal (2018).

    The floor, absent there, keeps the inverse finite. At raw = 0 the scale is 0.88, not 1.
    """

    def __init__(self, floor: float = 1e-4) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, raw: Tensor) -> Tensor:
        return (self.floor + (1 - self.floor) * (raw + 2).sigmoid()).log()


class SoftplusScale(nn.Module):
    """scale = floor + softplus(r + c), with r = raw / (1 + |raw| / bound) and c such that scale = 1 at raw = 0.

    Linear in raw for large scales where an exponential overshoots, and bounded by about ``bound``.
    """

    def __init__(self, floor: float = 1e-3, bound: float = 100.0) -> None:
        super().__init__()
        self.floor, self.bound = floor, bound
        self.offset = float(torch.tensor(1.0 - floor, dtype=torch.float64, device="cpu").expm1().log())

    def forward(self, raw: Tensor) -> Tensor:
        raw = raw / (1 + raw.abs() / self.bound)
        return (self.floor + softplus(raw + self.offset)).log()


class SoftClipScale(nn.Module):
    """log_scale = raw / (1 + |raw| / bound), in (-bound, bound), with slope 1 at 0.

    The default of the vector flows: the identity at raw = 0, and scales from exp(-bound) to exp(bound).
    """

    def __init__(self, bound: float = 7.0) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, raw: Tensor) -> Tensor:
        return raw / raw.abs().div_(self.bound).add_(1)
