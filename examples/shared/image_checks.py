"""Checks options of images.py and conditional.py that depend on each other."""

from __future__ import annotations

import argparse

from shared.image_models import MODELS, OPTIONS, configuration, recipe_of

HEADS = 4  # of the attention in the networks of Flow++
HALVINGS = {"realnvp": "scales", "glow": "levels"}
MLE_ONLY = ("compile", "bf16", "clip", "weight_decay")


def flag(name: str) -> str:
    """Returns the option that sets a size of a model: ``--steps`` are gradient steps, so Glow's have another name."""
    return "--level-steps" if name == "steps" else f"--{name}"


def check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the script if the options of the model do not go with ``--flow``, or with the size of the images."""
    sizes = MODELS[args.flow][recipe_of(args.data)]
    given = {flag(name): getattr(args, f"model_{name}") is not None for name in OPTIONS if name not in sizes}
    given["--alpha"] = False  # every flow has one
    given["--couplings"] = args.couplings is not None and "couplings" not in sizes
    given["--packed"] = args.packed and args.flow != "realnvp"
    for option, is_given in given.items():
        if is_given:
            parser.error(f"argument {option}: does not apply to --flow {args.flow}")
    if args.uniform and "dequantization" not in sizes:
        parser.error(f"argument --uniform: --flow {args.flow} has uniform dequantization anyway")
    if args.couplings is not None:
        counts, numbers = ((1, 3), "one or three numbers") if args.flow == "flowpp" else ((1,), "one number")
        if len(args.couplings) not in counts:
            parser.error(f"argument --couplings: must be {numbers} for --flow {args.flow}, but got {args.couplings}")
    check_hidden(parser, args.flow, args.model_hidden)
    check_halvings(parser, args)


def check_hidden(parser: argparse.ArgumentParser, flow: str, hidden: int | None) -> None:
    """Ends the script if the heads of attention cannot share the feature maps."""
    if flow == "flowpp" and hidden is not None and hidden % HEADS:
        parser.error(
            f"argument --hidden: must be divisible by {HEADS}, the heads of attention of --flow flowpp, "
            f"but got {hidden}"
        )


def check_halvings(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the script if the images, padded to a power of 2, cannot be halved as often as there are scales."""
    if args.flow not in HALVINGS:
        return
    name, config = HALVINGS[args.flow], configuration(args)
    _, height, width = config["image_shape"]
    most = (min(height, width) - 1).bit_length()
    if config[name] > most:
        parser.error(
            f"argument --{name}: must be at most {most} for images of {height} x {width}, but got {config[name]}"
        )


def check_mle_only(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the script if an option is given that ``--objective svi`` does not know."""
    for name in MLE_ONLY:
        if args.objective == "svi" and getattr(args, name):
            parser.error(f"argument --{name.replace('_', '-')}: applies to --objective mle alone, but got svi")
    if args.objective == "svi" and args.on_nan != "stop":
        parser.error("argument --on-nan: skip applies to --objective mle alone, but got svi")
