"""Methods of layers and flows, switches and qualities of weights, with any argument."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    CONDITIONAL,
    DTYPES,
    FLOWS,
    LAYOUTS,
    NO_TENSORS,
    WRONG,
    WRONG_PARTS,
    close,
    flow_of,
    laid_out,
    outcome,
    shapes_near,
)

from pyro_realnvp import (
    Bijection,
    effective_sample_size,
    pareto_k,
    pareto_k_spread,
    pareto_k_threshold,
    pareto_smooth,
    rebuild,
    recalibrate,
    recompute,
    synchronize,
)
from pyro_realnvp.testing import check_bijection, draw

from zoo import ZOO, component

# Those of Pyro reshape empty batches to -1, and look at no dtype.
COMPONENTS = sorted(name for name in ZOO if not name.startswith("lift-pyro"))


@given(st.data(), st.sampled_from(COMPONENTS), DTYPES, LAYOUTS, st.booleans())
def test_components_with_any_tensor(data, name, dtype, layout, output):
    f = copy.copy(component(name)).eval()
    if f.is_conditional:
        f = f.condition(torch.full(f.context_shape, 0.5))
    f = f.inv if output else f
    torch.manual_seed(0)
    shape = data.draw(shapes_near(f.event_shape)) if f.event_shape else data.draw(shapes_near((2,)))
    cut = len(shape) - len(f.event_shape)
    fits = cut >= 0 and shape[cut:] == f.event_shape
    x = draw(f, shape[:cut]) if fits else torch.rand(shape)
    x = laid_out(x.to(dtype), layout)
    y = outcome(lambda: f(x), "events", "values")
    if dtype == torch.float32 and fits:
        assert y.shape == (*shape[:cut], *f.output_shape)
        assert y.dtype == dtype
        assert y.isfinite().all()
        close(y, f(x.contiguous().clone()))
        close(f.log_abs_det_jacobian(x, y), f.log_abs_det_jacobian(x.contiguous().clone(), y.clone()))
    elif not dtype.is_floating_point or not fits:
        assert y is None
    elif y is not None:  # a layer without numbers of its own takes every precision
        assert y.dtype == dtype
        assert y.shape == (*shape[:cut], *f.output_shape)


METHODS = {
    "with_cache": lambda f, value: f.with_cache(value),
    "condition": lambda f, value: f.condition(value),
    "forward_shape": lambda f, value: f.forward_shape(value),
    "inverse_shape": lambda f, value: f.inverse_shape(value),
    "call": lambda f, value: f(value),
    "inverse": lambda f, value: f.inv(value),
}


@given(st.sampled_from(COMPONENTS), st.sampled_from(sorted(METHODS)), WRONG)
def test_methods_of_layers(name, method, value):
    f = copy.copy(component(name)).eval()
    result = outcome(lambda: METHODS[method](f, value), "context", "cache_size", type(f).__name__)
    if result is not None and method in ("with_cache", "condition"):
        assert isinstance(result, Bijection)


OF_FLOWS = {
    "distribution": lambda flow, value: flow.distribution(value),
    "condition": lambda flow, value: flow.condition(value),
    "sample": lambda flow, value: flow.sample((2,), value),
    "base": lambda flow, value: flow.base(value),
    "initialize": lambda flow, value: flow.initialize(value),
    "initialize with": lambda flow, value: flow.initialize(torch.rand(4, *flow.event_shape), value),
}


@given(
    st.sampled_from(sorted({**FLOWS, **CONDITIONAL})), st.sampled_from(sorted(OF_FLOWS)), st.one_of(WRONG, NO_TENSORS)
)
def test_methods_of_flows(name, method, value):
    outcome(lambda: OF_FLOWS[method](flow_of(name, torch.float32), value), "context", "events")


SWITCHES = {
    "recompute": recompute,
    "rebuild": rebuild,
    "synchronize": synchronize,
    "recalibrate": lambda value: recalibrate(value, [torch.rand(4, 3)]),
    "recalibrate with": lambda value: recalibrate(flow_of("realnvp", torch.float32), value),
    "check_bijection": check_bijection,
}


@given(st.sampled_from(sorted(SWITCHES)), WRONG_PARTS)
def test_switches(name, value):
    outcome(lambda: SWITCHES[name](value), *SWITCHES, "batch")


WEIGHTS = {
    "effective_sample_size": effective_sample_size,
    "pareto_k": pareto_k,
    "pareto_k_spread": pareto_k_spread,
    "pareto_k_threshold": pareto_k_threshold,
    "pareto_smooth": pareto_smooth,
}


@given(st.sampled_from(sorted(WEIGHTS)), st.one_of(WRONG, st.tuples(st.lists(st.integers(0, 300), max_size=2), DTYPES)))
def test_weights(name, value):
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        torch.manual_seed(0)
        value = (4 * torch.randn(value[0])).to(value[1])
    result = outcome(lambda: WEIGHTS[name](value), "log_weights", "num_samples", "weights")
    if isinstance(result, float):
        assert result == result
