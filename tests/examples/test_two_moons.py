"""examples/two_moons.py: a tiny run writes everything it promises, its true density is right, its errors are clear."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import two_moons as moons
from pyro_realnvp import load

CONFIG = {"couplings": 2, "hidden": [8]}
TINY = ["--steps", "6", "--interval", "2", "--batch", "16", "--couplings", "2", "--hidden", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("two_moons")
    moons.main([*TINY, "--out", str(out)])
    return out


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Writes a checkpoint as version 0.1 did: weights alone, and the configuration in a file beside."""
    path = tmp_path / "flow.safetensors"
    save_file(moons.build(CONFIG).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(CONFIG))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sample_from(checkpoint: Path) -> None:
    moons.main(["--sample", str(checkpoint), "--out", str(checkpoint.parent / "again"), "--device", "cpu"])


def test_a_run_writes_metrics_model_and_picture(run: Path) -> None:
    *rows, last = rows_of(run)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert last.keys() == {"test_nats", "test_kl", "test_kl_error", "seconds"}
    assert last["test_kl"] > 0
    assert 0 < last["test_kl_error"] < 0.1
    assert (run / "two_moons.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "flow.safetensors").is_file()


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which only the numbers matter: the picture takes most of the time."""
    monkeypatch.setattr(moons, "draw", lambda *_: None)


@pytest.mark.usefixtures("no_picture")
def test_the_seed_decides(run: Path, tmp_path: Path) -> None:
    moons.main([*TINY, "--out", str(tmp_path / "same")])
    moons.main([*TINY, "--seed", "1", "--out", str(tmp_path / "other")])
    assert rows_of(tmp_path / "same")[-1]["test_kl"] == rows_of(run)[-1]["test_kl"]
    assert rows_of(tmp_path / "other")[-1]["test_kl"] != rows_of(run)[-1]["test_kl"]


@pytest.mark.usefixtures("no_picture")
def test_fixed_points_stop_early(tmp_path: Path) -> None:
    # A learning rate of 0 never improves on the start.
    options = ["--points", "50", "--lr", "0", "--steps", "20", "--patience", "3"]
    moons.main([*TINY, *options, "--out", str(tmp_path)])
    *rows, last = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert len({row["validation_nats"] for row in rows}) == 1
    assert "test_kl" in last


def test_sampling_from_a_checkpoint_restores_the_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moons.main(["--sample", str(run / "flow.safetensors"), "--out", str(tmp_path), "--device", "cpu"])
    kl, error = printed_kl(capsys.readouterr().out)
    before = rows_of(run)[-1]  # other test points
    assert abs(kl - before["test_kl"]) < 5 * math.hypot(error, before["test_kl_error"]) + 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["sample-of-flow.png"]
    assert load(run / "flow.safetensors").sample((5,)).shape == (5, 2)


def test_sampling_leaves_what_training_has_written(run: Path) -> None:
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(SystemExit, match=r"^2$"):
        moons.main(["--sample", str(run / "flaw.safetensors"), "--out", str(run), "--device", "cpu"])
    moons.main(["--sample", str(run / "flow.safetensors"), "--out", str(run), "--device", "cpu"])
    (run / "sample-of-flow.png").unlink()
    assert {file: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.usefixtures("no_picture")
def test_sampling_from_a_checkpoint_of_version_01(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample_from(old)
    assert printed_kl(capsys.readouterr().out)[0] > 1  # of a flow that has learned nothing


def printed_kl(text: str) -> tuple[float, float]:
    """The KL divergence of the line that the script prints, and its standard error."""
    kl, error = re.search(r"KL (\S+) \+- (\S+);", text).groups()
    return float(kl), float(error)


def test_log_density_against_monte_carlo() -> None:
    """A mean of Gaussians around random points of the arcs, in numbers that share no code with the quadrature."""
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.02, -0.53], [0.03, 0.45], [-1.0, -0.05], [0.5, 0.25]])
    angle = math.pi * torch.rand(400_000, generator=generator, dtype=torch.float64)
    outer = torch.stack([angle.cos(), angle.sin()], -1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    for place, log_p in zip(places, moons.log_density(places), strict=True):
        values = [
            torch.exp(-((arc - place) ** 2).sum(-1) / (2 * 0.05**2)) / (2 * math.pi * 0.05**2) for arc in (outer, inner)
        ]
        density = (values[0] + values[1]) / 2
        error = density.std() / math.sqrt(len(density))
        assert abs(density.mean() - log_p.exp()) < 5 * error


def test_log_density_integrates_to_one_and_the_quadrature_has_converged() -> None:
    # Sums over a grid of 0.4 standard deviations of the noise are as good as integrals.
    x, y = torch.linspace(-1.5, 2.5, 201), torch.linspace(-1.0, 1.5, 126)
    places = torch.cartesian_prod(x, y)
    assert moons.log_density(places).exp().sum() * 0.02**2 == pytest.approx(1, abs=1e-6)
    near, _ = moons.sample_moons(500)
    torch.testing.assert_close(moons.log_density(near), moons.log_density(near, nodes=1024), rtol=0, atol=1e-9)


def test_entropy_of_the_generator() -> None:
    torch.manual_seed(0)
    x, _ = moons.sample_moons(100_000)
    log_p = moons.log_density(x)
    assert -log_p.mean() == pytest.approx(0.287, abs=4 * log_p.std().item() / math.sqrt(len(x)))


def test_generator_has_the_law_of_make_moons() -> None:
    from sklearn.datasets import make_moons

    torch.manual_seed(0)
    count = 100_000
    x, inner = moons.sample_moons(count)
    theirs, labels = make_moons(count, noise=0.05, random_state=0)
    theirs = torch.tensor(theirs, dtype=torch.float32)
    # The angles of make_moons are equally spaced, ours are random; their means agree up to our standard error.
    for ours, reference in ((x[inner], theirs[labels == 1]), (x[~inner], theirs[labels == 0])):
        for moment in (1, 2, 3):
            error = 5 * (ours**moment).std(0) / math.sqrt(len(ours))
            assert (((ours**moment).mean(0) - (reference**moment).mean(0)).abs() < error).all()
    assert inner.float().mean() == pytest.approx(0.5, abs=0.01)


def test_truncated_checkpoint(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "flow.safetensors"
    damaged.write_bytes((run / "flow.safetensors").read_bytes()[:-100])
    with pytest.raises(SystemExit, match="truncated"):
        sample_from(damaged)


def test_old_checkpoint_without_its_configuration(old: Path) -> None:
    old.with_suffix(".json").unlink()
    with pytest.raises(SystemExit, match=r"There is no file .*flow.json"):
        sample_from(old)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"couplings": 2}', "does not describe a flow of this script"),
        ('{"couplings": 0, "hidden": [8]}', "does not describe a flow of this script"),
        ("[]", "is no JSON object"),
        ("{", "is no JSON"),
        ('{"couplings": 3, "hidden": [8]}', "of another architecture"),
        ('{"couplings": 2, "hidden": [9]}', "of another architecture"),
    ],
)
def test_old_checkpoint_with_another_configuration(old: Path, config: str, message: str) -> None:
    old.with_suffix(".json").write_text(config)
    with pytest.raises(SystemExit, match=message):
        sample_from(old)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--device warp cannot be used here"):
        moons.main([*TINY, "--device", "warp", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="The loss became"):
        moons.main([*TINY, "--lr", "1e30", "--out", str(tmp_path)])
