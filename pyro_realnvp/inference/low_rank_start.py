"""Finds a Gaussian near an unnormalised density of many variables, in O(D k) time and memory: the start of a guide.

With a few dozen draws of more than a hundred variables, the gradients say too little of a covariance for
:mod:`pyro_realnvp.inference.warm_start` to converge. A diagonal Gaussian is found first, by an objective without noise,
and then the few directions in which the density is far from it.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from .warm_start import Gaussian, LogDensity, score_of

_ROUNDS = 4  # of L-BFGS, each in the coordinates that the last one has scaled
_GAIN = 0.1  # nats that a round must bring for another one
_KRYLOV = 4  # products with the Hessian per direction that is wanted
_PASSES = 3  # of the factor analysis; many follow the noise
_LEAST = 0.01  # estimate of a curvature along an axis, whose noise could make it negative
_PROBES = 16
_WORTH = 0.1  # nats, twice, that a direction must save
_FLATTEST = 1e-6  # curvature in a direction, where 1 is that along the axes; flatter ones are noise


class LowRankGaussian(NamedTuple):
    """The Gaussian of loc + s (z + W diag(c) W^T z) for z ~ N(0, I), as :class:`FixedLowRank` maps it."""

    loc: Tensor
    scale: Tensor
    directions: Tensor
    stretch: Tensor

    def draws(self, z: Tensor) -> Tensor:
        return self.loc + self.scale * (z + ((z @ self.directions) * self.stretch) @ self.directions.T)

    def dense(self) -> Gaussian:
        """Returns loc and the lower-triangular scale (D, D)."""
        root = self.directions * (2 * self.stretch + self.stretch.square())
        covariance = torch.eye(len(self.loc)).to(root) + root @ self.directions.T
        return self.loc, torch.linalg.cholesky(self.scale[:, None] * covariance * self.scale)

    def log_det(self) -> Tensor:
        return self.scale.log().sum() + self.stretch.log1p().sum()


def low_rank_gaussian(
    log_density: LogDensity, loc: Tensor, scale: float, *, batch: int, steps: int, rank: int
) -> LowRankGaussian:
    """Finds the Gaussian with the highest ELBO of three: N(loc, scale^2 I), a diagonal one, and that with k directions.

    The diagonal one, N(loc, diag(s)^2), has the highest ELBO for draws that stay the same: z_b ~ N(0, I) and -z_b, so
    that the mean of a Gaussian density is found exactly,

        1/B sum_b log p(loc + s z_b) + sum log s

    by L-BFGS, without a learning rate, from scales that :func:`balanced` finds. Giordano, Ingram, Broderick (2024),
    Black box variational inference with a deterministic objective, equation 4.

    At the highest ELBO of all Gaussians the covariance is the inverse of H = -E[d^2 log p / dx^2] (Opper, Archambeau,
    2009, equation 6). With S = diag(s), S H S has ones on its diagonal where that of all diagonal Gaussians is reached.
    :func:`with_directions` takes those of its eigenvectors that matter most.

    Args:
        log_density: maps (S, D) to (S,); without second derivatives, no directions are found.
        loc, scale: of the Gaussian to begin with, loc of shape (D,).
        batch: B, an even number of draws.
        steps: gradients of all draws in each of up to 4 rounds of L-BFGS.
        rank: k, number of directions.

    Returns:
        loc and s (D,), W (D, k) and c (k,), of the dtype of ``loc``.
    """
    dim, origin = len(loc), loc.detach().to(torch.float64)

    def density(x: Tensor) -> Tensor:
        return log_density(x.to(loc.dtype)).to(x)

    start = LowRankGaussian(origin, torch.full_like(origin, scale), origin.new_zeros(dim, 0), origin.new_zeros(0))
    z = torch.randn_like(origin.expand(batch // 2, dim))
    z = torch.cat([z, -z]) / z.square().mean(0).sqrt()
    found = [start, fitted(density, balanced(density, start, z), z, steps=steps)]
    with suppress(RuntimeError):  # of a model without second derivatives, or of an eigenvalue that is not finite
        found.append(with_directions(density, found[-1], z, min(rank, dim)))
    fresh = torch.randn_like(origin.expand(4 * batch, dim))
    with torch.no_grad():
        elbos = [float(density(q.draws(fresh)).mean() + q.log_det()) for q in found]
    best = max(zip(elbos, found, strict=True), key=lambda pair: pair[0] if pair[0] < math.inf else -math.inf)[1]
    return LowRankGaussian(*(each.to(loc.dtype) for each in best))


def balanced(log_density: LogDensity, q: LowRankGaussian, z: Tensor) -> LowRankGaussian:
    """Scales a diagonal Gaussian by the gradients of the density at its draws: s^4 = var x / var(d log p / dx).

    For a density of independent Gaussians these are their deviations. The scales are halved until the density is finite
    at all draws.
    """
    for halvings in range(20):
        narrow = q._replace(scale=q.scale / 2**halvings)
        x = narrow.draws(z)
        score = score_of(log_density, x)
        if score.isfinite().all() and log_density(x).isfinite().all():
            ratio = (x.var(0) / score.var(0)).sqrt().sqrt()
            return narrow._replace(scale=torch.where(ratio.isfinite() & (ratio > 0), ratio, narrow.scale))
    return q


def fitted(log_density: LogDensity, q: LowRankGaussian, z: Tensor, *, steps: int) -> LowRankGaussian:
    """Maximises the ELBO of a diagonal Gaussian at the draws of z (B, D), in rounds of ``steps`` gradients."""
    last = math.inf
    for _ in range(_ROUNDS):
        q, loss = _round(log_density, q, z, steps)
        if not loss < last - _GAIN:
            break
        last = loss
    return q


def _round(log_density: LogDensity, q: LowRankGaussian, z: Tensor, steps: int) -> tuple[LowRankGaussian, float]:
    shift = torch.zeros_like(q.loc, requires_grad=True)
    log_scale = torch.zeros_like(q.loc, requires_grad=True)
    best, lowest = q, math.inf

    def moved() -> LowRankGaussian:
        return q._replace(loc=q.loc + q.scale * shift, scale=q.scale * log_scale.exp())

    def closure() -> Tensor:
        nonlocal best, lowest
        now = moved()
        loss = -log_density(now.draws(z)).mean() - now.log_det()
        shift.grad, log_scale.grad = torch.autograd.grad(loss, (shift, log_scale))
        if not (loss.isfinite() and shift.grad.isfinite().all() and log_scale.grad.isfinite().all()):
            # The line search interpolates, and would continue with NaN from anything that is not finite.
            shift.grad, log_scale.grad = torch.zeros_like(shift), torch.zeros_like(shift)
            return torch.full_like(loss, 1e3 * (1 + abs(lowest)) if lowest < math.inf else 0.0)
        if float(loss.detach()) < lowest:
            best, lowest = LowRankGaussian(*(each.detach() for each in now)), float(loss.detach())
        return loss.detach()

    search = torch.optim.LBFGS(
        [shift, log_scale], max_iter=steps, max_eval=steps, history_size=20, line_search_fn="strong_wolfe"
    )
    with torch.enable_grad():
        search.step(closure)
    return best, lowest


def with_directions(log_density: LogDensity, q: LowRankGaussian, z: Tensor, rank: int) -> LowRankGaussian:
    """Adds to a diagonal Gaussian the directions in which the density is most unlike it.

    With A = S H S, H = -E[d^2 log p / dx^2] over the draws of z (B, D), the approximation is

        A = R (I + W diag(e - 1) W^T) R,   R = diag(r)

    with up to k eigenvalues e and eigenvectors W of R^-1 A R^-1 in a Krylov space, those where e - 1 - log e, twice the
    divergence that they save, is largest and more than 0.1. r is such that the diagonal of A is what :func:`_diagonal`
    finds, ones at that of a diagonal Gaussian with the highest ELBO: a principal factor analysis of the precision. The
    covariance is S A^-1 S.
    """
    product = _curvature(log_density, q, z)
    basis, images = _krylov(product, torch.randn_like(q.loc), min(_KRYLOV * rank, len(q.loc)))
    inner = (basis.T @ images + images.T @ basis) / 2
    diagonal = precision = _diagonal(product, basis, images, inner)  # r^2, without directions
    for _ in range(_PASSES):
        # Of the pencil (Q^T A Q, Q^T R^2 Q), in the basis of an orthonormal R Q.
        root = torch.linalg.cholesky(basis.T @ (precision[:, None] * basis))
        half = torch.linalg.solve_triangular(root, inner, upper=False)
        values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
        saved = torch.where(values > _FLATTEST, values - 1 - values.log(), 0)
        chosen = saved.topk(min(rank, int((saved > _WORTH).sum()))).indices
        directions = torch.linalg.solve_triangular(root.T, vectors[:, chosen], upper=True)
        directions = precision.sqrt()[:, None] * (basis @ directions)
        scale = q.scale / precision.sqrt()
        precision = diagonal / (1 + directions.square() @ (values[chosen] - 1))
    return LowRankGaussian(q.loc, scale, torch.linalg.qr(directions)[0], values[chosen].rsqrt() - 1)


def _diagonal(product: Callable[[Tensor], Tensor], basis: Tensor, images: Tensor, inner: Tensor) -> Tensor:
    """Estimates the diagonal of A, given Q, A Q and Q^T A Q: what is known of it, and the rest at random signs.

    It is ones where the diagonal Gaussian is the best one. With few draws of many correlated variables its scales fit
    the draws instead. What the estimate differs from ones is shrunk by the share of its own noise, as James and Stein.
    """
    known = (2 * images * basis - (basis @ inner) * basis).sum(1)
    rest = []
    for _ in range(_PROBES):
        v = torch.where(torch.rand_like(known) < 0.5, -1.0, 1.0).to(known)
        inside = basis.T @ v
        rest.append(v * (product(v) - images @ inside - basis @ (images.T @ v - inner @ inside)))
    off = known + torch.stack(rest).mean(0) - 1
    noise = torch.stack(rest).var(0).mean() / _PROBES
    share = (1 - noise / off.square().mean()).nan_to_num(0).clamp(0, 1)
    return (1 + share * off).clamp(min=_LEAST)


def _curvature(log_density: LogDensity, q: LowRankGaussian, z: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns v -> S H S v."""
    with torch.enable_grad():
        x = q.draws(z).requires_grad_()
        (score,) = torch.autograd.grad(log_density(x).sum(), x, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(score, x, (q.scale * v).expand_as(x), retain_graph=True)
        return -q.scale * image.mean(0)

    return product


def _krylov(product: Callable[[Tensor], Tensor], start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns an orthonormal basis Q (D, m) of start, A start, A^2 start, ... and A Q, m <= count: Lanczos' method."""
    basis, images = start.new_zeros(len(start), count), start.new_zeros(len(start), count)
    vector = start
    for index in range(count):
        before, size = basis[:, :index], vector.norm()
        for _ in range(2):  # once does not suffice in floating point
            vector = vector - before @ (before.T @ vector)
        if vector.norm() <= 1e-6 * size:  # the space is complete
            return before, images[:, :index]
        basis[:, index] = vector / vector.norm()
        vector = images[:, index] = product(basis[:, index])
    return basis, images
