"""Draws in ArviZ's hands: names, dimensions, data, and what its own functions make of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import Tensor

from pyro_realnvp import IndependenceMH, NeuTra, importance_sample, to_arviz

pytest.importorskip("arviz_base")

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(effects: Tensor) -> None:
    """Rubin (1981), not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=effects)


def nested(y: Tensor) -> None:
    rows = pyro.plate("rows", 2, dim=-2)
    with rows:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    pyro.factor("penalty", share[0])
    with rows, pyro.plate("columns", 3, dim=-1), poutine.scale(scale=7.0):
        pyro.sample("y", dist.Normal(share.new_zeros(2), 1.0).to_event(1), obs=y)
        pyro.sample("same", dist.Normal(share[0], 1.0), obs=torch.tensor(0.5))


DATA = torch.arange(12.0).view(2, 3, 2)
DRAWS = {"mean": torch.randn(5, 2, 1), "share": torch.full((5, 3), 1 / 3)}


@pytest.fixture(scope="module")
def schools() -> tuple[NeuTra, MCMC]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormal(eight_schools, init_scale=0.8)
    guide(EFFECTS)
    neutra = NeuTra(eight_schools, guide)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains=2 is more than available_cpu")
        mcmc = MCMC(neutra.kernel(max_tree_depth=3), 20, 10, num_chains=2, disable_progbar=True)
    mcmc.run(EFFECTS)
    return neutra, mcmc


def test_a_run_of_neutra_on_eight_schools(schools: tuple[NeuTra, MCMC]) -> None:
    neutra, mcmc = schools
    tree = to_arviz(mcmc, eight_schools, EFFECTS, log_likelihood=True)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "log_likelihood"}
    assert {name: value.dims for name, value in tree["posterior"].data_vars.items()} == {
        "mu": ("chain", "draw"),
        "tau": ("chain", "draw"),
        "eta": ("chain", "draw", "schools"),
    }
    assert tree["posterior"].coords["schools"].values.tolist() == list(range(8))
    for name, value in neutra.get_samples(mcmc, group_by_chain=True).items():
        torch.testing.assert_close(torch.tensor(tree["posterior"][name].values), value, rtol=0, atol=0)
    assert set(tree["observed_data"].data_vars) == {"y"}  # theta is no data
    assert tree["observed_data"]["y"].dims == ("schools",)
    draws = {name: torch.tensor(value.values) for name, value in tree["posterior"].data_vars.items()}
    theta = draws["mu"][..., None] + draws["tau"][..., None] * draws["eta"]
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "schools")
    torch.testing.assert_close(
        torch.tensor(tree["log_likelihood"]["y"].values), dist.Normal(theta, ERRORS).log_prob(EFFECTS)
    )


def test_the_summary_of_arviz(schools: tuple[NeuTra, MCMC]) -> None:
    """Its figures are those of the arrays themselves, and its rows have the schools' numbers."""
    arviz_stats = pytest.importorskip("arviz_stats")
    neutra, mcmc = schools
    table = arviz_stats.summary(to_arviz(mcmc, eight_schools, EFFECTS), round_to="none")
    assert set(table.index) == {"mu", "tau", *(f"eta[{school}]" for school in range(8))}
    samples = neutra.get_samples(mcmc, group_by_chain=True)
    from arviz_stats.base import array_stats

    for name, value in {"tau": samples["tau"], "eta[3]": samples["eta"][..., 3]}.items():
        array = value.double().numpy()
        assert table.loc[name, "ess_bulk"] == pytest.approx(array_stats.ess(array, method="bulk"), rel=1e-3)
        assert table.loc[name, "r_hat"] == pytest.approx(array_stats.rhat(array), rel=1e-3)


def test_divergences_stand_where_they_happened(schools: tuple[NeuTra, MCMC], monkeypatch: pytest.MonkeyPatch) -> None:
    _, mcmc = schools
    diagnostics = [{"divergences": [2, 5] if chain == 1 else []} for chain in range(2)]
    monkeypatch.setattr(mcmc, "_diagnostics", diagnostics)
    diverging = to_arviz(mcmc, eight_schools, EFFECTS)["sample_stats"]["diverging"]
    assert diverging.dims == ("chain", "draw")
    assert torch.tensor(diverging.values).nonzero().tolist() == [[1, 2], [1, 5]]


def test_runs_of_plain_models_and_of_other_kernels() -> None:
    for kernel, stats in ((NUTS(eight_schools, max_tree_depth=2), True), (_independence(), False)):
        mcmc = MCMC(kernel, 4, 3, disable_progbar=True)
        mcmc.run(EFFECTS)
        tree = to_arviz(mcmc, eight_schools, EFFECTS)
        assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 4, "schools": 8}
        assert ("sample_stats" in tree.children) == stats
        assert "log_likelihood" not in tree.children


def _independence() -> IndependenceMH:
    return IndependenceMH(eight_schools, AutoDiagonalNormal(eight_schools), parallel=True)


def test_plates_events_and_single_numbers() -> None:
    tree = to_arviz(DRAWS, nested, DATA, log_likelihood=True)
    dims = {group: {name: each.dims[-3:] for name, each in tree[group].data_vars.items()} for group in tree.children}
    assert dims == {
        "posterior": {"mean": ("chain", "draw", "rows"), "share": ("chain", "draw", "share_dim_0")},
        "observed_data": {"y": ("rows", "columns", "y_dim_2"), "same": ("rows", "columns")},
        "log_likelihood": {"y": ("draw", "rows", "columns"), "same": ("draw", "rows", "columns")},
    }
    assert (tree["observed_data"]["y"].values == DATA.numpy()).all()
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "rows", "columns")
    expected = dist.Normal(0.0, 1.0).log_prob(DATA).sum(-1)  # without the factor 7
    torch.testing.assert_close(torch.tensor(tree["log_likelihood"]["y"].values), expected.expand(1, 5, 2, 3))
    constant = dist.Normal(1 / 3, 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(torch.tensor(tree["log_likelihood"]["same"].values), constant.expand(1, 5, 2, 3))


def test_weighted_draws_are_resampled_and_tell_what_they_are_worth() -> None:
    guide = AutoDiagonalNormal(eight_schools, init_scale=0.8)
    weighted = importance_sample(eight_schools, guide, EFFECTS, num_samples=400, parallel=True)
    posterior = to_arviz(weighted, eight_schools, EFFECTS)["posterior"]
    assert dict(posterior.sizes) == {"chain": 1, "draw": 400, "schools": 8}
    assert posterior.attrs["effective_sample_size"] == weighted.effective_sample_size
    assert posterior.attrs["pareto_k"] == weighted.pareto_k
    best = weighted.samples["mu"][weighted.log_weights.argmax()]
    worst = weighted.samples["mu"][weighted.log_weights.argmin()]
    draws = torch.tensor(posterior["mu"].values)
    assert (draws == best).sum() > 1
    assert (draws == worst).sum() == 0


def draw() -> None:
    with pyro.plate("draw", 2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def subsampled() -> None:
    with pyro.plate("half", 4, subsample_size=2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("draws", "model", "message"),
    [
        (dict, draw, "needs draws, but got an empty mapping"),
        (lambda: {"x": torch.zeros(3, 2)}, draw, "the name 'draw', and so has a plate"),
        (lambda: {"x": torch.zeros(3, 2)}, subsampled, "plate 'half' subsamples 2 of 4"),
        (lambda: {"z": torch.zeros(3)}, draw, "draws of 'z', which is no site of the model"),
        (lambda: MCMC(NUTS(draw), 2, disable_progbar=True), draw, "an MCMC that has not run yet"),
    ],
)
def test_what_will_not_do(draws: Callable[[], Any], model: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arviz(draws(), model)


def test_the_likelihood_needs_every_latent_site() -> None:
    some = {"mean": DRAWS["mean"]}
    assert set(to_arviz(some, nested, DATA)["posterior"].data_vars) == {"mean"}
    with pytest.raises(ValueError, match="every latent site, but got none of 'share'"):
        to_arviz(some, nested, DATA, log_likelihood=True)


def test_without_arviz_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ModuleNotFoundError, match="to_arviz needs arviz_base: pip install arviz-base"):
        to_arviz(DRAWS, nested, DATA)
