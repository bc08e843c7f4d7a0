"""Maps between the one unconstrained vector of an ``AutoContinuous`` guide and the sites of its model."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine import Trace
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to


def constrained(guide: AutoContinuous, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Maps unconstrained x (\\*batch, D) to sites (\\*batch, \\*shape of the site) and log|det dy/dx| (\\*batch)."""
    batch = x.shape[:-1]
    values: dict[str, Tensor] = {}
    log_det = x.new_zeros(batch)
    start = 0
    prototype: Any = guide.prototype_trace
    for name, site in prototype.iter_stochastic_nodes():
        shape = guide._unconstrained_shapes[name]
        part = x[..., start : start + shape.numel()].reshape(batch + shape)
        start += shape.numel()
        transform = biject_to(site["fn"].support)
        values[name] = transform(part)
        each = transform.log_abs_det_jacobian(part, values[name])
        log_det = log_det + sum_rightmost(each, each.dim() - len(batch))
    return values, log_det


def log_joint(guide: AutoContinuous, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Computes log p(y, data) + log|det dy/dx| of one unconstrained x (D,), of shape ()."""
    values, log_det = constrained(guide, x)
    trace = poutine.trace(poutine.condition(_plain_model(guide), data=values)).get_trace(*args, **kwargs)
    return log_prob_of(prune_subsample_sites(trace), None) + log_det


def plate_nesting(*traces: Trace) -> int:
    """Counts the dimensions of plates: those in the traces, of observed sites too, and those that are open now."""
    sites: Any = [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]
    dims = [-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
    return max([*dims, len(_DIM_ALLOCATOR._stack)])


def log_joints(
    guide: AutoContinuous, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, nesting: int
) -> Tensor:
    """Computes :func:`log_joint` of all rows of x (S, D), of shape (S,), in one run of the model.

    The rows stand in a plate outside of all others, as vectorised particles do; there are ``nesting`` others.
    """
    prototype: Any = guide.prototype_trace
    values, log_det = constrained(guide, x)
    for name, value in values.items():
        batch_dims = len(prototype.nodes[name]["fn"].batch_shape)
        values[name] = value.reshape(len(x), *(1,) * (nesting - batch_dims), *value.shape[1:])
    with pyro.plate("_rows", len(x), dim=-1 - nesting):
        trace = poutine.trace(poutine.condition(_plain_model(guide), data=values)).get_trace(*args, **kwargs)
    return log_prob_of(prune_subsample_sites(trace), -1 - nesting) + log_det


def joint_density(
    guide: AutoContinuous, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Returns :func:`log_joints` as a function of x alone, hidden from handlers; far out its values may be infinite."""
    with poutine.block():
        nesting = plate_nesting(poutine.trace(guide.model).get_trace(*args, **kwargs))

    def density(x: Tensor) -> Tensor:
        with poutine.block(), pyro.validation_enabled(False):
            return log_joints(guide, x, args, kwargs, nesting=nesting)

    return density


def _plain_model(guide: AutoContinuous) -> Any:
    """Returns the model without Pyro's ``InitMessenger``, if the guide has kept it.

    That handler runs before ``condition``: for every site of every run it draws 15 values from the prior, which are
    thrown away, and it raises an error where a scale has overflowed and nothing can be drawn.
    """
    kept = getattr(guide, "_plain_model", None)
    return guide.model if kept is None else kept[0]


def log_prob_of(trace: Trace, dim: int | None) -> Tensor:
    """Computes the log-density of a trace, summed over everything but the dimension ``dim``, if that is given."""
    trace.compute_log_prob()
    total: Any = torch.zeros(())
    for site in trace.nodes.values():
        if site["type"] == "sample":
            value: Any = site["log_prob"]
            apart = dim is not None and value.dim() >= -dim
            total = total.to(value) + (
                value.movedim(dim, 0).reshape(value.shape[dim], -1).sum(1) if apart else value.sum()
            )
    return total


def median_or_feasible(site: dict[str, Any]) -> Tensor:
    """Returns the median of the prior; for an improper one the point that is 0 when unconstrained."""
    try:
        value: Tensor = init_to_median(site)
    except NotImplementedError:
        fn = site["fn"]
        transform = biject_to(fn.support)
        value = transform(torch.zeros(transform.inverse_shape(fn.shape())))
    return value
