"""Finds a Gaussian near an unnormalised density, from its gradients alone: the start of a guide."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

LogDensity = Callable[[Tensor], Tensor]
Gaussian = tuple[Tensor, Tensor]

_GAIN = 0.5  # nats that a round must bring for another one


def best_gaussian(
    log_density: LogDensity,
    loc: Tensor,
    scale: float,
    *,
    batch: int,
    steps: int,
    others: Sequence[Gaussian] = (),
    rounds: int = 0,
) -> Gaussian:
    """Finds the Gaussian with the highest ELBO among a few: batch-and-match from N(loc, scale^2 I), from the Laplace
    approximation at the mode near it, and from others.

    Where a likelihood is far sharper at ``loc`` than at the mode only the second start converges; where the mode is far
    from most of the mass, as in a funnel, only the first. Both starts themselves are among the few. The first walks at
    the pace max(batch, D): at batch D, of the source, one batch of a horseshoe posterior of 62 latents, whose 32 scores
    span half of the space, throws the Gaussian so far that no gradient there is finite.

    Batch-and-match then goes on from the best one as long as that gains half a nat: among 218 latents of a centred
    hierarchy 200 steps had gained 110 nats, and the next 400 another 110.

    Args:
        log_density: maps (S, D) to (S,); differentiable, may be -inf, inf or NaN in places.
        loc, scale: of the Gaussian to begin with, loc of shape (D,).
        batch, steps: as for :func:`batch_and_match`.
        others: that are known already, each loc (D,) and a lower-triangular scale (D, D).
        rounds: the most in which it goes on, each of ``steps``.

    Returns:
        loc (D,) and the lower-triangular scale (D, D), of the dtype of ``loc``.
    """
    start = loc, scale * torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
    found = [start, _laplace(log_density, *start), *others]
    paces = [max(batch, len(loc)), *(batch * len(loc) for _ in found[1:])]
    for origin, pace in zip(tuple(found), paces, strict=True):
        try:
            found.append(batch_and_match(log_density, *origin, batch=batch, steps=steps, pace=pace))
        except LinAlgError:  # it diverged
            continue
    z = torch.randn(4 * batch, len(loc), dtype=loc.dtype, device=loc.device)

    @torch.no_grad()
    def elbo(gaussian: Gaussian) -> float:
        mu, tril = gaussian
        value = float((log_density(mu + z @ tril.T) + tril.diagonal().log().sum()).mean())
        return value if value < math.inf else -math.inf

    elbos = [elbo(gaussian) for gaussian in found]
    highest = max(elbos)
    best = found[elbos.index(highest)]
    for _ in range(rounds):
        try:
            further = batch_and_match(log_density, *best, batch=batch, steps=steps)
        except LinAlgError:
            break
        reached = elbo(further)
        if not reached > highest + _GAIN:
            break
        best, highest = further, reached
    return best


def batch_and_match(
    log_density: LogDensity, loc: Tensor, scale: Tensor, *, batch: int, steps: int, pace: float | None = None
) -> Gaussian:
    """Fits a Gaussian by matching its scores to those of the density at batches of its own draws.

    With z_b ~ N(mu, Sigma), scores g_b = grad log p(z_b), their means and covariances z, C and g, G, and r = 1/(1 + s),

        Sigma' U Sigma' + Sigma' = V,   U = s G + s r g g^T,   V = Sigma + s C + s r (mu - z)(mu - z)^T,
        mu' = r mu + (1 - r)(Sigma' g + z)

    is the Gaussian closest to the scores, less its divergence from the last one over s. There is no step size to tune
    and no unit matters: it is equivariant under affine maps. Here s = ``pace`` for the first half of the steps, and
    falls as 1/t in the second. Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei, Saul (2024), algorithm 1.

    Scores count at most 5 times as much as the median one of their batch, each measured by its length in the
    coordinates where Sigma is I: heavy tails and the necks of funnels have a few that would outweigh all others.

    Args:
        log_density: maps (S, D) to (S,). Draws where its gradient is not finite are left out.
        loc, scale: it begins at N(loc, scale scale^T), (D,) and lower-triangular (D, D).
        batch: draws per step.
        steps: number of steps.
        pace: s, by default batch D.

    Returns:
        loc (D,) and the lower-triangular scale (D, D).

    Raises:
        LinAlgError: if a covariance is no longer positive definite, as where all gradients are infinite.
    """
    dim = len(loc)
    mu = loc.detach().to(torch.float64)
    root = scale.detach().to(mu)
    sigma = root @ root.T
    first = batch * dim if pace is None else pace
    for step in range(steps):
        root = torch.linalg.cholesky(sigma)
        z = mu + torch.randn(batch, dim, dtype=mu.dtype, device=mu.device) @ root.T
        score = score_of(log_density, z.to(loc.dtype)).to(mu.dtype)
        finite = score.isfinite().all(-1)
        if finite.sum() < 2:
            raise LinAlgError(f"No gradient is finite at step {step}.")
        z, score = z[finite], score[finite]
        length = (score @ root).norm(dim=1, keepdim=True)
        score = score * (5 * length.median() / length).nan_to_num(1.0).clamp(max=1)
        z_mean, score_mean = z.mean(0), score.mean(0)
        pace = first / max(1, step - steps // 2)
        ratio = pace / (1 + pace)
        u = pace * _covariance(score, score_mean) + ratio * score_mean.outer(score_mean)
        v = sigma + pace * _covariance(z, z_mean) + ratio * (mu - z_mean).outer(mu - z_mean)
        # With V = A A^T and A^T U A = Q diag(e) Q^T, Sigma' = 2 A Q diag(1 / (1 + sqrt(1 + 4 e))) Q^T A^T.
        root = torch.linalg.cholesky(v)
        values, vectors = torch.linalg.eigh(root.T @ u @ root)
        root = root @ vectors
        sigma = 2 * (root / (1 + (1 + 4 * values.clamp(min=0)).sqrt())) @ root.T
        mu = (mu + pace * (sigma @ score_mean + z_mean)) / (1 + pace)
    return mu.to(loc), torch.linalg.cholesky(sigma).to(loc)


def _covariance(x: Tensor, mean: Tensor) -> Tensor:
    return (x - mean).T @ (x - mean) / len(x)


def score_of(log_density: LogDensity, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_density(x).sum(), x)
    return score


def _laplace(log_density: LogDensity, loc: Tensor, scale: Tensor) -> Gaussian:
    """Returns the mode and a scale from the curvature there; ``scale`` if that is not negative definite or unknown."""
    mode = _mode(log_density, loc)

    def value(x: Tensor) -> Tensor:
        return -log_density(x[None]).sum()

    try:
        hessian = torch.autograd.functional.hessian(value, mode).to(torch.float64)
        # The inverse of H = R R^T is R^-T R^-1; its lower-triangular root is returned.
        covariance = torch.cholesky_inverse(torch.linalg.cholesky((hessian + hessian.T) / 2))
        return mode, torch.linalg.cholesky(covariance).to(loc)
    except RuntimeError:  # a Cholesky factorisation, or a model without second derivatives
        return mode, scale


def _mode(log_density: LogDensity, loc: Tensor) -> Tensor:
    """Returns the point that L-BFGS reaches from ``loc``, or ``loc`` if that is not finite."""
    x = loc.detach().clone().requires_grad_()

    def closure() -> Tensor:
        x.grad = None
        if not x.isfinite().all():  # after an overflow; a model may raise an error there
            return torch.full_like(x[0], math.inf)
        loss = -log_density(x[None]).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        for _ in range(5):  # restarted, as its memory of the curvature far out misleads it near the mode
            torch.optim.LBFGS([x], max_iter=100, line_search_fn="strong_wolfe").step(closure)
    return x.detach() if x.isfinite().all() else loc
