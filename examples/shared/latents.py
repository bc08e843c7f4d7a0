"""Computes with the latents of image flows: encodes, decodes, and moves between them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_realnvp import Flow

from shared.image_data import crop, pad
from shared.options import Config

BATCH = 256  # images that are encoded at once


@torch.no_grad()
def encode(flow: Flow, images: Tensor, config: Config) -> Tensor:
    """Maps integer images (N, C, H, W) to latents: every pixel stands in the middle of its level.

    Decoding these latents gives back the images exactly.
    """
    cube = (pad(images, config["event_shape"]).float() + 0.5) / config["pixel_levels"]
    return torch.cat([flow.transforms.inv(part) for part in cube.split(BATCH)])


@torch.no_grad()
def decode(flow: Flow, latents: Tensor, config: Config, context: Tensor | None = None) -> Tensor:
    """Maps latents (\\*batch, C, H, W) to integer images, without their padding."""
    transforms = flow.transforms if context is None else flow.transforms.condition(context)
    return crop(to_levels(transforms(latents), config), config["image_shape"])


def to_levels(x: Tensor, config: Config) -> Tensor:
    """Rounds points of the unit cube down to the levels of pixels."""
    levels: int = config["pixel_levels"]
    return (x * levels).floor().clamp(0, levels - 1)


def manifold(corners: Tensor, angles: Tensor) -> Tensor:
    """Spans a manifold by four latents, for two angles each of N: (N, N, ...). Dinh et al. (2017), equation 19.

    z = cos(a) (cos(b) z1 + sin(b) z2) + sin(a) (cos(b) z3 + sin(b) z4)

    The four latents stand at (a, b) = (0, 0), (0, pi/2), (pi/2, 0) and (pi/2, pi/2).
    """
    z1, z2, z3, z4 = corners
    grid = torch.meshgrid(angles, angles, indexing="ij")
    a, b = (angle.reshape(*angle.shape, *[1] * z1.dim()) for angle in grid)
    return a.cos() * (b.cos() * z1 + b.sin() * z2) + a.sin() * (b.cos() * z3 + b.sin() * z4)


def straight_line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolates linearly between latents (N, ...), both ends included: (N, steps, ...)."""
    weight = torch.linspace(0, 1, steps, device=start.device).reshape(steps, *[1] * (start.dim() - 1))
    return torch.lerp(start[:, None], end[:, None], weight)


def moved(latents: Tensor, direction: Tensor, amounts: Tensor) -> Tensor:
    """Moves latents (N, ...) along a direction by every amount (A,): (N, A, ...)."""
    return latents[:, None] + amounts.reshape(-1, *[1] * direction.dim()) * direction


@torch.no_grad()
def cooled(flow: Flow, count: int, temperatures: list[float], context: Tensor | None = None) -> Tensor:
    """Draws latents once, and pulls them to the mean by every temperature: (count, temperatures, C, H, W).

    Kingma & Dhariwal (2018), section 6.

    Args:
        flow: whose base is drawn from.
        count: of the draws; with a context (count, length), one for each.
        temperatures: 1 leaves a draw as it is, 0 makes it the mean of the base.
        context: of every draw.
    """
    base = flow.base(context)
    z = base.sample((count,) if context is None else ())
    mean = base.mean.expand_as(z)
    return torch.stack([mean + temperature * (z - mean) for temperature in temperatures], 1)
