"""Infers a posterior end to end: a flow guide, how far it can be trusted, and what other guides of Pyro make of it.

    python examples/posterior.py                                        # eight schools, against its exact posterior
    python examples/posterior.py --compare                              # the same, and four guides of Pyro beside it
    python examples/posterior.py --posterior arK-arK --root DIR         # a posterior of posteriordb from DIR

Every guide is trained with its defaults by ``ClippedAdam({"lr": 5e-3, "lrd": 0.999})`` and 32 vectorised particles: the
flow for ``--steps`` steps, the others for the same wall time, which includes finding a start. The last rows of
``metrics.jsonl`` have for each guide

    elbo                    the mean log-weight of 20,000 fresh draws, in nats; with elbo_error, its standard error,
    mean_error, sd_error    the largest error of a marginal mean, in standard deviations of the reference, and of a
                            marginal standard deviation, relative,
    pareto_k, ess           Pareto k-hat of the importance weights, and their effective sample size as a fraction,
    corrected_...           the same two errors after importance resampling.

``--out`` also receives ``posterior.png``: the loss, and the marginals beside the reference.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoIAFNormal, AutoMultivariateNormal, AutoNormal, AutoNormalizingFlow
from pyro.optim import ClippedAdam
from tqdm import tqdm

from pyro_realnvp import AutoRealNVP, Checkpoint, FiniteELBO, importance_sample
from pyro_realnvp.training.divergence import DivergedError

from shared.metrics import Metrics
from shared.options import add_options, set_seed
from shared.pictures import save_figure
from shared.posteriordb import POSTERIORS, Draws, Posterior, errors, load
from shared.pyro_state import OptimizerState
from shared.run import Run, open_run

DRAWS = 20_000
GUIDES: dict[str, Callable[..., AutoGuide]] = {
    "AutoRealNVP": AutoRealNVP,
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
    "AutoNormalizingFlow": lambda model: AutoNormalizingFlow(
        model, lambda dim: iterated(8, partial(affine_coupling, dim))
    ),
}


class Losses:
    """Keeps the losses of a training, and its seconds, as a part of what a checkpoint tracks."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._start = perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values, self._start = list(state["values"]), perf_counter() - float(state["seconds"])


def train(
    name: str, model: Callable[[], None], checkpoint: Checkpoint, *, steps: int, seconds: float, skip: bool
) -> tuple[AutoGuide, list[float], float]:
    """Trains a guide for so many steps or seconds, whichever is first; returns it, its losses, and the seconds.

    ``skip``: a step whose loss or gradient is not finite is left out, instead of ending the training.
    """
    pyro.clear_param_store()
    course = Losses()
    guide = GUIDES[name](model)
    bound = Trace_ELBO(32, vectorize_particles=True)
    svi = SVI(model, guide, ClippedAdam({"lr": 5e-3, "lrd": 0.999}), FiniteELBO(bound) if skip else bound)
    if isinstance(guide, AutoRealNVP):
        guide.initialize()
    else:
        guide()  # its first call makes its parameters
    checkpoint.track(guide=guide, optimizer=OptimizerState(svi.optim), losses=course)
    losses = course.values
    total = steps if steps < math.inf else None
    with checkpoint.steps(), tqdm(total=total, initial=len(losses), desc=name, unit="step", mininterval=0.5) as bar:
        while len(losses) < steps and course.seconds < seconds:
            loss = svi.step()
            if not math.isfinite(loss) and not skip:
                raise DivergedError(f"The loss of {name} became {loss} after {len(losses)} steps")
            losses.append(loss)
            if len(losses) % 50 == 0:
                bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} nats", refresh=False)
            bar.update()
            if checkpoint.is_due():
                checkpoint.poll()
    return guide, losses, course.seconds


def judge(posterior: Posterior, guide: AutoGuide) -> tuple[dict[str, float], Draws]:
    """The row of a guide in the metrics, and its draws."""
    weighted = importance_sample(posterior.model, guide, num_samples=DRAWS, parallel=True)
    log_weights = weighted.log_weights.double()
    draws = posterior.scalars(dict(weighted.samples))
    corrected = posterior.scalars(weighted.smoothed().resample(DRAWS))
    row = {
        "elbo": float(log_weights.mean()),
        "elbo_error": float(log_weights.std()) / math.sqrt(DRAWS),
        **errors(draws, posterior.reference),
        "pareto_k": weighted.pareto_k,
        "ess": weighted.effective_sample_size / DRAWS,
        **{f"corrected_{key}": value for key, value in errors(corrected, posterior.reference).items()},
    }
    return row, draws


def draw(path: Path, posterior: Posterior, losses: Sequence[float], draws: Draws, pareto_k: float) -> None:
    """Draws the loss, smoothed and from where it has come down, and up to eleven marginals beside the reference."""
    names = list(posterior.reference)[-11:]
    rows = -(-(len(names) + 1) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(14, 2.7 * rows), squeeze=False, layout="constrained")
    width = max(1, len(losses) // 100)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    first, *others = axes.flat
    first.plot(np.arange(len(smooth)) + width, smooth, color="tab:blue")
    first.set(xlabel="step", title="-ELBO (nats)")
    for axis, name in zip(others, names, strict=False):
        truth, value = posterior.reference[name].numpy(), draws[name].numpy()
        bins = np.linspace(*np.quantile(truth, [0.001, 0.999]), 50)
        axis.hist(truth, bins, density=True, color="0.8", label="reference")
        axis.hist(value, bins, density=True, histtype="step", color="tab:blue", linewidth=1.5, label="AutoRealNVP")
        axis.set(title=name, yticks=[])
    for axis in others[len(names) :]:
        axis.axis("off")
    others[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{posterior.name}, Pareto k-hat {pareto_k:.2f}")
    save_figure(path, figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/posterior", steps=3000)
    parser.add_argument(
        "--posterior", choices=POSTERIORS, default=next(iter(POSTERIORS)), help="(default: %(default)s)"
    )
    parser.add_argument("--root", type=Path, help="folder of posteriordb")
    others = list(GUIDES)[1:]
    parser.add_argument(
        "--compare",
        nargs="*",
        choices=others,
        metavar="GUIDE",
        help=f"train these too, for the same time: {others}",
    )
    options = parser.parse_args(arguments)
    if options.device not in ("auto", "cpu"):
        parser.error(f"argument --device: these posteriors are small and run on the CPU, but got {options.device}")
    logging.getLogger("pyro").setLevel(logging.WARNING)
    set_seed(options.seed)
    posterior = load(options.posterior, options.root)
    compared = [] if options.compare is None else options.compare or others
    with open_run(options, stages=["AutoRealNVP", *compared]) as run:
        if not run.is_finished:
            infer(posterior, options, run, compared)


def infer(posterior: Posterior, options: argparse.Namespace, run: Run, compared: Sequence[str]) -> None:
    """Trains the guide, and the others for the time that it took, and reports on each."""
    metrics, skip = run.metrics, options.on_nan == "skip"
    with run.stage("AutoRealNVP") as checkpoint:
        if checkpoint.result is None:
            guide, losses, seconds = train(
                "AutoRealNVP", posterior.model, checkpoint, steps=options.steps, seconds=math.inf, skip=skip
            )
            for step in range(0, len(losses), 50):
                metrics.write({"step": step, "loss": float(np.mean(losses[step : step + 50]))})
            row, draws = judge(posterior, guide)
            draw(options.out / "posterior.png", posterior, losses, draws, row["pareto_k"])
            outcome = report(metrics, "AutoRealNVP", len(losses), seconds, row)
            run.finish_stage(checkpoint, seconds=seconds, outcome=outcome)
        else:
            seconds, outcome = checkpoint.result["seconds"], checkpoint.result["outcome"]
    for name in compared:
        with run.stage(name) as checkpoint:
            if checkpoint.result is not None:
                continue
            set_seed(options.seed)
            try:
                guide, losses, used = train(name, posterior.model, checkpoint, steps=10**9, seconds=seconds, skip=skip)
                row, _ = judge(posterior, guide)
                report(metrics, name, len(losses), used, row)
            except (ValueError, DivergedError) as error:  # an infinite loss, a parameter that is not a number
                print(f"{name:24s} failed: {str(error).splitlines()[0]}")
                metrics.write({"guide": name, "failed": str(error).splitlines()[0]})
            run.finish_stage(checkpoint)
    run.finish(outcome)


def report(metrics: Metrics, name: str, steps: int, seconds: float, row: dict[str, float]) -> str:
    """Writes the row of a guide; prints it as one line, and returns that."""
    metrics.write({"guide": name, "steps": steps, "seconds": round(seconds, 1), **row})
    line = (
        f"{name:24s}{steps:6d} steps {seconds:5.0f} s   ELBO {row['elbo']:.3f} +- {row['elbo_error']:.3f}   "
        f"mean error {row['mean_error']:.3f} sd   sd error {100 * row['sd_error']:.1f} %   "
        f"k-hat {row['pareto_k']:.2f}   ESS {100 * row['ess']:.0f} %"
    )
    print(line)
    return line


if __name__ == "__main__":
    main()
