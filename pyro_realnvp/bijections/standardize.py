"""An affine layer with the mean and covariance of data, behind which a flow starts as the best Gaussian."""

import torch
from torch import Tensor

from .._runtime.checks import check_floating
from .linear import FixedAffine

_SHRINKAGES = torch.logspace(-6, 0, 73, dtype=torch.float64)


def standardized_from(x: Tensor) -> FixedAffine:
    """Makes the affine map from N(0, I) to a Gaussian with the mean and the shrunk covariance of data.

        Flow(StandardNormal(D), [*realnvp_transforms(D), standardized_from(x)])

    As the last layer it lets the others work on uncorrelated coordinates, and a flow that starts as the identity starts
    as that Gaussian: what few data cannot improve, it keeps. The covariance is diag(s) C diag(s), with the standard
    deviations s and

        C = (1 - a) R + a I,   R the correlations,

    where the shrinkage a has the highest likelihood of every row given the others, which has a closed form. Theiler
    (2012), The incredible shrinking covariance estimator, section 3.1. A constant coordinate gets s = 1.

    Args:
        x: the training data, (N, D) with two rows or more.

    Returns:
        A :class:`FixedAffine` latent -> data, of the dtype of x; its loc and scale are saved with the flow.

    Raises:
        ValueError: if x is no floating point tensor (N, D), or has a value that is not finite.

    Example:
        >>> x = torch.randn(1000, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.1]]) + 5
        >>> z = standardized_from(x).inv(x)
        >>> torch.allclose(z.mean(0), torch.zeros(2), atol=1e-3), torch.allclose(z.T.cov(), torch.eye(2), atol=0.1)
        (True, True)
    """
    check_floating("standardized_from", "x", x)
    if x.dim() != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(f"standardized_from needs x of shape (N, D) with two rows or more, but got {tuple(x.shape)}.")
    rows = x.detach().double()
    if not rows.isfinite().all():
        raise ValueError(f"standardized_from needs finite x, but got {float(rows[~rows.isfinite()][0])}.")
    loc, spread = rows.mean(0), rows.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    standard = (rows - loc) / spread
    correlations = standard.T @ standard / len(rows)
    shrunk = torch.lerp(correlations, torch.eye(len(loc), dtype=rows.dtype, device=rows.device), _shrinkage(standard))
    factor = spread[:, None] * torch.linalg.cholesky(shrunk)
    return FixedAffine(loc.to(x.dtype), factor.to(x.dtype))


def _shrinkage(x: Tensor) -> float:
    """Returns the shrinkage of rows (N, D) with mean 0 and variances 1 that leaves the likeliest row out, on average.

    Without row x the covariance is G - b x x^T, with G = N b R + a I and b = (1 - a) / (N - 1), so that its determinant
    and inverse are those of G and of r = x^T G^-1 x: minus twice the log-likelihood of x is, up to a constant,
    log|G| + log(1 - b r) + r / (1 - b r).
    """
    count = len(x)
    values, vectors = torch.linalg.eigh(x.T @ x / count)
    along = (x @ vectors).square()
    best, lowest = 1.0, torch.inf
    for a in _SHRINKAGES.tolist():
        b = (1 - a) / (count - 1)
        scales = count * b * values.clamp(min=0) + a
        left = 1 - b * (along / scales).sum(1)
        if left.min() <= 0:  # a row that the others say nothing of
            continue
        loss = (scales.log().sum() + left.log() + (along / scales).sum(1) / left).mean().item()
        if loss < lowest:
            best, lowest = a, loss
    return best
