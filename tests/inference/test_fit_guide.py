"""Training of a guide in one call: when it ends, what it reports, and what speaks against a guide.

Seconds and errors on two targets with two modes, by ``pytest -m slow -s tests/inference/test_fit_guide.py``.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_realnvp import AutoRealNVP, MixtureBase, fit_guide
from pyro_realnvp.inference.fit_guide import _has_converged, _rises, _Tempered

DATA = torch.tensor([1.2, 0.4, 2.1, 1.5])


def conjugate(data=DATA):
    """The evidence of a normal mean with a normal prior is that of a multivariate normal."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=data)


def evidence(data=DATA):
    covariance = torch.eye(len(data)) + 4.0
    return dist.MultivariateNormal(torch.zeros(len(data)), covariance).log_prob(data).item()


def bimodal(dim):
    """0.3 N(-4 e, 0.5^2 I) + 0.7 N(4 e, I), e the first axis."""

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 5.0).to_event(1).mask(False))
        center = torch.zeros(dim)
        center[0] = 4.0
        left = dist.Normal(-center, 0.5).to_event(1).log_prob(z) + math.log(0.3)
        right = dist.Normal(center, 1.0).to_event(1).log_prob(z) + math.log(0.7)
        pyro.factor("target", torch.logaddexp(left, right))

    return model


def two_latents():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("three", 3):
        pyro.sample("b", dist.Normal(a, 0.7))


def test_an_easy_posterior_ends_by_itself():
    pyro.set_rng_seed(0)
    guide = AutoRealNVP(two_latents)
    report = fit_guide(two_latents, guide, steps=3000, progress=False)
    assert report.converged
    assert report.steps < 2000
    assert len(report.losses) == report.steps
    assert report.skipped == 0
    assert report.elbo == pytest.approx(0, abs=1e-3)  # of the prior
    assert report.log_evidence == pytest.approx(0, abs=1e-3)
    assert report.ess > 0.99
    assert list(report.shifts) in (["a", "b"], ["b", "a"])
    assert len(report.missed) == 0
    assert report.warnings == []
    text = str(report)
    assert "ELBO" in text
    assert "k-hat" in text
    draws = report.samples.resample(100)
    assert draws["b"].shape == (100, 3)


@pytest.mark.parametrize("make", [AutoRealNVP, AutoNormal])
def test_data_are_passed_on_and_other_guides_are_trained(make):
    pyro.set_rng_seed(0)
    data = torch.tensor([3.0, 2.0])
    report = fit_guide(conjugate, make(conjugate), data, learning_rate=0.02, progress=False, draws=2000)
    assert report.log_evidence == pytest.approx(evidence(data), abs=0.02)
    assert (report.missed is None) == (make is AutoNormal)


def test_a_model_without_plates():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    report = fit_guide(model, AutoNormal(model), steps=5, particles=2, vectorize=False, draws=250, progress=False)
    assert report.steps == 5
    assert not report.converged
    assert report.missed is None
    assert any("still rising" in each for each in report.warnings)


def test_a_callback_ends_the_training():
    seen = []

    def callback(step, loss):
        seen.append((step, loss))
        return step == 4

    report = fit_guide(two_latents, AutoRealNVP(two_latents), callback=callback, draws=250, progress=False)
    assert report.steps == 5
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    assert [loss for _, loss in seen] == list(report.losses)


def test_steps_that_are_not_finite_are_left_out_and_told():
    calls = iter(range(10**6))

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(torch.tensor(next(calls) == 5), math.nan, 0.0) * a)

    with pyro.validation_enabled(False):
        report = fit_guide(model, AutoNormal(model), steps=20, draws=250, progress=False)
    assert report.skipped == 1
    assert any("1 of 20 steps were left out" in each for each in report.warnings)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mode_that_the_guide_misses_is_found(seed):
    pyro.set_rng_seed(seed)
    model = bimodal(2)
    guide = AutoRealNVP(model)  # its search ends in one of the two
    report = fit_guide(model, guide, steps=300, progress=False, draws=2000)
    side = report.samples.samples["z"][:, 0].sign().mean()
    assert abs(side) > 0.99
    assert report.pareto_k < 0.7  # which does not see it
    assert len(report.missed) >= 1
    assert (report.missed[:, 0] * side < 0).any()
    assert any("other modes" in each for each in report.warnings)


def test_a_spike_without_mass_is_no_mode():
    """The density of a centred hierarchy has no bound where the scale is 0 and all effects are equal."""

    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 12):
            effect = pyro.sample("effect", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=torch.linspace(-2, 2, 12))

    pyro.set_rng_seed(0)
    report = fit_guide(model, AutoRealNVP(model), steps=300, progress=False, draws=1000)
    assert len(report.missed) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 20}, "draws must be at least 250"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"particles": 0}, "particles must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"annealing": 1.0}, "annealing must be between 0 and 1"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_guide(two_latents, AutoRealNVP(two_latents), progress=False, **options)


def test_a_function_is_no_automatic_guide():
    with pytest.raises(ValueError, match="fit_guide needs an automatic guide"):
        fit_guide(two_latents, two_latents, progress=False)


@pytest.mark.parametrize(("step", "beta"), [(0, 0.01), (5, 0.1), (10, 1.0), (20, 1.0)])
def test_a_tempered_model_has_a_power_of_its_density(step, beta):
    tempered = _Tempered(conjugate, 0.01, 10)
    tempered.step = step
    pyro.set_rng_seed(0)
    found = pyro.poutine.trace(tempered).get_trace(DATA).log_prob_sum()
    pyro.set_rng_seed(0)
    torch.testing.assert_close(found, beta * pyro.poutine.trace(conjugate).get_trace(DATA).log_prob_sum())


def test_annealing_is_over_before_the_training_may_end():
    seen = []
    report = fit_guide(
        two_latents,
        AutoNormal(two_latents),
        steps=40,
        annealing=0.01,
        draws=250,
        progress=False,
        callback=lambda step, loss: seen.append(step),
    )
    assert report.steps == 40
    assert _has_converged([0.0] * 1200, 0)
    assert not _has_converged([0.0] * 1200, 100)
    assert _has_converged([0.0] * 1300, 100)


def test_a_rise_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, generator=generator)
    assert not _rises((10 + noise).tolist())
    assert _rises((10 + noise - torch.linspace(0, 1, 1000)).tolist())
    assert not _rises((10 + noise + torch.linspace(0, 1, 1000)).tolist())
    spike = 10 + noise
    spike[100] = 1e6  # a draw far out
    assert not _rises(spike.tolist())
    assert not _rises((10 - 1e-6 * torch.arange(1000)).tolist())


@pytest.mark.parametrize("dim", [2, 10])
def test_components_begin_at_the_modes(dim):
    pyro.set_rng_seed(0)
    guide = AutoRealNVP(bimodal(dim), base=partial(MixtureBase, components=3), init_scale=4.0)
    report = fit_guide(bimodal(dim), guide, steps=1, progress=False)
    right = (report.samples.samples["z"][:, 0] > 0).double().mean().item()
    assert right == pytest.approx(0.7, abs=0.05)
    assert report.ess > 0.8
    assert report.log_evidence == pytest.approx(0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_modes_are_found(dim, seed):
    pyro.set_rng_seed(seed)
    model = bimodal(dim)
    guide = AutoRealNVP(model, base=partial(MixtureBase, components=4), init_scale=4.0)
    report = fit_guide(model, guide, progress=False)
    share = (guide.sample_posterior((50_000,))["z"][:, 0] > 0).double().mean().item()
    print(f"\n{dim} dimensions: right mode {share:.3f} for 0.7\n{report}")
    assert share == pytest.approx(0.7, abs=0.05)
    assert len(report.missed) == 0
