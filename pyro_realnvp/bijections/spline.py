"""The rational-quadratic spline transformer of neural spline flows.

Pyro's own function, ``pyro.distributions.transforms.spline._monotonic_rational_spline``, is as accurate. It is private,
its slope at the ends is 0.999 instead of 1, so that the tails do not meet it with a continuous derivative, and it wants
the parameters of an element last, where networks on images return them first.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from .._runtime.checks import count_of, positive
from .._runtime.construction import recorded
from .transformers import Transformer

_LARGEST = 1e3  # of the raw slopes: far beyond what training reaches, and far below where squares overflow
_WIDEST = 1e6  # bound; beyond it, edges that are rounded in units of the bound are coarse near 0


class Spline(Transformer):
    """Base class of the monotone splines of K quotients of quadratics, from [low, high] onto itself.

    Between the knots (x_k, y_k) and (x_k+1, y_k+1), with slopes d_k and d_k+1, s = (y_k+1 - y_k) / (x_k+1 - x_k) and
    t = (x - x_k) / (x_k+1 - x_k), equation 4 of Durkan et al. (2019) is

        y = y_k + (y_k+1 - y_k) (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))
        dy/dx = s^2 (d_k+1 t^2 + 2 s t (1 - t) + d_k (1 - t)^2) / (s + (d_k + d_k+1 - 2 s) t (1 - t))^2

    and the inverse solves a quadratic equation (equations 6 to 8). The first 2 K parameters are the widths and heights
    of the bins, by a softmax; the slopes follow, by a softplus, and a subclass says at which knots. At parameters of 0
    it is the identity.

    Args:
        bins: K.
        low, high: the ends of the interval.
        min_width: smallest share of the interval that a bin takes, in x.
        min_height: the same in y.
        min_slope: smallest slope at a knot.
        more: how many slopes are learned beyond K.

    Raises:
        ValueError: if there are fewer than two bins, the smallest widths or heights leave nothing to be learned, or an
            argument is not positive.
    """

    closed_form = True

    def __init__(
        self, bins: int, low: float, high: float, *, min_width: float, min_height: float, min_slope: float, more: int
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.bins = count_of(f"bins of {name}", bins)
        if self.bins < 2:
            raise ValueError(f"{name} needs at least 2 bins, but got {bins}.")
        self.low, self.high = low, high
        self.min_width = _share(f"min_width of {name}", min_width, bins)
        self.min_height = _share(f"min_height of {name}", min_height, bins)
        self.min_slope = positive(f"min_slope of {name}", min_slope)
        if self.min_slope >= 1:
            raise ValueError(f"min_slope of {name} must be less than 1, but got {min_slope}.")
        self.num_slopes = self.bins + more
        self.num_parameters = 2 * self.bins + self.num_slopes

    @abstractmethod
    def _at_knots(self, slopes: Tensor, dim: int) -> Tensor:
        """Returns the slopes at all K + 1 knots, given those that are learned, along the dimension ``dim``."""

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return self._where_inside(x, params, dim, inverse=False)

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return self._where_inside(y, params, dim, inverse=True)

    def _where_inside(self, x: Tensor, params: Tensor, dim: int, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Bends what lies in the interval, and returns everything else as it is."""
        inside = (x >= self.low) & (x <= self.high)
        # The spline must be finite where it is not used, too; and rounding must not leave the interval.
        y, log_det = self.bend(torch.where(inside, x, self.low), params, dim, inverse=inverse)
        return torch.where(inside, y.clamp(self.low, self.high), x), torch.where(inside, log_det, 0)

    def bend(self, x: Tensor, params: Tensor, dim: int, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Maps x in [low, high] to y or, if ``inverse``, y to x; returns the logarithm of the slope of that map."""
        (left, low, first), (right, high, last) = self._bin(x, params, dim, axis=int(inverse))
        width, height = right - left, high - low
        slope = height / width
        if inverse:
            t = _solve((x - low) / height, slope, first, last)
            return left + width * t, -_rational_quadratic(t, slope, first, last)[1]
        share, log_det = _rational_quadratic((x - left) / width, slope, first, last)
        return low + height * share, log_det

    def _bin(self, x: Tensor, params: Tensor, dim: int, *, axis: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns x_k, y_k and d_k of both knots around x, which is compared with the knots in x (0) or in y (1)."""
        k = self.bins
        raw = params.unflatten(dim, (self.num_parameters, params.shape[dim] // self.num_parameters))
        at = dim - 1  # of the parameters of one element
        floor = raw.new_tensor([self.min_width, self.min_height]).reshape(2, *[1] * (-at))
        shares = raw.narrow(at, 0, 2 * k).unflatten(at, (2, k)).softmax(at)
        edges = (floor + (1 - k * floor) * shares).narrow(at, 0, k - 1).cumsum(at)
        # Not from the sum of all shares, which is 1 but for rounding: the ends are where the interval ends.
        ends = [0, 0] * (-at - 1)
        knots = pad(edges.mul(self.high - self.low).add(self.low), [*ends, 1, 0], value=self.low)
        knots = pad(knots, [*ends, 0, 1], value=self.high)
        learned = raw.narrow(at, 2 * k, self.num_slopes).clamp(max=_LARGEST)
        slopes = self._at_knots(softplus(learned + _raw_slope(1 - self.min_slope)) + self.min_slope, at)
        table = torch.cat([knots, slopes.unsqueeze(at - 1)], at - 1)
        index = (x.unsqueeze(at) >= knots.select(at - 1, axis).narrow(at, 1, k - 1)).sum(at, keepdim=True)
        index = torch.cat([index, index + 1], at).unsqueeze(at - 1)
        # The parameters may be those of a whole batch, or x one event for a batch of parameters.
        batch = torch.broadcast_shapes(table.shape[: at - 1], index.shape[: at - 1])
        table = table.expand(*batch, *table.shape[at - 1 :])
        index = index.expand(*batch, 3, *index.shape[at:])
        near, far = table.gather(at, index).unbind(at)
        return list(near.unbind(at)), list(far.unbind(at))


@recorded
class RationalQuadratic(Spline):
    """A monotone spline of K quotients of quadratics on [-B, B], and the identity outside. Durkan et al. (2019).

    The formulas are those of :class:`Spline`. 3 K - 1 parameters: the widths and heights of the bins, and the slopes at
    the K - 1 inner knots. The slope at -B and B is 1, as outside, so that dy/dx is continuous everywhere. At parameters
    of 0 it is the identity.

    Args:
        bins: K.
        bound: B, in the units of x, at most 1e6. Data should be standardised: what lies outside is not bent.
        min_width: smallest share of [-B, B] that a bin takes, in x.
        min_height: the same in y.
        min_slope: smallest slope at a knot.

    Raises:
        ValueError: if there are fewer than two bins, the smallest widths or heights leave nothing to be learned, or an
            argument is not positive.

    Example:
        >>> g = RationalQuadratic(bins=4, bound=3.0)
        >>> x, params = torch.tensor([[0.5], [4.0]]), torch.randn(2, g.channels(1))
        >>> y, log_det = g.forward_and_log_det(x, params, dim=-1)
        >>> (y == x).squeeze(-1), g.channels(1)  # 4.0 lies outside of [-3, 3]
        (tensor([False,  True]), 11)
    """

    def __init__(
        self,
        bins: int = 8,
        *,
        bound: float = 5.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ) -> None:
        floors = {"min_width": min_width, "min_height": min_height, "min_slope": min_slope}
        bound = positive("bound of RationalQuadratic", bound)
        if bound > _WIDEST:
            raise ValueError(
                f"bound of RationalQuadratic must be at most {_WIDEST:g}, beyond which the edges of the bins are too "
                f"coarse near 0, but got {bound}: standardise x."
            )
        super().__init__(bins, -bound, bound, **floors, more=-1)
        self.bound = bound

    def _at_knots(self, slopes: Tensor, dim: int) -> Tensor:
        return pad(slopes, [*[0, 0] * (-dim - 1), 1, 1], value=1.0)


def _rational_quadratic(t: Tensor, slope: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the share of the height that is reached at a share t of the width, and log dy/dx."""
    rest = 1 - t
    both = t * rest
    bottom = slope + (first + last - 2 * slope) * both
    share = (slope * t * t + first * both) / bottom
    top = last * t * t + 2 * slope * both + first * rest * rest
    return share, 2 * slope.log() + top.log() - 2 * bottom.log()


def _solve(share: Tensor, slope: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Returns t in [0, 1] at which :func:`_rational_quadratic` reaches a share of the height.

    The root of a t^2 + b t + c = 0 is written in two ways, of which one has no difference of equal numbers.
    """
    bend = share * (first + last - 2 * slope)
    a, b, c = bend + slope - first, first - bend, -slope * share
    root = (b * b - 4 * a * c).clamp(min=torch.finfo(share.dtype).tiny).sqrt()
    falls = b < 0
    other = torch.where(falls, 2 * a, 1.0)  # where b < 0, a is positive
    t = torch.where(falls, (root - b) / other, -2 * c / torch.where(falls, 1.0, b + root))
    return t.clamp(0, 1)


def _raw_slope(slope: float) -> float:
    """Returns the number whose softplus is ``slope``."""
    return math.log(math.expm1(slope))


def _share(name: str, value: float, bins: int) -> float:
    """Returns the smallest share of a bin, an error if the smallest shares of all bins take everything."""
    share = positive(name, value)
    if share * bins >= 1:
        raise ValueError(f"{name} must be less than 1 / {bins} bins, but got {value}.")
    return share
