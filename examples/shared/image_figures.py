"""Draws the pictures of images.py: samples, and the manifold that four images span."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pyro_realnvp import Flow

from shared.image_data import crop
from shared.latents import decode, encode, manifold, to_levels
from shared.options import Config
from shared.pictures import save_grids


def draw_samples(path: Path, flow: Flow, config: Config, real: Tensor | None, *, temperature: float = 1.0) -> None:
    """Draws 64 samples, beside real images if there are any."""
    flow.eval()
    samples = to_levels(flow.sample((64,), temperature=temperature), config)
    panels = {f"samples, temperature {temperature:g}": shown(samples, config)}
    if real is not None:
        panels = {"test images": shown(real[:64], config), **panels}
    save_grids(path, panels, columns=8)


@torch.no_grad()
def draw_interpolation(path: Path, flow: Flow, config: Config, images: Tensor) -> None:
    """Draws the manifold that four images span, Dinh et al. (2017), equation 19.

    The four stand where rows and columns 1 and 3 meet.
    """
    flow.eval()
    corners = encode(flow, images[torch.arange(4) % len(images)], config)
    angles = torch.arange(8, device=corners.device) * (2 * math.pi / 8)
    decoded = decode(flow, manifold(corners, angles).flatten(0, 1), config)
    save_grids(path, {"rows and columns: the angles of equation 19": shown(decoded, config)}, columns=8)


def shown(images: Tensor, config: Config) -> Tensor:
    """Crops integer images and scales them to [0, 1]."""
    return crop(images, config["image_shape"]).float() / (config["pixel_levels"] - 1)
