"""A run of :func:`pyro_realnvp.fit`: its optimizer, its average, and what happens at an interval."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..augmented_flow import AugmentedFlow
from ..flow import Flow
from ..image_flow import ImageFlow
from ..networks.channel_norm import ChannelNorm
from .annealing import Noise
from .average import exponential_average
from .data import Batch, Rows
from .diagnosis import findings_before_training
from .divergence import DivergedError, Recovery
from .history import Course, History
from .loop import BestState, Progress, cosine_schedule, decayed, gradient_step, run_steps
from .resume import Checkpoint
from .stateful import Stateful


class MaximumLikelihood:
    """A run of :func:`fit`: the optimizer, the average, and what happens at an interval."""

    def __init__(
        self,
        flow: nn.Module,
        rows: Rows,
        held_out: Rows | None,
        learning_rate: float,
        weight_decay: float,
        noise: Noise,
        steps: int | None,
        ema: float,
        clip: float,
        recoveries: int,
        *,
        starts: bool,
    ) -> None:
        self.flow, self.held_out = flow, held_out
        self.unit, self.scale = "nats", 1.0
        if isinstance(flow, ImageFlow):
            self.unit, self.scale = "bits/dim", 1 / (flow.event_shape.numel() * math.log(2))
        if starts:
            _initialize(flow, rows.first)
            for finding in findings_before_training(flow, *rows.first):
                warnings.warn(finding, UserWarning, stacklevel=3)  # at the call of fit
        self.average = exponential_average(flow, ema) if ema else None
        self.averaged = flow if self.average is None else self.average.module

        def loss() -> Tensor:
            x, *context = next(self.batches)
            self.batch = (noise(x), *context)
            return -_log_density(flow, *self.batch).mean()

        self.noise, self.batches = noise, rows.batches()
        self.optimizer = torch.optim.AdamW(
            decayed(flow, weight_decay),
            lr=learning_rate,
            fused=all(p.device.type in ("cpu", "cuda") for p in flow.parameters() if p.requires_grad),
        )
        warmup = 100 if steps is None else min(300, steps // 10)
        factor = cosine_schedule(steps, warmup=warmup)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.step = gradient_step(flow, loss, self.optimizer, scheduler=self.scheduler, average=self.average, clip=clip)
        self.progress = Progress()
        modules = {"flow": flow} if self.average is None else {"flow": flow, "average": self.average}
        recovery = Recovery(self.optimizer, self.scheduler, times=recoveries, progress=self.progress, **modules)
        self.recovery = recovery
        self.parts: dict[str, Stateful] = {
            **modules,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "batches": self.batches,
            "noise": noise,
            "progress": self.progress,
            "recovery": recovery,
        }

    def run(
        self,
        steps: int | None,
        interval: int,
        patience: int,
        progress: bool,
        callback: Callable[[Mapping[str, float]], bool | None] | None,
        checkpoint: Checkpoint | None,
    ) -> History:
        best, course = BestState(self.averaged, patience), Course()
        if checkpoint is not None:
            checkpoint.track(**self.parts, best=best, course=course)
        if self.held_out is not None and self.progress.step == 0:
            best.stop(self.validate())  # a flow may start where few data cannot improve it
        self.flow.train()
        start = perf_counter() - course.seconds

        def on_interval(step: int, loss: float) -> bool:
            row = {"step": step, "loss": loss, "validation": self.validate()}
            row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": perf_counter() - start}
            course.rows = [*course.rows, row]
            if self.held_out is None:
                best.state = deepcopy(self.averaged.state_dict())  # there is nothing to select by
            rests = self.held_out is not None and best.stop(row["validation"])
            course.best_step = course.best_step if best.waited else step
            self.noise.note(improved=not best.waited)
            if rests and not self.noise.halve(lambda: self.go_back(best)):
                course.ended_by = "patience"
            self.recovery.remember()
            if callback is not None:
                with _holding(self.flow, self.averaged):
                    if callback(dict(row)):
                        course.ended_by = "callback"
            return course.ended_by != "steps"

        try:
            scaled = (lambda: self.step() * self.scale) if self.scale != 1 else self.step
            run_steps(
                scaled,
                steps=steps,
                interval=interval,
                on_interval=on_interval,
                unit=self.unit,
                start=self.progress,
                checkpoint=checkpoint,
                recover=self.recover,
                bar=progress,
            )
        finally:
            self.flow.load_state_dict(best.state)
            self.flow.eval()
        return History.from_rows(course.rows, unit=self.unit, best_step=course.best_step, ended_by=course.ended_by)

    def go_back(self, best: BestState) -> None:
        """Goes on from the best state, with as much patience as at first."""
        best.restore()
        self.flow.load_state_dict(best.state)
        best.waited = 0

    def recover(self, error: DivergedError) -> bool:
        """Diagnoses the flow on the last batch, while it is as the error has found it; then goes back, if it may."""
        error.diagnose(self.flow, *self.batch)
        return self.recovery(error)

    @torch.no_grad()
    def validate(self) -> float:
        """Scores the averaged flow on the held-out rows, with equal noise of dequantization at every call."""
        if self.held_out is None:
            return math.nan
        mode, total, count = self.averaged.training, 0.0, 0
        self.averaged.eval()
        with seeded(0, self.held_out.device):
            for x, *context in self.held_out.once():
                total -= float(_log_density(self.averaged, x, *context).double().sum())
                count += len(x)
        self.averaged.train(mode)
        return total / count * self.scale


def _log_density(flow: nn.Module, x: Tensor, *context: Tensor) -> Tensor:
    log_density: Tensor = flow(x, *context)
    if log_density.shape != x.shape[:1]:
        raise ValueError(
            f"fit needs log-densities of shape ({len(x)},), but {type(flow).__name__} returned "
            f"{tuple(log_density.shape)}; transforms alone are no density, Flow(base, transforms) is one."
        )
    return log_density


def _initialize(flow: nn.Module, batch: Batch) -> None:
    """Initialises ActNorm layers from the first batch."""
    if isinstance(flow, Flow | ImageFlow | AugmentedFlow):
        flow.initialize(*batch)
    elif any(isinstance(module, ChannelNorm) and not module.is_fixed for module in flow.modules()):
        with torch.no_grad():
            flow(*batch)


@contextmanager
def _holding(flow: nn.Module, averaged: nn.Module) -> Iterator[None]:
    """Lets the flow hold the averaged state in evaluation mode, inside a ``with`` block."""
    mode, own = flow.training, deepcopy(flow.state_dict())
    flow.load_state_dict(averaged.state_dict())
    flow.eval()
    try:
        yield
    finally:
        flow.load_state_dict(own)
        flow.train(mode)


def seeded(seed: int | None, device: torch.device) -> AbstractContextManager[Any]:
    """Seeds the random numbers inside a ``with`` block and restores their state behind it; nothing without a seed."""
    if seed is None:
        return nullcontext()

    @contextmanager
    def fork() -> Iterator[None]:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(seed)
            yield

    return fork()
