"""Variational dequantization, and the base that depends on a context."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import SigmoidTransform

from pyro_realnvp import (
    MLP,
    Dequantized,
    DiagonalNormal,
    Flow,
    Logit,
    StandardLogistic,
    StandardNormal,
    realnvp_transforms,
)

NET = partial(MLP, hidden=(16,))
LEVELS = 3


def density() -> Flow:
    flow = Flow(StandardNormal(2), [*realnvp_transforms(2, couplings=2, net=NET), Logit(0.05).inv])
    return randomized(flow)


def dequantizer() -> Flow:
    transforms = realnvp_transforms(2, couplings=2, net=NET, context_dim=2)
    # The sigmoid of a logistic variable is uniform; that of a Gaussian vanishes at the edges, and weighs heavy there.
    return randomized(Flow(StandardLogistic(2), [*transforms, SigmoidTransform()]), std=0.1)


def randomized(flow: Flow, std: float = 0.3) -> Flow:
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return flow.double()


def exact(flow: Flow, k: torch.Tensor, places: int = 200) -> torch.Tensor:
    """log P(k) by the midpoint rule over the cell of k."""
    u = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    grid = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    log_prob = flow(((k[:, None] + grid) / LEVELS).reshape(-1, 2)).reshape(len(k), -1)
    return log_prob.logsumexp(1) - 2 * math.log(places) - 2 * math.log(LEVELS)


def test_the_bound_grows_to_the_exact_probability() -> None:
    flow, q = density(), dequantizer()
    k = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))
    truth = exact(flow, k)
    means = []
    for num_samples in (1, 10, 1000):
        d = Dequantized(flow.distribution(), LEVELS, dequantizer=q, num_samples=num_samples)
        repeats = 8_000 // num_samples
        means.append(d.log_prob(k.expand(repeats, *k.shape)).detach().mean(0))
    assert (means[0] < truth).all()
    assert (means[1] > means[0]).all()
    assert (means[2] - truth).abs().max() < 0.05


def test_a_learned_dequantizer_tightens_the_bound() -> None:
    flow = density()
    k = torch.randint(LEVELS, (64, 2))
    q = Flow(
        StandardNormal(2), [*realnvp_transforms(2, couplings=4, net=NET, context_dim=2), SigmoidTransform()]
    ).double()
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (-Dequantized(flow.distribution(), LEVELS, dequantizer=q).log_prob(k).mean()).backward()
        optimizer.step()
    many = k.expand(200, 64, 2)
    uniform = Dequantized(flow.distribution(), LEVELS).log_prob(many).mean()
    learned = Dequantized(flow.distribution(), LEVELS, dequantizer=q).log_prob(many).mean()
    assert learned > uniform + 0.02
    assert learned < exact(flow, k).mean() + 0.01


def test_it_is_the_elbo_of_a_pyro_guide() -> None:
    flow, q = density(), dequantizer()
    k = torch.randint(LEVELS, (5, 2))

    def model() -> None:
        with pyro.plate("images", 5):
            u = pyro.sample("u", dist.Uniform(torch.zeros(2).double(), 1.0).to_event(1))
            log_p = flow((k + u) / LEVELS) - 2 * math.log(LEVELS)
            pyro.factor("x", log_p)

    def guide() -> None:
        with pyro.plate("images", 5):
            pyro.sample("u", q.condition(k.double() / LEVELS - 0.5))

    torch.manual_seed(3)
    elbo = -Trace_ELBO().differentiable_loss(model, guide)
    torch.manual_seed(3)
    bound = Dequantized(flow.distribution(), LEVELS, dequantizer=q).log_prob(k).sum()
    torch.testing.assert_close(elbo, bound, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(value, [*flow.parameters(), *q.parameters()]) for value in (elbo, bound)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_samples_do_not_use_the_dequantizer() -> None:
    d = Dequantized(density().distribution(), LEVELS, dequantizer=dequantizer())
    assert d.sample((7,)).shape == (7, 2)
    assert d.expand((4,)).log_prob(torch.zeros(4, 2)).shape == (4,)


def test_a_conditional_base() -> None:
    base = DiagonalNormal(2, context_dim=3)
    flow = Flow(base, realnvp_transforms(2, couplings=2, net=NET))
    x, labels = torch.randn(6, 2), torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])]
    torch.testing.assert_close(flow(x, labels), Flow(StandardNormal(2), list(flow.transforms))(x))  # starts as N(0, I)
    torch.nn.init.normal_(base.linear.weight)
    scores = flow(x[:, None], torch.eye(3))
    assert scores.shape == (6, 3)
    assert not torch.allclose(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(flow(x, labels), scores.gather(1, labels.argmax(1, keepdim=True))[:, 0])
    assert flow.sample((4,), torch.eye(3)).shape == (4, 3, 2)
    with pytest.raises(ValueError, match=r"DiagonalNormal needs a context of shape \(3,\)"):
        flow(x)
