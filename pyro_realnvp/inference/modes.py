"""Several modes: components of a mixture base that begin at the modes of a posterior, and keep their shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from ..bases.mixture import MixtureBase
from .warm_start import LogDensity, score_of

_CLIMBERS, _ASCENTS, _RATE = 64, 300, 0.1
_WIDER = (1.0, 2.0, 5.0)  # times the deviations of the draws, from which points climb
_APART = 2.0  # deviations between modes
_ROUNDS, _DRAWS = 8, 2000  # of population Monte Carlo


def climb(log_density: LogDensity, draws: Tensor, wider: tuple[float, ...] = _WIDER) -> Tensor:
    """Climbs a density from wide draws, by Adam in units of their deviations, at a rate that falls to 0.

    Args:
        log_density: maps (S, D) to (S,); where it is not finite, a point stays.
        draws: (N, D), N at least 64 for each width.
        wider: from how many times their deviations about their mean.

    Returns:
        The points (64 len(wider), D) at the end.
    """
    center, spread = draws.mean(0), draws.std(0)
    unit = ((draws - center) / spread)[: len(wider) * _CLIMBERS].split(_CLIMBERS)
    u = torch.cat([factor * part for factor, part in zip(wider, unit, strict=True)])
    u.requires_grad_()
    optimizer = torch.optim.Adam([u], lr=_RATE)
    for step in range(_ASCENTS):
        u.grad = -(spread * score_of(log_density, center + spread * u.detach())).nan_to_num(0, 0, 0)
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / _ASCENTS)
        optimizer.step()
    return (center + spread * u).detach()


def place_components(base: MixtureBase, transform: Any, log_density: LogDensity) -> int:
    """Sets the components of a fresh base to the modes of a density; returns how many different modes were found.

    Points climb from wide draws of base and transform. At the ends that are more than two deviations apart stand
    Gaussians with the curvature there; population Monte Carlo then finds their shares, and improves their means and
    covariances: with x_s from the mixture q, w_s = p(x_s) / q(x_s) and the responsibilities r_ks,

        share_k = sum_s w_s r_ks / sum_s w_s,   mean_k = sum_s w_s r_ks x_s / sum_s w_s r_ks,   and so on.

    Cappe, Douc, Guillin, Marin, Robert (2008), Adaptive importance sampling in general mixture classes, equations 12 to
    14. The base gets their means and deviations as the transform, which should still be affine, sees them; components
    beyond the number of modes share the modes with the largest shares. With a single mode nothing is changed.

    Args:
        base: of K components, on events (D,).
        transform: maps z (S, D) to x (S, D).
        log_density: maps x (S, D) to (S,).
    """
    with torch.no_grad():
        draws = transform(base().sample((len(_WIDER) * _CLIMBERS,)))
    ends = climb(log_density, draws)
    shares, means, roots = _gaussians(log_density, ends, draws.std(0), base.components)
    if len(shares) < 2:
        return len(shares)
    shares, means, roots = _population_monte_carlo(log_density, shares, means, roots)
    owner = torch.arange(base.components) % len(shares)
    owner[len(shares) :] = shares.argsort(descending=True)[owner[len(shares) :]]
    copies = owner.bincount(minlength=len(shares))
    with torch.no_grad():
        for component, mode in enumerate(owner.tolist()):
            x = means[mode] + torch.randn(_DRAWS, len(means[mode]), dtype=means.dtype) @ roots[mode].T
            z = transform.inv(x.to(draws))
            jitter = 0.3 * torch.randn_like(z[0]) if component >= len(shares) else torch.zeros_like(z[0])
            base.loc[component] = (z.mean(0) + jitter * z.std(0)).view(base.event_shape)
            base.log_scale[component] = z.std(0).log().view(base.event_shape)
            base.logits[component] = (shares[mode] / copies[mode]).log()
    return len(shares)


@torch.no_grad()
def rebalance(base: MixtureBase, z: Tensor, log_weights: Tensor) -> None:
    """Gives every component the share of the posterior that importance weights see in it.

    The gradient of a reverse KL for the shares of modes that are far apart is all noise; this is an EM step for them.

    Args:
        base: of draws z (S, D).
        log_weights: (S,), log p(x) - log q(x).
    """
    each = dist.Normal(base.loc, base.log_scale.exp()).to_event(len(base.event_shape))
    log_joint = each.log_prob(z.unsqueeze(1)) + base.logits.log_softmax(-1)
    share = log_weights.softmax(0).to(z) @ log_joint.softmax(-1)
    base.logits.copy_(share.clamp(min=1e-6).log())


def _gaussians(log_density: LogDensity, ends: Tensor, reach: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns shares (M,), modes (M, D) and roots of the covariances (M, D, D) at up to ``most`` different ends."""
    with torch.no_grad():
        height = log_density(ends)
    shares: list[float] = []
    means: list[Tensor] = []
    roots: list[Tensor] = []
    for index in height.nan_to_num(-math.inf, -math.inf, -math.inf).argsort(descending=True).tolist():
        x = ends[index].double()
        near = any(
            torch.linalg.solve_triangular(root, (x - mean)[:, None], upper=False).norm() < _APART
            for mean, root in zip(means, roots, strict=True)
        )
        if near or not height[index].isfinite():
            continue
        root = root_at_mode(log_density, ends[index], reach)
        if root is not None:
            shares.append(float(height[index]) + float(root.diagonal().log().sum()))
            means.append(x)
            roots.append(root)
        if len(means) == most:
            break
    if not means:
        return ends.new_zeros(0), ends.new_zeros(0), ends.new_zeros(0)
    return torch.tensor(shares, dtype=torch.float64).softmax(0), torch.stack(means), torch.stack(roots)


def root_at_mode(log_density: LogDensity, x: Tensor, reach: Tensor) -> Tensor | None:
    """Returns the lower-triangular root of the covariance by the curvature; None where x (D,) is not at a mode.

    That is where the curvature is not negative, or the mode that it points to is a deviation away or more.

    By differences of gradients, at first over a thousandth of ``reach`` (D,), then over a tenth of the deviations that
    are found: torch's second derivative of logaddexp is NaN where one mode is much lower than the other.
    """
    step, root = 1e-3 * reach, torch.zeros(0)
    for _ in range(2):
        away = torch.diag(step)
        score = score_of(log_density, torch.cat([x + away, x - away])).double()
        above, below = score.split(len(x))
        hessian = (below - above) / (2 * step.double()[:, None])
        precision, failed = torch.linalg.cholesky_ex((hessian + hessian.T) / 2)
        if failed or not precision.isfinite().all():
            return None
        root = torch.linalg.cholesky(torch.cholesky_inverse(precision))
        step = 0.1 * root.norm(dim=1).to(x)
    return root if (score_of(log_density, x[None]).to(root) @ root).norm() < 1 else None


@torch.no_grad()
def _population_monte_carlo(
    log_density: Callable[[Tensor], Tensor], shares: Tensor, means: Tensor, roots: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dim = means.shape[1]
    for _ in range(_ROUNDS):
        # An equal number from each, weighted by the whole mixture, so that a small share is no smaller for the draws.
        count = len(shares)
        q = dist.MultivariateNormal(means, scale_tril=roots)
        x = q.sample((_DRAWS // count,)).reshape(-1, dim)
        log_each = q.log_prob(x.unsqueeze(1)) - math.log(count)
        log_p = log_density(x.to(torch.get_default_dtype())).double()
        weight = (log_p - log_each.logsumexp(1)).nan_to_num(-math.inf, -math.inf, -math.inf).softmax(0)
        mine = weight[:, None] * log_each.softmax(1)
        total = mine.sum(0)
        shares = total.clamp(min=1e-6)
        for index in range(count):
            part = mine[:, index]
            effective = part.sum().square() / part.square().sum()
            if effective < 10 * dim:  # too few draws for a covariance
                continue
            mean = part @ x / part.sum()
            away = (x - mean) * (part / part.sum()).sqrt()[:, None]
            root, failed = torch.linalg.cholesky_ex(away.T @ away)
            if not failed:
                means[index], roots[index] = mean, root
    return shares / shares.sum(), means, roots
