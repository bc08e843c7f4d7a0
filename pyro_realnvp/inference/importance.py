"""Importance sampling with a guide: weighted draws, the evidence, and corrected draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Size, Tensor

from .._runtime.checks import at_least
from .many_draws import explained
from .pareto import (
    check_log_weights,
    effective_sample_size,
    pareto_k,
    pareto_k_spread,
    pareto_k_threshold,
    pareto_smooth,
)
from .sites import log_prob_of, plate_nesting


@dataclass(frozen=True, eq=False)
class ImportanceSamples:
    """Draws z_s of a guide q with their log-weights log w_s = log p(x, z_s) - log q(z_s), s = 1, ..., S.

    Attributes:
        samples: the draws by the name of their site, each (S, \\*shape of the site): of the latent sites, and the
            values there of the deterministic sites of the model.
        log_weights: (S,), not normalised.

    Example:
        >>> draws = ImportanceSamples({"z": torch.tensor([0.0, 1.0])}, torch.tensor([1.0, 4.0]).log())
        >>> round(draws.effective_sample_size, 4)  # (1 + 4)^2 / (1 + 16)
        1.4706
        >>> round(draws.resample(10_000)["z"].mean().item(), 1)  # four of five are 1
        0.8
    """

    samples: Mapping[str, Tensor]
    log_weights: Tensor

    @property
    def log_evidence(self) -> float:
        """The logarithm of 1/S sum_s w_s. Its exponential is an unbiased estimate of p(x)."""
        return float(self.log_weights.double().logsumexp(0)) - math.log(len(self.log_weights))

    @property
    def effective_sample_size(self) -> float:
        """The :func:`effective_sample_size` of the weights."""
        return effective_sample_size(self.log_weights)

    @property
    def pareto_k(self) -> float:
        """The :func:`pareto_k` of the weights, which is blind to what the guide never visits."""
        return pareto_k(self.log_weights)

    @property
    def pareto_k_spread(self) -> float:
        """The standard error of k-hat by :func:`pareto_k_spread`, from ten batches of the draws."""
        return pareto_k_spread(self.log_weights)

    def smoothed(self) -> ImportanceSamples:
        """Returns the draws with weights from :func:`pareto_smooth`.

        It warns where k-hat is above :func:`pareto_k_threshold`: S draws of this guide cannot be corrected so.
        """
        k, threshold = self.pareto_k, pareto_k_threshold(len(self.log_weights))
        if k > threshold:
            warnings.warn(
                f"The Pareto k-hat of the importance weights is {k:.2f}, above {threshold:.2f}: "
                f"{len(self.log_weights)} draws of this guide are not enough to correct it.",
                stacklevel=2,
            )
        return ImportanceSamples(self.samples, pareto_smooth(self.log_weights))

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws (num_samples, \\*shape of the site) from these, independently and in proportion to their weights.

        As S grows they become draws from the posterior: sampling / importance resampling, Rubin (1987). They repeat
        draws of the guide, of which there should be many more.
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
    """Draws from a guide, and weighs every draw by joint density over guide density.

        z_s ~ q(z),   log w_s = log p(x, z_s) - log q(z_s)

    Both densities are those of the traces in the space of the sites, with every ``poutine.scale`` and mask of the
    model in them. With the exact posterior as the guide, all log-weights are log p(x).

    Args:
        model, guide: as for :class:`~pyro.infer.SVI`. The guide draws every latent site of the model.
        args, kwargs: what both are called with.
        num_samples: S.
        parallel: whether many draws are made at once, inside an outermost plate; as in
            :class:`~pyro.infer.Predictive` this needs a model that declares its batch dimensions by plates and
            indexes latent sites from the right: ``a[..., group]``.
        batch_size: how many at once, to bound the memory; by default all.

    Raises:
        ValueError: if a latent site has no counterpart, a plate subsamples its data, or a log-weight is NaN or +inf.

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):  # the posterior itself
        ...     pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
        >>> draws = importance_sample(model, guide, torch.tensor(1.0), num_samples=100, parallel=True)
        >>> round(draws.log_evidence, 3), round(draws.effective_sample_size)  # log N(1; 0, 2), and all draws count
        (-1.516, 100)
    """
    at_least("num_samples", num_samples)
    size = at_least("batch_size", num_samples if batch_size is None else batch_size)
    with torch.no_grad(), poutine.block():
        guide_trace, model_trace = _traces(model, guide, args, kwargs)  # also makes a new guide see the model
        names = _shared_sites(guide_trace, model_trace)
        _reject_subsampling(guide_trace, model_trace)
        nesting = plate_nesting(guide_trace, model_trace)
        names += [name for name, site in model_trace.nodes.items() if _is_deterministic(site)]
        shapes: dict[str, Any] = {name: model_trace.nodes[name]["value"].shape for name in names}  # type: ignore[union-attr]
        draws, log_weights = [], []
        for start in range(0, num_samples, size if parallel else 1):
            count = min(size, num_samples - start) if parallel else 1
            if parallel:
                rows = pyro.plate("_importance_samples", count, dim=-1 - nesting)
                with explained("importance_sample(..., parallel=False)", many=True), rows:
                    guide_trace, model_trace = _traces(model, guide, args, kwargs)
            elif start:
                guide_trace, model_trace = _traces(model, guide, args, kwargs)
            dim = -1 - nesting if parallel else None
            log_weights.append((log_prob_of(model_trace, dim) - log_prob_of(guide_trace, dim)).expand(count))
            draws.append({name: _draws(model_trace, name, count, shape) for name, shape in shapes.items()})
    return ImportanceSamples(
        {name: torch.cat([part[name] for part in draws]) for name in names}, check_log_weights(torch.cat(log_weights))
    )


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Trace, Trace]:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)


def _shared_sites(guide_trace: Trace, model_trace: Trace) -> list[str]:
    """Returns the latent sites in the order of the model; an error if guide and model have different ones."""
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


def _is_deterministic(site: Any) -> bool:
    # By what it is: the mark that pyro.deterministic makes is not on the sites that a reparametrisation leaves.
    return site["type"] == "sample" and site["is_observed"] and _is_masked_delta(site["fn"])


def _is_masked_delta(fn: Any) -> bool:
    masked = isinstance(fn, MaskedDistribution) and fn._mask is False
    return masked and isinstance(fn.base_dist, dist.Delta)


def _reject_subsampling(*traces: Trace) -> None:
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
