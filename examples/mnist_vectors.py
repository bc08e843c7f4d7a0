"""Trains flows on MNIST as vectors of 784 pixels, and reports the figures of two published tables in their units.

    python examples/mnist_vectors.py nice --download           NICE, in the unit cube
    python examples/mnist_vectors.py realnvp                   RealNVP with 5 couplings, in logit space
    python examples/mnist_vectors.py realnvp --conditional     given the digit

nice is that of Dinh, Krueger & Bengio (2014), section 5.1: four additive couplings with five hidden layers of 1000, a
diagonal scaling and a logistic prior. Its figure is the mean over test images of log p(x), x = (pixels + u) / 256 with
u uniform in [0, 1)^784.

realnvp is the "Real NVP (5)" of Papamakarios, Pavlakou & Murray (2017), "Masked autoregressive flow", section 4.2:
five affine couplings, the even and the odd pixels in turns, each followed by batch normalization. Scale and shift have
networks of their own, with two hidden layers of 1024, of tanh and of ReLU. Its figure is the mean of log p(y),
y = logit(1e-6 + (1 - 2e-6) x). With --conditional, the one-hot digit is a further input of every network, and the
figure is that of p(y) = 1/10 sum_k p(y | k). Statistics of batch normalization are those of the whole training set,
computed before every validation.

The last 10,000 of the 60,000 training images are for validation; the state with the best validation is tested. Noise is
drawn anew in every step. Writes into --out: metrics.jsonl, whose last row has the test figures, and
checkpoint.safetensors.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_realnvp import (
    MLP,
    Affine,
    BatchNorm,
    Conditioner,
    Flow,
    Logit,
    Permute,
    Scale,
    SplitCoupling,
    StandardLogistic,
    StandardNormal,
    nice_transforms,
    recalibrate,
    save,
)
from pyro_realnvp.training.average import exponential_average
from pyro_realnvp.training.divergence import DivergedError, Recovery
from pyro_realnvp.training.loop import Batches, BestState, Progress, cosine_schedule, decayed, gradient_step, run_steps

from shared.image_data import load_images, load_labels
from shared.option_types import COUNT, RATE, SHARE
from shared.options import add_options, resolve_device, set_seed
from shared.run import Run, open_run

DIM, LEVELS, CLASSES = 784, 256, 10
ALPHA = 1e-6  # of the logit
EPS = 1e-5  # of batch normalization
TRAINING = 50_000  # images; the other 10,000 are for validation
# Ours: the papers train for 1500 epochs, or until validation has not improved for 30, at a constant rate.
RECIPES: dict[str, dict[str, Any]] = {
    "nice": {"epochs": 45, "batch_size": 200, "learning_rate": 1e-3, "ema": 0.999, "weight_decay": 0.3},
    "realnvp": {"epochs": 30, "batch_size": 250, "learning_rate": 5e-4, "ema": 0.999, "weight_decay": 1.0},
}


# --------------------------------------------------------------------------------------------------- the models


class ScaleAndShift(Conditioner):
    """Computes shift and log-scale of an affine coupling by two networks, of ReLU and of tanh.

    Shapes: (\\*batch, in_channels) and a context (\\*batch, context_dim) to (\\*batch, out_channels).
    """

    starts_at_zero = True

    def __init__(self, in_channels: int, out_channels: int, *, hidden: tuple[int, ...], context_dim: int = 0) -> None:
        super().__init__(None, context_dim)
        self.check_channels(in_channels, out_channels)
        build = partial(MLP, in_channels, out_channels // 2, hidden=hidden, context_dim=context_dim)
        self.shift, self.log_scale = build(activation=nn.ReLU), build(activation=nn.Tanh)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([self.shift(x, context), self.log_scale(x, context)], -1)


def build(name: str, *, hidden: int | None = None, classes: int = 0) -> Flow:
    """Builds the density of one of ``RECIPES``, with the published widths unless ``hidden`` is given."""
    if name == "nice":
        net = partial(MLP, hidden=(hidden or 1000,) * 5, activation=nn.ReLU)
        return Flow(StandardLogistic(DIM), nice_transforms(DIM, net=net))
    net = partial(ScaleAndShift, hidden=(hidden or 1024,) * 2, context_dim=classes)
    layers: list[Any] = [Permute((DIM,), [*range(0, DIM, 2), *range(1, DIM, 2)])]  # even pixels, then odd ones
    for index in range(5):
        layers.append(SplitCoupling((DIM,), net(DIM // 2, DIM), Affine(), swap=index % 2 == 1))
        layers.append(BatchNorm((DIM,), eps=EPS))
    return Flow(StandardNormal(DIM), [layer.inv for layer in reversed(layers)])


@torch.no_grad()
def initialize(flow: Flow, x: Tensor) -> None:
    """Gives every latent of NICE the standard deviation of its prior on data x (N, 784), before anything is learned.

    Adam moves a log-scale by the learning rate a step; to that of a black pixel, 7, it would take thousands of them.
    """
    (scale,) = (module for module in flow.modules() if isinstance(module, Scale))
    scale.log_scale.copy_((math.pi / math.sqrt(3)) / flow.transforms.inv(x).std(0)).log_()


# ------------------------------------------------------------------------------------------- data and figures


def dequantize(name: str, pixels: Tensor) -> Tensor:
    """Adds uniform noise to pixels (N, 784), and carries them to the space of the table of ``name``."""
    unit = (pixels + torch.rand(pixels.shape, device=pixels.device)) / LEVELS
    if name == "nice":
        return unit
    y: Tensor = Logit(ALPHA)(unit)
    return y


def log_density(flow: Flow, x: Tensor, classes: int) -> Tensor:
    """Computes log p(x) of x (N, 784) in nats, (N,); of a conditional flow with all labels equally likely."""
    if not classes:
        return flow(x)
    labels = torch.eye(classes, device=x.device)
    given = [flow(x, label.expand(len(x), classes)) for label in labels]
    return torch.stack(given).logsumexp(0) - math.log(classes)


@torch.no_grad()
def score(flow: Flow, name: str, pixels: Tensor, classes: int) -> tuple[float, float]:
    """Computes the figure of the table, with its standard error, with the same noise at every call."""
    flow.eval()
    with torch.random.fork_rng([] if pixels.device.type == "cpu" else [pixels.device]):
        torch.manual_seed(0)
        parts = [log_density(flow, dequantize(name, batch), classes).double() for batch in pixels.split(500)]
    values = torch.cat(parts)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


# ----------------------------------------------------------------------------------------------------- training


def train(args: argparse.Namespace, run: Run) -> None:
    device = resolve_device(args.device)
    *known, test = load_images("mnist", args.root, download=args.download)
    train_pixels, validation_pixels = torch.cat(known).flatten(1).to(device).tensor_split([TRAINING])
    test_pixels = test.flatten(1).to(device)
    classes = CLASSES if args.conditional else 0
    labels = torch.cat(load_labels("mnist", args.root)[:2])[: len(train_pixels)]
    one_hot = nn.functional.one_hot(labels, CLASSES).float().to(device)
    model = build(args.flow, hidden=args.hidden, classes=classes).to(device).train()
    if run.checkpoint.saved is None and args.flow == "nice":
        initialize(model, dequantize(args.flow, train_pixels[:5000]))
    average = exponential_average(model, args.ema)
    averaged = average.module
    normalizes = any(isinstance(module, BatchNorm) for module in model.modules())

    def batch_of(rows: Tensor) -> tuple[Tensor, ...]:
        x = dequantize(args.flow, train_pixels[rows])
        return (x, one_hot[rows]) if classes else (x,)

    rows = Batches(torch.arange(len(train_pixels)), args.batch_size)
    epoch = len(train_pixels) // args.batch_size
    steps = args.steps if args.steps is not None else args.epochs * epoch
    optimizer = torch.optim.AdamW(decayed(model, args.weight_decay), lr=args.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_schedule(steps))
    precision = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    last: list[tuple[Tensor, ...]] = []

    def loss() -> Tensor:
        last[:] = [batch_of(next(rows))]
        with precision:
            return -model(*last[0]).mean()

    def in_order() -> Iterator[tuple[Tensor, ...]]:
        return (batch_of(part) for part in torch.arange(len(train_pixels)).split(1000))

    best, progress, metrics = BestState(averaged, args.patience), Progress(), run.metrics
    recovery = Recovery(optimizer, scheduler, times=run.recoveries, progress=progress, model=model, average=average)
    run.checkpoint.track(
        model=model,
        average=average,
        best=best,
        batches=rows,
        progress=progress,
        metrics=metrics,
        recovery=recovery,
        optimizer=optimizer,
        scheduler=scheduler,
    )

    def on_interval(taken: int, loss: float) -> bool:
        if normalizes:
            with precision:
                recalibrate(averaged, in_order())
        value, error = score(averaged, args.flow, validation_pixels, classes)
        row = {"step": taken, "loss": loss, "validation_nats": value, "validation_nats_error": error}
        metrics.write({**row, "seconds": metrics.seconds})
        recovery.remember()
        return best.stop(-value)

    def recover(error: DivergedError) -> bool:
        error.diagnose(model, *last[0])
        return recovery(error)

    taken = run_steps(
        gradient_step(model, loss, optimizer, scheduler=scheduler, average=average, clip=args.clip),
        steps=steps,
        interval=epoch,
        on_interval=on_interval,
        start=progress,
        checkpoint=run.checkpoint,
        recover=recover,
    )
    best.restore()
    value, error = score(averaged, args.flow, test_pixels, classes)
    parameters = sum(parameter.numel() for parameter in averaged.parameters())
    row = {"step": taken, "test_nats": value, "test_nats_error": error, "validation_nats": -best.loss}
    metrics.write({**row, "trainable_parameters": parameters, "seconds": metrics.seconds})
    save(averaged, args.out / "checkpoint.safetensors", build={"config": {"name": args.flow, "classes": classes}})
    outcome = f"test: {value:.1f} +- {error:.1f} nats an image"
    run.finish(outcome)
    print(f"{outcome}; see {args.out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", choices=list(RECIPES), nargs="?", default="nice", help="(default: %(default)s)")
    add_options(parser, out="runs/mnist_vectors", steps=None)
    parser.add_argument("--conditional", action="store_true", help="given the digit; not of nice")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16 in training; the test is in float32")
    parser.add_argument("--patience", type=COUNT, default=30, help="epochs without progress (default: %(default)s)")
    parser.add_argument("--clip", type=RATE, default=1000.0, help="norm of the gradient (default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, help="width of the hidden layers (default: the published one)")
    for name, kind in {
        "epochs": COUNT,
        "batch-size": COUNT,
        "learning-rate": RATE,
        "weight-decay": RATE,
        "ema": SHARE,
    }.items():
        parser.add_argument(f"--{name}", type=kind, help="(default: that of the recipe)")
    args = parser.parse_args(argv)
    if args.conditional and args.flow == "nice":
        parser.error("argument --conditional: does not apply to nice, which the paper trains on all digits together")
    for name, value in RECIPES[args.flow].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    set_seed(args.seed)
    pyro.enable_validation(False)
    with open_run(args) as run:
        if not run.is_finished:
            train(args, run)


if __name__ == "__main__":
    main()
