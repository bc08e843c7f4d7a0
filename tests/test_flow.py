"""Flow: one Module that owns a base and transforms."""

import copy
import io
import pickle

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import nn
from torch.nn.functional import softplus

from pyro_realnvp import (
    ActNorm,
    DiagonalNormal,
    Flow,
    Logit,
    Scale,
    StandardLogistic,
    StandardNormal,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import mlp, prime, resnet, split


def vector(**kwargs):
    flow = Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp, **kwargs))
    randomize(flow)
    return flow


def image(**kwargs):
    flow = prime(Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), net=resnet, **kwargs)))
    randomize(flow)
    return flow.eval()


FLOWS = {"vector": vector, "image": image, "nice": lambda: Flow(StandardLogistic(3), nice_transforms(3, net=mlp))}
every = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


@every
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_flow_is_its_log_prob(make, batch):
    flow = make()
    x = torch.randn(*batch, *flow.event_shape)
    log_prob = flow(x)
    assert log_prob.shape == batch
    torch.testing.assert_close(log_prob, flow.distribution().log_prob(x.clone()))
    with pyro.validation_enabled(False):
        torch.testing.assert_close(flow(x.clone()), log_prob)
    z, log_det = flow.transforms.inverse_and_log_det(x)
    torch.testing.assert_close(flow.base().log_prob(z) + log_det, log_prob)


@every
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_sample_shapes(make, shape):
    flow = make()
    x = flow.sample(shape)
    assert x.shape == (*shape, *flow.event_shape)
    assert not x.requires_grad
    assert flow.distribution().rsample(shape).requires_grad


@every
def test_state_loads_into_a_fresh_flow_before_any_call(make):
    trained, fresh = make(), make()
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(4, *trained.event_shape)
    torch.testing.assert_close(fresh(x), trained(x.clone()), atol=0, rtol=0)


@every
@pytest.mark.parametrize("used", [False, True])
def test_copies(make, used):
    flow = make()
    x = torch.randn(4, *flow.event_shape)
    y = flow.distribution().rsample((4,)) if used else None
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(other(x), flow(x.clone()), atol=0, rtol=0)
        randomize(other)
        assert not torch.equal(other(x), flow(x))
    assert y is None or y.requires_grad


def test_context():
    flow = vector(context_dim=2)
    context, x = torch.randn(5, 2), torch.randn(5, 3)
    assert flow.sample((4,), context).shape == (4, 5, 3)
    assert flow.distribution(context).batch_shape == (5,)
    log_prob = flow(x, context)
    for index in range(5):
        torch.testing.assert_close(flow(x[index], context[index]), log_prob[index])
    assert (flow(x, context + 1) != log_prob).all()
    assert flow(torch.randn(4, 5, 3), context).shape == (4, 5)
    assert flow(x[0], context).shape == (5,)  # one event under every context


def test_context_maps():
    flow = image(context_shape=(2, 4, 4))
    context = torch.randn(3, 2, 4, 4)
    x = flow.sample((), context)
    assert x.shape == (3, 1, 4, 4)
    assert (flow(x, context) != flow(x, context + 1)).all()


def test_temperature_scales_the_latents():
    flow = vector()
    for temperature in (0.0, 0.5, 1.0, 2.0):
        torch.manual_seed(1)
        x = flow.sample((4,), temperature=temperature)
        torch.manual_seed(1)
        z = temperature * flow.base().sample((4,))
        torch.testing.assert_close(x, flow.transforms(z))
    assert torch.equal(*flow.sample((2,), temperature=0.0).unbind(0))


def test_temperature_with_a_base_that_is_not_centred():
    class Shifted(nn.Module):
        event_shape = torch.Size((2,))

        def forward(self, context=None):
            return dist.Normal(torch.full((2,), 5.0), 1).to_event(1)

    flow = Flow(Shifted(), [Scale((2,))])
    assert torch.equal(flow.sample((3,), temperature=0.0), torch.full((3, 2), 5.0))


def test_temperature_sampling_has_the_density_of_nice_to_the_power():
    # With a constant log-determinant, latents N(0, T^2) have the density p^(1/T^2), normalised.
    flow = Flow(StandardNormal(2), nice_transforms(2, net=mlp))
    randomize(flow)
    temperature = 0.5
    cool = dist.TransformedDistribution(dist.Normal(torch.zeros(2), temperature).to_event(1), [flow.transforms])
    x = flow.sample((6,), temperature=temperature)
    difference = cool.log_prob(x) - flow(x) / temperature**2
    torch.testing.assert_close(difference, difference.mean().expand(6), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", [StandardNormal, StandardLogistic])
def test_bases(base):
    z = torch.randn(5, 1, 2, 2)
    log_prob = base((1, 2, 2))().log_prob(z)
    each = -(z.square() + torch.log(torch.tensor(2 * torch.pi))) / 2
    if base is StandardLogistic:
        each = -softplus(z) - softplus(-z)
    torch.testing.assert_close(log_prob, each.sum((1, 2, 3)))
    assert base(3).event_shape == (3,)
    assert not base(3).state_dict()
    assert base(3).double()().sample().dtype == torch.float64


def test_moving_to_another_dtype():
    flow = vector().double()
    assert flow.sample((2,)).dtype == torch.float64
    assert flow(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64
    flow.float()
    assert flow(flow.sample((2,))).dtype == torch.float32


def test_a_base_with_parameters_and_context():
    class Learned(nn.Module):
        event_shape = torch.Size((3,))

        def __init__(self):
            super().__init__()
            self.loc = nn.Linear(2, 3)

        def forward(self, context=None):
            return dist.Normal(self.loc(context), 1).to_event(1)

    flow = Flow(Learned(), realnvp_transforms(3, couplings=2, net=mlp, context_dim=2))
    context = torch.randn(5, 2)
    assert flow.sample((4,), context).shape == (4, 5, 3)
    flow(torch.randn(5, 3), context).sum().backward()
    assert flow.base.loc.weight.grad.any()


def test_transforms_of_torch_and_of_pixels():
    flow = Flow(StandardNormal((1, 2, 2)), [*realnvp_transforms((1, 2, 2), scales=1, net=resnet), Logit(0.05).inv])
    prime(flow).eval()
    randomize(flow)
    x = flow.sample((100,))
    assert flow.event_shape == (1, 2, 2)
    assert (x > -0.06).all()
    assert (x < 1.06).all()
    assert flow.distribution().support.check(x).all()
    with pytest.raises(ValueError, match="support"):
        flow(x + 2)
    exp = Flow(StandardNormal(2), [split((2,)), torch.distributions.ExpTransform()])
    assert (exp.sample((5,)) > 0).all()


def test_an_event_shape_that_changes_on_the_way():
    flow = Flow(StandardNormal(4), [torch.distributions.ReshapeTransform((4,), (1, 2, 2))])
    assert flow.event_shape == (1, 2, 2)
    assert flow.sample((3,)).shape == (3, 1, 2, 2)
    assert flow(torch.randn(3, 1, 2, 2)).shape == (3,)


def test_pyro_module_registers_every_parameter():
    flow = vector()
    pyro.module("flow", flow)
    assert set(pyro.get_param_store()) == {f"flow$$${name}" for name, _ in flow.named_parameters()}


def test_initialize_then_train():
    flow = Flow(StandardNormal(3), [ActNorm((3,)).inv, split((3,)).inv])
    assert all(m.training for m in flow.modules())
    x = 4 + 2 * torch.randn(64, 3)
    flow.initialize(x)
    assert all(m.training for m in flow.modules())
    norm = flow.transforms[0].inv
    shift = norm.shift.clone()
    flow(x[:7])
    assert torch.equal(norm.shift, shift)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flow(dist.Normal(0, 1), realnvp_transforms(2)), "base Module.*Normal"),
        (lambda: Flow(nn.Linear(1, 1), realnvp_transforms(2)), "base Module.*Linear"),
        (lambda: Flow(StandardNormal(3), realnvp_transforms(2)), r"\(2,\).*\(3,\)"),
        (lambda: Flow(StandardNormal(3), []), "at least one"),
        (lambda: Flow(StandardNormal(3), [torch.distributions.AbsTransform()]), "bijective.*AbsTransform"),
        (lambda: Flow(StandardNormal(3), [split((3,)), split((4,))]), r"\(4,\).*\(3,\)"),
        (lambda: Flow(StandardNormal(3), [3]), "transform.*int"),
        (lambda: vector().sample((2,), temperature=-0.5), "temperature.*-0.5"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_training_finds_a_density():
    torch.manual_seed(0)
    flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=4, net=mlp))
    mix = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-2)
    for _ in range(200):
        loss = -flow(torch.randn(128, 2) @ mix.T + 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(4000, 2) @ mix.T + 1
    truth = dist.MultivariateNormal(torch.ones(2), mix @ mix.T).log_prob(x).mean()
    assert abs((flow(x).mean() - truth).item()) < 0.1
    samples = flow.sample((4000,))
    torch.testing.assert_close(samples.T.cov(), mix @ mix.T, atol=0.6, rtol=0)


@pytest.mark.parametrize("base", [StandardNormal(2), StandardLogistic(2), DiagonalNormal(2)])
def test_truncation_keeps_the_latents_near_and_their_shape(base):
    flow = Flow(base, [Scale((2,)).inv])
    z = flow.sample((20_000,), truncation=0.5)
    each = base().base_dist
    assert (z.abs() <= 0.5 * each.stddev + 1e-5).all()
    # Within the bounds it is the base: compare the distribution function at one place.
    low, at, high = (each.cdf(value * each.stddev) for value in (-0.5, 0.2, 0.5))
    share = (z <= 0.2 * each.stddev).double().mean(0)
    torch.testing.assert_close(share, ((at - low) / (high - low)).double(), atol=0.02, rtol=0)


def test_truncation_and_temperature_together():
    flow = Flow(StandardNormal(2), [Scale((2,)).inv])
    assert flow.sample((1000,), truncation=1.0, temperature=0.1).abs().max() <= 0.1 + 1e-6
    for truncation in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"truncation.*{truncation}"):
            flow.sample((2,), truncation=truncation)
