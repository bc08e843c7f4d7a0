"""A result is remembered only where parameters and buffers tell everything that it depends on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pyro_realnvp import Affine, Chain, Flow, SplitCoupling, StandardNormal


class Counted(nn.Module):
    """Counts how often a network runs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x):
        self.calls += 1
        return self.network(x)


class Shifted(nn.Module):
    """A parametrization that depends on a number which is no parameter."""

    def __init__(self):
        super().__init__()
        self.shift = 0.0

    def forward(self, weight):
        return weight + self.shift


def coupling(network):
    return SplitCoupling((2,), network, Affine())


def bayesian():
    linear = PyroModule[nn.Linear](1, 2)
    linear.weight = PyroSample(dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))
    return linear


def calls_of_a_draw_and_its_score(network):
    """Returns how often the network runs for a draw and then for its density."""
    flow = Flow(StandardNormal(2), [coupling(counted := Counted(network)).inv])
    q = flow.distribution()
    x = q.rsample((3,))
    assert counted.calls == 1
    q.log_prob(x)
    return counted.calls


# ---------------------------------------------------------------------------------------------------- sites of Pyro


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_weights_that_are_sample_sites_are_drawn_anew_in_every_trace(inverse):
    chain = Chain([coupling(bayesian())])
    transform = chain.inv if inverse else chain
    x = torch.randn(3, 2)
    results = []  # alive, and with them what might be remembered
    for value in (torch.ones(2, 1), torch.full((2, 1), -0.5), torch.ones(2, 1)):
        conditioned = poutine.condition(lambda: transform(x), data={"weight": value})
        trace = poutine.trace(conditioned).get_trace()
        assert "weight" in trace.stochastic_nodes or "weight" in trace.observation_nodes
        results.append(trace.nodes["_RETURN"]["value"])
    assert not torch.allclose(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_two_traces_draw_two_weights():
    chain = Chain([coupling(bayesian())])
    x = torch.randn(3, 2)
    traces = [poutine.trace(lambda: chain(x)).get_trace() for _ in range(2)]
    assert all("weight" in trace.stochastic_nodes for trace in traces)
    one, other = (trace.nodes["_RETURN"]["value"] for trace in traces)
    assert not torch.equal(one, other)


def test_nuts_samples_the_weights_of_a_conditioner():
    chain = Chain([coupling(bayesian())])
    x, target = torch.randn(6, 2), torch.randn(6, 2)
    kept = []

    def model():
        kept.append(chain(x))
        pyro.sample("y", dist.Normal(kept[-1], 1.0).to_event(2), obs=target)

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    weights = mcmc.get_samples()["weight"]
    assert weights.shape == (5, 2, 1)
    assert len(weights.unique(dim=0)) > 1


def test_a_constrained_parameter_of_pyro_is_not_remembered():
    linear = PyroModule[nn.Linear](1, 2)
    linear.weight = PyroParam(torch.ones(2, 1), constraint=dist.constraints.positive)
    assert calls_of_a_draw_and_its_score(linear) > 1


# ----------------------------------------------------------------------------------------- hooks and parametrizations


def test_a_network_with_a_forward_hook_runs_again():
    linear = nn.Linear(1, 2)
    linear.register_forward_hook(lambda module, args, out: out + 1)
    assert calls_of_a_draw_and_its_score(linear) > 1


def test_a_network_with_a_forward_pre_hook_runs_again():
    linear = nn.Linear(1, 2)
    linear.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert calls_of_a_draw_and_its_score(linear) > 1


def test_what_a_hook_adds_is_seen_when_it_changes():
    number = [0.0]
    linear = nn.Linear(1, 2)
    linear.register_forward_hook(lambda module, args, out: out + number[0])
    chain = Chain([coupling(linear)])
    x = torch.randn(3, 2)
    before = chain(x)
    number[0] = 1.0
    assert not torch.allclose(chain(x), before)


def test_a_custom_parametrization_is_not_remembered():
    linear = nn.Linear(1, 2)
    shifted = Shifted()
    parametrize.register_parametrization(linear, "weight", shifted)
    assert calls_of_a_draw_and_its_score(linear) > 1
    chain = Chain([coupling(linear)])
    x = torch.randn(3, 2)
    before = chain(x)
    shifted.shift = 1.0
    assert not torch.allclose(chain(x), before)


def test_a_plain_network_and_one_with_weight_normalization_run_once():
    assert calls_of_a_draw_and_its_score(nn.Linear(1, 2)) == 1
    assert calls_of_a_draw_and_its_score(parametrizations.weight_norm(nn.Linear(1, 2))) == 1


def test_a_change_under_weight_normalization_is_seen():
    linear = parametrizations.weight_norm(nn.Linear(1, 2))
    chain = Chain([coupling(linear)])
    x = torch.randn(3, 2)
    before = chain(x)
    with torch.no_grad():
        linear.parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(chain(x), before)
