"""Draws of a posterior for ArviZ, with the dimensions named by the plates of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import MCMC
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Size, Tensor

from .importance import ImportanceSamples
from .neutra import NeuTra

_OF_DRAWS = ("chain", "draw")


@torch.no_grad()
def to_arviz(
    draws: MCMC | ImportanceSamples | Mapping[str, Tensor],
    model: Callable[..., Any],
    *args: Any,
    log_likelihood: bool = False,
    **kwargs: Any,
) -> Any:
    """Makes the ``xarray.DataTree`` that the functions of ArviZ take, from draws of the latent sites of a model.

        mcmc.run(data)
        tree = to_arviz(mcmc, model, data)              # of NeuTra, too; then arviz.summary(tree)
        tree = to_arviz(guide.sample_posterior((1000,)), model, data, log_likelihood=True)

    Its groups are

        posterior       every latent site (chain, draw, \\*shape of the site);
        sample_stats    ``diverging`` (chain, draw), for runs of HMC and NUTS;
        observed_data   every observed site, if there is one; deterministic ones and factors are none;
        log_likelihood  log p(y_i | draw) of each of their elements i (chain, draw, \\*batch shape of the site), if
                        asked for: with the masks of the model, but not with the factors of ``poutine.scale``.

    A dimension of a plate has the name of the plate, with the coordinates 0, 1, ...; another one is
    ``<site>_dim_<index>``, counted from the left of the site. Batch dimensions of size 1 in no plate are left out.

    The draws of ``ImportanceSamples`` are resampled in proportion to their weights, as many as there are, since ArviZ
    knows no weights. Draws repeat then, so that it overstates their effective sample size: the attributes
    ``effective_sample_size`` and ``pareto_k`` of the group ``posterior`` have those of the weights.

    Args:
        draws: a finished run; weighted draws; or independent draws by the name of their site, each
            (S, \\*shape of the site), which are one chain.
        model: whose sites these are; for a run of NeuTra the model that it was made for.
        args, kwargs: what the model is called with.
        log_likelihood: whether to compute it, for which the model runs once for every draw.

    Raises:
        ModuleNotFoundError: if ``arviz_base`` is missing, which comes with ArviZ from version 1.0.
        ValueError: if there are no draws, they are not of the latent sites of the model, a plate subsamples, or its
            name is "chain" or "draw".

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> tree = to_arviz({"z": torch.randn(10)}, model, torch.zeros(3), log_likelihood=True)
        >>> dict(tree["posterior"].sizes), dict(tree["log_likelihood"].sizes)
        ({'chain': 1, 'draw': 10}, {'chain': 1, 'draw': 10, 'rows': 3})
    """
    try:
        from arviz_base import from_dict
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_arviz needs arviz_base: pip install arviz-base") from error

    grouped, statistics, attributes = _grouped(draws)
    trace = _run(model, args, kwargs, {name: value[0, 0] for name, value in grouped.items()})
    sites: dict[str, Any] = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    for name in grouped:
        if name not in sites:
            raise ValueError(f"to_arviz got draws of {name!r}, which is no site of the model.")
    data = [name for name, site in sites.items() if name not in grouped and _is_data(site)]
    shapes = {name: _Shape.of(name, sites[name]) for name in [*grouped, *data]}

    groups = {
        "posterior": {name: shapes[name].array(value, 2) for name, value in grouped.items()},
        "sample_stats": statistics,
        "observed_data": {name: shapes[name].array(sites[name]["value"], 0) for name in data},
    }
    if log_likelihood:
        for name, site in sites.items():
            if not site["is_observed"]:
                raise ValueError(f"log_likelihood needs draws of every latent site, but got none of {name!r}.")
        values = _log_likelihood(model, args, kwargs, grouped, data)
        groups["log_likelihood"] = {name: shapes[name].array(value, 2) for name, value in values.items()}
    return from_dict(
        {group: values for group, values in groups.items() if values},
        dims={name: shape.dims for name, shape in shapes.items()},
        coords={dim: range(size) for shape in shapes.values() for dim, size in shape.plates.items()},
        attrs={"posterior": attributes},
    )


@dataclass(frozen=True)
class _Shape:
    """Holds the shape of a site, and the name of every dimension; None for one that is left out."""

    shape: Size
    names: list[str | None]
    plates: dict[str, int]
    event_dim: int

    @property
    def dims(self) -> list[str]:
        return [name for name in self.names if name is not None]

    @classmethod
    def of(cls, site_name: str, site: dict[str, Any]) -> _Shape:
        fn, value = site["fn"], site["value"]
        # Pyro takes a deterministic value as one event, which the plates around it then repeat.
        known = bool((site["infer"] or {}).get("_deterministic"))
        event_dim = 0 if known else fn.event_dim
        inner = value.dim() - event_dim
        # Data may be one number for a whole plate.
        batch = value.shape if known else torch.broadcast_shapes(fn.batch_shape, value.shape[:inner])
        shape, plates = Size([*batch, *value.shape[inner:]]), {}
        names = [
            None if size == 1 and axis < len(batch) else f"{site_name}_dim_{axis}" for axis, size in enumerate(shape)
        ]
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"to_arviz needs all the data, but plate {frame.name!r} subsamples {frame.size} of "
                    f"{frame.full_size}."
                )
            if frame.name in _OF_DRAWS:
                raise ValueError(
                    f"A dimension of every draw has the name {frame.name!r}, and so has a plate of the model."
                )
            if frame.vectorized and -frame.dim <= len(batch):
                names[len(batch) + frame.dim] = frame.name
                plates[frame.name] = frame.size
        return cls(shape, names, plates, event_dim)

    def array(self, value: Tensor, before: int) -> Any:
        """Returns a NumPy array of what is left of the dimensions, after ``before`` others.

        ``value`` is (\\*others, \\*shape), or lacks the dimensions of the event, as log-densities do.
        """
        lead = value.shape[:before]
        rest = self.shape[: value.dim() - before] if before else self.shape
        kept = [size for size, name in zip(rest, self.names, strict=False) if name is not None]
        return value.expand(*lead, *rest).reshape(*lead, *kept).cpu().numpy()


def _grouped(draws: Any) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]:
    """Returns draws (chain, draw, \\*shape of the site), statistics (chain, draw), and attributes of the draws."""
    if isinstance(draws, MCMC):
        if draws._samples is None:
            raise ValueError("to_arviz needs draws, but got an MCMC that has not run yet.")
        model = getattr(draws.kernel, "model", None)
        source = model if isinstance(model, NeuTra) else None
        samples = (
            draws.get_samples(group_by_chain=True) if source is None else source.get_samples(draws, group_by_chain=True)
        )
        return samples, _diverging(draws), {}
    attributes = {}
    if isinstance(draws, ImportanceSamples):
        attributes = {"effective_sample_size": draws.effective_sample_size, "pareto_k": draws.pareto_k}
        draws = draws.resample(len(draws.log_weights))
    if not draws:
        raise ValueError("to_arviz needs draws, but got an empty mapping.")
    return {name: value.detach()[None] for name, value in draws.items()}, {}, attributes


def _diverging(mcmc: Any) -> dict[str, Any]:
    """Returns where a run diverged (chain, draw), if its kernel notes that."""
    diagnostics = mcmc._diagnostics
    if "divergences" not in diagnostics[0]:
        return {}
    diverging = torch.zeros(len(diagnostics), mcmc.num_samples, dtype=torch.bool)
    for row, of_chain in zip(diverging, diagnostics, strict=True):
        row[of_chain["divergences"]] = True
    return {"diverging": diverging.numpy()}


def _run(model: Callable[..., Any], args: Any, kwargs: Any, draw: Mapping[str, Tensor]) -> Trace:
    with poutine.block():
        trace = poutine.trace(poutine.condition(model, data=dict(draw))).get_trace(*args, **kwargs)
    return prune_subsample_sites(trace)


def _is_data(site: dict[str, Any]) -> bool:
    return site["is_observed"] and not isinstance(site["fn"], Unit) and not site["infer"].get("_deterministic")


def _log_likelihood(
    model: Callable[..., Any], args: Any, kwargs: Any, grouped: Mapping[str, Tensor], data: list[str]
) -> dict[str, Tensor]:
    """Computes the log-densities of the observed sites, each (chain, draw, \\*batch shape of the site)."""
    first = next(iter(grouped.values()))
    chains, count = first.shape[:2]
    found: dict[str, list[Tensor]] = {name: [] for name in data}
    for chain in range(chains):
        for index in range(count):
            trace = _run(model, args, kwargs, {name: value[chain, index] for name, value in grouped.items()})
            trace.compute_log_prob(lambda name, site: name in found)
            for name, values in found.items():
                values.append(trace.nodes[name]["unscaled_log_prob"])
    return {name: torch.stack(values).unflatten(0, (chains, count)) for name, values in found.items()}
