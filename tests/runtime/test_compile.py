"""One full graph for scoring and for sampling, equal to eager.

Inductor is asked once, with the smallest of flows, as its compiler takes its time; the graphs are made before it.
"""

import pytest
import torch
from pyro import distributions as dist

from pyro_realnvp import (
    ActNorm,
    BatchNorm,
    Chain,
    FactorOut,
    Flow,
    MixtureBase,
    StandardNormal,
    StudentTBase,
    channelwise,
    checkerboard,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import masked, mlp, prime, split, squeezed

# Dynamo and inductor use deprecated parts of Python and torch themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _no_earlier_graphs():
    torch._dynamo.reset()


def smallest():
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=1, net=mlp))


def vector(**kwargs):
    return Flow(StandardNormal(4), realnvp_transforms(4, couplings=2, net=mlp, **kwargs))


def student(**kwargs):
    return Flow(StudentTBase(4, **kwargs), realnvp_transforms(4, couplings=1, net=mlp, **kwargs))


def mixture(**kwargs):
    return Flow(MixtureBase(4, 3, **kwargs), realnvp_transforms(4, couplings=1, net=mlp, **kwargs))


def nice():
    return Flow(StandardNormal(4), nice_transforms(4, couplings=2, net=mlp))


def image(**kwargs):
    """Every kind of layer that the builder uses, each once: compiling takes its time."""
    mask = checkerboard((1, 4, 4))
    inner = Chain([split((4, 2, 2), **dict.fromkeys(kwargs, (4, 2, 2))), BatchNorm((4, 2, 2), channelwise((4, 2, 2)))])
    deeper = FactorOut(ActNorm((2, 2, 2)))
    layers = [masked(mask, **kwargs), BatchNorm((1, 4, 4), mask), squeezed(inner), squeezed(deeper, ordered=True)]
    return Flow(StandardNormal((1, 4, 4)), [layer.inv for layer in reversed(layers)])


SCORED = [
    pytest.param(smallest, {}, "inductor", id="smallest-inductor"),
    pytest.param(vector, {}, "aot_eager", id="vector"),
    pytest.param(vector, {"context_dim": 2}, "aot_eager", id="vector-context"),
    pytest.param(nice, {}, "aot_eager", id="nice"),
    pytest.param(student, {}, "aot_eager", id="student"),
    pytest.param(student, {"context_dim": 2}, "aot_eager", id="student-context"),
    pytest.param(mixture, {}, "aot_eager", id="mixture"),
    pytest.param(mixture, {"context_dim": 2}, "aot_eager", id="mixture-context"),
    pytest.param(image, {"context_shape": (1, 4, 4)}, "aot_eager", id="image-context-map"),
]
SAMPLED = [
    pytest.param(vector, {}, "aot_eager", id="vector"),
    pytest.param(vector, {"context_dim": 2}, "aot_eager", id="vector-context"),
    pytest.param(image, {}, "aot_eager", id="image"),
]


def prepared(make, kwargs):
    flow = prime(make(**kwargs)).eval()
    randomize(flow)
    shape = flow.transforms.context_shape
    return flow, torch.randn(6, *flow.event_shape), None if shape is None else torch.randn(6, *shape)


@pytest.mark.parametrize(("make", "kwargs", "backend"), SCORED)
def test_scoring(make, kwargs, backend):
    flow, x, context = prepared(make, kwargs)
    want = flow(x, context)
    parameters = list(flow.parameters())
    gradients = torch.autograd.grad(want.sum(), parameters)
    got = torch.compile(flow, backend=backend, fullgraph=True)(x, context)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for one, other in zip(torch.autograd.grad(got.sum(), parameters), gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("make", "kwargs", "backend"), SAMPLED)
def test_sampling_on_given_noise(make, kwargs, backend):
    flow, z, context = prepared(make, kwargs)

    def draw(z, context):
        transforms = flow.transforms if context is None else flow.transforms.condition(context)
        return transforms(z)

    got = torch.compile(draw, backend=backend, fullgraph=True)(z.clone(), context)
    torch.testing.assert_close(got, draw(z, context), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_plain_transformed_distribution(as_list):
    flow, x, _ = prepared(vector, {})
    transforms = list(flow.transforms) if as_list else [flow.transforms]

    def log_prob(x):
        base = dist.Normal(torch.zeros(4), torch.ones(4), validate_args=False).to_event(1)
        return dist.TransformedDistribution(base, transforms, validate_args=False).log_prob(x)

    torch.testing.assert_close(torch.compile(log_prob, backend="aot_eager", fullgraph=True)(x), flow(x.clone()))


def test_training_mode_moves_the_same_statistics():
    flow, x, _ = prepared(image, {})
    flow.train()
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    want = flow(x)
    expected = {key: value.clone() for key, value in flow.state_dict().items()}
    flow.load_state_dict(before)
    got = torch.compile(flow, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for key, value in flow.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_nothing_of_a_compiled_region_is_remembered():
    flow, x, _ = prepared(vector, {})
    torch.compile(flow, backend="aot_eager", fullgraph=True)(x)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    torch.testing.assert_close(flow(x), flow(x.clone()))
    got = torch.compile(flow, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, flow(x.clone()), atol=1e-4, rtol=1e-4)
