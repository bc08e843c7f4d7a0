"""The spline of numbers in an interval."""

from torch import Tensor

from .._runtime.checks import finite_number
from .._runtime.construction import recorded
from .._runtime.coordinates import Coordinate
from .spline import Spline


@recorded
class IntervalSpline(Spline):
    """A monotone spline of K quotients of quadratics from an interval onto itself. Durkan et al. (2019), section 3.1.

    The formulas are those of :class:`Spline`. 3 K + 1 parameters: the widths and heights of the bins, and the slopes at
    all K + 1 knots, the ends among them, so that a flow can have any density there. At parameters of 0 it is the
    identity. Outside of the interval, where a flow has no density, it is the identity, too.

    Args:
        low, high: the ends of the interval.
        bins: K.
        min_width: smallest share of the interval that a bin takes, in x.
        min_height: the same in y.
        min_slope: smallest slope at a knot.

    Raises:
        ValueError: if low is not less than high, there are fewer than two bins, the smallest widths or heights leave
            nothing to be learned, or an argument is not positive.

    Example:
        >>> g = IntervalSpline(0.0, 10.0, bins=4)
        >>> x, params = torch.tensor([[0.0], [5.0], [10.0]]), torch.randn(3, g.channels(1))
        >>> y, log_det = g.forward_and_log_det(x, params, dim=-1)
        >>> torch.isclose(y, x).squeeze(-1)  # the ends stay where they are
        tensor([ True, False,  True])
    """

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        bins: int = 8,
        *,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ) -> None:
        low, high = finite_number("low of IntervalSpline", low), finite_number("high of IntervalSpline", high)
        if not low < high:
            raise ValueError(f"IntervalSpline needs low < high, but got low={low} and high={high}.")
        floors = {"min_width": min_width, "min_height": min_height, "min_slope": min_slope}
        super().__init__(bins, low, high, **floors, more=1)
        self.coordinate = Coordinate(low, high)

    def _at_knots(self, slopes: Tensor, dim: int) -> Tensor:
        return slopes
