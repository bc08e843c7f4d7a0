"""Names of version 0.1 that will go in the next version: each works as before, and says what takes its place."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ._runtime.construction import recorded
from .bijections.bijection import Bijection
from .bijections.context import EmbedContext
from .bijections.linear import FixedAffine
from .bijections.multiscale import Halves, Sandwich, Squeeze, SqueezeCheckerboard, SqueezeColumns
from .bijections.transformers import SigmoidLogScale, SoftClipLogScale, TanhLogScale
from .inference.importance import importance_sample


def _squeezed(bijection: Bijection, *, ordered: bool = False) -> Sandwich:
    """Applies a bijection of squeezed images to images; a context map is squeezed too."""
    shape = bijection.event_shape
    if len(shape) != 3 or shape[0] % 4:
        raise ValueError(
            f"Squeezed needs a bijection of images with a multiple of 4 channels, but got events of {tuple(shape)}."
        )
    context = bijection.context_shape
    squeeze = Squeeze(_unsqueezed(context)) if context is not None and len(context) == 3 else None
    return Sandwich(Squeeze(_unsqueezed(shape), ordered=ordered), bijection, context=squeeze)


def _unsqueezed(shape: torch.Size) -> tuple[int, int, int]:
    return shape[0] // 4, 2 * shape[1], 2 * shape[2]


@recorded
class SoftplusScale(nn.Module):
    """log_scale = log(floor + softplus(r + c)), r = raw / (1 + |raw| / bound), c such that the scale is 1 at raw = 0.

    Linear in raw for large scales where an exponential overshoots, and bounded by about ``bound``.
    """

    def __init__(self, floor: float = 1e-3, bound: float = 100.0) -> None:
        super().__init__()
        self.floor, self.bound = floor, bound
        self.offset = float(torch.tensor(1.0 - floor, dtype=torch.float64, device="cpu").expm1().log())

    def forward(self, raw: Tensor) -> Tensor:
        raw = raw / (1 + raw.abs() / self.bound)
        return (self.floor + softplus(raw + self.offset)).log()


def _importance_resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    num_draws: int,
    parallel: bool = False,
    batch_size: int | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draws from a guide, weighs, smooths the weights and resamples."""
    weighted = importance_sample(
        model, guide, *args, num_samples=num_draws, parallel=parallel, batch_size=batch_size, **kwargs
    )
    return weighted.smoothed().resample(num_samples)


DEPRECATED: Mapping[str, tuple[Any, str]] = {
    "Arranged": (Sandwich, "Sandwich"),
    "Columns": (SqueezeColumns, "SqueezeColumns"),
    "Embedded": (EmbedContext, "EmbedContext"),
    "Parallel": (Halves, "Halves"),
    "SigmoidScale": (SigmoidLogScale, "SigmoidLogScale"),
    "SoftClipScale": (SoftClipLogScale, "SoftClipLogScale"),
    "SoftplusScale": (SoftplusScale, "SoftClipLogScale"),
    "Squares": (SqueezeCheckerboard, "SqueezeCheckerboard"),
    "Squeezed": (_squeezed, "Sandwich(Squeeze(event_shape), bijection)"),
    "Standardized": (FixedAffine, "FixedAffine"),
    "TanhScale": (TanhLogScale, "TanhLogScale"),
    "importance_resample": (_importance_resample, "importance_sample(...).smoothed().resample(num_samples)"),
}


def deprecated(name: str) -> Any:
    """Looks up a name of version 0.1, with a DeprecationWarning; an AttributeError for other names."""
    if name not in DEPRECATED:
        raise AttributeError(f"module 'pyro_realnvp' has no attribute {name!r}")
    value, new = DEPRECATED[name]
    warnings.warn(f"pyro_realnvp.{name} is deprecated, use {new}.", DeprecationWarning, stacklevel=3)
    return value
