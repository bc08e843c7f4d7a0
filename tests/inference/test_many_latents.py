"""A hierarchy of 2,000 latents, exactly known: ``pytest -m slow -s tests/inference/test_many_latents.py``."""

import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_realnvp import AutoRealNVP, fit_guide

COUNTIES = 1996


def households():
    """Draws three to five households in each county: county, floor and measurement of each."""
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(3, 6, (COUNTIES,), generator=generator)
    county = torch.arange(COUNTIES).repeat_interleave(count)
    floor = torch.bernoulli(torch.full((len(county),), 0.5), generator=generator)
    effect = 1.4 + 0.35 * torch.randn(COUNTIES, generator=generator)
    y = effect[county] - 0.7 * floor + 0.75 * torch.randn(len(county), generator=generator)
    return county, floor, y


def model(county, floor, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    between = pyro.sample("between", dist.HalfNormal(5.0))
    within = pyro.sample("within", dist.HalfNormal(5.0))
    with pyro.plate("counties", COUNTIES):
        unit = pyro.sample("unit", dist.Normal(0.0, 1.0))
    effect = pyro.deterministic("effect", mean + between * unit)
    with pyro.plate("households", len(y)):
        pyro.sample("y", dist.Normal(effect[..., county] + slope * floor, within), obs=y)


def exact(county, floor, y, draws=4000):
    """Computes means and deviations (COUNTIES,) of the effects, which are Gaussian given the four other latents.

    Those are drawn from a Gaussian at the mode of their marginal posterior, and weighted.
    """
    floor, y, number = floor.double(), y.double(), len(y)

    def total(value):
        return torch.zeros(COUNTIES, dtype=torch.float64).index_add(0, county, value)

    size, of_y, of_floor = total(torch.ones_like(y)), total(y), total(floor)
    yy, ff, fy = (y * y).sum(), (floor * floor).sum(), (floor * y).sum()

    def log_density(t):
        mean, slope, between, within = t[0], t[1], t[2].exp(), t[3].exp()
        residual = of_y - slope * of_floor - size * mean
        square = yy - 2 * slope * fy + slope**2 * ff - 2 * mean * (of_y - slope * of_floor).sum() + mean**2 * number
        variance = within**2 + size * between**2
        likelihood = -0.5 * (square - (between**2 * residual**2 / variance).sum()) / within**2
        likelihood = likelihood - 0.5 * (2 * (size - 1) * within.log() + variance.log()).sum()
        return likelihood - (mean**2 + slope**2) / 200 - (between**2 + within**2) / 50 + t[2] + t[3]

    t = torch.tensor([1.4, -0.7, -1.0, -0.3], dtype=torch.float64)
    for _ in range(30):  # Newton's method
        gradient = torch.autograd.functional.jacobian(log_density, t)
        hessian = torch.autograd.functional.hessian(log_density, t)
        t = t - torch.linalg.solve(hessian, gradient)
    root = torch.linalg.cholesky(torch.linalg.inv(-hessian))
    z = torch.randn(draws, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = t + 1.15 * z @ root.T
    weight = (torch.stack([log_density(point) for point in points]) + 0.5 * z.square().sum(1)).softmax(0)
    assert 1 / weight.square().sum() > draws / 2
    mean, slope, between, within = points[:, 0, None], points[:, 1, None], points[:, 2:3].exp(), points[:, 3:].exp()
    precision = size / within**2 + 1 / between**2
    given = ((of_y - slope * of_floor) / within**2 + mean / between**2) / precision
    expected = weight @ given
    return expected, (weight @ (1 / precision + given.square()) - expected.square()).sqrt()


@pytest.mark.slow
def test_two_thousand_latents_in_three_minutes():
    pyro.set_rng_seed(0)
    data = households()
    guide = AutoRealNVP(model)
    start = time.process_time()
    report = fit_guide(
        model, guide, *data, progress=False, draws=1000, callback=lambda *_: time.process_time() - start > 150
    )
    seconds = time.process_time() - start
    drawn = guide.sample_posterior((4000,))
    effects = drawn["mean"].reshape(-1, 1) + drawn["between"].reshape(-1, 1) * drawn["unit"].reshape(4000, -1)
    mean, deviation = exact(*data)
    error = ((effects.mean(0) - mean) / deviation).abs().max().item()
    ratio = effects.std(0) / deviation
    count = sum(parameter.numel() for parameter in guide.parameters())
    print(
        f"\n{guide.latent_dim} latents: means off by {error:.3f} sd at most, sd ratios {ratio.min():.2f} to "
        f"{ratio.max():.2f}, {count} parameters, {report.steps} steps, {seconds:.0f} s of one thread\n{report}"
    )
    assert error <= 0.1
    assert seconds <= 180
    assert count < 1000 * guide.latent_dim
