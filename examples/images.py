"""Trains a flow on images, and reports bits per dimension on the test set.

    python examples/images.py                              8 x 8 digits from scikit-learn; minutes on a CPU
    python examples/images.py --data mnist --download      through torchvision
    python examples/images.py --flow glow                  or nice, flowpp
    python examples/images.py --data cifar10 --root DIR --device cuda
    python examples/images.py --data folder:PATH --size 64
    python examples/images.py --objective svi              the same by pyro.infer.SVI
    python examples/images.py --sample runs/images/checkpoint.safetensors
    python examples/images.py --describe --data cifar10    layers, shapes, number of parameters
    torchrun --nproc-per-node 8 examples/images.py ...     on several devices
    python examples/images.py --recipe cifar10             on one GPU, in runs of 9 minutes, to be repeated

Writes into --out: metrics.jsonl (a row an epoch; the last has the test figures), samples.png (beside real images),
interpolation.png (equation 19 of Dinh et al., 2017), checkpoint.safetensors and checkpoint.json.

Images whose height or width the scales cannot halve are padded with black pixels at the bottom and on the right, to the
next multiple of 2**(scales - 1). Bits are counted for the padded image, and divided by the number of real pixels.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_realnvp import (
    Bijection,
    Flow,
    bits_per_dim,
    rebuild,
    recompute,
    synchronize,
)

from common import (
    Batches,
    BestState,
    Config,
    Metrics,
    Progress,
    add_options,
    cosine_factor,
    ema_of,
    fail,
    fit,
    load_checkpoint,
    resolve_device,
    save_checkpoint,
    save_grids,
    set_seed,
)
from image_data import DATA, load_images
from image_models import MODELS, OPTIONS, ImageModel, build, configuration, training_of
from image_training import flipped, mle_update, optimizer_of, svi_update
from ranks import Ranks, check_batch, start
from recipes import RECIPES, recipe_for
from resume import Attributes, RandomNumbers, Resumable, Stateful

MEMORY: dict[str, Callable[[ImageModel], ImageModel]] = {
    "store": lambda model: model,
    "recompute": recompute,
    "rebuild": rebuild,
}
SPEED = {
    "compile": "the flow by torch.compile",
    "bf16": "networks in bfloat16 in training; the test is in float32",
    "channels-last": "networks on images with the channels last",
}
MLE_ONLY = ("minutes", "compile", "bf16", "clip", "weight_decay")
MEMORY_HELP = "what backward needs is stored, or computed again: less memory, more time (default: %(default)s)"


def pad(images: Tensor, event_shape: list[int]) -> Tensor:
    _, height, width = event_shape
    return nn.functional.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def crop(images: Tensor, image_shape: list[int]) -> Tensor:
    return images[..., : image_shape[1], : image_shape[2]]


def test_bits(model: ImageModel, config: Config, images: Tensor, ranks: Ranks) -> tuple[float, float]:
    """Bits per real pixel, with the standard error of the mean; every process scores its part of the images."""
    model.eval()
    factor = math.prod(config["event_shape"]) / math.prod(config["image_shape"])
    part = ranks.part(pad(images, config["event_shape"]))
    value, error = ranks.estimate(*bits_per_dim(model.distribution(), part, batch_size=256), len(part))
    return factor * value, factor * error


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Bits per pixel of the baseline: every pixel independent, with its own histogram (plus one count a level)."""
    counts = torch.stack([(train == level).sum(0) for level in range(levels)]).double() + 1
    log_prob = (counts / counts.sum(0)).log2()
    return -log_prob.gather(0, test.long()).mean().item()


def train(args: argparse.Namespace, config: Config, ranks: Ranks) -> None:
    set_seed(args.seed)
    if args.compile:
        pyro.enable_validation(False)  # which looks at values, as one graph cannot
    recipe = training_of(args.flow, args.data)
    recipe |= {name: value for name, value in vars(args).items() if name in recipe and value is not None}
    check_batch(recipe["batch_size"], ranks)
    run = None
    if args.minutes is not None:
        kept = ("seed", "steps", "memory", "compile", "bf16", "channels_last", "flips")
        options = {**config, **recipe, **{name: getattr(args, name) for name in kept}}
        run = Resumable(args.out, args.minutes, options, ranks)
    before = None if run is None else run.load()
    if before is not None and "finished" in before:
        if ranks.is_first:
            print(f"{args.out} holds a finished run: {outcome(before['finished'])}; give another --out to start anew.")
        return
    with ranks.first_of_node():
        splits = load_images(args.data, args.root, download=args.download, size=args.size)
    train_images, validation_images, test_images = (images.to(ranks.device) for images in splits)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = MEMORY[args.memory](synchronize(build(config).to(ranks.device, memory_format=layout)))
    model.train()
    ema = ema_of(model, recipe["ema"])
    epoch = max(1, len(train_images) // recipe["batch_size"])
    steps = args.steps if args.steps is not None else recipe["epochs"] * epoch
    reached = {} if before is None else {"step": before["progress"]["step"], "seconds": before["seconds"]}
    metrics = Metrics(args.out, quiet=not ranks.is_first, **reached)
    precision = torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.bf16)

    order = ranks.order(args.seed)
    batches = Batches(train_images, recipe["batch_size"], order)
    if before is None:
        first = torch.randperm(len(train_images), generator=order)[:256].to(ranks.device)
        model.initialize(ranks.part(pad(train_images[first], config["event_shape"])))

    def batch() -> Tensor:
        images = ranks.part(next(batches))
        return pad(flipped(images) if args.flips else images, config["event_shape"])

    factor = cosine_factor(steps, warmup=recipe["warmup"])
    parts: dict[str, Stateful] = {"model": model, "ema": ema}
    if args.objective == "svi":
        update: Callable[[], Any] = svi_update(model, batch, recipe["learning_rate"], factor, ema)
    else:
        optimizer = optimizer_of(model, recipe["learning_rate"], recipe["weight_decay"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        parts |= {"optimizer": optimizer, "scheduler": scheduler}
        options = {"max_norm": recipe["clip"], "precision": precision, "compiled": args.compile}
        update = mle_update(model, batch, optimizer, scheduler, ema, **options)
    bits = 1 / (math.prod(config["image_shape"]) * math.log(2))  # a pixel, of one nat an image

    def evaluate() -> dict[str, float]:
        with precision:
            value, error = test_bits(ema.module, config, validation_images, ranks)
        return {"validation_bits_per_dim": value, "validation_bits_per_dim_error": error}

    best, progress = BestState(ema.module, recipe["patience"]), Progress()
    parts |= {"best": Attributes(best, "loss", "waited", "state"), "batches": Attributes(batches, "order", "used")}
    parts["progress"] = Attributes(progress, "step", "total", "count")
    random = RandomNumbers(ranks.device, order)
    if run is not None and before is not None:
        run.restore(before, parts, random)
    taken = fit(
        lambda: ranks.mean(update()) * bits,
        steps=steps,
        interval=recipe["interval"] or epoch,
        metrics=metrics,
        evaluate=evaluate,
        stop=lambda row: best.stop(row["validation_bits_per_dim"]),
        unit="bits/dim",
        progress=progress,
        pause=None if run is None else run.is_due,
    )
    if run is not None and run.paused:
        run.save(parts, random, seconds=metrics.seconds)
        if ranks.is_first:
            print(f"paused after {taken} of {steps} steps; the same command goes on from {run.path}")
        return
    best.restore()
    model = ema.module
    value, error = test_bits(model, config, test_images, ranks)
    if not ranks.is_first:
        return
    row = {
        "step": taken,
        "test_bits_per_dim": value,
        "test_bits_per_dim_error": error,
        "histogram_bits_per_dim": histogram_bits(train_images, test_images, config["pixel_levels"]),
        "validation_bits_per_dim": best.loss,
        "trainable_parameters": count_parameters(model),
        "seconds": metrics.seconds,
    }
    metrics.write(row)
    save_checkpoint(args.out / "checkpoint.safetensors", model, config)
    if run is not None:
        run.finish(row)
    picture(args.out / "samples.png", model.flow, config, test_images)
    interpolation(args.out / "interpolation.png", model.flow, config, validation_images)
    print(f"{outcome(row)}; pictures and checkpoint in {args.out}")


def outcome(row: Mapping[str, float]) -> str:
    value, error = row["test_bits_per_dim"], row["test_bits_per_dim_error"]
    return f"test: {value:.3f} +- {error:.3f} bits/dim (independent pixels: {row['histogram_bits_per_dim']:.3f})"


def unit_scale(images: Tensor, config: Config) -> Tensor:
    """Integer images as they are shown: cropped, between 0 and 1."""
    return crop(images, config["image_shape"]).float() / (config["pixel_levels"] - 1)


def picture(path: Path, flow: Flow, config: Config, real: Tensor | None, *, temperature: float = 1.0) -> None:
    flow.eval()
    levels = config["pixel_levels"]
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
    four = images[torch.arange(4) % len(images)]
    corners = (pad(four, config["event_shape"]).float() + 0.5) / config["pixel_levels"]
    z1, z2, z3, z4 = flow.transforms.inv(corners)
    angles = torch.arange(8, device=z1.device) * (2 * math.pi / 8)
    a, b = (angle[..., None, None, None] for angle in torch.meshgrid(angles, angles, indexing="ij"))
    z = a.cos() * (b.cos() * z1 + b.sin() * z2) + a.sin() * (b.cos() * z3 + b.sin() * z4)
    decoded = flow.transforms(z.flatten(0, 1)) * config["pixel_levels"]
    shown = unit_scale(decoded.floor().clamp(0, config["pixel_levels"] - 1), config)
    save_grids(path, {"equation 19: rows and columns are the two angles": shown}, columns=8)


def count_parameters(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters() if parameter.requires_grad)


def describe(config: Config) -> None:
    """The layers from the data to the latent side. Built without memory, so any size is shown at once."""
    with torch.device("meta"):
        model = build(config)
    print(json.dumps(config))

    def show(bijection: Bijection, depth: int) -> None:
        parts = [part for part in bijection.children() if isinstance(part, Bijection)]
        shape = tuple(bijection.event_shape) or "any shape"
        name = "  " * depth + type(bijection).__name__
        print(f"{name:<24} {shape!s:<16} {count_parameters(bijection):>12,}")
        for part in parts:
            show(part, depth + 1)

    for name, flow in model.named_children():
        print(f"{name}:")
        for layer in reversed(list(flow.transforms)):
            show(layer.inv, 1)
    print(f"trainable parameters: {count_parameters(model)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/images", steps=None)
    parser.add_argument("--flow", choices=list(MODELS), default="realnvp", help="family (default: %(default)s)")
    parser.add_argument("--data", default="digits", help=f"{', '.join(DATA)} or folder:PATH (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of the images of a folder (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--objective", choices=["mle", "svi"], default="mle", help="(default: %(default)s)")
    parser.add_argument("--memory", choices=list(MEMORY), default="store", help=MEMORY_HELP)
    parser.add_argument("--sample", type=Path, metavar="CHECKPOINT", help="draw from a trained flow, without training")
    parser.add_argument("--temperature", type=float, default=1.0, help="of --sample (default: %(default)s)")
    parser.add_argument("--describe", action="store_true", help="print the layers and the number of parameters")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--minutes", type=float, help="stop then; the same command goes on from there (default: never)")
    for name, meaning in SPEED.items():
        speed.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=meaning)
    recipe = parser.add_argument_group("recipe (default: that of the flow and the data)")
    recipe.add_argument("--recipe", choices=list(RECIPES), help="defaults for a GPU; other options come first")
    recipe.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the images"
    )
    for name in ("epochs", "batch-size", "patience", "warmup", "interval"):
        recipe.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "ema", "clip", "weight-decay"):
        recipe.add_argument(f"--{name}", type=float)
    for name, kind in OPTIONS.items():
        # --steps are gradient steps; those of a level of Glow need another name
        recipe.add_argument(f"--{'level-steps' if name == 'steps' else name}", dest=f"model_{name}", type=kind)
    recipe.add_argument("--couplings", type=int, nargs="+")
    recipe.add_argument("--packed", action="store_true", help="checkerboard couplings on boards of half the size")
    recipe.add_argument("--uniform", action="store_true", help="uniform instead of variational dequantization")
    args = parser.parse_args(argv)
    if args.recipe is not None:
        parser.set_defaults(**recipe_for(args.recipe, args.flow))
        args = parser.parse_args(argv)
    if args.minutes is not None and args.minutes <= 0:
        fail(f"--minutes must be positive, but got {args.minutes:g}.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.describe:
        describe(configuration(args))
        return
    if args.sample is not None:
        device = resolve_device(args.device)
        set_seed(args.seed)
        model, config = load_checkpoint(args.sample, build)
        picture(args.out / "samples.png", model.flow.to(device), config, None, temperature=args.temperature)
        print(f"64 samples in {args.out / 'samples.png'}")
        return
    with start(args.device) as ranks:
        if ranks.size > 1 and args.objective == "svi":
            fail(f"--objective svi runs in one process, but got {ranks.size}.")
        if args.objective == "svi" and (plain := [name for name in MLE_ONLY if getattr(args, name)]):
            fail(f"--{plain[0].replace('_', '-')} applies to --objective mle alone, but got svi.")
        train(args, configuration(args), ranks)


if __name__ == "__main__":
    main()
