"""examples/energies.py: the energies are those of the table, the numbers that judge a flow are right, a run ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import energies
from pyro_realnvp import load

TINY = ["--steps", "4", "--interval", "2", "--batch", "16", "--couplings", "2", "--hidden", "8", "--device", "cpu"]
NAMES = ("u1", "u2", "u3", "u4")


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "TEST_SAMPLES", 2000)


def normal_energy(z: Tensor) -> Tensor:
    return 0.5 * z.square().sum(-1)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- the energies


def test_values_worked_by_hand() -> None:
    def value(name: str, z1: float, z2: float) -> float:
        return energies.ENERGIES[name].potential(torch.tensor([z1, z2], dtype=torch.float64)).item()

    # On the ring; w1(1) = 1, w1(3) = -1; w2(1) = 3, w2(1.6) = 3 exp(-1/2); w3(1) = 1.5.
    assert value("u1", 2, 0) == pytest.approx(0, abs=1e-9)
    assert value("u1", 0, -2.4) == pytest.approx(0.5 + 0.5 * (2 / 0.6) ** 2 - math.log(2))
    assert value("u2", 1, 1.4) == pytest.approx(0.5)
    assert value("u2", 3, -1) == pytest.approx(0, abs=1e-12)
    assert value("u3", 1, 1) == value("u3", 1, -2) == pytest.approx(0, abs=1e-12)
    assert value("u3", 1.6, math.sin(0.8 * math.pi) - 3 * math.exp(-0.5)) == pytest.approx(-math.exp(-13.51), rel=0.01)
    assert value("u3", -3, 1 + 0.35) == pytest.approx(0.5 - math.log(2))  # one branch, twice
    assert value("u4", 1, 1) == pytest.approx(-math.log(1 + math.exp(-0.5 * (1.5 / 0.35) ** 2)))
    assert value("u4", 1, -0.5 - 0.35) == pytest.approx(0.5 - math.log1p(math.exp(0.5 - 0.5 * (1.85 / 0.4) ** 2)))


@pytest.mark.parametrize("name", NAMES[1:])
def test_confinement_begins_at_the_window(name: str) -> None:
    energy = energies.ENERGIES[name].potential
    # The sine has the period 4, and the branches of u3 are one on both sides: only the confinement differs.
    inside, outside = torch.tensor([[-3.9, 0.3], [-3.7, 0.0]]), torch.tensor([[-7.9, 0.3], [-7.7, 0.0]])
    expected = 0.5 * ((outside[:, 0].abs() - 4) / 0.4) ** 2
    torch.testing.assert_close(energy(outside) - energy(inside), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "widths"), [("u2", (0.4,)), ("u3", (0.35, 0.35)), ("u4", (0.4, 0.35))])
def test_log_z_in_closed_form(name: str, widths: tuple[float, ...]) -> None:
    # At every z1 each branch is a Gaussian bump in z2, and the confinement leaves half a Gaussian at either end.
    root = math.sqrt(2 * math.pi)
    expected = math.log(root * sum(widths) * (8 + 0.4 * root))
    assert energies.ENERGIES[name].truth.log_z == pytest.approx(expected, abs=1e-6)


def test_log_z_of_the_ring_in_polar_coordinates() -> None:
    radius = (torch.arange(6000, dtype=torch.float64) + 0.5) * 1e-3
    angle = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000)
    r, phi = torch.meshgrid(radius, angle, indexing="ij")
    inner = torch.exp(-0.5 * ((r * phi.cos() - 2) / 0.6) ** 2) + torch.exp(-0.5 * ((r * phi.cos() + 2) / 0.6) ** 2)
    z = (r * torch.exp(-0.5 * ((r - 2) / 0.4) ** 2) * inner).sum().item() * 1e-3 * 2 * math.pi / 1000
    assert energies.ENERGIES["u1"].truth.log_z == pytest.approx(math.log(z), abs=1e-5)


def test_modes() -> None:
    def mode(name: str, z1: float, z2: float) -> str:
        energy = energies.ENERGIES[name]
        return energy.modes[energy.mode(torch.tensor([z1, z2]))]

    assert [mode("u1", z1, 0.0) for z1 in (-1.0, 1.0)] == ["left", "right"]
    assert [mode("u2", z1, 0.0) for z1 in (-9.0, -3.0, -1.0, 1.0, 3.0, 9.0)] == [
        *("z1 < -2", "z1 < -2", "-2 < z1 < 0", "0 < z1 < 2", "2 < z1", "2 < z1")
    ]
    assert [mode("u3", *z) for z in ((1.0, 1.0), (1.0, -2.0), (0.0, 0.0), (2.0, 0.0))] == [
        "upper",
        "lower",
        "stem",
        "stem",
    ]
    assert [mode("u4", *z) for z in ((3.0, -1.0), (3.0, -4.0), (0.0, 0.0))] == ["upper", "lower", "stem"]


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_the_truth_agree_with_its_quadrature(name: str) -> None:
    torch.manual_seed(0)
    energy = energies.ENERGIES[name]
    truth = energy.truth
    z = truth.sample(50_000)
    expected = energy.shares(truth.places, truth.p)
    assert sum(expected.values()) == pytest.approx(1)
    assert min(expected.values()) > 0.05
    for mode, share in energy.shares(z, torch.ones(len(z))).items():
        assert share == pytest.approx(expected[mode], abs=5 * math.sqrt(0.25 / len(z)))
    mean, square = truth.p @ truth.places, truth.p @ truth.places.square()
    error = 5 * (square - mean**2).sqrt() / math.sqrt(len(z))
    assert ((z.mean(0) - mean).abs() < error).all()


# --------------------------------------------------------------------------------------------------------- the fit


def test_annealing_rises_to_one() -> None:
    betas = [energies.annealed(step, 10, 0.5, 0.01) for step in range(10)]
    assert betas[0] == pytest.approx(0.01)
    assert all(before < after for before, after in pairwise(betas[:6]))
    assert betas[5:] == [1.0] * 5
    assert [energies.annealed(step, 4, 0.0, 0.01) for step in range(4)] == [1.0] * 4


def test_path_gradient_vanishes_at_the_solution_and_only_there() -> None:
    torch.manual_seed(0)
    flow = energies.build(2, [8])  # N(0, I) at the start

    def gradients(potential: Callable[[Tensor], Tensor]) -> list[Tensor]:
        flow.zero_grad()
        energies.path_loss(flow, energies.Energy("", potential, (), potential), 1.0, 64).backward()
        return [parameter.grad.clone() for parameter in flow.parameters()]

    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(normal_energy))
    assert max(gradient.abs().max() for gradient in gradients(lambda z: normal_energy(z - 1))) > 0.1


def test_path_gradient_is_that_of_the_reverse_kl() -> None:
    """Against the derivative by differences of the KL, known in closed form when the flow is one shift and scale."""
    torch.manual_seed(0)
    flow = energies.build(2, [8])
    last = [module for module in flow.modules() if isinstance(module, torch.nn.Linear)][-1]
    beta, count = 0.5, 200_000
    energy = energies.Energy("", lambda z: 2 * normal_energy(z - 1), (), normal_energy)
    energies.path_loss(flow, energy, beta, count).backward()
    # Data -> latent is x -> x exp(raw) + shift in one coordinate, z = (x - shift) exp(-raw). beta U = |z - 1|^2 / 2,
    # so d KL / d shift = E[(z - 1) dz/dshift] = 1 and d KL / d raw = E[(z - 1)(-z)] + 1 = 0 at shift = raw = 0.
    gradient = last.bias.grad
    moved = gradient.abs() > 0.5
    assert moved.sum() == 1
    assert gradient[moved].item() == pytest.approx(1, abs=0.02)
    assert gradient[~moved].abs().max() < 0.02


# -------------------------------------------------------------------------------------------------------- the test


def test_a_perfect_flow_has_perfect_numbers() -> None:
    flow = energies.build(2, [8])
    normal = energies.Energy("normal", normal_energy, ("all",), lambda z: 0 * z[..., 0].long())
    row = energies.test(flow, normal, torch.device("cpu"))
    assert row["ess"] == pytest.approx(100, abs=1e-3)
    assert row["forward_ess"] == pytest.approx(100, abs=1e-3)
    assert row["forward_kl"] == pytest.approx(0, abs=1e-5)
    assert row["log_z"] == pytest.approx(math.log(2 * math.pi), abs=1e-5)
    assert row["mode_error"] == pytest.approx(0, abs=1e-6)


def test_a_missing_mode_shows_forward_only() -> None:
    torch.manual_seed(0)
    flow = energies.build(2, [8])
    far = torch.tensor([6.0, 0.0])

    def two_bumps(z: Tensor) -> Tensor:
        narrow = normal_energy((z - far.to(z)) / 0.1) + math.log(0.1**2)
        return -torch.logaddexp(-normal_energy(z), -narrow)

    energy = energies.Energy("two bumps", two_bumps, ("near", "far"), lambda z: (z[..., 0] > 4).long())
    row = energies.test(flow, energy, torch.device("cpu"))
    assert row["ess"] > 95
    assert row["log_z"] == pytest.approx(math.log(2 * math.pi), abs=0.05)
    assert row["log_z_true"] == pytest.approx(math.log(4 * math.pi), abs=1e-3)
    assert row["forward_ess"] < 1
    assert row["forward_kl"] > 1
    assert row["missed"] == pytest.approx(0.5, abs=1e-3)
    assert row["modes"]["far"] < 0.001
    assert row["modes_true"]["far"] == pytest.approx(0.5, abs=1e-3)
    assert row["mode_error"] > 0.99


@pytest.mark.usefixtures("few_samples")
def test_a_run_writes_metrics_models_and_picture(tmp_path: Path) -> None:
    energies.main([*TINY, "--energy", "u1", "--compare", "--out", str(tmp_path)])
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [(row["energy"], row["anneal"]) for row in rows] == [("u1", 0.7), ("u1", 0.0)]
    for row in rows:
        assert 0 < row["ess"] <= 100
        assert 0 < row["forward_ess"] <= 100
        assert row["forward_kl"] > 0
        assert row["modes"].keys() == row["modes_true"].keys() == {"left", "right"}
        assert sum(row["modes"].values()) == pytest.approx(1)
    for folder in (tmp_path / "u1" / "annealed", tmp_path / "u1" / "not_annealed"):
        assert [row["step"] for row in rows_of(folder / "metrics.jsonl")] == [2, 4]
        flow = load(folder / "flow.safetensors")
        assert flow(torch.zeros(3, 2)).isfinite().all()
    assert (tmp_path / "energies.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("few_samples")
def test_the_seed_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "draw", lambda *_: None)
    losses = []
    for seed in ("0", "0", "1"):
        energies.main([*TINY, "--energy", "u2", "--seed", seed, "--fresh", "--out", str(tmp_path)])
        losses.append(rows_of(tmp_path / "metrics.jsonl")[-1]["forward_kl"])
    assert losses[0] == losses[1] != losses[2]


def test_a_diverged_training_ends_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="The loss became"):
        energies.main([*TINY, "--steps", "40", "--lr", "1e30", "--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_effective_sample_size(tmp_path: Path, name: str) -> None:
    energies.main(["--energy", name, "--out", str(tmp_path), "--device", "cpu"])
    (row,) = rows_of(tmp_path / "metrics.jsonl")
    assert row["ess"] >= 80
    assert row["forward_kl"] < 0.05
    assert row["missed"] < 0.01
    assert row["mode_error"] < 0.1
    assert row["log_z"] == pytest.approx(row["log_z_true"], abs=0.02)
