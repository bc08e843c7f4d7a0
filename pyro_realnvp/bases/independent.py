"""Bases of independent elements with thin tails."""

import math
from collections.abc import Sequence

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from .._runtime.batches import sum_rightmost
from .._runtime.construction import recorded
from .base import Base, Events, LinearInContext


class UnitNormal(dist.Normal):
    """A Normal whose loc and scale are known to be 0 and 1: a third of the passes over the value."""

    def log_prob(self, value: Tensor) -> Tensor:
        return _log_unit_normal(value)


def _log_unit_normal(z: Tensor) -> Tensor:
    return (z * z).mul_(-0.5).sub_(0.5 * math.log(2 * math.pi))


@recorded
class StandardNormal(Base):
    """N(0, I) on events of shape ``event_shape``; calling it returns the Pyro distribution.

    Args:
        event_shape: of one event, or its length.

    Example:
        >>> base = StandardNormal(3)
        >>> round(base().log_prob(torch.zeros(3)).item(), 4)  # -3/2 log(2 pi)
        -2.7568
        >>> base().sample((5,)).shape
        torch.Size([5, 3])
    """

    is_even = True

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return Events(UnitNormal(zeros, zeros + 1, validate_args=False), len(self.event_shape))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        # Without making a distribution, which takes as long as a small coupling.
        return sum_rightmost(_log_unit_normal(z), len(self.event_shape))


@recorded
class StandardLogistic(Base):
    """Independent standard logistic variables, log p(z) = sum -softplus(z) - softplus(-z). Dinh et al. (2014), 3.4.

    Args:
        event_shape: of one event, or its length.

    Example:
        >>> base = StandardLogistic(2)
        >>> round(base().log_prob(torch.zeros(2)).exp().item(), 4)  # of two densities of 1/4
        0.0625
    """

    is_even = True

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return Events(dist.Logistic(zeros, zeros + 1, validate_args=False), len(self.event_shape))


@recorded
class DiagonalNormal(LinearInContext):
    """N(loc, diag(scale^2)) with a learned location and scale of every element, given a context if there is one.

        loc = loc_0 + A context,   scale = exp(log_scale_0 + B context)

    It starts as N(0, I). One-hot labels as context make the base of a class-conditional flow.

    Args:
        event_shape: of one event, or its length.
        context_shape: length of the context vector; None for none.
        context_dim: length of the context vector, instead.

    Example:
        >>> base = DiagonalNormal(2, context_shape=3)
        >>> flow = Flow(base, realnvp_transforms(2))
        >>> labels = torch.eye(3)  # one Gaussian a class
        >>> flow.sample((5,), context=labels).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape, context_shape, context_dim, per_element=2)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        loc, log_scale = self.loc, self.log_scale
        change = self._of_context(context)
        if change is not None:
            both = change.unflatten(-1, (2, *self.event_shape))
            shift, log_factor = both.unbind(change.dim() - 1)
            loc, log_scale = loc + shift, log_scale + log_factor
        return Events(dist.Normal(loc, log_scale.exp(), validate_args=False), len(self.event_shape))
