"""What networks read of angles and of numbers in an interval."""

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from .._runtime.coordinates import Intervals, coordinates_of


@recorded
class CoordinateFeatures(nn.Module):
    """Gives a network of vectors the cosine and sine of every angle, so that what it computes is periodic.

    The features of x are, in this order: every coordinate that is no angle, those in an interval [low, high] scaled to
    [-1, 1] and all others as they are; then the cosines of the angles; then their sines. From such a conditioner a
    coupling knows which of the coordinates that it reads are angles, or lie in an interval.

    Args:
        network: maps (\\*batch, in_channels + number of angles) and a context, if there is one, to parameters.
        in_channels: length of the vectors x.
        circular: the coordinates of x that are angles.
        intervals: triples (coordinate, low, high) of the coordinates of x in an interval.

    Raises:
        ValueError: if a coordinate is not among 0, ..., in_channels - 1, is named twice, or an interval is empty.

    Shapes: x (\\*batch, in_channels) and a context (\\*batch, \\*context_shape) to what the network returns.

    Example:
        >>> net = CoordinateFeatures(torch.nn.Linear(3, 4), 2, circular=[0])  # reads x_1, cos(x_0), sin(x_0)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(net(x), net(x + torch.tensor([2 * torch.pi, 0.0])), atol=1e-5)
        True
    """

    angles: Tensor
    others: Tensor
    middle: Tensor
    radius: Tensor
    limit: Tensor

    def __init__(
        self, network: nn.Module, in_channels: int, *, circular: Sequence[int] = (), intervals: Intervals = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.in_channels = count_of("in_channels of CoordinateFeatures", in_channels)
        self.coordinates = coordinates_of("CoordinateFeatures", self.in_channels, circular, intervals)
        angles = [index for index, each in enumerate(self.coordinates) if each.circular]
        others = [index for index, each in enumerate(self.coordinates) if not each.circular]
        scales = [
            ((each.low + each.high) / 2, (each.high - each.low) / 2, 1.0) if each.is_bounded else (0.0, 1.0, math.inf)
            for each in (self.coordinates[index] for index in others)
        ]
        self.register_buffer("angles", torch.tensor(angles, dtype=torch.long), persistent=False)
        self.register_buffer("others", torch.tensor(others, dtype=torch.long), persistent=False)
        for name, values in zip(
            ("middle", "radius", "limit"), zip(*scales, strict=True) if scales else ([],) * 3, strict=True
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @property
    def context_shape(self) -> Size | None:
        return getattr(self.network, "context_shape", None)

    @property
    def starts_at_zero(self) -> bool | None:
        return getattr(self.network, "starts_at_zero", None)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.in_channels:
            raise ValueError(
                f"CoordinateFeatures reads vectors of length {self.in_channels}, but got a tensor of {tuple(x.shape)}."
            )
        angles, others = x.index_select(-1, self.angles), x.index_select(-1, self.others)
        # In a masked coupling the coordinates that are not read are 0, wherever their interval lies.
        others = ((others - self.middle) / self.radius).clamp(-self.limit, self.limit)
        features = torch.cat([others, angles.cos(), angles.sin()], -1)
        return self.network(features) if context is None else self.network(features, context)
