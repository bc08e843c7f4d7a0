"""A setting or a context that makes no sense is named, with its value, in one sentence."""

import math
import re

import pytest
import torch

from pyro_realnvp import (
    BatchNorm,
    DiagonalNormal,
    FixedAffine,
    FixedLowRank,
    Flow,
    MixtureBase,
    Permute,
    Scale,
    SigmoidLogScale,
    SoftClipLogScale,
    Squeeze,
    SqueezeCheckerboard,
    SqueezeColumns,
    StandardNormal,
    StudentTBase,
    TanhLogScale,
    alternating,
    channelwise,
    checkerboard,
    pareto_k_threshold,
    realnvp_transforms,
)

from zoo import mlp, resnet

NAN, INF = math.nan, math.inf


def raises_one_sentence(call, *patterns):
    """Asserts that a call raises a ValueError in one sentence that has all patterns."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the patterns follow
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.endswith("."), message
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in {message!r}"


def vector(**kwargs):
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp, **kwargs))


@pytest.mark.parametrize("value", [NAN, INF, -1.0, -INF])
@pytest.mark.parametrize("argument", ["temperature", "truncation"])
def test_temperature_and_truncation(argument, value):
    raises_one_sentence(lambda: vector().sample((2,), **{argument: value}), argument, str(value))


def test_temperatures_that_make_sense():
    assert torch.equal(vector().sample((2,), temperature=0.0), torch.zeros(2, 2))
    assert vector().sample((2,), temperature=0.5, truncation=2.0).shape == (2, 2)


@pytest.mark.parametrize(
    ("make", "culprit", "value"),
    [
        *[(lambda v=v: BatchNorm((2,), eps=v), "eps", v) for v in (NAN, 0, -1)],
        (lambda: BatchNorm((2,), momentum=NAN), "momentum", NAN),
        (lambda: BatchNorm((2,), momentum=-0.5), "momentum", -0.5),
        *[(lambda v=v: SoftClipLogScale(v), "SoftClipLogScale|bound", v) for v in (0, NAN, -1)],
        *[(lambda v=v: SigmoidLogScale(floor=v), "SigmoidLogScale|floor", v) for v in (NAN, 1, -1)],
        (lambda: TanhLogScale(NAN), "TanhLogScale|initial", NAN),
        (lambda: TanhLogScale(INF), "TanhLogScale|initial", INF),
        *[(lambda v=v: StudentTBase(2, df=v), "df of StudentTBase", v) for v in (NAN, INF, 0.5, -1.0)],
        *[(lambda v=v: MixtureBase(2, v), "components of MixtureBase", v) for v in (0, -1)],
        (lambda: pareto_k_threshold(NAN), "num_samples", NAN),
    ],
)
def test_numbers(make, culprit, value):
    raises_one_sentence(make, culprit, re.escape(str(value)))


def test_numbers_that_make_sense():
    BatchNorm((2,), momentum=1.0, eps=1e-8)
    SoftClipLogScale(1)
    SigmoidLogScale(0.0)
    TanhLogScale(0)
    assert pareto_k_threshold(1000) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("loc", "scale", "culprit", "value"),
    [
        ([0.0, NAN], [1.0, 1.0], "loc", "nan"),
        ([0.0, INF], [1.0, 1.0], "loc", "inf"),
        ([0.0, 0.0], [1.0, NAN], "scale|diagonal", "nan"),
        ([0.0, 0.0], [1.0, INF], "scale|diagonal", "inf"),
        ([0.0, 0.0], [[1.0, 0.0], [NAN, 1.0]], "scale", "nan"),
        ([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], "loc", r"\(2, 2\)"),
    ],
)
def test_constants_of_an_affine_map(loc, scale, culprit, value):
    raises_one_sentence(lambda: FixedAffine(torch.tensor(loc), torch.tensor(scale)), "FixedAffine", culprit, value)


@pytest.mark.parametrize(
    ("changed", "culprit", "value"),
    [
        ({"loc": [0.0, NAN]}, "loc", "nan"),
        ({"loc": [0.0]}, "loc and scale", r"\(1,\)"),
        ({"scale": [1.0, 0.0]}, "positive scale", r"0\.0"),
        ({"scale": [1.0, INF]}, "scale", "inf"),
        ({"directions": [[1.0], [1.0]]}, "orthonormal", "1"),
        ({"directions": [1.0, 0.0]}, "directions", r"\(2,\)"),
        ({"directions": [[1.0], [NAN]]}, "directions", "nan"),
        ({"stretch": [-1.0]}, "stretch", r"-1\.0"),
        ({"stretch": [1.0, 1.0]}, "stretch", r"\(2,\)"),
        ({"directions": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "stretch": [1.0, 1.0, 1.0]}, "k <= D", r"\(2, 3\)"),
    ],
)
def test_constants_of_a_low_rank_map(changed, culprit, value):
    constants = {"loc": [0.0, 0.0], "scale": [1.0, 1.0], "directions": [[1.0], [0.0]], "stretch": [1.0]}
    tensors = {name: torch.tensor(values) for name, values in (constants | changed).items()}
    raises_one_sentence(lambda: FixedLowRank(**tensors), "FixedLowRank", culprit, value)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (StandardNormal, (-1,)),
        (StandardNormal, (0,)),
        (StandardNormal, (1, -2, 2)),
        (DiagonalNormal, (-1,)),
        (StudentTBase, (2, 0)),
        (lambda shape: MixtureBase(shape, 2), (-3,)),
        (Squeeze, (1, -2, -2)),
        (Squeeze, (0, 2, 2)),
        (SqueezeColumns, (1, 2, -2)),
        (SqueezeCheckerboard, (-1, 2, 2)),
        (channelwise, (4, 0, -1)),
        (channelwise, (0, 2, 2)),
        (checkerboard, (1, -2, 2)),
        (checkerboard, (1, -2, -2)),
        (alternating, (-2,)),
        (lambda shape: Permute(shape, []), (0,)),
        (Scale, (0,)),
        (Scale, (2, -1)),
        (BatchNorm, (0,)),
    ],
)
def test_sizes_that_are_zero_or_negative(make, shape):
    raises_one_sentence(lambda: make(shape), re.escape(str(shape)))


def test_a_length_that_is_negative():
    raises_one_sentence(lambda: StandardNormal(-1), r"StandardNormal", "-1")
    raises_one_sentence(lambda: realnvp_transforms(-1), r"realnvp_transforms", "-1")


def conditional_image():
    return Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), scales=1, net=resnet, context_dim=3)).eval()


def conditional_base():
    return Flow(DiagonalNormal(2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp))


def conditional_student():
    return Flow(StudentTBase(2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp))


def conditional_mixture():
    return Flow(MixtureBase(2, 2, context_dim=3), realnvp_transforms(2, couplings=2, net=mlp))


CONDITIONAL_BASES = [conditional_base, conditional_student, conditional_mixture]


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("make", [lambda: vector(context_dim=3), conditional_image, *CONDITIONAL_BASES])
def test_a_context_that_is_not_finite(make, bad):
    flow = make()
    x, context = torch.randn(4, *flow.event_shape), torch.randn(4, 3)
    context[2, 1] = bad
    raises_one_sentence(lambda: flow(x, context), "context", f"(?i){bad}")
    raises_one_sentence(lambda: flow.condition(context), "context", f"(?i){bad}")
    raises_one_sentence(lambda: flow.sample((), context), "context", f"(?i){bad}")


def test_a_context_that_is_not_finite_fixed_in_a_bijection():
    flow = vector(context_dim=3)
    raises_one_sentence(lambda: flow.transforms.condition(torch.full((3,), NAN)), "context", "(?i)nan")
