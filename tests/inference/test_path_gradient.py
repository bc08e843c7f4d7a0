"""The gradient along the path of the draws where it is one, the total gradient where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

from pyro_realnvp import Affine, AutoRealNVP, Chain, Elementwise, realnvp_transforms
from pyro_realnvp.inference.path_gradient import PathGradientDistribution
from pyro_realnvp.testing import randomize

from zoo import mlp

small = partial(realnvp_transforms, couplings=2, net=mlp)


def flow(dim: int = 2) -> Chain:
    chain = Chain(small(dim)).double()
    randomize(chain)
    return chain


def base(dim: int = 2) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim, dtype=torch.float64), 1.0).to_event(1)


def both(transform: Chain) -> tuple[PathGradientDistribution, dist.TransformedDistribution]:
    dim = transform.event_shape[0]
    return PathGradientDistribution(base(dim), [transform]), dist.TransformedDistribution(base(dim), [transform])


def gradient(loss: Tensor, transform: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(transform.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def target(x: Tensor) -> Tensor:
    """An unnormalised log-density."""
    return -0.5 * (x - 0.5).square().sum(-1) - 0.1 * x.pow(4).sum(-1)


def test_the_value_is_the_density() -> None:
    with_path, plain = both(flow())
    x = with_path.rsample((7,))
    torch.testing.assert_close(with_path.log_prob(x), plain.log_prob(x.detach().clone()))
    assert with_path.log_prob(x[0]).shape == ()


def test_the_same_in_expectation_with_less_noise_near_the_target() -> None:
    """Of the same draws: the path gradient less the total one has mean zero."""
    transform = flow()
    with_path, plain = both(transform)
    differences = []
    for _ in range(200):
        state = torch.get_rng_state()
        x = with_path.rsample((100,))
        one = gradient((with_path.log_prob(x) - target(x)).mean(), transform)
        torch.set_rng_state(state)
        x = plain.rsample((100,))
        other = gradient((plain.log_prob(x) - target(x)).mean(), transform)
        differences.append(one - other)
    difference = torch.stack(differences)
    error = difference.std(0) / len(differences) ** 0.5
    score = difference.std(0) > 1e-9
    assert score.sum() > 20
    assert (difference.mean(0).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(("shift", "log_scale"), [(0.0, 0.0), (0.7, -0.4), (-1.5, 0.5)])
def test_against_the_gradient_of_the_divergence_of_gaussians(shift: float, log_scale: float) -> None:
    """KL(N(m, e^2s) | N(0, 1)) = (m^2 + e^2s - 1) / 2 - s has the gradient (m, e^2s - 1), zero at (0, 0)."""
    affine = Elementwise((1,), Affine(nn.Identity())).double()
    transform = Chain([affine])
    with torch.no_grad():
        affine.theta.copy_(torch.tensor([shift, log_scale]))  # type: ignore[union-attr]
    with_path, _ = both(transform)
    x = with_path.rsample((100_000,))
    found = gradient((with_path.log_prob(x) + 0.5 * x.square().sum(-1)).mean(), transform)
    scale = torch.tensor(2 * log_scale, dtype=torch.float64).exp()
    expected = torch.stack([torch.tensor(shift, dtype=torch.float64), scale - 1])
    # Exactly zero at the target; elsewhere to the error of the mean of 100,000 draws.
    tolerance = 1e-12 if shift == log_scale == 0 else 0.03
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_its_draws_alone_have_it() -> None:
    """What comes from elsewhere, and what is left of draws without their path, has the total gradient: else it would
    have none at all, and maximum likelihood would learn nothing.
    """
    transform = flow()
    with_path, plain = both(transform)
    own = with_path.rsample((5,))
    for x in (torch.randn(5, 2, dtype=torch.float64), own.detach(), with_path.sample((5,)), own.clone()):
        leaf = x.detach().requires_grad_()
        for value in (x.detach(), leaf):
            found = gradient(with_path.log_prob(value).mean(), transform)
            torch.testing.assert_close(found, gradient(plain.log_prob(value.clone()).mean(), transform))
            assert found.abs().max() > 1e-3


@pytest.mark.parametrize(
    "loss",
    [
        lambda log_q, x: (torch.arange(6.0, dtype=torch.float64) * log_q).sum(),
        lambda log_q, x: (target(x) - log_q).logsumexp(0),
        lambda log_q, x: log_q[0],
    ],
)
def test_weighted_draws_have_the_total_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    transform = flow()
    found = []
    for distribution in both(transform):
        torch.manual_seed(2)
        x = distribution.rsample((6,))
        found.append(gradient(loss(distribution.log_prob(x), x), transform))
    torch.testing.assert_close(*found)


def test_several_backward_passes() -> None:
    transform = flow()
    with_path, _ = both(transform)
    x = with_path.rsample((6,))
    loss = (with_path.log_prob(x) - target(x)).mean()
    one, two = (torch.autograd.grad(loss, list(transform.parameters()), retain_graph=True) for _ in range(2))
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left, right)


# ------------------------------------------------------------------------------------------------- in Pyro's bounds


def gaussian() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("three", 3):
        pyro.sample("b", dist.Normal(0.0, 1.0))


def shifted() -> None:
    a = pyro.sample("a", dist.Normal(0.5, 1.0))
    with pyro.plate("three", 3):
        pyro.sample("b", dist.Normal(a, 0.7))


def exact(model: Callable[[], None]) -> AutoRealNVP:
    start = {"a": torch.tensor(0.0), "b": torch.zeros(3)}
    guide = AutoRealNVP(model, small, init_loc_fn=init_to_value(values=start), init_scale=1.0)
    guide.initialize()
    return guide


class Plain(AutoRealNVP):
    """With the density that every other guide has."""

    def get_posterior(self, *args: object, **kwargs: object) -> dist.TransformedDistribution:
        return dist.TransformedDistribution(self.get_base_dist(), [self.get_transform()])


def of_bound(guide: AutoRealNVP, elbo: Trace_ELBO | RenyiELBO, model: Callable[[], None]) -> Tensor:
    pyro.set_rng_seed(5)
    guide.zero_grad()
    elbo.loss_and_grads(model, guide)
    return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])


vectorized = partial(Trace_ELBO, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_zero_at_the_posterior(scale: float) -> None:
    model = pyro.poutine.scale(gaussian, scale)
    guide = exact(model)
    scaled = pyro.poutine.scale(guide, scale)
    pyro.set_rng_seed(5)
    vectorized(num_particles=8).loss_and_grads(model, scaled)
    grads = torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])
    assert len(grads) > 20
    assert grads.abs().max() < 1e-5
    # With the score, the same draws have a gradient.
    guide.__class__ = Plain
    assert of_bound(guide, vectorized(num_particles=8), gaussian).abs().max() > 0.1


BOUNDS: dict[str, Callable[[], Trace_ELBO | RenyiELBO]] = {
    "one": Trace_ELBO,
    "one-vectorized": partial(vectorized, num_particles=1),
    "several": partial(Trace_ELBO, num_particles=3),
    "iwae": partial(RenyiELBO, alpha=0, num_particles=6, vectorize_particles=True, max_plate_nesting=1),
    "renyi": partial(RenyiELBO, alpha=0.5, num_particles=6, vectorize_particles=True, max_plate_nesting=1),
    "iwae-one-by-one": partial(RenyiELBO, alpha=0, num_particles=3),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_with_the_total_gradient(bound: str) -> None:
    guide = exact(shifted)
    randomize(guide.get_transform())
    found = of_bound(guide, BOUNDS[bound](), shifted)
    guide.__class__ = Plain
    torch.testing.assert_close(found, of_bound(guide, BOUNDS[bound](), shifted))
    assert found.abs().max() > 1e-2


def test_elbo_of_vectorized_particles_has_the_path_gradient() -> None:
    guide = exact(shifted)
    randomize(guide.get_transform())
    found = of_bound(guide, vectorized(num_particles=2000), shifted)
    guide.__class__ = Plain
    other = of_bound(guide, vectorized(num_particles=2000), shifted)
    assert (found - other).abs().max() > 1e-4
    assert torch.cosine_similarity(found, other, dim=0) > 0.98
