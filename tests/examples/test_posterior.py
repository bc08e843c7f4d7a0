"""The posterior example: its models against formulas written out, its exact draws, and a run at tiny size."""

import json
import math
import zipfile

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import posterior
from pyro_realnvp import AutoRealNVP
from pyro_realnvp.inference.sites import constrained, log_joint, log_joints, plate_nesting

from shared import posteriordb

ROOT_NAMES = list(posteriordb.POSTERIORS)
TINY = {
    "eight_schools-eight_schools_noncentered": {"y": [28, 8], "sigma": [15, 10]},
    "sblrc-blr": {"D": 2, "X": [[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]], "y": [1.0, -0.5, 0.7]},
    "arK-arK": {"K": 2, "y": [0.1, 0.3, -0.2, 0.4, 0.0]},
    "garch-garch11": {"y": [5.0, 4.0, 6.0], "sigma1": 0.5},
    "gp_pois_regr-gp_pois_regr": {"x": [-1.0, 0.0, 2.0], "k": [3, 0, 1]},
    "kidiq-kidscore_momiq": {"kid_score": [65.0, 98.0], "mom_iq": [121.0, 89.0]},
}
SITES = {
    "eight_schools-eight_schools_noncentered": {"mu": 4.0, "tau": 3.0, "theta_trans": [0.3, -1.0]},
    "sblrc-blr": {"beta": [0.5, 0.2], "sigma": 0.8},
    "arK-arK": {"alpha": 0.1, "beta": [0.5, -0.3], "sigma": 0.4},
    "garch-garch11": {"mu": 4.8, "alpha0": 0.7, "weights": [0.3, 0.5, 0.2]},
    "gp_pois_regr-gp_pois_regr": {"rho": 5.0, "alpha": 1.5, "f_tilde": [0.3, -0.5, 1.0]},
    "kidiq-kidscore_momiq": {"beta": [20.0, 0.6], "sigma": 15.0},
}


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def half_cauchy(x, scale):
    return math.log(2 / (math.pi * scale)) - math.log1p((x / scale) ** 2)


def expected(name, data, at):
    """The log-density of the Stan program at these values, by loops, with every normalising constant."""
    if name.startswith("eight"):
        total = normal(at["mu"], 0, 5) + half_cauchy(at["tau"], 5)
        for theta, y, sigma in zip(at["theta_trans"], data["y"], data["sigma"], strict=True):
            total += normal(theta, 0, 1) + normal(y, at["mu"] + at["tau"] * theta, sigma)
        return total
    if name.startswith("sblrc"):
        total = sum(normal(b, 0, 10) for b in at["beta"]) + normal(at["sigma"], 0, 10) + math.log(2)
        for x, y in zip(data["X"], data["y"], strict=True):
            total += normal(y, sum(a * b for a, b in zip(x, at["beta"], strict=True)), at["sigma"])
        return total
    if name.startswith("arK"):
        total = sum(normal(b, 0, 10) for b in [at["alpha"], *at["beta"]]) + half_cauchy(at["sigma"], 2.5)
        for t in range(data["K"], len(data["y"])):
            mean = at["alpha"] + sum(at["beta"][k] * data["y"][t - 1 - k] for k in range(data["K"]))
            total += normal(data["y"][t], mean, at["sigma"])
        return total
    if name.startswith("garch"):
        total, variance = math.log(2), data["sigma1"] ** 2  # the flat density on the triangle is 2
        for t, y in enumerate(data["y"]):
            if t:
                square = (data["y"][t - 1] - at["mu"]) ** 2
                variance = at["alpha0"] + at["weights"][0] * square + at["weights"][1] * variance
            total += normal(y, at["mu"], math.sqrt(variance))
        return total
    if name.startswith("gp"):
        x = torch.tensor(data["x"], dtype=torch.float64)
        covariance = at["alpha"] ** 2 * (-0.5 * ((x[:, None] - x) / at["rho"]) ** 2).exp() + 1e-10 * torch.eye(3)
        f = torch.linalg.cholesky(covariance) @ torch.tensor(at["f_tilde"], dtype=torch.float64)
        total = 25 * math.log(4) - math.lgamma(25) + 24 * math.log(at["rho"]) - 4 * at["rho"]
        total += normal(at["alpha"], 0, 2) + math.log(2) + sum(normal(v, 0, 1) for v in at["f_tilde"])
        return total + sum(k * float(v) - math.exp(v) - math.lgamma(k + 1) for k, v in zip(data["k"], f, strict=True))
    total = half_cauchy(at["sigma"], 2.5)
    for y, x in zip(data["kid_score"], data["mom_iq"], strict=True):
        total += normal(y, at["beta"][0] + at["beta"][1] * x, at["sigma"])
    return total


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_model_has_the_density_of_the_stan_program(name):
    torch.set_default_dtype(torch.float64)
    try:
        model, _ = posteriordb.POSTERIORS[name](TINY[name])
        at = {key: torch.tensor(value) for key, value in SITES[name].items()}
        trace = poutine.trace(poutine.condition(model, data=at)).get_trace()
        assert float(trace.log_prob_sum()) == pytest.approx(expected(name, TINY[name], SITES[name]), rel=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_models_run_on_many_draws_at_once(name):
    model, scalars = posteriordb.POSTERIORS[name](TINY[name])
    guide = AutoRealNVP(model, init_scale=0.1)
    guide.initialize()
    x = 0.3 * torch.randn(4, guide.latent_dim)
    together = log_joints(guide, x, (), {}, nesting=plate_nesting(poutine.trace(model).get_trace()))
    torch.testing.assert_close(
        together, torch.stack([log_joint(guide, row, (), {}) for row in x]), rtol=1e-4, atol=1e-4
    )
    sites, _ = constrained(guide, x)
    rows = [scalars({key: value[row : row + 1] for key, value in sites.items()}) for row in range(4)]
    for key, value in scalars(sites).items():
        torch.testing.assert_close(value, torch.cat([row[key] for row in rows]), rtol=1e-4, atol=1e-5)


def test_exact_draws_of_eight_schools():
    pyro.set_rng_seed(0)
    draws = posteriordb.eight_schools_draws(40_000)
    # Means and standard deviations of the 10,000 reference draws of posteriordb.
    for name, mean, sd in [("theta[1]", 6.151, 5.616), ("mu", 4.411, 3.309), ("tau", 3.602, 3.198)]:
        assert abs(float(draws[name].mean()) - mean) < 0.04 * sd
        assert abs(float(draws[name].std()) / sd - 1) < 0.05


def test_errors_are_in_units_of_the_reference():
    z = dist.Normal(0.0, 1.0).sample((20_000,))
    z = (z - z.mean()) / z.std()
    found = posteriordb.errors({"a": 3 + 2 * z, "b": z}, {"a": 2 + 2 * z, "b": 0.8 * z})
    assert found["mean_error"] == pytest.approx(0.5, abs=1e-4)
    assert found["sd_error"] == pytest.approx(0.25, abs=1e-4)


def test_from_posteriordb(tmp_path):
    folder = tmp_path / "arK-arK"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(TINY["arK-arK"]))
    with zipfile.ZipFile(folder / "reference_draws.json.zip", "w") as archive:
        names = ["alpha", "beta[1]", "beta[2]", "sigma"]
        archive.writestr("draws.json", json.dumps([dict.fromkeys(names, chain) for chain in ([0.1, 0.2], [0.3, 0.4])]))
    loaded = posteriordb.load("arK-arK", tmp_path)
    assert {key: value.tolist() for key, value in loaded.reference.items()} == {
        name: pytest.approx([0.1, 0.2, 0.3, 0.4]) for name in names
    }
    with pytest.raises(SystemExit, match="There is no file"):
        posteriordb.load("sblrc-blr", tmp_path)
    with pytest.raises(SystemExit, match="needs --root"):
        posteriordb.load("sblrc-blr")
    with pytest.raises(SystemExit, match="There is no posterior banana"):
        posteriordb.load("banana")


@pytest.mark.filterwarnings("ignore:The Pareto k-hat")  # of a guide that was hardly trained
def test_runs_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(posterior, "DRAWS", 500)
    monkeypatch.setattr(posterior, "GUIDES", {key: posterior.GUIDES[key] for key in ("AutoRealNVP", "AutoNormal")})
    posterior.main(["--steps", "3", "--compare", "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    judged = {row["guide"]: row for row in rows if "guide" in row}
    assert list(judged) == list(posterior.GUIDES)
    assert (tmp_path / "posterior.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("k-hat") == len([row for row in judged.values() if "elbo" in row])
    # The flow starts from a good Gaussian: the others, from N(median, 0.1^2), are far behind after three steps.
    assert judged["AutoRealNVP"]["elbo"] > -32
    assert judged["AutoRealNVP"]["mean_error"] < 0.3
