"""Compares flows on densities in the plane that are known exactly: by the KL divergence, at equal steps.

    python benchmarks/densities.py                                  # splines beside affine couplings
    python benchmarks/densities.py --flows spline zuko normflows --seeds 3      # beside other libraries
    python benchmarks/densities.py --targets checkerboard --flows affine augmented      # with two elements of noise
    python benchmarks/densities.py --targets rings --steps 2000

All flows have 8 couplings with networks of two hidden layers of ReLU, whose width makes the number of parameters equal
to the spline's; splines have 8 bins on [-5, 5]. All are trained by :func:`pyro_realnvp.fit`, on fresh points at every
step, with AdamW, a rate that falls to 0, and averaged weights. The KL divergence is the mean of log p(x) - log q(x)
over fresh points. That of the augmented flow, whose log q(x) is a bound, is from 100 draws of its noise a point;
``gap`` is the distance of this bound from log q(x) by quadrature. ``--out`` receives ``densities.csv``, with a row for
every run, which a second call does not repeat, and ``densities.png``.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: the picture is a file, and no display is needed

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pyro_realnvp import (
    MLP,
    AugmentedFlow,
    Flow,
    StandardNormal,
    fit,
    realnvp_transforms,
    spline_transforms,
)
from spline_peers import Normflows, Zuko

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.option_types import COUNT, RATE
from shared.planar import TARGETS, Planar

COUPLINGS, BINS, WIDTH, BOUND = 8, 8, 64, 5.0
TEST_POINTS, AUGMENTED_POINTS, NOISE_DRAWS = 100_000, 20_000, 100
FIELDS = ("target", "flow", "seed", "kl", "error", "gap", "parameters", "steps", "seconds")

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- the flows


def affine(width: int) -> nn.Module:
    net = partial(MLP, hidden=(width, width), activation=nn.ReLU)
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=COUPLINGS, net=net))


def spline(width: int) -> nn.Module:
    net = partial(MLP, hidden=(width, width), activation=nn.ReLU)
    return Flow(StandardNormal(2), spline_transforms(2, couplings=COUPLINGS, bins=BINS, bound=BOUND, net=net))


def augmented(width: int) -> nn.Module:
    net = partial(MLP, hidden=(width, width), activation=nn.ReLU)
    both = Flow(StandardNormal(4), realnvp_transforms(4, couplings=COUPLINGS, net=net))
    noise = Flow(StandardNormal(2), realnvp_transforms(2, couplings=COUPLINGS // 2, net=net, context_shape=2))
    return AugmentedFlow(both, noise)


FLOWS: dict[str, Callable[[int], nn.Module]] = {
    "spline": spline,
    "affine": affine,
    "augmented": augmented,
    "zuko": lambda width: Zuko(2, COUPLINGS, BINS, (width, width)),
    "normflows": lambda width: Normflows(2, COUPLINGS, BINS, BOUND, width),
}


def parameters_of(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters() if parameter.requires_grad)


def of_equal_size(name: str) -> nn.Module:
    """Builds a flow whose number of parameters comes closest to that of the spline flow of this package."""
    wanted = parameters_of(spline(WIDTH))
    width = min(range(8, 2 * WIDTH), key=lambda width: abs(parameters_of(FLOWS[name](width)) - wanted))
    return FLOWS[name](width)


# --------------------------------------------------------------------------------------------------------- training


class FreshPoints(IterableDataset[Tensor]):
    """Draws another batch of points at every step, without end."""

    def __init__(self, target: Planar, batch_size: int) -> None:
        self.target, self.batch_size = target, batch_size

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.target.sample(self.batch_size)


def run(target: Planar, name: str, seed: int, options: argparse.Namespace) -> tuple[nn.Module, Row]:
    """Trains a flow, and returns it with its row."""
    pyro.set_rng_seed(seed)
    flow, start = of_equal_size(name), perf_counter()
    points = DataLoader(FreshPoints(target, options.batch), batch_size=None)
    training = {"steps": options.steps, "learning_rate": options.lr, "weight_decay": 0.0, "noise": 0.0}
    fit(flow, points, validation=None, interval=500, progress=False, **training)
    seconds = perf_counter() - start
    kl, error = divergence(target, flow)
    gap = gap_of_bound(target, flow) if isinstance(flow, AugmentedFlow) else 0.0
    return flow, {"kl": kl, "error": error, "gap": gap, "parameters": parameters_of(flow), "seconds": round(seconds)}


@torch.no_grad()
def divergence(target: Planar, flow: nn.Module) -> tuple[float, float]:
    """Estimates KL(target, flow) in nats from fresh points, with its standard error."""
    x = target.sample(AUGMENTED_POINTS if isinstance(flow, AugmentedFlow) else TEST_POINTS)
    log_q = log_density(flow, x)
    gap = target.log_prob(x) - log_q.double()
    return gap.mean().item(), gap.std().item() / math.sqrt(len(x))


def log_density(flow: nn.Module, x: Tensor) -> Tensor:
    """Computes log q(x) of points (N, 2), or a bound on it by many draws of the noise."""
    if isinstance(flow, AugmentedFlow):
        bound = flow.distribution(num_samples=NOISE_DRAWS)
        return torch.cat([bound.log_prob(part) for part in x.split(500)])
    return torch.cat([flow(part) for part in x.split(10_000)])


@torch.no_grad()
def gap_of_bound(target: Planar, flow: AugmentedFlow, *, points: int = 200, side: int = 241) -> float:
    """Computes the mean of log q(x) - bound in nats, with log q(x) by a sum over a grid of the noise.

    The grid reaches eight standard deviations of the noise of each point, as found from its draws.
    """
    x = target.sample(points)
    bound = log_density(flow, x)
    drawn = flow.noise.condition(x).sample((1000,))
    center, reach = drawn.mean(0), 8 * drawn.std(0)
    unit = torch.linspace(-1, 1, side)
    places = torch.cartesian_prod(unit, unit)
    exact = []
    for each, middle, width in zip(x, center, reach, strict=True):
        e = middle + width * places
        log_joint = flow.flow(torch.cat([each.expand(len(e), 2), e], -1))
        exact.append(log_joint.double().logsumexp(0) + (width * 2 / (side - 1)).log().sum())
    return float((torch.stack(exact) - bound).mean())


# ---------------------------------------------------------------------------------------------------------- reports


def report(rows: Sequence[Row]) -> str:
    """Returns a table of the mean KL over the seeds, and its standard error between seeds."""
    flows = list(dict.fromkeys(row["flow"] for row in rows))
    lines = [f"{'KL in nats':18}" + "".join(f"{flow:>20}" for flow in flows)]
    for target in dict.fromkeys(row["target"] for row in rows):
        cells = []
        for flow in flows:
            kls = [float(row["kl"]) for row in rows if (row["target"], row["flow"]) == (target, flow)]
            spread = f" +- {stdev(kls) / math.sqrt(len(kls)):.4f}" if len(kls) > 1 else ""
            cells.append(f"{mean(kls):.4f}{spread}" if kls else "")
        lines.append(f"{target:18}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


@torch.no_grad()
def draw(path: Path, flows: dict[tuple[str, str], nn.Module]) -> None:
    """Draws the true density of every target, and those that were learned in this call."""
    names, kinds = (list(dict.fromkeys(key[index] for key in flows)) for index in (0, 1))
    side = torch.linspace(-2.6, 2.6, 261)
    places = torch.cartesian_prod(side, side).flip(-1)
    size = (2.6 * (1 + len(kinds)), 2.7 * len(names))
    figure, axes = plt.subplots(len(names), 1 + len(kinds), figsize=size, squeeze=False, layout="constrained")
    for row, name in zip(axes, names, strict=True):
        truth = TARGETS[name].log_prob(places).exp()
        for axis, kind in zip(row, ["truth", *kinds], strict=True):
            density = truth if kind == "truth" else log_density(flows[name, kind], places).exp()
            image = density.view(len(side), -1).numpy()
            axis.imshow(image, origin="lower", extent=(-2.6, 2.6, -2.6, 2.6), vmin=0, vmax=truth.max().item())
            axis.set(title=f"{name}: {kind}", xticks=[], yticks=[])
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares flows on densities in the plane that are known exactly.")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--flows", nargs="+", choices=list(FLOWS), default=["spline", "affine"])
    parser.add_argument("--seeds", type=COUNT, default=1, help="runs of each (default: %(default)s)")
    parser.add_argument("--steps", type=COUNT, default=6000, help="(default: %(default)s)")
    parser.add_argument("--batch", type=COUNT, default=512, help="points a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/densities"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)

    options.out.mkdir(parents=True, exist_ok=True)
    path, flows = options.out / "densities.csv", {}
    rows: list[Row] = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    for seed in range(options.seeds):
        for target in options.targets:
            for name in options.flows:
                key = {"target": target, "flow": name, "seed": seed, "steps": options.steps}
                if any(all(row[field] == str(value) for field, value in key.items()) for row in rows):
                    continue
                flows[target, name], measured = run(TARGETS[target], name, seed, options)
                rows.append({field: str({**key, **measured}[field]) for field in FIELDS})
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
                print(f"{target}, {name}, seed {seed}: KL {measured['kl']:.4f} +- {measured['error']:.4f}", flush=True)
    print(report(rows))
    if flows and len(flows) == len({key[0] for key in flows}) * len({key[1] for key in flows}):
        draw(options.out / "densities.png", flows)


if __name__ == "__main__":
    # The layers are so small that several threads wait for each other more than they work, above all on a busy machine.
    torch.set_num_threads(1)
    main()
