"""Makes the training steps of images.py, by maximum likelihood or by Pyro's SVI."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from pyro_realnvp import ImageFlow, MaskedCoupling
from pyro_realnvp.training.loop import gradient_step

from shared.pyro_state import OptimizerState


def flipped(images: Tensor) -> Tensor:
    """Mirrors every image with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def optimizer_of(model: ImageFlow, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Makes Adam; it adds weight_decay times the sum of squares of some parameters to the loss, as RealNVP's code does.

    These are the magnitudes of weight normalization and the scale factors of the checkerboard couplings.
    """
    scales = [p for part in model.modules() if isinstance(part, MaskedCoupling) for p in part.transformer.parameters()]
    decayed = [p for name, p in model.named_parameters() if name.endswith(".norm")] + scales
    known = {id(p) for p in decayed}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in known]}]
    if decayed:
        groups.append({"params": decayed, "weight_decay": 2 * weight_decay})  # Adam's is that of half the square
    return torch.optim.Adam(groups, lr=learning_rate, fused=True)


def mle_step(
    model: ImageFlow,
    batch: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    average: Any,
    *,
    clip: float = math.inf,
    precision: AbstractContextManager[Any] | None = None,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Makes a step of maximum likelihood, of all processes together, on the bound of ``ImageFlow`` in nats an image."""
    together: Any = DistributedDataParallel(model) if distributed.is_initialized() else model
    score = torch.compile(together) if compiled else together
    precision = nullcontext() if precision is None else precision

    def loss() -> Tensor:
        images = batch()
        with precision:
            return -score(images).mean()

    return gradient_step(model, loss, optimizer, scheduler=scheduler, average=average, clip=clip)


def svi_step(
    model: ImageFlow, batch: Callable[[], Tensor], learning_rate: float, factor: Callable[[int], float], average: Any
) -> tuple[Callable[[], float], OptimizerState]:
    """Makes a step of stochastic variational inference, and the state of its optimizer.

    The Pyro model observes images; the guide is empty.
    """

    def observe(images: Tensor) -> None:
        pyro.module("model", model)
        with pyro.plate("images", len(images)), pyro.poutine.scale(scale=1 / len(images)):
            pyro.sample("x", model.distribution(), obs=images)

    scheduler = pyro.optim.LambdaLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": learning_rate, "fused": True}, "lr_lambda": factor}
    )
    svi = SVI(observe, lambda images: None, scheduler, Trace_ELBO())

    def step() -> float:
        loss = svi.step(batch())
        scheduler.step()
        average.update_parameters(model)
        return loss

    return step, OptimizerState(scheduler)
