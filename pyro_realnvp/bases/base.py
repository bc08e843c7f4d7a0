"""The contract of a base distribution, and what bases share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Size, Tensor, nn

from .._runtime.autocast import full_precision, upcast
from .._runtime.batches import sum_rightmost
from .._runtime.checks import check_broadcast, check_dtype, check_floating, sizes
from .._runtime.coordinates import REAL, Coordinates
from ..networks.conditioner import shape_of_context


class Base(nn.Module):
    """A base distribution as a Module: it moves with ``.to()`` and has the dtype of the model.

    A subclass writes :meth:`forward`, and :meth:`draw` if its mean and standard deviation are not what draws should be
    pulled to. A base that depends on a context has its shape as the attribute ``context_shape``.

    Args:
        event_shape: of one event, or its length.

    Example:
        >>> class Laplace(Base):
        ...     def forward(self, context=None):
        ...         return dist.Laplace(self.zero.expand(self.event_shape), 1.0).to_event(1)
        >>> flow = Flow(Laplace(2), realnvp_transforms(2))
        >>> round(flow(torch.zeros(2)).exp().item(), 4)  # of two densities of 1/2
        0.25
    """

    zero: Tensor
    context_shape: Size | None = None
    coordinates: Coordinates = (REAL,)  #: where the coordinates of a vector lie, or all elements alike
    is_even = False  #: whether p(z) = p(-z), whatever the parameters

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = sizes(type(self).__name__, event_shape)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        """Returns the distribution, with the batch shape of the context."""

    def condition(self, context: Tensor) -> dist.Distribution:
        """Returns the distribution given a context, under the name that Pyro's conditional distributions use."""
        return self(context)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes log p(z | context) in nats, of shape (\\*batch), for z (\\*batch, \\*event_shape)."""
        distribution = self(context)
        check_broadcast(z.shape[: z.dim() - len(self.event_shape)], distribution.batch_shape)
        return distribution.log_prob(z)

    def draw(
        self, distribution: Any, sample_shape: Size, *, temperature: float = 1.0, truncation: float | None = None
    ) -> Tensor:
        """Draws latents (\\*sample_shape, \\*batch, \\*event_shape), cooled and truncated as in ``Flow.sample``.

        Args:
            distribution: what :meth:`forward` returned, of batch shape (\\*batch).
            sample_shape: of the draws.
            temperature: what the differences to the mean are multiplied by.
            truncation: largest distance to the mean, in standard deviations of every element; None for any.
        """
        return draw_about_the_mean(distribution, sample_shape, temperature=temperature, truncation=truncation)

    def extra_repr(self) -> str:
        return str(tuple(self.event_shape))


def draw_about_the_mean(
    distribution: Any, sample_shape: Size, *, temperature: float = 1.0, truncation: float | None = None
) -> Tensor:
    """Draws from a distribution with a mean and, if they are truncated, of independent elements; see Base.draw."""
    z: Tensor = distribution.sample(sample_shape)
    if truncation is not None:
        each = distribution.base_dist  # of independent elements
        low, high = (each.cdf(each.mean + sign * truncation * each.stddev) for sign in (-1, 1))
        z = each.icdf(low + (high - low) * torch.rand_like(z))
    if temperature != 1.0:
        z = distribution.mean + temperature * (z - distribution.mean)
    return z


class LinearInContext(Base):
    """A base whose parameters are those without a context plus A context, with a matrix A that starts at 0.

    Args:
        event_shape: of one event, or its length.
        context_shape: length of the context vector; None for none.
        context_dim: length of the context vector, instead.
        per_element: number of parameters of every element.
        per_event: number of further parameters.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        context_shape: int | Sequence[int] | None,
        context_dim: int,
        *,
        per_element: int,
        per_event: int = 0,
    ) -> None:
        super().__init__(event_shape)
        name = type(self).__name__
        self.context_shape = shape_of_context(name, context_shape, context_dim)
        self.linear = None
        if self.context_shape is not None:
            if len(self.context_shape) != 1:
                raise ValueError(f"{name} takes a context vector, but got {tuple(self.context_shape)}.")
            parameters = per_element * self.event_shape.numel() + per_event
            self.linear = nn.Linear(self.context_shape[0], parameters, bias=False)
            nn.init.zeros_(self.linear.weight)

    def _of_context(self, context: Tensor | None) -> Tensor | None:
        """Computes A context (\\*batch, parameters), or returns None if the base takes no context.

        Raises:
            ValueError: if the context is missing, or has the wrong shape or type.
        """
        if self.linear is None:
            return None
        name, shape = type(self).__name__, tuple(self.context_shape or ())
        if context is None:
            raise ValueError(f"{name} needs a context of shape {shape}, got none.")
        check_floating(name, "context", context)
        check_dtype(self, "a context", context)
        if context.shape[-1:] != shape:
            raise ValueError(f"{name} needs a context of shape {shape}, but got one of {tuple(context.shape)}.")
        context = upcast(context)
        with full_precision(context):
            return self.linear(context)


class Events(dist.Independent):
    """Independent elements of events; unlike its base class it knows that an empty batch has the density of none."""

    def log_prob(self, value: Tensor) -> Tensor:
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)
