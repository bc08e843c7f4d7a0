"""Pieces of a training loop: minibatches, a gradient step, a schedule, the best state, and the loop with its bar.

Nothing here knows a data set or a model. :func:`~pyro_realnvp.fit` is made of these pieces; a loop of your own can be.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from .._runtime.batch_statistics import NotFiniteError
from ..bases import Base
from .divergence import DivergedError
from .resume import Checkpoint
from .stateful import entry
from .values import check_values


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

    def state_dict(self) -> dict[str, Any]:
        own = {} if self.generator is None else {"generator": self.generator.get_state()}
        return {"order": self.order, "used": self.used, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        order, used = entry(state, "order", Tensor), entry(state, "used", int)
        rows = torch.arange(len(self.data) if order.numel() else 0, device=order.device)
        if order.dtype != torch.long or not torch.equal(order.sort()[0], rows):
            raise ValueError(f"order should have each of {len(self.data)} rows once.")
        if not 0 <= used <= len(order):
            raise ValueError(f"used should be at most {len(order)}, the number of rows, but is {used}.")
        if self.generator is not None:
            self.generator.set_state(entry(state, "generator", Tensor).cpu())
        self.order, self.used = order.to(self.data.device), used


def decayed(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Makes the groups of an optimizer's parameters: matrices and kernels are decayed, biases and scales are not.

    Nor are the parameters of bases: a mixture has a matrix of locations. Parameters without a gradient are left out.
    """
    of_bases = {p for part in module.modules() if isinstance(part, Base) for p in part.parameters(recurse=False)}
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1 and p not in of_bases]
    others = [p for p in trained if p.dim() <= 1 or p in of_bases]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


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

    On the CPU, the function raises :class:`DivergedError` if the loss, or the norm of the gradient if that is clipped,
    is not finite, before anything has changed.
    """

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        try:
            value = loss()
        except NotFiniteError as error:  # a normalization does not wait for the loss
            raise DivergedError("The loss became nan", learning_rate=_rate(optimizer)) from error
        # On a GPU this would wait for the step; there run_steps looks at the loss from time to time.
        if value.device.type == "cpu" and not value.isfinite():
            raise DivergedError(f"The loss became {value.item()}", learning_rate=_rate(optimizer))
        value.backward()
        if clip < math.inf:
            norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
            if norm.device.type == "cpu" and not norm.isfinite():
                cause = f"The gradient became {norm.item()}, while the loss was {value.item():.6g},"
                raise DivergedError(cause, learning_rate=_rate(optimizer))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if average is not None:
            average.update_parameters(module)
        return value.detach()

    return step


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


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

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "waited": self.waited, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        loss, waited, best = entry(state, "loss", float), entry(state, "waited", int), entry(state, "state", dict)
        if math.isnan(loss) or waited < 0:
            raise ValueError(f"there is no lowest loss of {loss} for {waited} intervals.")
        check_values(self.module, best)
        self.loss, self.waited, self.state = loss, waited, best


@dataclass
class Progress:
    """Position of :func:`run_steps`: steps taken, the sum of ``count`` losses since the last interval, and the end."""

    step: int = 0
    total: Tensor | float = 0.0
    count: int = 0
    ended: bool = False

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        step, count, ended = entry(state, "step", int), entry(state, "count", int), entry(state, "ended", bool)
        total = entry(state, "total", float, Tensor)
        if not 0 <= count <= step:
            raise ValueError(f"there are no {count} losses in {step} steps.")
        if isinstance(total, Tensor) and (total.dim() or not total.is_floating_point()):
            raise ValueError(f"total should be a number, but is a tensor of {total.dtype} and {tuple(total.shape)}.")
        if not math.isfinite(total):
            raise ValueError(f"total should be finite, but is {float(total)}.")
        self.step, self.total, self.count, self.ended = step, total, count, ended


def progress_bar(steps: int | None, *, initial: int = 0, shown: bool = True) -> Any:
    """Makes the bar of a training."""
    from tqdm import tqdm  # comes with Pyro

    return tqdm(total=steps, initial=initial, unit="step", mininterval=0.5, disable=not shown)


def run_steps(
    update: Callable[[], Tensor | float],
    *,
    steps: int | None,
    interval: int,
    on_interval: Callable[[int, float], bool],
    unit: str = "nats",
    start: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    recover: Callable[[DivergedError], bool] | None = None,
    bar: bool = True,
) -> int:
    """Calls ``update`` up to ``steps`` times, with a progress bar that shows the mean loss of the last steps.

    Args:
        update: takes one step and returns its loss.
        steps: when to end; None: only ``on_interval`` ends it.
        interval: steps between calls of ``on_interval``, which is also called after the last step.
        on_interval: receives the number of steps taken and the mean loss since the last call; True ends the loop.
        unit: of the loss, for the bar.
        start: where an earlier loop ended; it is updated, and belongs to the parts that a ``checkpoint`` tracks.
        checkpoint: saves the state from time to time, and after the last step.
        recover: is called if the loss becomes NaN or infinite, and may take the training back to an earlier state
            (:class:`Recovery`); False raises the error.
        bar: whether the bar is shown.

    Returns:
        The number of steps taken, with those before ``start``.

    Raises:
        DivergedError: if the loss becomes NaN or infinite.
    """
    at = Progress() if start is None else start
    shown = progress_bar(steps, initial=at.step, shown=bar)

    def finish_interval() -> bool:
        loss = float(at.total) / at.count
        with nullcontext() if checkpoint is None else checkpoint.interval():
            at.total, at.count = 0.0, 0  # before the call, which may copy the state
            at.ended = on_interval(at.step, loss)
        return at.ended

    with shown, nullcontext() if checkpoint is None else checkpoint.steps():
        while True:
            # An earlier process may have been stopped within its interval: then that is done again.
            last = steps is not None and at.step >= steps
            ends = at.count > 0 and (at.step % interval == 0 or last)
            if at.ended or (ends and finish_interval()) or last:
                break
            tried = at.step + 1
            try:
                at.total = at.total + update()  # stays on the device: a GPU need not wait for the bar
                at.step, at.count = at.step + 1, at.count + 1
                due = checkpoint is not None and checkpoint.is_due()
                if due or at.step % 20 == 0 or at.step % interval == 0 or at.step == steps:
                    loss = float(at.total) / at.count
                    if not math.isfinite(loss):
                        raise DivergedError(f"The loss became {loss}")
                    shown.set_postfix_str(f"{loss:.4f} {unit}", refresh=False)
            except DivergedError as error:
                error.step = tried
                if recover is None or not recover(error):
                    raise
                shown.n = at.step
                continue
            shown.update()
            if due and checkpoint is not None:
                checkpoint.poll()
        if checkpoint is not None:
            checkpoint.save()
    return at.step
