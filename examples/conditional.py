"""Learns a class-conditional flow p(x | y) on the digits of scikit-learn: samples of every class, and p(y | x).

    python examples/conditional.py                    RealNVP; minutes on a CPU
    python examples/conditional.py --flow glow

The one-hot label is the context of every coupling and of the base distribution. A label is predicted by Bayes' rule
with equal priors, argmax_y log p(x | y), where log p is the importance-weighted bound over --draws dequantizations.

Writes into --out: metrics.jsonl (the last row has test_accuracy and test_bits_per_dim), samples.png (a row a class),
and checkpoint.safetensors, for pyro_realnvp.load.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_realnvp import ImageFlow, fit, save

from shared.image_checks import check_hidden
from shared.image_data import DATA, load_labelled_digits
from shared.image_models import MODELS, build, training_of
from shared.option_types import COUNT
from shared.options import Config, add_options, resolve_device, set_seed
from shared.pictures import save_grids
from shared.run import Run, open_run

CLASSES = 10


def one_hot(labels: Tensor) -> Tensor:
    """Turns integers (N,) into (N, 10)."""
    wrong = (labels < 0) | (labels >= CLASSES)
    if wrong.any():
        raise ValueError(f"A label is one of 0 to {CLASSES - 1}, but got {labels[wrong][0].item()}.")
    return torch.nn.functional.one_hot(labels, CLASSES).float()


@torch.no_grad()
def class_log_probs(model: ImageFlow, images: Tensor, *, draws: int) -> Tensor:
    """Computes log p(x | y) of every image and class, (N, 10), in nats."""
    every = torch.eye(CLASSES, device=images.device)
    parts = []
    for batch in images.split(64):
        context = every.expand(len(batch), CLASSES, CLASSES)
        parts.append(model.distribution(context, num_samples=draws).log_prob(batch[:, None]))
    return torch.cat(parts)


def accuracy(log_probs: Tensor, labels: Tensor) -> float:
    return (log_probs.argmax(1) == labels).double().mean().item()


def bits(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Computes -log2 p(x | y) / D of every image with its own label."""
    shape = DATA["digits"].image_shape
    return -log_probs.gather(1, labels[:, None])[:, 0].double() / (math.prod(shape) * math.log(2))


def train(args: argparse.Namespace, config: Config, device: torch.device, run: Run) -> None:
    recipe = training_of(args.flow, "digits")
    splits = [(images.to(device), labels.to(device)) for images, labels in load_labelled_digits()]
    (train_images, train_labels), (validation_images, validation_labels), (test_images, test_labels) = splits
    model = build(config).to(device)
    epoch = len(train_images) // recipe["batch_size"]

    def write(row: Mapping[str, float]) -> None:
        log_probs = class_log_probs(model, validation_images, draws=1)  # fit lets the model hold the average meanwhile
        figures = {
            "validation_bits_per_dim": row["validation"],
            "validation_accuracy": accuracy(log_probs, validation_labels),
        }
        run.metrics.write({"step": row["step"], "loss": row["loss"], **figures, "seconds": run.metrics.seconds})

    run.checkpoint.track(metrics=run.metrics)

    history = fit(
        model,
        (train_images, one_hot(train_labels)),
        validation=(validation_images, one_hot(validation_labels)),
        steps=(recipe["epochs"] if args.epochs is None else args.epochs) * epoch if args.steps is None else args.steps,
        batch_size=recipe["batch_size"],
        learning_rate=recipe["learning_rate"],
        weight_decay=0.0,
        patience=recipe["patience"],
        interval=epoch,
        ema=recipe["ema"],
        clip=recipe["clip"],
        callback=write,
        checkpoint=run.checkpoint,
        recoveries=run.recoveries,
    )
    log_probs = class_log_probs(model, test_images, draws=args.draws)
    of_label = bits(log_probs, test_labels)
    row = {
        "step": int(history.step[-1]),
        "test_accuracy": accuracy(log_probs, test_labels),
        "test_bits_per_dim": of_label.mean().item(),
        "test_bits_per_dim_error": of_label.std().item() / math.sqrt(len(of_label)),
        "seconds": run.metrics.seconds,
    }
    run.metrics.write(row)
    save(model, args.out / "checkpoint.safetensors")
    labels = torch.arange(CLASSES, device=device).repeat_interleave(CLASSES)
    samples = model.sample(context=one_hot(labels))
    save_grids(args.out / "samples.png", {"samples, a row a class": samples.float() / 16}, columns=CLASSES)
    outcome = f"test: accuracy {row['test_accuracy']:.3f}, {row['test_bits_per_dim']:.3f} bits/dim"
    run.finish(outcome)
    print(f"{outcome}; see {args.out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/conditional", steps=None)
    parser.add_argument("--flow", choices=["realnvp", "glow", "flowpp"], default="realnvp", help="(default: realnvp)")
    parser.add_argument("--epochs", type=COUNT, help="(default: that of the recipe)")
    parser.add_argument("--draws", type=COUNT, default=10, help="dequantizations a test image (default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, help="feature maps of the networks")
    args = parser.parse_args(argv)
    check_hidden(parser, args.flow, args.hidden)
    model = {**MODELS[args.flow]["digits"], **({} if args.hidden is None else {"hidden": args.hidden})}
    model.pop("dequantization", None)  # uniform, so that every class is judged with the same noise
    config = {
        "flow": args.flow,
        "data": "digits",
        "classes": CLASSES,
        "event_shape": list(DATA["digits"].image_shape),
        "pixel_levels": DATA["digits"].levels,
        **model,
    }
    device = resolve_device(args.device)
    set_seed(args.seed)
    with open_run(args) as run:
        if not run.is_finished:
            train(args, config, device, run)


if __name__ == "__main__":
    main()
