"""A class-conditional flow p(x | y) on the digits that come with scikit-learn: samples of every class, and p(y | x).

    python examples/conditional.py                    RealNVP; minutes on a CPU
    python examples/conditional.py --flow glow

The one-hot label is the context of every coupling and of the base distribution. A label is predicted by Bayes' rule
with equal priors, argmax_y log p(x | y), where log p is the importance-weighted bound over --draws dequantizations.

Writes into --out: metrics.jsonl (the last row has test_accuracy and test_bits_per_dim), samples.png (a row a class),
checkpoint.safetensors and checkpoint.json.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from common import (
    Batches,
    BestState,
    Config,
    Metrics,
    add_options,
    cosine_factor,
    ema_of,
    fit,
    gradient_update,
    resolve_device,
    save_checkpoint,
    save_grids,
    set_seed,
)
from image_data import DATA, load_labelled_digits
from image_models import MODELS, ImageModel, build, training_of

CLASSES = 10


def one_hot(labels: Tensor) -> Tensor:
    """(N,) integers to (N, 10)."""
    wrong = (labels < 0) | (labels >= CLASSES)
    if wrong.any():
        raise ValueError(f"A label is one of 0 to {CLASSES - 1}, but got {labels[wrong][0].item()}.")
    return torch.nn.functional.one_hot(labels, CLASSES).float()


@torch.no_grad()
def class_log_probs(model: ImageModel, images: Tensor, *, draws: int) -> Tensor:
    """log p(x | y) of every image and class, (N, 10), in nats."""
    model.eval()
    every = torch.eye(CLASSES, device=images.device)
    parts = []
    for batch in images.split(64):
        context = every.expand(len(batch), CLASSES, CLASSES)
        parts.append(model.distribution(context, num_samples=draws).log_prob(batch[:, None]))
    return torch.cat(parts)


def accuracy(log_probs: Tensor, labels: Tensor) -> float:
    return (log_probs.argmax(1) == labels).double().mean().item()


def bits(log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log2 p(x | y) / D of every image with its own label."""
    shape = DATA["digits"].image_shape
    return -log_probs.gather(1, labels[:, None])[:, 0].double() / (math.prod(shape) * math.log(2))


def train(args: argparse.Namespace, config: Config, device: torch.device) -> None:
    set_seed(args.seed)
    recipe = training_of(args.flow, "digits")
    splits = [(images.to(device), labels.to(device)) for images, labels in load_labelled_digits()]
    (train_images, train_labels), validation, test = splits
    model = build(config).to(device)
    ema = ema_of(model, recipe["ema"])
    epoch = len(train_images) // recipe["batch_size"]
    steps = (recipe["epochs"] if args.epochs is None else args.epochs) * epoch if args.steps is None else args.steps
    metrics = Metrics(args.out)
    indices = Batches(torch.arange(len(train_images), device=device), recipe["batch_size"])
    first = next(indices)
    model.initialize(train_images[first], one_hot(train_labels[first]))

    def loss() -> Tensor:
        model.train()
        index = next(indices)
        return -model(train_images[index], one_hot(train_labels[index])).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe["learning_rate"], fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_factor(steps))
    update = gradient_update(model, loss, optimizer, scheduler=scheduler, ema=ema)

    def evaluate() -> dict[str, float]:
        images, labels = validation
        log_probs = class_log_probs(ema.module, images, draws=1)
        return {
            "validation_bits_per_dim": bits(log_probs, labels).mean().item(),
            "validation_accuracy": accuracy(log_probs, labels),
        }

    best = BestState(ema.module, recipe["patience"])
    nats_to_bits = 1 / (math.prod(config["event_shape"]) * math.log(2))
    taken = fit(
        lambda: update() * nats_to_bits,
        steps=steps,
        interval=epoch,
        metrics=metrics,
        evaluate=evaluate,
        stop=lambda row: best.stop(row["validation_bits_per_dim"]),
        unit="bits/dim",
    )
    best.restore()
    log_probs = class_log_probs(ema.module, test[0], draws=args.draws)
    of_label = bits(log_probs, test[1])
    row = {
        "step": taken,
        "test_accuracy": accuracy(log_probs, test[1]),
        "test_bits_per_dim": of_label.mean().item(),
        "test_bits_per_dim_error": of_label.std().item() / math.sqrt(len(of_label)),
        "seconds": metrics.seconds,
    }
    metrics.write(row)
    save_checkpoint(args.out / "checkpoint.safetensors", ema.module, config)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(CLASSES)
    samples = ema.module.distribution(one_hot(labels)).sample()
    save_grids(args.out / "samples.png", {"samples, a row a class": samples.float() / 16}, columns=CLASSES)
    print(f"test: accuracy {row['test_accuracy']:.3f}, {row['test_bits_per_dim']:.3f} bits/dim; see {args.out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/conditional", steps=None)
    parser.add_argument("--flow", choices=["realnvp", "glow", "flowpp"], default="realnvp", help="(default: realnvp)")
    parser.add_argument("--epochs", type=int, help="(default: that of the recipe)")
    parser.add_argument("--draws", type=int, default=10, help="dequantizations a test image (default: %(default)s)")
    parser.add_argument("--hidden", type=int, help="feature maps of the networks")
    args = parser.parse_args(argv)
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
    train(args, config, resolve_device(args.device))


if __name__ == "__main__":
    main()
