"""Pieces of a training loop: minibatches, a gradient step, a schedule, the best state, and the loop with its bar.

Nothing here knows a data set or a model. :func:`~pyro_realnvp.fit` is made of these pieces; a loop of your own can be.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from .._runtime.batch_statistics import NotFiniteError
from ..flow import Flow
from ..image_flow import ImageFlow
from .diagnosis import Diagnosis, diagnose
from .resume import Checkpoint, Stateful


class DivergedError(RuntimeError):
    """Raised when a loss or a gradient becomes NaN or infinite.

    Attributes:
        cause: begins the message: "The loss became nan", say.
        step: number of the step, if it is known.
        learning_rate: of that step, if it is known.
        remedies: sentences that end the message.
        diagnosis: of the flow on the batch whose loss was not finite, if :meth:`diagnose` was called; it prints as a
            table of the layers.
    """

    def __init__(self, cause: str, *, learning_rate: float | None = None) -> None:
        super().__init__(cause)
        self.cause, self.learning_rate = cause, learning_rate
        self.step: int | None = None
        self.remedies = ["A smaller learning rate may help."]
        self.diagnosis: Diagnosis | None = None

    def diagnose(self, flow: nn.Module, *batch: Tensor) -> None:
        """Diagnoses a flow on the batch whose loss was not finite, and begins the remedies with the first findings.

        It does nothing for any other Module, nor in one of several processes, where layers may wait for the others.
        """
        alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        if alone and isinstance(flow, Flow | ImageFlow):
            with suppress(Exception):  # of a batch that does not fit, say: it must not hide this error
                self.diagnosis = diagnose(flow, *batch)
                self.remedies = [*self.diagnosis.findings[:2], *self.remedies]

    def __str__(self) -> str:
        step = "" if self.step is None else f" at about step {self.step}"
        rate = "" if self.learning_rate is None else f", with a learning rate of {self.learning_rate:.3g}"
        return " ".join([f"{self.cause}{step}{rate}.", *self.remedies])


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
        own = None if self.generator is None else self.generator.get_state()
        return {"order": self.order, "used": self.used, "generator": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order, self.used = state["order"].to(self.data.device), int(state["used"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])


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
        self.loss, self.waited, self.state = float(state["loss"]), int(state["waited"]), dict(state["state"])


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
        self.step, self.count, self.ended = int(state["step"]), int(state["count"]), bool(state["ended"])
        self.total = state["total"]


class Recovery:
    """Takes a training back to the state after its last interval, with half the learning rate, a few times.

    It is the ``recover`` of :func:`run_steps`, and belongs to what a checkpoint tracks. Random numbers and the order of
    the data are not taken back: the steps that failed are not made once more.

    Args:
        optimizer, scheduler: whose learning rate is halved.
        times: how often.
        parts: what else is taken back: the Module, its average, the progress.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, *, times: int, **parts: Stateful
    ) -> None:
        self.optimizer, self.scheduler, self.left = optimizer, scheduler, times
        self.parts: dict[str, Stateful] = {**parts, "optimizer": optimizer, "scheduler": scheduler}
        self.state: dict[str, Any] = {}
        self.remember()

    def remember(self) -> None:
        """Copies the state, after an interval."""
        if self.left:
            self.state = deepcopy({name: part.state_dict() for name, part in self.parts.items()})

    def __call__(self, error: DivergedError) -> bool:
        if not self.left:
            return False
        self.left -= 1
        for name, part in self.parts.items():
            part.load_state_dict(deepcopy(self.state[name]))
        self.scheduler.base_lrs = [rate / 2 for rate in self.scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"], group["initial_lr"] = group["lr"] / 2, group["initial_lr"] / 2
        self.remember()
        warnings.warn(
            f"{error} It goes on from the last good state with half the learning rate, {self.left} more times at most.",
            RuntimeWarning,
            stacklevel=2,
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.left, self.state = int(state["left"]), dict(state["state"])


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
    from tqdm import tqdm  # comes with Pyro

    at = Progress() if start is None else start
    shown = tqdm(total=steps, initial=at.step, unit="step", mininterval=0.5, disable=not bar)

    def finish_interval() -> bool:
        loss = float(at.total) / at.count
        with nullcontext() if checkpoint is None else checkpoint.interval():
            at.ended = on_interval(at.step, loss)
            at.total, at.count = 0.0, 0
        return at.ended

    with shown, nullcontext() if checkpoint is None else checkpoint.steps():
        while True:
            # An earlier process may have been stopped within its interval: then that is done again.
            ends = at.count > 0 and (at.step % interval == 0 or at.step == steps)
            if at.ended or (ends and finish_interval()) or at.step == steps:
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
