"""Draws the pictures of images.py: samples, and the manifold that four images span."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pyro_realnvp import Flow

from shared.image_data import crop, pad
from shared.options import Config
from shared.pictures import save_grids


def draw_samples(path: Path, flow: Flow, config: Config, real: Tensor | None, *, temperature: float = 1.0) -> None:
    """Draws 64 samples, beside real images if there are any."""
    flow.eval()
    samples = _integers(flow.sample((64,), temperature=temperature), config)
    panels = {f"samples, temperature {temperature:g}": _shown(samples, config)}
    if real is not None:
        panels = {"test images": _shown(real[:64], config), **panels}
    save_grids(path, panels, columns=8)


@torch.no_grad()
def draw_interpolation(path: Path, flow: Flow, config: Config, images: Tensor) -> None:
    """Draws the manifold that four images span, Dinh et al. (2017), equation 19; they are the corners of a period.

    z = cos(a) (cos(b) z1 + sin(b) z2) + sin(a) (cos(b) z3 + sin(b) z4)
    """
    flow.eval()
    four = images[torch.arange(4) % len(images)]
    corners = (pad(four, config["event_shape"]).float() + 0.5) / config["pixel_levels"]
    z1, z2, z3, z4 = flow.transforms.inv(corners)
    angles = torch.arange(8, device=z1.device) * (2 * math.pi / 8)
    a, b = (angle[..., None, None, None] for angle in torch.meshgrid(angles, angles, indexing="ij"))
    z = a.cos() * (b.cos() * z1 + b.sin() * z2) + a.sin() * (b.cos() * z3 + b.sin() * z4)
    decoded = _integers(flow.transforms(z.flatten(0, 1)), config)
    save_grids(path, {"equation 19: rows and columns are the two angles": _shown(decoded, config)}, columns=8)


def _integers(x: Tensor, config: Config) -> Tensor:
    """Rounds points of the unit cube down to pixels."""
    return (x * config["pixel_levels"]).floor().clamp(0, config["pixel_levels"] - 1)


def _shown(images: Tensor, config: Config) -> Tensor:
    """Crops integer images and scales them to [0, 1]."""
    return crop(images, config["image_shape"]).float() / (config["pixel_levels"] - 1)
