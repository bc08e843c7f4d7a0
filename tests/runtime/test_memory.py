"""Backward that computes again instead of storing: the same gradients, statistics and random numbers, less memory."""

import copy
import pickle
from functools import partial

import pytest
import torch
from pyro import distributions as dist
from torch import nn

from pyro_realnvp import (
    MLP,
    ActNorm,
    Affine,
    Chain,
    ConvNet,
    Flow,
    InvertibleConv1x1,
    ResNet,
    Reversible,
    SplitCoupling,
    StandardNormal,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    rebuild,
    recompute,
)

from zoo import calm_attention, convnet, initialized, mlp, prime, resnet, split


class Dropping(nn.Module):
    """A user's network, with dropout and with torch's own batch normalization."""

    def __init__(self, in_channels, out_channels, **kwargs):
        super().__init__()
        layers = [nn.Linear(in_channels, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, out_channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, context=None):
        return self.layers(x)


def gently(flow, spread=0.03):
    """Moves every parameter a little, so that the flow is neither the identity nor ill-conditioned."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


dropping = partial(ResNet, hidden=4, blocks=1, dropout=0.3)
FLOWS = {
    "realnvp": lambda: realnvp_transforms(5, couplings=4, net=mlp),
    "realnvp-context": lambda: realnvp_transforms(4, couplings=4, net=mlp, context_dim=2),
    "nice": lambda: nice_transforms(4, net=mlp),
    "own network": lambda: realnvp_transforms(4, couplings=4, net=Dropping),
    "realnvp-image": lambda: prime(nn.ModuleList(realnvp_transforms((1, 4, 4), net=dropping))),
    "realnvp-image-context-map": lambda: realnvp_transforms((1, 4, 4), net=resnet, context_shape=(1, 4, 4)),
    "glow": lambda: glow_transforms((1, 4, 4), levels=2, steps=2, net=convnet, context_dim=2),
    "glow-vector": lambda: glow_transforms(4, steps=3, net=mlp, plu=True),
    "flowpp": lambda: flowpp_transforms((1, 4, 4), couplings=(1, 1, 1), components=2, net=calm_attention),
    "recached": lambda: [Chain(realnvp_transforms(4, couplings=3, net=mlp)).with_cache(0)],
}


def prepared(name, *, dtype=torch.float64, train=True):
    torch.manual_seed(0)
    transforms = list(FLOWS[name]())
    flow = Flow(StandardNormal(transforms[0].event_shape), transforms)
    shape = flow.transforms.context_shape
    context = None if shape is None else torch.randn(6, *shape)
    flow.initialize(torch.randn(6, *flow.event_shape), context)
    return gently(flow).to(dtype).train(train)


def results(flow, direction):
    """Values, gradients of x, context and parameters, and the state afterwards."""
    torch.manual_seed(2)
    dtype, shape = next(flow.parameters()).dtype, flow.transforms.context_shape
    x = torch.randn(6, *flow.event_shape, dtype=dtype, requires_grad=True)
    context = None if shape is None else torch.randn(6, *shape, dtype=dtype, requires_grad=True)
    if direction == "score":
        made, log_det = flow.transforms.inverse_and_log_det(x, context)
    else:
        made, log_det = flow.transforms.forward_and_log_det(x, context)
    random = torch.rand(2)
    loss = made.sin().sum() + log_det.cos().sum()
    inputs = [x, *([] if context is None else [context]), *flow.parameters()]
    gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return [made, log_det, random, torch.rand(2), *gradients, *flow.state_dict().values()]


def assert_close(got, want, tolerance):
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * max(1, other.norm()) if one.is_floating_point() else one.equal(other)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("direction", ["score", "sample"])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_statistics_and_random_numbers_are_the_plain_ones(name, direction, train):
    want = results(prepared(name, train=train), direction)
    assert_close(results(recompute(prepared(name, train=train)), direction), want, 1e-12)
    assert_close(results(rebuild(prepared(name, train=train)), direction), want, 1e-10)


def deep(couplings, dtype=torch.float32):
    torch.manual_seed(0)
    flow = Flow(StandardNormal(16), realnvp_transforms(16, couplings=couplings, net=partial(MLP, hidden=(32,))))
    return gently(flow, 0.02).to(dtype)


def test_gradients_of_64_couplings_in_float32():
    want, got = results(deep(64), "score"), results(rebuild(deep(64)), "score")
    exact = results(deep(64, torch.float64), "score")
    assert_close(got, want, 1e-6)
    for one, other, true in zip(got, want, exact, strict=True):  # as near to the truth as what stores everything
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-7 * true.norm() + 1e-7


def saved(flow, function):
    """MiB that a function stores for backward, without parameters and buffers; and its result."""
    own = {t.untyped_storage().data_ptr() for t in (*flow.parameters(), *flow.buffers())}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return sum(size for size, _ in found.values()) / 2**20, result


@pytest.mark.parametrize("direction", ["score", "sample"])
def test_rebuilding_stores_the_same_at_any_depth(direction):
    x = torch.randn(64, 16)

    def stored(flow):
        function = flow.transforms.inv if direction == "score" else flow.transforms
        return saved(flow, lambda: function(x.clone()))[0]

    shallow, far = stored(rebuild(deep(8))), stored(rebuild(deep(64)))
    assert far <= 1.1 * shallow
    assert stored(deep(64)) > 7 * stored(deep(8)) > 14 * shallow


def test_recomputing_stores_one_event_a_layer():
    x = torch.randn(8, 3, 8, 8)

    def make():
        torch.manual_seed(0)
        return Flow(StandardNormal((3, 8, 8)), realnvp_transforms((3, 8, 8), net=partial(ResNet, hidden=8, blocks=2)))

    plain = make()
    before, _ = saved(plain, lambda: plain(x))
    for change in (recompute, rebuild):
        flow = change(make())
        after, _ = saved(flow, lambda flow=flow: flow(x))
        assert 10 * after < before
        assert after < 5 * 20 * x.numel() * 4 / 2**20  # of about 20 layers


@pytest.mark.slow
def test_the_figures_of_the_documentation():
    """RealNVP 3x32x32, 2 scales, 32 maps, 4 blocks, batch 32; and vectors of 64 at the defaults."""
    x = torch.randn(32, 3, 32, 32)
    for change, limit in ((recompute, 40), (rebuild, 40)):
        net = partial(ResNet, hidden=32, blocks=4)
        flow = change(Flow(StandardNormal((3, 32, 32)), realnvp_transforms((3, 32, 32), net=net)))
        assert saved(flow, lambda flow=flow: flow(x))[0] < limit
    x = torch.randn(256, 64)
    sizes = []
    for couplings in (8, 64):
        flow = rebuild(gently(Flow(StandardNormal(64), realnvp_transforms(64, couplings=couplings)), 0.01))
        sizes.append(saved(flow, lambda flow=flow: flow(x))[0])
        got = torch.autograd.grad(flow(x).mean(), list(flow.parameters()))
        want = torch.autograd.grad(rebuild(flow, enabled=False)(x).mean(), list(flow.parameters()))
        for one, other in zip(got, want, strict=True):
            assert (one - other).norm() <= 1e-6 * other.norm()
    assert sizes[1] <= 1.1 * sizes[0]


class Counting(MLP):
    calls = 0

    def forward(self, x, context=None):
        Counting.calls += 1
        return super().forward(x, context)


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_a_network_is_evaluated_once_in_forward_and_once_in_backward(change):
    flow = change(Flow(StandardNormal(4), realnvp_transforms(4, couplings=3, net=Counting)))
    Counting.calls = 0
    loss = flow(torch.randn(5, 4)).sum()
    assert Counting.calls == 3
    loss.backward()
    assert Counting.calls == 6


def test_a_chain_that_cannot_be_inverted_warns_and_falls_back():
    def make():
        torch.manual_seed(0)
        flow = Flow(StandardNormal(4), realnvp_transforms(4, couplings=6, net=mlp)).double()
        return gently(flow, 0.7)

    want = results(make(), "score")
    with pytest.warns(UserWarning, match=r"Inverting 6 layers missed their input by .* more than 4e-11"):
        got = results(rebuild(make()), "score")
    assert_close(got, want, 1e-12)
    loose = results(rebuild(make(), tolerance=1e30), "score")  # and without the fallback the watch was right
    assert max((a - b).abs().max() / b.abs().max().clamp(min=1) for a, b in zip(loose, want, strict=True)) > 1e-11


def test_no_second_derivatives_of_what_is_rebuilt():
    flow = rebuild(deep(3))
    x = torch.randn(4, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives; call rebuild\(flow, enabled=False\)"):
        torch.autograd.grad(flow(x).sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(rebuild(flow, enabled=False)(x).sum(), x, create_graph=True)
    gradient.sum().backward()


def test_second_derivatives_of_what_is_recomputed():
    found = []
    for change in (recompute, lambda flow: flow):
        flow = change(deep(3, torch.float64))
        x = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(flow(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    assert_close(found[:1], found[1:], 1e-12)


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_backward_twice(change):
    flow = change(deep(3, torch.float64))
    loss = flow(torch.randn(4, 16, dtype=torch.float64)).sum()
    first, second = (torch.autograd.grad(loss, list(flow.parameters()), retain_graph=True) for _ in range(2))
    assert_close(first, second, 1e-14)


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_a_change_between_forward_and_backward_is_an_error(change):
    flow = change(deep(3))
    loss = flow(torch.randn(4, 16)).sum()
    with torch.no_grad():
        next(flow.parameters()).add_(0.1)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()
    loss = flow(torch.randn(4, 16)).sum()
    flow.eval()
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()


def test_a_result_that_is_overwritten_is_an_error():
    chain = rebuild(Chain(realnvp_transforms(4, couplings=3, net=mlp)))
    y, log_det = chain.forward_and_log_det(torch.randn(5, 4))
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_det.sum().backward()


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_gradients_of_the_context_alone_and_of_some_parameters(change):
    flow, plain = change(prepared("realnvp-context")), prepared("realnvp-context")
    found = []
    for one in (flow, plain):
        some = list(one.parameters())[3:6]
        one.requires_grad_(False)
        for parameter in some:
            parameter.requires_grad_()
        context = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
        found.append(torch.autograd.grad(one(x, context).sum(), [context, *some]))
    assert_close(*found, 1e-10)


def test_a_network_that_couplings_share():
    def make():
        torch.manual_seed(0)
        shared = nn.Linear(2, 2)
        net = nn.Sequential(shared, nn.SiLU(), shared, nn.SiLU(), nn.Linear(2, 4))
        return Chain([SplitCoupling((4,), net, Affine(), swap=swap) for swap in (False, True, False)]).double()

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    found = []
    for chain in (make(), rebuild(make()), recompute(make())):
        y, log_det = chain.forward_and_log_det(x)
        found.append(torch.autograd.grad(y.sin().sum() + log_det.sum(), list(chain.parameters())))
    assert_close(found[1], found[0], 1e-10)
    assert_close(found[2], found[0], 1e-12)


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_the_same_under_autocast(change):
    def gradients(flow):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = flow(torch.linspace(-1, 1, 64).reshape(4, 16)).mean()
            return torch.autograd.grad(loss, list(flow.parameters()))

    plain, other = gradients(deep(4)), gradients(change(deep(4)))
    for one, two in zip(other, plain, strict=True):
        assert (one - two).norm() <= 0.02 * two.norm() + 1e-4
    assert any(gradient.any() for gradient in other)


@pytest.mark.parametrize("change", [recompute, rebuild])
def test_state_copies_and_switching_off(change):
    plain, flow = deep(3), change(deep(3))
    assert list(flow.state_dict()) == list(plain.state_dict())
    for copied in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert saved(copied, lambda copied=copied: copied(torch.ones(99, 16)))[0] < 0.1
    assert saved(change(flow, enabled=False), lambda: flow(torch.ones(99, 16)))[0] > 0.1


def test_a_guide_and_a_prior_of_pyro():
    flow = rebuild(Chain(realnvp_transforms(4, couplings=3, net=mlp)))
    gently(flow)
    distribution = dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1).to_event(1), [flow])
    x = distribution.rsample((5,))
    loss = distribution.log_prob(x).sum()
    got = torch.autograd.grad(loss, list(flow.parameters()))
    rebuild(flow, enabled=False)
    torch.manual_seed(0)
    z = flow.inv(x.detach())
    y = flow(z.detach().clone())
    want = torch.autograd.grad(distribution.log_prob(y).sum(), list(flow.parameters()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Cubed(Reversible):
    """A user's own layer: y = a x + x^3 / 3, inverted by Cardano's formula."""

    def __init__(self, size):
        super().__init__((size,))
        self.a = nn.Parameter(torch.ones(()))

    def forward_and_log_det(self, x, context=None):
        return self.a * x + x**3 / 3, (self.a + x.square()).log().sum(-1)

    def inverse_and_log_det(self, y, context=None):
        root = (2.25 * y.square() + self.a**3).sqrt()
        u, v = 1.5 * y + root, 1.5 * y - root
        x = u.sign() * u.abs() ** (1 / 3) + v.sign() * v.abs() ** (1 / 3)
        return x, -(self.a + x.square()).log().sum(-1)


def test_a_layer_of_ones_own():
    chain = Chain([split((3,)), Cubed(3), split((3,), swap=True), initialized(ActNorm((3,))), Cubed(3).inv]).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    found = []
    for flow in (chain, rebuild(copy.deepcopy(chain))):
        y, log_det = flow.forward_and_log_det(x)
        found.append(torch.autograd.grad(y.sin().sum() + log_det.sum(), list(flow.parameters())))
    assert_close(*found, 1e-10)
    assert saved(flow, lambda: flow.forward_and_log_det(x))[0] < 4 * x.numel() * 8 / 2**20


def test_an_actnorm_awaits_its_first_batch_plainly():
    torch.manual_seed(0)
    chain = Chain(
        [InvertibleConv1x1((4, 2, 2), norm=ActNorm((4, 2, 2))), split((4, 2, 2), net=partial(ConvNet, hidden=4))]
    )
    flows, x = (chain, rebuild(copy.deepcopy(chain))), 3 + torch.randn(8, 4, 2, 2)
    for _ in range(2):
        first, second = (flow.forward_and_log_det(x) for flow in flows)
        assert_close(first, second, 1e-6)
        for one, other in zip(*(flow.state_dict().values() for flow in flows), strict=True):
            assert one.equal(other)
        second[1].sum().backward()
    assert chain[0].norm.initialized
