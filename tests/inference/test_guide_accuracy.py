"""AutoRealNVP with its defaults against posteriors that are known, in the space of the sites.

The settings are the same for every model: ``ClippedAdam({"lr": 5e-3, "lrd": 0.999})`` and 32 vectorised particles, for
as many steps as one quiet thread makes in about a minute. One model alone, with what it reached:

    pytest -m slow -s tests/test_guide_accuracy.py -k banana
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_realnvp import AutoRealNVP, importance_sample

STEPS = 3000
DRAWS = 50_000


@dataclass(frozen=True)
class Case:
    """A model, scalars (S, K) of its sites (S, ...), and the posterior mean (K,) and deviation (K,) of these."""

    model: Callable[[], None]
    scalars: Callable[[dict[str, Tensor]], Tensor]
    mean: Tensor
    deviation: Tensor


def quadrature(log_density: Callable[..., Tensor], *axes: Tensor) -> Tensor:
    """Weights of the points of a grid, flattened; they sum to 1."""
    return log_density(*(x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))).softmax(0)


def weighted(weight: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
    mean = weight @ scalars
    return mean, (weight @ (scalars - mean).square()).sqrt()


def axis(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ conjugate models


def gamma() -> Case:
    """A single latent."""
    y = torch.tensor([1.0, 0.0, 2.0])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(1.0, 0.5))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    posterior = dist.Gamma(torch.tensor([4.0]), 3.5)
    return Case(model, lambda sites: sites["rate"].reshape(-1, 1), posterior.mean, posterior.stddev)


def beta() -> Case:
    """Three coins, one of which never fell on its head."""
    heads, throws = torch.tensor([0.0, 3.0, 9.0]), 10

    def model() -> None:
        with pyro.plate("coins", 3):
            share = pyro.sample("share", dist.Beta(1.0, 1.0))
            pyro.sample("heads", dist.Binomial(throws, share), obs=heads)

    posterior = dist.Beta(1 + heads, 1 + throws - heads)
    return Case(model, lambda sites: sites["share"].reshape(-1, 3), posterior.mean, posterior.stddev)


def dirichlet() -> Case:
    """One category was never seen."""
    counts = torch.tensor([0.0, 3.0, 7.0, 15.0])

    def model() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(4)))
        pyro.sample("counts", dist.Multinomial(25, share), obs=counts)

    posterior = dist.Dirichlet(1 + counts)
    return Case(model, lambda sites: sites["share"], posterior.mean, posterior.stddev)


def regression() -> Case:
    """Two predictors that hardly differ: their coefficients have correlation -0.9999, in units of 100."""
    generator = torch.Generator().manual_seed(1)
    first = 100 * torch.randn(40, generator=generator)
    x = torch.stack([torch.ones(40), first, first + torch.randn(40, generator=generator)], -1)
    y = 26 + 0.5 * first + 2 * torch.randn(40, generator=generator)

    def model() -> None:
        coefficients = pyro.sample("coefficients", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        with pyro.plate("data", 40):
            pyro.sample("y", dist.Normal((x * coefficients).sum(-1), 2.0), obs=y)

    design = x.double()
    covariance = torch.linalg.inv(design.T @ design / 4 + torch.eye(3, dtype=torch.float64) / 100)
    correlation = covariance[1, 2] / (covariance[1, 1] * covariance[2, 2]).sqrt()
    assert correlation < -0.99
    mean, deviation = covariance @ design.T @ y.double() / 4, covariance.diagonal().sqrt()
    return Case(model, lambda sites: sites["coefficients"].reshape(-1, 3), mean, deviation)


# --------------------------------------------------------------------------------------------------- by quadrature


def half_cauchy() -> Case:
    """Location and scale of ten numbers."""
    y = torch.tensor([3.1, -0.4, 5.9, 2.2, 0.7, 9.8, 4.4, 1.5, 2.9, -2.1])

    def model() -> None:
        location = pyro.sample("location", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(location, scale), obs=y)

    def log_density(location: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.exp()
        prior = dist.Normal(0.0, 10.0).log_prob(location) + dist.HalfCauchy(5.0).log_prob(scale) + log_scale
        return prior + dist.Normal(location[:, None], scale[:, None]).log_prob(y).sum(-1)

    axes = axis(-20, 25, 801), axis(-1, 5, 801)
    weight = quadrature(log_density, *axes)
    location, log_scale = torch.cartesian_prod(*axes).T
    return Case(
        model,
        lambda sites: torch.stack([sites["location"].flatten(), sites["scale"].flatten()], -1),
        *weighted(weight, torch.stack([location, log_scale.exp()], -1)),
    )


def lkj() -> Case:
    """The correlations of three variables of known variances."""
    y = torch.tensor([[0.6, 1.1, -0.2], [-1.3, -0.8, 0.9], [0.3, 0.5, 0.4], [1.8, 1.2, -1.1], [-0.7, -1.5, -0.6]])

    def correlations(tril: Tensor) -> Tensor:
        matrix = tril @ tril.mT
        return torch.stack([matrix[..., 1, 0], matrix[..., 2, 0], matrix[..., 2, 1]], -1).reshape(-1, 3)

    def model() -> None:
        tril = pyro.sample("tril", dist.LKJCholesky(3, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=y)

    x = torch.cartesian_prod(*[axis(-4.5, 4.5, 81)] * 3)
    transform = biject_to(constraints.corr_cholesky)
    tril = transform(x)
    log_p = dist.LKJCholesky(3, torch.ones((), dtype=torch.float64)).log_prob(tril)
    log_p = log_p + transform.log_abs_det_jacobian(x, tril)
    scaled = torch.linalg.solve_triangular(tril, y.double().T.expand(len(x), 3, 5), upper=False)
    log_p = log_p - 0.5 * scaled.square().sum((-1, -2)) - 5 * tril.diagonal(dim1=-1, dim2=-2).log().sum(-1)
    truth = weighted(log_p.softmax(0), correlations(tril))
    return Case(model, lambda sites: correlations(sites["tril"]), *truth)


def lkj_scales() -> Case:
    """Correlation and half-Cauchy scales of two variables."""
    y = torch.tensor(
        [[3.0, 0.1], [-6.5, -0.4], [1.5, -0.1], [9.0, 0.5], [-3.5, 0.2], [4.0, 0.3], [-2.0, -0.3], [0.4, 0.2]]
    )

    def model() -> None:
        scale = pyro.sample("scale", dist.HalfCauchy(2.5).expand([2]).to_event(1))
        tril = pyro.sample("tril", dist.LKJCholesky(2, 2.0))
        both = scale.unsqueeze(-1) * tril
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=both), obs=y)

    def log_density(u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        r = w.tanh()
        a, b = y.double()[:, 0, None] / u.exp(), y.double()[:, 1, None] / v.exp()
        square = ((a * a - 2 * r * a * b + b * b) / (1 - r * r)).sum(0)
        prior = dist.HalfCauchy(2.5).log_prob(u.exp()) + dist.HalfCauchy(2.5).log_prob(v.exp()) + u + v
        # LKJ(eta) of two variables: (1 - r^2)^(eta - 1), and dr = (1 - r^2) dw.
        return prior - 0.5 * square - len(y) * (u + v) + (2 - len(y) / 2) * torch.log1p(-r * r)

    axes = axis(-1, 5, 141), axis(-4, 2, 141), axis(-2, 4, 141)
    weight = quadrature(log_density, *axes)
    grid = torch.cartesian_prod(*axes)
    return Case(
        model,
        lambda sites: torch.cat([sites["scale"].reshape(-1, 2), sites["tril"][..., 1, 0].reshape(-1, 1)], -1),
        *weighted(weight, torch.cat([grid[:, :2].exp(), grid[:, 2:].tanh()], -1)),
    )


def nested_plates() -> Case:
    """Cells in groups, with the deviation of each level unknown. Given these, all other latents are Gaussian."""
    groups, cells, noise = 4, 3, 0.5
    generator = torch.Generator().manual_seed(3)
    effect = 1.0 * torch.randn(1, groups, generator=generator)
    y = 2 + effect + 0.7 * torch.randn(cells, groups, generator=generator)
    y = y + noise * torch.randn(2, cells, groups, generator=generator)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        between = pyro.sample("between", dist.HalfNormal(2.0))
        within = pyro.sample("within", dist.HalfNormal(2.0))
        with pyro.plate("groups", groups, dim=-1):
            group = pyro.sample("group", dist.Normal(mean, between))
            with pyro.plate("cells", cells, dim=-2):
                cell = pyro.sample("cell", dist.Normal(group, within))
                with pyro.plate("repeats", 2, dim=-3):
                    pyro.sample("y", dist.Normal(cell, noise), obs=y)

    # x = (mean, groups, cells) = F z with z ~ N(0, diag(...)), and the mean of the repeats of a cell is cell + noise.
    count = 1 + groups + groups * cells
    factor = torch.zeros(count, count, dtype=torch.float64)
    factor[:, 0] = 1
    for j in range(groups):
        factor[1 + j, 1 + j] = 1
        for i in range(cells):
            row = 1 + groups + i * groups + j
            factor[row, [1 + j, row]] = 1
    observed = y.double().mean(0).flatten()
    axes = axis(-5, 3, 161), axis(-4, 2, 161)
    log_between, log_within = torch.cartesian_prod(*axes).T
    spread = torch.ones(len(log_between), count, dtype=torch.float64)
    spread[:, 0] = 5.0
    spread[:, 1 : 1 + groups] = log_between.exp()[:, None]
    spread[:, 1 + groups :] = log_within.exp()[:, None]
    prior = (factor * spread.square()[:, None]) @ factor.T
    cross = prior[:, :, 1 + groups :]
    tril = torch.linalg.cholesky(cross[:, 1 + groups :] + noise**2 / 2 * torch.eye(groups * cells, dtype=torch.float64))
    log_p = dist.MultivariateNormal(torch.zeros(groups * cells, dtype=torch.float64), scale_tril=tril).log_prob(
        observed
    )
    log_p = log_p + dist.HalfNormal(2.0).log_prob(log_between.exp()) + log_between
    log_p = log_p + dist.HalfNormal(2.0).log_prob(log_within.exp()) + log_within
    weight = log_p.softmax(0)
    half = torch.linalg.solve_triangular(tril, cross.mT, upper=False)
    white = torch.linalg.solve_triangular(tril, observed.expand(len(tril), -1).unsqueeze(-1), upper=False)
    given = (half.mT @ white).squeeze(-1)
    variance = prior.diagonal(dim1=1, dim2=2) - half.square().sum(1)
    mean = weight @ given
    deviation = (weight @ (variance + (given - mean).square())).sqrt()
    scales = weighted(weight, torch.stack([log_between.exp(), log_within.exp()], -1))

    def scalars(sites: dict[str, Tensor]) -> Tensor:
        names = ("mean", "group", "cell", "between", "within")
        return torch.cat([sites[name].reshape(len(sites["mean"]), -1) for name in names], -1)

    return Case(model, scalars, torch.cat([mean, scales[0]]), torch.cat([deviation, scales[1]]))


def banana() -> Case:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a.square(), 0.2))

    return Case(
        model,
        lambda sites: torch.stack([sites["a"].flatten(), sites["b"].flatten()], -1),
        torch.tensor([0.0, 1.0]),
        torch.tensor([1.0, (2 + 0.04) ** 0.5]),
    )


CASES = [gamma, beta, dirichlet, regression, half_cauchy, lkj, lkj_scales, nested_plates, banana]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_defaults_find_the_posterior(case: Callable[[], Case]) -> None:
    known = case()
    guide = AutoRealNVP(known.model)
    svi = SVI(known.model, guide, ClippedAdam({"lr": 5e-3, "lrd": 0.999}), Trace_ELBO(32, vectorize_particles=True))
    start = time.process_time()
    for _ in range(STEPS):
        svi.step()
    seconds = time.process_time() - start
    scalars = known.scalars(guide.sample_posterior((DRAWS,))).double()
    of_mean = ((scalars.mean(0) - known.mean) / known.deviation).abs().max().item()
    of_deviation = (scalars.std(0) / known.deviation - 1).abs().max().item()
    k = importance_sample(known.model, guide, num_samples=10_000, parallel=True).pareto_k
    print(
        f"\n{case.__name__}: mean off by {of_mean:.3f} sd, sd by {100 * of_deviation:.1f} %, k-hat {k:.2f}, "
        f"{seconds:.0f} s of one thread"
    )
    assert of_mean <= 0.05
    assert of_deviation <= 0.05
