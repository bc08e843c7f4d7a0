"""Flows with angles and numbers in an interval among their coordinates, and their bases."""

import math

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    CircularSpline,
    Elementwise,
    Flow,
    MixedBase,
    StandardNormal,
    fit,
    load,
    realnvp_transforms,
    save,
    spline_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import convnet, mlp

KINDS = {"circular": [0, 3], "intervals": [(1, 2.0, 5.0)]}
PI = math.pi


def mixed(**kwargs):
    torch.manual_seed(0)
    flow = Flow(MixedBase(4, **KINDS), spline_transforms(4, couplings=4, bins=4, net=mlp, **KINDS, **kwargs))
    randomize(flow)
    return flow


def test_the_base_is_uniform_where_there_are_bounds_and_normal_elsewhere():
    base = MixedBase(4, **KINDS).double()
    z = base().sample((20_000,))
    assert (z[:, [0, 3]] >= -PI).all()
    assert (z[:, [0, 3]] < PI).all()
    assert ((z[:, 1] >= 2) & (z[:, 1] <= 5)).all()
    expected = torch.tensor([PI / 3**0.5, 3 / 12**0.5, 1.0, PI / 3**0.5]).double()
    torch.testing.assert_close(z.std(0), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(z.mean(0), torch.tensor([0, 3.5, 0, 0]).double(), rtol=0, atol=0.05)
    density = -2 * math.log(2 * PI) - math.log(3) + torch.distributions.Normal(0, 1).log_prob(z[:, 2])
    torch.testing.assert_close(base.log_prob(z), density)
    torch.testing.assert_close(base().log_prob(z), density)
    assert base().support.check(z).all()


@pytest.mark.parametrize(("coordinate", "value"), [(0, 3.2), (1, 1.9), (1, 5.1), (3, -3.2), (0, math.nan)])
def test_the_density_of_the_base_is_zero_elsewhere(coordinate, value):
    z = torch.tensor([0.0, 3.0, 0.0, 0.0])
    z[coordinate] = value
    assert MixedBase(4, **KINDS).log_prob(z) == -math.inf
    assert not MixedBase(4, **KINDS)().support.check(z)


def test_shapes_of_the_base():
    distribution = MixedBase(4, **KINDS)().expand((3, 1))
    assert distribution.rsample((2,)).shape == (2, 3, 1, 4)
    assert distribution.log_prob(torch.zeros(5, 3, 2, 4)).shape == (5, 3, 2)
    assert MixedBase(4)().log_prob(torch.zeros(0, 4)).shape == (0,)
    z = torch.randn(7, 4)
    torch.testing.assert_close(MixedBase(4).log_prob(z), StandardNormal(4).log_prob(z))


def test_draws_lie_in_the_support_and_have_their_density():
    flow = mixed().double()
    x = flow.distribution().rsample((5000,))
    assert ((x[:, [0, 3]] >= -PI) & (x[:, [0, 3]] < PI)).all()
    assert ((x[:, 1] >= 2) & (x[:, 1] <= 5)).all()
    assert flow.distribution().support.check(x).all()
    torch.testing.assert_close(flow(x), flow.distribution().log_prob(x))
    assert flow.sample((3,)).shape == (3, 4)


def test_the_density_integrates_to_one():
    """Over an angle, an interval, and the real line."""
    kinds = {"circular": [0], "intervals": [(2, 0.0, 2.0)]}
    flow = Flow(MixedBase(3, **kinds), spline_transforms(3, couplings=3, bins=4, net=mlp, **kinds)).double()
    randomize(flow)
    size = 60
    angles = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 * PI / size - PI
    reals = torch.linspace(-7, 7, 3 * size, dtype=torch.float64)
    numbers = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size
    grid = torch.cartesian_prod(angles, reals, numbers)
    with torch.no_grad():
        total = sum(flow(part).exp().sum() for part in grid.split(200_000))
    cell = (angles[1] - angles[0]) * (reals[1] - reals[0]) * (numbers[1] - numbers[0])
    assert (total * cell).item() == pytest.approx(1, abs=2e-3)


def test_the_density_is_continuous_across_the_seam():
    flow = mixed().double()
    x = flow.sample((100,))
    for angle in (0, 3):
        ends = [flow(x.index_fill(1, torch.tensor(angle), end)) for end in (-PI, math.nextafter(PI, 0), PI)]
        torch.testing.assert_close(ends[1], ends[0])
        torch.testing.assert_close(ends[2], ends[0])


def test_a_flow_refuses_what_lies_outside_of_the_circle():
    flow = mixed()
    x = flow.sample((5,))
    x[2, 0] += 2 * PI
    with pytest.raises(ValueError, match=r"outside of its support \[-3.1416, 3.1416\] x \[2, 5\] x R x .* but got"):
        flow(x)


def test_every_coordinate_is_conditioned_on_the_others():
    flow = mixed().double()
    z = flow.base().sample((1,))[0]
    jacobian = torch.autograd.functional.jacobian(flow.transforms, z)
    assert (jacobian != 0).all()


def test_a_new_flow_is_its_base():
    flow = Flow(MixedBase(4, **KINDS), spline_transforms(4, **KINDS))
    x = flow.sample((50,))
    torch.testing.assert_close(flow(x), flow.base.log_prob(x), rtol=1e-4, atol=1e-4)


def test_contexts():
    flow = mixed(context_dim=2)
    context = torch.randn(3, 2)
    x = flow.sample((5,), context)
    assert x.shape == (5, 3, 4)
    torch.testing.assert_close(flow(x, context), flow.distribution(context).log_prob(x))
    assert not torch.equal(flow(x, context), flow(x, -context))


def test_saved_and_loaded(tmp_path):
    flow = mixed(context_dim=2)
    save(flow, tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors")
    x, context = flow.sample((6,), torch.ones(2)), torch.ones(2)
    assert torch.equal(loaded(x, context), flow(x, context))
    assert repr(loaded) == repr(flow)


def test_on_the_meta_device():
    with torch.device("meta"):
        flow = Flow(MixedBase(4, **KINDS), spline_transforms(4, net=mlp, **KINDS))
        other = Flow(MixedBase(2, circular=[0, 1]), [Elementwise((2,), CircularSpline(4)).inv])
    assert "MixedBase" in flow.summary()
    assert all(parameter.is_meta for parameter in other.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_in_one_graph():
    torch._dynamo.reset()
    flow = mixed()
    x = flow.sample((6,))
    torch.testing.assert_close(torch.compile(flow, backend="aot_eager", fullgraph=True)(x), flow(x))
    torch._dynamo.reset()


def test_data_at_the_seam_is_fitted():
    """A von Mises density around pi, which on the real line would be two halves at the ends."""
    torch.manual_seed(0)
    target = torch.distributions.VonMises(torch.tensor(PI), torch.tensor(4.0))
    x = target.sample((2000, 1))
    flow = Flow(MixedBase(1, circular=[0]), spline_transforms(1, circular=[0]))
    fit(flow, x, steps=500, learning_rate=0.05, progress=False)
    assert (target.log_prob(x[:, 0]) - flow(x)).mean() < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spline_transforms(2, circular=[2]), "spline_transforms has coordinates 0 to 1, .* name 2"),
        (lambda: spline_transforms(2, circular=[-1]), "spline_transforms has coordinates 0 to 1, .* name -1"),
        (lambda: spline_transforms((1, 4, 4), circular=[0], net=convnet), r"images takes no circular, but got .*\[0\]"),
        (lambda: spline_transforms((1, 4, 4), intervals=[(0, 0, 1)], net=convnet), "images takes no intervals"),
        (lambda: spline_transforms(2, intervals=[(0.5, 0, 1)]), "an integer .* as the coordinate of an interval"),
        (lambda: MixedBase((2, 2)), r"MixedBase needs an event shape D or \(D,\), but got \(2, 2\)"),
        (lambda: MixedBase(2, circular=[0], intervals=[(0, 0, 1)]), "MixedBase .* at most once, but got 0 twice"),
        (
            lambda: Flow(StandardNormal(2), spline_transforms(2, circular=[0])),
            r"domain of its transforms, \[-3.1416, 3.1416\] x R, but StandardNormal is on the real line",
        ),
        (
            lambda: Flow(MixedBase(2, circular=[1]), spline_transforms(2, circular=[0])),
            r"but MixedBase is on R x \[-3.1416, 3.1416\]",
        ),
        (lambda: mixed().sample(temperature=0.5), "no temperature .* temperature=0.5 and truncation=None"),
        (lambda: mixed().sample(truncation=2.0), "MixedBase takes no temperature and no truncation.*truncation=2.0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bases_of_ones_own_are_not_checked():
    """Only their author knows where they lie."""

    class Own(nn.Module):
        event_shape = (2,)

    Flow(Own(), spline_transforms(2, circular=[0]))
    Flow(MixedBase(2, circular=[0]), realnvp_transforms(2))  # a bounded density is one on the real line


@pytest.mark.parametrize("deviation", [0.05, 0.6, 2.0, 30.0])
def test_angles_of_the_base_may_be_normal_on_the_circle(deviation):
    base = MixedBase(3, circular=[2, 0], deviation=torch.tensor([deviation, math.inf])).double()
    z = base().sample((50_000,))
    deviation = base.deviation[2].item()
    normal = torch.distributions.Normal(torch.zeros(()).double(), deviation)
    mass = 1 - 2 * normal.cdf(torch.tensor(-PI).double())
    torch.testing.assert_close(
        base.log_prob(z),
        normal.log_prob(z[:, 2]) - mass.log() - math.log(2 * PI) + torch.distributions.Normal(0, 1).log_prob(z[:, 1]),
    )
    torch.testing.assert_close(base().expand((2, 1)).log_prob(z[:1]), base.log_prob(z[:1]).expand(2, 1))
    assert (z[:, [0, 2]].abs() <= PI).all()
    shares = (normal.cdf(z[:, 2]) - normal.cdf(torch.tensor(-PI).double())) / mass  # uniform
    assert shares.mean().item() == pytest.approx(0.5, abs=0.005)
    assert shares.std().item() == pytest.approx(12**-0.5, abs=0.005)
    assert base.log_prob(torch.tensor([0.0, 0.0, 3.2]).double()) == -math.inf
    loaded = MixedBase(3, circular=[2, 0], deviation=torch.ones(2)).double()
    loaded.load_state_dict(base.state_dict())
    torch.testing.assert_close(loaded.log_prob(z), base.log_prob(z))


@pytest.mark.parametrize(
    ("deviation", "message"),
    [
        (torch.ones(1), r"deviation for each of 2 angles, but got a tensor of \(1,\)"),
        (torch.tensor([1.0, 0.0]), "positive deviations, but got 0.0"),
        (torch.tensor([1, 1]), "floating point values as deviation"),
    ],
)
def test_deviations_that_do_not_fit(deviation, message):
    with pytest.raises(ValueError, match=message):
        MixedBase(3, circular=[0, 1], deviation=deviation)
