"""The base distribution of events with angles and numbers in an interval among their coordinates."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from torch import Size, Tensor
from torch.distributions import constraints

from .._runtime.construction import recorded
from .._runtime.coordinates import Intervals, coordinates_of
from ..bijections.support import Box, events
from .base import Base


@recorded
class MixedBase(Base):
    """Independent coordinates: angles uniform on [-pi, pi), numbers of an interval uniform there, others N(0, 1).

        log p(z) = -sum_angles log(2 pi) - sum_intervals log(high - low) + sum_others log N(z; 0, 1)

    It takes the same ``circular`` and ``intervals`` as :func:`~pyro_realnvp.spline_transforms`. Calling it returns the
    Pyro distribution, whose density is 0 outside of the circle and the intervals.

    Args:
        event_shape: D or (D,).
        circular: the coordinates that are angles.
        intervals: triples (coordinate, low, high) of the coordinates in an interval.

    Raises:
        ValueError: if events are no vectors, a coordinate is not among 0, ..., D - 1, is named twice, or an interval is
            empty.
    """

    def __init__(
        self, event_shape: int | Sequence[int], *, circular: Sequence[int] = (), intervals: Intervals = ()
    ) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"MixedBase needs an event shape D or (D,), but got {tuple(self.event_shape)}.")
        self.coordinates = coordinates_of("MixedBase", self.event_shape[0], circular, intervals)

        self.is_even = all(each.low == -each.high for each in self.coordinates)

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        low, high = (self.zero.new_tensor([each[end] for each in self.coordinates]) for end in (0, 1))
        return _Mixed(low, high)

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
    """Uniform between low and high where these are finite, N(0, 1) elsewhere; both of shape (\\*batch, D)."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        self._bounded = high < math.inf
        self._start = torch.where(self._bounded, low, 0)
        self._width = torch.where(self._bounded, high - low, 1)
        super().__init__(low.shape[:-1], low.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return events(Box(self.low, self.high), 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "_Mixed":
        shape = Size(batch_shape) + self.event_shape
        return _Mixed(self.low.expand(shape), self.high.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        uniform, normal = torch.rand_like(self.low.expand(shape)), torch.randn_like(self.low.expand(shape))
        return torch.where(self._bounded, self._start + self._width * uniform, normal)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= self.low) & (value <= self.high)
        uniform = torch.where(inside, -self._width.log(), -math.inf)
        normal = -0.5 * value * value - 0.5 * math.log(2 * math.pi)
        return torch.where(self._bounded, uniform, normal).sum(-1)
