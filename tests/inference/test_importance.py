"""Importance weights are exact on models with known posteriors; k-hat agrees with ArviZ and with known tails."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormalizingFlow
from torch import Tensor

from pyro_realnvp import (
    Chain,
    ImportanceSamples,
    effective_sample_size,
    importance_sample,
    pareto_k,
    pareto_k_spread,
    pareto_k_threshold,
    pareto_smooth,
    realnvp_transforms,
)

PARALLEL = pytest.mark.parametrize("parallel", [False, True])


# ---------------------------------------------------------------------------------------------------- of the traces


def conjugate(y: Tensor) -> None:
    """Per row of y (R, N): a normal mean under N(0, 1), with its noise known; and beside them a Beta-Bernoulli."""
    rate = pyro.sample("rate", dist.Beta(y.new_tensor(2.0), y.new_tensor(3.0)))
    with pyro.plate("coins", 4, dim=-1):
        pyro.sample("heads", dist.Bernoulli(rate), obs=y.new_tensor([1.0, 0.0, 1.0, 1.0]))
    with pyro.plate("rows", y.shape[0], dim=-2):
        mean = pyro.sample("mean", dist.Normal(y.new_tensor(0.0), 1.0))
        with pyro.plate("columns", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def exact_posterior(y: Tensor) -> None:
    """The posterior of :func:`conjugate`, in the space of its sites."""
    pyro.sample("rate", dist.Beta(y.new_tensor(5.0), y.new_tensor(4.0)))
    precision = 1 + y.shape[1] / 0.25
    with pyro.plate("rows", y.shape[0], dim=-2):
        pyro.sample("mean", dist.Normal(y.sum(-1, keepdim=True) / 0.25 / precision, precision**-0.5))


def log_evidence(y: Tensor) -> float:
    columns = y.shape[1]
    covariance = 0.25 * torch.eye(columns, dtype=y.dtype) + 1
    normal = dist.MultivariateNormal(torch.zeros(columns, dtype=y.dtype), covariance).log_prob(y).sum()

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return float(normal) + log_beta(5, 4) - log_beta(2, 3)


@pytest.fixture
def y() -> Tensor:
    return torch.randn(3, 2, dtype=torch.float64)


@PARALLEL
def test_an_exact_guide_has_the_evidence_as_every_weight(y: Tensor, parallel: bool) -> None:
    draws = importance_sample(conjugate, exact_posterior, y, num_samples=50, parallel=parallel)
    torch.testing.assert_close(draws.log_weights, y.new_full((50,), log_evidence(y)), rtol=0, atol=1e-11)
    assert {name: value.shape for name, value in draws.samples.items()} == {"rate": (50,), "mean": (50, 3, 1)}
    assert draws.log_evidence == pytest.approx(log_evidence(y), abs=1e-11)
    assert draws.effective_sample_size == pytest.approx(50, abs=1e-9)
    assert draws.pareto_k == -math.inf


@PARALLEL
@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoDiagonalNormal, AutoNormalizingFlow])
def test_weights_of_an_autoguide(y: Tensor, kind: type, parallel: bool) -> None:
    """Against the densities written out: those of a Normal in the space of logits, and of the model."""
    torch.set_default_dtype(torch.float64)
    try:
        guide = (
            kind(conjugate, lambda dim: Chain(realnvp_transforms(dim)))
            if kind is AutoNormalizingFlow
            else (kind(conjugate, init_scale=0.3))
        )
        draws = importance_sample(conjugate, guide, y, num_samples=7, parallel=parallel, batch_size=3)
        rate, mean = draws.samples["rate"], draws.samples["mean"]
        x = torch.cat([rate.logit()[:, None], mean.squeeze(-1)], -1)
        log_q = guide.get_posterior().log_prob(x) - (rate * (1 - rate)).log()
        log_p = dist.Beta(2.0, 3.0).log_prob(rate) + 3 * rate.log() + (1 - rate).log()
        log_p = (
            log_p + dist.Normal(0.0, 1.0).log_prob(mean).sum((1, 2)) + dist.Normal(mean, 0.5).log_prob(y).sum((1, 2))
        )
        torch.testing.assert_close(draws.log_weights, log_p - log_q, rtol=0, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not draws.log_weights.requires_grad


def simplex(counts: Tensor) -> None:
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    low = pyro.sample("low", dist.Uniform(torch.tensor([-1.0, 0.0]), 1.0).to_event(1))
    pyro.factor("scaled", -scale - low.sum(-1))
    pyro.sample("counts", dist.Multinomial(5, share), obs=counts)


def test_evidence_with_a_simplex_a_half_line_and_intervals() -> None:
    """Any guide gives the evidence, which is a product of four integrals here."""
    counts = torch.tensor([3.0, 2.0, 0.0])
    guide = AutoMultivariateNormal(simplex, init_scale=1.0)
    draws = importance_sample(simplex, guide, counts, num_samples=100_000, parallel=True)
    assert draws.samples["share"].shape[1:] == (3,)
    torch.testing.assert_close(draws.samples["share"].sum(-1), torch.ones(len(draws.log_weights)))
    grid = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    half_cauchy = torch.trapezoid((-grid).exp() * 2 / math.pi / (1 + grid**2), grid).log()
    intervals = math.log(math.sinh(1)) + math.log(1 - math.exp(-1))  # of exp(-low) over (-1, 1) / 2 and (0, 1)
    multinomial = math.log(10 * math.gamma(3) * math.gamma(4) * math.gamma(3) * math.gamma(1) / math.gamma(8))
    weights = (draws.log_weights - draws.log_weights.max()).double().exp()
    error = float(weights.std() / weights.mean()) / math.sqrt(len(weights))
    assert error < 0.1
    assert abs(draws.log_evidence - float(half_cauchy) - intervals - multinomial) < 4 * error


def test_masks_and_scales_of_the_model_count(y: Tensor) -> None:
    tempered = importance_sample(poutine.scale(conjugate, 0.5), exact_posterior, y, num_samples=5, parallel=True)
    masked = importance_sample(poutine.mask(conjugate, False), exact_posterior, y, num_samples=5, parallel=True)
    for draws, factor in ((tempered, 0.5), (masked, 0.0)):
        trace = poutine.trace(poutine.condition(conjugate, {k: v[0] for k, v in draws.samples.items()})).get_trace(y)
        log_q = trace.log_prob_sum() - log_evidence(y)
        torch.testing.assert_close(draws.log_weights[0], factor * trace.log_prob_sum() - log_q)


def test_sites_that_do_not_match(y: Tensor) -> None:
    with pytest.raises(ValueError, match="guide for every latent site, but got none for 'rate'"):
        importance_sample(conjugate, poutine.block(exact_posterior, hide=["rate"]), y, num_samples=2)

    def more(y: Tensor) -> None:
        exact_posterior(y)
        pyro.sample("other", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="latent site for every draw, but 'other' has none"):
        importance_sample(conjugate, more, y, num_samples=2)


def test_subsampling_is_refused() -> None:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), subsample_size=5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[:5])

    with pytest.raises(ValueError, match="plate 'data' subsamples 5 of 20"):
        importance_sample(model, AutoDiagonalNormal(model), torch.zeros(20), num_samples=2)


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 3, "batch_size": 0}])
def test_bad_counts(y: Tensor, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, but got 0"):
        importance_sample(conjugate, exact_posterior, y, **arguments)


# ------------------------------------------------------------------------------------------------- of the weights


def pareto_weights(k: float, count: int, seed: int = 0) -> Tensor:
    """Log-weights whose weights have a generalised Pareto distribution of shape k, by their quantile function."""
    upper = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights = torch.expm1(-k * upper.log()) / k if k else -upper.log()
    return weights.log()


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_k_hat_finds_the_tail_of_known_weights(k: float) -> None:
    count = 400_000  # a tail of 1,898 weights
    found = torch.tensor([pareto_k(pareto_weights(k, count, seed)) for seed in range(5)]).mean()
    # The error of the fit is (1 + k) / sqrt(1,898), and the prior draws to 0.5 by 10 observations.
    expected = (1898 * k + 10 * 0.5) / 1908
    assert float(found) == pytest.approx(expected, abs=4 * (1 + abs(k)) / math.sqrt(5 * 1898))


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [100, 2500, 10_000])  # where ceil and floor of the length of the tail agree
def test_k_hat_and_smoothing_as_in_arviz(k: float, count: int) -> None:
    base = pytest.importorskip("arviz_stats.base")
    log_weights = pareto_weights(k, count) + 700.0
    theirs, their_k = base.array_stats.psislw(-log_weights.numpy())  # of log-likelihoods: minus the log-weights
    assert pareto_k(log_weights) == pytest.approx(float(their_k), abs=1e-10)
    ours = pareto_smooth(log_weights)
    difference = ours - torch.tensor(theirs)
    torch.testing.assert_close(difference, difference[:1].expand(count), rtol=0, atol=1e-9)
    untouched = log_weights < log_weights.sort().values[count // 2]
    torch.testing.assert_close(ours[untouched], log_weights[untouched], rtol=0, atol=0)


def test_smoothing_lowers_the_error_of_heavy_tails() -> None:
    """The mean of a Pareto distribution with k = 0.6 is 1 / (1 - k) = 2.5, of infinite variance."""
    raw, smooth = [], []
    for seed in range(400):
        log_weights = pareto_weights(0.6, 1000, seed)
        raw.append(log_weights.exp().mean())
        smooth.append(pareto_smooth(log_weights).exp().mean())
    error_raw = (torch.stack(raw) - 2.5).square().mean().sqrt()
    error_smooth = (torch.stack(smooth) - 2.5).square().mean().sqrt()
    assert error_smooth < 0.8 * error_raw


def test_k_hat_at_the_edges() -> None:
    assert pareto_k(torch.zeros(100)) == -math.inf
    assert pareto_k(torch.randn(100, dtype=torch.float64) * 1e-9) == -math.inf
    # Of a Student-t guide with nu = 2.01 for nu = 2: the weights are bounded by 1.005 up to |x| = 6, and 1.05 at 10^4.
    x = dist.StudentT(2.01).sample((50_000,)).double()
    assert pareto_k(dist.StudentT(2.0).log_prob(x) - dist.StudentT(2.01).log_prob(x)) == -math.inf
    wide = dist.StudentT(10.0).sample((50_000,)).double()
    assert pareto_k(dist.StudentT(2.0).log_prob(wide) - dist.StudentT(10.0).log_prob(wide)) > 0.5
    one = torch.zeros(100)
    one[3] = 5.0
    assert pareto_k(one) == math.inf
    torch.testing.assert_close(pareto_smooth(one), one, rtol=0, atol=0)
    outside = pareto_weights(0.3, 1000)
    outside[::2] = -math.inf  # draws outside the support of the posterior
    assert 0 < pareto_k(outside) < 0.7
    assert (pareto_smooth(outside)[::2] == -math.inf).all()
    with pytest.raises(ValueError, match="Pareto fit must be at least 25, but got 24"):
        pareto_k(torch.randn(24))


@pytest.mark.parametrize("k", [0.3, 0.7])
def test_spread_of_k_hat(k: float) -> None:
    """That of batches of the same draws against that of k-hat from one sample to the next."""
    samples = [pareto_weights(k, 4000, seed) for seed in range(60)]
    truth = torch.tensor([pareto_k(sample) for sample in samples]).std()
    estimates = torch.tensor([pareto_k_spread(sample) for sample in samples])
    assert estimates.mean() == pytest.approx(truth.item(), rel=0.3)
    draws = ImportanceSamples({}, samples[0])
    assert draws.pareto_k_spread == pareto_k_spread(samples[0])


def test_spread_of_k_hat_at_the_edges() -> None:
    assert pareto_k_spread(torch.zeros(250)) == 0
    torch.manual_seed(0)
    part = torch.zeros(250)
    part[:100] = torch.randn(100)
    assert pareto_k_spread(part) == math.inf
    with pytest.raises(ValueError, match="Pareto fit must be at least 25, but got 24"):
        pareto_k_spread(torch.randn(249))
    with pytest.raises(ValueError, match="batches must be at least 2, but got 1"):
        pareto_k_spread(torch.randn(250), batches=1)


def test_threshold() -> None:
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(1000) == pytest.approx(2 / 3)
    assert pareto_k_threshold(2200) == pytest.approx(0.7)
    assert pareto_k_threshold(10**9) == pytest.approx(0.7)


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.full((10,), 1e4)) == pytest.approx(10)
    assert effective_sample_size(torch.tensor([0.0, -math.inf, -math.inf])) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([3.0, 1.0], dtype=torch.float64).log() - 900) == pytest.approx(16 / 10)


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.tensor([0.0, math.nan]), "got nan for draw 1"),
        (torch.tensor([math.inf, 0.0]), "got inf for draw 0"),
        (torch.full((3,), -math.inf), "at least one weight must be positive, but got 3 zeros"),
        (torch.zeros(2, 3), r"shape \(S,\) with S >= 1, but got \(2, 3\)"),
        (torch.zeros(0), r"but got \(0,\)"),
    ],
)
def test_bad_weights(log_weights: Tensor, message: str) -> None:
    for function in (effective_sample_size, pareto_k, pareto_smooth):
        with pytest.raises(ValueError, match=f"(?i){message}"):
            function(log_weights)


# ------------------------------------------------------------------------------------------------------ resampling


def test_resampling_in_proportion() -> None:
    draws = ImportanceSamples(
        {"z": torch.arange(3.0), "m": torch.arange(6.0).view(3, 2)}, torch.tensor([1, 2, 7]).log()
    )
    samples = draws.resample(100_000)
    shares = torch.stack([(samples["z"] == index).float().mean() for index in range(3)])
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=5 * 0.5 / math.sqrt(100_000))
    torch.testing.assert_close(samples["m"][:, 0], 2 * samples["z"])


def test_resampling_corrects_a_guide(y: Tensor) -> None:
    guide = AutoDiagonalNormal(conjugate, init_scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = importance_sample(conjugate, guide, y, num_samples=40_000, parallel=True).smoothed().resample(4000)
    expected = y.sum(-1, keepdim=True) / 0.25 / 9
    assert samples["mean"].shape == (4000, 3, 1)
    torch.testing.assert_close(samples["mean"].mean(0), expected, rtol=0, atol=6 / 3 / math.sqrt(3000))
    assert samples["rate"].mean() == pytest.approx(5 / 9, abs=6 * 0.16 / math.sqrt(3000))
    assert samples["rate"].std() == pytest.approx(0.157, rel=0.1)


def test_resampling_warns_of_a_guide_too_narrow(y: Tensor) -> None:
    guide = AutoDiagonalNormal(conjugate, init_scale=0.01)
    with pytest.warns(UserWarning, match=r"k-hat of the importance weights is .* above 0.67: 1000 draws"):
        importance_sample(conjugate, guide, y, num_samples=1000, parallel=True).smoothed()
