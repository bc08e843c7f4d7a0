"""The scripts that compare densities: on tables, and in the plane."""

import csv
import json
import math

import pytest
import torch

import densities
import guides
import tables

from shared.planar import TARGETS, Curve


@pytest.mark.parametrize("name", TARGETS)
def test_densities_of_the_plane_are_normalised_and_those_of_their_draws(name):
    torch.manual_seed(0)
    target = TARGETS[name]
    side = torch.linspace(-3, 3, 601, dtype=torch.float64)
    side = (side[1:] + side[:-1]) / 2
    log_p = target.log_prob(torch.cartesian_prod(side, side))
    mass = log_p.exp() * 0.01**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    entropy = -(mass * log_p.clamp(min=-1e3)).sum().item()
    found = -target.log_prob(target.sample(20_000))
    assert found.mean().item() == pytest.approx(entropy, abs=5 * found.std().item() / math.sqrt(20_000) + 1e-3)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if isinstance(target, Curve)])
def test_the_rule_along_a_curve_has_converged(name):
    target = TARGETS[name]
    x = target.sample(200)
    finer = type(target)()
    finer.nodes = 2 * target.nodes
    torch.testing.assert_close(target.log_prob(x), finer.log_prob(x), rtol=1e-8, atol=1e-8)


def test_flows_in_the_plane_are_of_equal_size_and_are_not_trained_twice(tmp_path, capsys):
    sizes = [densities.parameters_of(densities.of_equal_size(name)) for name in ("spline", "affine", "augmented")]
    assert sizes[1:] == pytest.approx([sizes[0]] * 2, rel=0.05)
    arguments = ["--targets", "rings", "--steps", "30", "--batch", "64", "--out", str(tmp_path)]
    densities.main(arguments)
    densities.main(arguments)
    rows = list(csv.DictReader((tmp_path / "densities.csv").read_text().splitlines()))
    assert [row["flow"] for row in rows] == ["spline", "affine"]
    assert all(0 < float(row["kl"]) < 2 for row in rows)
    assert (tmp_path / "densities.png").stat().st_size > 5000
    assert capsys.readouterr().out.count("rings, spline, seed 0: KL") == 1


def test_the_gap_of_a_bound_is_found_by_quadrature():
    torch.manual_seed(0)
    target, flow = TARGETS["two-moons"], densities.augmented(8)
    with torch.no_grad():
        assert densities.gap_of_bound(target, flow, points=5, side=121) == pytest.approx(
            0, abs=1e-4
        )  # e is independent of x
        for parameter in flow.flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        one, many = (flow.distribution(num_samples=count).log_prob for count in (1, 1000))
        x = target.sample(500)
        expected = float((many(x) - one(x)).mean())
        assert 0.02 < expected < 2
        densities.NOISE_DRAWS, kept = 1, densities.NOISE_DRAWS
        try:
            assert densities.gap_of_bound(target, flow, points=100, side=121) == pytest.approx(expected, rel=0.5)
        finally:
            densities.NOISE_DRAWS = kept


def test_tables_are_compared_fold_by_fold(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "GRID", {"n_components": [1, 2], "reg_covar": [1e-1]})
    monkeypatch.setattr(tables, "fit", lambda flow, x, **options: flow.eval())
    tables.main(["--tables", "wine", "--folds", "1", "--flows", "default", "whitened", "--out", str(tmp_path)])
    rows = {
        row["model"]: float(row["nats"]) for row in csv.DictReader((tmp_path / "tables.csv").read_text().splitlines())
    }
    assert list(rows) == ["gaussian", "shrunk", "mixture", "default", "whitened"]
    train, test = next(tables.folds("wine"))
    assert train.shape == (160, 13)
    unit = -0.5 * (test**2).sum(1).mean() - 6.5 * math.log(2 * math.pi)
    assert rows["default"] == pytest.approx(unit, abs=1e-3)  # untrained, the flow is the identity
    assert rows["whitened"] == pytest.approx(rows["shrunk"], abs=1.0)
    assert "wine" in capsys.readouterr().out


def test_guides_are_measured(capsys, tmp_path):
    guides.main(["--rounds", "3", "--steps", "5", "--out", str(tmp_path)])
    step, posterior = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert step["ratio"] == pytest.approx(step["ours_ms"] / step["iaf_ms"])
    assert posterior["posterior"].startswith("eight_schools")
    assert posterior["mean_error"] > 0
    first, second = capsys.readouterr().out.splitlines()
    assert "ratio" in first
    assert second.startswith("eight_schools")
    assert "5 steps" in second
