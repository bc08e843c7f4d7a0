"""One full graph, and only one: over the steps of a training, and for every size of the batch."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from pyro_realnvp import (
    ConvNet,
    Flow,
    GatedAttention,
    MixtureLogistic,
    ResNet,
    StandardNormal,
    flowpp_transforms,
    glow_transforms,
    realnvp_transforms,
)

from zoo import mlp, prime

# Dynamo and AOTAutograd use deprecated parts of Python and torch themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SHAPE = (2, 4, 4)
resnet = partial(ResNet, hidden=4, blocks=1)
FLOWS = {
    "vector": lambda: realnvp_transforms(6, couplings=2, net=mlp),
    "realnvp": lambda: realnvp_transforms(SHAPE, scales=1, net=resnet),
    "glow": lambda: glow_transforms(SHAPE, levels=2, steps=1, net=partial(ConvNet, hidden=4)),
    "flowpp": lambda: flowpp_transforms(
        SHAPE, couplings=1, components=2, net=partial(GatedAttention, hidden=4, blocks=1, heads=2)
    ),
}
# No size of an event among these: torch takes a batch of the same size for the same number, and fixes it.
SIZES = [5, 9, 6, 7, 11]


@pytest.fixture(autouse=True)
def _no_earlier_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(name):
    transforms = FLOWS[name]()
    flow = Flow(StandardNormal(transforms[0].event_shape), transforms)
    flow.initialize(torch.randn(16, *flow.event_shape))
    for module in flow.modules():
        if isinstance(module, MixtureLogistic):
            module.iterations = 2  # a compiled inverse unrolls them, and how many there are changes no graph
    return prime(flow)


def steps_of(flow, *, compiled, batches, autocast=False, lr=1e-3):
    """Training steps; the losses."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr, fused=True)
    losses = []
    for x in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = -compiled(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FLOWS)
def test_training_compiles_once(name, autocast):
    flow, counter = made(name).train(), CompileCounter()
    before = [parameter.detach().clone() for parameter in flow.parameters()]
    compiled = torch.compile(flow, backend=counter, fullgraph=True)
    steps_of(flow, compiled=compiled, batches=torch.randn(5, 6, *flow.event_shape), autocast=autocast)
    assert counter.frame_count == 1
    assert any(not one.equal(other) for one, other in zip(before, flow.parameters(), strict=True))


@pytest.mark.parametrize("name", ["vector", "glow"])
def test_compiled_steps_are_the_eager_ones(name):
    batches = torch.randn(20, 6, *made(name).event_shape)
    counter, losses = CompileCounterWithBackend("aot_eager"), []
    for compile_it in (False, True):
        torch.manual_seed(1)
        flow = made(name).train()
        compiled = torch.compile(flow, backend=counter, fullgraph=True) if compile_it else flow
        losses.append(steps_of(flow, compiled=compiled, batches=batches, lr=1e-4))
    torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("name", "marked"), [("vector", True), ("realnvp", False), ("glow", True)])
def test_one_graph_for_every_batch(name, marked):
    flow, counter = made(name).train(), CompileCounter()
    compiled = torch.compile(flow, backend=counter, fullgraph=True, dynamic=None if marked else True)
    batches = [torch.randn(size, *flow.event_shape) for size in SIZES]
    if marked:
        torch._dynamo.mark_dynamic(batches[0], 0)
    steps_of(flow, compiled=compiled, batches=batches)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["vector", "glow", "flowpp"])
def test_sampling_compiles_once(name):
    flow = made(name).eval()
    draws = {
        "sample": lambda count: flow.sample((count,)),
        "rsample": lambda count: flow.distribution().rsample((count,)),
    }
    for kind, draw in draws.items():
        counter = CompileCounter()
        compiled = torch.compile(draw, backend=counter, fullgraph=True, dynamic=True)
        for size in SIZES[:3]:
            x = compiled(size)
            assert x.shape == (size, *flow.event_shape)
            assert x.requires_grad == (kind == "rsample")
            with torch.no_grad():
                for parameter in flow.parameters():
                    parameter.add_(1e-3)
        assert counter.frame_count == 1


def test_autocast_in_compiled_code_is_that_of_eager():
    flow = made("glow").eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(6, *flow.event_shape)
    with torch.autocast("cpu", torch.bfloat16):
        want = flow(x)
        got = torch.compile(flow, backend="aot_eager", fullgraph=True)(x.clone())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    assert not got.allclose(flow(x.clone()), atol=1e-5)
