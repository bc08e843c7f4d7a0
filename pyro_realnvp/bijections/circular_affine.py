"""The affine map of angles."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._runtime.construction import recorded
from .._runtime.coordinates import ANGLE
from .circular import wrap
from .transformers import SoftClipLogScale, Transformer, is_flat


@recorded
class CircularAffine(Transformer):
    """A rotation, and a scaling that keeps the circle: of angles in [-pi, pi), as :class:`Affine` of real numbers.

        y = 2 arctan(exp(log_scale) tan((x + shift) / 2)),
        log dy/dx = log_scale - log(cos((x + shift) / 2)^2 + exp(2 log_scale) sin((x + shift) / 2)^2)

    The circle is projected to the real line, scaled there, and projected back ("non-compact projection" in section 2.1
    of Rezende et al., 2020): around 0 it is a scaling, and it is smooth everywhere. Two parameters: shift, in radians,
    and raw, with log_scale a bounded function of raw. At parameters of 0 it is the identity.

    Args:
        log_scale: maps the raw network output to log_scale, elementwise; any callable, finite and with a finite
            gradient for every finite input. ``SoftClipLogScale()`` by default.

    Example:
        >>> g = CircularAffine()
        >>> x, params = torch.rand(5, 1), torch.randn(5, 2)
        >>> y, log_det = g.forward_and_log_det(x, params, dim=-1)
        >>> back, opposite = g.inverse_and_log_det(y, params, dim=-1)
        >>> torch.allclose(back, x, atol=1e-5), torch.allclose(opposite, -log_det, atol=1e-5)
        (True, True)
    """

    num_parameters = 2
    closed_form = True
    coordinate = ANGLE

    def __init__(self, log_scale: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.log_scale = SoftClipLogScale() if log_scale is None else log_scale

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        y, log_det = scale_angle(wrap(wrap(x) + wrap(shift)), self.log_scale(raw))
        return wrap(y), log_det

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        x, log_det = scale_angle(wrap(y), -self.log_scale(raw))
        return wrap(x - wrap(shift)), log_det

    def at_bound(self, params: Tensor, dim: int) -> Tensor | None:
        return is_flat(self.log_scale, params.chunk(2, dim)[1])


def scale_angle(x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Computes 2 arctan(exp(log_scale) tan(x / 2)) of x in [-pi, pi), and the logarithm of its slope."""
    sine, cosine = log_scale.exp() * (x / 2).sin(), (x / 2).cos()
    return 2 * torch.atan2(sine, cosine), log_scale - (cosine.square() + sine.square()).log()
