"""Sets of options of images.py under one name: ``--recipe cifar10``. What is given on the command line comes first.

The architectures are the papers' (image_models.py). So are, where the papers or their code say it: batch size, learning
rate and its warm-up, the norm that gradients are clipped to, flips of the images, decay of the magnitudes of weight
normalization, and the average of Flow++. Theirs are trained for days at a constant rate; to be done in the steps given
here, the learning rate falls to 0 along a cosine. The steps of RealNVP are meant for 25 minutes of one H100 or H200.
"""

from __future__ import annotations

from shared.options import Config

# One run is shorter than ten minutes: the same command again goes on.
GPU: Config = {"minutes": 9.0, "compile": True, "bf16": True, "channels_last": True, "patience": 1000}
CIFAR10: dict[str, Config] = {
    # Dinh et al. (2017), section 4.1, and their code: Adam at 1e-3 without a schedule, horizontal flips
    "realnvp": {
        "batch_size": 64,
        "learning_rate": 1e-3,
        "clip": 100.0,
        "weight_decay": 5e-5,
        "flips": True,
        "warmup": 100,
        "ema": 0.9995,
        "steps": 70_000,  # 100 epochs
        "interval": 3_515,
    },
    # Kingma & Dhariwal (2018), and their code: a warm-up of ten epochs of 50,000 images, no clipping, no flips
    "glow": {
        "batch_size": 512,
        "learning_rate": 1e-3,
        "flips": False,
        "warmup": 976,
        "ema": 0.9995,
        "steps": 22_000,  # 250 epochs
        "interval": 880,
    },
    # Ho et al. (2019), and their code
    "flowpp": {
        "batch_size": 64,
        "learning_rate": 3e-4,
        "clip": 1.0,
        "flips": False,
        "warmup": 2_000,
        "ema": 0.999,
        "steps": 140_000,  # 200 epochs
        "interval": 7_030,
    },
}
RECIPES = {"cifar10": {flow: {"data": "cifar10", **GPU, **own} for flow, own in CIFAR10.items()}}


def recipe_for(name: str, flow: str) -> Config:
    """Returns the defaults that a recipe sets for one of its flows."""
    return RECIPES[name][flow]
