"""Splines of an interval, transformers by coordinate, and where the coordinates of a coupling lie."""

import math

import pytest
import torch
from torch.distributions import biject_to

from pyro_realnvp import (
    MLP,
    Affine,
    Chain,
    CircularSpline,
    CoordinateFeatures,
    Elementwise,
    IntervalSpline,
    MaskedCoupling,
    PerCoordinate,
    Permute,
    RationalQuadratic,
    SplitCoupling,
    alternating,
)
from pyro_realnvp.bijections.support import Box
from pyro_realnvp.testing import randomize

from zoo import reading, several, split


def test_an_interval_keeps_its_ends_and_bends_there():
    f = IntervalSpline(-1.0, 3.0, 4)
    params = torch.randn(f.channels(1))
    ends = torch.tensor([[-1.0], [3.0]])
    for g in (f.forward_and_log_det, f.inverse_and_log_det):
        y, log_det = g(ends, params, -1)
        torch.testing.assert_close(y, ends)
        assert (log_det.abs() > 0.01).all()


def test_an_interval_is_the_spline_of_real_numbers_elsewhere():
    """With slopes of 1 at the ends, on an interval that is shifted."""
    f, real = IntervalSpline(1.0, 5.0, 4), RationalQuadratic(4, bound=2.0)
    params = torch.randn(real.channels(2), dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    bins, slopes = params.split([16, 6])
    x = 4 * torch.rand(20, 2, dtype=torch.float64) - 2
    y, log_det = f.forward_and_log_det(x + 3, torch.cat([bins, zeros, slopes, zeros]), -1)
    expected, expected_log_det = real.forward_and_log_det(x, params, -1)
    torch.testing.assert_close(y, expected + 3)
    torch.testing.assert_close(log_det, expected_log_det)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("pattern", [(1,), (-1,), (1, -1), (1, 0, -1)])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-7.0, 0.1), (99.0, 101.0)])
def test_everything_is_finite_and_stays_inside(size, pattern, bounds):
    low, high = bounds
    f = IntervalSpline(low, high, 4)
    x = torch.tensor([low, high, math.nextafter(low, high), (low + high) / 2, 0.9 * high + 0.1 * low]).requires_grad_()
    count = f.channels(1)
    raw = size * torch.tensor(pattern * count)[:count].float()
    params = raw.expand(len(x), count).clone().requires_grad_()
    for g in (f.forward_and_log_det, f.inverse_and_log_det):
        y, log_det = g(x[:, None], params, -1)
        assert ((y >= torch.tensor(low)) & (y <= torch.tensor(high))).all()
        assert log_det.abs().max() < 40
        for gradient in torch.autograd.grad(y.sum() + log_det.sum(), (x, params)):
            assert gradient.isfinite().all()


def test_outside_of_the_interval_nothing_is_bent():
    f = IntervalSpline(0.0, 1.0, 4)
    x = torch.tensor([[-1e-3], [1.001], [-1e30], [50.0]])
    y, log_det = f.forward_and_log_det(x, torch.randn(f.channels(1)), -1)
    assert torch.equal(y, x)
    assert not log_det.any()


def test_each_coordinate_is_transformed_as_alone():
    """In any order of the kinds, with the parameters of each kind together."""
    circular, affine = CircularSpline(3), Affine()
    g = PerCoordinate([affine, circular, circular, affine])
    assert g.channels(4) == 2 * 2 + 2 * 10
    params = torch.randn(5, 24)
    x = torch.randn(5, 4)
    for inverse in (False, True):
        maps = [f.inverse_and_log_det if inverse else f.forward_and_log_det for f in (g, affine, circular)]
        y, log_det = maps[0](x, params, -1)
        for kind, places, theirs in ((1, [0, 3], params[:, :4]), (2, [1, 2], params[:, 4:])):
            expected, expected_log_det = maps[kind](x[:, places], theirs, -1)
            assert torch.equal(y[:, places], expected)
            assert torch.equal(log_det[:, places], expected_log_det)


def test_scales_at_a_bound_are_found_by_coordinate():
    g = PerCoordinate([CircularSpline(3), Affine()])
    params = torch.zeros(3, g.channels(2))
    params[1, -1] = 1e3
    assert g.at_bound(params, -1).tolist() == [[False, False], [False, True], [False, False]]
    assert PerCoordinate([CircularSpline(3)]).at_bound(torch.zeros(3, 10), -1) is None


def test_networks_read_angles_as_points_on_the_circle():
    network = CoordinateFeatures(torch.nn.Identity(), 4, circular=[1, 3], intervals=[(2, 10.0, 14.0)])
    x = torch.tensor([[5.0, 0.5, 13.0, -3.0]])
    cosines, sines = math.cos(0.5), math.sin(0.5)
    expected = torch.tensor([[5.0, 0.5, cosines, math.cos(-3.0), sines, math.sin(-3.0)]])
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x + torch.tensor([0.0, 2 * math.pi, 0.0, -4 * math.pi])), expected)
    torch.testing.assert_close(network(torch.zeros(4))[1].item(), -1.0)  # where nothing is read, not -6


def test_a_coupling_of_angles_is_periodic_in_what_it_reads():
    f = split((4,), net=reading([0, 1]), transformer=CircularSpline(4)).double()
    randomize(f)
    x = torch.randn(20, 4, dtype=torch.float64)
    turned = x + 2 * math.pi * torch.tensor([1.0, -2.0, 3.0, 0.0]).double()
    (y, log_det), (other, other_log_det) = f.forward_and_log_det(x), f.forward_and_log_det(turned)
    torch.testing.assert_close(other[:, 2:], y[:, 2:])
    torch.testing.assert_close(other_log_det, log_det)


def test_context_and_start_are_those_of_the_network():
    network = CoordinateFeatures(MLP(3, 2, context_dim=4), 2, circular=[0])
    assert network.context_shape == (4,)
    assert network.starts_at_zero
    assert network(torch.randn(5, 2), torch.randn(5, 4)).shape == (5, 2)


INF, PI = math.inf, math.pi


@pytest.mark.parametrize(
    ("layer", "low", "high"),
    [
        (lambda: Elementwise((3,), several(3)), [-PI, -INF, 3], [PI, INF, 5]),
        (lambda: split((5,), net=reading([1]), transformer=several(2)), [-INF, -PI, -INF, -PI, -INF], None),
        (lambda: split((4,), net=reading([1]), transformer=several(2), swap=True), [-PI, -INF, -INF, -PI], None),
        (lambda: split((4,), transformer=CircularSpline(3)), [-INF, -INF, -PI, -PI], None),
        (lambda: MaskedCoupling(alternating((3,)), MLP(3, 17), several(3)), [-PI, -INF, 3], [PI, INF, 5]),
        (lambda: Chain([Permute((3,), [2, 0, 1]), Elementwise((3,), several(3))]), [-INF, 3, -PI], [INF, 5, PI]),
        (lambda: Chain([Permute((3,), [2, 0, 1]).inv, Elementwise((3,), several(3))]), [3, -PI, -INF], [5, PI, INF]),
    ],
)
def test_where_the_coordinates_of_a_coupling_lie(layer, low, high):
    layer = layer()
    high = [-bound for bound in low] if high is None else high
    for constraint in (layer.domain, layer.inv.codomain):
        box = constraint.base_constraint
        assert box == Box(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
        x = biject_to(constraint)(torch.randn(50, len(low)))
        assert constraint.check(x).all()
        assert not constraint.check(x.index_fill(1, torch.tensor([0]), INF)).any()
        assert constraint.check(layer(x) if constraint is layer.codomain else x).all()
        for index, bound in enumerate(high):
            if bound < INF:
                assert not constraint.check(x.index_fill(1, torch.tensor([index]), bound + 0.1)).any()


def test_the_map_onto_a_box():
    transform = biject_to(Elementwise((3,), several(3)).domain)
    x = torch.randn(7, 3, dtype=torch.float64).requires_grad_()
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x)
    slopes = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), slopes.log().sum(-1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IntervalSpline(1.0, 1.0), "low < high, but got low=1.0 and high=1.0"),
        (lambda: IntervalSpline(-INF, 1.0), "low of IntervalSpline must be finite"),
        (lambda: IntervalSpline(bins=1), "IntervalSpline needs at least 2 bins"),
        (lambda: PerCoordinate([]), "transformer for every coordinate, but got none"),
        (lambda: SplitCoupling((4,), MLP(2, 4), PerCoordinate([Affine()])), "1 coordinates, but is given 2"),
        (
            lambda: SplitCoupling((4,), CoordinateFeatures(MLP(4, 4), 3, circular=[0]), Affine()),
            "reads 2 channels, but CoordinateFeatures has coordinates for 3",
        ),
        (
            lambda: CoordinateFeatures(MLP(2, 2), 2, circular=[2]),
            "coordinates 0 to 1, but circular or intervals name 2",
        ),
        (lambda: CoordinateFeatures(MLP(2, 2), 2, circular=[0, 0]), "at most once, but got 0 twice"),
        (lambda: CoordinateFeatures(MLP(2, 2), 2, circular=[0], intervals=[(0, 0, 1)]), "but got 0 twice"),
        (lambda: CoordinateFeatures(MLP(2, 2), 2, intervals=[(0, 1, 0)]), "low < high, but got low=1.0 and high=0.0"),
        (lambda: CoordinateFeatures(MLP(2, 2), 2, intervals=[(0, 1)]), r"triples .* but got \(0, 1\)"),
        (lambda: CoordinateFeatures(MLP(2, 2), 2, intervals=[0]), "a sequence of triples"),
        (lambda: CoordinateFeatures(MLP(3, 2), 2, circular=[0])(torch.zeros(3)), "vectors of length 2"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
