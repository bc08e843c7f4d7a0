"""Elementwise maps given parameters, and the maps from a raw network output to a scale.

A transformer knows nothing of couplings and networks: it receives x of shape (\\*batch, C, ...) and parameters of
shape (\\*batch, P C, ...), where the first C channels are the first parameter of every element, and so on. ``dim`` is
the axis of the channels, counted from the right.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._runtime.checks import finite_number, in_unit_interval, positive
from .._runtime.construction import recorded
from .._runtime.coordinates import REAL, Coordinates
from .._runtime.deprecation import renamed


class Transformer(nn.Module):
    """A monotone map of every element x, given P parameters for it.

    Both results are finite for parameters of any size, and parameters of 0, as new networks return them, give a map
    near the identity. ``dim`` is -1 for vectors and -3 for images.

    Example:
        >>> x, params = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0, 0.0, 0.0])  # shifts, then log-scales
        >>> y, log_det = Affine().forward_and_log_det(x, params, dim=-1)
        >>> y, log_det, Affine().channels(2)
        (tensor([11., 22.]), tensor([0., 0.]), 4)
    """

    num_parameters: int
    closed_form = False  #: whether the inverse is as exact as the forward map: no search, no saturation
    coordinate = REAL  #: where every element lies, of x and of y

    def channels(self, changed: int) -> int:
        """Returns the number of parameter channels for ``changed`` channels of x."""
        return self.num_parameters * changed

    def coordinates(self, changed: int) -> Coordinates:
        """Returns where each of ``changed`` coordinates of a vector lies."""
        return (self.coordinate,) * changed

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Maps x to y and log|dy/dx|, both of the shape of x."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Maps y to x and log|dx/dy|, both of the shape of y."""

    def at_bound(self, params: Tensor, dim: int) -> Tensor | None:
        """Tells where the scale is so close to a bound that its gradient has vanished; None for a map without bounds.

        A boolean of the shape of x. There the slope is less than a hundredth of that at parameters of 0.
        """
        return None


def is_flat(function: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    """Returns where the slope of an elementwise function is less than a hundredth of that at 0; False if raw is NaN."""
    slope = _slope(function, raw)
    # A slope that is NaN at a finite point has overflown on the way: the point lies far out.
    flat = (slope.abs() < 0.01 * _slope(function, torch.zeros_like(raw)).abs()) | slope.isnan()
    return flat & ~raw.isnan()


def _slope(function: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    with torch.enable_grad():
        points = raw.detach().clone().requires_grad_()
        values = function(points)
        return torch.autograd.grad(values.sum(), points)[0] if values.requires_grad else torch.zeros_like(raw)


@recorded
class Additive(Transformer):
    """y = x + shift, with log|dy/dx| = 0. Dinh et al. (2014), equation 9. One parameter: shift.

    Example:
        >>> x, shift = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
        >>> Additive().forward_and_log_det(x, shift, dim=-1)
        (tensor([11., 22.]), tensor([0., 0.]))
    """

    num_parameters = 1
    closed_form = True

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return x + params, torch.zeros_like(x)

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return y - params, torch.zeros_like(y)


@recorded
class Affine(Transformer):
    """y = x exp(log_scale) + shift, with log|dy/dx| = log_scale. Dinh et al. (2017), equations 7 and 8.

    Two parameters: shift and raw, with log_scale a bounded function of raw.

    Args:
        log_scale: maps the raw network output to log_scale, elementwise; any callable, finite and with a finite
            gradient for every finite input. ``SoftClipLogScale()`` by default.

    Example:
        >>> x, shift, raw = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5])
        >>> y, log_det = Affine(torch.tanh).forward_and_log_det(x, torch.cat([shift, raw]), dim=-1)
        >>> torch.allclose(y, x * raw.tanh().exp() + shift), torch.allclose(log_det, raw.tanh())
        (True, True)
    """

    num_parameters = 2
    closed_form = True

    def __init__(
        self,
        log_scale: Callable[[Tensor], Tensor] | None = None,
        *,
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if scale is not None:
            log_scale = renamed(scale, "Affine(scale=...)", "Affine(log_scale=...)", stacklevel=4)
        self.scale = SoftClipLogScale() if log_scale is None else log_scale  # the name is part of the state's keys

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        log_scale = self.scale(raw)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        shift, raw = params.chunk(2, dim)
        log_det = -self.scale(raw)
        return (y - shift) * log_det.exp(), log_det

    def at_bound(self, params: Tensor, dim: int) -> Tensor | None:
        return is_flat(self.scale, params.chunk(2, dim)[1])


@recorded
class TanhLogScale(nn.Module):
    """log_scale = alpha tanh(raw), alpha one learned number. Dinh et al. (2017), section 4.1.

    Args:
        initial: alpha at the start. With 0 the network must not end in a layer of zeros, or the gradients of both
            alpha and the network would be 0.

    Example:
        >>> scale = TanhLogScale(initial=2.0)
        >>> log_scale = scale(torch.tensor([-100.0, 0.0, 100.0]))
        >>> log_scale.tolist()
        [-2.0, 0.0, 2.0]
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(finite_number("initial of TanhLogScale", initial)))

    def forward(self, raw: Tensor) -> Tensor:
        return self.alpha * raw.tanh()


@recorded
class SigmoidLogScale(nn.Module):
    """scale = floor + (1 - floor) sigmoid(raw + 2), in (floor, 1). The released code of Kingma & Dhariwal (2018).

    The floor, absent there, keeps the inverse finite. At raw = 0 the scale is 0.88, not 1.

    Example:
        >>> scale = SigmoidLogScale()(torch.tensor([-100.0, 0.0, 100.0])).exp()
        >>> [round(s, 4) for s in scale.tolist()]
        [0.0001, 0.8808, 1.0]
    """

    def __init__(self, floor: float = 1e-4) -> None:
        super().__init__()
        self.floor = in_unit_interval("floor of SigmoidLogScale", floor)

    def forward(self, raw: Tensor) -> Tensor:
        return (self.floor + (1 - self.floor) * (raw + 2).sigmoid()).log()


@recorded
class SoftClipLogScale(nn.Module):
    """log_scale = raw / (1 + |raw| / bound), in (-bound, bound), with slope 1 at 0.

    The default of the vector flows: the identity at raw = 0, and scales from exp(-bound) to exp(bound).

    Example:
        >>> log_scale = SoftClipLogScale(bound=7.0)(torch.tensor([0.0, 0.01, 7.0, 1e6]))
        >>> [round(s, 2) for s in log_scale.tolist()]
        [0.0, 0.01, 3.5, 7.0]
    """

    def __init__(self, bound: float = 7.0) -> None:
        super().__init__()
        self.bound = positive("bound of SoftClipLogScale", bound)

    def forward(self, raw: Tensor) -> Tensor:
        return raw / raw.abs().div_(self.bound).add_(1)
