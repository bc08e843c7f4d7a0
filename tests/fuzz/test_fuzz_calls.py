"""Calls with any value, context and sample shape: the result is right, or one sentence says what is wrong."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    BATCHES,
    CONDITIONAL,
    DTYPES,
    FLOWS,
    LAYOUTS,
    NO_TENSORS,
    WRONG,
    calls,
    close,
    context_shape_of,
    flow_of,
    made,
    outcome,
    shapes_near,
    values,
)
from test_fuzz_constructors import BUILDERS

from pyro_realnvp import (
    Dequantized,
    Flow,
    ImageFlow,
    Logit,
    StandardNormal,
    bits_per_dim,
    flowpp_dequantizer,
    load,
    realnvp_transforms,
    save,
)
from pyro_realnvp.testing import randomize

from zoo import attention, features, resnet

FLOATS = st.sampled_from([torch.float32, torch.float64])
CALLS = {
    "flow": lambda flow, x: flow(x),
    "log_prob": lambda flow, x: flow.log_prob(x),
    "to latent": lambda flow, x: flow.transforms.inv(x),
    "to data": lambda flow, x: flow.transforms(x),
    "log-determinant": lambda flow, x: flow.transforms.inv.log_abs_det_jacobian(x, x),
    "initialize": lambda flow, x: flow.initialize(x) or torch.zeros(()),
}


def events(x, event_shape):
    """The events of a batch of any shape, one behind another."""
    cut = x.dim() - len(event_shape)
    return x.unsqueeze(0) if cut == 0 else x.flatten(0, cut - 1)


@given(st.data(), st.sampled_from(sorted(FLOWS)), FLOATS, DTYPES, LAYOUTS)
def test_densities_of_any_tensor(data, name, dtype, given_dtype, layout):
    flow = flow_of(name, dtype)
    x = values(data.draw(shapes_near(flow.event_shape)), given_dtype, layout)
    cut = x.dim() - len(flow.event_shape)
    fits = given_dtype == dtype and cut >= 0 and x.shape[cut:] == flow.event_shape
    log_prob = outcome(lambda: flow(x), "shape", "events")
    assert (log_prob is not None) == fits
    if not fits:
        return
    assert log_prob.shape == x.shape[:cut]
    assert log_prob.dtype == dtype
    assert log_prob.isfinite().all()
    close(flow.distribution().log_prob(x), log_prob)
    rows = [flow(row.clone()) for row in events(x, flow.event_shape)]
    if rows:
        close(torch.stack(rows).reshape(log_prob.shape), log_prob)
    z = flow.transforms.inv(x)
    close(flow.transforms(z.clone()), x)
    close(flow.transforms.log_abs_det_jacobian(z.clone(), x), -flow.transforms.inv.log_abs_det_jacobian(x.clone(), z))


@given(st.sampled_from(sorted(FLOWS)), st.sampled_from(sorted(CALLS)), NO_TENSORS)
def test_calls_with_what_is_no_tensor(name, call, x):
    assert outcome(lambda: CALLS[call](flow_of(name, torch.float32), x)) is None


@given(st.data(), st.sampled_from(sorted(FLOWS)), st.sampled_from(sorted(CALLS)), DTYPES, LAYOUTS)
def test_calls_with_any_tensor(data, name, call, dtype, layout):
    flow = flow_of(name, torch.float32)
    shape = data.draw(shapes_near(flow.event_shape))
    x = values(shape, dtype, layout)
    result = outcome(lambda: CALLS[call](flow, x), "shape", "events")
    if call != "initialize":
        cut = x.dim() - len(flow.event_shape)
        assert (result is not None) == (dtype == torch.float32 and cut >= 0 and x.shape[cut:] == flow.event_shape)


# ---------------------------------------------------------------------------------------------------------------------
# Contexts
# ---------------------------------------------------------------------------------------------------------------------


def broadcast(*shapes):
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


@given(st.data(), st.sampled_from(sorted(CONDITIONAL)), BATCHES, DTYPES, LAYOUTS)
def test_contexts(data, name, batch, dtype, layout):
    flow = flow_of(name, torch.float32)
    expected = context_shape_of(flow)
    context = values(data.draw(shapes_near(expected)), dtype, layout)
    x = values((*batch, *flow.event_shape), torch.float32)
    cut = context.dim() - len(expected)
    fits = dtype == torch.float32 and cut >= 0 and context.shape[cut:] == expected
    both = broadcast(batch, context.shape[:cut]) if fits else None
    log_prob = outcome(lambda: flow(x, context), "context", "contexts")
    assert (log_prob is not None) == (both is not None)
    drawn = outcome(lambda: flow.sample((2,), context), "context")
    assert (drawn is not None) == fits
    if drawn is not None:
        assert drawn.shape == (2, *context.shape[:cut], *flow.event_shape)
        assert drawn.isfinite().all()
    if log_prob is not None:
        assert log_prob.shape == both
        assert log_prob.isfinite().all()
        close(flow.condition(context).log_prob(x.expand(*both, *flow.event_shape)), log_prob)
        xs = events(x.expand(*both, *flow.event_shape), flow.event_shape)
        contexts = events(context.expand(*both, *expected), expected)
        rows = [flow(row, one) for row, one in zip(xs, contexts, strict=True)]
        if rows:
            close(torch.stack(rows).reshape(both), log_prob)


@given(st.sampled_from(sorted(CONDITIONAL)), NO_TENSORS)
def test_contexts_that_are_no_tensors(name, context):
    flow = flow_of(name, torch.float32)
    x = values((2, *flow.event_shape), torch.float32)
    assert outcome(lambda: flow(x, context), "context") is None
    assert outcome(lambda: flow.sample((2,), context), "context") is None


@given(st.sampled_from(sorted(FLOWS)), BATCHES, st.one_of(NO_TENSORS, BATCHES.map(torch.ones)))
def test_contexts_that_no_one_asked_for(name, batch, context):
    flow = flow_of(name, torch.float32)
    x = values((*batch, *flow.event_shape), torch.float32)
    assert (outcome(lambda: flow(x, context), "context") is not None) == (context is None)
    assert (outcome(lambda: flow.sample((2,), context), "context") is not None) == (context is None)


# ---------------------------------------------------------------------------------------------------------------------
# Samples and images
# ---------------------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(FLOWS)),
    st.one_of(st.integers(0, 3), BATCHES, WRONG),
    st.one_of(st.floats(0, 2), WRONG),
    st.one_of(st.none(), st.floats(0.1, 3), WRONG),
)
def test_samples(name, shape, temperature, truncation):
    flow = flow_of(name, torch.float32)
    x = outcome(
        lambda: flow.sample(shape, temperature=temperature, truncation=truncation),
        *("sample_shape", "temperature", "truncation"),
    )
    if x is not None:
        batch = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
        assert x.shape == (*batch, *flow.event_shape)
        assert x.dtype == torch.float32
        if temperature <= 2:  # the latents of a huge one are no finite float32
            assert x.isfinite().all()


_PIXELS = (1, 2, 4)


def density():
    return Flow(StandardNormal(_PIXELS), [*realnvp_transforms(_PIXELS, scales=1, net=resnet), Logit(0.05).inv]).eval()


def noise():
    transforms = flowpp_dequantizer(_PIXELS, couplings=1, components=2, net=attention, embedding=features)
    return Flow(StandardNormal(_PIXELS), transforms).eval()


def images(levels, dequantizer, *, num_samples=1):
    """A distribution over images by the class of Flows, and by that of distributions."""
    model = ImageFlow(density(), levels, dequantizer)
    return model, Dequantized(model.flow.distribution(), levels, dequantizer=dequantizer, num_samples=num_samples)


@given(
    st.data(),
    st.one_of(st.integers(2, 300), WRONG),
    st.one_of(st.none(), st.just("noise"), WRONG),
    st.one_of(COUNT := st.integers(1, 3), WRONG),
    DTYPES,
)
def test_images(data, levels, dequantizer, num_samples, dtype):
    dequantizer = noise() if isinstance(dequantizer, str) and dequantizer == "noise" else dequantizer
    both = outcome(lambda: images(levels, dequantizer, num_samples=num_samples), "levels", "num_samples", "dequantizer")
    if both is None:
        return
    shape = data.draw(shapes_near(_PIXELS))
    x = (2 * values(shape, torch.float64)).floor().to(dtype)
    cut = len(shape) - len(_PIXELS)
    fits = cut >= 0 and shape[cut:] == _PIXELS and dtype != torch.complex64
    for model in both:
        log_prob = outcome(lambda model=model: model.log_prob(x), "images", "integers")
        assert (log_prob is not None) == fits
        if fits:
            assert log_prob.shape == shape[:cut]
            assert log_prob.isfinite().all()
        drawn = model.sample((2,))
        assert drawn.shape == (2, *_PIXELS)
        assert drawn.min() >= 0
        assert drawn.max() < levels


@given(st.data(), st.one_of(st.none(), st.integers(1, 3), WRONG), st.one_of(NO_TENSORS, DTYPES))
def test_bits_per_dim(data, batch_size, kind):
    x = values(data.draw(shapes_near((3,))), kind) if isinstance(kind, torch.dtype) else kind
    bits = outcome(lambda: bits_per_dim(flow_of("realnvp", torch.float32), x, batch_size=batch_size), "batch_size", "x")
    if bits is not None:
        assert math.isfinite(bits.value)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*one affine map")  # of one coordinate given a context
@given(calls(BUILDERS))
def test_files(call):
    transforms = made(call)
    if transforms is None:
        return
    base = StandardNormal(transforms[0].event_shape)
    flow = Flow(base, transforms).eval()
    randomize(flow)
    x = values((2, *flow.event_shape), torch.float32)
    shape = flow.transforms.context_shape
    context = None if shape is None else values(shape, torch.float32)
    log_prob = outcome(lambda: flow(x, context))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        if outcome(lambda: save(flow, path) or path) is None:  # a net that is none, where no network is needed
            return
        loaded = load(path)
    if log_prob is not None:
        assert torch.equal(loaded(x, context), log_prob)
