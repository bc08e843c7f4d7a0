"""Training by maximum likelihood in one call."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.checks import at_least
from ..flow import Flow
from ..image_flow import ImageFlow
from ..networks.channel_norm import ChannelNorm
from .average import exponential_average
from .data import Batch, Rows, default_noise, default_weight_decay, hold_out, rows_of
from .history import History
from .loop import BestState, cosine_schedule, gradient_step, run_steps


def fit(
    flow: nn.Module,
    x: Any,
    *,
    context: Any = None,
    validation: Any = 0.1,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float | None = None,
    noise: float | None = None,
    patience: int | None = None,
    interval: int | None = None,
    ema: float = 0.995,
    clip: float = 5.0,
    progress: bool = True,
    seed: int | None = None,
    callback: Callable[[Mapping[str, float]], bool | None] | None = None,
) -> History:
    """Trains a flow by maximum likelihood; afterwards it holds the best averaged state and is in evaluation mode.

        history = fit(flow, x)                                    # x (N, D): 10 % are held out, until patience ends it
        history = fit(flow, (x, context), steps=5000)             # a conditional flow, for 5000 steps
        history = fit(ImageFlow(flow, levels=256), images, epochs=50)

    AdamW minimises -log p(x | context), in nats an event, or bits/dim for an :class:`~pyro_realnvp.ImageFlow`. If the
    number of steps is given, the learning rate rises over a tenth of them, 300 at most, and then falls to 0 along half
    a cosine; else it rises over 100 steps and stays. An exponential moving average of weights and running statistics is
    scored on the held-out rows at every interval, and the one with the lowest loss is kept. If ``fit`` is interrupted,
    or the loss becomes NaN, the flow is left with the best state until then.

    Tensors and numpy arrays are moved to the flow's device; floating point data are converted to its dtype, integers
    are left as they are.

    Args:
        flow: a :class:`~pyro_realnvp.Flow`, an :class:`~pyro_realnvp.ImageFlow`, or any Module that returns the
            log-densities (batch,) when it is called with x, or with x and a context.
        x: events (N, \\*event_shape); a tuple (x, context); or a DataLoader of either, whose batches are then used. The
            second part of its batches is always the context: labels of an unconditional flow must be left out.
        context: (N, \\*context_shape), if x is not a pair.
        validation: fraction of the rows to hold out, drawn at random (a DataLoader is then made again for the rest, if
            its sampler is torch's random or sequential one); or held-out x, a tuple, or a DataLoader; or None.
        steps: gradient steps to take.
        epochs: passes over the data to take, instead. Without either, ``patience`` ends the training.
        batch_size: rows of a batch; those of a DataLoader are its own.
        learning_rate: the highest.
        weight_decay: of AdamW, for the matrices and kernels; biases and scales are not decayed. None: 30 / N, at most
            0.1 and at least 0.
        noise: standard deviation of Gaussian noise that is added to x at every step, in the units of x. None, for a
            Flow on the whole real line: the standard deviation of each element times min(0.05, 1 / sqrt(N)); else 0.
        patience: number of intervals without a lower validation loss that ends the training. None: 10 if neither steps
            nor epochs are given; else there is no early end, and the best state is kept all the same.
        interval: steps between validations; an epoch by default, and at least 50.
        ema: decay of the averaged weights and statistics; 0 keeps the weights of the last step.
        clip: largest norm of the gradient of all parameters together.
        progress: whether a progress bar is shown.
        seed: of all random numbers, whose global state is then left alone; None draws from the global state.
        callback: called after every interval with ``step``, ``loss``, ``validation``, ``learning_rate`` and
            ``seconds``, while the flow holds the averaged state in evaluation mode. True ends the training.

    Returns:
        The losses, with a ``plot()``.

    Raises:
        ValueError: if the arguments do not fit each other, or the data are empty or not finite.
        DivergedError: a RuntimeError, if the loss becomes NaN or infinite.
    """
    if not isinstance(flow, nn.Module):
        raise ValueError(f"fit needs a Module, such as Flow(base, transforms), but got {type(flow).__name__}.")
    parameters = [p for p in flow.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"fit needs a Module with parameters to train, but {type(flow).__name__} has none.")
    if steps is not None and epochs is not None:
        raise ValueError(f"fit takes steps or epochs, but got steps={steps} and epochs={epochs}.")
    with _seeded(seed, parameters[0].device):
        like, event_shape = parameters[0], getattr(flow, "event_shape", None)
        rows = rows_of(x, context, like=like, batch_size=batch_size, event_shape=event_shape)
        if isinstance(flow, Flow) and not (dtype := rows.first[0].dtype).is_floating_point:
            raise ValueError(
                f"fit needs floating point x for a Flow, but got {dtype}; convert it by x.float(), or use an ImageFlow "
                f"for integer images."
            )
        rows, held_out = hold_out(rows, validation, like=like, event_shape=event_shape)
        epoch = rows.batches_per_epoch
        if epochs is not None:
            if epoch is None:
                raise ValueError("fit needs steps instead of epochs for a DataLoader without a length.")
            steps = at_least("epochs", epochs) * epoch
        if steps is None and held_out is None:
            raise ValueError("fit needs steps or epochs if there are no held-out data, by which patience could end it.")
        if patience is None:
            patience = 10 if steps is None else sys.maxsize
        if steps is not None:
            at_least("steps", steps)
        every = at_least("interval", interval if interval is not None else max(50, epoch or 0))
        decay = default_weight_decay(rows) if weight_decay is None else weight_decay
        if noise is not None and not 0 <= noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, but got {noise}.")
        spread = default_noise(flow, rows) if noise is None else noise or None
        training = _Training(flow, rows, held_out, learning_rate, decay, spread, steps, ema, clip)
        return training.run(steps, every, at_least("patience", patience), progress, callback)


class _Training:
    """A run of :func:`fit`: the optimizer, the average, and what happens at an interval."""

    def __init__(
        self,
        flow: nn.Module,
        rows: Rows,
        held_out: Rows | None,
        learning_rate: float,
        weight_decay: float,
        spread: Tensor | float | None,
        steps: int | None,
        ema: float,
        clip: float,
    ) -> None:
        self.flow, self.held_out = flow, held_out
        self.unit, self.scale = "nats", 1.0
        if isinstance(flow, ImageFlow):
            self.unit, self.scale = "bits/dim", 1 / (flow.event_shape.numel() * math.log(2))
        flow.train()
        _initialize(flow, rows.first)
        self.average = exponential_average(flow, ema) if ema else None
        self.averaged = flow if self.average is None else self.average.module

        def loss() -> Tensor:
            x, *context = next(batches)
            return -_log_density(flow, x if spread is None else x + spread * torch.randn_like(x), *context).mean()

        batches = iter(rows)
        matrices = [p for p in flow.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in flow.parameters() if p.requires_grad and p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=learning_rate,
            fused=all(p.device.type in ("cpu", "cuda") for p in (*matrices, *others)),
        )
        warmup = 100 if steps is None else min(300, steps // 10)
        factor = cosine_schedule(steps, warmup=warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.step = gradient_step(flow, loss, self.optimizer, scheduler=scheduler, average=self.average, clip=clip)

    def run(
        self,
        steps: int | None,
        interval: int,
        patience: int,
        progress: bool,
        callback: Callable[[Mapping[str, float]], bool | None] | None,
    ) -> History:
        best, start, best_step, ended_by = BestState(self.averaged, patience), perf_counter(), 0, "steps"
        rows: list[dict[str, float]] = []

        def on_interval(step: int, loss: float) -> bool:
            nonlocal best_step, ended_by
            row = {"step": step, "loss": loss, "validation": self.validate()}
            row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": perf_counter() - start}
            rows.append(row)
            if self.held_out is None:
                best.state = deepcopy(self.averaged.state_dict())  # there is nothing to select by
            elif best.stop(row["validation"]):
                ended_by = "patience"
            best_step = best_step if best.waited else step
            if callback is not None:
                with _holding(self.flow, self.averaged):
                    if callback(dict(row)):
                        ended_by = "callback"
            return ended_by != "steps"

        try:
            scaled = (lambda: self.step() * self.scale) if self.scale != 1 else self.step
            run_steps(scaled, steps=steps, interval=interval, on_interval=on_interval, unit=self.unit, bar=progress)
        finally:
            self.flow.load_state_dict(best.state)
            self.flow.eval()
        return History.from_rows(rows, unit=self.unit, best_step=best_step, ended_by=ended_by)

    @torch.no_grad()
    def validate(self) -> float:
        """Scores the averaged flow on the held-out rows, with equal noise of dequantization at every call."""
        if self.held_out is None:
            return math.nan
        mode, total, count = self.averaged.training, 0.0, 0
        self.averaged.eval()
        with _seeded(0, self.held_out.device):
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
    if isinstance(flow, Flow | ImageFlow):
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


def _seeded(seed: int | None, device: torch.device) -> AbstractContextManager[Any]:
    """Seeds the random numbers inside a ``with`` block and restores their state behind it; nothing without a seed."""
    if seed is None:
        return nullcontext()

    @contextmanager
    def fork() -> Iterator[None]:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(seed)
            yield

    return fork()
