"""A constant affine map, in which some coordinates are angles."""

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


@recorded
class FixedMixed(Bijection):
    """Shifts and scales a vector by constants, angles along the circle.

    The real coordinates are mapped to loc + L x, as by :class:`FixedAffine`. Of an angle x in [-pi, pi),

        y = loc + 2 arctan(s tan(x / 2))   modulo 2 pi,
        log dy/dx = log s - log(cos(x / 2)^2 + s^2 sin(x / 2)^2)

    with s its element of the diagonal of L. It maps the circle onto itself: the projection to the real line, a scaling
    there, and the way back ("non-compact projection" in section 2.1 of Rezende et al., 2020). A uniform angle becomes a
    wrapped Cauchy variable around loc, half of which lies within 2 arctan(s) of it. The constants are saved with the
    state and not learned.

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
        angle, log_slope = _scaled(wrap(x), self._diagonal)
        y = torch.where(around, wrap(angle + self.loc), real + self.loc)
        return y, torch.where(around, log_slope, self._diagonal.log()).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = self.circular.bool()
        real = y - self.loc
        angle, log_slope = _scaled(wrap(real), 1 / self._diagonal)
        if self.scale.dim() == 1:
            real = real / self.scale
        else:
            real = torch.linalg.solve_triangular(self.scale, real.unsqueeze(-1), upper=False).squeeze(-1)
        return torch.where(around, wrap(angle), real), torch.where(around, log_slope, -self._diagonal.log()).sum(-1)

    @property
    def _diagonal(self) -> Tensor:
        return self.scale if self.scale.dim() == 1 else self.scale.diagonal()


def _scaled(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Computes 2 arctan(s tan(x / 2)) of x in [-pi, pi), and the logarithm of its slope."""
    sine, cosine = s * (x / 2).sin(), (x / 2).cos()
    return 2 * torch.atan2(sine, cosine), s.log() - (cosine.square() + sine.square()).log()
