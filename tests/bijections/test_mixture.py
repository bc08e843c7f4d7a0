"""The mixture of logistics against a naive reference, far into its tails and where it is flat."""

import pytest
import torch

from pyro_realnvp import Elementwise, MixtureLogistic

DIM = -1  # elements of a vector: parameters (*batch, (2 + 3 K) C)


def pack(raw=0.0, shift=0.0, logits=(0.0,), means=(0.0,), log_scales=(0.0,), dtype=torch.float64):
    """The parameters of one element (2 + 3 K,), its means as they are to be, without the offset of the start."""
    logits, means, log_scales = (torch.as_tensor(t, dtype=dtype) for t in (logits, means, log_scales))
    f = MixtureLogistic(len(logits)).to(dtype)
    params = torch.cat([torch.tensor([raw, shift], dtype=dtype), logits, means - f.offset, log_scales])
    return f, params


def each(f, params, values):
    """Every value as the one element of an event, with the same parameters: (n, 1) and (n, P)."""
    return values.reshape(-1, 1), params.expand(values.numel(), -1)


def random(components, n=1, size=1, spread=1.0, dtype=torch.float64):
    f = MixtureLogistic(components).to(dtype)
    return f, spread * torch.randn(n, f.num_parameters * size, dtype=dtype)


def reference(f, x, params, size):
    """y and dy/dx by the textbook, without any logarithm of a sum: good only where nothing saturates."""
    sizes = [1, 1, *[f.components] * 3]
    raw, shift, logits, means, log_scales = params.unflatten(-1, (-1, size)).split(sizes, -2)
    weights = logits.exp() / logits.exp().sum(-2, keepdim=True)
    scales = log_scales.exp()
    sigmoid = 1 / (1 + (-(x.unsqueeze(-2) - means - f.offset[:, None]) / scales).exp())
    cdf = (weights * sigmoid).sum(-2)
    density = (weights * sigmoid * (1 - sigmoid) / scales).sum(-2)
    s = raw.squeeze(-2).tanh()
    return s.exp() * (cdf / (1 - cdf)).log() + shift.squeeze(-2), s.exp() * density / (cdf * (1 - cdf))


@pytest.mark.parametrize("components", [1, 2, 32])
@pytest.mark.parametrize("size", [1, 3])
def test_forward_against_the_textbook(components, size):
    f, params = random(components, 50, size)
    x = 2 * torch.randn(50, size, dtype=torch.float64)
    y, log_det = f.forward_and_log_det(x, params, DIM)
    want, slope = reference(f, x, params, size)
    torch.testing.assert_close(y, want, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det, slope.log(), atol=1e-9, rtol=1e-9)


def test_images_have_their_parameters_at_every_place():
    f = MixtureLogistic(2).double()
    params = torch.randn(5, f.num_parameters * 3, 2, 4, dtype=torch.float64)
    x = torch.randn(5, 3, 2, 4, dtype=torch.float64)
    y, log_det = f.forward_and_log_det(x, params, -3)
    want, slope = reference(f, x.movedim(1, -1), params.movedim(1, -1), 3)
    torch.testing.assert_close(y, want.movedim(-1, 1))
    torch.testing.assert_close(log_det, slope.log().movedim(-1, 1))


@pytest.mark.parametrize("components", [1, 2, 32])
def test_round_trip_far_into_both_tails(components):
    f, params = random(components, 400, spread=2.0)
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    for reach in (1.0, 30.0, 1e3, 1e4):
        y, log_det = f.forward_and_log_det(reach * x, params, DIM)
        back, inverse_log_det = f.inverse_and_log_det(y, params, DIM)
        torch.testing.assert_close(back, reach * x, atol=1e-8, rtol=0)
        torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -3.0, 3.0, 8.0])
@pytest.mark.parametrize("y", [0.0, 1.0, 50.0, 1e4])
def test_inverse_of_any_y(log_scale, y):
    # What is asked for is F(x) = y: where the map is flat no x is better than its neighbours.
    f, params = random(32, 200)
    params[:, -32:] = log_scale + torch.randn(200, 32, dtype=torch.float64)
    target = y * torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    x, log_det = f.inverse_and_log_det(target, params, DIM)
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    got, forward_log_det = f.forward_and_log_det(x, params, DIM)
    slope = forward_log_det.exp().clamp(min=1)  # of a rounding error in x
    assert ((got - target).abs() <= 1e-11 * slope * (1 + x.abs() + target.abs())).all()
    # Against a plain bisection, which takes nothing for granted but monotonicity.
    low, high = torch.full_like(x, -1e12), torch.full_like(x, 1e12)
    for _ in range(130):
        middle = (low + high) / 2
        above = f.forward_and_log_det(middle, params, DIM)[0] > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    torch.testing.assert_close(x, (low + high) / 2, atol=1e-6, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("log_scale", [-12.0, -7.0, 0.0, 7.0])
def test_values_and_gradients_are_finite(dtype, inverse, log_scale):
    f, params = random(32, 1000, dtype=dtype)
    params[:, -32:] += log_scale
    x = torch.cat([10.0 ** torch.linspace(-3, 4, 500), -(10.0 ** torch.linspace(-3, 4, 500))]).to(dtype)[:, None]
    x.requires_grad_()
    params.requires_grad_()
    y, log_det = (f.inverse_and_log_det if inverse else f.forward_and_log_det)(x, params, DIM)
    assert y.dtype == log_det.dtype == dtype
    for loss in (y.sum(), log_det.sum()):
        for value in (loss, *torch.autograd.grad(loss, [x, params], retain_graph=True, materialize_grads=True)):
            assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_det_in_the_tails_is_that_of_the_outermost_component(dtype):
    # Far out all but the widest component vanish: du/dx -> exp(-l_k) of that one.
    f, params = pack(0.0, 0.0, [0.0, 1.0], [-1.0, 1.0], [-3.0, -2.0], dtype)
    x, params = each(f, params, torch.tensor([-1e4, -100.0, 100.0, 1e4], dtype=dtype))
    log_det = f.forward_and_log_det(x, params, DIM)[1]
    torch.testing.assert_close(log_det, torch.full_like(x, 2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_det_of_one_component_is_exact_everywhere(dtype):
    f, params = pack(0.5, 0.0, [0.0], [0.3], [-7.0], dtype)
    x, params = each(f, params, torch.tensor([-1e4, -3.0, 0.3, 3.0, 1e4], dtype=dtype))
    log_det = f.forward_and_log_det(x, params, DIM)[1]
    want = torch.full_like(x, 7 + torch.tensor(0.5).tanh().item())
    torch.testing.assert_close(log_det, want, atol=1e-3, rtol=0)


# -------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("components", [1, 3, 32])
def test_implicit_gradients_against_the_jacobian_of_the_forward(components):
    f, params = random(components, 20)
    x = 3 * torch.randn(20, 1, dtype=torch.float64, requires_grad=True)
    params.requires_grad_()
    y = f.forward_and_log_det(x, params, DIM)[0]
    dy_dx, dy_dparams = torch.autograd.grad(y.sum(), [x, params])
    given = y.detach().requires_grad_()
    back = f.inverse_and_log_det(given, params, DIM)[0]
    dx_dy, dx_dparams = torch.autograd.grad(back.sum(), [given, params])
    torch.testing.assert_close(dx_dy, 1 / dy_dx, rtol=1e-6, atol=0)
    torch.testing.assert_close(dx_dparams, -dy_dparams / dy_dx, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("components", [1, 3, 32])
def test_gradients_of_the_inverse_log_det(components):
    # log_det(y, theta) = -g(x(y, theta), theta), so its total derivative is by the chain rule through x.
    f, params = random(components, 20)
    x = 3 * torch.randn(20, 1, dtype=torch.float64, requires_grad=True)
    params.requires_grad_()
    y, log_det = f.forward_and_log_det(x, params, DIM)
    dy_dx, dy_dparams = torch.autograd.grad(y.sum(), [x, params], retain_graph=True)
    dg_dx, dg_dparams = torch.autograd.grad(log_det.sum(), [x, params])
    given = y.detach().requires_grad_()
    inverse_log_det = f.inverse_and_log_det(given, params, DIM)[1]
    got_y, got_params = torch.autograd.grad(inverse_log_det.sum(), [given, params])
    torch.testing.assert_close(got_y, -dg_dx / dy_dx, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got_params, -dg_dparams + dg_dx * dy_dparams / dy_dx, rtol=1e-6, atol=1e-9)


def test_gradients_of_the_inverse_by_finite_differences():
    f, params = random(3, 4)
    y = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, p: f.inverse_and_log_det(y, p, DIM), (y, params.requires_grad_()))


def test_the_inverse_is_the_same_without_gradients():
    f, params = random(32, 50)
    y = 10 * torch.randn(50, 1, dtype=torch.float64)
    with_gradients = f.inverse_and_log_det(y, params.requires_grad_(), DIM)
    with torch.no_grad():
        without = f.inverse_and_log_det(y, params, DIM)
    for a, b in zip(with_gradients, without, strict=True):
        torch.testing.assert_close(a.detach(), b, atol=1e-10, rtol=1e-10)


# --------------------------------------------------------------------------------------------- where it is flat


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -3.0])
def test_between_narrow_modes(dtype, log_scale):
    # The map is constant to the last digit there: any x between the modes will do, but not a NaN, nor one beyond them.
    f, params = pack(0.2, 0.3, [0.0, 1.0], [-1.0, 1.0], [log_scale, log_scale], dtype)
    x, params = each(f, params, torch.linspace(-0.9, 0.9, 19, dtype=dtype))
    y, log_det = f.forward_and_log_det(x, params, DIM)
    assert log_det.isfinite().all()
    back, inverse_log_det = f.inverse_and_log_det(y, params, DIM)
    assert back.isfinite().all()
    assert inverse_log_det.isfinite().all()
    assert (back.abs() <= 1).all()
    torch.testing.assert_close(f.forward_and_log_det(back, params, DIM)[0], y, atol=1e-5, rtol=1e-5)


def test_many_narrow_modes_with_gaps():
    f, params = pack(0.0, 0.0, torch.randn(32), torch.linspace(-50, 50, 32), torch.linspace(-9, -2, 32))
    y, params = each(f, params, torch.linspace(-30, 30, 601, dtype=torch.float64))
    x, _ = f.inverse_and_log_det(y, params, DIM)
    assert x.isfinite().all()
    assert (x.diff(dim=0) >= 0).all()
    got, log_det = f.forward_and_log_det(x, params, DIM)
    assert ((got - y).abs() <= 1e-12 * log_det.exp().clamp(min=1) * (1 + x.abs())).all()


def test_equal_components_are_one():
    f, params = pack(0.3, -0.2, [0.0] * 8, [1.5] * 8, [-1.0] * 8)
    one, params_of_one = pack(0.3, -0.2, [0.0], [1.5], [-1.0])
    values = torch.linspace(-100, 100, 41, dtype=torch.float64)
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        got = getattr(f, method)(*each(f, params, values), DIM)
        want = getattr(one, method)(*each(one, params_of_one, values), DIM)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_one_component_is_affine():
    f, params = pack(0.3, -0.2, [5.0], [1.5], [-1.0])
    x, params = each(f, params, torch.linspace(-1e4, 1e4, 41, dtype=torch.float64))
    y, log_det = f.forward_and_log_det(x, params, DIM)
    scale = torch.tensor(0.3, dtype=torch.float64).tanh() + 1
    torch.testing.assert_close(y, scale.exp() * (x - 1.5) - 0.2)
    torch.testing.assert_close(log_det, scale.expand_as(x), atol=1e-7, rtol=0)


def test_log_scales_stop_at_minus_7():
    values = torch.linspace(-3, 3, 13, dtype=torch.float64)
    results = []
    for log_scale in (-7.0, -30.0):
        f, params = pack(0.0, 0.0, [0.0, 0.0], [-1.0, 1.0], [log_scale] * 2)
        results.append(f.forward_and_log_det(*each(f, params, values), DIM))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_and_narrow_components_together(dtype):
    f, params = pack(0.0, 0.0, [0.0, 0.0, 0.0], [0.0, 1.0, -2.0], [20.0, -7.0, 0.0], dtype)
    x, params = each(f, params, torch.tensor([-1e4, -10.0, -1.0, 0.5, 1.0, 1.001, 2.0, 1e4], dtype=dtype))
    y, log_det = f.forward_and_log_det(x, params, DIM)
    back, inverse_log_det = f.inverse_and_log_det(y, params, DIM)
    for value in (y, log_det, back, inverse_log_det):
        assert value.isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(f.forward_and_log_det(back, params, DIM)[0], y, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("logit", [100.0, 1e4])
def test_components_without_weight(logit):
    f, params = pack(0.0, 0.0, [logit, 0.0, 0.0], [0.5, -3.0, 3.0], [0.0, 0.0, -2.0])
    x, params = each(f, params, torch.linspace(-20, 20, 41, dtype=torch.float64))
    y, _ = f.forward_and_log_det(x, params, DIM)
    torch.testing.assert_close(y, x - 0.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(f.inverse_and_log_det(y, params, DIM)[0], x, atol=1e-8, rtol=0)


# ------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("components", [1, 4, 32])
def test_it_starts_near_the_identity_with_components_that_differ(components):
    f = Elementwise((1,), MixtureLogistic(components))
    x = torch.linspace(-5, 5, 101)[:, None]
    y, log_det = f.forward_and_log_det(x)
    assert (y - x).abs().max() < 1
    assert log_det.abs().max() < 0.5
    torch.testing.assert_close(y, -y.flip(0), atol=1e-4, rtol=0)
    (y.square().sum() - log_det.sum()).backward()
    for part in f.theta.grad[2:].reshape(3, components, 1)[: 3 if components > 1 else 0]:
        assert part.unique().numel() > 1  # equal gradients would keep equal components equal


@pytest.mark.parametrize("components", [0, -1])
def test_no_components_are_refused(components):
    with pytest.raises(ValueError, match=f"MixtureLogistic.*got {components}"):
        MixtureLogistic(components)


def test_the_offset_of_the_start_is_no_part_of_the_state():
    assert not MixtureLogistic(3).state_dict()


def test_empty_batch():
    f, params = random(3, 0)
    for method in (f.forward_and_log_det, f.inverse_and_log_det):
        for value in method(torch.zeros(0, 1, dtype=torch.float64), params, DIM):
            assert value.shape == (0, 1)
