"""Measures the guide: a step beside one of AutoIAFNormal, and posteriors by ``fit_guide`` beside reference draws.

    python benchmarks/guides.py                     # eight schools, half a minute on one core
    python benchmarks/guides.py --root DIR          # six posteriors of posteriordb from DIR

Steps are those of ``Trace_ELBO(32, vectorize_particles=True)`` and ``ClippedAdam``, interleaved; the ratio is that of
their medians. Posteriors are trained without options: seconds are those of the process, with the search for a start
and the report. ``--out`` receives ``metrics.jsonl``: a row of the step, and one for every posterior.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from pyro.optim import ClippedAdam

from pyro_realnvp import AutoRealNVP, fit_guide

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.metrics import Metrics
from shared.option_types import COUNT, SEED, out_folder
from shared.options import set_seed
from shared.posteriordb import POSTERIORS, errors, load
from shared.provenance import write_provenance

DRAWS = 20_000


def step_ratio(rounds: int) -> tuple[float, float]:
    """Returns the median milliseconds of a step of AutoRealNVP and of AutoIAFNormal, on non-centred eight schools."""
    pyro.clear_param_store()
    model = load(next(iter(POSTERIORS))).model
    steps = []
    for guide in (AutoRealNVP(model), AutoIAFNormal(model)):
        optimizer = ClippedAdam({"lr": 5e-3, "lrd": 0.999})
        steps.append(SVI(model, guide, optimizer, Trace_ELBO(32, vectorize_particles=True)).step)
    times: list[list[float]] = [[], []]
    for index in range(rounds + 10):
        for step, taken in zip(steps, times, strict=True):
            start = perf_counter()
            step()
            if index >= 10:
                taken.append(1e3 * (perf_counter() - start))
    return median(times[0]), median(times[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures the guide.")
    parser.add_argument("--root", type=Path, help="folder of posteriordb; without it, eight schools alone")
    parser.add_argument("--rounds", type=COUNT, default=400, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--steps", type=COUNT, default=5000, help="the most of a training (default: %(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--out", type=out_folder, default="runs/guides", help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    write_provenance(options.out, keep=False)
    metrics = Metrics(options.out)
    set_seed(options.seed)
    ours, other = step_ratio(options.rounds)
    metrics.write({"ours_ms": ours, "iaf_ms": other, "ratio": ours / other})
    print(f"a step: AutoRealNVP {ours:.2f} ms, AutoIAFNormal {other:.2f} ms, ratio {ours / other:.2f}")
    for name in list(POSTERIORS)[: None if options.root else 1]:
        posterior = load(name, options.root)
        pyro.clear_param_store()
        set_seed(options.seed)
        start = process_time()
        guide = AutoRealNVP(posterior.model)
        report = fit_guide(posterior.model, guide, steps=options.steps, progress=False)
        seconds = process_time() - start
        found = errors(posterior.scalars(guide.sample_posterior((DRAWS,))), posterior.reference)
        row = {"posterior": name, "latents": guide.latent_dim, "steps": report.steps, "seconds": round(seconds, 1)}
        metrics.write({**row, **found, "pareto_k": report.pareto_k, "ess": report.ess, "elbo": report.elbo})
        print(
            f"{name:40}{guide.latent_dim:4d} latents{report.steps:6d} steps{seconds:5.0f} s   mean error "
            f"{found['mean_error']:.3f} sd   sd error {100 * found['sd_error']:.1f} %   k-hat {report.pareto_k:.2f}   "
            f"ESS {100 * report.ess:.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # the layers are small
    main()
