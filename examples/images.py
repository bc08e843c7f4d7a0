"""Trains a flow on images, and reports bits per dimension on the test set.

    python examples/images.py                              8 x 8 digits from scikit-learn; minutes on a CPU
    python examples/images.py --data mnist --download      through torchvision
    python examples/images.py --data cifar10 --root DIR --device cuda
    python examples/images.py --objective svi              the same by pyro.infer.SVI
    python examples/images.py --sample runs/images/checkpoint.safetensors
    python examples/images.py --describe --data cifar10    layers, shapes, number of parameters

Writes into --out: metrics.jsonl (a row an epoch; the last has the test figures), samples.png (beside real images),
interpolation.png (equation 19 of Dinh et al., 2017), checkpoint.safetensors and checkpoint.json.

Images whose height or width the scales cannot halve are padded with black pixels at the bottom and on the right, to the
next multiple of 2**(scales - 1). Bits are counted for the padded image, and divided by the number of real pixels.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_realnvp import (
    MLP,
    Bijection,
    Dequantized,
    Flow,
    Logit,
    ResNet,
    StandardLogistic,
    StandardNormal,
    bits_per_dim,
    nice_transforms,
    realnvp_transforms,
)

from common import (
    BestState,
    Config,
    Metrics,
    add_options,
    batches_of,
    cosine_factor,
    ema_of,
    fail,
    fit,
    gradient_update,
    load_checkpoint,
    resolve_device,
    save_checkpoint,
    save_grids,
    set_seed,
)
from image_data import DATA, load_images

# What belongs to a model: enough to rebuild it. What the command line does not set comes from here.
MODELS: dict[str, dict[str, Config]] = {
    "realnvp": {
        "digits": {"scales": 2, "hidden": 32, "blocks": 2, "dropout": 0.2, "alpha": 0.005},
        "mnist": {"scales": 2, "hidden": 32, "blocks": 4, "dropout": 0.0},
        "fashion-mnist": {"scales": 2, "hidden": 32, "blocks": 4, "dropout": 0.0},
        "cifar10": {"scales": 2, "hidden": 64, "blocks": 8, "dropout": 0.0},
    },
    "nice": {
        "digits": {"couplings": 4, "hidden": 256, "blocks": 2, "alpha": 0.005},
        "mnist": {"couplings": 4, "hidden": 1000, "blocks": 5},
        "fashion-mnist": {"couplings": 4, "hidden": 1000, "blocks": 5},
        "cifar10": {"couplings": 4, "hidden": 2000, "blocks": 4},
    },
}
# How it is trained.
TRAINING: dict[str, Config] = {
    "digits": {"epochs": 25, "batch_size": 64, "learning_rate": 2e-3, "ema": 0.998, "patience": 10},
    "mnist": {"epochs": 50, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.999, "patience": 10},
    "fashion-mnist": {"epochs": 50, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.999, "patience": 10},
    "cifar10": {"epochs": 100, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.9995, "patience": 10},
}
ALPHA = 0.05  # of the logit in the paper; at 17 levels a smaller one is better by 0.05 bits/dim


def build(config: Config) -> Flow:
    """The flow that a configuration describes, as a density on the unit cube."""
    shape = tuple(config["event_shape"])
    if config["flow"] == "realnvp":
        net = partial(ResNet, hidden=config["hidden"], blocks=config["blocks"], dropout=config["dropout"])
        base: nn.Module = StandardNormal(shape)
        transforms = realnvp_transforms(shape, scales=config["scales"], net=net)
    elif config["flow"] == "nice":
        net = partial(MLP, hidden=(config["hidden"],) * config["blocks"], activation=nn.ReLU)
        base = StandardLogistic(shape)
        transforms = nice_transforms(shape, couplings=config["couplings"], net=net)
    else:
        raise ValueError(f"unknown flow {config['flow']!r}")
    return Flow(base, [*transforms, Logit(config["alpha"]).inv])


def configuration(args: argparse.Namespace) -> Config:
    """The recipe of this flow for this data, with what the command line says instead."""
    model = {"alpha": ALPHA, **MODELS[args.flow][args.data]}
    for name in ("scales", "couplings", "hidden", "blocks", "dropout", "alpha"):
        value = getattr(args, name)
        if value is not None and name not in model:
            fail(f"--{name} does not apply to --flow {args.flow}.")
        model[name] = model.get(name) if value is None else value
    model = {name: value for name, value in model.items() if value is not None}
    image_shape = DATA[args.data].image_shape
    multiple = 2 ** (model.get("scales", 1) - 1)
    channels, height, width = image_shape
    padded = (channels, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return {
        "flow": args.flow,
        "data": args.data,
        "image_shape": list(image_shape),
        "event_shape": list(padded),
        "levels": DATA[args.data].levels,
        **model,
    }


def pad(images: Tensor, event_shape: list[int]) -> Tensor:
    _, height, width = event_shape
    return nn.functional.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def crop(images: Tensor, image_shape: list[int]) -> Tensor:
    return images[..., : image_shape[1], : image_shape[2]]


def images_of(flow: Flow, config: Config) -> Dequantized:
    """The distribution over integer images."""
    return Dequantized(flow.distribution(), config["levels"])


def test_bits(flow: Flow, config: Config, images: Tensor) -> tuple[float, float]:
    """Bits per real pixel, with the standard error of the mean."""
    flow.eval()
    factor = math.prod(config["event_shape"]) / math.prod(config["image_shape"])
    value, error = bits_per_dim(images_of(flow, config), pad(images, config["event_shape"]), batch_size=256)
    return factor * value, factor * error


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Bits per pixel of the baseline: every pixel independent, with its own histogram (plus one count a level)."""
    counts = torch.stack([(train == level).sum(0) for level in range(levels)]).double() + 1
    log_prob = (counts / counts.sum(0)).log2()
    return -log_prob.gather(0, test.long()).mean().item()


def mle_update(
    flow: Flow,
    config: Config,
    batch: Callable[[], Tensor],
    learning_rate: float,
    factor: Callable[[int], float],
    ema: Any,
) -> Callable[[], Tensor]:
    """Steps of maximum likelihood on the bound of :class:`Dequantized`, in nats an image."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return gradient_update(
        flow, lambda: -images_of(flow, config).log_prob(batch()).mean(), optimizer, scheduler=scheduler, ema=ema
    )


def svi_update(
    flow: Flow,
    config: Config,
    batch: Callable[[], Tensor],
    learning_rate: float,
    factor: Callable[[int], float],
    ema: Any,
) -> Callable[[], float]:
    """The same steps by stochastic variational inference: a model that observes images, and nothing to guide."""

    def model(images: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("images", len(images)), pyro.poutine.scale(scale=1 / len(images)):
            pyro.sample("x", images_of(flow, config), obs=images)

    scheduler = pyro.optim.LambdaLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": learning_rate, "fused": True}, "lr_lambda": factor}
    )
    svi = SVI(model, lambda images: None, scheduler, Trace_ELBO())

    def update() -> float:
        loss = svi.step(batch())
        scheduler.step()
        ema.update_parameters(flow)
        return loss

    return update


def train(args: argparse.Namespace, config: Config, device: torch.device) -> None:
    set_seed(args.seed)
    recipe = {
        **TRAINING[args.data],
        **{k: v for k, v in vars(args).items() if k in TRAINING[args.data] and v is not None},
    }
    train_images, validation_images, test_images = (
        images.to(device) for images in load_images(args.data, args.root, download=args.download)
    )
    flow = build(config).to(device)
    ema = ema_of(flow, recipe["ema"])
    epoch = max(1, len(train_images) // recipe["batch_size"])
    steps = args.steps if args.steps is not None else recipe["epochs"] * epoch
    metrics = Metrics(args.out)

    batches = batches_of(pad(train_images, config["event_shape"]), recipe["batch_size"])

    def batch() -> Tensor:
        flow.train()
        return next(batches)

    make_update = mle_update if args.objective == "mle" else svi_update
    update = make_update(flow, config, batch, recipe["learning_rate"], cosine_factor(steps), ema)
    bits = 1 / (math.prod(config["image_shape"]) * math.log(2))  # a pixel, of one nat an image

    def evaluate() -> dict[str, float]:
        value, error = test_bits(ema.module, config, validation_images)
        return {"validation_bits_per_dim": value, "validation_bits_per_dim_error": error}

    best = BestState(ema.module, recipe["patience"])
    taken = fit(
        lambda: update() * bits,
        steps=steps,
        interval=epoch,
        metrics=metrics,
        evaluate=evaluate,
        stop=lambda row: best.stop(row["validation_bits_per_dim"]),
        unit="bits/dim",
    )
    best.restore()
    flow = ema.module
    value, error = test_bits(flow, config, test_images)
    row = {
        "step": taken,
        "test_bits_per_dim": value,
        "test_bits_per_dim_error": error,
        "histogram_bits_per_dim": histogram_bits(train_images, test_images, config["levels"]),
        "validation_bits_per_dim": best.loss,
        "trainable_parameters": count_parameters(flow),
        "seconds": metrics.seconds,
    }
    metrics.write(row)
    save_checkpoint(args.out / "checkpoint.safetensors", flow, config)
    picture(args.out / "samples.png", flow, config, test_images)
    interpolation(args.out / "interpolation.png", flow, config, validation_images)
    print(
        f"test: {value:.3f} +- {error:.3f} bits/dim (independent pixels: {row['histogram_bits_per_dim']:.3f}); "
        f"pictures and checkpoint in {args.out}"
    )


def unit_scale(images: Tensor, config: Config) -> Tensor:
    """Integer images as they are shown: cropped, between 0 and 1."""
    return crop(images, config["image_shape"]).float() / (config["levels"] - 1)


def picture(path: Path, flow: Flow, config: Config, real: Tensor | None, *, temperature: float = 1.0) -> None:
    flow.eval()
    levels = config["levels"]
    samples = (flow.sample((64,), temperature=temperature) * levels).floor().clamp(0, levels - 1)
    panels = {f"samples, temperature {temperature:g}": unit_scale(samples, config)}
    if real is not None:
        panels = {"test images": unit_scale(real[:64], config), **panels}
    save_grids(path, panels, columns=8)


@torch.no_grad()
def interpolation(path: Path, flow: Flow, config: Config, images: Tensor) -> None:
    """The manifold spanned by four images, Dinh et al. (2017), equation 19; the four are at the corners of a period:

    z = cos(a) (cos(b) z1 + sin(b) z2) + sin(a) (cos(b) z3 + sin(b) z4)
    """
    flow.eval()
    corners = (pad(images[:4], config["event_shape"]).float() + 0.5) / config["levels"]
    z1, z2, z3, z4 = flow.transforms.inv(corners)
    angles = torch.arange(8, device=z1.device) * (2 * math.pi / 8)
    a, b = (angle[..., None, None, None] for angle in torch.meshgrid(angles, angles, indexing="ij"))
    z = a.cos() * (b.cos() * z1 + b.sin() * z2) + a.sin() * (b.cos() * z3 + b.sin() * z4)
    decoded = flow.transforms(z.flatten(0, 1)) * config["levels"]
    shown = unit_scale(decoded.floor().clamp(0, config["levels"] - 1), config)
    save_grids(path, {"equation 19: rows and columns are the two angles": shown}, columns=8)


def count_parameters(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters() if parameter.requires_grad)


def describe(config: Config) -> None:
    """The layers from the data to the latent side. Built without memory, so any size is shown at once."""
    with torch.device("meta"):
        flow = build(config)
    print(json.dumps(config))

    def show(bijection: Bijection, depth: int) -> None:
        parts = [part for part in bijection.children() if isinstance(part, Bijection)]
        shape = tuple(bijection.event_shape) or "any shape"
        name = "  " * depth + type(bijection).__name__
        print(f"{name:<24} {shape!s:<16} {count_parameters(bijection):>12,}")
        for part in parts:
            show(part, depth + 1)

    for layer in reversed(list(flow.transforms)):
        show(layer.inv, 0)
    print(f"trainable parameters: {count_parameters(flow)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/images", steps=None)
    parser.add_argument("--flow", choices=list(MODELS), default="realnvp", help="family (default: %(default)s)")
    parser.add_argument("--data", choices=list(DATA), default="digits", help="data set (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--objective", choices=["mle", "svi"], default="mle", help="(default: %(default)s)")
    parser.add_argument("--sample", type=Path, metavar="CHECKPOINT", help="draw from a trained flow, without training")
    parser.add_argument("--temperature", type=float, default=1.0, help="of --sample (default: %(default)s)")
    parser.add_argument("--describe", action="store_true", help="print the layers and the number of parameters")
    recipe = parser.add_argument_group("recipe (default: that of the flow and the data)")
    for name in ("epochs", "batch-size", "patience", "scales", "couplings", "hidden", "blocks"):
        recipe.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "ema", "dropout", "alpha"):
        recipe.add_argument(f"--{name}", type=float)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.describe:
        describe(configuration(args))
        return
    device = resolve_device(args.device)
    if args.sample is not None:
        set_seed(args.seed)
        flow, config = load_checkpoint(args.sample, build)
        picture(args.out / "samples.png", flow.to(device), config, None, temperature=args.temperature)
        print(f"64 samples in {args.out / 'samples.png'}")
        return
    train(args, configuration(args), device)


if __name__ == "__main__":
    main()
