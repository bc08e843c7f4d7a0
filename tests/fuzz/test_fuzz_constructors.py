"""Builders, networks, layers and bases with any arguments: what is made is right, or a sentence says what is wrong."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONTEXTS, COUNTS, FLAGS, WRONG, WRONG_PARTS, calls, case, follows_the_laws, made, outcome
from torch import nn

from pyro_realnvp import (
    MLP,
    ActNorm,
    Additive,
    Affine,
    AttentiveConvs,
    BatchNorm,
    Chain,
    CircularSpline,
    ConvNet,
    DiagonalNormal,
    Elementwise,
    EmbedContext,
    FactorOut,
    FixedAffine,
    FixedLowRank,
    GatedAttention,
    GatedConvs,
    Halves,
    InvertibleConv1x1,
    Lift,
    Logit,
    MaskedCoupling,
    MixtureBase,
    MixtureLogistic,
    Permute,
    RationalQuadratic,
    ResNet,
    Sandwich,
    Scale,
    SigmoidLogScale,
    SoftClipLogScale,
    SplitCoupling,
    Squeeze,
    SqueezeCheckerboard,
    SqueezeColumns,
    StandardLogistic,
    StandardNormal,
    StudentTBase,
    TanhLogScale,
    alternating,
    channelwise,
    checkerboard,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    spline_transforms,
)

from zoo import attention, convnet, features, masked, mlp, resnet, split

SIZES = st.integers(1, 4)
VECTORS = st.one_of(st.integers(1, 5), SIZES.map(lambda size: (size,)), SIZES.map(lambda size: [size]))
IMAGES = st.one_of(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    st.tuples(SIZES, SIZES, SIZES),
)
SHAPES = st.one_of(SIZES.map(lambda size: (size,)), IMAGES)
NETS = st.sampled_from([mlp, mlp, resnet, convnet, attention, partial(MLP, hidden=(2,), gain=0.5, skip=0.1)])
IMAGE_NETS = st.sampled_from([resnet, convnet, mlp, attention])
TRANSFORMERS = st.sampled_from([Affine, Additive, partial(MixtureLogistic, 2)])
conditions = {"context_shape": CONTEXTS, "context_dim": st.sampled_from([0, 0, 1, 2])}

pytestmark = pytest.mark.filterwarnings("ignore:.*one affine map")  # of one coordinate given a context
no_inputs = pytest.mark.filterwarnings("ignore:Initializing zero-element")  # torch's, if a network reads nothing

BUILDERS = {
    "realnvp": case(
        realnvp_transforms,
        ["event_shape", "net", "couplings"],
        event_shape=VECTORS,
        net=NETS,
        couplings=COUNTS,
        **conditions,
    ),
    "realnvp-hidden": case(
        realnvp_transforms,
        ["event_shape", "hidden"],
        **{"event_shape": VECTORS, "hidden": st.lists(SIZES, max_size=2), "couplings": COUNTS, **conditions},
    ),
    "spline": case(
        spline_transforms,
        ["event_shape", "hidden"],
        event_shape=VECTORS,
        hidden=st.lists(SIZES, max_size=2),
        couplings=COUNTS,
        bins=st.integers(2, 5),
        bound=st.floats(0.5, 10),
        **conditions,
    ),
    "spline-image": case(
        spline_transforms,
        ["event_shape", "net", "steps", "levels"],
        event_shape=IMAGES,
        net=IMAGE_NETS,
        steps=st.just(1),
        levels=st.integers(1, 2),
        **{"bins": st.integers(2, 5), **conditions},
    ),
    "realnvp-image": case(
        realnvp_transforms,
        ["event_shape", "net"],
        **{"event_shape": IMAGES, "net": IMAGE_NETS, "scales": COUNTS, "packed": FLAGS, **conditions},
    ),
    "nice": case(
        nice_transforms,
        ["event_shape", "net"],
        **{"event_shape": st.one_of(VECTORS, IMAGES), "net": NETS, "couplings": COUNTS, **conditions},
    ),
    "glow": case(
        glow_transforms,
        ["event_shape", "net", "steps"],
        event_shape=VECTORS,
        net=NETS,
        steps=COUNTS,
        transformer=TRANSFORMERS,
        plu=FLAGS,
        **conditions,
    ),
    "glow-image": case(
        glow_transforms,
        ["event_shape", "net", "steps", "levels"],
        event_shape=IMAGES,
        net=IMAGE_NETS,
        steps=st.just(1),
        levels=st.integers(1, 2),
        **{"transformer": TRANSFORMERS, "plu": FLAGS, **conditions},
    ),
    "flowpp": case(
        flowpp_transforms,
        ["event_shape", "net", "components"],
        **{"event_shape": VECTORS, "net": NETS, "components": COUNTS, "couplings": COUNTS, **conditions},
    ),
    "flowpp-image": case(
        flowpp_transforms,
        ["event_shape", "net", "components", "couplings"],
        event_shape=IMAGES,
        net=st.just(attention),
        components=COUNTS,
        pointwise=FLAGS,
        couplings=st.one_of(st.just(1), st.just((1, 1, 1)), st.just((2,)), st.just((1, 1))),
        **{"true_checkerboard": FLAGS, **conditions},
    ),
}
DEQUANTIZER = {
    "dequantizer": case(
        flowpp_dequantizer,
        ["event_shape", "couplings", "components", "net", "embedding"],
        event_shape=IMAGES,
        couplings=st.just(1),
        components=COUNTS,
        net=st.just(attention),
        embedding=st.just(features),
        pointwise=FLAGS,
    )
}


@given(calls(BUILDERS))
def test_builders(call):
    transforms = made(call)
    if transforms is not None:
        follows_the_laws(Chain(transforms))


@given(calls(DEQUANTIZER))
def test_dequantizers(call):
    transforms = made(call)
    if transforms is not None:
        follows_the_laws(transforms[0])
        noise = Chain(transforms).condition(torch.rand(*transforms[0].context_shape))(
            torch.randn(2, *transforms[0].event_shape)
        )
        assert ((noise >= 0) & (noise <= 1)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------

MASKS = st.one_of(
    SHAPES.flatmap(
        lambda shape: st.lists(FLAGS, min_size=(n := torch.Size(shape).numel()), max_size=n).map(
            lambda flags: torch.tensor(flags).reshape(shape)
        )
    ),
    st.sampled_from([checkerboard((1, 2, 2)), channelwise((2, 1, 2), flip=True), alternating((4,)), alternating((5,))]),
    st.sampled_from([torch.ones(2), torch.zeros(2, dtype=torch.long), torch.ones(2, 2).bool(), torch.tensor(True)]),
)
CONDITIONERS = st.sampled_from(
    [
        mlp(2, 4),
        mlp(2, 2),
        mlp(4, 8),
        mlp(0, 4, context_dim=2),
        convnet(1, 2),
        convnet(2, 4, context_dim=1),
        resnet(1, 2),
    ]
)
TRANSFORMERS_MADE = st.sampled_from([Affine(), Additive(), MixtureLogistic(2), Affine(TanhLogScale(0.5))])
INNER = st.sampled_from(
    [
        *(Scale((2,)), Scale((1, 2, 2)), Scale((4, 1, 1)), Scale((2, 2, 1)), ActNorm((2, 2, 2)), Squeeze((1, 2, 2))),
        *(SplitCoupling((2,), mlp(1, 2), Affine()), SplitCoupling((2, 2, 2), convnet(1, 2, context_dim=2), Affine())),
        *(Permute((4,), [1, 0, 3, 2]), Scale((2,)).inv, SqueezeColumns((2, 1, 2))),
    ]
)
# What bounds the elements comes first, or behind layers that move them alone.
BOUNDED = [[Logit(0.05), Scale((2,))], [Squeeze((1, 2, 2)), Logit(0.05)], [Permute((2,), [1, 0]), Logit(0.0)]]
SMALL = st.floats(-2, 2, width=32)
LAYERS = {
    "Scale": case(Scale, ["event_shape"], event_shape=SHAPES),
    "FixedAffine": case(
        FixedAffine,
        ["loc", "scale"],
        loc=st.sampled_from(
            [torch.zeros(2), torch.ones(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2).long()]
        ),
        scale=st.sampled_from(
            [torch.ones(2), torch.eye(2) + 0.5, torch.eye(3), torch.ones(2).double(), torch.ones(2, 3)]
        ),
    ),
    "FixedLowRank": case(
        FixedLowRank,
        ["loc", "scale", "directions", "stretch"],
        loc=st.sampled_from([torch.zeros(2), torch.ones(3), torch.zeros(2).double(), torch.zeros(2).long()]),
        scale=st.sampled_from([torch.ones(2), torch.full((3,), 0.5), torch.zeros(2), torch.ones(2).double()]),
        directions=st.sampled_from([torch.eye(2), torch.eye(3)[:, :2], torch.zeros(2, 0), torch.ones(2, 2)]),
        stretch=st.sampled_from([torch.tensor([2.0, -0.5]), torch.zeros(0), torch.full((2,), -1.0), torch.ones(1)]),
    ),
    "Permute": case(
        Permute,
        ["event_shape", "permutation"],
        event_shape=SHAPES,
        permutation=SIZES.flatmap(lambda n: st.permutations(range(n))),
    ),
    "InvertibleConv1x1": case(
        InvertibleConv1x1,
        ["event_shape"],
        event_shape=SHAPES,
        norm=st.sampled_from([ActNorm((2,)), ActNorm((2, 2, 2)), ActNorm((2,), per_position=True), None]),
        plu=FLAGS,
    ),
    "ActNorm": case(ActNorm, ["event_shape"], event_shape=SHAPES, per_position=FLAGS),
    "BatchNorm": case(
        BatchNorm, ["event_shape"], event_shape=SHAPES, mask=MASKS, momentum=st.floats(0, 1), eps=st.floats(1e-6, 1)
    ),
    "Logit": case(Logit, alpha=st.floats(0, 0.45)),
    "Squeeze": case(Squeeze, ["event_shape"], event_shape=IMAGES, ordered=FLAGS),
    "SqueezeColumns": case(SqueezeColumns, ["event_shape"], event_shape=IMAGES),
    "SqueezeCheckerboard": case(SqueezeCheckerboard, ["event_shape"], event_shape=IMAGES),
    "Sandwich": case(
        Sandwich,
        ["outer", "bijection"],
        outer=st.one_of(INNER, st.just(Squeeze((1, 2, 2)))),
        bijection=INNER,
        context=INNER,
    ),
    "Halves": case(Halves, ["first", "second"], first=INNER, second=INNER),
    "FactorOut": case(FactorOut, ["bijection"], bijection=INNER),
    "Chain": case(
        Chain,
        ["bijections"],
        bijections=st.one_of(st.lists(INNER, max_size=2), st.sampled_from(BOUNDED)),
        event_shape=SHAPES,
        cache_size=st.integers(0, 1),
    ),
    "Lift": case(
        Lift,
        ["transform"],
        transform=st.sampled_from(
            [
                torch.distributions.AffineTransform(1.0, -2.0),
                torch.distributions.SigmoidTransform(),
                torch.distributions.ReshapeTransform((4,), (2, 2)),
                torch.distributions.ExpTransform().inv,
                torch.distributions.AbsTransform(),
            ]
        ),
        event_shape=SHAPES,
        owner=st.none(),
    ),
    "EmbedContext": case(
        EmbedContext,
        ["bijection", "embedding", "context_shape"],
        WRONG_PARTS,
        bijection=INNER,
        embedding=st.just(nn.Identity()),
        context_shape=st.just((2,)),
    ),
    "SplitCoupling": case(
        SplitCoupling,
        ["event_shape", "conditioner", "transformer"],
        WRONG_PARTS,
        event_shape=st.one_of(SHAPES, st.sampled_from([(4,), (2, 1, 2)])),
        conditioner=CONDITIONERS,
        transformer=TRANSFORMERS_MADE,
        swap=FLAGS,
    ),
    "MaskedCoupling": case(
        MaskedCoupling,
        ["mask", "conditioner", "transformer"],
        WRONG_PARTS,
        mask=MASKS,
        conditioner=CONDITIONERS,
        transformer=TRANSFORMERS_MADE,
    ),
    "Elementwise": case(
        Elementwise,
        ["event_shape", "transformer"],
        WRONG_PARTS,
        event_shape=SHAPES,
        transformer=TRANSFORMERS_MADE,
        conditioner=CONDITIONERS,
    ),
}


@given(calls(LAYERS))
def test_layers(call):
    layer = made(call)
    if layer is not None:
        follows_the_laws(layer)


@no_inputs
@given(st.one_of(SHAPES, st.just((4, 1, 2))), TRANSFORMERS, FLAGS, st.sampled_from([None, 2, (1, 2, 2)]))
def test_split_couplings(shape, transformer, swap, context):
    coupling = outcome(lambda: split(shape, transformer=transformer(), swap=swap, context_shape=context))
    if coupling is not None:
        follows_the_laws(coupling)


@given(MASKS, TRANSFORMERS, st.sampled_from([None, 2, (1, 2, 2)]))
def test_masked_couplings(mask, transformer, context):
    if mask.dim() in (1, 3):
        coupling = outcome(lambda: masked(mask, transformer=transformer(), context_shape=context))
        if coupling is not None:
            follows_the_laws(coupling)


TRANSFORMERS_CASES = {
    # A function that is no elementwise map shows in a call alone, by an error of its own.
    "Affine": case(
        Affine,
        wrong=WRONG.filter(lambda value: not callable(value)),
        log_scale=st.sampled_from([torch.tanh, TanhLogScale(), nn.Tanh(), None]),
    ),
    "MixtureLogistic": case(MixtureLogistic, components=COUNTS, iterations=st.integers(60, 100)),
    "RationalQuadratic": case(
        RationalQuadratic,
        bins=st.integers(2, 6),
        bound=st.floats(0.5, 10),
        min_width=st.floats(1e-4, 0.1),
        min_height=st.floats(1e-4, 0.1),
        min_slope=st.floats(1e-4, 0.5),
    ),
    "CircularSpline": case(CircularSpline, bins=st.integers(2, 6)),
}
SCALES = {
    "TanhLogScale": case(TanhLogScale, initial=SMALL),
    "SigmoidLogScale": case(SigmoidLogScale, floor=st.floats(0, 0.9)),
    "SoftClipLogScale": case(SoftClipLogScale, bound=st.floats(0.1, 10)),
}


@given(calls(TRANSFORMERS_CASES))
def test_transformers(call):
    transformer = made(call)
    if transformer is not None and getattr(transformer, "iterations", 100) >= 60:  # fewer end before the solution
        follows_the_laws(Elementwise((2,), transformer))


@given(calls(SCALES))
def test_scales(call):
    scale = made(call)
    if scale is not None:
        assert scale(torch.randn(5)).isfinite().all()
        follows_the_laws(Elementwise((2,), Affine(scale)))


MASK_FUNCTIONS = {
    function.__name__: case(function, ["event_shape"], event_shape=SHAPES, flip=FLAGS)
    for function in (checkerboard, channelwise, alternating)
}


@given(calls(MASK_FUNCTIONS))
def test_masks(call):
    mask = made(call)
    if mask is not None:
        assert mask.dtype == torch.bool
        assert mask.numel() == math.prod(np.atleast_1d(call[1]["event_shape"]))
        assert mask.any()
        assert not mask.all()


# ---------------------------------------------------------------------------------------------------------------------
# Networks and bases
# ---------------------------------------------------------------------------------------------------------------------

channels = {"in_channels": st.integers(0, 3), "out_channels": COUNTS}
NETWORKS = {
    "MLP": case(
        MLP,
        [*channels, "hidden"],
        **{
            **channels,
            "hidden": st.lists(COUNTS, max_size=2),
            "activation": st.sampled_from([nn.ReLU, nn.SiLU, nn.Tanh]),
        },
        **{"gain": SMALL, "skip": SMALL, **conditions},
    ),
    "ResNet": case(
        ResNet,
        [*channels, "hidden", "blocks"],
        **{
            **channels,
            "hidden": COUNTS,
            "blocks": st.integers(0, 1),
            "dropout": st.floats(0, 0.9),
            "level": st.integers(0, 1),
        },
        **{"mask": st.sampled_from([None, checkerboard((1, 4, 4)), checkerboard((2, 4, 4))]), **conditions},
    ),
    "ConvNet": case(ConvNet, [*channels, "hidden"], **{**channels, "hidden": COUNTS, **conditions}),
    "GatedAttention": case(
        GatedAttention,
        [*channels, "hidden", "blocks", "heads"],
        **{**channels, "hidden": st.sampled_from([2, 4]), "blocks": st.integers(0, 1), "heads": st.integers(1, 3)},
        dropout=st.floats(0, 0.9),
        size=st.just((4, 4)),
        weight_norm=FLAGS,
        **{"mask": st.sampled_from([None, checkerboard((1, 4, 4))]), **conditions},
    ),
    "GatedConvs": case(
        GatedConvs,
        ["in_channels"],
        in_channels=COUNTS,
        hidden=COUNTS,
        blocks=st.integers(0, 1),
        dropout=st.floats(0, 0.9),
    ),
    "AttentiveConvs": case(
        AttentiveConvs,
        ["in_channels", "size", "hidden", "blocks", "heads"],
        in_channels=COUNTS,
        size=st.just((4, 4)),
        hidden=st.sampled_from([2, 4]),
        blocks=st.integers(0, 1),
        heads=st.integers(1, 3),
        dropout=st.floats(0, 0.9),
    ),
}


@no_inputs
@given(calls(NETWORKS))
def test_networks(call):
    network = made(call)
    if network is None:
        return
    network.eval()
    size = () if isinstance(network, MLP) else (4, 4)
    x = torch.randn(2, call[1]["in_channels"], *size)
    shape = getattr(network, "context_shape", None)
    context = () if shape is None else (torch.randn(2, *shape),)
    out = outcome(lambda: network(x, *context), "context")
    if out is not None:
        assert out.shape == (2, getattr(network, "channels", call[1].get("out_channels")), *size)
        assert out.isfinite().all()


BASES = {
    "StandardNormal": case(StandardNormal, ["event_shape"], event_shape=st.one_of(VECTORS, SHAPES)),
    "StandardLogistic": case(StandardLogistic, ["event_shape"], event_shape=st.one_of(VECTORS, SHAPES)),
    "DiagonalNormal": case(DiagonalNormal, ["event_shape"], event_shape=st.one_of(VECTORS, SHAPES), **conditions),
    "StudentTBase": case(
        StudentTBase, ["event_shape"], event_shape=st.one_of(VECTORS, SHAPES), df=st.floats(0.6, 100), **conditions
    ),
    "MixtureBase": case(
        MixtureBase,
        ["event_shape", "components"],
        **{"event_shape": st.one_of(VECTORS, SHAPES), "components": COUNTS, **conditions},
    ),
}


@given(calls(BASES))
def test_bases(call):
    base = made(call)
    if base is not None:
        context = None if base.context_shape is None else torch.randn(3, *base.context_shape)
        distribution = base(context)
        z = distribution.sample((2,))
        batch = (2,) if context is None else (2, 3)
        assert z.shape == (*batch, *base.event_shape)
        assert distribution.log_prob(z).shape == batch
        torch.testing.assert_close(base.log_prob(z, context), distribution.log_prob(z))
