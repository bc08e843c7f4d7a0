"""What the properties have found, one case of each kind: every one raised another error, or returned a wrong result."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from strategies import flow_of
from torch import nn
from torch.distributions import ReshapeTransform

from pyro_realnvp import (
    MLP,
    ActNorm,
    Additive,
    Affine,
    AttentiveConvs,
    BatchNorm,
    Chain,
    ConvNet,
    Dequantized,
    DiagonalNormal,
    Elementwise,
    EmbedContext,
    FactorOut,
    FixedAffine,
    Flow,
    GatedAttention,
    GatedConvs,
    Halves,
    ImageFlow,
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
    StandardLogistic,
    StandardNormal,
    StudentTBase,
    TanhLogScale,
    bits_per_dim,
    channelwise,
    checkerboard,
    effective_sample_size,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    pareto_k,
    pareto_k_spread,
    pareto_smooth,
    realnvp_transforms,
    rebuild,
    recalibrate,
    recompute,
    synchronize,
)
from pyro_realnvp.testing import check_bijection

from zoo import convnet, mlp, resnet

HUGE = 10**30
IMAGE = (1, 4, 4)


def flow():
    return flow_of("realnvp", torch.float32)


def conditional(name="vector"):
    return flow_of(name, torch.float32)


REFUSED = {
    # types of arguments
    "a word as a size": (lambda: MLP(1, 2, hidden=("a",)), "hidden.*'a'"),
    "a number as a shape": (lambda: StandardNormal(-1.5), "StandardNormal.*-1.5"),
    "a number as the shape of a layer": (lambda: Scale(3), "event_shape.*3"),
    "no shape": (lambda: InvertibleConv1x1(None), "event_shape.*None"),
    "words as a shape": (lambda: glow_transforms({"a": 1}), "event_shape.*'a'"),
    "a builder asked for a fraction": (lambda: flowpp_transforms(1.5), "event_shape.*1.5"),
    "a number as a transformer": (lambda: Elementwise((2,), 0), "transformer.*0"),
    "a number as a network": (lambda: SplitCoupling((2,), 3, Affine()), "conditioner.*3"),
    "a number as a norm": (lambda: InvertibleConv1x1((1,), norm=2), "norm.*2"),
    "a number as a bijection": (lambda: FactorOut(0.5), "bijection.*0.5"),
    "a tuple as a bijection": (lambda: EmbedContext((), nn.Identity(), (2,)), "bijection"),
    "a number as the outer bijection": (lambda: Sandwich(2, Scale((2,))), "outer.*2"),
    "a tuple as a half": (lambda: Halves(Scale((1, 2, 2)), ()), "second"),
    "a number as a mask": (lambda: MaskedCoupling(-HUGE, mlp(2, 4), Affine()), "mask"),
    "a list as a flag": (lambda: channelwise((2, 1, 2), flip=[]), r"flip.*\[\]"),
    "a complex flag": (lambda: checkerboard((2, 1, 4), flip=torch.tensor(1j)), "flip"),
    "a tensor as a number": (lambda: SigmoidLogScale(torch.zeros(2)), "floor"),
    "a bound beyond which bins are coarse": (lambda: RationalQuadratic(bound=2**31), r"at most 1e\+06"),
    "a complex bound": (lambda: SoftClipLogScale(torch.tensor(1j)), "bound"),
    "a complex start": (lambda: TanhLogScale(torch.tensor(1j)), "initial"),
    "tensors as counts": (lambda: MixtureLogistic(torch.ones(2, 2)), "components"),
    "True as a size": (lambda: ConvNet(0, True, hidden=1), "out_channels.*True"),
    "a tensor as transforms": (lambda: Chain(torch.tensor(0.0)), "bijections.*Tensor"),
    "a list as log_scale": (lambda: Affine([]), "log_scale"),
    "None as transforms": (lambda: Chain(None), "bijections.*None"),
    # what is built by a function that was given
    "an activation that is none": (lambda: MLP(1, 2, activation=int), "activation.*0"),
    "a net that takes other arguments": (lambda: realnvp_transforms(2, net=len), "net"),
    "a net that builds none": (lambda: realnvp_transforms(2, net=lambda *_, **__: 3), "net.*3"),
    "a transformer that is none": (lambda: glow_transforms(2, transformer=nn.ReLU), "transformer.*ReLU"),
    "an embedding without channels": (lambda: flowpp_dequantizer(IMAGE, embedding=nn.Flatten), "embedding.*channels"),
    # values of arguments
    "a huge size": (lambda: ConvNet(1, 2, hidden=HUGE), "hidden"),
    "a shape of huge sizes": (lambda: StandardNormal((2**31, 2**31)), "event shape"),
    "a huge mixture": (lambda: MixtureBase(2, HUGE), "components"),
    "degrees of freedom beyond float32": (lambda: StudentTBase(2, df=1e300), r"df.*1e\+300"),
    "complex degrees of freedom": (lambda: StudentTBase(2, df=torch.tensor(1j)), "df"),
    "a huge context": (lambda: DiagonalNormal(2, context_dim=HUGE), "context_dim"),
    "a start beyond float32": (lambda: TanhLogScale(1e300), r"initial.*1e\+300"),
    "a variance beyond float32": (lambda: BatchNorm((2,), eps=1e300), r"eps.*1e\+300"),
    "a gain that is not finite": (lambda: MLP(1, 2, gain=math.nan), "gain.*nan"),
    "dropout of NaN": (lambda: GatedConvs(1, dropout=math.nan), "dropout.*nan"),
    "a fractional level": (lambda: ResNet(1, 2, hidden=4, level=-3), "level.*-3"),
    "a negative width": (lambda: MLP(1, 2, hidden=(-1,)), "hidden.*-1"),
    "no feature maps": (lambda: GatedAttention(1, 2, hidden=0, size=(4, 4)), "hidden.*0"),
    "a size of one number": (lambda: GatedAttention(1, 2, size=(4,)), r"size.*\(4,\)"),
    "heads that do not divide": (lambda: AttentiveConvs(3, size=(4, 4), hidden=4, heads=3), "heads.*3"),
    "no iterations": (lambda: MixtureLogistic(2, iterations=0), "iterations.*0"),
    "an event without coordinates": (lambda: SplitCoupling((), mlp(1, 2), Affine()), r"\(\)"),
    "a permutation of numbers": (lambda: Permute((), []), r"\(\)"),
    "constants of integers": (lambda: FixedAffine(torch.zeros(2).long(), torch.ones(2)), "loc.*int64"),
    "constants of two dtypes": (lambda: FixedAffine(torch.zeros(2), torch.ones(2).double()), "float64"),
    "a mask of numbers": (lambda: BatchNorm((2,), torch.ones(2)), "mask.*float32"),
    "a context that images do not take": (lambda: ConvNet(1, 2, context_shape=(2, 2)), r"context_shape \(2, 2\)"),
    # networks that do not fit
    "an image network for vectors": (lambda: flow_with(nice_transforms(2, net=convnet))(torch.zeros(3, 2)), "ConvNet"),
    "ResNet for vectors": (lambda: flow_with(realnvp_transforms(4, net=resnet))(torch.zeros(3, 4)), "ResNet"),
    "a map of another size": (
        lambda: ConvNet(1, 2, hidden=2, context_shape=(1, 2, 2))(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)),
        r"\(1, 2, 2\)",
    ),
    "a mask of another size": (
        lambda: ResNet(1, 2, hidden=2, blocks=0, mask=checkerboard((1, 2, 2))).eval()(torch.zeros(2, 1, 4, 4)),
        r"\(1, 4, 4\)",
    ),
    # values and contexts
    "float64 for constants of float32": (
        lambda: FixedAffine(torch.zeros(2), torch.eye(2))(torch.zeros(2).double()),
        "float64",
    ),
    "a sparse tensor": (lambda: flow()(torch.zeros(2, 3).to_sparse()), "dense.*sparse"),
    "a context of float64": (lambda: conditional()(torch.zeros(3), torch.zeros(2).double()), "context.*float64"),
    "a context of float16": (lambda: conditional("image").sample((), torch.zeros(2).half()), "context.*float16"),
    "a base's context of float16": (lambda: conditional("base")(torch.zeros(3), torch.zeros(2).half()), "float16"),
    "a base's context of another length": (lambda: conditional("base").sample((), torch.zeros(0, 3)), r"\(0, 3\)"),
    "batches of a base that do not fit": (lambda: conditional("base")(torch.zeros(2, 3), torch.zeros(3, 2)), "broadc"),
    # samples and images
    "a map of another width": (
        lambda: MaskedCoupling(checkerboard((1, 1, 2)), mlp(2, 4), Additive())(torch.zeros(1, 1, 2)),
        r"\(1, 1, 2\) for an event.*MLP.*\(1, 1, 4\)",
    ),
    "parameters for one pixel": (
        lambda: SplitCoupling((2, 2, 2), OfOnePixel(), Affine())(torch.zeros(3, 2, 2, 2)),
        r"\(2, 2, 2\) for an event.*OfOnePixel.*\(3, 2, 1, 1\)",
    ),
    "a reshape of other events": (lambda: Lift(ReshapeTransform((4,), (2, 2)), (1,)), r"ReshapeTransform.*\(1,\)"),
    "a negative number of samples": (lambda: flow().sample(-1), "sample_shape.*-1"),
    "a word as a temperature": (lambda: flow().sample(temperature="a"), "temperature.*'a'"),
    "a complex truncation": (lambda: flow().sample(truncation=torch.tensor(1j)), "truncation"),
    "a truncation of heavy tails": (lambda: flow_of("student", torch.float32).sample(truncation=2.0), "truncation=2.0"),
    "tensors as a temperature": (lambda: flow().sample(temperature=torch.zeros(2)), "temperature"),
    "a function as a number": (lambda: Dequantized(pixels().distribution(), num_samples=len), "num_samples"),
    "tensors as levels": (lambda: Dequantized(pixels().distribution(), torch.ones(2)), "levels"),
    "no density": (lambda: Dequantized(3), "density.*3"),
    "no conditional noise": (lambda: Dequantized(pixels().distribution(), dequantizer=nn.ReLU()), "dequantizer"),
    "no images": (lambda: Dequantized(pixels().distribution()).log_prob(None), "images.*None"),
    "complex images": (lambda: Dequantized(pixels().distribution()).log_prob(torch.zeros(1, 1, 4, 4) + 0j), "complex"),
    "no events": (lambda: bits_per_dim(flow(), None), "x.*None"),
    "one event": (lambda: bits_per_dim(flow(), torch.zeros(3)), r"\(3,\)"),
    "no batch": (lambda: bits_per_dim(flow(), torch.zeros(2, 3), batch_size=0), "batch_size.*0"),
    # methods, switches and weights
    "a number as a shape of values": (lambda: Scale((2,)).forward_shape(1.5), "shape.*1.5"),
    "tensors as a shape of values": (lambda: Scale((2,)).inverse_shape(torch.ones(2, 2)), "Scale.*shape"),
    "tensors as a size of a cache": (lambda: Scale((2,)).with_cache(torch.ones(2)), "cache_size"),
    "None to recompute": (lambda: recompute(None), "recompute.*None"),
    "None to rebuild": (lambda: rebuild(None), "rebuild.*None"),
    "None to synchronize": (lambda: synchronize(None), "synchronize.*None"),
    "None to recalibrate": (lambda: recalibrate(None, []), "recalibrate.*None"),
    "None to recalibrate with": (lambda: recalibrate(flow(), None), "recalibrate.*None"),
    "words to recalibrate with": (lambda: recalibrate(flow(), "a"), "recalibrate.*'a'"),
    "numbers to recalibrate with": (lambda: recalibrate(flow(), torch.zeros(2)), "recalibrate.*"),
    "no weights": (lambda: effective_sample_size(None), "log_weights.*None"),
    "complex weights": (lambda: pareto_k(torch.zeros(30) + 0j), "log_weights.*complex"),
    "weights of numpy": (lambda: pareto_smooth(np.zeros(30)), "log_weights.*ndarray"),
    "integers, which cannot be smoothed": (lambda: pareto_smooth(torch.arange(100)), "log_weights.*int64"),
    "too few weights": (lambda: pareto_k_spread(torch.zeros(9)), "batch.*at least 25.*0"),
    "a huge batch": (lambda: bits_per_dim(flow(), torch.zeros(2, 3), batch_size=HUGE), "batch_size"),
}


class OfOnePixel(nn.Module):
    """A network whose parameters would broadcast over the image, and make a log-determinant of one pixel."""

    def forward(self, x):
        return torch.ones(*x.shape[:-3], 2, 1, 1)


def flow_with(transforms):
    return Flow(StandardNormal(transforms[0].event_shape), transforms)


def pixels():
    return flow_with([*realnvp_transforms(IMAGE, scales=1, net=resnet), Logit(0.05).inv]).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    call, pattern = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=pattern) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.endswith("."), message


def test_numbers_of_numpy_are_numbers():
    three = np.int64(3)
    assert StandardNormal(three).event_shape == (3,)
    assert realnvp_transforms(three, couplings=three, net=mlp, context_dim=np.int64(2))[0].event_shape == (3,)
    assert len(flowpp_transforms(three, couplings=three, components=2, net=mlp)) == 3
    assert SoftClipLogScale(10**30)(torch.ones(2)).tolist() == [1, 1]
    assert flow().sample(three).shape == (3, 3)
    assert flow().sample(2, temperature=10**30, truncation=10**30).shape == (2, 3)


def test_a_scale_of_numbers():
    check_bijection(Scale(()), laws=["round_trip", "jacobian", "batch_shapes"])


@pytest.mark.parametrize(
    "base", [StandardNormal, StandardLogistic, DiagonalNormal, StudentTBase, partial(MixtureBase, components=2)]
)
@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 0)])
def test_empty_batches_have_the_density_of_none(base, batch):
    for shape in ((3,), (1, 2, 3)):
        x = torch.zeros(*batch, *shape)
        made = base(shape)
        assert made.log_prob(x).shape == batch
        assert made(None).log_prob(x).shape == batch
        assert made(None).expand((1,)).log_prob(x).shape == torch.broadcast_shapes(batch, (1,))
        transforms = nice_transforms(shape, couplings=1, net=mlp)
        assert Flow(made, transforms)(x).shape == batch
        assert Flow(made, transforms).distribution().log_prob(x).shape == batch


def test_no_images_have_the_density_of_none():
    model = ImageFlow(pixels(), 256, None)
    for num_samples in (1, 3):
        images = torch.zeros(0, 2, *IMAGE)
        assert model.distribution(num_samples=num_samples).log_prob(images).shape == (0, 2)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Squeeze((1, 2, 2)), Logit(0.0)],
        lambda: [Permute((4,), [3, 1, 0, 2]), Logit(0.05), Scale((4,))],
        lambda: [Sandwich(Squeeze((1, 2, 2)), Chain([Logit(0.05), ActNorm((4, 1, 1))]))],
    ],
)
def test_layers_that_rearrange_keep_the_bounds(layers):
    chain = Chain(layers())
    check_bijection(chain, laws=["round_trip", "jacobian", "batch_shapes"])
    inside, outside = torch.full(chain.event_shape, 0.5), torch.full(chain.event_shape, 2.0)
    assert chain.domain.check(inside)
    assert not chain.domain.check(outside)
    flow = Flow(StandardNormal(chain.output_shape), [chain.inv]).eval()
    assert flow(inside).isfinite()
    with pytest.raises(ValueError, match="support"):
        flow(outside)


def test_bits_of_several_batch_dimensions():
    x = torch.randn(5, 4, 3)
    several, flat = bits_per_dim(flow(), x), bits_per_dim(flow(), x.flatten(0, 1))
    assert several == pytest.approx(flat)
