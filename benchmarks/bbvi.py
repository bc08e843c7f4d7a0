"""Compares the ELBO of AutoRealNVP with published ones, on nine example models of Stan.

    python benchmarks/bbvi.py --root DIR                       # all nine, twenty minutes on one core
    python benchmarks/bbvi.py --root DIR --models dogs irt --steps 1000

``DIR`` has ``<model>.data.R`` of https://github.com/stan-dev/example-models, and ``results.csv``: the final metrics
that Agrawal, Sheldon, Domke (2020) have published with "Advances in black-box VI: normalizing flows, importance
weighting, and optimization": medians of three seeds, those of RealNVP after 30,000 steps with the best of several
step sizes. Beside each other, in nats (more is better), and without the constants that Stan drops:

    AutoRealNVP            with its defaults, trained by ``fit_guide``: the mean log-weight of 100,000 fresh draws
    ADVI                   a Gaussian with the step sizes of Stan's ADVI
    full rank              a Gaussian from a Laplace approximation, with the gradient of the path alone
    RealNVP, total         a RealNVP, with the total gradient
    RealNVP, path          the same, with the gradient of the path alone: "sticking the landing"

``--out`` receives ``metrics.jsonl``, with a row for every model: ``elbo`` and ``elbo_error``, its standard error,
``pareto_k`` of the importance weights, which is -inf for a guide that is as good as exact, and the published medians.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pyro
import torch

from pyro_realnvp import AutoRealNVP, fit_guide, importance_sample

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.bbvi import PROGRAMS, Program, load
from shared.metrics import Metrics
from shared.option_types import COUNT, SEED, out_folder
from shared.options import fail, set_seed
from shared.provenance import write_provenance

DRAWS, DRAWS_AT_ONCE = 100_000, 1000
OURS = "AutoRealNVP"
COLUMNS = ("vi_family", "grad_estimator_type", "laplaces_method_use", "step_size_scheme")
PUBLISHED = {
    "ADVI": ("gaussian", "closed-form-entropy", "0", "ADVI"),
    "full rank": ("gaussian", "IWAEDREG", "1", "comprehensive step search"),
    "RealNVP, total": ("rnvp", "IWAE", "0", "comprehensive step search"),
    "RealNVP, path": ("rnvp", "IWAEDREG", "0", "comprehensive step search"),
}
WITHOUT_WEIGHTING = {"augmentation_param_M": "1", "sampling_M": "1"}  # the bound is the ELBO


def published(file: Path, model: str) -> dict[str, float]:
    """Returns the median over the seeds of the published ELBOs of a model, by method; a seed without one has failed."""
    with file.open(newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if {"good_model_names": model, **WITHOUT_WEIGHTING}.items() <= row.items()
        ]
    found = {}
    for method, key in PUBLISHED.items():
        elbos = [
            float(row["final_metric"] or -math.inf) for row in rows if tuple(row[column] for column in COLUMNS) == key
        ]
        if not elbos:
            fail(f"{file} has no ELBO of the method {method} on the model {model}.")
        found[method] = median(elbos)
    return found


def train(program: Program, *, steps: int) -> tuple[AutoRealNVP, int]:
    """Trains the guide by the one call with its defaults; returns it and the number of its steps."""
    pyro.clear_param_store()
    guide = AutoRealNVP(program.model)
    report = fit_guide(program.model, guide, steps=steps, draws=1000)
    return guide, report.steps


def judge(program: Program, guide: AutoRealNVP) -> dict[str, float]:
    """Estimates the ELBO that Stan would find for the guide, from fresh draws."""
    weighted = importance_sample(
        program.model, guide, num_samples=DRAWS, parallel=True, batch_size=min(DRAWS, DRAWS_AT_ONCE)
    )
    log_weights = weighted.log_weights.double()
    return {
        "elbo": float(log_weights.mean()) - program.dropped_constant,
        "elbo_error": float(log_weights.std()) / math.sqrt(DRAWS),
        "pareto_k": weighted.pareto_k,
    }


def line(row: Mapping[str, Any]) -> str:
    ours = f"{row['elbo']:.2f} +- {row['elbo_error']:.3f}"
    others = "".join(f"{row['published'][method]:>16.2f}" for method in PUBLISHED)
    return f"{row['model']:18}{ours:>20}{row['pareto_k']:>7.2f}{others}{row['seconds']:>8.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares the ELBO of AutoRealNVP with published ones.")
    parser.add_argument("--root", type=Path, required=True, help="folder with <model>.data.R and results.csv")
    parser.add_argument("--models", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS), metavar="MODEL")
    parser.add_argument("--steps", type=COUNT, default=5000, help="the most gradient steps (default: %(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--out", type=out_folder, default="runs/bbvi", help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not options.root.is_dir():
        fail(f"Nothing is compared, as there is no folder {options.root}.")
    results = options.root / "results.csv"
    if not results.is_file():
        fail(f"There is no file {results}.")
    tasks = {name: (load(name, options.root), published(results, name)) for name in options.models}

    options.out.mkdir(parents=True, exist_ok=True)
    write_provenance(options.out, keep=False)
    metrics = Metrics(options.out)
    heads = "".join(f"{method:>16}" for method in PUBLISHED)
    print(f"{'ELBO in nats':18}{OURS:>20}{'k-hat':>7}{heads}{'seconds':>8}", flush=True)
    for name, (program, others) in tasks.items():
        set_seed(options.seed)
        start = perf_counter()
        guide, steps = train(program, steps=options.steps)
        seconds = round(perf_counter() - start, 1)
        row = {"model": name, "latents": guide.latent_dim, "steps": steps, "seed": options.seed, "seconds": seconds}
        row |= {**judge(program, guide), "published": others}
        metrics.write(row)
        print(line(row), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the layers are small
    warnings.simplefilter("always", UserWarning)  # of a poor start: on every model, not on the first alone
    main()
