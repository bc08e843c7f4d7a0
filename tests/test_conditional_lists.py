"""Transforms with and without a context stand in one list."""

import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import ConditionalTransformedDistribution
from torch.distributions import AffineTransform

from pyro_realnvp import (
    Chain,
    Conditioned,
    Flow,
    InvertibleConv1x1,
    Permute,
    Scale,
    StandardNormal,
    glow_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import mlp


def base():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def transforms():
    without = realnvp_transforms(2, couplings=2, net=mlp)
    with_context = realnvp_transforms(2, couplings=2, net=mlp, context_shape=3)
    for each in (*without, *with_context):
        randomize(each)
    return without, with_context


@pytest.mark.parametrize("order", [1, -1], ids=["without-first", "with-first"])
def test_a_conditional_distribution_conditions_those_that_take_a_context(order):
    without, with_context = transforms()
    parts = [*without, *with_context][::order]
    context, x = torch.randn(5, 3), torch.randn(5, 2)
    q = ConditionalTransformedDistribution(base(), parts).condition(context)
    z, log_det = x, torch.zeros(5)
    for part in reversed(parts):
        z, each = part.inverse_and_log_det(z, context if part in with_context else None)
        log_det = log_det + each
    expected = base().log_prob(z) + log_det
    torch.testing.assert_close(q.log_prob(x), expected)
    assert q.rsample().shape == (5, 2)
    other = ConditionalTransformedDistribution(base(), parts).condition(context + 1)
    assert not torch.allclose(other.log_prob(x), expected)


def test_a_list_without_any_context_ignores_one():
    without, _ = transforms()
    x = torch.randn(5, 2)
    q = ConditionalTransformedDistribution(base(), without).condition(torch.randn(5, 3))
    torch.testing.assert_close(q.log_prob(x), dist.TransformedDistribution(base(), without).log_prob(x.clone()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: realnvp_transforms(2, couplings=1, net=mlp)[0],
        lambda: Scale((2,)),
        lambda: Permute((2,), [1, 0]),
        lambda: InvertibleConv1x1((2,)),
        lambda: Chain(realnvp_transforms(2, couplings=2, net=mlp)),
        lambda: Chain(glow_transforms(2, steps=1, net=mlp)).inv,
    ],
)
def test_a_bijection_without_a_context_ignores_one(make):
    bijection = make().eval()
    conditioned = bijection.condition(torch.randn(5, 3))
    assert not isinstance(conditioned, Conditioned)
    x = torch.randn(5, 2)
    torch.testing.assert_close(conditioned(x), bijection(x.clone()))
    assert conditioned.forward_shape((2,)) == (2,)


def test_a_flow_without_any_context_refuses_one():
    without, _ = transforms()
    flow = Flow(StandardNormal(2), without)
    context = torch.randn(5, 3)
    for call in (lambda: flow(torch.randn(5, 2), context), lambda: flow.condition(context)):
        with pytest.raises(ValueError, match=r"without a context.*\(5, 3\)") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match="without a context"):
        flow.sample((2,), context)


@pytest.mark.parametrize("order", [1, -1], ids=["without-first", "with-first"])
def test_a_flow_of_a_mixed_list(order):
    without, with_context = transforms()
    parts = [*without, AffineTransform(0.5, 2.0), Permute((2,), [1, 0]), *with_context][::order]
    flow = Flow(StandardNormal(2), parts)
    context, x = torch.randn(5, 3), torch.randn(5, 2)
    log_prob = flow(x, context)
    torch.testing.assert_close(flow.condition(context).log_prob(x.clone()), log_prob)
    q = ConditionalTransformedDistribution(base(), list(flow.transforms)).condition(context)
    torch.testing.assert_close(q.log_prob(x.clone()), log_prob)
    assert flow.sample((4,), context).shape == (4, 5, 2)
    with pytest.raises(ValueError, match="needs a context"):
        flow(x)
