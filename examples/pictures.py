"""Draws the pictures that papers of this family show, from a trained flow.

    python examples/pictures.py runs/images/checkpoint.safetensors --show all
    python examples/pictures.py runs/images/checkpoint.safetensors --show attribute --from-class 4 --to-class 9
    python examples/pictures.py runs/conditional/checkpoint.safetensors --show classes
    python examples/pictures.py runs/two_moons/flow.safetensors --show line

The checkpoint is one of images.py (with its checkpoint.json), of conditional.py or of two_moons.py. Writes into --out,
for each name after --show:

    manifold.png        what four test images span, Dinh et al. (2017), equation 19
    temperatures.png    the same latents at temperatures from 0 to 1, Kingma & Dhariwal (2018), figure 8
    compression.png     test images whose latents are kept, from left to right, at fewer depths, the others drawn anew:
                        Gregor et al. (2016); Dinh et al. (2017), appendix; for multi-scale flows
    extrapolation.png   larger samples, --times as high and as wide, by the same weights; Dinh et al. (2017), appendix;
                        for RealNVP, Glow and splines: NICE and Flow++ have weights that belong to positions
    classes.png         samples of every class, from a checkpoint of conditional.py
    interpolation.png   straight lines between the latents of two test images; Kingma & Dhariwal (2018), figure 5
    attribute.png       test images of --from-class moved by multiples of the difference to the mean latent of
                        --to-class; Kingma & Dhariwal (2018), figure 6
    line.png            a straight line between two latents of two_moons.py, decoded

``--show all`` draws all of them that this checkpoint allows, and says why it leaves out the others. From a conditional
flow these are temperatures and classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_realnvp import ImageFlow

from shared import latent_figures as figures
from shared.checkpoints import configuration_beside, load_flow
from shared.image_data import load_images, load_labels
from shared.image_figures import draw_interpolation
from shared.image_models import build
from shared.latents import encode
from shared.option_types import SEED, checkpoint, out_folder, whole
from shared.options import Config, fail, resolve_device, set_seed
from shared.picture_checks import PICTURES, classes_of, why_not

MOST = 500  # images of a class, whose mean latent is taken


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    device = resolve_device(args.device)
    model = load_flow(args.checkpoint, build).to(device)
    config = configuration_of(args.checkpoint, model)
    reasons = {name: why_not(name, model, config) for name in PICTURES}
    wanted = PICTURES if "all" in args.show else tuple(dict.fromkeys(args.show))
    for name in wanted:
        if (reason := reasons[name]) is None:
            continue
        if "all" not in args.show:
            fail(f"{args.checkpoint} has no such picture: {reason}")
        print(f"left out: {reason}")
    names = [name for name in wanted if reasons[name] is None]
    if not names:
        fail(f"No picture of this script can be drawn from {args.checkpoint}, a {type(model).__name__}.")
    draw = drawings(model, config, args)
    for name in names:
        set_seed(args.seed)  # for each, so that a picture does not depend on what else is drawn
        draw[name](args.out / f"{name}.png")
        print(args.out / f"{name}.png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=checkpoint, metavar="CHECKPOINT", help="a trained flow")
    parser.add_argument(
        "--show", nargs="+", choices=(*PICTURES, "all"), required=True, metavar="NAME", help="see above"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--out", type=out_folder, default="runs/pictures", help="folder (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="download the data into --root if it is not there")
    parser.add_argument("--from-class", type=whole(0, 9), default=3, help="of attribute (default: %(default)s)")
    parser.add_argument("--to-class", type=whole(0, 9), default=8, help="of attribute (default: %(default)s)")
    parser.add_argument("--times", type=whole(2), default=2, help="size of extrapolation (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.from_class == args.to_class:
        parser.error(f"argument --to-class: must differ from --from-class, but both are {args.to_class}")
    return args


def configuration_of(path: Path, model: Any) -> Config:
    """Reads the configuration beside a checkpoint of images.py; that of conditional.py follows from the flow."""
    if not isinstance(model, ImageFlow):
        return {}
    if classes_of(model):
        shape = list(model.event_shape)
        return {"image_shape": shape, "event_shape": shape, "pixel_levels": model.levels}
    return configuration_beside(path)


def drawings(model: Any, config: Config, args: argparse.Namespace) -> dict[str, Callable[[Path], None]]:
    """Returns, by its name, what draws a picture into a file; data is read when the first one needs it."""
    if not isinstance(model, ImageFlow):
        return {"line": lambda path: figures.draw_line(path, model)}
    flow, classes, device = model.flow, classes_of(model), next(model.parameters()).device

    @cache
    def splits() -> tuple[Tensor, ...]:
        _, height, width = config["image_shape"]
        size = width if height == width else None  # of the images of a folder
        every = load_images(config["data"], args.root, download=args.download, size=size)
        return tuple(images.to(device) for images in every)

    def attribute(path: Path) -> None:
        (train, _, test), (train_labels, _, test_labels) = splits(), load_labels(config["data"], args.root)
        pair = (args.from_class, args.to_class)
        first, second = (encode(flow, train[train_labels == label][:MOST], config).mean(0) for label in pair)
        figures.draw_attribute(path, flow, config, test[test_labels == pair[0]], (first, second), pair)

    return {
        "manifold": lambda path: draw_interpolation(path, flow, config, splits()[2]),
        "temperatures": lambda path: figures.draw_temperatures(path, flow, config, classes),
        "compression": lambda path: figures.draw_compression(path, flow, config, splits()[2]),
        "extrapolation": lambda path: figures.draw_extrapolation(path, model, config, args.times),
        "classes": lambda path: figures.draw_classes(path, flow, config, classes),
        "interpolation": lambda path: figures.draw_pairs(path, flow, config, splits()[2]),
        "attribute": attribute,
    }


if __name__ == "__main__":
    main()
