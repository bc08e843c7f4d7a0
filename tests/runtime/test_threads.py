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
fewer_or_all = pytest.mark.parametrize("calls", [FEWER, pytest.param(CALLS, marks=pytest.mark.slow)])


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


def normalized():
    flow = Flow(StandardNormal(2), [split((2,), net=Yielding).inv, BatchNorm((2,)).inv, ActNorm((2,)).inv]).train()
    flow(2 + 3 * torch.randn(64, 2))  # initialises the ActNorm
    return flow


def fit_to(flow, batches):
    """Trains by likelihood, and returns the losses."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = -flow(batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("calls", [CALLS // 10, pytest.param(CALLS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("flows", [1, 2])
def test_a_flow_learns_the_same_beside_a_thread_that_samples_from_it_or_from_another(flows, calls):
    flow = normalized()
    alone, before = copy.deepcopy(flow), copy.deepcopy(flow.state_dict())
    names = [name for name, _ in flow.named_parameters()]
    source = flow if flows == 1 else copy.deepcopy(flow).eval()
    batches = 2 + 3 * torch.randn(calls, 8, 2)

    def sample():
        with torch.no_grad():
            draws = torch.stack([source.sample((2,)) for _ in range(calls)])
            return draws, torch.stack([source(draw) for draw in draws]) if flows == 2 else None

    (draws, log_prob), losses = at_once(sample, lambda: fit_to(flow, batches))
    assert_parameters_are_parameters(flow, names)
    assert draws.isfinite().all()
    if flows == 2:
        with torch.no_grad():
            torch.testing.assert_close(log_prob, source(draws))
    torch.testing.assert_close(losses, fit_to(alone, batches), rtol=0, atol=0)
    for key, value in flow.state_dict().items():
        assert torch.equal(value, alone.state_dict()[key]), f"{key} has moved in another way than without the thread"
    for key in ("running_mean", "running_var"):
        (moved,) = (name for name in before if name.endswith(key))
        assert not torch.equal(flow.state_dict()[moved], before[moved]), f"{moved} has not moved"


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


@pytest.fixture
def _stacks_of_threads(monkeypatch):
    stack = StackOfThread()
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pyro.") and hasattr(module, "_PYRO_STACK"):
            monkeypatch.setattr(module, "_PYRO_STACK", stack)


@fewer_or_all
@pytest.mark.usefixtures("_stacks_of_threads")
def test_neutra_models_of_one_guide_in_two_threads_have_the_right_density(calls):
    guide = AutoRealNVP(normal_model, lambda dim: [split((dim,))], init_scale=0.5)
    guide()
    randomize(guide.get_transform())
    names = [name for name, _ in guide.named_parameters()]
    z = torch.randn(2, calls, 2)
    transform = guide.get_transform()
    with torch.no_grad():
        x, log_det = transform.forward_and_log_det(z)
        expected = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(x) + log_det

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


# ----------------------------------------------------------------------------------------------------------- guides


class GivenDraws(AutoRealNVP):
    """A guide whose draws of the base are given."""

    def get_base_dist(self):
        return Prepared(next(self.prepared)[None]).to_event(1) if hasattr(self, "prepared") else super().get_base_dist()


def skewed_model():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + b, 0.5), obs=torch.tensor(2.0))


def train_guide(guide, draws):
    """Takes a step for each draw, of the ELBO of one particle, and returns the losses."""
    guide.prepared = iter(draws)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3)
    losses = []
    for _ in range(len(draws)):
        optimizer.zero_grad()
        trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(skewed_model, trace)).get_trace()
        loss = trace.log_prob_sum() - model_trace.log_prob_sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("calls", [CALLS // 10, pytest.param(CALLS, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("_stacks_of_threads")
def test_two_guides_learn_in_two_threads_what_each_learns_alone(calls):
    guides = [
        GivenDraws(skewed_model, lambda dim: [split((dim,))], init_scale=0.5, name=name) for name in ("one", "two")
    ]
    for guide in guides:
        guide()
    names = [name for name, _ in guides[0].named_parameters()]
    alone = [copy.deepcopy(guide) for guide in guides]
    draws = torch.randn(2, calls, 2)
    with pyro.validation_enabled(False):
        found = at_once(*(lambda pair=pair: train_guide(*pair) for pair in zip(guides, draws, strict=True)))
        expected = [train_guide(*pair) for pair in zip(alone, draws, strict=True)]
    for guide, other, losses, of_other in zip(guides, alone, found, expected, strict=True):
        assert_parameters_are_parameters(guide, names)
        torch.testing.assert_close(losses, of_other, rtol=0, atol=0)
        for key, value in guide.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    store = pyro.get_param_store()._params
    for guide in guides:
        for key, value in guide.get_transform().named_parameters():
            assert store[f"{guide._pyro_name}.transform$$${key}"] is value


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
