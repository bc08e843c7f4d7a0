"""The flows that learn the posteriors of simulators, on one whose posterior is known."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

import simulators

BOX = (torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 2.0]))


class Task:
    """theta ~ U(box), x ~ N(theta, 0.3^2)."""

    def get_prior_params(self) -> dict[str, Tensor]:
        return dict(zip(("low", "high"), BOX, strict=True))

    def get_prior(self) -> Any:
        return lambda num_samples: Uniform(*BOX).sample((num_samples,))

    def get_simulator(self) -> Any:
        return lambda theta: theta + 0.3 * torch.randn_like(theta)

    def get_observation(self, observation: int) -> Tensor:
        return torch.tensor([[0.9, 0.1 * observation]])

    def get_reference_posterior_samples(self, observation: int) -> Tensor:
        x = self.get_observation(observation)[0]
        draws = x + 0.3 * torch.randn(40_000, 2)
        return draws[((draws >= BOX[0]) & (draws <= BOX[1])).all(1)]


def exact_loss(theta: Tensor, x: Tensor) -> float:
    normal = Normal(x, 0.3)
    mass = normal.cdf(BOX[1]) - normal.cdf(BOX[0])
    return -(normal.log_prob(theta) - mass.log()).sum(1).mean().item()


def test_features_are_linear_near_the_median_and_tame_far_away() -> None:
    torch.manual_seed(0)
    x = 5 + 2 * torch.randn(10_000, 1)
    features = simulators.Features(x)
    places = torch.tensor([[5.0], [7.0], [11.0], [2e6], [-2e6]])
    found = features(places)[:, 0]
    torch.testing.assert_close(found[:3], torch.tensor([0.0, 1.0, 3.0]), atol=0.1, rtol=0)
    assert 10 < found[3] < 20
    assert -20 < found[4] < -10


@pytest.mark.parametrize("candidate", simulators.candidates(BOX))
def test_a_candidate_is_a_density_of_the_scale_of_theta(candidate: simulators.Candidate) -> None:
    torch.manual_seed(0)
    theta = Task().get_prior()(500)
    flow = candidate.flow(theta, Task().get_simulator()(theta), BOX).eval()
    draws = flow.sample((2000,), torch.zeros(2))
    inside = simulators.Posterior([flow], BOX).inside(draws)
    assert inside.all() == candidate.bounded
    assert inside.double().mean() > 0.5
    assert flow(theta, torch.zeros(500, 2)).isfinite().all()


def test_without_a_box_there_are_no_bounds() -> None:
    assert [candidate.bounded for candidate in simulators.candidates(None)] == [False, False]
    posterior = simulators.Posterior([], None)
    assert posterior.inside(torch.full((3, 2), 1e9)).all()


def test_what_leaks_out_of_the_support_is_made_good() -> None:
    """A flow that is the untruncated posterior becomes the posterior."""
    torch.manual_seed(0)
    theta = Task().get_prior()(4000)
    x = Task().get_simulator()(theta)
    candidate = simulators.Candidate(bounded=False, dropout=0.0, weight_decay=0.0)
    flow = candidate.flow(theta, x, BOX).eval()

    class Exact(torch.nn.Module):
        def forward(self, theta: Tensor, x: Tensor) -> Tensor:
            return Normal(x, 0.3).log_prob(theta).sum(-1)

        def sample(self, shape: tuple[int, ...], x: Tensor) -> Tensor:
            return x + 0.3 * torch.randn(*shape, *x.shape)

    posterior = simulators.Posterior([Exact()], BOX)
    assert posterior.loss(theta, x) == pytest.approx(exact_loss(theta, x), abs=0.02)
    draws = posterior.sample(3000, torch.tensor([0.9, 0.5]))
    assert draws.shape == (3000, 2)
    assert posterior.inside(draws).all()
    assert simulators.Posterior([flow, Exact()], BOX).sample(101, x[0]).shape == (101, 2)


def test_learning_comes_near_the_exact_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    two = simulators.candidates(BOX)[2:]  # enough to choose from
    monkeypatch.setattr(simulators, "candidates", lambda box: two)
    torch.manual_seed(0)
    theta = Task().get_prior()(2000)
    x = Task().get_simulator()(theta)
    options = argparse.Namespace(seed=0, steps=60, members=2)
    posterior, chosen = simulators.learn(theta, x, BOX, options)
    assert len(posterior.flows) == 2
    fresh = Task().get_prior()(2000)
    seen = Task().get_simulator()(fresh)
    for flow in posterior.flows:
        loss = simulators.Posterior([flow], BOX).loss(fresh, seen)
        assert exact_loss(fresh, seen) - 0.03 < loss < exact_loss(fresh, seen) + 0.35
    assert chosen["held_out_nats"] == pytest.approx(exact_loss(fresh, seen), abs=0.4)


@pytest.mark.parametrize("better", [True, False])
def test_the_candidate_with_the_lowest_held_out_loss_is_taken(better: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(posterior: simulators.Posterior, theta: Tensor, x: Tensor) -> float:
        (flow,) = posterior.flows
        return 1.0 if isinstance(flow.base, simulators.MixedBase) == better else 2.0

    monkeypatch.setattr(simulators.Posterior, "loss", loss)
    theta = Task().get_prior()(50)
    options = argparse.Namespace(seed=0, steps=1, members=1)
    _, chosen = simulators.learn(theta, Task().get_simulator()(theta), BOX, options)
    assert (chosen["bounded"], chosen["held_out_nats"]) == (better, 1.0)


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[int, int]] = []

    def c2st(first: Tensor, second: Tensor) -> Tensor:
        judged.append((len(first), len(second)))
        return torch.tensor([0.5 + 0.01 * len(judged)])

    fake, metrics = types.ModuleType("sbibm"), types.ModuleType("sbibm.metrics")
    fake.get_task, metrics.c2st = lambda name: Task(), c2st  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sbibm", fake)
    monkeypatch.setitem(sys.modules, "sbibm.metrics", metrics)
    monkeypatch.setattr(simulators, "DRAWS", 100)
    arguments = ["--tasks", "two_moons", "--observations", "1", "2", "--simulations", "100", "--steps", "2"]
    for _ in range(2):  # the second finds all done
        simulators.main([*arguments, "--members", "1", "--out", str(tmp_path)])
    *each, task = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["c2st"] for row in each] == [pytest.approx(0.51), pytest.approx(0.52)]
    assert task["mean_c2st"] == pytest.approx(0.515)
    assert judged == [(100, 100)] * 2
    assert (tmp_path / "run.json").is_file()
