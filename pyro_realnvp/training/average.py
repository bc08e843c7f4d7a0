"""The average of a Module's weights over the last steps of training."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def exponential_average(module: nn.Module, decay: float) -> AveragedModel:
    """Makes an exponential moving average of weights and running statistics; ``.module`` is the averaged Module.

    Call ``update_parameters(module)`` after every step. The decay grows to its value as (1 + n) / (10 + n) after n
    steps, so that the start is soon forgotten. Tensors that are not floating point are copied.

    Args:
        module: to be averaged; its present state is the first average.
        decay: weight of the past average in the next one, in [0, 1).

    Raises:
        ValueError: if the decay lies outside.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"The decay of an average lies in [0, 1), but got {decay}.")

    def average(averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        count = int(ema.n_averaged)  # on the processor, unlike the argument: a GPU need not wait
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    ema = AveragedModel(module, multi_avg_fn=torch.no_grad()(average), use_buffers=True)
    return ema
