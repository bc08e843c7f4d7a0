"""Learns the posteriors of seven simulators of Lueckmann et al. (2021), "Benchmarking simulation-based inference".

    pip install --no-deps sbibm && pip install autograd future pandas    # tasks, observations, reference draws, judge
    python benchmarks/simulators.py                                      # 10,000 simulations of every task
    python benchmarks/simulators.py --tasks slcp --simulations 100000

One recipe for all tasks: an ensemble of conditional coupling flows q(theta | x), each trained by ``pyro_realnvp.fit``
with another tenth of the simulations held out. Two kinds of flows, each with much and with little regularization, are
tried on the first tenth, and the one with the lowest held-out loss becomes the ensemble: splines on the box of the
prior, which leave its ends where they are; or affine couplings and splines on the whole space, behind an affine map
that is linear in x, of which the draws outside of the prior's support are dropped.

The judge is the benchmark's: C2ST, the accuracy of a network that is to tell 10,000 draws of q from the 10,000
reference draws, by ``sbibm.metrics.c2st`` with its defaults; 0.5 is perfect. The published figures are those of neural
posterior estimation (NPE), means over ten observations.

``--out`` receives ``metrics.jsonl``: a row for every observation, and then one for the task. Tasks that are there
already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pyro
import torch
from torch import Tensor, nn

from pyro_realnvp import (
    MLP,
    Affine,
    Chain,
    Elementwise,
    EmbedContext,
    FixedAffine,
    Flow,
    MixedBase,
    StandardNormal,
    fit,
    realnvp_transforms,
    spline_transforms,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.metrics import Metrics
from shared.option_types import COUNT, SEED, out_folder
from shared.options import set_seed
from shared.provenance import write_provenance

# C2ST of NPE with 10,000 and with 100,000 simulations: the benchmark's published table of results, main_paper.csv
PUBLISHED = {
    "two_moons": {10_000: 0.606, 100_000: 0.542},
    "gaussian_mixture": {10_000: 0.661, 100_000: 0.555},
    "gaussian_linear": {10_000: 0.552, 100_000: 0.506},
    "gaussian_linear_uniform": {10_000: 0.553, 100_000: 0.509},
    "slcp": {10_000: 0.901, 100_000: 0.831},
    "slcp_distractors": {10_000: 0.970, 100_000: 0.863},
    "bernoulli_glm": {10_000: 0.678, 100_000: 0.559},
}
OBSERVATIONS, DRAWS = range(1, 11), 10_000
LEARNING_RATE, BATCH = 2e-3, 256


# ---------------------------------------------------------------------------------------------------- the flows


class Features(nn.Module):
    """Standardises x by its median and quartiles; beyond three of their units it grows as a logarithm.

    Shapes: (*batch, D) to (*batch, D).
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        low, middle, high = x.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
        self.register_buffer("loc", middle)
        self.register_buffer("scale", ((high - low) / 1.349).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.loc) / self.scale
        return torch.where(z.abs() > 3, z.sign() * (3 + (z.abs() - 2).clamp(min=1).log()), z)


@dataclass(frozen=True)
class Candidate:
    """One way to build and to regularize a flow.

    Attributes:
        bounded: splines on the box of the prior; else a flow on the whole space.
        dropout: of the networks.
        weight_decay: of their matrices.
    """

    bounded: bool
    dropout: float
    weight_decay: float

    def flow(self, theta: Tensor, x: Tensor, box: tuple[Tensor, Tensor] | None) -> Flow:
        """Builds q(theta | x) for theta (N, D) and x (N, E), which set the scales."""
        dim, data = theta.shape[1], x.shape[1]
        net = partial(MLP, hidden=(64, 64), activation=nn.ReLU, skip=1.0, dropout=self.dropout)
        splines = partial(spline_transforms, dim, net=net, context_shape=data)
        base: Any
        if self.bounded and box is not None:
            low, high = box
            intervals = [(index, low[index].item(), high[index].item()) for index in range(dim)]
            base, layers = MixedBase(dim, intervals=intervals), splines(couplings=6, intervals=intervals)
        else:
            base, layers = StandardNormal(dim), splines(couplings=4)
            layers += realnvp_transforms(dim, couplings=2, net=net, context_shape=data)
            layers.append(Elementwise((dim,), Affine(), MLP(0, 2 * dim, hidden=(), context_shape=data)))
            layers.append(FixedAffine(theta.mean(0), theta.std(0)))
        return Flow(base, [EmbedContext(Chain(layers), Features(x), (data,))])


def candidates(box: tuple[Tensor, Tensor] | None) -> list[Candidate]:
    kinds = (False, True) if box is not None else (False,)
    regularized = [Candidate(kind, dropout=0.2, weight_decay=1.0) for kind in kinds]
    return [*regularized, *(Candidate(kind, dropout=0.0, weight_decay=0.03) for kind in kinds)]


# ------------------------------------------------------------------------------------------------- the ensemble


class Posterior:
    """An equal mixture of flows q(theta | x), restricted to the support of the prior.

    Args:
        flows: of the mixture.
        box: the ends (D,) and (D,) of the support, or None for the whole space.
    """

    def __init__(self, flows: list[Flow], box: tuple[Tensor, Tensor] | None) -> None:
        self.flows, self.box = flows, box

    def inside(self, theta: Tensor) -> Tensor:
        if self.box is None:
            return torch.ones(theta.shape[:-1], dtype=torch.bool)
        low, high = self.box
        return ((low <= theta) & (theta <= high)).all(-1)

    def sample(self, count: int, x: Tensor) -> Tensor:
        """Draws (count, D) given one x (E,), as many of every flow; draws outside of the support are made again."""
        parts = []
        for flow, share in zip(self.flows, torch.arange(count).tensor_split(len(self.flows)), strict=True):
            drawn: list[Tensor] = []
            while sum(map(len, drawn)) < len(share):
                theta = flow.sample((count,), x)
                drawn.append(theta[self.inside(theta)])
            parts.append(torch.cat(drawn)[: len(share)])
        return torch.cat(parts)

    @torch.no_grad()
    def loss(self, theta: Tensor, x: Tensor, draws: int = 200) -> float:
        """Computes the mean of -log q(theta | x) for theta (N, D) and x (N, E), in nats, of one flow."""
        (flow,) = self.flows
        mass = self.inside(flow.sample((draws,), x)).double().mean(0).clamp(min=1 / draws)
        return (mass.log() - flow(theta, x).double()).mean().item()


def learn(
    theta: Tensor, x: Tensor, box: tuple[Tensor, Tensor] | None, options: argparse.Namespace
) -> tuple[Posterior, dict[str, Any]]:
    """Chooses a candidate by the first tenth of the rows in random order, and trains the ensemble."""
    tenths = torch.randperm(len(theta)).tensor_split(10)

    def train(candidate: Candidate, member: int) -> tuple[Flow, float]:
        held = tenths[member % 10]
        rest = torch.cat([part for index, part in enumerate(tenths) if index != member % 10])
        set_seed(options.seed + member)
        flow = candidate.flow(theta[rest], x[rest], box)
        fit(
            flow,
            (theta[rest], x[rest]),
            validation=(theta[held], x[held]),
            steps=options.steps,
            patience=15,
            interval=100,
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            weight_decay=candidate.weight_decay,
            noise=0.0,
            progress=False,
        )
        return flow, Posterior([flow], box).loss(theta[held], x[held])

    tried = [(candidate, *train(candidate, 0)) for candidate in candidates(box)]
    best, first, loss = min(tried, key=lambda each: each[2])
    flows = [first, *(train(best, member)[0] for member in range(1, options.members))]
    return Posterior(flows, box), {**asdict(best), "held_out_nats": loss}


# ---------------------------------------------------------------------------------------------------- the tasks


def simulate(task: Any, count: int) -> tuple[Tensor, Tensor]:
    """Draws pairs (theta, x) of prior and simulator, (count, D) and (count, E)."""
    # The benchmark reads files of its own, which newer versions of torch refuse unless told otherwise.
    with patch("torch.load", partial(torch.load, weights_only=False)):
        theta = task.get_prior()(num_samples=count)
        return theta, task.get_simulator()(theta)


def support(task: Any) -> tuple[Tensor, Tensor] | None:
    prior = task.get_prior_params()
    return (prior["low"], prior["high"]) if "low" in prior else None


def run(name: str, options: argparse.Namespace, metrics: Metrics) -> None:
    """Learns one task, and writes a row for every observation and one for all."""
    import sbibm
    from sbibm.metrics import c2st

    task, start = sbibm.get_task(name), perf_counter()
    set_seed(options.seed)
    posterior, chosen = learn(*simulate(task, options.simulations), support(task), options)
    seconds = perf_counter() - start
    found = []
    for observation in options.observations:
        draws = posterior.sample(DRAWS, task.get_observation(observation)[0])
        found.append(float(c2st(task.get_reference_posterior_samples(observation)[:DRAWS], draws)))
        metrics.write({"task": name, "observation": observation, "c2st": found[-1]})
    row = {"task": name, "simulations": options.simulations, "members": options.members, **chosen}
    row |= {"mean_c2st": mean(found), "published_npe": PUBLISHED[name].get(options.simulations)}
    row |= {"mean_c2st_error": stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None}
    metrics.write({**row, "seconds": round(seconds, 1), "seconds_with_judge": round(perf_counter() - start, 1)})
    print(f"{name:26} C2ST {row['mean_c2st']:.3f}, NPE {row['published_npe']}, {seconds:.0f} s, {chosen}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), metavar="TASK")
    parser.add_argument("--simulations", type=COUNT, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--observations", type=COUNT, nargs="+", choices=OBSERVATIONS, default=[*OBSERVATIONS])
    parser.add_argument("--members", type=COUNT, default=4, help="flows of an ensemble (default: %(default)s)")
    parser.add_argument("--steps", type=COUNT, default=3000, help="of every training (default: %(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--out", type=out_folder, default="runs/simulators", help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    pyro.enable_validation(False)
    options.out.mkdir(parents=True, exist_ok=True)
    file, metrics = options.out / "metrics.jsonl", Metrics(options.out)
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        done = {row["task"] for row in rows if "mean_c2st" in row}
        metrics.load_state_dict({"rows": [row for row in rows if row["task"] in done], "seconds": 0.0})
        options.tasks = [name for name in options.tasks if name not in done]
    write_provenance(options.out, keep=True)
    for name in options.tasks:
        run(name, options, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the layers are small
    main()
