"""Flows are traced and exported once, for batches of any size, and run on the meta device."""

import pytest
import torch
from torch.export import Dim

from pyro_realnvp import ActNorm, Flow, InvertibleConv1x1, StandardNormal, glow_transforms, realnvp_transforms
from pyro_realnvp.testing import randomize

from zoo import convnet, mlp, prime, resnet

# Both are deprecated or noisy in parts of torch itself; a tracer warns about every check of a value.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
IMAGE = (1, 4, 4)


def vector():
    return Flow(StandardNormal(4), realnvp_transforms(4, couplings=2, net=mlp))


def act_norm():
    return Flow(StandardNormal(4), [ActNorm((4,)).inv])


def act_norm_of_images():
    return Flow(StandardNormal(IMAGE), [ActNorm(IMAGE, per_position=True).inv, ActNorm(IMAGE).inv])


def convolution():
    return Flow(StandardNormal(4), [InvertibleConv1x1((4,)).inv])


def convolution_of_images():
    return Flow(StandardNormal((2, 4, 4)), [InvertibleConv1x1((2, 4, 4), norm=ActNorm((2, 4, 4))).inv])


def factorized_convolution():
    return Flow(StandardNormal((2, 4, 4)), [InvertibleConv1x1((2, 4, 4), plu=True).inv])


def glow():
    return Flow(StandardNormal((1, 2, 2)), glow_transforms((1, 2, 2), levels=1, steps=1, net=convnet))


def image():
    return Flow(StandardNormal(IMAGE), realnvp_transforms(IMAGE, scales=1, net=resnet))


FLOWS = [
    vector,
    act_norm,
    act_norm_of_images,
    convolution,
    convolution_of_images,
    factorized_convolution,
    glow,
    image,
]
every = pytest.mark.parametrize("make", FLOWS)


def ready(make):
    flow = prime(make())
    flow.initialize(torch.randn(8, *flow.event_shape))
    randomize(flow)
    return flow.eval()


@every
@torch.no_grad()
def test_a_traced_flow_takes_batches_of_other_sizes(make):
    flow = ready(make)
    traced = torch.jit.trace(flow, torch.randn(3, *flow.event_shape), check_trace=False)
    for size in (3, 1, 7):
        x = torch.randn(size, *flow.event_shape)
        torch.testing.assert_close(traced(x), flow(x.clone()))


def test_a_traced_flow_has_gradients_for_another_batch():
    flow = ready(vector)
    traced = torch.jit.trace(flow, torch.randn(3, 4), check_trace=False)
    x = torch.randn(5, 4).requires_grad_()
    (found,) = torch.autograd.grad(traced(x).sum(), x)
    (expected,) = torch.autograd.grad(flow(x).sum(), x)
    torch.testing.assert_close(found, expected)


@every
@torch.no_grad()
def test_an_exported_flow_takes_batches_of_other_sizes(make):
    flow = ready(make)
    example = torch.randn(3, *flow.event_shape)
    exported = torch.export.export(flow, (example,), dynamic_shapes=({0: Dim("batch")},)).module()
    for size in (3, 2, 7):
        x = torch.randn(size, *flow.event_shape)
        torch.testing.assert_close(exported(x), flow(x.clone()))


@every
@pytest.mark.parametrize("validate", [True, False], ids=["validated", "not"])
def test_a_training_step_runs_on_the_meta_device(make, validate):
    torch.distributions.Distribution.set_default_validate_args(validate)
    try:
        with torch.device("meta"):
            flow = make().train()
            log_prob = flow(torch.randn(3, *flow.event_shape))
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
    assert log_prob.is_meta
    assert log_prob.shape == (3,)
    log_prob.sum().backward()
    assert all(p.grad is None or p.grad.is_meta for p in flow.parameters())
