"""The learned scales and shifts of a guide."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._runtime.construction import recorded
from ..bijections.coupling import Elementwise
from ..bijections.transformers import Affine


@recorded
class LearnedAffine(Elementwise):
    """Shifts and scales every element: y = shift + exp(log_scale) x, log|det dy/dx| = sum log_scale.

    Args:
        event_shape: (D,); ``theta`` of (2 D,) is the shift and then log_scale, which start at 0.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, Affine(nn.Identity()))

    def forward_and_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also maps the score at x to that at y, as :meth:`AffineCouplings.forward_and_score` does."""
        shift, log_scale = self.theta.chunk(2)  # type: ignore[union-attr]
        scale = log_scale.exp()
        y = torch.addcmul(shift, x, scale)
        return y, self._per_event(log_scale.detach().sum(), x), score / scale.detach()
