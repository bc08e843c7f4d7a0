"""The spline of the guide's angles, whose bins hold about equal shares of a peaked posterior."""

import math

import torch
from torch import Tensor

from .._runtime.construction import recorded
from ..bijections.circular import CircularSpline, wrap

_END = math.erf(math.pi / math.sqrt(2))  # mass of N(0, 1) between -pi and pi


@recorded
class QuantileSpline(CircularSpline):
    """A :class:`CircularSpline` of the probabilities of a normal angle, in place of the angle itself.

        y = P^-1(S(P(x + shift modulo 2 pi))),   P(z) = pi erf(z / sqrt(2)) / erf(pi / sqrt(2))

    P makes an angle uniform that has the density of N(0, 1) on [-pi, pi). Bins of equal width on the circle would hold
    next to nothing of a peaked density in its tails, and what few draws teach them is noise: weights of importance
    sampling that are nearly equal, but for a few. Here every bin holds a share of the draws, and the tails of the
    density are scaled by a bounded factor, whatever is learned. It is smooth, and the identity at parameters of 0.

    Args:
        bins: of the spline.
    """

    def __init__(self, bins: int = 4) -> None:
        super().__init__(bins)

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        z = wrap(wrap(x) + self._shift(params, dim))
        bent, log_det = self.bend(_probability(z), params, dim, inverse=False)
        y = _quantile(bent)
        return wrap(y), log_det + (y.square() - z.square()) / 2

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        y = wrap(y)
        bent, log_det = self.bend(_probability(y), params, dim, inverse=True)
        z = _quantile(bent)
        return wrap(z - self._shift(params, dim)), log_det + (z.square() - y.square()) / 2


def _probability(z: Tensor) -> Tensor:
    return (math.pi / _END * torch.erf(z / math.sqrt(2))).clamp(-math.pi, math.pi)


def _quantile(u: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(_END / math.pi * u)
