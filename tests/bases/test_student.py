"""The base with heavy tails: accuracy, gradients, extremes, and fits of targets that N(0, I) cannot cover."""

import math
from functools import partial

import mpmath
import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, stats
from torch import nn

from pyro_realnvp import (
    MLP,
    Flow,
    PathGradientDistribution,
    Scale,
    StandardNormal,
    StudentTBase,
    effective_sample_size,
    fit,
    pareto_k,
    realnvp_transforms,
)

LOWEST = StudentTBase(1, df=0.5 + 1e-6).df().item()


def exact_log_prob(z, df):
    """log p(z) and its derivatives by z and df, in 60 digits."""
    with mpmath.workdps(60):
        z, df = mpmath.mpf(z), mpmath.mpf(df)

        def log_prob(z, df):
            normalizer = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(mpmath.pi * df) / 2
            return normalizer - (df + 1) / 2 * mpmath.log1p(z * z / df)

        by_z = -(df + 1) * z / (df + z * z)
        by_df = mpmath.diff(lambda df: log_prob(z, df), df)
        return float(log_prob(z, df)), float(by_z), float(by_df)


VALUES = [0.0, 1e-30, 1e-10, 1e-3, 0.5, 1.0, 3.0, 100.0, 1e10, 1e19, 1e20, 1e30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", [LOWEST, 0.7, 1.0, 2.0, 10.0, 29.0, 31.0, 100.0, 1e4, 1e6])
def test_the_density_and_its_gradients_at_values_of_any_size(df, dtype):
    base = StudentTBase(len(VALUES), df=df).to(dtype)
    z = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
    each = base().base_dist
    each.df.retain_grad()
    log_prob = each.log_prob(z)
    log_prob.sum().backward()
    eps = max(torch.finfo(dtype).eps, 2e-15)  # the series for large df is right to 5e-14
    for index, value in enumerate(z.tolist()):
        nu = each.df[index].item()
        exact, by_z, by_df = exact_log_prob(value, nu)
        assert log_prob[index].item() == pytest.approx(exact, rel=30 * eps, abs=30 * eps)
        assert z.grad[index].item() == pytest.approx(by_z, rel=30 * eps, abs=1e-37)
        assert each.df.grad[index].item() == pytest.approx(by_df, rel=100 * eps, abs=30 * eps / min(nu, 1))


@pytest.mark.parametrize("df", [29.999, 30.0, 30.001])
def test_the_two_formulas_of_the_normalizer_meet(df):
    each = StudentTBase(1, df=df).double()().base_dist
    nu = torch.tensor([df], dtype=torch.float64, requires_grad=True)
    log_prob = type(each)(nu).log_prob(torch.zeros(1, dtype=torch.float64))
    exact, _, by_df = exact_log_prob(0.0, df)
    assert log_prob.item() == pytest.approx(exact, abs=1e-13)
    assert torch.autograd.grad(log_prob, nu)[0].item() == pytest.approx(by_df, abs=1e-13)


@pytest.mark.parametrize("df", [0.6, 1.0, 4.0, 10.0, 1000.0])
def test_the_degrees_of_freedom_at_the_start(df):
    base = StudentTBase((2, 2), df=df)
    torch.testing.assert_close(base.df(), torch.full((2, 2), df))
    with torch.no_grad():
        base.raw_df.fill_(-1e30)
    assert (base.df() == 0.5).all()


@pytest.mark.parametrize("df", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_degrees_of_freedom_that_are_refused(df):
    with pytest.raises(ValueError, match=rf"df of StudentTBase must be finite and above 0.5, but got {df}\."):
        StudentTBase(2, df=df)


@pytest.mark.parametrize("df", [LOWEST, 1.0, 5.0, 1e6])
def test_draws_are_those_of_scipy(df):
    z = StudentTBase(1, df=df).double()().sample((100_000,))[:, 0]
    assert stats.kstest(z.numpy(), stats.t(df).cdf).pvalue > 1e-3


def test_two_million_draws_at_the_floor_are_finite_in_single_precision():
    base = StudentTBase(2, df=LOWEST)
    with torch.no_grad():
        base.raw_df.fill_(-1e30)
    each = base().base_dist
    df = torch.full((1_000_000, 2), 0.5, requires_grad=True)
    z = type(each)(df).rsample()
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert z.abs().max() > 1e9  # that often a value is so far away
    assert base.log_prob(z).isfinite().all()
    (gradient,) = torch.autograd.grad(z.sum(), df)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("df", [0.6, 1.0, 3.0, 30.0])
def test_the_gradient_of_an_expectation_by_df(df):
    """Against d/d df of the integral of f(quantile(u; df)) over u, by finite differences of scipy's quantiles."""
    base = StudentTBase(1, df=df).double()

    def function(z):
        return abs(z) / (1 + abs(z)) if isinstance(z, float) else z.abs() / (1 + z.abs())

    def expectation(df):
        quantile = stats.t(df).ppf
        return 2 * integrate.quad(lambda u: function(float(quantile(u))), 0.5, 1, limit=500, epsabs=1e-12)[0]

    step = 1e-3 * df
    exact = (expectation(df + step) - expectation(df - step)) / (2 * step)
    z = base().rsample((400_000,))
    gradients = []
    for part in z.split(4000):
        gradients.append(torch.autograd.grad(function(part).mean(), base.raw_df, retain_graph=True)[0])
    slope = 10 * 10 * -math.expm1(-(df - 0.5) / 10)
    found = torch.cat(gradients) / slope
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - exact) < 4.5 * error
    assert error < 0.03 * abs(exact)


def test_moments_that_there_are():
    each = type(StudentTBase(4)().base_dist)(torch.tensor([0.7, 1.5, 2.5, 6.0]))
    torch.testing.assert_close(each.variance, torch.tensor([math.nan, math.inf, 5.0, 1.5]), equal_nan=True)
    torch.testing.assert_close(each.mean, torch.tensor([math.nan, 0.0, 0.0, 0.0]), equal_nan=True)


def test_the_temperature_multiplies_draws_that_have_no_mean():
    flow = Flow(StudentTBase(2, df=0.9), [Scale((2,))])
    torch.manual_seed(1)
    cool = flow.sample((50,), temperature=0.25)
    torch.manual_seed(1)
    assert torch.equal(cool, 0.25 * flow.sample((50,)))
    assert torch.equal(flow.sample((5,), temperature=0.0), torch.zeros(5, 2))


def test_a_truncation_is_refused():
    with pytest.raises(ValueError, match=r"^StudentTBase has no standard deviation .* truncation=2\.0;[^.]*\.$"):
        Flow(StudentTBase(2), [Scale((2,))]).sample((5,), truncation=2.0)


# ---------------------------------------------------------------------------------------------------------------- fits


def fitted(base, target, *, steps):
    """A flow fitted by reverse KL, with the gradient of the path."""
    net = partial(MLP, hidden=(8,), activation=nn.Tanh)
    flow = Flow(base, realnvp_transforms(base.event_shape[0], couplings=4, net=net))
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        q = PathGradientDistribution(flow.base(), [flow.transforms])
        x = q.rsample((1024,))  # far values are seldom seen, and what the couplings do there is all that is left
        optimizer.zero_grad()
        (q.log_prob(x) - target.log_prob(x)).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
    return flow


@torch.no_grad()
def weights(flow, target):
    x = flow.sample((100_000,))
    return target.log_prob(x) - flow(x)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("df", [1.0, 2.0])
def test_reverse_kl_finds_the_tails(df, dim):
    """Of independent Student-t variables, shifted and scaled: for df = 1 of Cauchy variables."""
    target = dist.StudentT(df, torch.linspace(1, -2, dim), torch.linspace(0.5, 3, dim)).to_event(1)
    heavy = fitted(StudentTBase(dim), target, steps=2000)
    thin = fitted(StandardNormal(dim), target, steps=2000)
    for flow in (heavy, thin):
        w = weights(flow, target)
        ess = effective_sample_size(w) / len(w)
        print(f"{type(flow.base).__name__}({dim}), nu = {df}: k-hat {pareto_k(w):.2f}, ESS {100 * ess:.2f} %", end=", ")
        print(f"KL {-float(w.mean()):.5f}")
    torch.testing.assert_close(heavy.base.df(), torch.full((dim,), df), atol=0.1, rtol=0)
    assert pareto_k(weights(heavy, target)) <= 0.5
    assert effective_sample_size(weights(heavy, target)) > 99_000
    assert pareto_k(weights(thin, target)) > 0.6


def test_maximum_likelihood_finds_the_tails():
    x = dist.StudentT(1.5).sample((4000, 1))
    flow = Flow(StudentTBase(1), realnvp_transforms(1))
    fit(flow, x, steps=600, learning_rate=1e-2, noise=0.0, progress=False)
    assert flow.base.df().item() == pytest.approx(1.5, abs=0.2)
    test = dist.StudentT(1.5).sample((20_000, 1))
    with torch.no_grad():
        assert (dist.StudentT(1.5).log_prob(test).sum(-1) - flow(test)).mean() < 0.01
