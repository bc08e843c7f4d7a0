"""Only the draws of a distribution have its path gradient, and they have it as often as they are scored."""

import pytest
import torch
from pyro import distributions as dist

from pyro_realnvp import Chain, PathGradientDistribution, realnvp_transforms
from pyro_realnvp.testing import randomize

from zoo import mlp


def flow():
    chain = Chain(realnvp_transforms(2, couplings=2, net=mlp)).double()
    randomize(chain)
    return chain


def base():
    return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


def gradient(loss, chain):
    found = torch.autograd.grad(loss, list(chain.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def gradient_by_backward(loss, chain):
    chain.zero_grad()
    loss.backward()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in chain.parameters()]
    )


def test_data_whose_latents_are_still_alive_has_the_ordinary_gradient():
    chain = flow()
    q, plain = PathGradientDistribution(base(), [chain]), dist.TransformedDistribution(base(), [chain])
    x = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    z = chain.inv(x)
    found = gradient_by_backward(q.log_prob(x).mean(), chain)
    assert z.shape == x.shape
    torch.testing.assert_close(found, gradient_by_backward(plain.log_prob(x.detach().clone()).mean(), chain))
    assert found.abs().max() > 1e-3


def test_values_that_the_transform_made_without_the_distribution_have_the_ordinary_gradient():
    chain = flow()
    q, plain = PathGradientDistribution(base(), [chain]), dist.TransformedDistribution(base(), [chain])
    z = torch.randn(5, 2, dtype=torch.float64)
    x = chain(z)
    found = gradient(q.log_prob(x).mean(), chain)
    other = chain(z.clone())
    torch.testing.assert_close(found, gradient(plain.log_prob(other).mean(), chain))


@pytest.mark.parametrize("between", [False, True], ids=["at-once", "after-another-value"])
def test_a_draw_that_is_scored_twice_has_the_same_gradient_both_times(between):
    chain = flow()
    q, plain = PathGradientDistribution(base(), [chain]), dist.TransformedDistribution(base(), [chain])
    x = q.rsample((6,))

    def loss(distribution):
        return (distribution.log_prob(x) + x.square().sum(-1)).mean()

    first = gradient(loss(q), chain)
    if between:
        q.log_prob(torch.randn(6, 2, dtype=torch.float64))
    torch.testing.assert_close(gradient(loss(q), chain), first)
    torch.testing.assert_close(gradient(loss(q), chain), first)
    assert (gradient(loss(plain), chain) - first).abs().max() > 1e-3  # the score makes a difference here
