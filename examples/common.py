"""What the example scripts share: options, the training loop, metrics, checkpoints and pictures.

Nothing here knows a data set or a model. A script makes an ``update`` (usually with :func:`gradient_update`), hands it
to :func:`fit` with an ``evaluate`` that is called once an interval, and saves what came out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import matplotlib

matplotlib.use("Agg")  # before pyplot: the scripts write files and must run without a display

import matplotlib.pyplot as plt
import pyro
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

Config = dict[str, Any]


def fail(message: str) -> NoReturn:
    """Ends the script with one sentence instead of a traceback."""
    raise SystemExit(message)


# ---------------------------------------------------------------------------------------------------- options


def add_options(parser: argparse.ArgumentParser, *, out: str, steps: int | None) -> None:
    """The options that every script has."""
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=steps, help="gradient steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results (default: %(default)s)")


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one; any other name is tried at once, so that a wrong one fails early."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name} cannot be used here: {str(error).splitlines()[0]}")


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device."""
    pyro.set_rng_seed(seed)


# ---------------------------------------------------------------------------------------------------- training


class Metrics:
    """Appends rows to ``metrics.jsonl`` in a folder, which starts anew, and knows the seconds since then.

    With a ``step``, that an earlier process has reached after so many ``seconds``, it goes on from there instead.
    With ``quiet``, for all processes but the first, nothing is written and no bar is shown.
    """

    def __init__(self, folder: Path, *, quiet: bool = False, step: int = 0, seconds: float = 0.0) -> None:
        self.path, self.quiet = folder / "metrics.jsonl", quiet
        self._start = perf_counter() - seconds
        if not quiet:
            folder.mkdir(parents=True, exist_ok=True)
            rows = self.path.read_text().splitlines(keepends=True) if step and self.path.is_file() else []
            self.path.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))

    def write(self, row: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    @property
    def seconds(self) -> float:
        return round(perf_counter() - self._start, 1)


def ema_of(flow: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and running statistics; ``.module`` is the averaged flow.

    The decay grows to its value, (1 + n) / (10 + n) after n steps, so that the start is soon forgotten.
    """

    def average(averaged: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        count = int(ema.n_averaged)  # on the processor, unlike the argument: a GPU need not wait
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    ema = AveragedModel(flow, multi_avg_fn=torch.no_grad()(average), use_buffers=True)
    return ema


def gradient_update(
    flow: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | None = None,
    ema: AveragedModel | None = None,
    max_norm: float = math.inf,
) -> Callable[[], Tensor]:
    """One step of maximum likelihood: ``loss()`` draws its own batch, gradients are clipped to norm ``max_norm``."""

    def update() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(flow.parameters(), max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if ema is not None:
            ema.update_parameters(flow)
        return value.detach()

    return update


def cosine_factor(steps: int, *, warmup: int = 100) -> Callable[[int], float]:
    """The learning rate: rises linearly over ``warmup`` steps, and falls to 0 along half a cosine over all of them."""

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return factor


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, *, warmup: int = 100) -> LambdaLR:
    return LambdaLR(optimizer, cosine_factor(steps, warmup=warmup))


class BestState:
    """Remembers the state with the lowest validation loss, and says when ``patience`` intervals brought no better."""

    def __init__(self, module: nn.Module, patience: int) -> None:
        self.module, self.patience = module, patience
        self.loss, self.waited = math.inf, 0
        self.state = deepcopy(module.state_dict())

    def stop(self, loss: float) -> bool:
        if loss < self.loss:
            self.loss, self.waited, self.state = loss, 0, deepcopy(self.module.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> None:
        self.module.load_state_dict(self.state)


@dataclass
class Progress:
    """How far :func:`fit` has come: steps, and the sum of so many losses since the last interval."""

    step: int = 0
    total: Tensor | float = 0.0
    count: int = 0


def fit(
    update: Callable[[], Tensor | float],
    *,
    steps: int,
    interval: int,
    metrics: Metrics,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    unit: str = "nats",
    progress: Progress | None = None,
    pause: Callable[[], bool] | None = None,
) -> int:
    """Calls ``update`` up to ``steps`` times, with a progress bar that shows the mean loss of the last steps.

    After every interval a row ``step``, ``loss`` (the mean over the interval) and whatever ``evaluate`` returns goes to
    the metrics; ``stop`` sees the row and may end the training. Returns the number of steps taken, with those that
    ``progress`` starts from. ``pause`` is asked every 20 steps whether to go on another time, from that progress.
    """
    at = Progress() if progress is None else progress
    with tqdm(total=steps, initial=at.step, unit="step", mininterval=0.5, disable=metrics.quiet) as bar:
        while at.step < steps:
            at.total = at.total + update()  # stays on the device: a GPU need not wait for the bar
            at.step, at.count = at.step + 1, at.count + 1
            step = at.step
            ends = step % interval == 0 or step == steps
            if ends or step % 20 == 0:
                loss = float(at.total) / at.count
                if not math.isfinite(loss):
                    fail(f"The loss became {loss} at about step {step}; a smaller learning rate may help.")
                bar.set_postfix_str(f"{loss:.4f} {unit}", refresh=False)
            bar.update()
            if ends:
                row = {"step": step, "loss": loss, **(evaluate() if evaluate else {}), "seconds": metrics.seconds}
                metrics.write(row)
                at.total, at.count = 0.0, 0
                if stop is not None and stop(row):
                    break
            if step % 20 == 0 and step < steps and pause is not None and pause():
                break
    return at.step


def train_density(
    flow: nn.Module,
    loss: Callable[[], Tensor],
    options: argparse.Namespace,
    metrics: Metrics,
    *,
    validate: Callable[[nn.Module], Tensor] | None = None,
) -> Any:
    """Maximum likelihood by Adam; the result is the average of the weights over the last steps.

    The learning rate warms up over 300 steps: while the parts of a density are being pulled apart, large steps make the
    loss jump by orders of magnitude. With ``validate``, a loss on other data, the training may stop early, and the
    result is the average where that was lowest.
    """
    ema = ema_of(flow, options.ema)
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.lr, fused=True)
    scheduler = cosine_schedule(optimizer, options.steps, warmup=300)
    update = gradient_update(flow, loss, optimizer, scheduler=scheduler, ema=ema, max_norm=5.0)
    run = partial(fit, update, steps=options.steps, interval=options.interval, metrics=metrics)
    if validate is None:
        run()
        return ema.module
    best = BestState(ema.module, options.patience)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return {"validation_nats": validate(ema.module).item()}

    run(evaluate=evaluate, stop=lambda row: best.stop(row["validation_nats"]))
    best.restore()
    return ema.module


class Batches(Iterator[Tensor]):
    """Minibatches for ever, every epoch in a new order: all of ``size``, or all the data where there is less."""

    def __init__(self, data: Tensor, size: int, generator: torch.Generator | None = None) -> None:
        self.data, self.size, self.generator = data, min(size, len(data)), generator
        self.order, self.used = torch.empty(0, dtype=torch.long), 0

    def __next__(self) -> Tensor:
        if self.used + self.size > len(self.order):
            order = torch.randperm(len(self.data), generator=self.generator)
            self.order, self.used = order.to(self.data.device), 0
        self.used += self.size
        return self.data[self.order[self.used - self.size : self.used]]


# ---------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path: Path, flow: nn.Module, config: Config) -> None:
    """Writes the weights to ``path`` and, beside it with the suffix .json, the configuration that rebuilds the flow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in flow.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")


def load_checkpoint(path: Path, build: Callable[[Config], nn.Module]) -> tuple[Any, Config]:
    """The flow that ``build`` makes of the configuration, with the saved weights, in evaluation mode."""
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            fail(f"There is no checkpoint {path}: {file} does not exist.")
    try:
        config = json.loads(path.with_suffix(".json").read_text())
        state = load_file(path)
        flow = build(config)
    except SafetensorError as error:
        fail(f"The checkpoint {path} is truncated or no safetensors file: {error}.")
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        fail(f"The configuration {path.with_suffix('.json')} does not describe a flow of this script: {error!r}.")
    expected = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            fail(
                f"The checkpoint {path} is of another architecture than {path.with_suffix('.json')} describes: "
                f"{name} should have shape {expected.get(name, 'none')}, but has {got.get(name, 'none')}."
            )
    flow.load_state_dict(state)
    return flow.eval(), config


# ---------------------------------------------------------------------------------------------------- pictures


def image_grid(images: Tensor, columns: int, *, gap: int = 1) -> Tensor:
    """Tiles images (N, C, H, W) on the unit scale, row by row, into one (height, width, C) with white gaps."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images.detach().cpu().clamp(0, 1)):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid.permute(1, 2, 0)


def save_grids(path: Path, panels: Mapping[str, Tensor], columns: int) -> None:
    """One picture with a titled image grid for every entry, side by side."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.5), squeeze=False, layout="constrained")
    for axis, (title, images) in zip(axes[0], panels.items(), strict=True):
        grid = image_grid(images, columns).numpy()
        axis.imshow(grid if grid.shape[-1] == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
