"""Base distributions of a flow, as Modules."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from pyro import distributions as dist
from torch import Size, Tensor, nn

from ._runtime.autocast import full_precision, upcast
from ._runtime.batches import sum_rightmost
from ._runtime.checks import check_broadcast, check_dtype, check_floating, sizes
from ._runtime.construction import recorded
from ._runtime.coordinates import REAL, Coordinates
from .networks.conditioner import shape_of_context


class Base(nn.Module):
    """A base distribution as a Module: it moves with ``.to()`` and has the dtype of the model.

    A subclass writes :meth:`forward`. A base that depends on a context has its shape as the attribute
    ``context_shape``.

    Args:
        event_shape: of one event, or its length.
    """

    zero: Tensor
    context_shape: Size | None = None
    coordinates: Coordinates = (REAL,)  #: where the coordinates of a vector lie, or all elements alike

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = sizes(type(self).__name__, event_shape)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        """Returns the distribution, with the batch shape of the context."""

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes log p(z | context) in nats, of shape (\\*batch), for z (\\*batch, \\*event_shape)."""
        distribution = self(context)
        check_broadcast(z.shape[: z.dim() - len(self.event_shape)], distribution.batch_shape)
        return distribution.log_prob(z)

    def extra_repr(self) -> str:
        return str(tuple(self.event_shape))


class _Events(dist.Independent):
    """Independent elements of events; unlike its base class it knows that an empty batch has the density of none."""

    def log_prob(self, value: Tensor) -> Tensor:
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)


class _UnitNormal(dist.Normal):
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
    """

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return _Events(_UnitNormal(zeros, zeros + 1, validate_args=False), len(self.event_shape))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        # Without making a distribution, which takes as long as a small coupling.
        return sum_rightmost(_log_unit_normal(z), len(self.event_shape))


@recorded
class StandardLogistic(Base):
    """Independent standard logistic variables, log p(z) = sum -softplus(z) - softplus(-z). Dinh et al. (2014), 3.4.

    Args:
        event_shape: of one event, or its length.
    """

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return _Events(dist.Logistic(zeros, zeros + 1, validate_args=False), len(self.event_shape))


@recorded
class DiagonalNormal(Base):
    """N(loc, diag(scale^2)) with a learned location and scale of every element, given a context if there is one.

        loc = loc_0 + A context,   scale = exp(log_scale_0 + B context)

    It starts as N(0, I). One-hot labels as context make the base of a class-conditional flow.

    Args:
        event_shape: of one event, or its length.
        context_shape: length of the context vector; None for none.
        context_dim: length of the context vector, instead.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape)
        self.context_shape = shape_of_context("DiagonalNormal", context_shape, context_dim)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.linear = None
        if self.context_shape is not None:
            if len(self.context_shape) != 1:
                raise ValueError(f"DiagonalNormal takes a context vector, but got {tuple(self.context_shape)}.")
            self.linear = nn.Linear(self.context_shape[0], 2 * self.event_shape.numel(), bias=False)
            nn.init.zeros_(self.linear.weight)

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        loc, log_scale = self.loc, self.log_scale
        if self.linear is not None:
            if context is None:
                raise ValueError(
                    f"DiagonalNormal needs a context of shape {tuple(self.context_shape or ())}, got none."
                )
            check_floating("DiagonalNormal", "context", context)
            check_dtype(self, "a context", context)
            if context.shape[-1:] != self.context_shape:
                raise ValueError(
                    f"DiagonalNormal needs a context of shape {tuple(self.context_shape or ())}, but got one of "
                    f"{tuple(context.shape)}."
                )
            context = upcast(context)
            with full_precision(context):
                both = self.linear(context).unflatten(-1, (2, *self.event_shape))
            shift, log_factor = both.unbind(context.dim() - 1)
            loc, log_scale = loc + shift, log_scale + log_factor
        return _Events(dist.Normal(loc, log_scale.exp(), validate_args=False), len(self.event_shape))
