"""The error of a training whose loss is not finite, and the way back to an earlier state."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LRScheduler

from ..flow import Flow
from ..image_flow import ImageFlow
from .diagnosis import Diagnosis, diagnose
from .stateful import Stateful, entry, load_part


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
        """Copies the state, after an interval; while it may still be needed."""
        parts = self.parts if self.left else {}
        self.state = deepcopy({name: part.state_dict() for name, part in parts.items()})

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
        left, saved = entry(state, "left", int), entry(state, "state", dict)
        if left < 0:
            raise ValueError(f"left should not be negative, but is {left}.")
        for name, part in self.parts.items() if left else ():
            before = deepcopy(part.state_dict())
            load_part(part, name, saved)  # to see that it fits, when it will be needed
            part.load_state_dict(before)
        self.left, self.state = left, saved
