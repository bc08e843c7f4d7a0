"""Training in two processes is that in one process on the whole batch."""

import copy
import pickle
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from pyro_realnvp import (
    ActNorm,
    BatchNorm,
    Chain,
    ConvNet,
    Flow,
    ResNet,
    StandardNormal,
    alternating,
    glow_transforms,
    realnvp_transforms,
    rebuild,
    recompute,
    synchronize,
)

from zoo import masked, mlp

# multiprocessing forks a process with threads of its own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def build():
    torch.manual_seed(0)
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp))


def step(rank=0, size=1):
    """Gradients and state after one step on every size-th row."""
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    flow = build()
    model = flow if size == 1 else DistributedDataParallel(flow)
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.1)
    (-model(data[rank::size]).mean()).backward()
    gradients = [p.grad.clone() for p in flow.parameters()]
    optimizer.step()
    return gradients, flow.state_dict()


def test_two_processes_agree(ranks):
    (one, state), (other, other_state) = (found["step"] for found in ranks)
    want, _ = step()
    for first, second, gradient in zip(one, other, want, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, gradient)
    assert any(gradient.any() for gradient in one)
    for key in state:
        assert torch.equal(state[key], other_state[key])


STEPS, BATCH = 20, 8


def glow():
    return [rebuild(Chain(glow_transforms((1, 4, 4), levels=1, steps=2, net=partial(ConvNet, hidden=8))))]


def realnvp():
    return [recompute(Chain(realnvp_transforms((1, 4, 4), scales=1, net=partial(ResNet, hidden=4, blocks=1))))]


def vectors():
    mask = alternating((16,))
    layers = [ActNorm((16,)), masked(mask), BatchNorm((16,), mask), masked(~mask), BatchNorm((16,))]
    return [layer.inv for layer in reversed(layers)]


MODELS = {"glow": glow, "realnvp": realnvp, "vectors": vectors}


def losses(name, dtype, rank=0, size=1):
    """The mean loss of every step over all processes, and the state at the end; every process has every size-th row.

    In float64 by Adam. In float32 not: it gives gradients that are zero but for rounding, of a normalization that has
    just been initialised, say, the size of all others, so that not even two orders of the same rows agree. The
    parameters are moved off their start for a like reason: there the first normalization of a ResNet has an offset of
    0, which puts the masked pixels on the kink of the ReLU behind it.
    """
    torch.manual_seed(0)
    transforms = list(MODELS[name]())
    flow = Flow(StandardNormal(transforms[0].event_shape), transforms).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data = torch.rand(STEPS, BATCH, *flow.event_shape, dtype=dtype)
    data = data + data.flip(-1).square()
    model = flow if size == 1 else DistributedDataParallel(synchronize(flow))
    if dtype == torch.float64:
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.SGD(flow.parameters(), lr=1e-2, momentum=0.9)
    found = []
    for batch in data:
        loss = -model(batch[rank::size]).mean() / flow.event_shape.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if size > 1:
            distributed.all_reduce(mean)
        found.append(mean / size)
    return torch.stack(found), flow.state_dict()


def estimate(rank=0, size=1):
    """The mean of seven numbers and its standard error, as the examples collect them."""
    processes = pytest.importorskip("shared.processes").Processes(torch.device("cpu"), rank, size)
    part = processes.part(torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], dtype=torch.float64))
    error = part.std().item() / len(part) ** 0.5
    return processes.estimate(part.mean().item(), error, len(part)), processes.mean(rank + 1.0)


CASES = [*[(name, torch.float32) for name in MODELS], ("realnvp", torch.float64)]


def take_part(rank, folder):
    """Computes all cases as one of two processes."""
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/rendezvous", "timeout": timedelta(seconds=120)}
    distributed.init_process_group("gloo", **meeting, rank=rank, world_size=2)
    try:
        found = {"step": step(rank, 2), **{case: losses(*case, rank, 2) for case in CASES}}
        found["estimate"] = estimate(rank, 2)
    finally:
        distributed.destroy_process_group()
    return found


def be_the_second(_, folder):
    torch.save(take_part(1, folder), f"{folder}/second.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found. The process of the tests is the first: only one more imports everything."""
    folder = tmp_path_factory.mktemp("ranks")
    second = multiprocessing.spawn(be_the_second, (str(folder),), nprocs=1, join=False)
    try:
        first = take_part(0, str(folder))
        while not second.join():
            pass
    finally:
        for process in second.processes:
            process.kill()
    return [first, torch.load(folder / "second.pt")]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_two_processes_have_the_losses_of_one(name, dtype, ranks):
    want, state = losses(name, dtype)
    (got, first), (_, second) = (found[name, dtype] for found in ranks)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert (want - want[0]).abs().max() > 0.01  # it learns
    assert (got - want).abs().max() < tolerance
    for key, value in state.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, atol=10 * tolerance, rtol=10 * tolerance)


def test_estimates_of_the_examples_are_those_of_all_rows(ranks):
    want, _ = estimate()
    for found in ranks:
        got, mean = found["estimate"]
        assert got == pytest.approx(want, rel=1e-12)
        assert mean == 1.5


def test_without_a_process_group_nothing_changes():
    torch.manual_seed(0)
    flow = Flow(StandardNormal((1, 4, 4)), realnvp())
    other, x = synchronize(copy.deepcopy(flow)), torch.randn(6, 1, 4, 4)
    torch.testing.assert_close(other(x), flow(x))
    for one, two in zip(other.state_dict().values(), flow.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two)

    def flags(flow):
        return [module.synchronized for module in flow.modules() if hasattr(module, "synchronized")]

    assert len(flags(flow)) == 20
    assert not any(flags(flow))
    assert all(flags(other))
    assert all(flags(pickle.loads(pickle.dumps(other))))
    assert not any(flags(synchronize(other, enabled=False)))
