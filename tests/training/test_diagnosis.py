"""diagnose() on flows that were broken on purpose: it names the layer, the row and the cause, and changes nothing."""

import dataclasses
import json
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, ExpTransform

from pyro_realnvp import (
    ActNorm,
    Additive,
    Affine,
    BatchNorm,
    Bijection,
    ConvNet,
    DiagonalNormal,
    Elementwise,
    FixedAffine,
    Flow,
    ImageFlow,
    InvertibleConv1x1,
    Lift,
    Logit,
    MixtureBase,
    MixtureLogistic,
    Scale,
    SigmoidLogScale,
    StandardNormal,
    StudentTBase,
    TanhLogScale,
    diagnose,
    fit,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    rebuild,
    spline_transforms,
)
from pyro_realnvp.networks.channel_norm import ChannelNorm
from pyro_realnvp.training.diagnosis import WIDTH
from pyro_realnvp.training.divergence import DivergedError

from zoo import Sinh, alone, component, features, mlp, resnet, small_flowpp, small_glow, split

NAN, INF = float("nan"), float("inf")
HEAD = ["layer", "kind", "shape", "parameters", "values", "log-dets", "inverse", "bound", "gradient"]
IMAGE = (1, 4, 4)


def vector(dim=3, couplings=4, **kwargs):
    return Flow(StandardNormal(dim), realnvp_transforms(dim, couplings=couplings, net=mlp, **kwargs))


def image(**kwargs):
    return Flow(StandardNormal(IMAGE), realnvp_transforms(IMAGE, net=resnet, **kwargs)).eval()


def glow(**kwargs):
    flow = Flow(StandardNormal(IMAGE), small_glow(IMAGE, **kwargs)).eval()
    flow.initialize(torch.randn(16, *IMAGE))
    return flow


def glow_vector():
    flow = Flow(StandardNormal(4), glow_transforms(4, steps=3, net=mlp)).eval()
    flow.initialize(torch.randn(16, 4))
    return flow


def pixels(levels=8, dequantizer=None):
    density = Flow(StandardNormal(IMAGE), [*realnvp_transforms(IMAGE, scales=1, net=resnet), Logit(0.05).inv])
    return ImageFlow(density, levels=levels, dequantizer=dequantizer).eval()


def learned_pixels():
    net = partial(component("attention").conditioner.__class__, hidden=4, blocks=1, heads=2, dropout=0.0)
    layers = flowpp_dequantizer(IMAGE, couplings=2, components=2, net=net, embedding=features)
    flow = pixels(dequantizer=Flow(StandardNormal(IMAGE), layers))
    flow.initialize(torch.randint(8, (16, *IMAGE)))
    return flow


def fill(flow, key, value):
    with torch.no_grad():
        flow.get_parameter(key).fill_(value)


def only(findings, *words):
    """The one finding with all these words."""
    found = [sentence for sentence in findings if all(word in sentence for word in words)]
    assert len(found) == 1, (words, findings)
    return found[0]


# NaN weights, in any layer


COUPLINGS = {
    "vector": (vector, [f"transforms.{i}.bijection" for i in range(4)]),
    "image": (
        image,
        [
            "transforms.7.bijection",
            "transforms.3.bijection",
            "transforms.1.bijection.bijection.0",
            "transforms.1.bijection.bijection.4",
            "transforms.0.bijection.bijection.bijection.0",
            "transforms.0.bijection.bijection.bijection.6",
        ],
    ),
    "glow": (
        glow,
        [
            "transforms.0.bijection.bijection.1",
            "transforms.0.bijection.bijection.3.bijection.bijection.1",
            "transforms.0.bijection.bijection.3.bijection.bijection.2",
        ],
    ),
    "glow-vector": (glow_vector, ["transforms.0.bijection", "transforms.5.bijection", "transforms.4.bijection"]),
    "flowpp": (
        lambda: Flow(StandardNormal(IMAGE), small_flowpp(IMAGE)).eval(),
        ["transforms.2.bijection.bijection.1.second", "transforms.1.bijection.bijection.2"],
    ),
}
PLACES = [(name, layer) for name, (_, layers) in COUPLINGS.items() for layer in layers]


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_a_nan_weight_names_layer_row_and_key(name, layer):
    flow = COUPLINGS[name][0]()
    key = next(key for key, _ in flow.named_parameters() if key.startswith(f"{layer}."))
    with torch.no_grad():
        flow.get_parameter(key).view(-1)[0] = NAN
    found = diagnose(flow, torch.randn(5, *flow.event_shape))
    assert found.first_layer == layer
    assert found.first_row == 0
    assert layer in dict(flow.named_modules())
    assert layer in only(found.findings, "first layer with something not finite", "row 0")
    only(found.findings, f"parameter {key} is not finite", "nan")


@pytest.mark.parametrize("training", [True, False])
def test_a_nan_goes_on_through_batch_normalization(training):
    flow = image().train(training)
    layer = "transforms.9.bijection" if len(flow.transforms) > 9 else "transforms.7.bijection"
    fill(flow, f"{layer}.transformer.scale.alpha", NAN)
    found = diagnose(flow, torch.randn(5, *IMAGE))
    assert found.first_layer == layer
    assert len(found.layers) == len(diagnose(image(), torch.randn(5, *IMAGE)).layers)


def test_a_nan_buffer():
    flow = Flow(StandardNormal(2), [FixedAffine(torch.zeros(2), torch.ones(2)), *vector(2, 1).transforms])
    flow.transforms[0].loc[1] = INF
    only(diagnose(flow, torch.randn(4, 2)).findings, "buffer transforms.0.loc", "inf")


def test_many_nan_parameters_are_counted():
    flow = vector()
    for key, _ in flow.named_parameters():
        fill(flow, key, NAN)
    found = diagnose(flow, torch.randn(4, 3)).findings
    only(found, f"In all, {len(list(flow.parameters()))} parameters and buffers", "an earlier state")
    assert len(found) < 10


# one row


class Spiky(Bijection):
    """The identity, but for one value of the first coordinate, where it is not finite."""

    def __init__(self, at, made, what="value"):
        super().__init__((3,))
        self.at, self.made, self.what = at, made, what

    def forward_and_log_det(self, x, context=None):
        hit = x[..., 0] > self.at
        made = torch.where(hit, self.made, 0.0)
        return (x + made[..., None], x.new_zeros(hit.shape)) if self.what == "value" else (x * 1, made)

    def inverse_and_log_det(self, y, context=None):
        return y * 1, y.new_zeros(y.shape[:-1])


@pytest.mark.parametrize("what", ["value", "log-determinant"])
@pytest.mark.parametrize("made", [NAN, INF])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_row_and_whether_it_is_the_value(what, made, place):
    layers = [*vector(couplings=2).transforms]
    layers.insert(place, Spiky(50.0, made, what).inv)
    x = torch.randn(8, 3)
    x[5, 0] = x[6, 0] = 60.0
    flow = Flow(StandardNormal(3), layers)
    found = diagnose(flow, x)
    assert (found.first_layer, found.first_row) == (f"transforms.{place}.bijection", 5)
    only(found.findings, "Spiky", "row 5", f"its {what}", "2 of 8 rows")


def test_rows_count_over_all_batch_dimensions():
    flow = Flow(StandardNormal(3), [Spiky(50.0, NAN).inv])
    x = torch.randn(2, 4, 3)
    x[1, 2, 0] = 60.0
    assert diagnose(flow, x).first_row == 6
    assert diagnose(flow, torch.tensor([60.0, 0, 0])).first_row == 0


# overflow


@pytest.mark.parametrize("index", range(4))
def test_an_overflow_in_the_middle(index):
    flow = vector()
    key = next(key for key, _ in reversed(list(flow.named_parameters())) if key.startswith(f"transforms.{index}."))
    fill(flow, key, 3e38)
    fill(flow, key.replace("bias", "weight"), 3e38)
    found = diagnose(flow, torch.randn(12, 3))
    assert found.first_layer == f"transforms.{index}.bijection"
    assert not any("parameter" in sentence for sentence in found.findings)


def test_an_overflow_in_the_base():
    found = diagnose(Flow(StandardNormal(2), [Scale((2,))]), torch.tensor([[0.0, 1.0], [1e30, 0.0]]))
    assert (found.first_layer, found.first_row) == ("base", 1)


@pytest.mark.parametrize(
    ("base", "parameter"),
    [(DiagonalNormal(2), "loc"), (StudentTBase(2), "raw_df"), (MixtureBase(2, 2), "log_scale")],
)
def test_a_base_that_is_not_finite(base, parameter):
    flow = Flow(base, realnvp_transforms(2, couplings=1, net=mlp))
    fill(flow, f"base.{parameter}", NAN)
    assert diagnose(flow, torch.randn(4, 2)).first_layer == "base"


# data


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        (0, lambda c: 1e4 * c, ["standard deviation"]),
        (1, lambda c: c + 5000, ["around the mean 5e+03"]),
        (2, lambda c: 1e-4 * c, ["standard deviation"]),
        (2, lambda c: 0 * c + 7, ["is constant", "mean 7"]),
    ],
)
def test_an_unstandardised_column_is_named(column, change, words):
    x = torch.randn(64, 3)
    x[:, column] = change(x[:, column])
    sentence = only(diagnose(vector(), x).findings, f"Column {column} of x", *words)
    low, high = x[:, column].aminmax()
    assert f"from {float(low):.4g} to {float(high):.4g}" in sentence


def test_columns_that_the_flow_standardises_itself():
    x = 5000 + 200 * torch.randn(64, 3)
    layers = [*vector().transforms, FixedAffine(x.mean(0), x.std(0))]
    assert diagnose(Flow(StandardNormal(3), layers), x).findings == []
    flow = Flow(StandardNormal(3), glow_transforms(3, steps=2, net=mlp))
    flow.initialize(x)
    assert diagnose(flow, x).findings == []
    x[:, 1] *= 100
    only(diagnose(Flow(StandardNormal(3), layers), x).findings, "Column 1 of what reaches transforms.3.bijection")


def test_a_column_that_splines_would_leave_as_it_is():
    flow = Flow(StandardNormal(2), spline_transforms(2, bound=3.0))
    x = torch.randn(200, 2).clamp(-2, 2)
    assert not [each for each in diagnose(flow, x).findings if "spline" in each]
    x[:50, 0] = 4.0
    (found,) = diagnose(flow, x).findings
    assert found.startswith("25 % of column 0 reach transforms")
    assert "outside of [-3, 3]" in found
    x[:20, 0] = 0.0
    assert not diagnose(flow, x).findings  # 15 % may be tails


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_row_of_x_that_is_not_finite_is_named_and_left_out(bad):
    x = torch.randn(8, 3)
    x[3, 2] = bad
    found = diagnose(vector(), x)
    assert (found.first_layer, found.first_row) == (None, 3)
    assert found.findings == [
        f"x is not finite in 1 of 8 rows, first in row 3, column 2: {bad}. These rows are left out of the table."
    ]
    assert all(abs(limit) < INF for layer in found.layers for limit in layer.values)


def test_the_rows_that_are_left_are_counted_in_x():
    x = torch.randn(8, 3)
    x[0] = NAN
    x[5, 0] = 60.0
    found = diagnose(Flow(StandardNormal(3), [Spiky(50.0, NAN).inv]), x)
    assert (found.first_layer, found.first_row) == ("transforms.0.bijection", 5)


def test_x_without_a_good_row():
    found = diagnose(vector(), torch.full((4, 3), NAN))
    assert (found.first_layer, found.first_row) == (None, 0)
    only(found.findings, "x is not finite in 4 of 4 rows", "No row is left")
    assert len(found.layers) == 5


def test_outside_of_the_support():
    flow = Flow(StandardNormal(2), [*vector(2).transforms, ExpTransform()])
    x = torch.rand(6, 2) + 0.1
    x[4, 1] = -2.0
    found = diagnose(flow, x)
    assert (found.first_layer, found.first_row) == (None, 4)
    only(found.findings, "outside of the support", "row 4, column 1: -2")


def test_images_of_wrong_integers():
    images = torch.randint(8, (6, *IMAGE))
    images[2, 0, 1, 3] = 8
    found = diagnose(pixels(), images)
    assert (found.first_layer, found.first_row) == (None, 2)
    only(found.findings, "integers from 0 to 7", "row 2, element (0, 1, 3): 8")


def test_a_context_that_is_not_finite():
    context = torch.randn(6, 2)
    context[1, 1] = NAN
    found = diagnose(vector(context_dim=2), torch.randn(6, 3), context)
    assert (found.first_layer, found.first_row) == (None, 1)
    only(found.findings, "The context is not finite in 1 of 6 rows", "row 1, column 1")
    found = diagnose(vector(context_dim=2), torch.randn(6, 3), context[1])
    only(found.findings, "The context is not finite in 6 of 6 rows")


# layers


def test_an_actnorm_that_was_never_initialised():
    flow = Flow(StandardNormal(3), [ActNorm((3,)).inv])
    only(diagnose(flow, torch.randn(8, 3)).findings, "transforms.0.bijection (ActNorm)", "never initialised")
    flow = Flow(StandardNormal(IMAGE), small_glow(IMAGE, net=partial(ConvNet, hidden=4)))
    count = sum(isinstance(module, ChannelNorm) for module in flow.modules())
    only(diagnose(flow, torch.randn(8, *IMAGE)).findings, f"In all, {count} ActNorms")
    assert not any(module.initialized for module in flow.modules() if isinstance(module, ChannelNorm))


@pytest.mark.parametrize(("log_scale", "said"), [(14.0, "1.2e+06"), (-20.0, "2.1e-09"), (2000.0, "exp(2e+03)")])
def test_an_actnorm_with_an_extreme_scale(log_scale, said):
    flow = glow()
    norm = flow.get_submodule("transforms.0.bijection.bijection.0.norm")
    with torch.no_grad():
        norm.log_scale[2] = log_scale
    only(
        diagnose(flow, torch.randn(8, *IMAGE)).findings,
        "transforms.0.bijection.bijection.0.norm (ActNorm)",
        said,
        "channel 2",
    )


def test_an_actnorm_of_a_constant_channel():
    x = torch.randn(16, 3)
    x[:, 1] = 4.0
    flow = Flow(StandardNormal(3), glow_transforms(3, steps=1, net=mlp))
    flow.initialize(x)
    only(diagnose(flow, x).findings, "transforms.1.bijection.norm (ActNorm)", "channel 1", "constant")


@pytest.mark.parametrize("plu", [False, True])
@pytest.mark.parametrize("small", [1e-5, 0.0])
def test_a_singular_convolution(plu, small):
    layer = InvertibleConv1x1((3,), plu=plu)
    with torch.no_grad():
        if plu:
            layer.matrix.log_s[1] = torch.tensor(small).log()
        else:
            layer.matrix.weight.copy_(torch.tensor([[1.0, 1, 0], [1, 1 + small, 0], [0, 0, 1]]))
    flow = Flow(StandardNormal(3), [*vector(couplings=1).transforms, layer.inv])
    found = diagnose(flow, torch.randn(8, 3))
    if plu and small == 0:
        only(found.findings, "parameter transforms.1.bijection.matrix.log_s")
    else:
        only(found.findings, "transforms.1.bijection (InvertibleConv1x1)", "nearly singular", "condition number")
    if small == 0:
        assert found.first_layer == "transforms.1.bijection"


def test_a_layer_that_raises_ends_the_walk():
    layer = InvertibleConv1x1((3,))
    fill(layer, "matrix.weight", 1.0)
    flow = Flow(StandardNormal(3), [*vector(couplings=2).transforms, layer, *vector(couplings=1).transforms])
    found = diagnose(flow, torch.randn(8, 3))
    assert found.first_layer == "transforms.2"
    assert found.first_row is None
    only(found.findings, "transforms.2 (InvertibleConv1x1.inv) raised ValueError", "not computed")
    assert [layer.name for layer in found.layers] == ["transforms.3.bijection", "transforms.2"]


@pytest.mark.parametrize(
    ("transformer", "value"),
    [
        (Affine, 1e4),
        (Affine, 1e30),
        (lambda: Affine(TanhLogScale()), -6.0),
        (lambda: Affine(SigmoidLogScale()), 12.0),
        (lambda: Affine(torch.tanh), 8.0),
        (lambda: MixtureLogistic(2), 9.0),
    ],
)
def test_a_scale_at_its_bound(transformer, value):
    layers = [split((4,), transformer=transformer(), swap=index % 2 == 1).inv for index in range(3)]
    flow = Flow(StandardNormal(4), layers)
    bias = [p for key, p in flow.named_parameters() if key.startswith("transforms.1.") and key.endswith("bias")][-1]
    first_scale = 2 if isinstance(layers[0].bijection.transformer, Affine) else 0
    with torch.no_grad():
        bias[first_scale] = value
    found = diagnose(flow, 0.1 * torch.randn(16, 4))
    only(found.findings, "transforms.1.bijection (SplitCoupling)", "50 % of its scales at a bound", "element 0")
    assert [layer.at_bound for layer in found.layers] == [0.0, 0.5, 0.0, None]


def test_clamped_components_of_a_mixture():
    layer = Elementwise((2,), MixtureLogistic(2))
    with torch.no_grad():
        layer.theta[-2] = -9.0  # of column 0, the second component
        layer.theta[5] = 0.0
        layer.theta.view(8, 2)[3, 0] = 5.0  # which has most of the weight
        layer.theta.view(8, 2)[7, 0] = -9.0
    (row, _) = diagnose(Flow(StandardNormal(2), [layer.inv]), torch.randn(16, 2)).layers
    assert row.at_bound == 0.5


def test_additive_couplings_have_no_bound():
    flow = Flow(StandardNormal(4), [split((4,), transformer=Additive()).inv])
    assert diagnose(flow, torch.randn(4, 4)).layers[0].at_bound is None


def test_only_changed_elements_of_a_mask_count():
    flow = image()
    fill(flow, "transforms.7.bijection.transformer.scale.alpha", 1.0)
    for key, parameter in flow.named_parameters():
        if key.startswith("transforms.7.") and key.endswith("conv_out.bias"):
            with torch.no_grad():
                parameter.fill_(50.0)
    found = diagnose(flow, torch.randn(4, *IMAGE))
    only(found.findings, "transforms.7.bijection", "100 % of its scales")
    assert next(row for row in found.layers if row.name == "transforms.7.bijection").at_bound == 1.0


class OneWay(Bijection):
    """Has an inverse that is none."""

    def forward_and_log_det(self, x, context=None):
        return x + 1, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y * 1, y.new_zeros(y.shape[:-1])


class NoWayBack(OneWay):
    def inverse_and_log_det(self, y, context=None):
        raise NotImplementedError("This has no inverse.")


def test_layers_that_are_not_inverted():
    found = diagnose(Flow(StandardNormal(2), [OneWay((2,)).inv, NoWayBack((2,)).inv]), torch.randn(4, 2))
    only(found.findings, "transforms.0.bijection (OneWay) is not inverted")
    only(found.findings, "transforms.1.bijection (NoWayBack) cannot be inverted", "This has no inverse.")
    assert found.layers[1].inverse_error == pytest.approx(1, abs=1e-5)


class Kink(Bijection):
    """The identity, with a gradient that is NaN at any point."""

    def __init__(self, size):
        super().__init__((size,))
        self.shift = nn.Parameter(torch.zeros(size))

    def forward_and_log_det(self, x, context=None):
        return x + (self.shift - self.shift.detach()).abs().sqrt(), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y * 1, y.new_zeros(y.shape[:-1])


def test_a_gradient_that_is_not_finite():
    flow = Flow(StandardNormal(2), [*vector(2, 2).transforms, Kink(2).inv])
    found = diagnose(flow, torch.randn(4, 2))
    assert found.first_layer is None
    only(found.findings, "gradient is not", "transforms.2.bijection (Kink)", "transforms.2.bijection.shift")


# numbers of the table


def test_the_numbers_are_those_of_the_layers():
    flow = vector(couplings=3)
    x = torch.randn(7, 3)
    found = diagnose(flow, x)
    assert [layer.name for layer in found.layers] == [f"transforms.{i}.bijection" for i in (2, 1, 0)] + ["base"]
    (-flow(x).mean()).backward()
    h = x
    for layer, row in zip(reversed(flow.transforms.bijections), found.layers[:-1], strict=True):
        with torch.no_grad():
            h, log_det = layer.inverse_and_log_det(h)
        assert row.values == pytest.approx((float(h.min()), float(h.max())))
        assert row.log_dets == pytest.approx((float(log_det.min()), float(log_det.max())))
        assert row.gradient == pytest.approx(max(float(p.grad.abs().max()) for p in layer.parameters()), rel=1e-4)
        assert row.parameters == sum(p.numel() for p in layer.parameters())
        assert row.shape == (3,)
        assert row.kind == "SplitCoupling"
    log_prob = flow.base.log_prob(h)
    assert found.layers[-1].log_dets == pytest.approx((float(log_prob.min()), float(log_prob.max())))


def test_frozen_layers_have_no_gradient():
    flow = vector(couplings=2)
    flow.transforms[0].requires_grad_(False)
    assert [layer.gradient is None for layer in diagnose(flow, torch.randn(4, 3)).layers] == [False, True, True]
    flow.requires_grad_(False)
    assert all(layer.gradient is None for layer in diagnose(flow, torch.randn(4, 3)).layers)


def test_elementwise_parts_are_summed_over_the_event():
    flow = Flow(StandardNormal((1, 2, 2)), [Lift(AffineTransform(0.0, 2.0))])
    (row, _) = diagnose(flow, torch.randn(4, 1, 2, 2)).layers
    assert row.kind == "Lift(AffineTransform).inv"
    assert row.log_dets == pytest.approx((-4 * 0.6931472,) * 2)
    assert row.shape == (1, 2, 2)


def test_leaves_of_a_multi_scale_flow_are_modules_of_the_flow():
    flow = image()
    rows = diagnose(flow, torch.randn(4, *IMAGE)).layers
    modules = dict(flow.named_modules())
    assert all(row.kind.removesuffix(".inv") == type(modules[row.name]).__name__ for row in rows)
    kinds = {row.kind for row in rows}
    assert kinds >= {"MaskedCoupling", "SplitCoupling", "BatchNorm", "Squeeze", "Squeeze.inv", "StandardNormal"}
    assert not kinds & {"Chain", "Sandwich", "FactorOut", "Inverse"}


def test_the_walk_ends_where_the_flow_does():
    flow = glow()
    x = torch.randn(4, *IMAGE)
    with torch.no_grad():
        z, log_det = flow.transforms.inverse_and_log_det(x)
    rows = diagnose(flow, x).layers
    assert rows[-1].values == pytest.approx((float(z.min()), float(z.max())), rel=1e-4)
    assert sum(row.log_dets[0] for row in rows[:-1]) == pytest.approx(float(log_det.min()), rel=0.2, abs=5)


# flows in good health


HEALTHY = {
    "vector": vector,
    "vector-1": lambda: Flow(StandardNormal(1), alone(realnvp_transforms, net=mlp)),
    "nice": lambda: Flow(StandardNormal(5), nice_transforms(5, net=mlp)),
    "flowpp-vector": lambda: Flow(StandardNormal(3), flowpp_transforms(3, couplings=2, components=3, net=mlp)),
    "image": image,
    "image-training": lambda: image().train(),
    "packed": lambda: image(packed=True),
    "glow": glow,
    "glow-plu": lambda: glow(plu=True),
    "glow-vector": glow_vector,
    "flowpp": lambda: Flow(StandardNormal(IMAGE), small_flowpp(IMAGE)).eval(),
    "lifted": lambda: Flow(StandardNormal(3), [*vector().transforms, AffineTransform(1.0, 2.0)]),
    "own-layer": lambda: Flow(StandardNormal(3), [Sinh(3), *vector().transforms]),
    "batchnorm": lambda: Flow(StandardNormal(3), [*vector().transforms, BatchNorm((3,)).inv]),
    "rebuilt": lambda: rebuild(vector()),
}
CONTEXTS = {
    "context": (lambda: vector(context_dim=2), (2,)),
    "context-image": (lambda: image(context_dim=2), (2,)),
    "context-map": (lambda: image(context_shape=(2, 4, 4)), (2, 4, 4)),
    "context-packed": (lambda: image(context_shape=(1, 4, 4), packed=True), (1, 4, 4)),
    "context-base": (lambda: Flow(DiagonalNormal(3, context_dim=2), vector().transforms), (2,)),
    "context-glow": (lambda: glow_with_context(), (2,)),
    "context-lifted": (lambda: Flow(StandardNormal(4), [component("lift-pyro-conditional")]), (2,)),
}


def glow_with_context():
    flow = Flow(StandardNormal(IMAGE), small_glow(IMAGE, context_dim=2)).eval()
    flow.initialize(torch.randn(16, *IMAGE), torch.randn(16, 2))
    return flow


def good(flow):
    for module in flow.modules():
        if isinstance(module, ChannelNorm):
            module.initialized.fill_(True)
            module._is_initialized = True
    return flow


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_in_good_health_has_no_findings(name, dtype):
    flow = good(HEALTHY[name]()).to(dtype)
    found = diagnose(flow, torch.randn(16, *flow.event_shape, dtype=dtype))
    assert found.findings == []
    assert found.first_layer is None
    assert found.first_row is None
    assert "Nothing is wrong" in str(found)


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts(name):
    make, shape = CONTEXTS[name]
    flow = make()
    x = torch.randn(12, *flow.event_shape)
    for context in (torch.randn(12, *shape), torch.randn(shape)):
        found = diagnose(flow, x, context)
        assert found.findings == []
    both = diagnose(flow, x[:1], torch.randn(5, *shape))  # one event, many contexts
    assert both.findings == []


@pytest.mark.parametrize("make", [pixels, learned_pixels])
def test_integer_images(make):
    flow = make()
    found = diagnose(flow, torch.randint(8, (12, *IMAGE)))
    assert found.findings == []
    names = [layer.name for layer in found.layers]
    assert names[-1] == "flow.base"
    assert (names[0] == "dequantizer.base") == (flow.dequantizer is not None)
    assert set(names) <= {name for name, _ in flow.named_modules()}


def test_a_broken_dequantizer():
    flow = learned_pixels()
    key = next(key for key, _ in flow.named_parameters() if "embedding" in key)
    fill(flow, key, NAN)
    found = diagnose(flow, torch.randint(8, (4, *IMAGE)))
    assert found.first_layer.endswith(".embedding")
    only(found.findings, key, "nan")


def test_a_trained_flow_has_no_findings():
    flow = vector(2)
    x = torch.randn(256, 2).exp() * torch.tensor([1.0, -1.0])
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (-flow(x).mean()).backward()
        optimizer.step()
    assert diagnose(flow, x).findings == []


# nothing changes


def memory_of(flow):
    tensors = {**dict(flow.named_parameters()), **dict(flow.named_buffers())}
    return {
        "identities": {key: id(value) for key, value in tensors.items()},
        "versions": {key: value._version for key, value in tensors.items()},
        "values": {key: value.detach().clone() for key, value in tensors.items()},
        "gradients": {key: None if value.grad is None else value.grad.clone() for key, value in tensors.items()},
        "modes": [module.training for module in flow.modules()],
        "attributes": [dict(vars(module)) for module in flow.modules()],
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*HEALTHY, "glow-new", "pixels", "learned-pixels"])
def test_the_flow_is_left_as_it_was(name, training):
    more = {
        "glow-new": lambda: Flow(StandardNormal(IMAGE), small_glow(IMAGE)),
        "pixels": pixels,
        "learned-pixels": learned_pixels,
    }
    flow = (HEALTHY | more)[name]().train(training)
    images = isinstance(flow, ImageFlow)
    x = torch.randint(8, (6, *IMAGE)) if images else torch.randn(6, *flow.event_shape)
    if name != "glow-new":
        (-flow(x).mean()).backward()
    before, state, copied = memory_of(flow), torch.get_rng_state(), x.clone()
    diagnose(flow, x)
    after = memory_of(flow)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, copied)
    for what in ("identities", "versions", "modes"):
        assert after[what] == before[what]
    for what in ("values", "gradients"):
        for key, value in before[what].items():
            assert value is None or torch.equal(after[what][key], value), (what, key)
    for one, other in zip(after["attributes"], before["attributes"], strict=True):
        assert {key: id(value) for key, value in one.items()} == {key: id(value) for key, value in other.items()}


def test_what_layers_remember_stays():
    flow = Flow(
        StandardNormal(4), [component("lift-pyro"), *vector(4).transforms, AffineTransform(0.0, 1.0, cache_size=1)]
    )
    x = torch.randn(5, 4)
    log_prob = flow.distribution().log_prob(x)
    z = flow.transforms.inv(x)
    log_prob.sum().backward()
    cached = flow.transforms[-1].transform._cached_x_y
    diagnose(flow, torch.randn(5, 4))
    assert flow.transforms.inv(x) is z
    assert flow.transforms[-1].transform._cached_x_y is cached


def test_without_gradients_and_in_inference_mode():
    flow = vector()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = diagnose(flow, torch.randn(5, 3))
            assert found.findings == []
            assert all(layer.gradient is not None for layer in found.layers[:-1])
            assert not torch.is_grad_enabled()


def test_x_that_requires_a_gradient():
    x = torch.randn(5, 3, requires_grad=True)
    assert diagnose(vector(), x).findings == []
    assert x.grad is None


# the error of a training


class Unlucky(Bijection):
    """The identity, until it has been called so often; then NaN, in both directions."""

    def __init__(self, calls):
        super().__init__((2,))
        self.left = calls

    def forward_and_log_det(self, x, context=None):
        return x * (1 if self.left > 0 else NAN), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        self.left -= 1
        return self.forward_and_log_det(y)


def test_the_error_of_fit_has_a_diagnosis():
    flow = vector(2)
    flow = Flow(StandardNormal(2), [*flow.transforms, Unlucky(7)])
    options = {"steps": 100, "validation": None, "interval": 5, "progress": False}
    with pytest.raises(DivergedError) as raised:
        fit(flow, torch.randn(64, 2), **options)
    found = raised.value.diagnosis
    assert (found.first_layer, found.first_row) == ("transforms.4", 0)
    assert all(row.parameters == 0 or row.gradient is not None for row in found.layers)
    assert found.findings[0] in str(raised.value)
    assert str(raised.value).endswith("A smaller learning rate may help.")


def test_the_batch_of_the_error_is_diagnosed_with_its_context_before_it_goes_back():
    flow = Flow(StandardNormal(3), [Spiky(50.0, NAN).inv, *vector(context_dim=2).transforms, Spiky(50.0, NAN).inv])
    x = torch.randn(64, 3)
    x[20, 0] = 60.0
    options = {"steps": 20, "validation": None, "batch_size": 64, "progress": False, "recoveries": 1, "noise": 0.0}
    warns = r"not finite is transforms\.5\.bijection \(Spiky\), first in row \d+ of x"
    with pytest.warns(RuntimeWarning, match=warns), pytest.raises(DivergedError) as raised:
        fit(flow, x, context=torch.randn(64, 2), **options)
    assert raised.value.diagnosis.first_layer == "transforms.5.bijection"


def test_batch_normalization_that_gets_a_nan_is_a_loss_that_is_nan():
    flow = Flow(StandardNormal(2), [BatchNorm((2,)).inv, *vector(2).transforms, Unlucky(4)])
    with pytest.raises(DivergedError, match=r"The loss became nan at about step \d, .*Unlucky") as raised:
        fit(flow, torch.randn(64, 2), validation=None, steps=20, interval=50, progress=False)
    assert raised.value.diagnosis.first_layer == "transforms.5"


def test_a_diagnosis_that_fails_does_not_hide_the_error():
    error = DivergedError("The loss became nan")
    error.diagnose(vector(), torch.zeros(4, 7))
    error.diagnose(nn.Linear(2, 2), torch.zeros(4, 2))
    assert error.diagnosis is None
    assert str(error) == "The loss became nan. A smaller learning rate may help."
    error.diagnose(broken(), torch.zeros(4, 3))
    again = pickle.loads(pickle.dumps(error))
    assert again.diagnosis.findings == error.diagnosis.findings


# arguments, print and data


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diagnose(vector().transforms, torch.randn(2, 3)), "Flow or an ImageFlow, but got Chain"),
        (lambda: diagnose(vector(), torch.randn(2, 4)), r"\(3,\)"),
        (lambda: diagnose(vector(), torch.ones(2, 3, dtype=torch.long)), "floating point"),
        (lambda: diagnose(vector(), torch.randn(0, 3)), "at least one event"),
        (lambda: diagnose(vector(), torch.randn(2, 3, device="meta")), "with values"),
        (lambda: diagnose(vector().to("meta"), torch.randn(2, 3)), "on the meta device"),
        (lambda: diagnose(vector(), torch.randn(2, 3), torch.randn(2, 1)), "without one"),
        (lambda: diagnose(vector(context_dim=2), torch.randn(2, 3), torch.randn(2, 5)), r"\(2,\)"),
        (lambda: diagnose(pixels(), torch.zeros(2, 1, 3, 3)), r"\(1, 4, 4\)"),
        (lambda: diagnose(pixels(), [1]), "list"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_context_that_is_missing_is_a_finding():
    found = diagnose(vector(context_dim=2), torch.randn(4, 3))
    only(found.findings, "transforms.3.bijection (SplitCoupling) raised ValueError", "context")


def broken():
    flow = vector()
    fill(flow, "transforms.1.bijection.conditioner.layers.0.weight", NAN)
    return flow


PRINTED = {**HEALTHY, "broken": broken, "pixels": pixels, "learned-pixels": learned_pixels}


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_in_a_terminal(name):
    flow = PRINTED[name]()
    images = isinstance(flow, ImageFlow)
    x = torch.randint(8, (6, *IMAGE)) if images else 1e5 * torch.randn(6, *flow.event_shape)
    found = diagnose(flow, x)
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].split() == HEAD
    head = lines[0].rstrip()
    rows = [line for line in lines[: lines.index("")] if len(line) > 100 or line.endswith("-") or line[-1:].isdigit()]
    assert len({len(line) for line in rows if len(line) > len(head) - 3}) <= 2  # aligned at the right


def test_the_first_bad_layer_is_marked():
    lines = str(diagnose(broken(), torch.randn(4, 3))).splitlines()
    assert [line.split()[1] for line in lines if line.startswith(">")] == ["1.bijection"]


def test_the_data_can_be_written_as_json():
    found = diagnose(broken(), torch.randn(4, 3))
    again = json.loads(json.dumps(dataclasses.asdict(found)))
    assert again["first_layer"] == "transforms.1.bijection"
    assert again["layers"][0]["name"] == "transforms.3.bijection"
    assert again["findings"] == found.findings
