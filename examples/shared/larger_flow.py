"""Builds a flow for larger images from the convolutions of a trained one."""

from __future__ import annotations

import torch

from pyro_realnvp import ImageFlow

from shared.image_models import build
from shared.options import Config

WHERE_IT_WORKS = (
    "It works for RealNVP, Glow and splines, whose weights are convolutions and numbers for each channel; not for "
    "NICE, whose networks are dense, nor for Flow++, which learns a position of every pixel."
)


def larger_configuration(config: Config, times: int) -> Config:
    """Returns the configuration of a flow whose images are this many times as high and as wide."""
    sizes = {}
    for name in ("image_shape", "event_shape"):
        channels, height, width = config[name]
        sizes[name] = [channels, times * height, times * width]
    return {**config, **sizes}


def depends_on_size(model: ImageFlow, config: Config) -> str | None:
    """Returns the name of the first parameter whose shape depends on the size of the images, or None.

    Besides parameters, these are the statistics of batch normalization, which are those of channels.
    """
    with torch.device("meta"):  # shapes alone, without memory
        larger = build(larger_configuration(config, 2)).state_dict()
    state = model.state_dict()
    return next((name for name in state if name not in larger or state[name].shape != larger[name].shape), None)


def enlarge(model: ImageFlow, config: Config, times: int) -> ImageFlow:
    """Builds the flow of larger images with all weights of a trained one, in evaluation mode.

    Every convolution does in more places what it has learned, and the statistics of each channel stay as they are.
    Dinh et al. (2017), appendix, "Extrapolation".

    Raises:
        ValueError: if a parameter belongs to a position, so that there is none for the new ones.
    """
    name = depends_on_size(model, config)
    if name is not None:
        shape = tuple(model.state_dict()[name].shape)
        raise ValueError(f"The shape {shape} of {name} depends on the size of the images. {WHERE_IT_WORKS}")
    larger = build(larger_configuration(config, times))
    larger.load_state_dict(model.state_dict())
    return larger.to(next(model.parameters()).device).eval()
