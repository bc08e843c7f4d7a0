"""Learns the posterior of a simulator's parameters from simulations alone: neural posterior estimation.

    python examples/simulator.py                        # a fresh simulation for every point of training; minutes
    python examples/simulator.py --simulations 10000    # from 10,000 only: 90 % to train, 10 % to stop early
    python examples/simulator.py --sample runs/simulator/flow.safetensors    # no training

The simulator is two moons of the benchmark of Lueckmann et al. (2021), "Benchmarking simulation-based inference", T.8:

    theta ~ U(-1, 1)^2,   a ~ U(-pi/2, pi/2),   r ~ N(0.1, 0.01^2)
    x = (r cos a + 1/4 - |theta_1 + theta_2| / sqrt 2,  r sin a + (theta_2 - theta_1) / sqrt 2)

whose posterior p(theta | x) is two thin crescents. The flow q(theta | x) maximises the mean of log q over pairs (theta,
x), and so the likelihood is never asked for. Its last transform carries the real plane to the box of the prior, so that
no mass leaks out of it; with a logistic base, the flow is the prior itself before it has learned anything.

Here the true posterior is known: given (a, r) and x, theta is one of two points. Fresh pairs give the last row of
``metrics.jsonl``:

    test_nats, test_kl    the mean of -log q(theta | x), and of log p(theta | x) - log q(theta | x), the KL divergence
                          to the true posterior averaged over x (test_kl_error: its standard error),
    sbc_p                 simulation-based calibration (Talts et al. 2018): were q the posterior, the rank of the true
                          theta among samples of q(theta | x) would be uniform; p-values of a chi-square test for
                          theta_1, theta_2, and for log q(theta | x) as a function of theta and x, whose ranks are the
                          coverage of the regions of highest density,
    coverage              the share of true theta in these regions, of nominal mass 50, 80 and 95 %,
    c2st                  for each of three x: the accuracy of a classifier that is to tell samples of q and p apart, in
                          cross-validation; 0.5 if it cannot (Lopez-Paz & Oquab 2017).

``--out`` also receives ``simulator.png``, and the model, ``flow.safetensors``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from scipy.stats import binom
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.distributions import Normal, biject_to, constraints
from torch.utils.data import DataLoader, IterableDataset

from pyro_realnvp import MLP, Chain, EmbedContext, Flow, StandardLogistic, realnvp_transforms, save

from shared.checkpoints import load_flow
from shared.density_training import fit_density
from shared.option_types import COUNT, RATE, SHARE, TEN_OR_NONE, checkpoint
from shared.options import Config, add_options, resolve_device, set_seed
from shared.pictures import save_figure
from shared.run import Run, open_run

RADIUS, NOISE, CENTRE = 0.1, 0.01, 0.25
TEST_PAIRS = 10_000
OBSERVATIONS = torch.tensor([[-0.6, 0.3], [0.1, 0.9], [-0.95, 0.2]])  # two moons far apart, close, cut off by the box
COVERAGES = (0.5, 0.8, 0.95)
BINS = 20


# ------------------------------------------------------------------------------------------------- the simulator


def rotate(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Computes coordinates along the two diagonals: (theta_1 + theta_2) / sqrt 2 and (theta_2 - theta_1) / sqrt 2."""
    first, second = theta.unbind(-1)
    return (first + second) / math.sqrt(2), (second - first) / math.sqrt(2)


def sample_crescent(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Draws points (r cos a + 1/4, r sin a), of shape (*shape, 2)."""
    angle = math.pi * (torch.rand(*shape, device=device) - 0.5)
    radius = RADIUS + NOISE * torch.randn(*shape, device=device)
    return torch.stack([radius * angle.cos() + CENTRE, radius * angle.sin()], -1)


def simulate(theta: Tensor) -> Tensor:
    """Draws one x (*batch, 2) for every theta (*batch, 2)."""
    along, across = rotate(theta)
    return sample_crescent(theta.shape[:-1], theta.device) + torch.stack([-along.abs(), across], -1)


def sample_pairs(count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    theta = 2 * torch.rand(count, 2, device=device) - 1
    return theta, simulate(theta)


def sources(points: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the two theta that lead from crescent points (P, 2) to x (N, 2), and which are possible.

    Of shapes (N, P, 2, 2) and (N, P, 2).
    """
    along = points[:, 0] - x[:, None, 0]
    across = (x[:, None, 1] - points[:, 1])[..., None]
    both = torch.stack([along, -along], -1)
    theta = torch.stack([both - across, both + across], -1) / math.sqrt(2)
    return theta, (along[..., None] >= 0) & (theta.abs() < 1).all(-1)


def sample_posterior(x: Tensor, count: int) -> Tensor:
    """Draws exact samples (count, 2) of p(theta | x) for one x: theta of random crescent points, where there is one."""
    theta, possible = sources(sample_crescent((20 * count,), x.device), x[None])
    return theta[0][possible[0]][torch.randperm(int(possible.sum()))[:count]]


def log_posterior(theta: Tensor, x: Tensor) -> Tensor:
    """Computes log p(theta | x) of theta (N, 2) and x (N, 2) or (1, 2), in float64.

        p(theta | x) = p_crescent(point) / (mass of the possible sources of x),   point = x - shift(theta)

    since the map from crescent points to theta, given x, has Jacobian 1.
    """
    theta, x = theta.detach().double().cpu(), x.detach().double().cpu()
    along, across = rotate(theta)
    right, up = x[:, 0] + along.abs() - CENTRE, x[:, 1] - across
    distance = torch.hypot(right, up)
    # The angle is uniform on a half circle; 1 / distance is the Jacobian of polar coordinates.
    log_density = Normal(RADIUS, NOISE).log_prob(distance) - math.log(math.pi) - distance.log()
    return log_density.where(right > 0, -math.inf) - mass_of_sources(x).log()


def mass_of_sources(x: Tensor, angles: int = 200, radii: int = 25) -> Tensor:
    """Computes the mean number of possible sources of a random crescent point, (N,) of x (N, 2): 2 but for the border.

    By the midpoint rule in the angle, and the trapezoidal rule over 6 standard deviations of the radius.
    """
    angle = math.pi * ((torch.arange(angles, dtype=torch.float64) + 0.5) / angles - 0.5)
    standard = torch.linspace(-6, 6, radii, dtype=torch.float64)[:, None]
    points = torch.stack([(RADIUS + NOISE * standard) * f(angle) for f in (torch.cos, torch.sin)], -1)
    points[..., 0] += CENTRE
    weight = (-standard.square() / 2).softmax(0).expand(radii, angles).flatten() / angles
    mass = torch.full((len(x),), 2.0, dtype=torch.float64)
    # The possible points are a convex set: where it contains the rim of the crescent, it contains everything.
    rim = torch.cat([points[-1], points[:, 0], points[:, -1]])
    border = (~sources(rim, x)[1].all(-1).all(-1)).nonzero()[:, 0]
    for part in border.split(64):
        mass[part] = sources(points.flatten(0, 1), x[part])[1].double().sum(-1) @ weight
    return mass


# ----------------------------------------------------------------------------------------------------- the model


class Standardize(nn.Module):
    """Shifts and scales x to zero mean and unit variance, by constants that travel with the model."""

    loc: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        self.loc.copy_(x.mean(0))
        self.scale.copy_(x.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale


def build(config: Config) -> Flow:
    net = partial(MLP, hidden=config["hidden"], activation=nn.ReLU)  # the crescents end abruptly
    couplings = realnvp_transforms(2, couplings=config["couplings"], net=net, context_dim=2)
    to_box = biject_to(constraints.interval(-1.0, 1.0))
    return Flow(StandardLogistic(2), [EmbedContext(Chain(couplings), Standardize(2), (2,)), to_box])


class FreshPairs(IterableDataset[tuple[Tensor, Tensor]]):
    """Simulates another batch of pairs (theta, x) at every step, without end."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield sample_pairs(self.batch_size, self.device)


def train(flow: Flow, options: argparse.Namespace, device: torch.device, run: Run) -> None:
    """Fits the flow to fresh simulations, or to fixed ones, of which every tenth is held out to stop early."""
    standardize = next(module for module in flow.modules() if isinstance(module, Standardize))
    standardize.measure(sample_pairs(options.simulations or 10_000, device)[1])
    data: Any = DataLoader(FreshPairs(options.batch, device), batch_size=None)
    validation = None
    if options.simulations:
        cut = options.simulations * 9 // 10
        theta, x = sample_pairs(options.simulations, device)
        data, validation = (theta[:cut], x[:cut]), (theta[cut:], x[cut:])

    fit_density(flow, data, validation, options, run)


# --------------------------------------------------------------------------------------------------- calibration


@torch.no_grad()
def ranks_of(flow: Flow, pairs: int, draws: int, device: torch.device) -> Tensor:
    """Counts the draws of q(theta | x) below the true theta, in theta_1, theta_2 and log q: (pairs, 3)."""
    theta, x = sample_pairs(pairs, device)
    samples = flow.sample((draws,), x)
    drawn = torch.cat([samples, flow(samples, x)[..., None]], -1)
    true = torch.cat([theta, flow(theta, x)[:, None]], -1)
    return (drawn < true).sum(0)


def uniform_p_value(counts: Tensor) -> float:
    """Computes the p-value of a chi-square test that all bins are equally likely."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc((len(counts) - 1) / 2 * torch.ones(()), statistic / 2).item()


def histogram(ranks: Tensor, draws: int, bins: int) -> Tensor:
    """Counts ranks 0, ..., draws in equal bins: (bins,), where bins divides draws + 1."""
    return torch.bincount(ranks.cpu() * bins // (draws + 1), minlength=bins)


def coverage_of(ranks: Tensor, draws: int, mass: float) -> float:
    """Computes the share of the true theta in the region of highest q with this mass; ranks are those of log q."""
    return (ranks >= (1 - mass) * (draws + 1)).double().mean().item()


def two_sample_accuracy(first: Tensor, second: Tensor, seed: int) -> float:
    """Computes C2ST: accuracy in 5-fold cross-validation of a network that tells (N, 2) from (N, 2)."""
    everything = torch.cat([first, second])
    everything = ((everything - first.mean(0)) / first.std(0)).cpu().numpy()
    labels = torch.arange(2).repeat_interleave(len(first)).numpy()
    classifier = MLPClassifier((20, 20), early_stopping=True, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, everything, labels, cv=folds).mean())


def classify(flow: Flow, x: Tensor, options: argparse.Namespace) -> float:
    exact, learned = sample_posterior(x, options.c2st), flow.sample((options.c2st,), x)
    return two_sample_accuracy(exact, learned.cpu(), seed=options.seed)


@torch.no_grad()
def test(flow: Flow, options: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    theta, x = sample_pairs(TEST_PAIRS, device)
    log_q = flow(theta, x).double().cpu()
    gap = log_posterior(theta, x) - log_q
    ranks = ranks_of(flow, options.calibration, options.draws, device)
    row = {
        "test_nats": -log_q.mean().item(),
        "test_kl": gap.mean().item(),
        "test_kl_error": gap.std().item() / math.sqrt(TEST_PAIRS),
        "sbc_p": [uniform_p_value(histogram(rank, options.draws, BINS)) for rank in ranks.unbind(-1)],
        "coverage": [coverage_of(ranks[:, 2], options.draws, mass) for mass in COVERAGES],
        "c2st": [classify(flow, x, options) for x in OBSERVATIONS.to(device)] if options.c2st else [],
    }
    return row, ranks


# --------------------------------------------------------------------------------------------------- the picture


def draw(flow: Flow, ranks: Tensor, draws: int, path: Path, device: torch.device, count: int = 3000) -> None:
    """Draws true and learned posteriors of three x, histograms of the ranks, and the coverage."""
    figure, axes = plt.subplots(3, 3, figsize=(11, 10.5), layout="constrained")
    for column, x in zip(axes[:2].T, OBSERVATIONS.to(device), strict=True):
        posteriors = {"true": sample_posterior(x, count), "learned": flow.sample((count,), x)}
        for axis, (kind, theta) in zip(column, posteriors.items(), strict=True):
            axis.scatter(*theta.T.cpu().numpy(), s=2, alpha=0.4, linewidths=0, color="tab:blue")
            axis.set(title=f"{kind} posterior, x = ({x[0]:.4g}, {x[1]:.4g})", xlabel="theta 1", ylabel="theta 2")
            axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    low, high = binom.ppf([0.005, 0.995], len(ranks), 1 / BINS)  # 99 % of the bars of a calibrated posterior
    for axis, title, rank in zip(axes[2], ("theta 1", "theta 2"), ranks.unbind(-1), strict=False):
        axis.axhspan(low, high, color="lightgray")
        axis.axhline(len(ranks) / BINS, color="gray", linewidth=1)
        axis.bar(np.arange(BINS) + 0.5, histogram(rank, draws, BINS).numpy(), width=0.9, color="tab:blue")
        axis.set(title=f"ranks of {title}", xlim=(0, BINS), xticks=[0, BINS], xticklabels=[0, draws], ylim=(0, None))
    nominal, axis = np.linspace(0, 1, 101), axes[2, 2]
    axis.plot(nominal, [coverage_of(ranks[:, 2], draws, mass) for mass in nominal], color="tab:blue")
    axis.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axis.set(title="coverage, highest density", xlabel="nominal", ylabel="true theta inside", aspect=1)
    save_figure(path, figure)


def ranked_draws(text: str) -> int:
    """Returns a number of draws whose ranks fill the bins of the histograms equally: the type of ``--draws``."""
    if ((count := COUNT(text)) + 1) % BINS:
        raise argparse.ArgumentTypeError(f"must be one less than a multiple of {BINS}, but got {count}")
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Neural posterior estimation of the two moons simulator.")
    add_options(parser, out="runs/simulator", steps=8000)
    parser.add_argument("--simulations", type=TEN_OR_NONE, default=0, help="train on this many; 0: fresh ones always")
    parser.add_argument(
        "--sample", type=checkpoint, metavar="CHECKPOINT", help="test and draw this model, without training"
    )
    parser.add_argument("--couplings", type=COUNT, default=8, help="(default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, nargs="+", default=[128, 128], help="widths (default: %(default)s)")
    parser.add_argument("--batch", type=COUNT, default=256, help="pairs a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=1e-2, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--ema", type=SHARE, default=0.995, help="decay of the averaged weights (default: %(default)s)")
    parser.add_argument("--interval", type=COUNT, default=100, help="steps between metrics (default: %(default)s)")
    parser.add_argument("--patience", type=COUNT, default=10, help="intervals without progress (default: %(default)s)")
    parser.add_argument("--calibration", type=COUNT, default=2000, help="pairs for calibration (default: %(default)s)")
    parser.add_argument("--draws", type=ranked_draws, default=199, help="samples for a rank (default: %(default)s)")
    parser.add_argument(
        "--c2st", type=TEN_OR_NONE, default=2000, help="for the classifier, or 0 (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    device = resolve_device(options.device)
    set_seed(options.seed)
    pyro.enable_validation(False)
    if options.sample:
        flow = load_flow(options.sample, build).to(device)
        row, ranks = test(flow, options, device)
        picture = options.out / f"sample-of-{options.sample.stem}.png"
        draw(flow, ranks, options.draws, picture, device)
        print(f"{outcome(row)}; see {picture}")
        return
    with open_run(options) as run:
        if run.is_finished:
            return
        config: Config = {"couplings": options.couplings, "hidden": options.hidden}
        flow = build(config).to(device)
        train(flow, options, device, run)
        # Standardize is a class of this script: the file can only name what to build the flow from.
        save(flow, options.out / "flow.safetensors", build={"config": config})
        row, ranks = test(flow, options, device)
        run.metrics.write({**row, "seconds": run.metrics.seconds})
        draw(flow, ranks, options.draws, options.out / "simulator.png", device)
        run.finish(outcome(row))
        print(f"{outcome(row)}; see {options.out}")


def outcome(row: dict[str, Any]) -> str:
    p_values = ", ".join(f"{p:.2f}" for p in row["sbc_p"])
    gap = f"{row['test_kl']:.3f} +- {row['test_kl_error']:.3f}"
    return f"test: KL to the true posterior {gap} nats; p-values of the ranks {p_values}"


if __name__ == "__main__":
    # The layers are so small that several threads wait for each other more than they work, above all on a busy machine.
    torch.set_num_threads(1)
    main()
