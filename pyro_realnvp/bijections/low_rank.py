"""An affine map of constants whose matrix is diagonal but for a few directions."""

import torch
from torch import Tensor

from .._runtime.autocast import full_precision
from .._runtime.checks import check_floating, values_are_known
from .._runtime.construction import recorded
from .bijection import Bijection


@recorded
class FixedLowRank(Bijection):
    """Shifts and scales a vector by constants, and stretches it along k directions.

        y = loc + s (x + W diag(c) W^T x),   x = u - W diag(c / (1 + c)) W^T u with u = (y - loc) / s,
        log|det dy/dx| = sum log s + sum log(1 + c)

    The columns of W are orthonormal, so that the covariance of y is S (I + W diag(2c + c^2) W^T) S for x of covariance
    I, with S = diag(s): that of a factor analysis for c > 0. Time and memory are O(D k), where :class:`FixedAffine`
    with a dense scale takes O(D^2). The constants are saved with the state and not learned. The inverse is as exact as
    W is orthonormal.

    Args:
        loc: (D,).
        scale: s, (D,), positive.
        directions: W, (D, k) with orthonormal columns, k from 0 to D.
        stretch: c, (k,), greater than -1.

    Raises:
        ValueError: if the shapes or dtypes do not fit, a value is not finite, an element of s is not positive or one of
            c not greater than -1, or the columns of W are not orthonormal.

    Example:
        >>> w = torch.tensor([[0.6], [0.8]])
        >>> f = FixedLowRank(torch.zeros(2), torch.ones(2), w, torch.tensor([1.0]))
        >>> y, log_det = f.forward_and_log_det(torch.tensor([[0.6, 0.8], [0.8, -0.6]]))  # along w, and across
        >>> torch.allclose(y, torch.tensor([[1.2, 1.6], [0.8, -0.6]])), round(log_det[0].exp().item(), 4)
        (True, 2.0)
    """

    loc: Tensor
    scale: Tensor
    directions: Tensor
    stretch: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, directions: Tensor, stretch: Tensor) -> None:
        given = {"loc": loc, "scale": scale, "directions": directions, "stretch": stretch}
        for name, value in given.items():
            check_floating("FixedLowRank", name, value)
            if value.dtype != loc.dtype:
                raise ValueError(
                    f"FixedLowRank needs constants of one dtype, but got loc {loc.dtype} and {name} {value.dtype}."
                )
        if loc.dim() != 1 or scale.shape != loc.shape:
            raise ValueError(
                f"FixedLowRank needs loc and scale (D,), but got {tuple(loc.shape)} and {tuple(scale.shape)}."
            )
        if stretch.dim() != 1 or directions.shape != loc.shape + stretch.shape or len(stretch) > len(loc):
            raise ValueError(
                f"FixedLowRank needs directions (D, k) and stretch (k,) with k <= D = {len(loc)}, but got "
                f"{tuple(directions.shape)} and {tuple(stretch.shape)}."
            )
        super().__init__(loc.shape)
        for name, value in given.items():
            self.register_buffer(name, value.detach().clone())
        if values_are_known(loc):
            self._check_values()

    def _check_values(self) -> None:
        for name, value in self.named_buffers():
            if not value.isfinite().all():
                raise ValueError(f"FixedLowRank needs a finite {name}, but got {float(value[~value.isfinite()][0])}.")
        if not (self.scale > 0).all():
            raise ValueError(f"FixedLowRank needs a positive scale, but got {float(self.scale.min())} in it.")
        if not (self.stretch > -1).all():
            raise ValueError(f"FixedLowRank needs stretch > -1, but got {float(self.stretch.min())} in it.")
        gram = self.directions.T @ self.directions
        error = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs()
        tolerance = 30 * torch.finfo(gram.dtype).eps * len(self.loc) ** 0.5
        if (error > tolerance).any():
            raise ValueError(
                f"FixedLowRank needs orthonormal columns of directions, but W^T W is {float(error.max()):.2g} from I."
            )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            stretched = x + ((x @ self.directions) * self.stretch) @ self.directions.T
        return self.loc + self.scale * stretched, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = (y - self.loc) / self.scale
        with full_precision(u):
            x = u - ((u @ self.directions) * (self.stretch / (1 + self.stretch))) @ self.directions.T
        return x, -self._log_det(y)

    def forward_and_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also maps the gradient of log q(x) to that of the log-density of y at y, (\\*batch, D)."""
        y, log_det = self.forward_and_log_det(x)
        away = ((score @ self.directions) * (self.stretch / (1 + self.stretch))) @ self.directions.T
        return y, log_det, (score - away) / self.scale

    def _log_det(self, x: Tensor) -> Tensor:
        return self._per_event(self.scale.log().sum() + self.stretch.log1p().sum(), x)
