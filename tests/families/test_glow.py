"""Glow, assembled: structure, size, start, priors."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    MLP,
    ActNorm,
    Additive,
    Affine,
    Chain,
    ConvNet,
    Elementwise,
    FactorOut,
    Flow,
    InvertibleConv1x1,
    Sandwich,
    SigmoidLogScale,
    SplitCoupling,
    StandardNormal,
    glow_transforms,
)
from pyro_realnvp.networks.channel_norm import ChannelNorm
from pyro_realnvp.networks.convnet import ZeroConv
from pyro_realnvp.testing import randomize

from zoo import convnet, mlp, small_glow


def layers_of(transforms):
    """In the order of the paper: data -> latent."""
    return [transform.inv for transform in reversed(transforms)]


def levels_of(transforms):
    """The layers of every level of an image flow."""
    (layer,) = layers_of(transforms)
    levels = []
    while True:
        assert type(layer) is Sandwich
        levels.append(list(layer.bijection))
        if not isinstance(levels[-1][-1], FactorOut):
            return levels
        layer = levels[-1][-1].bijection


def kinds(layers):
    return [type(layer) for layer in layers]


def test_parameters_of_the_cifar_10_flow():
    with torch.device("meta"):
        flow = nn.ModuleList(glow_transforms((3, 32, 32)))
    assert sum(p.numel() for p in flow.parameters() if p.requires_grad) == 44_603_604 - 82_944 == 44_520_660


@pytest.mark.parametrize("plu", [False, True])
def test_structure_of_an_image_flow(plu):
    with torch.device("meta"):
        levels = levels_of(glow_transforms((3, 32, 32), levels=3, steps=4, plu=plu))
    assert len(levels) == 3
    step = [InvertibleConv1x1, SplitCoupling]
    for index, (layers, channels) in enumerate(zip(levels, (12, 24, 48), strict=True)):
        last = index == 2
        assert kinds(layers) == [*step * 4, *([Elementwise] if last else [SplitCoupling, FactorOut])]
        size = 32 // 2 ** (index + 1)
        assert layers[0].event_shape == (channels, size, size)
        for linear, coupling in zip(layers[0:8:2], layers[1:8:2], strict=True):
            assert isinstance(linear.norm, ActNorm)
            assert linear.norm.shift.shape == (channels,)
            assert hasattr(linear.matrix, "log_s") == plu
            assert not coupling.swap
            assert isinstance(coupling.conditioner, ConvNet)
            assert coupling.conditioner.conv2.shape == (512, 512, 1, 1)
            assert isinstance(coupling.transformer.scale, SigmoidLogScale)
        prior = layers[8]
        assert isinstance(prior.conditioner, ZeroConv)
        assert prior.conditioner.bias.shape == (2 * channels if last else channels,)


def test_defaults():
    with torch.device("meta"):
        levels = levels_of(glow_transforms((1, 8, 8)))
        vector = layers_of(glow_transforms(4))
    assert [len(layers) for layers in levels] == [2 * 32 + 2, 2 * 32 + 2, 2 * 32 + 1]
    assert kinds(vector) == [InvertibleConv1x1, SplitCoupling] * 8
    assert all(isinstance(layer.conditioner, MLP) for layer in vector[1::2])
    assert all(isinstance(layer.norm, ActNorm) for layer in vector[0::2])


def test_networks_know_their_level():
    seen = []

    def net(in_channels, out_channels, *, level, **kwargs):
        seen.append((in_channels, out_channels, level))
        return convnet(in_channels, out_channels, **kwargs)

    glow_transforms((1, 8, 8), levels=2, steps=1, net=net)
    assert seen == [(2, 4, 1), (4, 8, 2)]


@pytest.mark.parametrize(("transformer", "kind"), [(Additive, Additive), (Affine, Affine)])
def test_another_transformer(transformer, kind):
    for transforms in (small_glow((1, 4, 4), transformer=transformer), glow_transforms(4, transformer=transformer)):
        couplings = [m for m in nn.ModuleList(transforms).modules() if isinstance(m, SplitCoupling)]
        steps = [c for c in couplings if not isinstance(c.conditioner, ZeroConv)]
        assert steps
        assert all(type(c.transformer) is kind for c in steps)
        assert len({id(c.transformer) for c in steps}) == len(steps)


@pytest.mark.parametrize(
    "transforms",
    [
        lambda: glow_transforms(1, steps=2),
        lambda: glow_transforms(5, steps=2, net=mlp),
        lambda: glow_transforms(6, steps=2, net=mlp, plu=True),
        lambda: small_glow((1, 4, 4)),
        lambda: small_glow((3, 8, 4)),
        lambda: small_glow((1, 4, 4), plu=True, transformer=Additive),
    ],
)
def test_every_latent_is_moved_and_depends_on_the_data(transforms):
    flow = Flow(StandardNormal(Chain(transforms()).event_shape), transforms()).double().eval()
    randomize(flow)
    x = torch.randn(flow.event_shape, dtype=torch.float64)
    z = flow.transforms.inv(x)
    assert (z != x).all()
    jacobian = torch.autograd.functional.jacobian(flow.transforms.inverse_and_log_det, x)[0]
    jacobian = jacobian.reshape(x.numel(), x.numel())
    others = (jacobian != 0).sum(1)
    assert (others >= min(4, x.numel())).all()


@pytest.mark.parametrize("shape", [5, (3, 8, 8)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("plu", [False, True])
def test_it_starts_with_a_finite_density(shape, training, plu):
    make = glow_transforms if shape == 5 else small_glow
    flow = Flow(StandardNormal(shape), make(shape, plu=plu)).train(training)
    x = 3 * torch.randn(16, *flow.event_shape) + 2
    log_prob = flow(x)
    assert log_prob.isfinite().all()
    log_prob.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())
    assert flow.sample((4,)).isfinite().all()
    if training:
        assert all(m.initialized for m in flow.modules() if isinstance(m, ChannelNorm))


def test_the_start_is_rotations_and_scales_of_sigmoid_2():
    flow = Flow(StandardNormal((1, 4, 4)), small_glow((1, 4, 4), steps=3)).double().eval()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    z, log_det = flow.transforms.inverse_and_log_det(x)
    scale = 1e-4 + (1 - 1e-4) / (1 + math.exp(-2.0))
    changed = 3 * (8 + 4)  # half of 16 latents in level 1, half of 8 in level 2
    torch.testing.assert_close(log_det, torch.full_like(log_det, changed * math.log(scale)), atol=1e-4, rtol=0)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(flow(x), prior + log_det)


def test_additive_couplings_start_as_a_rotation():
    flow = Flow(StandardNormal(6), glow_transforms(6, transformer=Additive)).eval()
    x = torch.randn(5, 6)
    torch.testing.assert_close(flow.transforms.inv(x).square().sum(-1), x.square().sum(-1))


# ------------------------------------------------------------------------------------------------------ priors


def test_the_prior_of_a_level_is_a_gaussian_given_the_kept_half():
    levels = levels_of(small_glow((1, 4, 4)))
    prior = levels[0][-2].double()
    randomize(prior)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    kept, factored = x.chunk(2, 1)
    z, log_det = prior.forward_and_log_det(x)
    assert torch.equal(z[:, :2], kept)
    # z ~ N(0, I) says that the factored-out half is N(mean, std) with both given by the kept half alone.
    shift, raw = prior.conditioner(kept).chunk(2, 1)
    std = (-prior.transformer.scale(raw)).exp()
    mean = -shift * std
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 2:]).flatten(1).sum(1) + log_det
    want = torch.distributions.Normal(mean, std).log_prob(factored).flatten(1).sum(1)
    torch.testing.assert_close(standard, want)
    other = prior.forward_and_log_det(torch.cat([kept, factored + 1], 1))[1]
    torch.testing.assert_close(other, log_det)
    assert not torch.allclose(prior.forward_and_log_det(torch.cat([kept + 1, factored], 1))[1], log_det)


def test_the_top_prior_is_learned():
    levels = levels_of(small_glow((1, 4, 4)))
    top = levels[-1][-1].double()
    x = torch.randn(3, *top.event_shape, dtype=torch.float64)
    assert torch.equal(top(x), x)
    with torch.no_grad():
        top.conditioner.bias[: top.event_shape[0]] = 2.0
    torch.testing.assert_close(top(x), x + 2)


@pytest.mark.parametrize("context", [{"context_dim": 3}, {"context_shape": (2, 4, 4)}])
def test_a_context_reaches_every_coupling_and_both_priors(context):
    transforms = small_glow((1, 4, 4), **context)
    flow = Flow(StandardNormal((1, 4, 4)), transforms).double().eval()
    randomize(flow)
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    given = torch.randn(5, *flow.transforms.context_shape, dtype=torch.float64)
    asked = []
    for module in flow.modules():
        if isinstance(module, (ConvNet, ZeroConv)) and module.context_shape is not None:
            module.register_forward_hook(lambda module, inputs, output: asked.append((type(module), inputs[1])))
    assert not torch.allclose(flow(x, given), flow(x, given + 1))
    assert [kind for kind, _ in asked[:4]] == [ConvNet, ZeroConv, ConvNet, ZeroConv]
    assert all(tensor is not None for _, tensor in asked)
    with pytest.raises(ValueError, match="needs a context"):
        flow(x)


def test_a_label_moves_the_top_prior():
    flow = Flow(StandardNormal((1, 4, 4)), small_glow((1, 4, 4), context_dim=3)).eval()
    top = levels_of(list(flow.transforms))[-1][-1]
    with torch.no_grad():
        top.conditioner.context_in.weight[:, 1] = 1.0
    x = torch.randn(1, 1, 4, 4).expand(3, 1, 4, 4)
    log_prob = flow(x, torch.eye(3))
    torch.testing.assert_close(log_prob[0], log_prob[2])
    assert (log_prob[1] - log_prob[0]).abs() > 0.1


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context", [{"context_dim": 3}, {"context_shape": (2, 2, 2)}])
def test_a_context_reaches_vectors(dim, context):
    flow = Flow(StandardNormal(dim), glow_transforms(dim, steps=2, net=mlp, **context)).double().eval()
    randomize(flow)
    x = torch.randn(5, dim, dtype=torch.float64)
    given = torch.randn(5, *next(iter(context.values())) if "context_shape" in context else (3,)).double()
    assert flow.transforms.context_shape == given.shape[1:]
    assert not torch.allclose(flow(x, given), flow(x, given + 1))
    with pytest.raises(ValueError, match="needs a context"):
        flow(x)


def test_a_flow_without_a_context_refuses_one():
    for flow in (Flow(StandardNormal(4), glow_transforms(4)), Flow(StandardNormal((1, 4, 4)), small_glow((1, 4, 4)))):
        with pytest.raises(ValueError, match="without a context"):
            flow(torch.randn(5, *flow.event_shape), torch.randn(5, 3))


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: glow_transforms(4, levels=2), r"vectors takes no levels.*levels=2"),
        (lambda: glow_transforms(4, steps=0), "steps.*got 0"),
        (lambda: small_glow((1, 4, 4), steps=0), "steps.*got 0"),
        (lambda: small_glow((1, 4, 4), levels=0), "levels.*got 0"),
        (lambda: small_glow((1, 4, 4), levels=-1), "levels.*got -1"),
        (lambda: glow_transforms(0), "got 0"),
        (lambda: glow_transforms(()), r"got \(\)"),
        (lambda: glow_transforms((4, 4)), r"got \(4, 4\)"),
        (lambda: small_glow((0, 4, 4)), r"got \(0, 4, 4\)"),
        (lambda: small_glow((3, 31, 32)), r"even height and width.*\(3, 31, 32\)"),
        (lambda: small_glow((1, 4, 6), levels=2), r"even height and width.*\(2, 2, 3\)"),
        (lambda: small_glow((1, 4, 4), levels=3), r"even height and width.*\(4, 1, 1\)"),
        (lambda: glow_transforms(4, context_dim=3, context_shape=(1, 2, 2)), "context_dim=3.*context_shape"),
        (lambda: small_glow((1, 4, 4), context_dim=3, context_shape=(1, 4, 4)), "context_dim=3.*context_shape"),
        (lambda: glow_transforms(4, context_dim=-1), "context_dim.*-1"),
        (lambda: small_glow((1, 4, 4), context_dim=-1), "context_dim.*-1"),
        (lambda: small_glow((1, 4, 4), context_shape=(2, 2, 2)), r"context.*\(2, 2, 2\)"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_layers_share_nothing():
    transforms = glow_transforms(4, steps=2, net=partial(MLP, hidden=(4,)))
    parameters = [id(p) for transform in transforms for p in transform.parameters()]
    assert len(parameters) == len(set(parameters))


def test_a_state_loads_into_another_flow():
    one, other = (Flow(StandardNormal((1, 4, 4)), small_glow((1, 4, 4), plu=True)) for _ in range(2))
    x = torch.randn(8, 1, 4, 4)
    one(x)
    randomize(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.train()(x), one.train()(x))
