"""Splines on the circle: periodic in value and slope, exact, and finite for any parameters and any angle."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from pyro_realnvp import CircularAffine, CircularSpline, Elementwise, RationalQuadratic, SoftClipLogScale
from pyro_realnvp.bijections.circular import wrap
from pyro_realnvp.inference.quantile_spline import QuantileSpline
from pyro_realnvp.testing import randomize

PI = torch.tensor([math.pi], dtype=torch.float64)
SEAM = [-math.pi, math.pi, math.nextafter(math.pi, 0), -math.nextafter(math.pi, 0), 0.0, 1e-30, -1e-30]
FAR = [4.0, -4.0, 2 * math.pi, -7 * math.pi, 1e4, -1e4, 1e30, -1e30]


def spline(bins=5, spread=1.0, dtype=torch.float64, elements=3):
    f = CircularSpline(bins)
    return f, spread * torch.randn(f.channels(elements), dtype=dtype)


def distance(a, b):
    """Of angles, along the circle."""
    return torch.atan2((a - b).sin(), (a - b).cos()).abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapped_angles_lie_in_the_half_open_interval_and_are_the_same_angles(dtype):
    x = torch.cat([torch.tensor(SEAM + FAR[:6], dtype=dtype), torch.linspace(-20, 20, 10_001, dtype=dtype)])
    for shift in (0.0, torch.finfo(dtype).eps, -torch.finfo(dtype).eps):
        y = wrap(x * (1 + shift))
        assert (y >= -PI.to(dtype)).all()
        assert (y < PI.to(dtype)).all()
        assert distance(y, x).max() <= 2e4 * torch.finfo(dtype).eps
    inside = x[(x >= -PI.to(dtype)) & (x < PI.to(dtype))]
    assert torch.equal(wrap(inside), inside)


def test_parameters_of_zero_give_the_identity():
    f, params = spline(spread=0.0)
    x = torch.linspace(-math.pi, math.pi, 101, dtype=torch.float64)[:-1].reshape(-1, 1).expand(-1, 3)
    y, log_det = f.forward_and_log_det(x, params, -1)
    torch.testing.assert_close(y, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_value_and_slope_are_continuous_on_the_circle():
    """Across the seam -pi = pi as anywhere else."""
    f, params = spline(elements=1)
    step = 1e-7
    x = torch.cat([PI - step / 2, -PI + step / 2, torch.linspace(-3, 3, 20).double()])
    for g in (f.forward_and_log_det, f.inverse_and_log_det):
        (low, low_slope), (high, high_slope) = g(x[:, None], params, -1), g(x[:, None] + step, params, -1)
        assert distance(high, low).max() < 1e2 * step
        assert (high_slope - low_slope).abs().max() < 1e3 * step
        (end, end_slope), (start, start_slope) = (g(end, params, -1) for end in (PI, -PI))
        assert torch.equal(end, start)
        assert torch.equal(end_slope, start_slope)


def test_the_seam_moves_and_bends():
    """A spline alone would fix -pi; the slope there is learned, and the rotation moves it."""
    f, params = spline(elements=1)
    y, log_det = f.forward_and_log_det(-PI - params[-1], params, -1)
    assert distance(y, -PI) < 1e-12
    assert distance(f.forward_and_log_det(-PI, params, -1)[0], -PI) > 0.1
    assert log_det.abs() > 0.05


def test_it_goes_around_the_circle_once():
    f, params = spline(elements=1, spread=2.0)
    x = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)[:-1, None]
    y, log_det = f.forward_and_log_det(x, params, -1)
    steps = wrap(y.roll(-1, 0) - y)
    assert (steps > 0).all()
    assert steps.sum().item() == pytest.approx(2 * math.pi)
    assert log_det.exp().mean().item() == pytest.approx(1, abs=1e-6)


def test_angles_are_read_modulo_a_turn():
    f, params = spline()
    x = torch.randn(50, 3, dtype=torch.float64)
    for g in (f.forward_and_log_det, f.inverse_and_log_det):
        for turned, plain in zip(g(x - 6 * math.pi, params, -1), g(x, params, -1), strict=True):
            torch.testing.assert_close(turned, plain, atol=1e-12, rtol=0)


def test_the_shift_rotates_what_comes_in():
    f, params = spline(elements=1)
    shifted = params.clone()
    shifted[-1] += 2.5
    x = torch.randn(50, 1, dtype=torch.float64)
    results = f.forward_and_log_det(x, shifted, -1), f.forward_and_log_det(x + 2.5, params, -1)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    y = results[0][0]
    assert distance(f.inverse_and_log_det(y, params, -1)[0], x + 2.5).max() < 1e-12


def test_between_the_knots_it_is_the_spline_of_real_numbers():
    """With a slope of 1 at the seam, and without a rotation."""
    f, params = spline(bins=4)
    widths, slopes, shift = params[: 2 * 4 * 3], params[2 * 4 * 3 : 3 * 4 * 3].clone(), params[-3:]
    slopes[:3] = 0
    real = RationalQuadratic(4, bound=math.pi)
    x = wrap(2 * torch.randn(50, 3, dtype=torch.float64))
    y, log_det = f.forward_and_log_det(x, torch.cat([widths, slopes, 0 * shift]), -1)
    expected = real.forward_and_log_det(x, torch.cat([widths, slopes[3:]]), -1)
    torch.testing.assert_close((y, log_det), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_and_log_determinant(dtype):
    f, params = spline(spread=1.5, dtype=dtype)
    x = wrap(3 * torch.randn(2000, 3, dtype=dtype))
    y, log_det = f.forward_and_log_det(x, params, -1)
    back, inverse_log_det = f.inverse_and_log_det(y, params, -1)
    # Rounding of y counts as many times as the inverse is steep.
    assert (distance(back, x) / (1 + (-log_det).exp())).max() < 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e4 * torch.finfo(dtype).eps, rtol=1e-4)
    if dtype == torch.float64:
        for g, where in ((f.forward_and_log_det, x[0]), (f.inverse_and_log_det, y[0])):
            slopes = jacobian(lambda at, g=g: g(at, params, -1)[0], where).diagonal()
            torch.testing.assert_close(slopes.log(), g(where, params, -1)[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("f", [CircularSpline(4), CircularAffine(), QuantileSpline()])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("pattern", [(1,), (-1,), (1, -1), (1, 0, -1)])
def test_everything_is_finite(size, pattern, f):
    """For raw parameters of any size, at the seam, at knots, and at angles far out; in float32."""
    x = torch.tensor([*SEAM, *FAR, -math.pi / 2, math.pi / 2, 1.0]).requires_grad_()
    count = f.channels(1)
    raw = size * torch.tensor(pattern * count)[:count].float()
    params = raw.expand(len(x), count).clone().requires_grad_()
    for g in (f.forward_and_log_det, f.inverse_and_log_det):
        y, log_det = g(x[:, None], params, -1)
        assert ((y >= -PI.float()) & (y < PI.float())).all()
        assert log_det.isfinite().all()
        assert log_det.abs().max() < 60
        for gradient in torch.autograd.grad(y.sin().sum() + y.cos().sum() + log_det.sum(), (x, params)):
            assert gradient.isfinite().all()


def test_the_shift_is_read_modulo_a_turn_alone():
    """A network that has wandered off by turns still gets the full gradient."""
    f = CircularSpline(3)
    params = torch.zeros(f.channels(1), dtype=torch.float64)
    params[-1] = 40.0
    y, _ = f.forward_and_log_det(torch.tensor([0.3]).double(), params.requires_grad_(), -1)
    torch.testing.assert_close(y, torch.tensor([0.3 + 40 - 12 * math.pi]).double())
    assert torch.autograd.grad(y.sum(), params)[0][-1] == 1


def test_the_support_of_a_coupling_of_angles():
    f = Elementwise((2,), CircularSpline(3))
    randomize(f)
    for constraint in (f.domain, f.codomain, f.inv.domain):
        assert constraint.check(torch.tensor([3.14, -3.14]))
        assert constraint.check(torch.tensor([math.pi, -math.pi]))
        assert not constraint.check(torch.tensor([3.15, 0.0]))
        assert not constraint.check(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 1}, "at least 2 bins, but got 1"),
        ({"min_width": 0.2}, "min_width of CircularSpline must be less than 1 / 8 bins, but got 0.2"),
        ({"min_slope": 1.0}, "min_slope of CircularSpline must be less than 1, but got 1.0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        CircularSpline(**arguments)


def test_an_affine_map_of_angles_scales_their_tangents():
    f = CircularAffine(SoftClipLogScale(2.0))
    shift, raw, x = torch.randn(3, 50, 1, dtype=torch.float64).unbind(0)
    y, log_det = f.forward_and_log_det(x, torch.cat([shift, raw], -1), -1)
    log_scale = raw / (1 + raw.abs() / 2)
    torch.testing.assert_close((y / 2).tan(), log_scale.exp() * ((x + shift) / 2).tan())
    slope = torch.autograd.functional.jacobian(
        lambda x: f.forward_and_log_det(x, torch.cat([shift, raw], -1), -1)[0], x
    )
    torch.testing.assert_close(slope.flatten(0, 1).flatten(1).diagonal().log(), log_det[:, 0])
    assert f.at_bound(torch.tensor([0.0, 1e3]), -1).tolist() == [True]


def test_a_spline_of_probabilities_scales_the_tails_of_a_normal_angle_by_a_bounded_factor():
    f = QuantileSpline(4)
    params = torch.randn(f.channels(1), dtype=torch.float64)
    params[-1] = 0
    y = torch.linspace(-3.14, 3.14, 2001, dtype=torch.float64)[:, None]
    x, log_det = f.inverse_and_log_det(y, params, -1)
    change = (y.square() - x.square()) / 2 + log_det  # of the log-density of N(0, 1)
    bins = RationalQuadratic(4, bound=math.pi)
    slopes = torch.cat([params[:8], params[9:12]])  # the same spline, but for the slope at the seam
    expected = bins.inverse_and_log_det(y, slopes, -1)[1]
    assert change.abs().max() < 1.2 * max(expected.abs().max().item(), 3)
    ends, _ = f.inverse_and_log_det(torch.tensor([[-math.pi], [math.pi]], dtype=torch.float64), params, -1)
    assert distance(ends, -PI).max() < 1e-6
