"""Computes statistics of a batch that is spread over processes.

With ``DistributedDataParallel`` every process sees a part of the batch. Statistics of a whole batch (those of batch
normalization, the start of ActNorm) must then be those of all parts, and gradients must flow through them.
``torch.nn.SyncBatchNorm`` does so for its own kind of normalization, and on GPUs alone.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def moments(mean: Tensor, var: Tensor, count: Tensor | float, *, synchronized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Combines mean, biased variance and number of values over all processes, given those of this one.

        N = sum_r n_r,   mean = sum_r n_r mean_r / N,   var = sum_r n_r (var_r + (mean_r - mean)^2) / N

    Chan, Golub & LeVeque (1979), equation 2.1: nothing cancels, as it does in the difference of two sums of squares.

    Args:
        mean, var: of any one shape.
        count: a number, or a tensor of that shape.
        synchronized: False returns the statistics of this process.
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
    """Gathers a row (...) of every process as (processes, ...), by one all-reduce, and another in backward."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        rows = row.new_zeros(distributed.get_world_size(), *row.shape)
        rows[distributed.get_rank()] = row
        distributed.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every process depends on this row, and the loss of all is the sum of their losses.
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad)
        return grad[distributed.get_rank()]
