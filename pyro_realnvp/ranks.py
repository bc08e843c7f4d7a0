"""Statistics of a batch that is spread over processes.

With ``DistributedDataParallel`` every process sees a part of the batch. What a flow takes from a whole batch (the
statistics of batch normalization, the start of ActNorm) is then to be that of all parts, and gradients are to flow
through it. ``torch.nn.SyncBatchNorm`` does so for its own kind of normalization, and on GPUs alone.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

__all__ = ["moments", "synchronize"]

M = TypeVar("M", bound=nn.Module)


def synchronize(flow: M, *, enabled: bool = True) -> M:
    """Lets batch normalization and ActNorm, in networks too, take their statistics over all processes.

        model = DistributedDataParallel(synchronize(flow))

    The mean loss of equal parts, and its gradients, are then those of the whole batch in one process. Every process of
    the default group has to evaluate the flow in training mode equally often. Without a process group there is no
    effect. Every normalization costs one small all-reduce in forward and one in backward.

    Args:
        flow: a Flow, or any Module with normalization of this package inside; it is changed in place.
        enabled: False takes the statistics of every process by itself again.

    Returns:
        The same Module.
    """
    for module in flow.modules():
        if hasattr(type(module), "synchronized"):
            module.synchronized = enabled  # type: ignore[assignment]
    return flow


def moments(mean: Tensor, var: Tensor, count: Tensor | float, *, synchronized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values of all processes, given those of this one.

        N = sum_r n_r,   mean = sum_r n_r mean_r / N,   var = sum_r n_r (var_r + (mean_r - mean)^2) / N

    Chan, Golub & LeVeque (1979), equation 2.1: nothing cancels, as it does in the difference of two sums of squares.

    Args:
        mean, var: of any one shape.
        count: a number, or a tensor of that shape.
        synchronized: False returns what is given.
    """
    number = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).expand_as(mean)
    if not synchronized or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return mean, var, number
    means, variances, numbers = _Gather.apply(torch.stack([mean, var, number])).unbind(1)
    total = numbers.sum(0)
    weights = numbers / total.clamp(min=1)
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0), total


class _Gather(torch.autograd.Function):
    """(...) of every process as (processes, ...), by one all-reduce of a row each; its backward is one as well."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        rows = row.new_zeros(distributed.get_world_size(), *row.shape)
        rows[distributed.get_rank()] = row
        distributed.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # What every process does with this row counts: the loss of all is the sum of theirs.
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad)
        return grad[distributed.get_rank()]
