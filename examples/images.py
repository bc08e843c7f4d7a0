"""Trains a flow on images, and reports bits per dimension on the test set.

    python examples/images.py                              8 x 8 digits from scikit-learn; minutes on a CPU
    python examples/images.py --data mnist --download      through torchvision
    python examples/images.py --flow glow                  or nice, flowpp
    python examples/images.py --data cifar10 --root DIR --device cuda
    python examples/images.py --data folder:PATH           images of one size; any sizes with --size 64
    python examples/images.py --objective svi              the same by pyro.infer.SVI
    python examples/images.py --sample runs/images/checkpoint.safetensors
    python examples/images.py --describe --data cifar10    layers, shapes, number of parameters
    torchrun --nproc-per-node 8 examples/images.py ...     on several devices
    python examples/images.py --recipe cifar10             on one GPU, in runs of 9 minutes, to be repeated

Writes into --out: metrics.jsonl (a row an epoch; the last has the test figures), samples.png (beside real images),
interpolation.png (equation 19 of Dinh et al., 2017), checkpoint.safetensors (for pyro_realnvp.load) and checkpoint.json
(shape of the images and of the padded ones, for --sample).

Images whose height or width the scales cannot halve are padded with black pixels at the bottom and on the right, to the
next multiple of 2**(scales - 1). Bits are counted for the padded image, and divided by the number of real pixels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_realnvp import ImageFlow, bits_per_dim, rebuild, recompute, save, synchronize
from pyro_realnvp.training.average import exponential_average
from pyro_realnvp.training.divergence import DivergedError, Recovery
from pyro_realnvp.training.loop import Batches, BestState, Progress, cosine_schedule, run_steps
from pyro_realnvp.training.resume import Stateful

from shared.checkpoints import configuration_beside, load_flow
from shared.image_data import load_images, pad
from shared.image_figures import draw_interpolation, draw_samples
from shared.image_models import build, configuration, training_of
from shared.image_options import check_objective, parse
from shared.image_training import flipped, mle_step, optimizer_of, svi_step
from shared.options import Config, resolve_device, set_seed
from shared.processes import Processes, check_batch, start
from shared.run import Run, open_run

# Options that must be the same when a run goes on, besides those of the flow and its recipe.
KEPT = ("seed", "steps", "objective", "memory", "compile", "bf16", "channels_last", "flips")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv, description=__doc__)
    if args.describe:
        describe(configuration(args))
    elif args.sample is not None:
        sample(args)
    else:
        with start(args.device) as processes:
            check_objective(args, processes)
            config = configuration(args)
            recipe = training_of(args.flow, args.data)
            recipe |= {name: value for name, value in vars(args).items() if name in recipe and value is not None}
            check_batch(recipe["batch_size"], processes)
            if args.compile:  # kept with the run, so that the next process does not begin with minutes of compilation
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.out.resolve() / "compiled"))
            kept = {name: getattr(args, name) for name in KEPT}
            with open_run(args, {**config, **recipe, **kept}, processes) as run:
                if not run.is_finished:
                    train(args, config, recipe, processes, run)


# ---------------------------------------------------------------------------------------------------- training


def train(args: argparse.Namespace, config: Config, recipe: Config, processes: Processes, run: Run) -> None:
    """Trains, from the start or from where an earlier process was stopped; then tests, and writes the files."""
    set_seed(args.seed)
    if args.compile:
        pyro.enable_validation(False)  # it looks at values, which one graph cannot
    with processes.first_of_node():
        splits = load_images(args.data, args.root, download=args.download, size=args.size)
    train_images, validation_images, test_images = (images.to(processes.device) for images in splits)

    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = synchronize(build(config).to(processes.device, memory_format=layout))
    if args.memory != "store":
        model = {"recompute": recompute, "rebuild": rebuild}[args.memory](model)
    model.train()
    average = exponential_average(model, recipe["ema"])
    averaged = average.module

    order = processes.order(args.seed)
    batches = Batches(train_images, recipe["batch_size"], order)
    if run.checkpoint.saved is None:
        first = torch.randperm(len(train_images), generator=order)[:256].to(processes.device)
        model.initialize(processes.part(pad(train_images[first], config["event_shape"])))

    last: list[Tensor] = []  # the batch of the last step, for a diagnosis

    def batch() -> Tensor:
        images = processes.part(next(batches))
        last[:] = [pad(flipped(images) if args.flips else images, config["event_shape"])]
        return last[0]

    epoch = max(1, len(train_images) // recipe["batch_size"])
    steps = args.steps if args.steps is not None else recipe["epochs"] * epoch
    factor = cosine_schedule(steps, warmup=recipe["warmup"])
    precision = torch.autocast(processes.device.type, torch.bfloat16, enabled=args.bf16)
    best, progress, metrics = BestState(averaged, recipe["patience"]), Progress(), run.metrics
    parts: dict[str, Stateful] = {"model": model, "average": average, "best": best, "batches": batches}
    parts |= {"progress": progress, "metrics": metrics}
    recovery = None
    if args.objective == "svi":
        step: Callable[[], Any]
        step, parts["optimizer"] = svi_step(model, batch, recipe["learning_rate"], factor, average)
    else:
        optimizer = optimizer_of(model, recipe["learning_rate"], recipe["weight_decay"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        modules = {"model": model, "average": average}
        recovery = Recovery(optimizer, scheduler, times=run.recoveries, progress=progress, **modules)
        parts |= {"optimizer": optimizer, "scheduler": scheduler, "recovery": recovery}
        options = {"clip": recipe["clip"], "precision": precision, "compiled": args.compile}
        step = mle_step(model, batch, optimizer, scheduler, average, **options)

    run.checkpoint.track(**parts)

    def on_interval(taken: int, loss: float) -> bool:
        with precision:
            value, error = score(averaged, config, validation_images, processes)
        figures = {"validation_bits_per_dim": value, "validation_bits_per_dim_error": error}
        metrics.write({"step": taken, "loss": loss, **figures, "seconds": metrics.seconds})
        if recovery is not None:
            recovery.remember()
        return best.stop(value)

    def recover(error: DivergedError) -> bool:
        with precision:
            error.diagnose(model, *last)
        return recovery is not None and recovery(error)

    bits = 1 / (math.prod(config["image_shape"]) * math.log(2))  # a pixel, of one nat an image
    taken = run_steps(
        lambda: processes.mean(step()) * bits,
        steps=steps,
        interval=recipe["interval"] or epoch,
        on_interval=on_interval,
        unit="bits/dim",
        start=progress,
        checkpoint=run.checkpoint,
        recover=recover,
        bar=processes.is_first,
    )
    best.restore()
    value, error = score(averaged, config, test_images, processes)
    tight, tight_error = score(averaged, config, test_images, processes, draws=args.draws)
    if not processes.is_first:
        return
    row = {
        "step": taken,
        "test_bits_per_dim": value,
        "test_bits_per_dim_error": error,
        f"test_bits_per_dim_of_{args.draws}_draws": tight,
        f"test_bits_per_dim_of_{args.draws}_draws_error": tight_error,
        "histogram_bits_per_dim": histogram_bits(train_images, test_images, config["pixel_levels"]),
        "validation_bits_per_dim": best.loss,
        "trainable_parameters": count_parameters(averaged),
        "seconds": metrics.seconds,
    }
    metrics.write(row)
    save(averaged, args.out / "checkpoint.safetensors")
    (args.out / "checkpoint.json").write_text(json.dumps(config, indent=2) + "\n")
    draw_samples(args.out / "samples.png", averaged.flow, config, test_images)
    draw_interpolation(args.out / "interpolation.png", averaged.flow, config, validation_images)
    run.finish(outcome(row))
    print(f"{outcome(row)}; pictures and checkpoint in {args.out}")


# ------------------------------------------------------------------------------------------------------ scores


def score(
    model: ImageFlow, config: Config, images: Tensor, processes: Processes, *, draws: int = 1
) -> tuple[float, float]:
    """Computes bits per real pixel and their standard error; every process scores its part of the images.

    With more draws of the noise of dequantization, the importance-weighted bound is tighter. Ho et al. (2019), eq. 16.
    """
    model.eval()
    factor = math.prod(config["event_shape"]) / math.prod(config["image_shape"])
    part = processes.part(pad(images, config["event_shape"]))
    own = bits_per_dim(model.distribution(num_samples=draws), part, batch_size=256)
    value, error = processes.estimate(*own, len(part))
    return factor * value, factor * error


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Computes bits per pixel of the baseline: independent pixels, each with its histogram plus one count a level."""
    counts = torch.stack([(train == level).sum(0) for level in range(levels)]).double() + 1
    log_prob = (counts / counts.sum(0)).log2()
    return -log_prob.gather(0, test.long()).mean().item()


def outcome(row: Mapping[str, float]) -> str:
    value, error = row["test_bits_per_dim"], row["test_bits_per_dim_error"]
    return f"test: {value:.3f} +- {error:.3f} bits/dim (independent pixels: {row['histogram_bits_per_dim']:.3f})"


# ------------------------------------------------------------------------------------- other uses of the script


def sample(args: argparse.Namespace) -> None:
    """Draws from a trained flow."""
    device = resolve_device(args.device)
    set_seed(args.seed)
    flow = load_flow(args.sample, build).flow.to(device)
    config = configuration_beside(args.sample)
    picture = args.out / f"sample-of-{args.sample.stem}.png"
    draw_samples(picture, flow, config, None, temperature=args.temperature)
    print(f"64 samples in {picture}")


def describe(config: Config) -> None:
    """Prints configuration and layers; the model takes no memory, so that any size can be described."""
    with torch.device("meta"):
        model = build(config)
    print(json.dumps(config))
    print(model.summary())
    print(f"trainable parameters: {count_parameters(model)}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


if __name__ == "__main__":
    # On a CPU the far tails of a mixture are denormal numbers, with which Flow++ soon trains at half the speed.
    torch.set_flush_denormal(True)
    main()
