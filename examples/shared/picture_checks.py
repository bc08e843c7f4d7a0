"""Says which pictures can be drawn from a checkpoint, and why others cannot."""

from __future__ import annotations

from typing import Any

from pyro_realnvp import Flow, ImageFlow

from shared.image_data import LABELLED
from shared.larger_flow import WHERE_IT_WORKS, depends_on_size
from shared.latent_depths import latent_depths
from shared.options import Config

OF_IMAGES = ("manifold", "temperatures", "compression", "extrapolation", "classes", "interpolation", "attribute")
PICTURES = (*OF_IMAGES, "line")
OF_BOTH = ("temperatures",)  # with and without classes


def classes_of(model: ImageFlow) -> int:
    """Returns the number of classes on which a flow is conditioned, or 0."""
    context = model.flow.transforms.context_shape
    return 0 if context is None else context[0]


def why_not(name: str, model: Any, config: Config) -> str | None:
    """Returns a sentence that says why this picture cannot be drawn from this flow, or None if it can."""
    if name == "line":
        if isinstance(model, Flow) and tuple(model.event_shape) == (2,):
            return None
        return "line is drawn in two dimensions, as from a checkpoint of two_moons.py, but this flow has others."
    if not isinstance(model, ImageFlow):
        return f"{name} is drawn from a flow of images, but this checkpoint is a {type(model).__name__}."
    classes = classes_of(model)
    if name == "classes":
        return (
            None if classes else "classes is drawn from a checkpoint of conditional.py, but this flow has no classes."
        )
    if classes:
        if name in OF_BOTH:
            return None
        return f"{name} is drawn from a flow without classes, but this one has {classes}."
    if name == "compression" and latent_depths(model.flow).max() == 0:
        return (
            "compression needs a multi-scale flow, but this one factors nothing out: all its latents are of one depth."
        )
    if name == "extrapolation" and (found := depends_on_size(model, config)) is not None:
        return f"extrapolation needs weights for any size of image, but {found} depends on it. {WHERE_IT_WORKS}"
    if name == "attribute" and config["data"] not in LABELLED:
        return f"attribute needs images with classes, those of {', '.join(LABELLED)}, but got {config['data']}."
    return None
