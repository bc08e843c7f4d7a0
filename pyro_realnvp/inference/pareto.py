"""The quality of importance weights: effective sample size, Pareto k-hat, and Pareto smoothing."""

import math

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from .._runtime.checks import at_least, check_floating

_EQUAL = 0.05  # relative difference of weights that count as equal


def effective_sample_size(log_weights: Tensor) -> float:
    """Computes (sum_s w_s)^2 / sum_s w_s^2, the number of equal weights with this relative variance, from 1 to S.

    Kong (1992). It is optimistic where k-hat is large, as the largest weights may not have been seen yet.

    Args:
        log_weights: (S,), normalised or not.

    Example:
        >>> round(effective_sample_size(torch.zeros(100)), 4)
        100.0
        >>> round(effective_sample_size(torch.tensor([1.0, 3.0]).log()), 4)  # (1 + 3)^2 / (1 + 9)
        1.6
    """
    log_weights = check_log_weights(log_weights).double()
    log_weights = log_weights - log_weights.max()
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def pareto_k(log_weights: Tensor) -> float:
    """Computes k-hat, the shape of a generalised Pareto distribution fitted to the largest importance weights.

    The weights have finite moments of all orders below 1/k: k-hat below 0.5 means a finite variance. Read against
    :func:`pareto_k_threshold`,

        k-hat <= min(1 - 1/log10(S), 0.7)   estimates with these weights can be trusted, and so can their error bars;
        k-hat up to 1                       S draws are too few, and the number needed grows quickly;
        k-hat >= 1                          the weights have no finite mean: no number of draws helps.

    The tail is the M = ceil(min(S/5, 3 sqrt(S))) largest weights; the fit is that of Zhang and Stephens (2009), with
    a weak prior at 0.5 that weighs as much as 10 of them. Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed
    importance sampling; for guides: Yao, Vehtari, Simpson, Gelman (2018), Yes, but did it work?

    It judges the guide where the guide draws, and knows nothing of what it never visits: a second mode, or the neck of
    a funnel. In the centred eight schools the neck holds 1 % of the posterior, and none of 100,000 draws of a guide
    with a good k-hat was in it. And it is an estimate: at 10,000 draws two of them easily differ by 0.2;
    :func:`pareto_k_spread` says how far to trust this one.

    Args:
        log_weights: (S,) with S >= 25, normalised or not.

    Returns:
        k-hat; -inf if the M + 1 largest weights are within 5 % of each other, as they are for an exact guide. Cutting
        them off would then change the sum of all by less than 5 % of M/S, while the shape of their tail comes from a
        far corner, or from rounding, and says nothing. And inf if fewer than 5 of them exceed all others.

    Example:
        >>> u = (torch.arange(10_000) + 0.5) / 10_000
        >>> light, heavy = -0.3 * u.log(), -1.2 * u.log()  # of weights u^-k, which have the tail k
        >>> round(pareto_k(light), 1), round(pareto_k(heavy), 1)
        (0.3, 1.2)
    """
    return _fit_tail(check_log_weights(log_weights))[0]


def pareto_k_spread(log_weights: Tensor, batches: int = 10) -> float:
    """Estimates the standard error of :func:`pareto_k`, from its values k_b in equal batches of the weights.

        error^2 = M_b / M  sum_b (k_b - mean k)^2 / (B - 1),   b = 1, ..., B

    The variance of k-hat falls as 1/M, the number of weights in the tail, of which a batch has M_b. The error says
    nothing of what no batch has seen.

    Args:
        log_weights: (S,) with S >= 25 B, normalised or not, in the order of the draws.
        batches: B.

    Returns:
        The error; inf if some k_b are infinite, but 0 if all are infinite and equal.

    Example:
        >>> log_weights = -0.5 * torch.rand(10_000).log()  # of weights with k = 1/2
        >>> abs(pareto_k(log_weights) - 0.5) < 4 * pareto_k_spread(log_weights) < 1
        True
    """
    at_least("batches", batches, 2)
    size = at_least(
        "The number of log-weights of a batch for a Pareto fit", len(check_log_weights(log_weights)) // batches, 25
    )
    parts = torch.tensor([pareto_k(part) for part in log_weights.split(size)[:batches]], dtype=torch.float64)
    if not parts.isfinite().all():
        return 0.0 if bool((parts == parts[0]).all()) else math.inf
    return float(parts.std()) * math.sqrt(_tail_length(size) / _tail_length(len(log_weights)))


def pareto_k_threshold(num_samples: int) -> float:
    """Computes min(1 - 1/log10(S), 0.7), the largest k-hat at which S draws suffice. Vehtari et al. (2024).

    Example:
        >>> round(pareto_k_threshold(1000), 3), pareto_k_threshold(1_000_000)
        (0.667, 0.7)
    """
    return min(1 - 1 / math.log10(at_least("num_samples", num_samples, 2)), 0.7)


def pareto_smooth(log_weights: Tensor) -> Tensor:
    """Smooths log-weights: the M largest weights become expected order statistics of their fitted tail.

        w_(m) = F^-1((m - 1/2) / M; k-hat, sigma),   m = 1, ..., M, and at most the largest weight seen

    Estimates with them have less variance, and a bias that vanishes as S grows. Weights whose tail cannot be fitted,
    where :func:`pareto_k` is infinite, are returned as they are. Vehtari et al. (2024).

    Args:
        log_weights: (S,) with S >= 25, normalised or not.

    Returns:
        (S,), on the scale of those given.

    Example:
        >>> log_weights = -0.8 * torch.rand(1000).log()
        >>> smoothed = pareto_smooth(log_weights)
        >>> body = log_weights < log_weights.quantile(0.9)  # the tail are the 95 largest of 1000
        >>> torch.equal(smoothed[body], log_weights[body]), bool(smoothed.max() <= log_weights.max())
        (True, True)
    """
    values = check_log_weights(log_weights).double()
    k, sigma, cutoff = _fit_tail(log_weights)
    if not math.isfinite(k):
        return log_weights
    largest = values.max()
    count = _tail_length(len(values))
    tail = values.argsort()[-count:]
    upper = torch.log1p(-(torch.arange(count, dtype=values.dtype, device=values.device) + 0.5) / count)
    excess = torch.expm1(-k * upper) * (sigma / k) if k else -sigma * upper
    smoothed = values.clone()
    smoothed[tail] = ((cutoff + excess).log() + largest).clamp(max=largest)
    return smoothed.to(log_weights.dtype)


def _tail_length(num_samples: int) -> int:
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def _fit_tail(log_weights: Tensor) -> tuple[float, float, float]:
    """Fits k and sigma of the tail; returns them and the cutoff below it, for weights divided by the largest one."""
    at_least("The number of log-weights for a Pareto fit", len(log_weights), 25)
    values = log_weights.double().sort().values.cpu()
    values = (values - values[-1]).exp()
    count = _tail_length(len(values))
    cutoff = float(values[-count - 1])
    if cutoff > 1 - _EQUAL:
        return -math.inf, 0.0, cutoff
    excess = values[-count:] - cutoff
    excess = excess[excess > 0]
    if len(excess) < 5:
        return math.inf, 0.0, cutoff
    k, sigma = fit_generalized_pareto(excess)
    return (k, sigma, cutoff) if math.isfinite(k) else (math.inf, 0.0, cutoff)


def check_log_weights(log_weights: Tensor) -> Tensor:
    """Returns the log-weights; an error if they are not floating point (S,), one is NaN or +inf, or all are -inf."""
    check_floating("An estimate by weights", "log_weights", log_weights)
    bad = ~(log_weights < math.inf)
    if log_weights.dim() != 1 or not len(log_weights):
        raise ValueError(f"Log-weights have shape (S,) with S >= 1, but got {tuple(log_weights.shape)}.")
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(f"Log-weights must be below infinity, but got {float(log_weights[index])} for draw {index}.")
    if not (log_weights > -math.inf).any():
        raise ValueError(f"At least one weight must be positive, but got {len(log_weights)} zeros.")
    return log_weights
