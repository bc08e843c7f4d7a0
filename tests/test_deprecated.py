"""What version 0.1 had still works: every name, with its arguments of then, and networks written for it."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn

import pyro_realnvp
from pyro_realnvp import (
    MLP,
    Affine,
    Base,
    Chain,
    Conditioner,
    ConvNet,
    DiagonalNormal,
    EmbedContext,
    FixedAffine,
    Flow,
    GatedAttention,
    Halves,
    MixtureBase,
    ResNet,
    Sandwich,
    SigmoidLogScale,
    SoftClipLogScale,
    Squeeze,
    SqueezeCheckerboard,
    SqueezeColumns,
    StandardNormal,
    StudentTBase,
    TanhLogScale,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    importance_sample,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp._deprecated import DEPRECATED
from pyro_realnvp.testing import check_bijection, randomize

from zoo import convnet, features, mlp, resnet, split

# fmt: off
NAMES_OF_0_1 = {
    "MLP", "ActNorm", "Additive", "Affine", "Arranged", "AttentiveConvs", "AutoRealNVP", "BatchNorm", "Bijection",
    "Chain", "Columns", "Conditioned", "ConvNet", "Dequantized", "DiagonalNormal", "Elementwise", "Embedded",
    "FactorOut", "Flow", "GatedAttention", "GatedConvs", "ImportanceSamples", "IndependenceMH", "Inverse",
    "InvertibleConv1x1", "Lift", "Logit", "MaskedCoupling", "MixtureLogistic", "NeuTra", "Parallel",
    "PathGradientDistribution", "Permute", "ResNet", "Reversible", "Scale", "SigmoidScale", "SoftClipScale",
    "SoftplusScale", "SplitCoupling", "Squares", "Squeeze", "Squeezed", "StandardLogistic", "StandardNormal",
    "Standardized", "TanhScale", "alternating", "bits_per_dim", "channelwise", "checkerboard", "effective_sample_size",
    "flowpp_dequantizer", "flowpp_transforms", "glow_transforms", "importance_resample", "importance_sample",
    "nice_transforms", "pareto_k", "pareto_k_threshold", "pareto_smooth", "realnvp_transforms", "rebuild",
    "recalibrate", "recompute", "synchronize",
}
# fmt: on


def old(name):
    """What a name of version 0.1 stands for; it gives one warning, which names what takes its place, here."""
    with pytest.warns(DeprecationWarning, match=f"^pyro_realnvp.{name} is deprecated, use ") as caught:
        value = getattr(pyro_realnvp, name)
    (warning,) = caught
    assert str(warning.message).endswith(f"use {DEPRECATED[name][1]}.")
    assert warning.filename == __file__
    return value


# ------------------------------------------------------------------------------------------------------- the names


def test_every_name_of_0_1_is_still_there():
    assert len(NAMES_OF_0_1) == 66
    for name in NAMES_OF_0_1:
        if name in DEPRECATED:
            old(name)
        else:
            assert name in pyro_realnvp.__all__
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                getattr(pyro_realnvp, name)


def test_what_is_deprecated_is_of_0_1_and_no_longer_shown():
    assert set(DEPRECATED) <= NAMES_OF_0_1
    assert not set(DEPRECATED) & set(pyro_realnvp.__all__)
    assert not set(DEPRECATED) & set(dir(pyro_realnvp))


def test_what_takes_the_place_is_public():
    for _, new in DEPRECATED.values():
        assert new.split("(")[0] in pyro_realnvp.__all__


@pytest.mark.parametrize("name", DEPRECATED)
def test_a_deprecated_name_can_be_imported(name):
    found = {}
    with pytest.warns(DeprecationWarning, match=f"pyro_realnvp.{name} is deprecated, use "):
        exec(f"from pyro_realnvp import {name}", found)
    assert found[name] is DEPRECATED[name][0]


def test_other_names_are_an_error():
    with pytest.raises(AttributeError, match="module 'pyro_realnvp' has no attribute 'RealNVP'"):
        _ = pyro_realnvp.RealNVP
    assert not hasattr(pyro_realnvp, "_private")
    with pytest.raises(ImportError, match="cannot import name 'RealNVP'"):
        exec("from pyro_realnvp import RealNVP", {})


# -------------------------------------------------------------------- each as it was, with the arguments of then


def assert_same(got, want, *, context=None):
    """Two bijections with the same weights do the same."""
    assert type(got) is type(want)
    got.load_state_dict(want.state_dict())
    x = torch.randn(5, *want.event_shape)
    for one, other in zip(got.forward_and_log_det(x, context), want.forward_and_log_det(x, context), strict=True):
        assert torch.equal(one, other)
    assert got.context_shape == want.context_shape


@pytest.mark.parametrize(
    ("name", "arguments", "new"),
    [
        ("Columns", ((2, 3, 4),), SqueezeColumns),
        ("Squares", ((2, 3, 4),), SqueezeCheckerboard),
        ("Standardized", (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])), FixedAffine),
        ("Standardized", (torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.0], [1.0, 3.0]])), FixedAffine),
    ],
)
def test_layers_without_parts(name, arguments, new):
    assert_same(old(name)(*arguments), new(*arguments))


def test_arranged_and_parallel():
    outer, inner = SqueezeColumns((1, 2, 4)), split((2, 2, 2))
    randomize(inner)
    assert_same(old("Arranged")(outer, inner), Sandwich(outer, inner))
    assert_same(old("Arranged")(outer=outer, bijection=inner), Sandwich(outer, inner))
    first, second = split((2, 2, 2)), split((2, 2, 2), swap=True)
    randomize(first)
    assert_same(old("Parallel")(first, second), Halves(first, second))
    assert_same(old("Parallel")(first=first, second=second), Halves(first, second))


def test_embedded():
    inner, embedding = split((3,), context_dim=2), nn.Linear(4, 2)
    randomize(inner)
    context = torch.randn(5, 4)
    assert_same(old("Embedded")(inner, embedding, (4,)), EmbedContext(inner, embedding, (4,)), context=context)
    got = old("Embedded")(bijection=inner, embedding=embedding, context_shape=(4,))
    assert_same(got, EmbedContext(inner, embedding, (4,)), context=context)


CONTEXTS = {"none": ({}, None), "vector": ({"context_dim": 3}, (3,)), "map": ({"context_shape": (8, 2, 1)}, (2, 4, 2))}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", CONTEXTS)
def test_squeezed_is_a_sandwich_of_squeeze(kind, ordered):
    arguments, context_shape = CONTEXTS[kind]
    inner = split((4, 2, 1), **arguments)
    randomize(inner)
    squeeze = Squeeze(context_shape) if kind == "map" else None
    want = Sandwich(Squeeze((1, 4, 2), ordered=ordered), inner, context=squeeze)
    got = old("Squeezed")(inner, ordered=ordered)
    context = None if context_shape is None else torch.randn(5, *context_shape)
    assert got.event_shape == (1, 4, 2)
    assert got.context_shape == context_shape
    assert list(got.state_dict()) == [f"bijection.{key}" for key in inner.state_dict()]  # the keys of then
    assert_same(got, want, context=context)
    if not ordered:
        assert_same(old("Squeezed")(inner), want, context=context)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2)])
def test_squeezed_refuses_what_is_not_squeezed(shape):
    with pytest.raises(ValueError, match="Squeezed needs a bijection"):
        old("Squeezed")(split(shape))


@pytest.mark.parametrize(
    ("name", "new", "arguments"),
    [
        ("TanhScale", TanhLogScale, {"initial": 0.5}),
        ("SigmoidScale", SigmoidLogScale, {"floor": 0.1}),
        ("SoftClipScale", SoftClipLogScale, {"bound": 2.0}),
    ],
)
def test_scales(name, new, arguments):
    raw, scale = torch.linspace(-9, 9, 31), old(name)
    assert scale is new
    assert torch.equal(scale()(raw), new()(raw))
    assert torch.equal(scale(**arguments)(raw), new(*arguments.values())(raw))


@pytest.mark.parametrize("arguments", [{}, {"floor": 0.1, "bound": 5.0}])
def test_softplus_scale(arguments):
    scale = old("SoftplusScale")(**arguments)
    floor, bound = arguments.get("floor", 1e-3), arguments.get("bound", 100.0)
    assert scale(torch.zeros(())).item() == pytest.approx(0, abs=1e-6)  # the identity
    raw = torch.linspace(-30, 30, 10_001, dtype=torch.float64)
    value = scale(raw)
    assert (value.diff() > 0).all()
    assert (value > torch.tensor(floor).double().log()).all()
    offset = torch.tensor(1 - floor, dtype=torch.float64).expm1().log()
    want = (floor + nn.functional.softplus(raw / (1 + raw.abs() / bound) + offset)).log()
    torch.testing.assert_close(value, want)
    far = scale(torch.tensor([-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max]))
    assert far.isfinite().all()
    assert far[1].exp() < bound + 2
    check_bijection(split((3,), transformer=Affine(scale)))


def test_the_scale_of_affine():
    scale = TanhLogScale(0.5)
    with pytest.warns(
        DeprecationWarning, match=r"^Affine\(scale=...\) is deprecated, use Affine\(log_scale=...\)"
    ) as caught:
        transformer = Affine(scale=scale)
    assert [warning.filename for warning in caught] == [__file__]  # where the old name is used
    assert transformer.scale is scale
    assert list(transformer.state_dict()) == ["scale.alpha"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Affine(scale).scale is Affine(log_scale=scale).scale is scale


def test_importance_resample():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    y = torch.tensor(1.0)
    guide = AutoDiagonalNormal(model, init_scale=1.0)
    guide(y)
    resample, found = old("importance_resample"), []
    for batch_size in (None, 400):
        pyro.set_rng_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(
                resample(model, guide, y, num_samples=50, num_draws=1000, parallel=True, batch_size=batch_size)["z"]
            )
        pyro.set_rng_seed(1)
        draws = importance_sample(model, guide, y, num_samples=1000, parallel=True, batch_size=batch_size)
        assert torch.equal(found[-1], draws.smoothed().resample(50)["z"])
    assert found[0].shape == (50,)
    narrow = AutoDiagonalNormal(model, init_scale=0.3)
    with pytest.warns(UserWarning, match="k-hat of the importance weights is .*: 500 draws"):
        resample(model, narrow, torch.tensor(5.0), num_samples=5, num_draws=500, parallel=True)


# ------------------------------------------------------------------- context_dim, which is no longer shown but works

IMAGE = (1, 4, 4)
attention = partial(GatedAttention, hidden=4, blocks=1, heads=2)
MAKERS = {
    "realnvp": partial(realnvp_transforms, 4, couplings=2, net=mlp),
    "realnvp-1": partial(realnvp_transforms, 1, net=mlp),
    "realnvp-image": partial(realnvp_transforms, IMAGE, net=resnet),
    "realnvp-packed": partial(realnvp_transforms, IMAGE, net=resnet, packed=True),
    "nice": partial(nice_transforms, 4, net=mlp),
    "glow": partial(glow_transforms, 4, steps=2, net=mlp),
    "glow-image": partial(glow_transforms, IMAGE, levels=2, steps=1, net=convnet),
    "flowpp": partial(flowpp_transforms, 4, couplings=2, components=2, net=mlp),
    "flowpp-image": partial(flowpp_transforms, IMAGE, couplings=(1, 1, 1), components=2, net=attention),
    "MLP": partial(MLP, 4, 3),
    "ResNet": partial(ResNet, 2, 3, hidden=4, blocks=1),
    "ConvNet": partial(ConvNet, 2, 3, hidden=4),
    "GatedAttention": partial(attention, 2, 3, size=(4, 4)),
    "DiagonalNormal": partial(DiagonalNormal, 4),
    "StudentTBase": partial(StudentTBase, 4),
    "MixtureBase": partial(MixtureBase, 4, 2),
}


def outputs(made):
    """What a list of layers, a network or a base computes with a context of length 3, in evaluation mode."""
    module = Chain(made) if isinstance(made, list) else made
    assert module.context_shape == (3,)
    torch.manual_seed(1)
    randomize(module.eval())
    context = torch.randn(5, 3)
    if isinstance(module, Conditioner):
        return module(torch.randn(5, *((4,) if isinstance(module, MLP) else (2, 4, 4))), context)
    x = torch.randn(5, *module.event_shape)
    return module(context).log_prob(x) if isinstance(module, Base) else module.condition(context)(x)


@pytest.mark.parametrize("name", MAKERS)
def test_the_length_of_a_context_has_three_spellings(name):
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*one affine map")  # not of the spelling
        for spelling in ({"context_dim": 3}, {"context_shape": 3}, {"context_shape": (3,)}):
            torch.manual_seed(0)
            found.append(outputs(MAKERS[name](**spelling)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(ValueError, match=r"context_dim=3 and context_shape=\(3,\)"):
        MAKERS[name](context_dim=3, context_shape=(3,))


@pytest.mark.parametrize("none", [{}, {"context_dim": 0}, {"context_shape": None}])
@pytest.mark.parametrize("name", MAKERS)
def test_no_context_has_several_spellings_too(name, none):
    made = MAKERS[name](**none)
    module = Chain(made) if isinstance(made, list) else made
    assert module.context_shape is None


# ------------------------------------------------------------------------------------- networks written for 0.1


class NetOf01(nn.Module):
    """A user's network as the contract of version 0.1 had it: the context always comes in two keywords.

    It notes which keywords it is given.
    """

    def __init__(self, in_channels, out_channels, *, context_dim, context_shape, mask=None, level=0, **others):
        super().__init__()
        assert type(context_dim) is int
        assert context_shape is None or len(context_shape) == 3
        assert not (context_dim and context_shape)
        assert mask is None or mask.dtype == torch.bool
        assert type(level) is int
        self.others = set(others)
        self.context_shape = torch.Size((context_dim,)) if context_dim else context_shape
        channels = 0 if self.context_shape is None else self.context_shape[0]
        self.linear = nn.Linear(in_channels + channels, out_channels)

    def forward(self, x, context=None):
        if x.dim() > 2 and context is not None and context.dim() == 2:
            context = context[..., None, None].expand(-1, -1, *x.shape[-2:])
        x = x if self.context_shape is None else torch.cat([x, context], 1)
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


SPELLINGS = {"none": {}, "vector": {"context_dim": 2}, "map": {"context_shape": (2, 4, 4)}}
OF_0_1 = {
    "realnvp": (partial(realnvp_transforms, 4, couplings=3), ["none", "vector"]),
    "realnvp-1": (partial(realnvp_transforms, 1), ["vector"]),
    "realnvp-image": (partial(realnvp_transforms, IMAGE), ["none", "vector", "map"]),
    "realnvp-packed": (partial(realnvp_transforms, IMAGE, packed=True), ["none", "vector", "map"]),
    "glow": (partial(glow_transforms, 4, steps=2), ["none", "vector"]),
    "glow-image": (partial(glow_transforms, IMAGE, levels=2, steps=1), ["none", "vector", "map"]),
    "nice": (partial(nice_transforms, 4), ["none", "vector"]),
    "nice-image": (partial(nice_transforms, (1, 2, 3)), ["none"]),
    "flowpp": (partial(flowpp_transforms, 4, couplings=2, components=2), ["none", "vector"]),
    "flowpp-image": (
        partial(flowpp_transforms, IMAGE, couplings=(1, 1, 1), components=2),
        ["none", "vector", "map"],
    ),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (_, kinds) in OF_0_1.items() for kind in kinds])
def test_networks_with_the_signature_of_0_1(name, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*one affine map")  # not of the spelling
        transforms = OF_0_1[name][0](net=NetOf01, **SPELLINGS[kind])
    flow = Flow(StandardNormal(transforms[0].event_shape), transforms).double().eval()
    networks = [module for module in flow.modules() if isinstance(module, NetOf01)]
    assert networks
    for parameter in nn.ModuleList(networks).parameters():
        nn.init.normal_(parameter, std=0.1)
    assert all(network.others == ({"size"} if name == "flowpp-image" else set()) for network in networks)
    shape = flow.transforms.context_shape
    assert shape == {"none": None, "vector": (2,), "map": (2, 4, 4)}[kind]
    context = None if shape is None else torch.randn(3, *shape, dtype=torch.float64)
    x = torch.randn(3, *flow.event_shape, dtype=torch.float64)
    z, log_det = flow.transforms.inverse_and_log_det(x, context)
    back, backward = flow.transforms.forward_and_log_det(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(backward, -log_det)
    if context is not None:
        assert not z.equal(flow.transforms.inverse_and_log_det(x, context + 1)[0])


def test_a_dequantizer_with_networks_of_0_1():
    transforms = flowpp_dequantizer(IMAGE, couplings=2, components=2, net=NetOf01, embedding=features)
    flow = Flow(StandardNormal(IMAGE), transforms).eval()
    assert {module.context_shape for module in flow.modules() if isinstance(module, NetOf01)} == {(2, 4, 2)}
    assert flow(torch.full((3, *IMAGE), 0.3), torch.rand(3, *IMAGE) - 0.5).isfinite().all()
