"""Networks in bfloat16 under autocast, everything else in float32; and networks in channels_last."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_realnvp import (
    ConvNet,
    DiagonalNormal,
    FixedAffine,
    FixedLowRank,
    Flow,
    GatedAttention,
    MixtureBase,
    ResNet,
    StandardNormal,
    StudentTBase,
    flowpp_transforms,
    glow_transforms,
    realnvp_transforms,
)
from pyro_realnvp.networks.channel_norm import ChannelNorm
from pyro_realnvp.networks.convnet import ZeroConv

from zoo import mlp, prime

SHAPE = (3, 8, 8)
BFLOAT16 = partial(torch.autocast, "cpu", torch.bfloat16)
FLOWS = {
    "realnvp": lambda: realnvp_transforms(SHAPE, net=partial(ResNet, hidden=8, blocks=1)),
    "glow": lambda: glow_transforms(SHAPE, levels=2, steps=1, net=partial(ConvNet, hidden=8)),
    "flowpp": lambda: flowpp_transforms(
        SHAPE, couplings=(1, 1, 1), components=2, net=partial(GatedAttention, hidden=8, blocks=1, heads=2, dropout=0)
    ),
}


class Immune(nn.Module):
    """A network without a matrix product, so that autocast does not change it."""

    def __init__(self, in_channels, out_channels, *, context_dim=0, **kwargs):
        super().__init__()
        self.context_shape = torch.Size((context_dim,)) if context_dim else None
        self.gain = nn.Parameter(0.3 * torch.randn(out_channels))

    def forward(self, x, context=None):
        images = 2 * (x.dim() > 2)
        return x.mean(-1 - images, keepdim=True).sin() * self.gain.reshape(-1, *[1] * images)


def noisy(flow, spread=0.03):
    """Parameters near their start, where the flow is well-conditioned, but all of them moved."""
    x = 0.3 + 1.5 * torch.randn(16, *flow.event_shape)
    flow.initialize(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return prime(flow).eval(), x


def made(name):
    torch.manual_seed(0)
    return noisy(Flow(StandardNormal(SHAPE), FLOWS[name]()))


IMMUNE = {
    "realnvp": lambda: (StandardNormal(SHAPE), realnvp_transforms(SHAPE, net=Immune)),
    "glow": lambda: (StandardNormal(SHAPE), glow_transforms(SHAPE, levels=2, steps=1, net=Immune)),
    "glow-plu": lambda: (StandardNormal(SHAPE), glow_transforms(SHAPE, levels=1, steps=2, net=Immune, plu=True)),
    "glow-vector": lambda: (StandardNormal(6), glow_transforms(6, steps=3, net=Immune)),
    "flowpp": lambda: (StandardNormal(SHAPE), flowpp_transforms(SHAPE, couplings=2, components=2, net=Immune)),
    "standardized": lambda: (
        StandardNormal(4),
        [*realnvp_transforms(4, net=Immune), FixedAffine(torch.randn(4), torch.eye(4) + 0.1)],
    ),
    "low-rank": lambda: (
        StandardNormal(4),
        [
            *realnvp_transforms(4, net=Immune),
            FixedLowRank(torch.randn(4), torch.ones(4), torch.linalg.qr(torch.randn(4, 2))[0], torch.ones(2)),
        ],
    ),
    "context": lambda: (DiagonalNormal(6, context_dim=2), realnvp_transforms(6, net=Immune, context_dim=2)),
    "student-context": lambda: (StudentTBase(6, context_dim=2), realnvp_transforms(6, net=Immune, context_dim=2)),
    "mixture-context": lambda: (MixtureBase(6, 3, context_dim=2), realnvp_transforms(6, net=Immune, context_dim=2)),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", IMMUNE)
def test_what_is_no_network_is_computed_as_without_autocast(name, train):
    flow = Flow(*IMMUNE[name]())
    with torch.no_grad():
        for parameter in flow.base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(16, *flow.event_shape)
    context = torch.randn(16, 2) if "context" in name else None
    flow.initialize(x, context)
    for module in flow.modules():  # learned priors, which are networks, start at zero, and stay there
        if isinstance(module, Immune):
            nn.init.normal_(module.gain, std=0.3)
    flow.train(train)
    priors = {id(p) for module in flow.modules() if isinstance(module, ZeroConv) for p in module.parameters()}
    parameters = [p for p in flow.parameters() if id(p) not in priors]

    def results():
        transforms = flow.transforms if context is None else flow.transforms.condition(context)
        return [flow(x, context), *transforms.forward_and_log_det(x)]

    want = results()
    with BFLOAT16():
        got = results()
    for values in (want, got):  # backward outside of autocast, as torch advises
        values += torch.autograd.grad(values[0].sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert one.equal(other)


@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_is_close_and_float32(name):
    flow, x = made(name)
    want = flow(x)
    with BFLOAT16():
        got, distributed = flow(x.clone()), flow.distribution().log_prob(x.clone())
    assert got.dtype == distributed.dtype == torch.float32
    assert got.equal(distributed)
    error = (got - want).abs().max() / flow.event_shape.numel()
    assert 0 < error < 1e-2
    gradients = [torch.autograd.grad(value.mean(), list(flow.parameters())) for value in (got, want)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm() + 0.1


@pytest.mark.parametrize("name", FLOWS)
def test_inverse_under_autocast(name):
    flow, x = made(name)
    with BFLOAT16(), torch.no_grad():
        z = flow.transforms.inv(x)
        error = (flow.transforms(z.clone()) - x).abs()
        samples = flow.sample((4,))
    assert z.dtype == samples.dtype == torch.float32
    # A value that is off in its last digit may be rounded to another bfloat16; that is rare.
    assert error.quantile(0.95) < 1e-5
    assert error.max() < 2e-2


def test_one_coupling_is_inverted_to_float32_accuracy():
    for name in ("realnvp", "glow"):
        flow, x = made(name)
        for layer in flow.modules():
            if hasattr(layer, "transformer"):
                x = torch.randn(16, *layer.event_shape)
                with BFLOAT16(), torch.no_grad():
                    y, log_det = layer.forward_and_log_det(x)
                    back, inverse_log_det = layer.inverse_and_log_det(y)
                torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(inverse_log_det, -log_det)


def test_a_bfloat16_event_under_autocast_is_scored_in_float32():
    flow = Flow(DiagonalNormal(4, context_dim=2), realnvp_transforms(4, net=mlp, context_dim=2))
    x, context = torch.randn(5, 4).bfloat16(), torch.randn(5, 2).bfloat16()
    with BFLOAT16():
        got, want = flow(x, context), flow(x.float(), context)
    assert got.dtype == torch.float32
    assert got.equal(want)


def test_the_memo_knows_the_precision():
    flow = Flow(StandardNormal(4), realnvp_transforms(4, net=mlp))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 4)
    found = [flow.transforms.inv(x)]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.append(flow.transforms.inv(x))
    assert not found[0].equal(found[1])
    assert not found[1].equal(found[2])


def test_statistics_of_feature_maps_are_taken_in_float32():
    x = (100 + torch.randn(64, 3, 4, 4)).bfloat16()
    norm = ChannelNorm(3)
    norm.initialize(x)
    want = x.float().mean((0, 2, 3))
    assert (norm.shift - want).abs().max() < 1e-4


class Convolutions(TorchFunctionMode):
    """Notes, for every convolution inside of a network: its input, its weight and its result."""

    def __init__(self, flow):
        super().__init__()
        self.inside, self.calls = None, []
        for coupling in flow.modules():
            if isinstance(network := getattr(coupling, "conditioner", None), nn.Module):
                network.register_forward_pre_hook(self.enter)
                network.register_forward_hook(self.leave)

    def enter(self, *args):
        self.inside = []

    def leave(self, *args):
        self.calls.append(self.inside)
        self.inside = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.inside is not None and func in (F.conv2d, torch.conv2d) and args[0].shape[1] > 1:
            self.inside.append((args[0], args[1], result))
        return result


@pytest.mark.parametrize("name", FLOWS)
def test_networks_keep_to_bfloat16(name):
    flow, x = made(name)
    with BFLOAT16(), Convolutions(flow) as seen, torch.no_grad():
        flow(x)
    inputs = [given.dtype for network in seen.calls for given, _, _ in network[1:]]
    assert all(made.dtype == torch.bfloat16 for network in seen.calls for _, _, made in network)
    if name != "flowpp":  # LayerNorm is computed in float32
        assert inputs
        assert set(inputs) == {torch.bfloat16}


@pytest.mark.parametrize("name", FLOWS)
def test_networks_keep_to_channels_last(name):
    flow, x = made(name)
    want = flow(x)
    flow.to(memory_format=torch.channels_last)
    with Convolutions(flow) as seen, torch.no_grad():
        got = flow(x.clone())
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)
    assert len(seen.calls) > 2

    def is_last(tensor):
        return tensor.is_contiguous(memory_format=torch.channels_last)

    for network in seen.calls:
        assert all(is_last(made) for _, _, made in network)
        assert all(is_last(given) for given, _, _ in network[1:])  # the first converts a few channels
        for _, weight, _ in network:
            assert is_last(weight) or weight._base is not None  # a part of a filter with one more channel


def test_contiguous_networks_stay_contiguous():
    flow, x = made("realnvp")
    with Convolutions(flow) as seen, torch.no_grad():
        flow(x)
    assert all(made.is_contiguous() for network in seen.calls for _, _, made in network)
