"""Samples with a trained flow where plain MCMC struggles: neural transport, and independence moves.

    python examples/neutra.py                       # the three targets
    python examples/neutra.py --targets funnel      # only Neal's funnel

The default guide is trained on each target by SVI. Then

    funnel      v ~ N(0, 3^2), nine x_i ~ N(0, exp(v/2)^2) (Neal, 2003): NUTS on the model as it is, and through the
                guide (NeuTra; Hoffman et al., 2019);
    banana      a ~ N(0, 1), b ~ N(4 a^2, 0.4^2), as curved as the strongly twisted Gaussian of Haario, Saksman and
                Tamminen (1999): the same;
    bimodal     0.3 N((-4, 0), 0.5^2) + 0.7 N((4, 0), 1): NUTS, and Metropolis-Hastings with draws of the guide as
                proposals.

The guides of the last two are trained on the tempered density p(z)^beta, where beta rises geometrically to 1 over the
first 70 % of the steps. For bimodal it starts at 0.01, so flat that both modes are one, which the guide covers before
they part; at beta = 1 from the start it settles on one of them. For banana it starts at 0.2: the networks then have
seen more than the few draws beyond three standard deviations that they get of p itself, and the warped density has no
steep walls out there, at which NUTS would diverge. Both samplers aim at an acceptance of ``--accept``.

Rows of ``metrics.jsonl``, one for each target and sampler, with the same chains, warm-up and samples for both:

    min_bulk_ess        the smallest bulk effective sample size (ArviZ) of all coordinates, over all chains;
    gradients           evaluations of the log-density with its gradient after the warm-up, that is leapfrog steps;
    gradients_warmup    those of the warm-up;
    gradients_training  those by which the guide was made: every draw of every step, and every evaluation of the search
                        for its start; 0 for plain NUTS;
    ess_per_gradient    min_bulk_ess / gradients; the NeuTra rows also have ``gain``, its ratio to that of plain NUTS;
    ess_per_gradient_total, gain_total   the same with all three kinds of gradients counted, for both samplers;
    divergences         after the warm-up;
    mean_error          |mean - true mean| / true sd of the first coordinate (v, a),
    sd_ratio            its sd over the true sd; for bimodal ``right_mode``, the share in the right mode (true: 0.7).

``--out`` also receives ``neutra.png``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from pyro import poutine
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_realnvp import AutoRealNVP, Checkpoint, IndependenceMH, NeuTra, importance_sample
from pyro_realnvp.inference.sites import log_joints
from pyro_realnvp.training.divergence import Recovery
from pyro_realnvp.training.loop import Progress, cosine_schedule, gradient_step, run_steps

from shared.metrics import Metrics
from shared.option_types import COUNT, RATE, real, whole
from shared.options import add_options, set_seed
from shared.pictures import save_figure
from shared.run import Run, open_run

SHARE = 0.7  # of the right mode
Model = Callable[..., Any]


# ---------------------------------------------------------------------------------------------------- the targets


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("nine", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def banana(beta: float = 1.0) -> None:
    with poutine.scale(scale=beta):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(4 * a.square(), 0.4))


def bimodal(beta: float = 1.0) -> None:
    # Masked: the distribution of the site gives its shape and support, and the density is that of the factor.
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 5.0).to_event(1).mask(False))
    pyro.factor("log_p", beta * log_bimodal(z))


@dataclass(frozen=True)
class Target:
    """Holds a model, how its guide is trained, and what is known of the truth.

    Attributes:
        init_scale: of the guide; by default it finds its own start.
        arguments: of the model, after a share of the training from 0 to 1.
        deviation: true standard deviation of the first coordinate; its mean is 0.
        log_density: of the first two coordinates, points (N, 2), up to a constant.
    """

    model: Model
    log_density: Callable[[Tensor], Tensor]
    window: tuple[tuple[float, float], tuple[float, float]]
    labels: tuple[str, str]
    deviation: float = math.nan
    init_scale: float | None = None
    arguments: Callable[[float], tuple[float, ...]] = lambda share: ()


def annealed(start: float) -> Callable[[float], tuple[float]]:
    """Makes beta after a share of the training: from ``start`` to 1 in the first 70 %, by one factor in every step."""
    return lambda share: (min(1.0, start ** (1 - share / 0.7)),)


def log_normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    return dist.Normal(loc, scale).log_prob(x)


def log_bimodal(z: Tensor) -> Tensor:
    left, right = (log_normal(z, torch.tensor([at, 0.0]), scale).sum(-1) for at, scale in ((-4.0, 0.5), (4.0, 1.0)))
    return torch.logaddexp(left + math.log(1 - SHARE), right + math.log(SHARE))


TARGETS = {
    "funnel": Target(
        funnel,
        lambda z: log_normal(z[:, 0], 0.0, 3.0) + log_normal(z[:, 1], 0.0, (z[:, 0] / 2).exp()),
        ((-9.5, 9.5), (-25.0, 25.0)),
        ("v", "x1"),
        deviation=3.0,
    ),
    "banana": Target(
        banana,
        lambda z: log_normal(z[:, 0], 0.0, 1.0) + log_normal(z[:, 1], 4 * z[:, 0].square(), 0.4),
        ((-3.5, 3.5), (-3.0, 40.0)),
        ("a", "b"),
        deviation=1.0,
        arguments=annealed(0.2),
    ),
    "bimodal": Target(
        bimodal, log_bimodal, ((-7.0, 8.0), (-4.0, 4.0)), ("z1", "z2"), init_scale=4.0, arguments=annealed(0.01)
    ),
}


def side_by_side(samples: Mapping[str, Tensor]) -> Tensor:
    """Concatenates the sites in the order of the model, (N, D)."""
    return torch.cat([samples[name].reshape(len(samples[name]), -1) for name in samples], -1)


# ------------------------------------------------------------------------------------------------------ the sampling


@dataclass(frozen=True)
class Chains:
    """Samples (chains, samples, D) of a target, its first coordinate first, and what they cost after the warm-up."""

    samples: Tensor
    gradients: int
    warmup_gradients: int
    divergences: int

    @property
    def min_bulk_ess(self) -> float:
        return float(min(array_stats.ess(each.double().numpy(), method="bulk") for each in self.samples.unbind(-1)))


class Counted:
    """Counts the evaluations of a potential; NUTS takes the gradient of every one."""

    def __init__(self) -> None:
        self.calls, self.warmup_calls = 0, 0

    def initialize_model(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Stands in for Pyro's function of this name, by which a kernel makes its potential."""
        initial, potential, *others = initialize_model(*args, **kwargs)

        def counted(parameters: dict[str, Tensor]) -> Tensor:
            self.calls += 1
            return potential(parameters)

        return initial, counted, *others

    def log_joints(self, guide: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for the log-density at the rows of x in the search of a guide for its start."""
        self.calls += len(x)
        return log_joints(guide, x, *args, **kwargs)

    def watch(self, kernel: object, parameters: object, stage: str, step: int) -> None:
        """Notes the number of evaluations in the warm-up, as a hook of MCMC."""
        if stage.startswith("Warmup"):
            self.warmup_calls = self.calls


def run_nuts(model: Model, options: argparse.Namespace, run: Run, name: str) -> Chains:
    """Runs NUTS, on a model or on the model seen through a guide; a chain that has ended is not run again."""
    results = []
    for chain in range(options.chains):
        with run.stage(f"{name}/{chain}") as checkpoint:
            if checkpoint.result is None:
                run.finish_stage(checkpoint, chain=run_chain(model, options, chain))
            results.append(checkpoint.result["chain"])
    gradients, warmup_gradients, divergences = (
        sum(result[count] for result in results) for count in ("gradients", "warmup_gradients", "divergences")
    )
    return Chains(torch.stack([result["samples"] for result in results]), gradients, warmup_gradients, divergences)


def run_chain(model: Model, options: argparse.Namespace, chain: int) -> dict[str, Any]:
    """Runs one chain of NUTS from its own seed."""
    set_seed(1000 * options.seed + chain)
    # A compiled potential takes a third of the time.
    settings = {"target_accept_prob": options.accept, "jit_compile": True, "ignore_jit_warnings": True}
    kernel = model.kernel(**settings) if isinstance(model, NeuTra) else NUTS(model, **settings)
    counted = Counted()
    mcmc = MCMC(kernel, options.samples, options.warmup, hook_fn=counted.watch, disable_progbar=True)
    with patch("pyro.infer.mcmc.hmc.initialize_model", counted.initialize_model):
        mcmc.run()
    samples = model.get_samples(mcmc) if isinstance(model, NeuTra) else mcmc.get_samples()
    return {
        "samples": side_by_side(samples).detach(),
        "gradients": counted.calls - counted.warmup_calls,
        "warmup_gradients": counted.warmup_calls,
        "divergences": len(mcmc.diagnostics()["divergences"]["chain 0"]),
    }


def run_independence(model: Model, guide: Model, options: argparse.Namespace) -> tuple[Chains, float]:
    """Draws ten times the samples, as none needs a gradient, and computes the acceptance rate."""
    runs, rates = [], []
    for chain in range(options.chains):
        set_seed(1000 * options.seed + chain)
        kernel = IndependenceMH(model, guide, parallel=True, batch_size=10 * options.samples)
        mcmc = MCMC(kernel, 10 * options.samples, options.warmup, disable_progbar=True)
        mcmc.run()
        runs.append(side_by_side(mcmc.get_samples()))
        rates.append(kernel.acceptance_rate)
    return Chains(torch.stack(runs), 0, 0, 0), sum(rates) / len(rates)


# ------------------------------------------------------------------------------------------------------ the training


def make_guide(name: str) -> tuple[AutoRealNVP, int]:
    """Makes the guide, and counts the evaluations of the log-density in the search for its start."""
    target, counted = TARGETS[name], Counted()
    guide = AutoRealNVP(target.model, init_scale=target.init_scale, name=name)
    with patch("pyro_realnvp.inference.start.log_joints", counted.log_joints):
        guide.initialize()
    return guide, counted.calls


def train(name: str, guide: AutoRealNVP, options: argparse.Namespace, run: Run, checkpoint: Checkpoint) -> None:
    target = TARGETS[name]
    optimizer = torch.optim.Adam(guide.parameters(), lr=options.lr)
    bound = Trace_ELBO(num_particles=options.particles, vectorize_particles=True, max_plate_nesting=1)
    loss = bound(target.model, guide)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_schedule(options.steps))
    progress = Progress()
    recovery = Recovery(optimizer, scheduler, times=run.recoveries, guide=guide, progress=progress)

    def tempered_loss() -> Tensor:
        return loss(*target.arguments(progress.step / options.steps))

    step = gradient_step(guide, tempered_loss, optimizer, scheduler=scheduler, clip=10.0)

    def on_interval(taken: int, loss: float) -> bool:
        run.metrics.write({"step": taken, "loss": loss, "target": name, "seconds": run.metrics.seconds})
        recovery.remember()
        return False

    checkpoint.track(guide=guide, optimizer=optimizer, scheduler=scheduler, progress=progress, recovery=recovery)
    run_steps(
        step,
        steps=options.steps,
        interval=max(1, options.steps // 10),
        on_interval=on_interval,
        start=progress,
        checkpoint=checkpoint,
        recover=recovery,
    )


def compare(name: str, options: argparse.Namespace, run: Run) -> dict[str, Tensor]:
    """Trains, samples in both ways, writes their rows, and returns the points (N, D) to draw."""
    target, metrics = TARGETS[name], run.metrics
    guide, searched = make_guide(name)
    training = searched + options.steps * options.particles
    with run.stage(name) as checkpoint:
        if checkpoint.result is None:
            train(name, guide, options, run, checkpoint)
            trained = round(checkpoint.seconds, 1)
            draws = importance_sample(target.model, guide, num_samples=10_000, parallel=True)
            row = {"target": name, "sampler": "guide", "train_seconds": trained, "gradients_training": training}
            report(metrics, {**row, "pareto_k": draws.pareto_k})
            run.finish_stage(checkpoint, guide=guide.state_dict(), draws=side_by_side(draws.samples))
        else:
            guide.load_state_dict(checkpoint.result["guide"])
        of_guide = checkpoint.result["draws"]

    plain = run_nuts(target.model, options, run, f"{name}/nuts")
    row = {"target": name, "sampler": "nuts", **summary(name, plain), **costs(plain, 0), "seconds": metrics.seconds}
    report(metrics, row)
    points = {"NUTS": plain.samples, "Guide": of_guide}
    if name == "bimodal":
        title = "Independence Metropolis-Hastings"
        chains, rate = run_independence(target.model, guide, options)
        extra = {"sampler": "independence", "acceptance_rate": rate}
    else:
        title = "NUTS through the guide"
        chains = run_nuts(NeuTra(target.model, guide), options, run, f"{name}/neutra")
        extra = {"sampler": "neutra", **costs(chains, training)}
        for gain, of in (("gain", "ess_per_gradient"), ("gain_total", "ess_per_gradient_total")):
            extra[gain] = extra[of] / row[of]
    points[title] = chains.samples
    report(metrics, {"target": name, **extra, **summary(name, chains), "seconds": metrics.seconds})
    return {title: value.flatten(0, -2) for title, value in points.items()}


def stages_of(name: str, options: argparse.Namespace) -> list[str]:
    return [name, *(f"{name}/{sampler}/{chain}" for sampler in ("nuts", "neutra") for chain in range(options.chains))]


def summary(name: str, chains: Chains) -> dict[str, float]:
    first = chains.samples[..., 0].double()
    row: dict[str, float] = {"min_bulk_ess": chains.min_bulk_ess}
    if chains.gradients:
        row["divergences"] = chains.divergences
    if name == "bimodal":
        return row | {"right_mode": float((first > 0).double().mean())}
    deviation = TARGETS[name].deviation
    return row | {"mean_error": float(first.mean().abs()) / deviation, "sd_ratio": float(first.std()) / deviation}


def costs(chains: Chains, training: int) -> dict[str, float]:
    """Counts the gradients of a run of NUTS, and what every one was worth."""
    ess, total = chains.min_bulk_ess, chains.gradients + chains.warmup_gradients + training
    return {
        "gradients": chains.gradients,
        "gradients_warmup": chains.warmup_gradients,
        "gradients_training": training,
        "ess_per_gradient": ess / chains.gradients,
        "ess_per_gradient_total": ess / total,
    }


def report(metrics: Metrics, row: dict[str, Any]) -> None:
    metrics.write(row)
    print(
        *(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
        sep="  ",
    )


# ------------------------------------------------------------------------------------------------------ the picture


def draw(path: Path, points: dict[str, dict[str, Tensor]]) -> None:
    """Draws a row for each target, of its first two coordinates: plain NUTS, the guide alone, and both together."""
    figure, axes = plt.subplots(len(points), 3, figsize=(12, 3.8 * len(points)), squeeze=False, layout="constrained")
    for row, (name, panels) in zip(axes, points.items(), strict=True):
        for axis, (title, values) in zip(row, panels.items(), strict=True):
            panel(axis, TARGETS[name], values[:, :2].numpy())
            axis.set_title(f"{name}: {title}" if axis is row[0] else title)
    save_figure(path, figure)


def panel(axis: Axes, target: Target, values: np.ndarray) -> None:
    """Draws 2,000 of the points over the contours that hold 50, 90 and 99 % of the true density."""
    (left, right), (low, high) = target.window
    first, second = torch.linspace(left, right, 300), torch.linspace(low, high, 300)
    grid = torch.cartesian_prod(first, second)
    density = target.log_density(grid).exp()
    order = density.sort(descending=True).values
    mass = order.cumsum(0) / order.sum()
    levels = sorted(float(order[int((mass < share).sum())]) for share in (0.5, 0.9, 0.99))
    axis.contour(first, second, density.view(300, 300).T, levels=levels, colors="0.6", linewidths=0.8)
    thin = values[np.linspace(0, len(values) - 1, min(2000, len(values))).astype(int)]
    axis.scatter(*thin.T, s=3, alpha=0.5, linewidths=0)
    axis.set(xlim=(left, right), ylim=(low, high), xlabel=target.labels[0], ylabel=target.labels[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="NUTS through a trained flow, and independence moves.")
    add_options(parser, out="runs/neutra", steps=2000)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="(default: %(default)s)")
    parser.add_argument("--samples", type=whole(4), default=300, help="of each chain (default: %(default)s)")
    parser.add_argument("--warmup", type=COUNT, default=200, help="of each chain (default: %(default)s)")
    parser.add_argument("--chains", type=COUNT, default=4, help="(default: %(default)s)")
    parser.add_argument(
        "--accept", type=real(above=0, below=1), default=0.9, help="NUTS adapts to it (default: %(default)s)"
    )
    parser.add_argument("--particles", type=COUNT, default=32, help="draws a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=5e-3, help="highest learning rate (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device not in ("auto", "cpu"):
        parser.error(f"argument --device: NUTS on models this small belongs on the CPU, but got {options.device}")

    set_seed(options.seed)
    stages = [stage for name in options.targets for stage in stages_of(name, options)]
    with warnings.catch_warnings(), open_run(options, stages=stages) as run:
        warnings.filterwarnings("ignore", "`torch.jit.trace` is deprecated", FutureWarning)  # Pyro's own call
        if run.is_finished:
            return
        points = {name: compare(name, options, run) for name in options.targets}
        draw(options.out / "neutra.png", points)
        run.finish(f"metrics and picture in {options.out}")
        print(f"See {options.out}.")


if __name__ == "__main__":
    # The models are so small that several threads wait for each other more than they work.
    torch.set_num_threads(1)
    main()
