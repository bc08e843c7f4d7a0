"""examples/simulator.py: a tiny run writes what it promises, and its true posterior and its calibration are right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import simulator

SMALL = ["--interval", "2", "--batch", "16", "--couplings", "2", "--hidden", "8", "--device", "cpu"]
TINY = [*SMALL, "--steps", "6", "--calibration", "40", "--draws", "19", "--c2st", "40"]


@pytest.fixture(scope="module", autouse=True)
def few_pairs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator, "TEST_PAIRS", 500)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("simulator")
    simulator.main([*TINY, "--out", str(out)])
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_metrics_model_and_picture(run: Path) -> None:
    *rows, last = rows_of(run)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert last.keys() == {"test_nats", "test_kl", "test_kl_error", "sbc_p", "coverage", "c2st", "seconds"}
    assert last["test_kl"] > 1
    assert len(last["sbc_p"]) == len(last["coverage"]) == len(last["c2st"]) == 3
    assert all(0 <= accuracy <= 1 for accuracy in last["c2st"])
    assert (run / "simulator.png").read_bytes().startswith(b"\x89PNG")


def test_sampling_from_a_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator, "draw", lambda *_: None)
    simulator.main([*TINY, "--c2st", "0", "--sample", str(run / "flow.safetensors"), "--out", str(tmp_path)])
    kl, error = map(float, re.search(r"posterior (\S+) \+- (\S+) nats", capsys.readouterr().out).groups())
    before = rows_of(run)[-1]  # other test points
    assert abs(kl - before["test_kl"]) < 5 * math.hypot(error, before["test_kl_error"]) + 1e-3
    assert not list(tmp_path.iterdir())


def test_given_simulations_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "draw", lambda *_: None)
    options = ["--simulations", "50", "--lr", "0", "--steps", "20", "--patience", "3", "--c2st", "0"]
    simulator.main([*TINY, *options, "--out", str(tmp_path)])
    *rows, last = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert last["c2st"] == []


# -------------------------------------------------------------------------------------------- the true posterior


def everywhere(side: int) -> tuple[Tensor, float]:
    """Midpoints of a grid over the box of the prior, and the area that belongs to each."""
    line = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(line, line), (2 / side) ** 2


@pytest.mark.parametrize("x", [[-0.6, 0.3], [0.1, 0.9], [-1.1, 0.1], [0.3, -0.2]])
def test_the_posterior_integrates_to_one(x: list[float]) -> None:
    theta, area = everywhere(600)
    mass = simulator.log_posterior(theta, torch.tensor([x])).exp().sum() * area
    assert mass == pytest.approx(1, abs=0.01)


def test_bayes_rule_from_simulations_alone() -> None:
    """E[h(theta)] under the posterior is the mean over simulations that gave about this x: rejection sampling."""
    generator_x = torch.tensor([-0.4, 0.2])
    theta, x = simulator.sample_pairs(3_000_000)
    near = theta[(x - generator_x).abs().amax(-1) < 0.015]
    exact = simulator.sample_posterior(generator_x, 4000)
    assert len(near) > 300
    assert len(exact) == 4000
    for h in (lambda t: t, lambda t: t**2, lambda t: (t.sum(-1, keepdim=True) > 0).float()):
        ours, theirs = h(exact), h(near)
        error = torch.hypot(ours.std(0) / len(exact) ** 0.5, theirs.std(0) / len(near) ** 0.5)
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error + 2e-3).all()


def test_the_mass_of_the_sources() -> None:
    """Against crescent points at random, inside, at two borders and in the corner."""
    x = torch.tensor([[-0.6, 0.3], [-1.1, 0.1], [0.3, 0.0], [-1.12, 0.05]], dtype=torch.float64)
    points = simulator.sample_crescent((200_000,)).double()
    estimate = simulator.sources(points, x)[1].double().sum(-1).mean(-1)
    torch.testing.assert_close(simulator.mass_of_sources(x), estimate, atol=0.01, rtol=0)
    assert estimate[0] == 2
    assert (estimate[1:] < 1.9).all()


@pytest.mark.parametrize("x", [[-0.6, 0.3], [-1.1, 0.1]])
def test_samples_of_the_posterior_have_its_density(x: list[float]) -> None:
    """Their mean of log p is the negative entropy that the grid gives, and all lie in the box."""
    at = torch.tensor(x)
    samples = simulator.sample_posterior(at, 5000)
    log_p = simulator.log_posterior(samples, at[None])
    theta, area = everywhere(600)
    log_grid = simulator.log_posterior(theta, at[None])
    entropy = -torch.special.xlogy(log_grid.exp(), log_grid.exp()).sum() * area
    assert -log_p.mean() == pytest.approx(entropy.item(), abs=5 * log_p.std().item() / 5000**0.5 + 0.01)
    assert samples.abs().max() < 1


def test_an_untrained_flow_is_the_prior() -> None:
    flow = simulator.build({"couplings": 2, "hidden": [8]})
    theta, x = simulator.sample_pairs(100)
    torch.testing.assert_close(flow(theta, x), torch.full((100,), -math.log(4)), atol=1e-4, rtol=0)
    assert flow.sample((10,), x).abs().max() < 1


# ------------------------------------------------------------------------------------------------- calibration


def p_values(samples: Tensor, truth: Tensor) -> float:
    draws = len(samples)
    return simulator.uniform_p_value(simulator.histogram((samples < truth).sum(0), draws, 20))


@pytest.mark.parametrize(("scale", "shift", "calibrated"), [(1, 0, True), (0.8, 0, False), (1, 0.2, False)])
def test_the_ranks_tell_a_calibrated_posterior_from_others(scale: float, shift: float, calibrated: bool) -> None:
    truth = torch.randn(2000)
    p = p_values(scale * torch.randn(99, 2000) + shift, truth)
    assert (p > 0.01) is calibrated


def test_the_p_value_is_that_of_scipy() -> None:
    from scipy.stats import chisquare

    counts = torch.tensor([12, 9, 14, 7, 11, 8])
    assert simulator.uniform_p_value(counts) == pytest.approx(chisquare(counts.numpy()).pvalue, abs=1e-6)


def test_coverage() -> None:
    ranks = torch.arange(200)  # one of each: perfectly calibrated
    for mass in (0.05, 0.5, 0.95):
        assert simulator.coverage_of(ranks, 199, mass) == pytest.approx(mass)
    assert simulator.coverage_of(torch.full((10,), 199), 199, 0.05) == 1  # always where q is highest


def test_the_classifier() -> None:
    first, second = torch.randn(500, 2), torch.randn(500, 2)
    assert simulator.two_sample_accuracy(first, second, seed=0) < 0.57
    assert simulator.two_sample_accuracy(first, second + 2, seed=0) > 0.75
