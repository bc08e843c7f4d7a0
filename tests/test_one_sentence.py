"""Values of the wrong type, and networks of no size, get one sentence that names culprit and remedy."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from pyro_realnvp import (
    MLP,
    Affine,
    ConvNet,
    DiagonalNormal,
    Elementwise,
    Flow,
    GatedAttention,
    InvertibleConv1x1,
    MixtureBase,
    ResNet,
    Scale,
    StandardNormal,
    StudentTBase,
    glow_transforms,
    realnvp_transforms,
)

from zoo import convnet, mlp, resnet


def vector(**kwargs):
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp, **kwargs))


def image(**kwargs):
    return Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), scales=1, net=resnet, **kwargs)).eval()


def glow():
    return Flow(StandardNormal((1, 4, 4)), glow_transforms((1, 4, 4), levels=1, steps=1, net=convnet)).eval()


def linear():
    return Flow(StandardNormal(2), [Scale((2,)).inv, InvertibleConv1x1((2,)).inv])


def one_sentence(call, *patterns):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.endswith("."), message
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in {message!r}"


every = pytest.mark.parametrize("make", [vector, image, glow, linear])
CALLS = {
    "flow": lambda flow, x: flow(x),
    "log_prob": lambda flow, x: flow.log_prob(x),
    "transforms": lambda flow, x: flow.transforms(x),
    "inverse": lambda flow, x: flow.transforms.inv(x),
    "distribution": lambda flow, x: flow.distribution().log_prob(x),
}
called = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every
@called
def test_float64_data_for_a_float32_flow(make, call):
    flow = make()
    x = torch.randn(3, *flow.event_shape, dtype=torch.float64)
    one_sentence(lambda: call(flow, x), "float64", "float32", r"\.(to|float|double)\(|dtype")


@called
def test_float32_data_for_a_float64_flow(call):
    flow = vector().double()
    one_sentence(lambda: call(flow, torch.randn(3, 2)), "float64", "float32")


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_of_the_dtype_of_the_flow(make, dtype):
    flow = make().to(dtype)
    x = torch.randn(3, *flow.event_shape, dtype=dtype)
    for call in CALLS.values():
        assert call(flow, x).dtype == dtype


@every
@pytest.mark.parametrize("call", [CALLS["flow"], CALLS["transforms"]], ids=["flow", "transforms"])
def test_arrays_and_lists_are_no_tensors(make, call):
    flow = make()
    x = np.zeros((3, *flow.event_shape), dtype=np.float32)
    one_sentence(lambda: call(flow, x), "ndarray", "tensor")
    one_sentence(lambda: call(flow, x.tolist()), "list", "tensor")


@pytest.mark.parametrize(
    "make",
    [
        lambda: vector(context_dim=3),
        lambda: image(context_dim=3),
        lambda: Flow(DiagonalNormal(2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp)),
        lambda: Flow(DiagonalNormal(2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp, context_dim=3)),
        lambda: Flow(StudentTBase(2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp)),
        lambda: Flow(MixtureBase(2, 2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp)),
    ],
    ids=["vector", "image", "base", "both", "student", "mixture"],
)
def test_one_hot_contexts_of_integers(make):
    flow = make()
    x = torch.randn(4, *flow.event_shape)
    context = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3)
    for call in (
        lambda: flow(x, context),
        lambda: flow.condition(context),
        lambda: flow.sample((), context),
        lambda: flow.distribution(context),
    ):
        one_sentence(call, "context", "int64", "floating point|float")
    assert flow(x, context.float()).shape == (4,)


@pytest.mark.parametrize("make", [DiagonalNormal, StudentTBase, partial(MixtureBase, components=2)])
def test_a_one_hot_context_of_integers_for_a_base(make):
    base = make(2, context_dim=3)
    one_sentence(lambda: base(torch.tensor([0, 1, 0])), f"{type(base).__name__}.*context", "int64")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(0, 2),
        lambda: ResNet(2, 0),
        lambda: ResNet(2, -1),
        lambda: ConvNet(-1, 2),
        lambda: ConvNet(2, -1),
        lambda: MLP(-1, 2),
        lambda: MLP(2, -1),
        lambda: GatedAttention(-1, 2, size=(4, 4)),
        lambda: Elementwise((), Affine()),
    ],
    ids=[
        "resnet-in",
        "resnet-out-0",
        "resnet-out",
        "convnet-in",
        "convnet-out",
        "mlp-in",
        "mlp-out",
        "attention",
        "elementwise",
    ],
)
def test_networks_and_layers_of_no_size(make):
    one_sentence(make, r"ResNet|ConvNet|MLP|GatedAttention|Elementwise", r"-1|\b0\b|\(\)")


def test_networks_without_an_input_that_make_sense():
    assert MLP(0, 2, context_dim=1)(torch.zeros(3, 0), torch.zeros(1)).shape == (3, 2)
    network = ConvNet(0, 2, hidden=4, context_dim=1)
    assert network(torch.zeros(3, 0, 4, 4), torch.zeros(3, 1)).shape == (3, 2, 4, 4)
