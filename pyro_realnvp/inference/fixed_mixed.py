"""The last layer of a guide with angles, and the base that goes with it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from .._runtime.autocast import full_precision
from .._runtime.checks import values_are_known
from .._runtime.construction import recorded
from .._runtime.coordinates import coordinates_of
from ..bases import MixedBase
from ..bijections.bijection import Bijection
from ..bijections.circular import wrap
from ..bijections.circular_affine import scale_angle
from ..bijections.linear import FixedAffine
from ..bijections.support import box, events

# The deviation of an angle of the base, at least: with it next to nothing lies on the other side of the circle, where
# cosine and sine of an angle do not tell how far it is.
_NARROWEST = 0.6
_PROJECTED = 0.66  # deviation of 2 tan(x / 2) where x has that one, but for the far tails


@recorded
class FixedMixed(Bijection):
    """Shifts and scales a vector by constants, angles along the circle.

    The real coordinates are mapped to loc + L x, as by :class:`FixedAffine`, and an angle x in [-pi, pi) to

        y = loc + 2 arctan(r tan(x / 2)) modulo 2 pi,   r = min(1, s / 0.66)

    with s its element of the diagonal of L, as :class:`CircularAffine` does. Of an angle of :meth:`base`, with
    the deviation max(s, 0.6), it makes one with the deviation s, or close to uniform for large s. The constants are
    saved with the state and not learned.

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
        angle, log_slope = scale_angle(wrap(x), self._narrowing)
        y = torch.where(around, wrap(angle + self.loc), real + self.loc)
        return y, torch.where(around, log_slope, self._diagonal.log()).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = self.circular.bool()
        real = y - self.loc
        angle, log_slope = scale_angle(wrap(real), -self._narrowing)
        if self.scale.dim() == 1:
            real = real / self.scale
        else:
            real = torch.linalg.solve_triangular(self.scale, real.unsqueeze(-1), upper=False).squeeze(-1)
        return torch.where(around, wrap(angle), real), torch.where(around, log_slope, -self._diagonal.log()).sum(-1)

    def base(self) -> MixedBase:
        """Returns N(0, I), in which angles are normal on the circle, with deviations that this layer narrows."""
        angles = [index for index, each in enumerate(self.coordinates) if each.circular]
        deviation = self._diagonal[angles].clamp(min=_NARROWEST)
        return MixedBase(self.event_shape, circular=angles, deviation=deviation).to(self.loc)

    @property
    def _narrowing(self) -> Tensor:
        return (self._diagonal / _PROJECTED).log().clamp(max=0)

    @property
    def _diagonal(self) -> Tensor:
        return self.scale if self.scale.dim() == 1 else self.scale.diagonal()
