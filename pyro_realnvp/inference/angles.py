"""Angles among the latents of a guide: which they are, where the guide begins, and their quantiles.

Pyro gives the von Mises distribution and its relatives the support ``real``, but their densities are normalised on
[-pi, pi) alone: a guide on the real line would have its mass in other turns, too.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Size, Tensor, distributions, nn

from ..bijections.bijection import Bijection
from ..bijections.circular import wrap
from ..bijections.circular_affine import CircularAffine
from ..bijections.coupling import Elementwise
from ..bijections.per_coordinate import PerCoordinate
from ..bijections.support import unbounded
from ..bijections.transformers import Affine
from .learned_affine import LearnedAffine
from .warm_start import Gaussian, LogDensity

_ANGULAR = (distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
_WRAPPERS = (distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
_QUARTILE = 0.6745  # of N(0, 1)
_WIDEST = 100.0  # variance of an angle that is as good as uniform
_GRID = 64  # angles at which the density is looked at along one coordinate


def angles_of(guide: AutoContinuous, names: Iterable[str] | None) -> list[int]:
    """Returns which of the unconstrained latents are angles: those of von Mises sites, or of the sites of these names.

    Raises:
        ValueError: if there is no latent site of a name, or its support is not the real line.
    """
    prototype: Any = guide.prototype_trace
    sites = {name: site["fn"] for name, site in prototype.iter_stochastic_nodes()}
    chosen = None if names is None else list(names)
    for name in chosen or ():
        if name not in sites:
            raise ValueError(f"circular names {name!r}, which is no latent site of the model: it has {[*sites]}.")
        if not unbounded(sites[name].support):
            raise ValueError(f"circular names the site {name!r}, whose support is {sites[name].support}, not real.")
    found: list[int] = []
    start = 0
    for name, fn in sites.items():
        size = guide._unconstrained_shapes[name].numel()
        if _is_angular(fn) if chosen is None else name in chosen:
            found += range(start, start + size)
        start += size
    return found


def _is_angular(fn: Any) -> bool:
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return isinstance(fn, _ANGULAR)


def learned_layer(shape: Size, init_scale: float, circular: Sequence[int]) -> Bijection:
    """Builds the last layer but one of a guide: learned scales and shifts.

    Args:
        shape: (D,).
        init_scale: the learned scale of real numbers at the start.
        circular: which of the D latents are angles.
    """
    if not circular:
        learned: Elementwise = LearnedAffine(shape)
        _set_scales(learned.theta, init_scale)
        return learned
    affine, circle = Affine(nn.Identity()), CircularAffine(nn.Identity())
    each = PerCoordinate([circle if index in circular else affine for index in range(shape[0])])
    learned = Elementwise(shape, each)
    theta: Any = learned.theta
    for transformer, part in zip(each.transformers, each.parts(theta, -1), strict=True):
        if transformer is affine:
            _set_scales(part, init_scale)
    return learned


@torch.no_grad()
def _set_scales(theta: Any, scale: float) -> None:
    theta[len(theta) // 2 :] = math.log(scale)


class Chart:
    """A density of angles and real numbers as one of real numbers alone, for the search of a Gaussian.

    An angle x is t = tan((x - center) / 2), so that the density is proper there, and no point but the antipode of the
    center is special:

        log p(t) = log p(x) + sum_angles log(2 / (1 + t^2))

    Args:
        log_density: of x, maps (S, D) to (S,).
        loc: (D,); the angles of the center are the best among some that are drawn, all others as in ``loc``.
        circular: which coordinates are angles.
        draws: how many are drawn.
    """

    def __init__(self, log_density: LogDensity, loc: Tensor, circular: Sequence[int], *, draws: int) -> None:
        self.log_density, self.circular = log_density, list(circular)
        self._around = torch.zeros_like(loc, dtype=torch.bool).index_fill(
            0, torch.tensor(self.circular, device=loc.device), True
        )
        uniform = math.pi * (2 * torch.rand(draws, len(loc), dtype=loc.dtype, device=loc.device) - 1)
        points = torch.cat([loc[None], torch.where(self._around, uniform, loc)])
        with torch.no_grad():
            values = log_density(points)
        self.center = points[torch.where(values < math.inf, values, -math.inf).argmax()]  # NaN is not less either

    @property
    def start(self) -> Tensor:
        """Returns t of the center, (D,)."""
        return torch.where(self._around, 0, self.center)

    def __call__(self, t: Tensor) -> Tensor:
        log_slope = torch.where(self._around, math.log(2) - t.square().log1p(), 0)
        return self.log_density(self._point(t)) + log_slope.sum(-1)

    def _point(self, t: Tensor) -> Tensor:
        return torch.where(self._around, wrap(self.center + 2 * t.atan()), t)

    def constants(self, mean: Tensor, root: Tensor) -> Gaussian:
        """Returns loc (D,) and scale (D, D) for :class:`FixedMixed`, given a Gaussian of t.

        An angle is as wide as the Gaussian there, or as the density along it: another mode on the circle, which the
        Gaussian does not see, makes it wider. What angles and real numbers have in common is left to the couplings.
        """
        loc = self._point(mean)
        covariance = (root @ root.T).double()
        quartile = _QUARTILE * covariance.diagonal().sqrt() / (1 + mean.double().square())
        width = 2 * quartile.atan() / _QUARTILE
        for index in self.circular:
            width[index] = width[index].maximum(self._width_along(loc, index))
        apart = ~(self._around | self._around[:, None])
        covariance = torch.where(apart, covariance, 0) + torch.where(self._around, width.square(), 0).diag()
        return loc, torch.linalg.cholesky(covariance).to(loc)

    def _width_along(self, loc: Tensor, index: int) -> Tensor:
        """Returns the deviation of a wrapped normal variable with the mean resultant of the density along an angle."""
        grid = 2 * math.pi * torch.arange(_GRID, dtype=loc.dtype, device=loc.device) / _GRID
        points = loc.repeat(_GRID, 1)
        points[:, index] = wrap(grid + loc[index])
        with torch.no_grad():
            weight = self.log_density(points).nan_to_num(-math.inf).softmax(0)
        length = ((weight * grid.cos()).sum().square() + (weight * grid.sin()).sum().square()).sqrt()
        return (-2 * length.double().log()).clamp(0, _WIDEST).sqrt().nan_to_num(0)


def quantiles_of(x: Tensor, levels: Tensor, circular: Sequence[int]) -> Tensor:
    """Computes the quantiles of draws x (S, D) for every coordinate, (number of levels, D).

    Those of an angle are counted from the antipode of its circular mean, and lie in [-pi, pi) again.
    """
    if not circular:
        return torch.quantile(x, levels, dim=0)
    around = torch.zeros_like(x[0], dtype=torch.bool).index_fill(0, torch.tensor(circular, device=x.device), True)
    mean = torch.where(around, torch.atan2(x.sin().mean(0), x.cos().mean(0)), 0)
    found = torch.quantile(torch.where(around, wrap(x - mean), x), levels, dim=0)
    return torch.where(around, wrap(found + mean), found)
