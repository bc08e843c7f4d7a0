"""Elementwise maps and the maps from a raw network output to a scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_realnvp import Additive, Affine, SigmoidLogScale, SoftClipLogScale, TanhLogScale

from zoo import SCALES, split

EXTREMES = [0.0, 1e-30, 1.0, 20.0, 100.0, 1e4, 1e10, 1e20, 1e30, 3e38]


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_finite_in_value_and_gradient(name, dtype):
    raw = torch.tensor([sign * value for value in EXTREMES for sign in (1, -1)], dtype=dtype, requires_grad=True)
    scale = SCALES[name]().to(dtype)
    log_scale = scale(raw)
    assert log_scale.isfinite().all()
    # Of the scale and of its inverse, since both directions are trained.
    for value in (log_scale, log_scale.exp(), (-log_scale).exp()):
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), raw, retain_graph=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", SCALES)
@settings(max_examples=50, deadline=None)
@given(raw=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_scales_are_finite_for_any_float(name, raw):
    raw = torch.tensor(raw, requires_grad=True)
    log_scale = SCALES[name]()(raw)
    log_scale.backward()
    assert log_scale.isfinite()
    assert raw.grad.isfinite()


@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [
        (TanhLogScale(1.5), -1.5, 1.5),
        (SigmoidLogScale(1e-4), math.log(1e-4), 0.0),
        (SoftClipLogScale(7.0), -7.0, 7.0),
    ],
)
def test_scales_are_bounded_and_monotone(scale, low, high):
    raw = torch.cat([-torch.logspace(30, -3, 200), torch.logspace(-3, 30, 200)])
    log_scale = scale(raw)
    assert log_scale.min() >= low - 1e-4
    assert log_scale.max() <= high + 1e-4
    assert (log_scale.diff() >= -1e-6).all()
    assert log_scale.max() - log_scale.min() > 0.9 * (high - low)


@pytest.mark.parametrize(("scale", "start"), [(TanhLogScale(), 0.0), (SoftClipLogScale(), 0.0)])
def test_scales_start_at_the_identity(scale, start):
    assert scale(torch.zeros(())).item() == pytest.approx(start, abs=1e-6)


def test_formulas():
    raw = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(TanhLogScale(0.7).double()(raw), 0.7 * torch.tanh(raw), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(SigmoidLogScale(0.0)(raw).exp(), torch.sigmoid(raw + 2))
    assert SigmoidLogScale()(torch.zeros(())).exp().item() == pytest.approx(0.88, abs=5e-3)
    torch.testing.assert_close(SoftClipLogScale(3.0)(raw), raw / (1 + raw.abs() / 3))


def test_affine_is_scale_and_shift():
    x, shift, raw = torch.randn(3, 5, 4, dtype=torch.float64).unbind(0)
    transformer = Affine(torch.tanh)
    params = torch.cat([shift, raw], -1)
    y, log_det = transformer.forward_and_log_det(x, params, -1)
    torch.testing.assert_close(y, x * torch.exp(torch.tanh(raw)) + shift)
    torch.testing.assert_close(log_det, torch.tanh(raw))
    back, inverse_log_det = transformer.inverse_and_log_det(y, params, -1)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)


def test_additive_only_shifts():
    x, shift = torch.randn(2, 5, 4).unbind(0)
    y, log_det = Additive().forward_and_log_det(x, shift, -1)
    assert torch.equal(y, x + shift)
    assert not log_det.any()


def test_parameters_of_images_come_in_blocks_of_channels():
    x, shift, raw = torch.randn(3, 2, 3, 4, 4).unbind(0)
    y, _ = Affine(torch.tanh).forward_and_log_det(x, torch.cat([shift, raw], 1), -3)
    torch.testing.assert_close(y, x * torch.exp(torch.tanh(raw)) + shift)


@pytest.mark.parametrize("name", SCALES)
def test_a_coupling_survives_a_network_gone_wild(name):
    coupling = split((2,), transformer=Affine(SCALES[name]()))
    with torch.no_grad():
        coupling.conditioner.layers[-1].bias.copy_(torch.tensor([0.5, 1e30]))
    x = torch.randn(3, 2, requires_grad=True)
    y, log_det = coupling.forward_and_log_det(x)
    (y.sum() + log_det.sum()).backward()
    assert y.isfinite().all()
    for tensor in (x, *coupling.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
