"""The base distribution of events with angles and numbers in an interval among their coordinates."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from torch import Size, Tensor
from torch.distributions import constraints

from .._runtime.checks import check_floating, values_are_known
from .._runtime.construction import recorded
from .._runtime.coordinates import Intervals, coordinates_of
from ..bijections.support import Box, events
from .base import Base


@recorded
class MixedBase(Base):
    """Independent coordinates: angles uniform on [-pi, pi), numbers of an interval uniform there, others N(0, 1).

        log p(z) = -sum_angles log(2 pi) - sum_intervals log(high - low) + sum_others log N(z; 0, 1)

    With a ``deviation`` s an angle is normal on the circle instead, with the density of N(0, s^2) on [-pi, pi):

        log p(z) = -z^2 / (2 s^2) - log(sqrt(2 pi) s erf(pi / (sqrt(2) s)))

    It takes the same ``circular`` and ``intervals`` as :func:`~pyro_realnvp.spline_transforms`. Calling it returns the
    Pyro distribution, whose density is 0 outside of the circle and the intervals.

    Args:
        event_shape: D or (D,).
        circular: the coordinates that are angles.
        intervals: triples (coordinate, low, high) of the coordinates in an interval.
        deviation: of the angles, in the order of ``circular``; saved with the state, and not learned.

    Raises:
        ValueError: if events are no vectors, a coordinate is not among 0, ..., D - 1, is named twice, an interval is
            empty, or there are not as many deviations as angles, or one is not positive.

    Example:
        >>> base = MixedBase(2, circular=[0], intervals=[(1, 0.0, 10.0)])
        >>> z = base().sample((5,))
        >>> torch.allclose(base().log_prob(z).exp(), torch.tensor(1 / (2 * torch.pi * 10)))
        True
    """

    deviation: Tensor | None

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        circular: Sequence[int] = (),
        intervals: Intervals = (),
        deviation: Tensor | None = None,
    ) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"MixedBase needs an event shape D or (D,), but got {tuple(self.event_shape)}.")
        self.coordinates = coordinates_of("MixedBase", self.event_shape[0], circular, intervals)
        self.is_even = all(each.low == -each.high for each in self.coordinates)
        if deviation is not None:
            check_floating("MixedBase", "deviation", deviation)
            if deviation.shape != (len(circular),):
                raise ValueError(
                    f"MixedBase needs a deviation for each of {len(circular)} angles, but got a tensor of "
                    f"{tuple(deviation.shape)}."
                )
            if values_are_known(deviation) and not (deviation > 0).all():
                raise ValueError(f"MixedBase needs positive deviations, but got {float(deviation.min())}.")
            elsewhere = torch.full(self.event_shape, math.inf, dtype=deviation.dtype, device=deviation.device)
            deviation = elsewhere.index_put(
                (torch.tensor(list(circular), device=deviation.device),), deviation.detach()
            )
        self.register_buffer("deviation", deviation)

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        low, high = (self.zero.new_tensor([each[end] for each in self.coordinates]) for end in (0, 1))
        return _Mixed(low, high, torch.full_like(low, math.inf) if self.deviation is None else self.deviation)

    def draw(
        self, distribution: Any, sample_shape: Size, *, temperature: float = 1.0, truncation: float | None = None
    ) -> Tensor:
        if temperature != 1 or truncation is not None:
            raise ValueError(
                f"MixedBase takes no temperature and no truncation, as a circle and an interval have no tails, but "
                f"got {temperature=} and {truncation=}."
            )
        z: Tensor = distribution.sample(sample_shape)
        return z

    def extra_repr(self) -> str:
        angles = [index for index, each in enumerate(self.coordinates) if each.circular]
        intervals = [
            (index, *each[:2]) for index, each in enumerate(self.coordinates) if each.is_bounded and not each.circular
        ]
        return f"{super().extra_repr()}, circular={angles}, intervals={intervals}"


class _Mixed(dist.TorchDistribution):
    """N(0, s^2) between -high and high, uniform between low and high for infinite s, and N(0, 1) without bounds.

    All are of shape (\\*batch, D).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, low: Tensor, high: Tensor, deviation: Tensor) -> None:
        self.low, self.high, self.deviation = low, high, deviation
        self._bounded, self._peaked = high < math.inf, deviation < math.inf
        self._start = torch.where(self._bounded, low, 0)
        self._width = torch.where(self._bounded, high - low, 1)
        self._s = torch.where(self._peaked, math.sqrt(2) * deviation, 1)
        self._mass = torch.where(self._peaked, torch.erf(high / self._s), 1)
        super().__init__(low.shape[:-1], low.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return events(Box(self.low, self.high), 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "_Mixed":
        shape = Size(batch_shape) + self.event_shape
        return _Mixed(self.low.expand(shape), self.high.expand(shape), self.deviation.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        like = self.low.expand(self._extended_shape(Size(sample_shape)))
        return self.of(torch.rand_like(like), torch.randn_like(like))

    def of(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Makes draws of elements that are uniform on [0, 1) and of normal ones, all (\\*batch, D)."""
        peaked = self._s * torch.erfinv((2 * uniform - 1) * self._mass)
        z = torch.where(self._peaked, peaked, self._start + self._width * uniform)
        return torch.where(self._bounded, z, normal)

    def log_prob(self, value: Tensor) -> Tensor:
        peaked = -(value / self._s).square() - (math.sqrt(math.pi) * self._s * self._mass).log()
        inside = (value >= self.low) & (value <= self.high)
        density = torch.where(inside, torch.where(self._peaked, peaked, -self._width.log()), -math.inf)
        normal = -0.5 * value * value - 0.5 * math.log(2 * math.pi)
        return torch.where(self._bounded, density, normal).sum(-1)
