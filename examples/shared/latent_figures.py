"""Draws what becomes of an image as its latents are changed, and samples: the pictures of pictures.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from pyro_realnvp import Flow, ImageFlow

from shared.image_figures import shown
from shared.larger_flow import enlarge, larger_configuration
from shared.latent_depths import drawn_anew, latent_depths
from shared.latents import cooled, decode, encode, moved, straight_line
from shared.options import Config
from shared.pictures import save_figure, save_grids, save_table

TEMPERATURES = [0.0, 0.25, 0.5, 0.7, 0.9, 1.0]
ROWS = 8
AMOUNTS = torch.linspace(-1, 1.5, 11)  # of the difference between two classes


def draw_temperatures(path: Path, flow: Flow, config: Config, classes: int) -> None:
    """Draws samples at several temperatures, a row a latent, or a row a class if there are any."""
    context = torch.eye(classes, device=next(flow.parameters()).device) if classes else None
    latents = cooled(flow, classes or ROWS, TEMPERATURES, context)
    images = decode(flow, latents, config, None if context is None else context[:, None])
    columns = [f"{temperature:g}" for temperature in TEMPERATURES]
    rows = [str(label) for label in range(classes)]
    save_table(path, shown(images, config), title="temperature", columns=columns, rows=rows)


def draw_compression(path: Path, flow: Flow, config: Config, images: Tensor) -> None:
    """Draws images whose latents of the first depths are drawn anew, one column more of them each."""
    depths = latent_depths(flow)
    z = encode(flow, images[:ROWS], config)
    fresh = flow.base(None).sample(z.shape[:1])
    below = range(int(depths.max()) + 2)
    changed = torch.stack([drawn_anew(z, depths, depth, fresh) for depth in below], 1)
    kept = [f"{100 * (depths >= depth).float().mean().item():.3g} %" for depth in below]
    save_table(path, shown(decode(flow, changed, config), config), title="latents kept", columns=kept)


def draw_extrapolation(path: Path, model: ImageFlow, config: Config, times: int) -> None:
    """Draws samples of the size of the training images, and larger ones by the same weights."""
    larger, wide = enlarge(model, config, times), larger_configuration(config, times)
    panels = {}
    for flow, shape, count in ((model.flow, config, 64), (larger.flow, wide, 16)):
        title = f"samples of {shape['image_shape'][1]} x {shape['image_shape'][2]} pixels"
        latents = cooled(flow, count, [1.0])[:, 0]
        panels[title] = shown(decode(flow, latents, shape), shape)
    save_grids(path, panels, columns=[8, 4])


def draw_classes(path: Path, flow: Flow, config: Config, classes: int, columns: int = 10) -> None:
    """Draws samples of a conditional flow, a row a class."""
    context = torch.eye(classes, device=next(flow.parameters()).device).repeat_interleave(columns, 0)
    images = decode(flow, cooled(flow, len(context), [1.0], context)[:, 0], config, context)
    table = shown(images, config).unflatten(0, (classes, columns))
    rows = [str(label) for label in range(classes)]
    save_table(path, table, title="samples given a class", columns=[""] * columns, rows=rows)


def draw_pairs(path: Path, flow: Flow, config: Config, images: Tensor, steps: int = 11) -> None:
    """Draws straight lines between the latents of images, a row a pair; both ends are images."""
    rows = min(ROWS, max(1, len(images) // 2))
    starts, ends = images[torch.arange(2 * rows) % len(images)].chunk(2)
    latents = straight_line(encode(flow, starts, config), encode(flow, ends, config), steps)
    columns = ["image", *[""] * (steps - 2), "image"]
    table = shown(decode(flow, latents, config), config)
    save_table(path, table, title="straight lines between latents", columns=columns)


def draw_attribute(
    path: Path, flow: Flow, config: Config, images: Tensor, means: tuple[Tensor, Tensor], classes: tuple[int, int]
) -> None:
    """Draws images of one class moved along the difference between the mean latents of two classes."""
    z = encode(flow, images[:ROWS], config)
    latents = moved(z, means[1] - means[0], AMOUNTS.to(z.device))
    columns = ["image" if amount == 0 else f"{amount:g}" for amount in AMOUNTS.tolist()]
    title = "multiples of (mean latent of class {1} - mean latent of class {0})".format(*classes)
    save_table(path, shown(decode(flow, latents, config), config), title=title, columns=columns)


@torch.no_grad()
def draw_line(path: Path, flow: Flow, count: int = 3000) -> None:
    """Draws the straight line from the latent (-1, 1) to (0.5, 1), and the same line decoded, among samples."""
    z = flow.base(None).sample((count,))
    ends = torch.tensor([[-1.0, 1.0], [0.5, 1.0]], device=z.device)
    line = straight_line(ends[:1], ends[1:], 31)[0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    panels = ("latents, and a straight line", z, line), ("decoded", flow.transforms(z), flow.transforms(line))
    for axis, (title, cloud, path_of_line) in zip(axes, panels, strict=True):
        axis.scatter(*cloud.T.cpu().numpy(), c="lightgray", s=3, linewidths=0)
        axis.plot(*path_of_line.T.cpu().numpy(), "o-", color="black", markersize=3, linewidth=1)
        axis.set(title=title, aspect="equal")
    save_figure(path, figure)
