"""Threads that share a flow, or use two flows at the same time, do not disturb each other."""

import copy
import sys
import threading
import time
from collections.abc import MutableSequence

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import nn

from pyro_realnvp import (
    ActNorm,
    Affine,
    AutoRealNVP,
    BatchNorm,
    Chain,
    Flow,
    NeuTra,
    PathGradientDistribution,
    SplitCoupling,
    StandardNormal,
)
from pyro_realnvp._runtime.batch_statistics import statistics_are_held
from pyro_realnvp.testing import randomize

from zoo import split

CALLS = 1000
FEWER = 400  # where a call takes milliseconds


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """Runs each function in a thread of its own, all starting together, and returns what they return."""
    barrier = threading.Barrier(len(functions))
    results = [None] * len(functions)
    errors = []

    def run(index, function):
        try:
            barrier.wait()
            results[index] = function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Yielding(nn.Module):
    """A linear network that lets other threads run in the middle."""

    context_shape = None

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x):
        time.sleep(0)
        return 0.1 * self.linear(x)


def sampled():
    return Flow(StandardNormal(2), [split((2,), net=Yielding).inv, BatchNorm((2,)).inv]).train()


def trained():
    return Flow(StandardNormal(2), [BatchNorm((2,)).inv, ActNorm((2,)).inv]).train()


def tiny(dtype=torch.float32):
    transform = Chain([split((2,)), split((2,), swap=True)]).to(dtype)
    randomize(transform)
    return transform


def assert_parameters_are_parameters(module, names):
    assert [name for name, _ in module.named_parameters()] == names
    for part in module.modules():
        for name, value in part._parameters.items():
            assert value is None or isinstance(value, nn.Parameter), f"{name} is no Parameter any more"
            assert value is None or value.requires_grad


# ------------------------------------------------------------------------------------------------------- statistics


def test_sampling_in_one_thread_does_not_hold_the_statistics_of_another_that_trains():
    other = sampled()
    flow = trained()
    alone = copy.deepcopy(flow)
    batches = 2 + 3 * torch.randn(CALLS, 8, 2)
    norms = [ActNorm((2,)).train() for _ in range(CALLS // 10)]

    def sample():
        for _ in range(CALLS):
            other.sample((2,))
        return statistics_are_held()

    def train():
        with torch.no_grad():
            for index, batch in enumerate(batches):
                flow(batch)
                if index % 10 == 0:
                    norms[index // 10](batch)
        return statistics_are_held()

    assert at_once(sample, train) == [False, False]
    assert not statistics_are_held()
    assert at_once(statistics_are_held) == [False]
    with torch.no_grad():
        for batch in batches:
            alone(batch)
    for key, value in flow.state_dict().items():
        assert torch.equal(value, alone.state_dict()[key]), f"{key} has moved in another way than without the thread"
    assert all(bool(norm.initialized) for norm in norms)
    assert bool(flow.transforms[1].inv.initialized)
    assert flow.transforms[0].inv.running_mean.abs().max() > 0


def test_threads_that_sample_at_the_same_time_leave_no_statistics_held():
    flows = [sampled() for _ in range(4)]

    def sample(flow):
        for _ in range(CALLS // 4):
            flow.sample((2,))
        return statistics_are_held()

    assert at_once(*(lambda flow=flow: sample(flow) for flow in flows)) == [False] * 4
    assert not statistics_are_held()
    norm = ActNorm((2,)).train()
    norm(torch.randn(8, 2))
    assert bool(norm.initialized)


# ---------------------------------------------------------------------------------------------------- path gradient


class Prepared(dist.Normal):
    """A standard normal whose draws are given."""

    def __init__(self, draws):
        super().__init__(torch.zeros(2, dtype=draws.dtype), 1.0, validate_args=False)
        self.draws = iter(draws)

    def rsample(self, sample_shape=()):
        return next(self.draws)


def path_gradients(transform, draws):
    parameters = list(transform.parameters())
    q = PathGradientDistribution(Prepared(draws).to_event(1), [transform], validate_args=False)
    found = []
    for _ in range(len(draws)):
        x = q.rsample((4,))
        loss = (q.log_prob(x) + x.square().sum(-1)).mean()
        gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in gradient]))
    return torch.stack(found)


def test_threads_that_take_the_path_gradient_of_one_transform_get_the_gradients_of_their_own_draws():
    transform = Chain([SplitCoupling((2,), nn.Linear(1, 2), Affine())]).double()
    names = [name for name, _ in transform.named_parameters()]
    draws = torch.randn(2, FEWER, 4, 2, dtype=torch.float64)
    found = at_once(*(lambda own=own: path_gradients(transform, own) for own in draws))
    assert_parameters_are_parameters(transform, names)
    for own, gradients in zip(draws, found, strict=True):
        torch.testing.assert_close(gradients[::20], path_gradients(copy.deepcopy(transform), own[::20]))


def test_threads_that_train_one_transform_by_its_path_gradient_add_up_in_its_parameters():
    transform = tiny(torch.float64)
    names = [name for name, _ in transform.named_parameters()]

    def train(seed):
        draws = torch.randn(FEWER // 8, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        q = PathGradientDistribution(Prepared(draws).to_event(1), [transform], validate_args=False)
        for _ in range(len(draws)):
            x = q.rsample((4,))
            (q.log_prob(x) + x.square().sum(-1)).mean().backward()

    at_once(*(lambda seed=seed: train(seed) for seed in range(2)))
    assert_parameters_are_parameters(transform, names)
    found = [parameter.grad.clone() for parameter in transform.parameters()]
    transform.zero_grad()
    for seed in range(2):
        train(seed)
    for gradient, parameter in zip(found, transform.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


# ----------------------------------------------------------------------------------------------------------- NeuTra


class StackOfThread(MutableSequence):
    """Pyro has one stack of handlers for a process; this one has one for each thread."""

    def __init__(self):
        self.local = threading.local()

    @property
    def items(self):
        return self.local.__dict__.setdefault("items", [])

    def __getitem__(self, index):
        return self.items[index]

    def __setitem__(self, index, value):
        self.items[index] = value

    def __delitem__(self, index):
        del self.items[index]

    def __len__(self):
        return len(self.items)

    def insert(self, index, value):
        self.items.insert(index, value)


def normal_model():
    pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_neutra_models_of_one_guide_in_two_threads_have_the_right_density(monkeypatch):
    guide = AutoRealNVP(normal_model, lambda dim: [split((dim,))], init_scale=0.5)
    guide()
    randomize(guide.get_transform())
    names = [name for name, _ in guide.named_parameters()]
    z = torch.randn(2, FEWER, 2)
    transform = guide.get_transform()
    with torch.no_grad():
        x, log_det = transform.forward_and_log_det(z)
        expected = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(x) + log_det
    stack = StackOfThread()
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pyro.") and hasattr(module, "_PYRO_STACK"):
            monkeypatch.setattr(module, "_PYRO_STACK", stack)

    def run(own):
        neutra = NeuTra(normal_model, guide)
        found = []
        for value in own:
            conditioned = poutine.condition(neutra, data={"_neutra_latent": value})
            found.append(poutine.trace(conditioned).get_trace().log_prob_sum().detach())
        return torch.stack(found)

    with pyro.validation_enabled(False):
        found = at_once(*(lambda own=own: run(own) for own in z))
    assert_parameters_are_parameters(guide, names)
    torch.testing.assert_close(torch.stack(found), expected)


# ------------------------------------------------------------------------------------------------- what is remembered


def test_threads_that_score_the_same_tensor_each_have_a_graph_of_their_own():
    flow = Flow(StandardNormal(2), [split((2,)).inv])
    randomize(flow)
    x = torch.randn(3, 2)
    parameters = list(flow.parameters())
    expected = torch.autograd.grad(flow(x).mean(), parameters)

    def score():
        q = flow.distribution()
        for _ in range(FEWER // 4):
            found = torch.autograd.grad(q.log_prob(x).mean(), parameters)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)

    with pyro.validation_enabled(False):
        at_once(*[score] * 4)


def test_threads_that_share_a_flow_score_their_own_values_and_draws():
    flow = Flow(StandardNormal(2), [split((2,)).inv])
    randomize(flow)

    def draw_and_score(seed):
        values = torch.randn(FEWER, 3, 2, generator=torch.Generator().manual_seed(seed))
        pairs = []
        q = flow.distribution()
        with torch.no_grad():
            for value in values:
                pairs.append((value, q.log_prob(value)))
                draw = q.rsample((3,))
                pairs.append((draw, q.log_prob(draw)))
        return pairs

    with pyro.validation_enabled(False):
        found = at_once(*(lambda seed=seed: draw_and_score(seed) for seed in range(2)))
    for pairs in found:
        x, log_prob = (torch.stack(part) for part in zip(*pairs, strict=True))
        with torch.no_grad():
            torch.testing.assert_close(log_prob, flow(x), rtol=1e-4, atol=1e-4)
