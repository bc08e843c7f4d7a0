"""The comparison with published ELBOs: on a model so small that its evidence is known, and the reading of its table."""

import csv
import json
import math
import os
from pathlib import Path

import pytest
import torch

import bbvi as benchmark

ROOT = os.environ.get("BBVI_ROOT")
FIELDS = ["good_model_names", *benchmark.COLUMNS, "augmentation_param_M", "sampling_M", "seed", "final_metric"]


def write_results(path, elbos):
    """Writes the metrics of every seed and method, and those of importance-weighted bounds, which are higher."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for place, key in enumerate(benchmark.PUBLISHED.values()):
            for seed, elbo in enumerate(elbos):
                for trained, sampled in [(1, 10), (1, 1), (10, 1)]:
                    metric = "" if elbo is None else elbo + place + 100 * (trained * sampled > 1)
                    writer.writerow(["irt", *key, trained, sampled, seed, metric])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "irt.data.R").write_text(
        "J <- 1\nK <- 1\nN <- 4\njj <- c(1, 1, 1, 1)\nkk <- c(1, 1, 1, 1)\ny <- c(1, 0, 1, 1)"
    )
    write_results(tmp_path / "results.csv", [-9.0, -5.0, -7.0])
    return tmp_path


def evidence_of_stan():
    """The logarithm of the integral of what Stan computes for these data: three right answers, and a wrong one."""
    side = torch.linspace(-8, 8, 81, dtype=torch.float64)
    delta, alpha, beta = side[:, None, None], side[:, None], side
    logit = alpha - beta + delta
    log_p = -0.5 * ((delta - 0.75) ** 2 + alpha**2 + beta**2) - 3 * (-logit).exp().log1p() - logit.exp().log1p()
    return float(log_p.flatten().logsumexp(0)) + 3 * math.log(16 / 80)


def test_elbo_is_just_below_the_evidence_of_stan(root, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "DRAWS", 4000)
    benchmark.main(["--root", str(root), "--models", "irt", "--steps", "40", "--out", str(root / "out")])
    (row,) = [json.loads(line) for line in (root / "out" / "metrics.jsonl").read_text().splitlines()]
    assert row["elbo_error"] < 0.01
    assert -0.05 < row["elbo"] - evidence_of_stan() < 4 * row["elbo_error"]
    assert row["published"] == {"ADVI": -7, "full rank": -6, "RealNVP, total": -5, "RealNVP, path": -4}
    assert (row["model"], row["steps"], row["seed"]) == ("irt", 40, 0)
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["path", "seconds"]
    assert line.split()[:2] == ["irt", f"{row['elbo']:.2f}"]
    assert line.split()[-5:-1] == ["-7.00", "-6.00", "-5.00", "-4.00"]


def test_a_seed_without_a_metric_has_failed(root):
    write_results(root / "results.csv", [-9.0, None, -7.0])
    assert benchmark.published(root / "results.csv", "irt")["ADVI"] == -9
    with pytest.raises(SystemExit, match="has no ELBO of the method ADVI on the model dogs"):
        benchmark.published(root / "results.csv", "dogs")


def test_without_the_folder_a_sentence(root):
    with pytest.raises(SystemExit, match=r"Nothing is compared, as there is no folder .*nowhere\."):
        benchmark.main(["--root", str(root / "nowhere")])
    with pytest.raises(SystemExit, match=r"There is no file .*dogs\.data\.R\."):
        benchmark.main(["--root", str(root), "--models", "dogs"])
    (root / "results.csv").unlink()
    with pytest.raises(SystemExit, match=r"There is no file .*results\.csv\."):
        benchmark.main(["--root", str(root), "--models", "irt"])


@pytest.mark.skipif(ROOT is None, reason="BBVI_ROOT names no folder with the published results")
@pytest.mark.parametrize(
    ("model", "medians"),
    [
        ("dogs", [-298.45, -298.26, -298.34, -298.26]),
        ("hepatitis", [-54.16, -159.03, -52.03, -51.15]),
        ("irt", [-15460.27, -15424.07, -15425.01, -15424.27]),
    ],
)
def test_published_medians(model, medians):
    found = benchmark.published(Path(ROOT) / "results.csv", model)
    assert list(found.values()) == pytest.approx(medians, abs=0.006)
