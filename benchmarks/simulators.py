"""Learns the posteriors of the simulators of Lueckmann et al. (2021), "Benchmarking simulation-based inference".

    pip install --no-deps sbibm                            # tasks, observations and reference draws
    python benchmarks/simulators.py                        # 10,000 simulations of every task
    python benchmarks/simulators.py --tasks slcp --simulations 100000

One recipe for all tasks: an ensemble of conditional coupling flows q(theta | x), each fitted by ``pyro_realnvp.fit`` to
all simulations, of which another tenth is held out to stop early. Where the prior is a box, so is the support of q. The
judge is the benchmark's: C2ST, the accuracy of a network that is to tell 10,000 draws of q from the 10,000 reference
draws, by ``sbibm.metrics.c2st`` with its defaults; 0.5 is perfect. The published figures, for neural posterior
estimation (NPE), are means over ten observations.

``--out`` receives ``metrics.jsonl``: a row for every observation, and one for the task. A task that is there already is
not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_realnvp import MLP, Chain, EmbedContext, FixedAffine, Flow, MixedBase, StandardNormal, fit, spline_transforms

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.option_types import COUNT, SEED

# C2ST of NPE with 10,000 and 100,000 simulations, from the published runs of the benchmark (main_paper.csv)
PUBLISHED = {
    "two_moons": {10_000: 0.606, 100_000: 0.542},
    "gaussian_mixture": {10_000: 0.661, 100_000: 0.555},
    "gaussian_linear": {10_000: 0.552, 100_000: 0.506},
    "gaussian_linear_uniform": {10_000: 0.553, 100_000: 0.509},
    "slcp": {10_000: 0.901, 100_000: 0.831},
    "slcp_distractors": {10_000: 0.970, 100_000: 0.863},
    "bernoulli_glm": {10_000: 0.678, 100_000: 0.559},
}
OBSERVATIONS = range(1, 11)
DRAWS = 10_000


class Features(nn.Module):
    """Standardises x by median and quartiles, and adds a copy that grows as a logarithm: some data have no variance.

    Shapes: (*batch, D) to (*batch, 2 D).
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        low, middle, high = x.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
        self.register_buffer("loc", middle)
        self.register_buffer("scale", ((high - low) / 1.349).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        standard = (x - self.loc) / self.scale
        return torch.cat([standard.clamp(-5, 5), standard.asinh()], -1)


def flow_of(task: Any, theta: Tensor, x: Tensor, options: argparse.Namespace) -> Flow:
    """Builds q(theta | x), on the box of the prior if it is one."""
    dim, features = theta.shape[1], Features(x)
    net = partial(MLP, hidden=(options.hidden,) * 2, skip=options.skip, dropout=options.dropout)
    build = partial(spline_transforms, dim, couplings=options.couplings, bins=options.bins, net=net)
    build = partial(build, context_shape=2 * x.shape[1])
    prior = task.get_prior_params()
    transforms: list[Any]
    if "low" in prior:
        box = [(index, low, high) for index, (low, high) in enumerate(zip(*map(Tensor.tolist, prior.values())))]
        base, transforms = MixedBase(dim, intervals=box), build(intervals=box)
    else:
        base, transforms = StandardNormal(dim), [*build(), FixedAffine(theta.mean(0), theta.std(0))]
    return Flow(base, [EmbedContext(Chain(transforms), features, x.shape[1:])])


def simulate(task: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws pairs (theta, x) of prior and simulator, (count, D) each."""
    pyro.set_rng_seed(seed)
    # The benchmark reads files of its own, which newer versions of torch refuse unless told otherwise.
    with patch("torch.load", partial(torch.load, weights_only=False)):
        theta = task.get_prior()(num_samples=count)
        return theta, task.get_simulator()(theta)


class Ensemble:
    """An equal mixture of flows q(theta | x)."""

    def __init__(self, flows: list[Flow]) -> None:
        self.flows = flows

    def sample(self, count: int, x: Tensor) -> Tensor:
        """Draws (count, D) given one x (D,), as many of every flow."""
        parts = torch.arange(count).tensor_split(len(self.flows))
        return torch.cat([flow.sample((len(part),), x) for flow, part in zip(self.flows, parts, strict=True)])


def learn(task: Any, theta: Tensor, x: Tensor, options: argparse.Namespace) -> tuple[Ensemble, float]:
    """Fits the flows, each with another tenth of the rows held out; returns also the mean of their held-out losses."""
    order = torch.randperm(len(theta))
    flows, losses = [], []
    for member in range(options.members):
        held = order.tensor_split(10)[member % 10]
        kept = torch.ones(len(theta), dtype=torch.bool).index_fill_(0, held, False)
        flow = flow_of(task, theta[kept], x[kept], options)
        history = fit(
            flow,
            (theta[kept], x[kept]),
            validation=(theta[held], x[held]),
            learning_rate=options.lr,
            weight_decay=options.weight_decay,
            batch_size=options.batch,
            noise=0.0,
            interval=100,
            patience=options.patience,
            progress=False,
            seed=options.seed + member,
        )
        flows.append(flow)
        losses.append(min(history.validation))
    return Ensemble(flows), mean(losses)


def judge(name: str, ensemble: Ensemble, seed: int, observation: int) -> float:
    """Computes C2ST for one observation, as the benchmark does."""
    import sbibm
    from sbibm.metrics import c2st

    torch.set_num_threads(1)
    task = sbibm.get_task(name)
    torch.manual_seed(seed + observation)
    draws = ensemble.sample(DRAWS, task.get_observation(observation)[0])
    return float(c2st(task.get_reference_posterior_samples(observation)[:DRAWS], draws))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), metavar="TASK")
    parser.add_argument("--simulations", type=COUNT, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--observations", type=COUNT, nargs="+", default=list(OBSERVATIONS))
    parser.add_argument("--members", type=COUNT, default=5, help="flows of the ensemble (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/simulators"))
    for name, default in {"couplings": 6, "hidden": 64, "bins": 8, "batch": 256, "patience": 20}.items():
        parser.add_argument(f"--{name}", type=COUNT, default=default, help="(default: %(default)s)")
    for name, number in {"skip": 1.0, "dropout": 0.0, "lr": 2e-3, "weight-decay": 1e-2}.items():
        parser.add_argument(f"--{name}", type=float, default=number, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    import sbibm

    for name in options.tasks:
        task, start = sbibm.get_task(name), perf_counter()
        theta, x = simulate(task, options.simulations, options.seed)
        ensemble, loss = learn(task, theta, x, options)
        trained = perf_counter() - start
        for observation in options.observations:
            print(
                name,
                observation,
                round(loss, 4),
                round(trained, 1),
                judge(name, ensemble, options.seed, observation),
                round(perf_counter() - start, 1),
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
