"""The spline of angles."""

import math

import torch
from torch import Tensor

from .._runtime.construction import recorded
from .._runtime.coordinates import ANGLE
from .spline import Spline


@recorded
class CircularSpline(Spline):
    """A rotation, and a spline from the circle onto itself: of angles in [-pi, pi). Rezende et al. (2020).

        y = S(x + shift modulo 2 pi)

    with S a monotone spline of K quotients of quadratics from [-pi, pi] onto itself, as in :class:`Spline`, whose
    slopes at -pi and pi are equal ("circular splines" of section 2.1 there): on the circle y and log|dy/dx| are
    continuous everywhere. The rotation moves the point that S leaves fixed, so that no point is special. It comes
    first, data -> latent: behind S it would not change the density of a flow whose base is uniform. 3 K + 1 parameters:
    the widths and heights of the bins, the slopes at the K knots (the first is that at -pi), and the shift in radians.
    At parameters of 0 it is the identity.

    Angles may be given in any turn, and y lies in [-pi, pi). A :class:`~pyro_realnvp.Flow` refuses angles outside of
    [-pi, pi], as its density is normalised there.

    Args:
        bins: K.
        min_width: smallest share of the circle that a bin takes, in x.
        min_height: the same in y.
        min_slope: smallest slope at a knot.

    Raises:
        ValueError: if there are fewer than two bins, the smallest widths or heights leave nothing to be learned, or an
            argument is not positive.

    Example:
        >>> g = CircularSpline(bins=4)
        >>> x, params = torch.rand(5, 1), torch.randn(5, g.channels(1))
        >>> y, log_det = g.forward_and_log_det(x, params, dim=-1)
        >>> turned, same = g.forward_and_log_det(x + 2 * torch.pi, params, dim=-1)
        >>> torch.allclose(turned.cos(), y.cos(), atol=1e-4), torch.allclose(same, log_det, atol=1e-4)
        (True, True)
    """

    coordinate = ANGLE

    def __init__(
        self, bins: int = 8, *, min_width: float = 1e-3, min_height: float = 1e-3, min_slope: float = 1e-3
    ) -> None:
        floors = {"min_width": min_width, "min_height": min_height, "min_slope": min_slope}
        super().__init__(bins, ANGLE.low, ANGLE.high, **floors, more=0)
        self.num_parameters += 1  # the shift

    def _at_knots(self, slopes: Tensor, dim: int) -> Tensor:
        return torch.cat([slopes, slopes.narrow(dim, 0, 1)], dim)

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        y, log_det = self.bend(wrap(wrap(x) + self._shift(params, dim)), params, dim, inverse=False)
        return wrap(y), log_det

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        x, log_det = self.bend(wrap(y), params, dim, inverse=True)
        return wrap(x - self._shift(params, dim)), log_det

    def _shift(self, params: Tensor, dim: int) -> Tensor:
        count = params.shape[dim] // self.num_parameters
        # Wrapped first: a sum with a shift of many turns would lose the digits of the angle.
        return wrap(params.narrow(dim, params.shape[dim] - count, count))


def wrap(x: Tensor) -> Tensor:
    """Returns the angle in [-pi, pi) that is x modulo 2 pi, with slope 1; of angles in [-pi, pi) x itself."""
    turned = torch.remainder(x + math.pi, 2 * math.pi) - math.pi
    turned = torch.where(turned < math.pi, turned, turned - 2 * math.pi)  # where it was rounded
    return torch.where((x >= -math.pi) & (x < math.pi), x, turned)
