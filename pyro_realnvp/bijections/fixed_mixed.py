"""A constant affine map, in which some coordinates are angles."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from .._runtime.autocast import full_precision
from .._runtime.checks import values_are_known
from .._runtime.construction import recorded
from .._runtime.coordinates import coordinates_of
from .bijection import Bijection
from .circular import wrap
from .linear import FixedAffine
from .support import box, events

# Below it a density of N(0, t^2) on the circle is so small at -pi that float32 has no digits left there.
_NARROWEST = 0.6


@recorded
class FixedMixed(Bijection):
    """Shifts and scales a vector by constants, angles along the circle.

    The real coordinates are mapped to loc + L x, as by :class:`FixedAffine`, which makes N(loc, L L^T) of N(0, I). Of a
    uniform angle x in [-pi, pi) the same is made on the circle, as far as there is room: with its deviation s, an
    element of the diagonal of L, t = max(s, 0.6) and r = min(1, s / 0.6),

        y = loc + 2 arctan(r tan(z / 2)) modulo 2 pi,   z = t Phi^-1(1/2 + x / (2 pi) (2 Phi(pi / t) - 1))

    z has the density of N(0, t^2) on [-pi, pi), and where s is less than 0.6 it is scaled further: on the real line, to
    which the circle is projected, and back ("non-compact projection" in section 2.1 of Rezende et al., 2020). A narrow
    y is close to normal, with heavier tails, of which 4 in 100,000 lie beyond 10 s; a wide one is close to uniform. y
    and log dy/dx are continuous on the circle. The constants are saved with the state and not learned.

    Args:
        loc: (D,).
        scale: (D,) for a diagonal L, or lower-triangular (D, D); the diagonal is positive, and all other elements in
            rows and columns of angles are 0.
        circular: the coordinates that are angles.

    Raises:
        ValueError: if the shapes do not fit, the diagonal is not positive, or an angle is mixed with other coordinates.
    """

    loc: Tensor
    scale: Tensor
    circular: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, circular: Sequence[int]) -> None:
        checked = FixedAffine(loc, scale)
        super().__init__(checked.event_shape)
        self.coordinates = coordinates_of("FixedMixed", len(loc), circular, ())
        around = torch.tensor([each.circular for each in self.coordinates], device=loc.device)
        if values_are_known(loc) and scale.dim() == 2:
            mixed = (checked.scale != 0) & (around | around[:, None])
            if (mixed & ~torch.eye(len(loc), dtype=torch.bool, device=loc.device)).any():
                raise ValueError(
                    f"FixedMixed needs zeros beside the diagonal for angles, but got scale {scale.tolist()}."
                )
        self.register_buffer("loc", checked.loc)
        self.register_buffer("scale", checked.scale)
        # In the state, so that it tells what the flow is; a number, as Pyro's parameter store takes no others.
        self.register_buffer("circular", around.to(loc))

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        bounds = box(self.coordinates, 1)
        return super()._constraint(output=output) if bounds is None else events(bounds, 1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = self.circular.bool()
        with full_precision(x):
            real = x * self.scale if self.scale.dim() == 1 else x @ self.scale.T
        angle, log_slope = _spread(wrap(x), self._diagonal)
        y = torch.where(around, wrap(angle + self.loc), real + self.loc)
        return y, torch.where(around, log_slope, self._diagonal.log()).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = self.circular.bool()
        real = y - self.loc
        angle, log_slope = _gathered(wrap(real), self._diagonal)
        if self.scale.dim() == 1:
            real = real / self.scale
        else:
            real = torch.linalg.solve_triangular(self.scale, real.unsqueeze(-1), upper=False).squeeze(-1)
        return torch.where(around, wrap(angle), real), torch.where(around, log_slope, -self._diagonal.log()).sum(-1)

    @property
    def _diagonal(self) -> Tensor:
        return self.scale if self.scale.dim() == 1 else self.scale.diagonal()


def _spread(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Maps a uniform angle x in [-pi, pi) to one with deviation s; returns the logarithm of the slope."""
    t, r, end = _parameters(s)
    z = t * torch.erfinv(x / math.pi * end)
    y, log_slope = _scaled(z, r)
    return y, log_slope + _log_slope(z, t, end)


def _gathered(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts :func:`_spread`."""
    t, r, end = _parameters(s)
    z, log_slope = _scaled(y, 1 / r)
    return math.pi * torch.erf(z / t) / end, log_slope - _log_slope(z, t, end)


def _parameters(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns sqrt(2) t, r, and erf(pi / (sqrt(2) t))."""
    t = math.sqrt(2) * s.clamp(min=_NARROWEST)
    return t, (s / _NARROWEST).clamp(max=1), torch.erf(math.pi / t)


def _log_slope(z: Tensor, t: Tensor, end: Tensor) -> Tensor:
    return (t * end / (2 * math.sqrt(math.pi))).log() + (z / t).square()


def _scaled(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Computes 2 arctan(r tan(x / 2)) of x in [-pi, pi), and the logarithm of its slope."""
    sine, cosine = r * (x / 2).sin(), (x / 2).cos()
    return 2 * torch.atan2(sine, cosine), r.log() - (cosine.square() + sine.square()).log()
