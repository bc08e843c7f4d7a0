"""Defines the flows of images.py: sizes and training for each data set, and the Module of a configuration."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

from torch import nn

from pyro_realnvp import (
    MLP,
    ConvNet,
    DiagonalNormal,
    Flow,
    GatedAttention,
    GatedConvs,
    ImageFlow,
    Logit,
    ResNet,
    StandardLogistic,
    StandardNormal,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    spline_transforms,
)

from shared.image_data import FOLDER, describe_data
from shared.option_types import COUNT, SHARE, real
from shared.options import Config

ALPHA = 0.05  # of the logit in the RealNVP paper; at 17 levels a smaller one is better by 0.05 bits/dim
# What belongs to a model: enough to rebuild it. What the command line does not set comes from here. For CIFAR-10 these
# are the papers'; glow there has no logit in the paper's code, which alpha = 0.05 replaces.
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
    "glow": {
        "digits": {"levels": 2, "steps": 8, "hidden": 64, "alpha": 0.005},
        "mnist": {"levels": 2, "steps": 16, "hidden": 128},
        "fashion-mnist": {"levels": 2, "steps": 16, "hidden": 128},
        "cifar10": {"levels": 3, "steps": 32, "hidden": 512},
    },
    "spline": {
        "digits": {"levels": 2, "steps": 8, "hidden": 64, "bins": 8, "alpha": 0.005},
        "mnist": {"levels": 2, "steps": 12, "hidden": 128, "bins": 8},
        "fashion-mnist": {"levels": 2, "steps": 12, "hidden": 128, "bins": 8},
        "cifar10": {"levels": 3, "steps": 7, "hidden": 96, "bins": 8},
    },
    "flowpp": {
        "digits": {"couplings": [2, 1, 1], "components": 4, "hidden": 32, "blocks": 1, "dropout": 0.2, "alpha": 0.005},
        "mnist": {"couplings": [4, 2, 3], "components": 8, "hidden": 48, "blocks": 3, "dropout": 0.2},
        "fashion-mnist": {"couplings": [4, 2, 3], "components": 8, "hidden": 48, "blocks": 3, "dropout": 0.2},
        "cifar10": {"couplings": [4, 2, 3], "components": 32, "hidden": 96, "blocks": 10, "dropout": 0.2},
    },
}
for _models in MODELS.values():
    _models["svhn"] = _models["folder"] = _models["celeba"] = _models["cifar10"]
MODELS["realnvp"]["celeba"] = {"scales": 5, "hidden": 32, "blocks": 2, "dropout": 0.0}
MODELS["glow"]["celeba"] = {"levels": 4, "steps": 48, "hidden": 512}
for _name in MODELS["flowpp"]:
    MODELS["flowpp"][_name]["dequantization"] = {"couplings": 4, "blocks": 2, "context": 32}
MODELS["flowpp"]["digits"]["dequantization"] = {"couplings": 2, "blocks": 1, "context": 16}

TRAINING: dict[str, Config] = {
    "digits": {"epochs": 25, "batch_size": 64, "learning_rate": 2e-3, "ema": 0.998, "patience": 10},
    "mnist": {"epochs": 50, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.999, "patience": 10},
    "fashion-mnist": {"epochs": 50, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.999, "patience": 10},
    "cifar10": {"epochs": 100, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.9995, "patience": 10},
}
for _name in ("svhn", "celeba", "folder"):
    TRAINING[_name] = TRAINING["cifar10"]
OPTIONS = {  # of a model, on the command line
    "scales": COUNT,
    "levels": COUNT,
    "steps": COUNT,
    "components": COUNT,
    "bins": COUNT,
    "hidden": COUNT,
    "blocks": COUNT,
    "dropout": SHARE,
    "alpha": real(at_least=0, below=0.5),  # at 1/2, the logit would map every pixel to 0
}


def configuration(args: argparse.Namespace) -> Config:
    """Merges the sizes of this flow for this data with those of the command line, which parse has checked."""
    data = describe_data(args.data, args.size)
    model = {"alpha": ALPHA, **MODELS[args.flow][recipe_of(args.data)]}
    for name in OPTIONS:
        value = getattr(args, f"model_{name}")
        model[name] = model.get(name) if value is None else value
    if args.couplings is not None:
        model["couplings"] = args.couplings if isinstance(model["couplings"], list) else args.couplings[0]
    if args.uniform:
        del model["dequantization"]
    if args.packed:
        model["packed"] = True
    model = {name: value for name, value in model.items() if value is not None}
    image_shape = data.image_shape
    multiple = _multiple(args.flow, model)
    channels, height, width = image_shape
    padded = (channels, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return {
        "flow": args.flow,
        "data": args.data,
        "image_shape": list(image_shape),
        "event_shape": list(padded),
        "pixel_levels": data.levels,
        **model,
    }


def recipe_of(data: str) -> str:
    """Returns the name under which the recipes of a data set stand."""
    return "folder" if data.startswith(FOLDER) else data


def training_of(flow: str, data: str) -> Config:
    """Returns the settings with which this flow is trained on this data."""
    name = recipe_of(data)
    if name == "digits":
        own = {"epochs": 60} if flow in ("glow", "spline", "flowpp") else {}
    else:  # batch, learning rate and average of the papers, where they differ from RealNVP's
        own = {"glow": {"batch_size": 512}, "flowpp": {"learning_rate": 3e-4, "ema": 0.999}}.get(flow, {})
    return {"warmup": 100, "clip": math.inf, "weight_decay": 0.0, "interval": None, **TRAINING[name], **own}


def _multiple(flow: str, model: Config) -> int:
    """Returns the number by which height and width must be divisible."""
    if flow == "flowpp":
        return 4 if len(model["couplings"]) == 3 else 2
    halvings = {
        "realnvp": model.get("scales", 1) - (not model.get("packed")),
        "glow": model.get("levels", 0),
        "spline": model.get("levels", 0),
        "nice": 0,
    }
    return 2 ** halvings[flow]


def build(config: Config) -> ImageFlow:
    """Builds the model that a configuration describes."""
    shape = tuple(config["event_shape"])
    classes = config.get("classes", 0)  # of one-hot labels, the context of a conditional model
    base: nn.Module = DiagonalNormal(shape, context_dim=classes) if classes else StandardNormal(shape)
    if config["flow"] == "nice":
        base = StandardLogistic(shape)
    dequantizer = None
    net: Any
    if config["flow"] == "realnvp":
        net = partial(ResNet, hidden=config["hidden"], blocks=config["blocks"], dropout=config["dropout"])
        transforms = realnvp_transforms(
            shape, scales=config["scales"], net=net, packed=config.get("packed", False), context_dim=classes
        )
    elif config["flow"] == "nice":
        net = partial(MLP, hidden=(config["hidden"],) * config["blocks"], activation=nn.ReLU)
        transforms = nice_transforms(shape, couplings=config["couplings"], net=net, context_dim=classes)
    elif config["flow"] == "glow":
        net = partial(ConvNet, hidden=config["hidden"])
        transforms = glow_transforms(
            shape, levels=config["levels"], steps=config["steps"], net=net, context_dim=classes
        )
    elif config["flow"] == "spline":
        transforms = spline_transforms(
            shape,
            levels=config["levels"],
            steps=config["steps"],
            bins=config["bins"],
            net=partial(ConvNet, hidden=config["hidden"]),
            context_dim=classes,
        )
    elif config["flow"] == "flowpp":
        net = partial(GatedAttention, hidden=config["hidden"], dropout=config["dropout"])
        transforms = flowpp_transforms(
            shape,
            couplings=config["couplings"],
            components=config["components"],
            net=partial(net, blocks=config["blocks"]),
            context_dim=classes,
        )
        noise = config.get("dequantization")
        if noise is not None:
            noise_transforms = flowpp_dequantizer(
                shape,
                couplings=noise["couplings"],
                components=config["components"],
                net=partial(net, blocks=noise["blocks"]),
                embedding=partial(GatedConvs, hidden=noise["context"], dropout=config["dropout"]),
            )
            dequantizer = Flow(StandardNormal(shape), noise_transforms)
    else:
        raise ValueError(f"unknown flow {config['flow']!r}")
    return ImageFlow(Flow(base, [*transforms, Logit(config["alpha"]).inv]), config["pixel_levels"], dequantizer)
