"""From integer images to densities and back: dequantization and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ._runtime.arguments import shown
from ._runtime.checks import count_of
from .auxiliary import AuxiliaryBound, Conditional, check_density, dtype_of


class Dequantized(AuxiliaryBound):
    """The distribution over integer images that a density on the unit cube induces. Theis et al. (2016).

        P(k) = integral over u in [0, 1)^D of p((k + u) / levels) / levels^D

    ``log_prob`` is a lower bound on log P(k) in nats: with u_1, ..., u_S from q(u | k),

        log 1/S sum_s p((k + u_s) / levels) / q(u_s | k) - D log levels,

    which in the mean grows with S to log P(k). q is uniform, or a conditional flow on the unit cube learned with the
    density: variational dequantization, Ho et al. (2019), equation 12. Noise is drawn anew at every call. A
    distribution registers no Modules; :class:`~pyro_realnvp.ImageFlow` owns the two flows, and makes this of them.

    Args:
        density: a distribution over events on the unit cube.
        levels: number of values of a pixel, 0 to levels - 1.
        dequantizer: q, conditioned on k / levels - 1/2; uniform by default.
        num_samples: S.

    Raises:
        ValueError: from ``log_prob``, with validation on, outside of compiled code, if a value is no integer between
            0 and levels - 1.

    Example:
        >>> density = dist.Uniform(0.0, 1.0).expand([3]).to_event(1)
        >>> images = Dequantized(density, levels=4)
        >>> round(images.log_prob(torch.tensor([0, 1, 3])).exp().item(), 6)  # each of 4^3 images is as likely
        0.015625
    """

    def __init__(
        self,
        density: Distribution,
        levels: int = 256,
        *,
        dequantizer: Conditional | None = None,
        num_samples: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        check_density("Dequantized", density)
        if dequantizer is not None and not callable(getattr(dequantizer, "condition", None)):
            raise ValueError(
                f"Dequantized needs a conditional distribution or Flow as dequantizer, but got {shown(dequantizer)}."
            )
        self.levels = count_of("levels of Dequantized", levels, 2)
        self.dequantizer = dequantizer
        super().__init__(density, density.event_shape, num_samples, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Bounds from below, in expectation, the log-probability of integer images (\\*batch, \\*event_shape)."""
        if self._validate_args and not torch.compiler.is_compiling():  # a compiled graph cannot branch on data
            self._check(value)
        bound = self._bound(value.to(dtype_of(self.density)))
        return bound - self.event_shape.numel() * math.log(self.levels)

    def _log_weight(self, k: Tensor) -> Tensor:
        if self.dequantizer is None:
            log_p: Tensor = self.density.log_prob((k + torch.rand_like(k)) / self.levels)
            return log_p
        q = self.dequantizer.condition(k / self.levels - 0.5)
        u = q.rsample()
        log_weight: Tensor = self.density.log_prob((k + u) / self.levels) - q.log_prob(u)
        return log_weight

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws integer images (\\*sample_shape, \\*batch_shape, \\*event_shape) as int64."""
        with torch.no_grad():
            x: Tensor = self.density.sample(Size(sample_shape))
            return (x * self.levels).floor().clamp(0, self.levels - 1).long()

    def _check(self, value: Tensor) -> None:
        if not isinstance(value, Tensor) or value.is_complex():
            got = value.dtype if isinstance(value, Tensor) else shown(value)
            raise ValueError(f"Dequantized expects a tensor of integers as images, but got {got}.")
        shape = tuple(value.shape)
        if shape[len(shape) - len(self.event_shape) :] != tuple(self.event_shape):
            raise ValueError(
                f"Dequantized expects images of shape {tuple(self.event_shape)}, but got a tensor of shape {shape}."
            )
        number = value.double()
        bad = ~((number >= 0) & (number <= self.levels - 1) & (number == number.floor()))
        if bad.any():
            culprit = number[bad].flatten()[0].item()
            raise ValueError(f"Dequantized expects integers from 0 to {self.levels - 1}, but got {culprit:g}.")


class BitsPerDim(NamedTuple):
    """Bits per dimension and the standard error of that mean."""

    value: float
    error: float


@torch.no_grad()
def bits_per_dim(distribution: Any, x: Tensor, *, batch_size: int | None = None) -> BitsPerDim:
    """Computes the mean of -log2 p(x) / D over the events of x, and its Monte Carlo standard error.

    For a :class:`Dequantized` this is an upper bound on the bits a lossless code needs for each pixel; for a density on
    the unit cube of pixels k/256, add 8.

    Args:
        distribution: over events of D elements; a :class:`~pyro_realnvp.Flow` or ImageFlow will do.
        x: (N, \\*event_shape).
        batch_size: how many events to score at once; all by default.

    Example:
        >>> images = Dequantized(dist.Uniform(0.0, 1.0).expand([3]).to_event(1), levels=256)
        >>> bits = bits_per_dim(images, torch.tensor([[0, 128, 255], [1, 2, 3]]))
        >>> round(bits.value, 4), round(bits.error, 4)  # eight bits for each of 256 levels
        (8.0, 0.0)
    """
    if not isinstance(x, Tensor) or x.dim() <= len(distribution.event_shape):
        got = tuple(x.shape) if isinstance(x, Tensor) else shown(x)
        raise ValueError(
            f"bits_per_dim needs a tensor (N, *event_shape) as x, for events of {tuple(distribution.event_shape)}, but "
            f"got {got}."
        )
    if not x.numel():
        raise ValueError("bits_per_dim needs at least one event, but got none.")
    batches = x.split(x.shape[0] if batch_size is None else count_of("batch_size of bits_per_dim", batch_size))
    log_prob = torch.cat([distribution.log_prob(batch) for batch in batches]).double().flatten()
    bits = -log_prob / (distribution.event_shape.numel() * math.log(2))
    error = bits.std().item() / math.sqrt(len(bits)) if len(bits) > 1 else math.inf
    return BitsPerDim(bits.mean().item(), error)
