"""Pieces of a training loop: minibatches, a gradient step, a schedule, the best state, and the loop with its bar.

Nothing here knows a data set or a model. :func:`~pyro_realnvp.fit` is made of these pieces; a loop of your own can be.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel


class DivergedError(RuntimeError):
    """Raised when a loss becomes NaN or infinite."""


class Batches(Iterator[Tensor]):
    """Minibatches without end, every epoch in a new order: all of ``size``, or all rows if there are fewer.

    Args:
        data: (N, ...).
        size: rows of a batch. The last rows of an epoch that do not fill a batch are left out.
        generator: draws the order; the global one by default.
    """

    def __init__(self, data: Tensor, size: int, generator: torch.Generator | None = None) -> None:
        self.data, self.size, self.generator = data, min(size, len(data)), generator
        self.order, self.used = torch.empty(0, dtype=torch.long), 0

    def __next__(self) -> Tensor:
        if self.used + self.size > len(self.order):
            order = torch.randperm(len(self.data), generator=self.generator)
            self.order, self.used = order.to(self.data.device), 0
        self.used += self.size
        return self.data[self.order[self.used - self.size : self.used]]


def cosine_schedule(steps: int | None, *, warmup: int = 100) -> Callable[[int], float]:
    """Makes the factor of the learning rate at every step: up linearly, then down to 0 along half a cosine.

    Args:
        steps: length of the training. None: the factor stays 1 after the warm-up.
        warmup: steps of the linear rise.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warmup))
        return rise if steps is None else rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return factor


def gradient_step(
    module: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | None = None,
    average: AveragedModel | None = None,
    clip: float = math.inf,
) -> Callable[[], Tensor]:
    """Makes a function that takes one gradient step and returns the loss, on its device.

    Args:
        module: whose parameters are clipped and averaged.
        loss: draws its own batch and returns a scalar.
        optimizer, scheduler: are stepped.
        average: is updated with the module.
        clip: largest norm of the gradient of all parameters together.
    """

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if average is not None:
            average.update_parameters(module)
        return value.detach()

    return step


class BestState:
    """Remembers the state of a Module with the lowest loss, and tells when patience is exhausted.

    Args:
        module: its state is copied whenever the loss is the lowest.
        patience: number of losses without improvement after which :meth:`stop` returns True.
    """

    def __init__(self, module: nn.Module, patience: int) -> None:
        self.module, self.patience = module, patience
        self.loss, self.waited = math.inf, 0
        self.state = deepcopy(module.state_dict())

    def stop(self, loss: float) -> bool:
        """Notes a loss; returns whether there was no improvement for too long."""
        if loss < self.loss:
            self.loss, self.waited, self.state = loss, 0, deepcopy(self.module.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> None:
        self.module.load_state_dict(self.state)


@dataclass
class Progress:
    """Position of :func:`run_steps`: steps taken, and the sum of ``count`` losses since the last interval."""

    step: int = 0
    total: Tensor | float = 0.0
    count: int = 0


def run_steps(
    update: Callable[[], Tensor | float],
    *,
    steps: int | None,
    interval: int,
    on_interval: Callable[[int, float], bool],
    unit: str = "nats",
    start: Progress | None = None,
    pause: Callable[[], bool] | None = None,
    bar: bool = True,
) -> int:
    """Calls ``update`` up to ``steps`` times, with a progress bar that shows the mean loss of the last steps.

    Args:
        update: takes one step and returns its loss.
        steps: when to end; None: only ``on_interval`` or ``pause`` ends it.
        interval: steps between calls of ``on_interval``, which is also called after the last step.
        on_interval: receives the number of steps taken and the mean loss since the last call; True ends the loop.
        unit: of the loss, for the bar.
        start: where an earlier loop ended; it is updated.
        pause: is asked every 20 steps whether to end.
        bar: whether the bar is shown.

    Returns:
        The number of steps taken, with those before ``start``.

    Raises:
        DivergedError: if the loss becomes NaN or infinite.
    """
    from tqdm import tqdm  # comes with Pyro

    at = Progress() if start is None else start
    with tqdm(total=steps, initial=at.step, unit="step", mininterval=0.5, disable=not bar) as shown:
        while steps is None or at.step < steps:
            at.total = at.total + update()  # stays on the device: a GPU need not wait for the bar
            at.step, at.count = at.step + 1, at.count + 1
            ends = at.step % interval == 0 or at.step == steps
            if ends or at.step % 20 == 0:
                loss = float(at.total) / at.count
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"The loss became {loss} at about step {at.step}; a smaller learning rate may help."
                    )
                shown.set_postfix_str(f"{loss:.4f} {unit}", refresh=False)
            shown.update()
            if ends:
                at.total, at.count = 0.0, 0
                if on_interval(at.step, loss):
                    break
            if pause is not None and at.step % 20 == 0 and at.step != steps and pause():
                break
    return at.step
