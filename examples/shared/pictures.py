"""Grids of images, and figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: the scripts write files and must run without a display

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor


def image_grid(images: Tensor, columns: int, *, gap: int = 1) -> Tensor:
    """Tiles images (N, C, H, W) on the unit scale, row by row, into one (height, width, C) with white gaps."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images.detach().cpu().clamp(0, 1)):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid.permute(1, 2, 0)


def save_grids(path: Path, panels: Mapping[str, Tensor], columns: int | Sequence[int]) -> None:
    """Draws a titled image grid for every entry, side by side; all have as many columns, or each its own number."""
    across = [columns] * len(panels) if isinstance(columns, int) else columns
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.5), squeeze=False, layout="constrained")
    for axis, (title, images), each in zip(axes[0], panels.items(), across, strict=True):
        grid = image_grid(images, each).numpy()
        axis.imshow(grid if grid.shape[-1] == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    save_figure(path, figure)


def save_table(path: Path, images: Tensor, *, title: str, columns: Sequence[str], rows: Sequence[str] = ()) -> None:
    """Draws images (R, K, C, H, W) as a table of R rows and K columns, with a heading for each."""
    count, across, _, height, width = images.shape
    grid = image_grid(images.flatten(0, 1), across).numpy()
    inches = 0.62  # of an image's width
    size = (max(2.4, 0.1 + across * inches), 0.55 + count * inches * height / width)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    axis.imshow(grid if grid.shape[-1] == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    places = [(width + 1) * index + width / 2 - 0.5 for index in range(across)]
    axis.set_xticks(places, columns, fontsize=8)
    axis.set_yticks([(height + 1) * index + height / 2 - 0.5 for index in range(len(rows))], rows, fontsize=8)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure to a file, whose folder is made, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
