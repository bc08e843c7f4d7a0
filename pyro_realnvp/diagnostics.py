"""How good is a guide? Importance weights, their Pareto k-hat and effective sample size, and corrected draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.stats import fit_generalized_pareto
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Size, Tensor

from .sites import log_prob_of, plate_nesting

__all__ = [
    "ImportanceSamples",
    "effective_sample_size",
    "importance_resample",
    "importance_sample",
    "pareto_k",
    "pareto_k_threshold",
    "pareto_smooth",
]


@dataclass(frozen=True, eq=False)
class ImportanceSamples:
    """Draws z_s of a guide q with their log-weights log w_s = log p(x, z_s) - log q(z_s), s = 1, ..., S.

    Attributes:
        samples: the draws by the name of their site, each (S, \\*shape of the site).
        log_weights: (S,), not normalised.
    """

    samples: Mapping[str, Tensor]
    log_weights: Tensor

    @property
    def log_evidence(self) -> float:
        """log (1/S sum_s w_s). Its exponential is an unbiased estimate of p(x)."""
        return float(self.log_weights.double().logsumexp(0)) - math.log(len(self.log_weights))

    @property
    def effective_sample_size(self) -> float:
        """:func:`effective_sample_size` of the weights."""
        return effective_sample_size(self.log_weights)

    @property
    def pareto_k(self) -> float:
        """:func:`pareto_k` of the weights."""
        return pareto_k(self.log_weights)

    def smoothed(self) -> ImportanceSamples:
        """The same draws with weights from :func:`pareto_smooth`."""
        return ImportanceSamples(self.samples, pareto_smooth(self.log_weights))

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws (num_samples, \\*shape of the site) from these, independently and each in proportion to its weight.

        As S grows they become draws from the posterior: sampling / importance resampling, Rubin (1987).
        """
        weights = (self.log_weights.double() - self.log_weights.max()).exp()
        index = torch.multinomial(weights, num_samples, replacement=True)
        return {name: value[index] for name, value in self.samples.items()}


def importance_sample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    parallel: bool = False,
    batch_size: int | None = None,
    **kwargs: Any,
) -> ImportanceSamples:
    """Draws from a guide, and weighs every draw by how much more the posterior wants it than the guide gives it.

        z_s ~ q(z),   log w_s = log p(x, z_s) - log q(z_s)

    Both densities are those of the traces in the space of the sites, with every ``poutine.scale`` and mask of the
    model in them. A guide that is the exact posterior has the log-weights log p(x), all the same.

    Args:
        model, guide: as for :class:`~pyro.infer.SVI`. The guide draws every latent site of the model.
        args, kwargs: what both are called with.
        num_samples: S.
        parallel: whether many draws are made at once, inside an outermost plate; as in
            :class:`~pyro.infer.Predictive` this needs a model that declares its batch dimensions by plates.
        batch_size: how many at once, to bound the memory; by default all.

    Raises:
        ValueError: if a latent site has no counterpart, a plate subsamples its data, or a log-weight is NaN or +inf.
    """
    _at_least("num_samples", num_samples, 1)
    size = _at_least("batch_size", num_samples if batch_size is None else batch_size, 1)
    with torch.no_grad(), poutine.block():
        guide_trace, model_trace = _traces(model, guide, args, kwargs)  # also makes a new guide see the model
        names = _shared_sites(guide_trace, model_trace)
        _refuse_subsampling(guide_trace, model_trace)
        nesting = plate_nesting(guide_trace, model_trace)
        shapes: dict[str, Any] = {name: model_trace.nodes[name]["value"].shape for name in names}  # type: ignore[union-attr]
        draws, log_weights = [], []
        for start in range(0, num_samples, size if parallel else 1):
            count = min(size, num_samples - start) if parallel else 1
            if parallel:
                with pyro.plate("_importance_samples", count, dim=-1 - nesting):
                    guide_trace, model_trace = _traces(model, guide, args, kwargs)
            elif start:
                guide_trace, model_trace = _traces(model, guide, args, kwargs)
            dim = -1 - nesting if parallel else None
            log_weights.append((log_prob_of(model_trace, dim) - log_prob_of(guide_trace, dim)).expand(count))
            draws.append({name: _draws(guide_trace, name, count, shape) for name, shape in shapes.items()})
    return ImportanceSamples(
        {name: torch.cat([part[name] for part in draws]) for name in names}, _checked(torch.cat(log_weights))
    )


def importance_resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    num_draws: int,
    parallel: bool = False,
    batch_size: int | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Samples of the posterior by correcting a guide: draws, weighs, smooths the weights and resamples.

    Short for ``importance_sample(...).smoothed().resample(num_samples)``. It warns where k-hat says that this number
    of draws cannot correct this guide.

    Args:
        model, guide, args, kwargs, parallel, batch_size: as for :func:`importance_sample`.
        num_samples: how many samples to return. They repeat draws: many more than ``num_samples`` should be drawn.
        num_draws: S, how many draws of the guide to weigh.

    Returns:
        A dict by name of site, each (num_samples, \\*shape of the site).
    """
    weighted = importance_sample(
        model, guide, *args, num_samples=num_draws, parallel=parallel, batch_size=batch_size, **kwargs
    )
    k, threshold = weighted.pareto_k, pareto_k_threshold(num_draws)
    if k > threshold:
        warnings.warn(
            f"The Pareto k-hat of the importance weights is {k:.2f}, above {threshold:.2f}: {num_draws} draws of this "
            "guide are not enough to correct it.",
            stacklevel=2,
        )
    return weighted.smoothed().resample(num_samples)


# ------------------------------------------------------------------------------------------------- of the weights


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum_s w_s)^2 / sum_s w_s^2, from 1 to S: how many equal weights have the same relative variance.

    Kong (1992). It is optimistic where k-hat is large, as the largest weights may not have been seen yet.

    Args:
        log_weights: (S,), normalised or not.
    """
    log_weights = _checked(log_weights).double()
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def pareto_k(log_weights: Tensor) -> float:
    """k-hat: the shape of a generalised Pareto distribution fitted to the largest importance weights.

    The weights have finite moments of all orders below 1/k: k-hat below 0.5 means a finite variance. Read against
    :func:`pareto_k_threshold`,

        k-hat <= min(1 - 1/log10(S), 0.7)   estimates with these weights can be trusted, and so can their error bars;
        k-hat up to 1                       S draws are too few, and the number needed grows quickly;
        k-hat >= 1                          the weights have no finite mean: no number of draws helps.

    The tail are the M = ceil(min(S/5, 3 sqrt(S))) largest weights; the fit is that of Zhang and Stephens (2009), with
    a weak prior at 0.5 that weighs as much as 10 of them. Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed
    importance sampling; for guides: Yao, Vehtari, Simpson, Gelman (2018), Yes, but did it work?

    Args:
        log_weights: (S,) with S >= 25, normalised or not.

    Returns:
        k-hat; -inf if the weights of the tail are equal to within 1e-4 of each other, as they are for an exact guide,
        and inf if fewer than 5 of them exceed all others.
    """
    return _fit_tail(_checked(log_weights))[0]


def pareto_k_threshold(num_samples: int) -> float:
    """min(1 - 1/log10(S), 0.7): the largest k-hat at which S draws suffice. Vehtari et al. (2024)."""
    return min(1 - 1 / math.log10(_at_least("num_samples", num_samples, 2)), 0.7)


def pareto_smooth(log_weights: Tensor) -> Tensor:
    """Pareto smoothed log-weights: the M largest weights become expected order statistics of their fitted tail.

        w_(m) = F^-1((m - 1/2) / M; k-hat, sigma),   m = 1, ..., M, and at most the largest weight seen

    Estimates with them have less variance, and a bias that vanishes as S grows. Weights whose tail cannot be fitted,
    where :func:`pareto_k` is infinite, are returned as they are. Vehtari et al. (2024).

    Args:
        log_weights: (S,) with S >= 25, normalised or not.

    Returns:
        (S,), on the scale of those given.
    """
    values = _checked(log_weights).double()
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
    """k and sigma of the tail, and the cutoff below it, for weights divided by the largest one."""
    _at_least("The number of log-weights for a Pareto fit", len(log_weights), 25)
    values = log_weights.double().sort().values.cpu()
    values = (values - values[-1]).exp()
    count = _tail_length(len(values))
    cutoff = float(values[-count - 1])
    if cutoff > 1 - 1e-4:
        return -math.inf, 0.0, cutoff
    excess = values[-count:] - cutoff
    excess = excess[excess > 0]
    if len(excess) < 5:
        return math.inf, 0.0, cutoff
    k, sigma = fit_generalized_pareto(excess)
    return (k, sigma, cutoff) if math.isfinite(k) else (math.inf, 0.0, cutoff)


def _checked(log_weights: Tensor) -> Tensor:
    bad = ~(log_weights < math.inf)
    if log_weights.dim() != 1 or not len(log_weights):
        raise ValueError(f"Log-weights have shape (S,) with S >= 1, but got {tuple(log_weights.shape)}.")
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(f"Log-weights must be below infinity, but got {float(log_weights[index])} for draw {index}.")
    if not (log_weights > -math.inf).any():
        raise ValueError(f"At least one weight must be positive, but got {len(log_weights)} zeros.")
    return log_weights


def _at_least(argument: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, but got {value}.")
    return value


# --------------------------------------------------------------------------------------------------- of the traces


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Trace, Trace]:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)


def _shared_sites(guide_trace: Trace, model_trace: Trace) -> list[str]:
    """The latent sites, in the order of the model; an error if guide and model have different ones."""
    drawn, latent = _latent_sites(guide_trace), _latent_sites(model_trace)
    for name in latent:
        if name not in drawn:
            raise ValueError(f"Importance sampling needs a guide for every latent site, but got none for '{name}'.")
    for name in drawn:
        if name not in latent:
            raise ValueError(f"Importance sampling needs a latent site for every draw, but '{name}' has none.")
    return latent


def _latent_sites(trace: Trace) -> list[str]:
    return [name for name, site in trace.iter_stochastic_nodes() if not (site["infer"] or {}).get("is_auxiliary")]


def _refuse_subsampling(*traces: Trace) -> None:
    for trace in traces:
        for site in trace.nodes.values():
            for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise ValueError(
                        f"Importance sampling needs all the data, but plate '{frame.name}' subsamples "
                        f"{frame.size} of {frame.full_size}."
                    )


def _draws(trace: Trace, name: str, count: int, shape: Size) -> Tensor:
    value: Any = trace.nodes[name]["value"]
    return value.reshape(value.numel() // max(shape.numel(), 1) or count, *shape).expand(count, *shape)
