"""BatchNorm and ActNorm: what they compute, and when their state moves."""

import copy
import pickle

import pytest
import torch
from pyro import distributions as dist
from torch import nn

from pyro_realnvp import (
    ActNorm,
    BatchNorm,
    Chain,
    Flow,
    StandardNormal,
    alternating,
    channelwise,
    checkerboard,
    realnvp_transforms,
)

from zoo import resnet

SHAPES = {
    "vector": ((3,), None),
    "vector-mask": ((3,), alternating((3,))),
    "image": ((2, 3, 4), None),
    "checkerboard": ((2, 3, 3), checkerboard((2, 3, 3))),
    "channelwise": ((4, 2, 2), channelwise((4, 2, 2))),
}
shapes = pytest.mark.parametrize(("shape", "mask"), SHAPES.values(), ids=SHAPES)


def data(*shape):
    return 3 * torch.randn(shape, dtype=torch.float64) + 2


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# ------------------------------------------------------------------------------------------------- BatchNorm


@shapes
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_training_forward_against_the_formula(shape, mask, batch):
    f = BatchNorm(shape, mask).double()
    x = data(*batch, *shape)
    y, log_det = f.forward_and_log_det(x)
    changed = torch.ones(shape, dtype=torch.bool) if mask is None else ~mask
    expected, expected_log_det = x.clone(), 0.0
    for c in range(shape[0]):
        if not changed[c].any():
            continue
        values = x[..., c, :, :][..., changed[c]] if len(shape) == 3 else x[..., c]
        mean, var = values.mean(), values.var(correction=0)
        normalized = (x[(..., c, *[slice(None)] * (len(shape) - 1))] - mean) / (var + 1e-4).sqrt()
        target = expected[(..., c, *[slice(None)] * (len(shape) - 1))]
        target.copy_(torch.where(changed[c], normalized, target))
        expected_log_det = expected_log_det - 0.5 * changed[c].sum() * (var + 1e-4).log()
    torch.testing.assert_close(y, expected)
    assert log_det.shape == batch
    torch.testing.assert_close(log_det, torch.as_tensor(expected_log_det).expand(batch))


@shapes
def test_training_inverse_is_exact(shape, mask):
    f = BatchNorm(shape, mask).double()
    f(data(5, *shape))
    x = data(5, *shape)
    y, log_det = f.forward_and_log_det(x)
    before = state(f)
    back, inverse_log_det = f.inverse_and_log_det(y.clone())
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert unchanged(f, before)  # the data direction alone moves the statistics


def test_training_inverse_before_any_forward_uses_the_running_statistics():
    f = BatchNorm((3,)).double()
    f.running_mean.fill_(2.0)
    f.running_var.fill_(9.0)
    fresh = BatchNorm((3,)).double()
    fresh.load_state_dict(f.state_dict())
    y = data(4, 3)
    expected = copy.deepcopy(f).eval().inverse_and_log_det(y)[0]
    torch.testing.assert_close(fresh.inverse_and_log_det(y)[0], expected)


def test_gradients_flow_through_the_statistics():
    f = BatchNorm((2,)).double()
    x = data(5, 2).requires_grad_()

    def loss(y, log_det):
        return (y**3).sum() + log_det.sum()

    got = torch.autograd.grad(loss(*f.forward_and_log_det(x)), x)[0]
    var = x.var(0, correction=0) + 1e-4
    want = torch.autograd.grad(loss((x - x.mean(0)) / var.sqrt(), -0.5 * 5 * var.log()), x)[0]
    torch.testing.assert_close(got, want)


def test_running_statistics_follow_with_momentum():
    f = BatchNorm((2,), momentum=0.3).double()
    x = data(5, 2)
    f.forward_and_log_det(x)
    torch.testing.assert_close(f.running_mean, 0.3 * x.mean(0))
    torch.testing.assert_close(f.running_var, 0.7 + 0.3 * x.var(0, correction=0))
    f.eval()
    y, _ = f.forward_and_log_det(x)
    torch.testing.assert_close(y, (x - f.running_mean) / (f.running_var + 1e-4).sqrt())


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("calls", [1, 3])
def test_statistics_move_once_per_step(cache_size, calls):
    f = BatchNorm((2,)).double()
    x = data(5, 2)
    transform = Chain([f]).with_cache(cache_size).inv
    zeros = torch.zeros(2, dtype=torch.float64)
    dist.TransformedDistribution(dist.Normal(zeros, 1).to_event(1), [transform]).log_prob(x)
    y = transform.inv(x)
    before = state(f)
    for _ in range(calls):
        transform.inv.log_abs_det_jacobian(x, y)
    assert unchanged(f, before)
    if cache_size:  # the second transform.inv(x) above was a second step, since log_prob had used up the memo
        torch.testing.assert_close(f.running_mean, (0.1 + 0.09) * x.mean(0))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_statistics_in_an_image_flow_move_once_per_step(cache_size):
    chain = Chain(realnvp_transforms((1, 4, 4), scales=1, net=resnet)).with_cache(cache_size)
    networks = [m for m in chain.modules() if isinstance(m, nn.BatchNorm2d)]
    base = dist.Normal(torch.zeros(1, 4, 4), 1).to_event(3)
    dist.TransformedDistribution(base, [chain]).log_prob(torch.randn(5, 1, 4, 4))
    first = next(m for m in chain.modules() if isinstance(m, BatchNorm))
    assert first.running_var.ne(1).any()
    assert {int(m.num_batches_tracked) for m in networks} == {1}


@pytest.mark.parametrize("size", [0, 1])
@shapes
def test_small_batches(size, shape, mask):
    f = BatchNorm(shape, mask).double()
    before = state(f)
    with pytest.raises(ValueError, match=f"BatchNorm.*at least 2.*got {size}"):
        f(data(size, *shape))
    assert unchanged(f, before)
    if size:
        with pytest.raises(ValueError, match="got 1"):
            f(data(*shape))
    f.eval()
    assert f(data(size, *shape)).shape == (size, *shape)
    assert f.inv(data(size, *shape)).shape == (size, *shape)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_training_on_data_that_is_not_finite_changes_nothing(bad):
    f = BatchNorm((2,)).double()
    x = data(5, 2)
    x[1, 1] = bad
    before = state(f)
    with pytest.raises(ValueError, match="BatchNorm got NaN or infinite"):
        f(x)
    assert unchanged(f, before)


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        BatchNorm((3,), alternating((4,)))
    with pytest.raises(ValueError, match=r"BatchNorm.*\(2, 2\)"):
        BatchNorm((2, 2))


# -------------------------------------------------------------------------------------------------- ActNorm


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
@pytest.mark.parametrize("explicit", [False, True])
def test_actnorm_starts_by_normalizing_a_batch(shape, batch, explicit):
    f = ActNorm(shape).double()
    x = data(*batch, *shape)
    if explicit:
        f.eval().initialize(x)
    y, log_det = f.forward_and_log_det(x)
    channels = y.reshape(-1, *shape).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    places = torch.Size(shape[1:]).numel()
    torch.testing.assert_close(log_det, (places * f.log_scale.sum()).expand(batch))
    before = state(f)
    f.train()(data(*batch, *shape))
    assert unchanged(f, before)  # once


@pytest.mark.parametrize("how", ["eval", "inverse", "inverse in eval"])
def test_actnorm_is_the_identity_until_then(how):
    f = ActNorm((3,)).double()
    f.train(how == "inverse")
    x = data(6, 3)
    before = state(f)
    assert torch.equal(f(x) if how == "eval" else f.inv(x), x)
    assert unchanged(f, before)
    f.train()(x)
    assert f.initialized


def test_loading_never_initializes_again():
    trained = ActNorm((3,)).double()
    trained(data(6, 3))
    copies = {
        "load": ActNorm((3,)).double(),
        "assign": ActNorm((3,)).double(),
        "deepcopy": copy.deepcopy(trained),
        "pickle": pickle.loads(pickle.dumps(trained)),
        "nested": Flow(StandardNormal(3), [ActNorm((3,)).inv]).double(),
    }
    copies["load"].load_state_dict(trained.state_dict())
    copies["assign"].load_state_dict(trained.state_dict(), assign=True)
    copies["nested"].load_state_dict({f"transforms.0.bijection.{k}": v for k, v in trained.state_dict().items()})
    copies["nested"] = copies["nested"].transforms[0].inv
    for name, other in copies.items():
        other.train()(10 * data(6, 3))
        torch.testing.assert_close(other.shift, trained.shift, msg=name)
        torch.testing.assert_close(other.log_scale, trained.log_scale, msg=name)


def test_loading_a_new_state_forgets_the_initialization():
    f = ActNorm((3,)).double()
    f(data(6, 3))
    f.load_state_dict(ActNorm((3,)).state_dict())
    x = data(6, 3)
    f(x)
    torch.testing.assert_close(f.shift, x.mean(0))


@pytest.mark.parametrize("batch", [1, 5])
def test_a_constant_channel_gives_a_finite_scale(batch):
    f = ActNorm((2, 2, 2))
    x = torch.randn(batch, 2, 2, 2)
    x[:, 1] = 7.0
    y, log_det = f.forward_and_log_det(x)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    assert f.log_scale.isfinite().all()
    assert f.inverse_and_log_det(y)[0].isfinite().all()


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.full((4, 3), torch.nan), torch.tensor([[1.0, 2.0, torch.inf]])])
def test_actnorm_refuses_what_it_cannot_start_from(x):
    f = ActNorm((3,))
    before = state(f)
    for call in (f, f.initialize):
        with pytest.raises(ValueError, match="ActNorm"):
            call(x)
        assert unchanged(f, before)
    f(torch.randn(5, 3))
    assert f.initialized


def test_the_first_step_has_gradients():
    flow = Flow(StandardNormal(3), [ActNorm((3,)).inv])
    flow(torch.randn(6, 3) * 3).mean().backward()
    for p in flow.parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_flow_initialize_in_evaluation_mode_and_only_once():
    flow = Flow(StandardNormal(3), [ActNorm((3,)).inv, ActNorm((3,)).inv]).eval()
    x = 5 + 3 * torch.randn(50, 3)
    flow.initialize(x)
    z = flow.transforms.inv(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    before = state(flow)
    flow.initialize(10 * x)
    assert unchanged(flow, before)
    assert not any(m.training for m in flow.modules())


def test_actnorm_per_position():
    f = ActNorm((2, 3, 4), per_position=True).double()
    x = data(30, 2, 3, 4) * torch.linspace(1, 5, 24).reshape(2, 3, 4)
    y, log_det = f.forward_and_log_det(x)
    assert f.shift.shape == f.log_scale.shape == (2, 3, 4)
    torch.testing.assert_close(y, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, -x.std(0, correction=0).log().sum().expand(30), atol=1e-4, rtol=0)
