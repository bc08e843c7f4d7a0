"""Reads the command line of images.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.image_data import DATA
from shared.image_models import MODELS, OPTIONS
from shared.options import add_options, fail
from shared.processes import Processes
from shared.recipes import RECIPES, recipe_for

SPEED = {
    "compile": "the flow by torch.compile",
    "bf16": "networks in bfloat16 in training; the test is in float32",
    "channels-last": "networks on images with the channels last",
}
MLE_ONLY = ("compile", "bf16", "clip", "weight_decay")
SIZE_HELP = "cut the images of a folder to squares of this side (default: as they are)"
MEMORY_HELP = "what backward needs is stored, or computed again: less memory, more time (default: %(default)s)"


def parse(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    """Parses the options; ``description`` is shown by --help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/images", steps=None)
    parser.add_argument("--flow", choices=list(MODELS), default="realnvp", help="family (default: %(default)s)")
    parser.add_argument("--data", default="digits", help=f"{', '.join(DATA)} or folder:PATH (default: %(default)s)")
    parser.add_argument("--size", type=int, help=SIZE_HELP)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--objective", choices=["mle", "svi"], default="mle", help="(default: %(default)s)")
    parser.add_argument("--memory", choices=["store", "recompute", "rebuild"], default="store", help=MEMORY_HELP)
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
    if args.size is not None and args.size < 1:
        fail(f"--size must be at least 1, but got {args.size}.")
    return args


def check_objective(args: argparse.Namespace, processes: Processes) -> None:
    """Ends the script if ``--objective svi`` does not go with the other options."""
    if args.objective != "svi":
        return
    if processes.size > 1:
        fail(f"--objective svi runs in one process, but got {processes.size}.")
    if args.on_nan != "stop":
        fail("--on-nan skip applies to --objective mle alone, but got svi.")
    if plain := [name for name in MLE_ONLY if getattr(args, name)]:
        fail(f"--{plain[0].replace('_', '-')} applies to --objective mle alone, but got svi.")
