"""Recentered models are the same models in other coordinates, and centred hierarchies become easy.

The slow tests print what they reach:

    pytest -m slow -s -n 0 tests/inference/test_recentring.py
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.optim import ClippedAdam
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_realnvp import AutoRealNVP, NeuTra, Recentered, importance_sample

from shared.posteriordb import EIGHT_SCHOOLS, eight_schools_draws, named

Y, SIGMA = (torch.tensor(EIGHT_SCHOOLS[key], dtype=torch.float32) for key in ("y", "sigma"))


def schools(noise: Tensor = SIGMA) -> None:
    """Eight schools, centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, noise), obs=Y)


def kinds() -> None:
    """Two sites that depend on no latent, and one of every kind that can be recentred or not."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    pyro.deterministic("twice", 2 * scale)
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
        pyro.sample("normal", dist.Normal(loc, scale))
    wide = scale.unsqueeze(-1)
    pyro.sample("student", dist.StudentT(4.0, torch.zeros(3), wide).to_event(1))
    pyro.sample("lognormal", dist.LogNormal(loc.unsqueeze(-1), wide * torch.ones(2)).to_event(1))
    pyro.sample("gumbel", dist.Gumbel(loc, 1 + scale))
    pyro.sample("gamma", dist.Gamma(scale, 1.0))
    pyro.sample("masked", dist.Normal(loc, scale).mask(True))


NON_CENTRED = dict.fromkeys(("normal", "student", "lognormal", "gumbel"), 0.0)


def latents(model: Callable[..., Any]) -> list[str]:
    return [name for name, _ in prune_subsample_sites(poutine.trace(model).get_trace()).iter_stochastic_nodes()]


# ----------------------------------------------------------------------------------------------- which sites, and how


def test_sites_that_depend_on_latents_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # How far each is centred is another question, which takes a training for every answer.
    monkeypatch.setattr("pyro_realnvp.inference.recentering._elbo", lambda model, args, kwargs: 0.0)
    model = Recentered(kinds)
    model()
    assert set(model.centered) == set(NON_CENTRED)


@pytest.mark.parametrize("centered", [0.0, 0.3])
def test_the_density_is_that_of_the_model(centered: float) -> None:
    """The log-density of a draw differs by the log-determinant of the map between the coordinates, scale^(1 - c)."""
    model = Recentered(kinds, dict.fromkeys(NON_CENTRED, centered))
    assert latents(model) == [
        "loc", "scale", "normal_decentered", "student_decentered", "lognormal_base_decentered", "gumbel_decentered",
        "gamma", "masked",
    ]  # fmt: skip
    trace = poutine.trace(model).get_trace()
    values = {name: trace.nodes[name]["value"] for name in latents(kinds)}
    original = poutine.trace(poutine.condition(kinds, values)).get_trace()
    scale = values["scale"].log()
    slope = (1 - centered) * ((6 + 3 + 2) * scale + (1 + values["scale"]).log()) + values["lognormal"].log().sum()
    torch.testing.assert_close(original.log_prob_sum() + slope, trace.log_prob_sum())


@pytest.mark.parametrize(("noise", "expected"), [(1.0, 0.0), (3.0, 0.0), (0.3, 1.0), (0.03, 1.0)])
def test_much_data_is_centred_and_little_is_not(noise: float, expected: float) -> None:
    model = Recentered(schools)
    model(noise * SIGMA)
    assert model.centered == {"theta": expected}


def test_every_site_by_itself() -> None:
    """One group of sites is seen nearly without noise, the other hardly."""

    def model() -> None:
        for name, noise in (("sharp", 0.01), ("vague", 3.0)):
            scale = pyro.sample(f"{name}_scale", dist.HalfCauchy(5.0))
            with pyro.plate(f"{name}_plate", 8):
                each = pyro.sample(name, dist.Normal(0.0, scale))
                pyro.sample(f"{name}_y", dist.Normal(each, noise * SIGMA), obs=Y)

    recentered = Recentered(model)
    recentered()
    assert recentered.centered == {"sharp": 1.0, "vague": 0.0}


def test_a_model_without_such_sites_stays() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))

    recentered = Recentered(model)
    assert latents(recentered) == ["a"]
    assert recentered.centered == {}


def test_the_caller_keeps_random_numbers_and_parameters() -> None:
    """The choice takes no random numbers, and leaves nothing in the store, in a plate of particles or outside."""
    first = Recentered(schools)
    pyro.set_rng_seed(0)
    with pyro.plate("particles", 5, dim=-2):
        found = poutine.trace(first).get_trace()
    pyro.set_rng_seed(0)
    with pyro.plate("particles", 5, dim=-2):
        again = poutine.trace(Recentered(schools, first.centered)).get_trace()
    assert not list(pyro.get_param_store())
    assert found.nodes["theta"]["value"].shape == (5, 8)
    assert list(found.nodes) == list(again.nodes)
    torch.testing.assert_close(found.nodes["theta"]["value"], again.nodes["theta"]["value"], rtol=0, atol=0)


def test_a_recentered_model_is_pickled() -> None:
    model = Recentered(schools, {"theta": 0.0})
    model()
    assert latents(pickle.loads(pickle.dumps(model))) == ["mu", "tau", "theta_decentered"]


def test_senseless_centredness() -> None:
    with pytest.raises(ValueError, match="'theta' must be between 0 and 1, but is 2"):
        Recentered(schools, {"theta": 2})
    with pytest.raises(ValueError, match="no latent site 'y'"):
        Recentered(schools, {"y": 0.0})()
    with pytest.raises(ValueError, match="not known yet"):
        _ = Recentered(schools).centered


# ------------------------------------------------------------------------------------------------ the sites come back


@pytest.mark.parametrize("parallel", [False, True])
def test_the_original_sites_come_back(parallel: bool) -> None:
    model = Recentered(kinds, NON_CENTRED)
    guide = AutoDiagonalNormal(model)
    draws = importance_sample(model, guide, num_samples=7, parallel=parallel).samples
    assert torch.equal(draws["twice"].flatten(), 2 * draws["scale"].flatten())
    shapes = {"normal": (3, 2), "student": (3,), "lognormal": (2,), "gumbel": (), "twice": ()}
    assert {name: draws[name].shape for name in shapes} == {name: (7, *shape) for name, shape in shapes.items()}
    scale = draws["scale"].reshape(7, 1, 1)
    torch.testing.assert_close(draws["normal"], draws["loc"].reshape(7, 1, 1) + scale * draws["normal_decentered"])
    predicted = Predictive(model, guide=guide, num_samples=7, parallel=parallel)()
    assert set(shapes) <= set(predicted)


def test_resampled_draws_have_the_original_sites() -> None:
    model = Recentered(schools, {"theta": 0.0})
    draws = importance_sample(model, AutoDiagonalNormal(model), num_samples=50, parallel=True).resample(20)
    theta = draws["mu"].reshape(20, 1) + draws["tau"].reshape(20, 1) * draws["theta_decentered"]
    torch.testing.assert_close(draws["theta"], theta)


def test_nuts_and_neutra_on_a_recentered_model() -> None:
    model = Recentered(schools)
    guide = AutoRealNVP(model)
    svi = SVI(model, guide, ClippedAdam({"lr": 5e-3}), Trace_ELBO(8, vectorize_particles=True))
    for _ in range(3):
        svi.step()
    neutra = NeuTra(model, guide)
    for each in (model, neutra):
        mcmc = MCMC(NUTS(each), num_samples=10, warmup_steps=10, disable_progbar=True)
        mcmc.run()
    assert neutra.get_samples(mcmc)["theta_decentered"].shape == (10, 8)
    predicted = Predictive(model, neutra.get_samples(mcmc))()
    assert predicted["theta"].shape == (10, 8)


# ---------------------------------------------------------------------------------------------------- how good it is


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_centred_eight_schools(seed: int) -> None:
    pyro.set_rng_seed(seed)
    start = time.process_time()
    model = Recentered(schools)
    guide = AutoRealNVP(model)
    svi = SVI(model, guide, ClippedAdam({"lr": 5e-3, "lrd": 0.999}), Trace_ELBO(32, vectorize_particles=True))
    for _ in range(3000):
        svi.step()
    seconds = time.process_time() - start
    batches = [importance_sample(model, guide, num_samples=10_000, parallel=True) for _ in range(10)]
    k = torch.tensor([batch.pareto_k for batch in batches])
    sites = {name: torch.cat([batch.samples[name] for batch in batches]) for name in ("mu", "tau", "theta")}
    drawn = named("theta", sites["theta"]) | {"mu": sites["mu"].flatten(), "tau": sites["tau"].flatten()}
    exact = eight_schools_draws(100_000)
    of_mean = max(abs(drawn[key].mean() - exact[key].mean()).item() / exact[key].std().item() for key in exact)
    of_deviation = max(abs(drawn[key].std().item() / exact[key].std().item() - 1) for key in exact)
    neck = (drawn["tau"].quantile(0.01) / exact["tau"].quantile(0.01)).item()
    print(
        f"\nmeans off by {of_mean:.3f} sd, sds by {100 * of_deviation:.1f} %, 1 % quantile of tau {neck:.2f} of the "
        f"exact one, k-hat {k.median():.2f}, highest {k.max():.2f}, {seconds:.0f} s"
    )
    assert model.centered == {"theta": 0.0}
    assert of_mean <= 0.05
    assert of_deviation <= 0.05
    assert k.median() <= 0.7
    assert k.max() <= 0.8
    assert abs(neck - 1) <= 0.2
