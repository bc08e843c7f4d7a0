"""The base with several modes: its density, the gradients of its draws, and what it learns."""

import copy
import math
from functools import partial

import pytest
import torch
from pyro import distributions as dist

from pyro_realnvp import (
    MLP,
    Flow,
    MixtureBase,
    PathGradientDistribution,
    Scale,
    StandardNormal,
    fit,
    realnvp_transforms,
)
from pyro_realnvp.bases.mixture import DiagonalMixture, _Moving

LOGITS = [0.3, -0.2, 0.5]
LOC = [[1.0, -1.0], [-0.5, 0.8], [-1.5, -1.0]]
LOG_SCALE = [[-0.2, 0.1], [0.3, -0.4], [0.0, 0.2]]


def parameters(dtype=torch.float64, dim=2):
    values = (LOGITS, [row[:dim] for row in LOC], [row[:dim] for row in LOG_SCALE])
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]


def reference(logits, loc, log_scale):
    return dist.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(dist.Normal(loc, log_scale.exp()), 1),
    )


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_the_density_and_moments_are_those_of_torch(batch):
    logits, loc, log_scale = (torch.randn(*batch, *shape) for shape in ((3,), (3, 5), (3, 5)))
    ours, theirs = DiagonalMixture(logits, loc, log_scale), reference(logits, loc, log_scale)
    z = 3 * torch.randn(7, *batch, 5)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    assert ours.mean.shape == ours.variance.shape == (*batch, 5)


def test_events_of_any_shape_are_those_of_a_vector():
    base = MixtureBase((1, 2, 3), 4)
    z = torch.randn(5, 1, 2, 3)
    vector = DiagonalMixture(base.logits, base.loc.flatten(1), base.log_scale.flatten(1))
    torch.testing.assert_close(base().log_prob(z), vector.log_prob(z.flatten(1)))
    assert base().mean.shape == base().variance.shape == (1, 2, 3)
    torch.testing.assert_close(base().variance.flatten(), vector.variance)


def test_far_values_have_finite_densities_and_gradients():
    base = MixtureBase(3, 4)
    z = torch.tensor([[0.0, 1e3, -1e9], [1e15, 0.0, 0.0]], requires_grad=True)
    log_prob = base.log_prob(z)
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), [z, *base.parameters()]):
        assert gradient.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- gradients


def function(z):
    """A smooth function that is neither even nor a sum over the elements."""
    first, last = z[..., 0], z[..., -1]
    return (1.3 * first + 0.4).sin() * (0.7 * last).cos() + 0.3 * first * last.square() / (1 + z.square().sum(-1))


def quadrature(values, dim):
    """The gradient of the expectation of the function, by the rectangle rule on a grid."""
    points = torch.linspace(-9, 9, 1201 if dim == 2 else 20_001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[points] * dim).reshape(-1, dim)
    density = DiagonalMixture(*values).log_prob(grid).exp()
    cell = (points[1] - points[0]) ** dim
    assert float(density.sum().detach() * cell) == pytest.approx(1, abs=1e-9)
    return torch.autograd.grad((density * function(grid)).sum() * cell, values)


@pytest.mark.parametrize(("dim", "dtype"), [(1, torch.float64), (2, torch.float64), (2, torch.float32)])
def test_gradients_of_expectations_against_quadrature(dim, dtype):
    exact = quadrature(parameters(dim=dim), dim)
    values = parameters(dtype, dim)
    gradients = []
    for _ in range(50):
        z = DiagonalMixture(*values).rsample((10_000,))
        gradients.append([g.double() for g in torch.autograd.grad(function(z).mean(), values)])
    for name, each, wanted in zip(("logits", "loc", "log_scale"), zip(*gradients, strict=True), exact, strict=True):
        found = torch.stack(each)
        error = found.std(0) / len(found) ** 0.5
        assert (error < 0.02 * wanted.abs().max()).all(), name
        assert ((found.mean(0) - wanted).abs() < 4.5 * error).all(), name


def test_a_batch_of_mixtures_draws_and_moves_as_each_alone():
    values = [value.detach() for value in parameters()]
    several = [torch.stack([value, value + 0.1]).requires_grad_() for value in values]
    z = DiagonalMixture(*several).expand((3, 2)).rsample((5,))
    assert z.shape == (5, 3, 2, 2)
    together = torch.autograd.grad((z.tanh() * torch.tensor([1.0, 2.0])[:, None]).sum(), several)
    for index in range(2):
        alone = [value[index].detach().requires_grad_() for value in several]
        moving = _Moving.apply(z[:, :, index].detach(), *(value.expand(5, 3, *value.shape) for value in alone))
        found = torch.autograd.grad((moving.tanh() * (1.0 + index)).sum(), alone)
        for one, other in zip(found, together, strict=True):
            torch.testing.assert_close(one, other[index])


def test_weights_do_not_move_what_is_one_component():
    """Equal components: the density depends on no logit."""
    logits = torch.randn(3, requires_grad=True)
    z = DiagonalMixture(logits, torch.zeros(3, 4), torch.zeros(3, 4)).rsample((100,))
    assert torch.autograd.grad(z.square().sum(), logits)[0].abs().max() < 1e-4
    one = torch.zeros(1, requires_grad=True)
    z = DiagonalMixture(one, torch.zeros(1, 4), torch.zeros(1, 4)).rsample((100,))
    assert torch.autograd.grad(z.square().sum(), one)[0] == 0


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_gradients_in_many_dimensions_are_finite(spread):
    base = MixtureBase((3, 16, 16), 5)
    with torch.no_grad():
        base.loc.mul_(spread)
        base.log_scale.add_(torch.randn_like(base.log_scale))
    z = base().rsample((8,))
    assert z.isfinite().all()
    for gradient in torch.autograd.grad(z.sin().sum(), list(base.parameters())):
        assert gradient.isfinite().all()


def test_draws_have_no_second_derivatives():
    base = MixtureBase(2, 3)
    (gradient,) = torch.autograd.grad(base().rsample((5,)).square().sum(), base.loc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_start_is_not_symmetric_and_follows_the_seed():
    torch.manual_seed(3)
    one = MixtureBase(2, 5)
    torch.manual_seed(3)
    other = MixtureBase(2, components=5)
    assert torch.equal(one.loc, other.loc)
    assert len(one.loc.unique(dim=0)) == 5
    assert torch.equal(one().logits.softmax(-1), torch.full((5,), 0.2))
    large = MixtureBase(10_000, 3)
    torch.testing.assert_close(
        large().variance.mean() + large().mean.square().mean(), torch.tensor(1.0), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("components", [0, -1, 1.5, "two", None])
def test_numbers_of_components_that_are_refused(components):
    with pytest.raises(
        ValueError, match=rf"MixtureBase.*components.*got .*{components}|components of MixtureBase.*{components}"
    ):
        MixtureBase(2, components)


def modes():
    """Two modes far from each other, of different width."""
    base = MixtureBase(2, 2)
    with torch.no_grad():
        base.logits.copy_(torch.tensor([0.7, 0.3]).log())
        base.loc.copy_(torch.tensor([[-10.0, 0.0], [10.0, 5.0]]))
        base.log_scale.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.5]]))
    return base


def test_temperature_and_truncation_within_each_component():
    base = modes()
    flow = Flow(base, [Scale((2,))])
    z = flow.sample((20_000,), temperature=0.5)
    for k, share in enumerate((0.7, 0.3)):
        mine = z[(z - base.loc[k]).norm(dim=-1) < 10]
        assert len(mine) / len(z) == pytest.approx(share, abs=0.02)
        torch.testing.assert_close(mine.mean(0), base.loc[k].detach(), atol=0.1, rtol=0)
        torch.testing.assert_close(mine.std(0), 0.5 * base.log_scale[k].exp().detach(), rtol=0.03, atol=0)
    z = flow.sample((20_000,), truncation=1.0)
    steps = (z[:, None] - base.loc) / base.log_scale.exp()
    nearest = steps.abs().amax(-1).min(-1).values
    assert nearest.max() <= 1.0 + 1e-5
    assert nearest.max() > 0.99
    assert flow.sample((20_000,), truncation=1e30, temperature=1.0).isfinite().all()
    assert flow.sample((4,), temperature=0.0, truncation=2.0).shape == (4, 2)


# ------------------------------------------------------------------------------------------------------------ learning


def test_maximum_likelihood_finds_two_modes_that_couplings_cannot_part():
    """In one dimension, where the transform is affine."""
    target = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([[-3.0], [2.0]]), 0.5).to_event(1)
    )
    x, test = target.sample((3000,)), target.sample((20_000,))
    gaps = []
    for base in (MixtureBase(1, 2), StandardNormal(1)):
        flow = Flow(base, realnvp_transforms(1))
        fit(flow, x, steps=800, learning_rate=3e-2, noise=0.0, progress=False)
        with torch.no_grad():
            gaps.append(float((target.log_prob(test) - flow(test)).mean()))
        if isinstance(base, MixtureBase):
            assert sorted(base().logits.softmax(-1).tolist()) == pytest.approx([0.3, 0.7], abs=0.03)
    assert gaps[0] < 0.01
    assert gaps[1] > 0.5


def test_reverse_kl_finds_the_weights():
    """Two modes that are four standard deviations apart; only the logits are wrong at first."""
    target = MixtureBase(2, 2).requires_grad_(False)
    target.logits.copy_(torch.tensor([0.25, 0.75]).log())
    target.loc.copy_(torch.tensor([[-1.5, 0.0], [1.5, 2.5]]))
    target.log_scale.zero_()
    base = copy.deepcopy(target).requires_grad_(True)
    with torch.no_grad():
        base.logits.copy_(torch.tensor([0.6, 0.4]).log())
    identity = Scale((2,)).requires_grad_(False)
    optimizer = torch.optim.Adam(base.parameters(), lr=2e-2)
    for _ in range(300):
        q = PathGradientDistribution(base(), [identity])
        z = q.rsample((256,))
        optimizer.zero_grad()
        (q.log_prob(z) - target().log_prob(z)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(base().logits.softmax(-1), torch.tensor([0.25, 0.75]), atol=0.03, rtol=0)


def test_with_couplings_it_learns_rings_of_modes():
    angle = torch.arange(6) * (2 * math.pi / 6)
    target = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(6)), dist.Normal(2 * torch.stack([angle.cos(), angle.sin()], -1), 0.3).to_event(1)
    )
    x, test = target.sample((3000,)), target.sample((10_000,))
    gaps = []
    for base in (MixtureBase(2, 12), StandardNormal(2)):
        torch.manual_seed(0)
        flow = Flow(base, realnvp_transforms(2, couplings=4, net=partial(MLP, hidden=(16,))))
        fit(flow, x, steps=600, learning_rate=1e-2, noise=0.0, progress=False)
        with torch.no_grad():
            gaps.append(float((target.log_prob(test) - flow(test)).mean()))
    print(f"KL with a mixture {gaps[0]:.3f}, with N(0, I) {gaps[1]:.3f}")
    assert gaps[0] < 0.5 * gaps[1]
