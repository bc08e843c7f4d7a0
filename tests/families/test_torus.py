"""Densities on a torus: a mixture of three correlated von Mises components, learned from draws and from its density.

What is reached, in nats:

    pytest -m slow -s tests/families/test_torus.py
"""

import math
import time
from functools import partial

import pytest
import torch

from pyro_realnvp import (
    MLP,
    Flow,
    MixedBase,
    PathGradientDistribution,
    effective_sample_size,
    pareto_k,
    spline_transforms,
)

PI = math.pi
STEPS = 2000


class Sine:
    """exp(k1 cos a + k2 cos b + r sin a sin b) / C of angles mean + (a, b). Singh, Hnizdo & Demchuk (2002)."""

    def __init__(self, mean, concentration, correlation, cells=1024):
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.concentration = torch.tensor(concentration, dtype=torch.float64)
        self.correlation, self.log_norm = correlation, 0.0
        # Sums over a period converge exponentially.
        self.cells = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 * PI / cells - PI
        log_density = self.log_prob(torch.cartesian_prod(self.cells, self.cells)).reshape(cells, cells)
        self.log_norm = float(log_density.flatten().logsumexp(0)) + 2 * math.log(2 * PI / cells)
        self.marginal = log_density.logsumexp(1).softmax(0)

    def log_prob(self, x):
        away = x - self.mean
        energy = self.concentration * away.cos()
        return energy.sum(-1) + self.correlation * away.sin().prod(-1) - self.log_norm

    def sample(self, count):
        """Draws the first angle in a cell of its marginal, and given it the second, which is a von Mises variable."""
        cell = torch.multinomial(self.marginal, count, replacement=True)
        first = self.cells[cell] + (torch.rand(count, dtype=torch.float64) - 0.5) * 2 * PI / len(self.cells)
        pull = self.correlation * (first - self.mean[0]).sin()
        k = self.concentration[1]
        around = torch.distributions.VonMises(self.mean[1] + torch.atan2(pull, k), torch.hypot(pull, k)).sample()
        return torch.stack([first, torch.remainder(around + PI, 2 * PI) - PI], -1)


class Mixture:
    """Two components lie across the seam of an angle, with correlations 0.7 and -0.6 of what keeps a single mode."""

    def __init__(self):
        self.parts = [
            Sine([2.9, 0.5], [12.0, 8.0], 7.0),
            Sine([-1.0, -2.8], [20.0, 5.0], -6.0),
            Sine([0.8, 2.0], [6.0, 15.0], 0.0),
        ]
        self.weights = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)

    def log_joint(self, x):
        """log of weight times density by component, (S, 3)."""
        return torch.stack([part.log_prob(x.double()) for part in self.parts], -1) + self.weights.log()

    def log_prob(self, x):
        return self.log_joint(x).logsumexp(-1)

    def sample(self, count):
        counts = torch.multinomial(self.weights, count, replacement=True).bincount(minlength=3).tolist()
        x = torch.cat([part.sample(n) for part, n in zip(self.parts, counts, strict=True)])
        return x[torch.randperm(count)].float().clamp(-PI, PI)


def torus():
    net = partial(MLP, hidden=(64, 64))
    return Flow(MixedBase(2, circular=[0, 1]), spline_transforms(2, circular=[0, 1], couplings=4, net=net))


def train(flow, loss):
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    start = time.process_time()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def test_the_target_is_what_it_says():
    target = Mixture()
    grid = torch.cartesian_prod(*2 * [target.parts[0].cells])
    assert target.log_prob(grid).exp().mean().item() * (2 * PI) ** 2 == pytest.approx(1, abs=1e-9)
    x = target.sample(50_000)
    # E[log p] by draws and by the sum over the cells.
    density = target.log_prob(grid).softmax(0)
    expected = density @ target.log_prob(grid)
    found = target.log_prob(x)
    assert abs(found.mean() - expected) < 4 * found.std() / 50_000**0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_density_is_learned_from_draws(seed):
    torch.manual_seed(seed)
    target, flow = Mixture(), torus()
    draws = target.sample(STEPS * 512).split(512)
    seconds = train(flow, lambda step: -flow(draws[step]).mean())
    x = target.sample(20_000)
    with torch.no_grad():
        differences = target.log_prob(x) - flow(x)
        grid = torch.cartesian_prod(*2 * [target.parts[0].cells])
        mass = torch.cat([flow(part.float()).double() for part in grid.split(100_000)]).exp().mean() * (2 * PI) ** 2
    divergence, error = differences.mean().item(), differences.std().item() / 20_000**0.5
    print(f"\nfrom draws: KL(p|q) = {divergence:.4f} +- {error:.4f} nats, {seconds:.0f} s of one core")
    assert divergence <= 0.01
    assert mass.item() == pytest.approx(1, abs=1e-3)
    assert seconds <= 180


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_density_is_learned_from_itself(seed):
    """By the reverse KL, as a guide: every mode is found, and the weights of draws can be used."""
    torch.manual_seed(seed)
    target, flow = Mixture(), torus()
    guide = PathGradientDistribution(flow.base(), [flow.transforms])

    def loss(step):
        x = guide.rsample((512,))
        return (guide.log_prob(x) - target.log_prob(x).float()).mean()

    seconds = train(flow, loss)
    with torch.no_grad():
        x = flow.sample(20_000)
        log_weights = target.log_prob(x) - flow(x)
    shares = target.log_joint(x).softmax(-1).mean(0)
    k, size = pareto_k(log_weights), effective_sample_size(log_weights) / 20_000
    text = ", ".join(f"{share:.2f}" for share in shares.tolist())
    print(
        f"\nfrom itself: KL(q|p) = {-log_weights.mean().item():.4f} nats, k-hat {k:.2f}, effective share {size:.2f}, "
        f"components {text} for 0.40, 0.35, 0.25, {seconds:.0f} s of one core"
    )
    assert (shares >= 0.5 * target.weights).all()
    assert k <= 0.7
