"""One training step in two processes gives both the gradients of the whole batch."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from pyro_realnvp import Flow, StandardNormal, realnvp_transforms

from zoo import mlp


def build():
    torch.manual_seed(0)
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp))


def step(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    data = torch.randn(8, 2)
    flow = build()
    model = DistributedDataParallel(flow)
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.1)
    (-model(data[4 * rank : 4 * rank + 4]).mean()).backward()
    gradients = [p.grad.clone() for p in flow.parameters()]
    optimizer.step()
    torch.save((gradients, flow.state_dict()), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # multiprocessing forks a process with threads of its own
def test_two_processes_agree(tmp_path):
    multiprocessing.spawn(step, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    data = torch.randn(8, 2)
    flow = build()
    (-flow(data).mean()).backward()
    (one, state), (other, other_state) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for first, second, p in zip(one, other, flow.parameters(), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, p.grad)
    assert any(gradient.any() for gradient in one)
    for key in state:
        assert torch.equal(state[key], other_state[key])
