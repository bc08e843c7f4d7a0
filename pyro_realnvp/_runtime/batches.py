"""Batches with any number of dimensions, as layers that know one batch dimension see them."""

from torch import Tensor


def flatten_batch(x: Tensor, event_dims: int) -> Tensor:
    """Reshapes (\\*batch, \\*event) to (batch, \\*event), where the event has ``event_dims`` dimensions.

    By flatten and unsqueeze, since the number of elements of a batch shape would be a constant in a traced graph.
    """
    extra = x.dim() - event_dims
    return x.unsqueeze(0) if extra == 0 else x if extra == 1 else x.flatten(0, extra - 1)


def sum_rightmost(value: Tensor, ndim: int) -> Tensor:
    """Sums the last ``ndim`` dimensions of ``value``."""
    if ndim > 1:
        value = value.flatten(-ndim)
    return value.sum(-1) if ndim else value
