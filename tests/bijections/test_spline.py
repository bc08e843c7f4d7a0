"""The rational-quadratic spline: its formula, its knots and ends, and what is far from both."""

import copy
import math

import pytest
import torch

from pyro_realnvp import (
    Flow,
    MaskedCoupling,
    RationalQuadratic,
    StandardNormal,
    checkerboard,
    fit,
    rebuild,
    spline_transforms,
)
from pyro_realnvp.testing import check_bijection, randomize

from zoo import mlp, resnet

F64 = {"dtype": torch.float64}
BOUND = 3.0


def knots_of(transformer, raw):
    """Computes the knots and slopes of raw parameters (P,), one number after the other."""
    k, params = transformer.bins, raw.tolist()

    def places(part, least):
        largest = max(part)
        weights = [math.exp(value - largest) for value in part]
        shares = [least + (1 - k * least) * weight / sum(weights) for weight in weights]
        return [-transformer.bound + 2 * transformer.bound * math.fsum(shares[:i]) for i in range(k + 1)]

    one = math.log(math.expm1(1 - transformer.min_slope))
    slopes = [transformer.min_slope + math.log1p(math.exp(value + one)) for value in params[2 * k :]]
    across = places(params[:k], transformer.min_width)
    return across, places(params[k : 2 * k], transformer.min_height), [1.0, *slopes, 1.0]


def by_hand(transformer, raw, x):
    """Evaluates equation 4 of Durkan et al. at a number x, in the bin that it lies in."""
    across, up, slopes = knots_of(transformer, raw)
    if abs(x) > transformer.bound:
        return x
    i = max(j for j in range(transformer.bins) if across[j] <= x)
    s = (up[i + 1] - up[i]) / (across[i + 1] - across[i])
    t = (x - across[i]) / (across[i + 1] - across[i])
    top = (up[i + 1] - up[i]) * (s * t * t + slopes[i] * t * (1 - t))
    return up[i] + top / (s + (slopes[i + 1] + slopes[i] - 2 * s) * t * (1 - t))


@pytest.mark.parametrize("bins", [2, 5, 8])
def test_values_are_those_of_the_formula(bins):
    transformer = RationalQuadratic(bins, bound=BOUND)
    raw = 2 * torch.randn(20, transformer.num_parameters, **F64)
    x = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, 20, **F64)[:, None]
    y, _ = transformer.forward_and_log_det(x, raw, -1)
    expected = [by_hand(transformer, row, value.item()) for row, value in zip(raw, x, strict=True)]
    assert y[:, 0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_at_parameters_of_zero_it_is_the_identity():
    transformer = RationalQuadratic(7)
    x = torch.linspace(-8, 8, 101, **F64)[:, None]
    y, log_det = transformer.forward_and_log_det(x, torch.zeros(101, transformer.num_parameters, **F64), -1)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_det, torch.zeros_like(x), rtol=0, atol=1e-13)


def slope_at(transformer, x, raw):
    """Computes dy/dx by autodiff."""
    x = x.clone().requires_grad_()
    y, _ = transformer.forward_and_log_det(x, raw.expand(len(x), -1), -1)
    return torch.autograd.grad(y.sum(), x)[0]


def test_the_derivative_is_continuous_at_every_knot_and_at_both_ends():
    transformer = RationalQuadratic(6, bound=BOUND)
    raw = torch.randn(transformer.num_parameters, **F64)
    across, _, slopes = knots_of(transformer, raw)
    at = torch.tensor(across, **F64)[:, None]
    left, right = (slope_at(transformer, at + side * 1e-9, raw)[:, 0] for side in (-1, 1))
    torch.testing.assert_close(left, torch.tensor(slopes, **F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(right, torch.tensor(slopes, **F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_nothing_is_nan_or_infinite_for_any_input_and_any_parameters(dtype, size, direction):
    transformer = RationalQuadratic(8, bound=BOUND)
    raw = (
        torch.randn(300, transformer.num_parameters).sign()
        if size == 1e4
        else torch.randn(300, transformer.num_parameters)
    )
    raw = (size * raw).to(dtype).requires_grad_()
    across, up, _ = knots_of(transformer, raw[0].detach().double().clamp(-30, 30))
    ends = torch.tensor([-BOUND, BOUND], dtype=dtype)
    special = [*across, *up, *ends.tolist(), *torch.nextafter(ends, 2 * ends).tolist()]
    special += [*torch.nextafter(ends, 0 * ends).tolist(), 0.0, -0.0, 1e30, -1e30]
    x = torch.tensor(special, dtype=dtype)
    x = torch.cat([x, 2 * torch.randn(300 - len(x), dtype=dtype)])[:, None].requires_grad_()
    y, log_det = getattr(transformer, direction)(x, raw, -1)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    for gradient in torch.autograd.grad(y.clamp(-9, 9).sum() + log_det.sum(), [x, raw]):
        assert gradient.isfinite().all()


def test_outside_of_the_bounds_nothing_changes():
    transformer = RationalQuadratic(4, bound=BOUND)
    x = torch.tensor([-1e30, -3.1, 3.0001, 1e30])[:, None].requires_grad_()
    raw = (3 * torch.randn(4, transformer.num_parameters)).requires_grad_()
    for direction in (transformer.forward_and_log_det, transformer.inverse_and_log_det):
        y, log_det = direction(x, raw, -1)
        assert torch.equal(y, x)
        assert torch.equal(log_det, torch.zeros_like(x))
        towards_x, towards_raw = torch.autograd.grad(y.sum() + log_det.sum(), [x, raw])
        assert torch.equal(towards_x, torch.ones_like(x))
        assert not towards_raw.any()


def test_round_trips_in_float32_at_the_knots():
    transformer = RationalQuadratic(8)
    raw = torch.randn(200, transformer.num_parameters)  # slopes of 0.1 and more: an error of y grows by their inverse
    for axis, there, back in (
        (0, transformer.forward_and_log_det, transformer.inverse_and_log_det),
        (1, transformer.inverse_and_log_det, transformer.forward_and_log_det),
    ):
        knots = torch.tensor([knots_of(transformer, row.double())[axis] for row in raw])
        for column in knots.T:
            for x in (column, torch.nextafter(column, column + 1), torch.nextafter(column, column - 1)):
                again = back(there(x[:, None], raw, -1)[0], raw, -1)[0]
                torch.testing.assert_close(again, x[:, None], rtol=0, atol=1e-5)


def test_it_is_increasing():
    transformer = RationalQuadratic(5, bound=BOUND)
    raw = 4 * torch.randn(transformer.num_parameters, **F64)
    y, _ = transformer.forward_and_log_det(torch.linspace(-4, 4, 5001, **F64)[:, None], raw.expand(5001, -1), -1)
    assert (y.diff(dim=0) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1,), {}, "at least 2 bins, but got 1"),
        ((8,), {"bound": 0.0}, "bound of RationalQuadratic"),
        ((8,), {"min_width": 0.125}, r"less than 1 / 8 bins, but got 0\.125"),
        ((8,), {"min_height": 0.2}, "min_height of RationalQuadratic"),
        ((8,), {"min_slope": 1.0}, "less than 1, but got 1"),
    ],
)
def test_senseless_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        RationalQuadratic(*arguments, **options)


def test_it_works_in_a_masked_coupling_given_a_context_and_in_rebuild():
    mask = checkerboard((2, 4, 4))
    transformer = RationalQuadratic(4)
    coupling = MaskedCoupling(mask, resnet(2, 2 * transformer.num_parameters, mask=mask, context_dim=3), transformer)
    check_bijection(coupling)


def test_rebuilt_gradients_are_those_of_stored_activations():
    stored = Flow(StandardNormal(4), spline_transforms(4, couplings=3, net=mlp)).double()
    randomize(stored)
    with torch.no_grad():
        for parameter in stored.parameters():
            parameter.mul_(0.3)  # so that no slope is so small that an inverse in float64 has few digits
    rebuilt = rebuild(copy.deepcopy(stored))
    x = torch.randn(50, 4, **F64)
    for flow in (stored, rebuilt):
        flow(x).sum().backward()
    for ours, expected in zip(rebuilt.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-8, atol=1e-9)


def test_one_coordinate_learns_two_modes_given_a_context():
    torch.manual_seed(0)
    context = torch.rand(4000, 1)
    sign = torch.randint(2, (4000, 1)) * 2.0 - 1
    x = sign * (0.5 + context) + 0.1 * torch.randn(4000, 1)
    flow = Flow(StandardNormal(1), spline_transforms(1, context_dim=1))
    fit(flow, (x, context), steps=400, learning_rate=5e-3, progress=False, seed=0)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.01) + math.log(2)  # the modes are far apart
    assert -flow(x, context).mean().item() < entropy + 0.1
