"""Reads the command line of images.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.image_checks import check_mle_only, check_model, flag
from shared.image_data import DATA, data_name
from shared.image_models import MODELS, OPTIONS
from shared.option_types import COUNT, LIMIT, RATE, SHARE, checkpoint
from shared.options import add_options, fail
from shared.processes import Processes
from shared.recipes import RECIPES, recipe_for

SPEED = {
    "compile": "the flow by torch.compile",
    "bf16": "networks in bfloat16 in training; the test is in float32",
    "channels-last": "networks on images with the channels last",
}
RATES = {
    "learning-rate": RATE,
    "ema": SHARE,
    "clip": LIMIT,
    "weight-decay": RATE,
}
SIZE_HELP = "cut the images of a folder to squares of this side (default: as they are)"
MEMORY_HELP = "what backward needs is stored, or computed again: less memory, more time (default: %(default)s)"


def parse(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    """Parses the options; ``description`` is shown by --help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/images", steps=None)
    parser.add_argument("--flow", choices=list(MODELS), default="realnvp", help="family (default: %(default)s)")
    kinds = f"{', '.join(DATA)} or folder:PATH (default: %(default)s)"
    parser.add_argument("--data", type=data_name, default="digits", help=kinds)
    parser.add_argument("--size", type=COUNT, help=SIZE_HELP)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--objective", choices=["mle", "svi"], default="mle", help="(default: %(default)s)")
    parser.add_argument("--memory", choices=["store", "recompute", "rebuild"], default="store", help=MEMORY_HELP)
    tighter = "of the noise of dequantization for a tighter bound on the test images (default: %(default)s)"
    parser.add_argument("--draws", type=COUNT, default=8, help=tighter)
    drawing = "draw from a trained flow, without training"
    parser.add_argument("--sample", type=checkpoint, metavar="CHECKPOINT", help=drawing)
    parser.add_argument("--temperature", type=RATE, default=1.0, help="of --sample (default: %(default)s)")
    parser.add_argument("--describe", action="store_true", help="print the layers and the number of parameters")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--minutes", type=LIMIT, help="stop then; the same command goes on from there (default: never)")
    for name, meaning in SPEED.items():
        speed.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=meaning)
    recipe = parser.add_argument_group("recipe (default: that of the flow and the data)")
    recipe.add_argument("--recipe", choices=list(RECIPES), help="defaults for a GPU; other options come first")
    recipe.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the images"
    )
    for name in ("epochs", "batch-size", "patience", "warmup", "interval"):
        recipe.add_argument(f"--{name}", type=COUNT)
    for name, kind in RATES.items():
        recipe.add_argument(f"--{name}", type=kind)
    for name, kind in OPTIONS.items():
        recipe.add_argument(flag(name), dest=f"model_{name}", type=kind)
    recipe.add_argument("--couplings", type=COUNT, nargs="+")
    recipe.add_argument("--packed", action="store_true", help="checkerboard couplings on boards of half the size")
    recipe.add_argument("--uniform", action="store_true", help="uniform instead of variational dequantization")
    args = parser.parse_args(argv)
    if args.recipe is not None:
        if args.flow not in (flows := RECIPES[args.recipe]):
            parser.error(f"argument --recipe: {args.recipe} is for --flow {', '.join(flows)}, but got {args.flow}")
        parser.set_defaults(**recipe_for(args.recipe, args.flow))
        args = parser.parse_args(argv)
    check_mle_only(parser, args)
    if args.sample is None:
        check_model(parser, args)
    return args


def check_objective(args: argparse.Namespace, processes: Processes) -> None:
    """Ends the script if ``--objective svi`` is to run in several processes."""
    if args.objective == "svi" and processes.size > 1:
        fail(f"--objective svi runs in one process, but got {processes.size}.")
