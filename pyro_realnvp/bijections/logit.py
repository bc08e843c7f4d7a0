"""The logit of pixels."""

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from .._runtime.construction import recorded
from .bijection import Bijection


@recorded
class Logit(Bijection):
    """Maps pixels to the real line: y = logit(alpha + (1 - 2 alpha) x), elementwise. Dinh et al. (2017), section 4.1.

        log|dy/dx| = softplus(y) + softplus(-y) + log(1 - 2 alpha)

    This is the form of the released code; the paper prints alpha + (1 - alpha) x. Its domain is a little wider than
    the unit interval, [-a, 1 + a] with a = alpha / (1 - 2 alpha): sampled pixels can fall there.

    Args:
        alpha: in [0, 1/2); keeps the logit finite at 0 and 1.

    Raises:
        ValueError: if alpha lies outside.

    Example:
        >>> f = Logit(0.05)
        >>> pixels = torch.tensor([0.0, 0.5, 1.0])
        >>> [round(y, 4) for y in f(pixels).tolist()]
        [-2.9444, 0.0, 2.9444]
        >>> torch.allclose(f.inv(f(pixels)), pixels, atol=1e-6)
        True
    """

    def __init__(self, alpha: float = 0.05) -> None:
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit needs alpha in [0, 0.5), but got {alpha}.")
        super().__init__(())
        self.alpha = float(alpha)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def domain(self) -> constraints.Constraint:
        margin = self.alpha / (1 - 2 * self.alpha)
        return constraints.interval(-margin, 1 + margin)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self._log_det(y)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        margin = self.alpha / (1 - 2 * self.alpha)
        # Clamped, since rounding can leave the domain.
        x = ((y.sigmoid() - self.alpha) / (1 - 2 * self.alpha)).clamp(-margin, 1 + margin)
        return x, -self._log_det(y)

    def _log_det(self, y: Tensor) -> Tensor:
        return softplus(y) + softplus(-y) + math.log(1 - 2 * self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
