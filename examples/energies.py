"""Fits a RealNVP by reverse KL to unnormalised densities: the four energies of Rezende and Mohamed.

    python examples/energies.py                         # all four
    python examples/energies.py --energy u4 --compare   # one, and the same flow without annealing

The densities p(z) = exp(-U(z)) / Z of "Variational inference with normalizing flows" (2015), table 1, with

    w1 = sin(2 pi z1 / 4),   w2 = 3 exp(-((z1 - 1) / 0.6)^2 / 2),   w3 = 3 sigmoid((z1 - 1) / 0.3),

are given by their energies U alone: no sample of p is ever seen. u2, u3 and u4 bound z2 only. Along z1 they go on for
ever, so that exp(-U) has no integral and p does not exist; the paper shows the window of +-4. Here the three energies
have one term more, (max(|z1| - 4, 0) / 0.4)^2 / 2: nothing changes within the window, and outside p falls off smoothly,
as fast as it does across its branches. u1 is as in the table.

A flow q minimises E_q[log q(z) + beta U(z)], the reverse KL up to a constant, where beta rises from ``--start`` to 1
during the first part of the training (``--anneal``). At a small beta the density is so flat that its modes are one,
which q covers, and follows while they part. Without it (``--anneal 0``, and ``--compare``) three seeds for u1 gave an
ess of 58 to 95 % and shares of the modes up to 28 % off, with it 97 to 98 % and 8 %; u2, u3, u4 hang together and need
it less. The gradient is taken along the path of the samples only (Roeder, Wu & Duvenaud 2017, "Sticking the landing"):
log q is evaluated with its parameters held fixed. What is left out has mean zero; what remains vanishes sample by
sample as q reaches p, so that the last steps are almost without noise.

The last row for an energy in ``metrics.jsonl`` has

    ess              in percent, of the importance weights exp(-U) / q of 100,000 fresh samples of q,
    log_z            log Z from the same weights, beside log_z_true from quadrature on a fine grid,
    forward_kl       E_p[log p - log q] in nats, and missed, the mass of p where q < p / 10, both by quadrature: a q
                     that misses a mode has a fine ess, as its samples know nothing of it, but a missed of its mass,
    forward_ess      1 / E_p[p / q] in percent, from 100,000 samples of p; a single one in a far tail that q lacks,
                     of which the reverse KL takes no notice, can bring it down to 0,
    modes            the share of the samples in each mode, beside modes_true by quadrature,
    mode_error       the largest relative error of those shares.

``--out`` also receives ``energies.png``, and for every fit its model and its metrics on the way.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor, nn

from pyro_realnvp import MLP, Checkpoint, Flow, PathGradientDistribution, StandardNormal, load, realnvp_transforms, save
from pyro_realnvp.training.average import exponential_average
from pyro_realnvp.training.divergence import Recovery
from pyro_realnvp.training.loop import Progress, cosine_schedule, gradient_step, run_steps

from shared.metrics import Metrics
from shared.option_types import COUNT, RATE, SHARE, real
from shared.options import add_options, resolve_device, set_seed
from shared.pictures import save_figure
from shared.run import Run, open_run

WINDOW, CONFINEMENT = 4.0, 0.4
TEST_SAMPLES = 100_000
# ---------------------------------------------------------------------------------------------------- the energies


def log_bump(value: Tensor, width: float) -> Tensor:
    return -0.5 * (value / width) ** 2


def w1(z1: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z1 / 4)


def w2(z1: Tensor) -> Tensor:
    return 3 * log_bump(z1 - 1, 0.6).exp()


def w3(z1: Tensor) -> Tensor:
    return 3 * torch.sigmoid((z1 - 1) / 0.3)


def confinement(z1: Tensor) -> Tensor:
    return -log_bump((z1.abs() - WINDOW).clamp(min=0), CONFINEMENT)


def u1(z: Tensor) -> Tensor:
    z1 = z[..., 0]
    return -log_bump(z.norm(dim=-1) - 2, 0.4) - torch.logaddexp(log_bump(z1 - 2, 0.6), log_bump(z1 + 2, 0.6))


def u2(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    return confinement(z1) - log_bump(z2 - w1(z1), 0.4)


def u3(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    upper = z2 - w1(z1)
    return confinement(z1) - torch.logaddexp(log_bump(upper, 0.35), log_bump(upper + w2(z1), 0.35))


def u4(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    upper = z2 - w1(z1)
    return confinement(z1) - torch.logaddexp(log_bump(upper, 0.4), log_bump(upper + w3(z1), 0.35))


@dataclass(frozen=True, eq=False)
class Energy:
    """U, maps (..., 2) to (...), and a partition of the plane that shows whether a mode is missing.

    Attributes:
        modes: the names of the parts.
        mode: the index of the part in which z lies, maps (..., 2) to (...).
    """

    name: str
    potential: Callable[[Tensor], Tensor]
    modes: tuple[str, ...]
    mode: Callable[[Tensor], Tensor]

    @cached_property
    def truth(self) -> Truth:
        return Truth(self)

    def shares(self, z: Tensor, weights: Tensor) -> dict[str, float]:
        """Computes the share of the weights (N,) of the points (N, 2) that lies in each mode."""
        sums = torch.bincount(self.mode(z), weights, minlength=len(self.modes)) / weights.sum()
        return dict(zip(self.modes, sums.tolist(), strict=True))


def fork(z: Tensor, width: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns 1 on the branch at w1, 2 on that below it, where they are more than 1.5 apart, and 0 elsewhere."""
    z1, z2 = z.unbind(-1)
    lower = z2 < w1(z1) - width(z1) / 2
    return (width(z1) > 1.5) * (1 + lower.long())


ENERGIES = {
    energy.name: energy
    for energy in (
        Energy("u1", u1, ("left", "right"), lambda z: (z[..., 0] > 0).long()),
        Energy(
            "u2",
            u2,
            ("z1 < -2", "-2 < z1 < 0", "0 < z1 < 2", "2 < z1"),
            lambda z: 2 + (z[..., 0] / 2).floor().clamp(-2, 1).long(),
        ),
        Energy("u3", u3, ("stem", "upper", "lower"), partial(fork, width=w2)),
        Energy("u4", u4, ("stem", "upper", "lower"), partial(fork, width=w3)),
    )
}


class Truth:
    """Integrates an energy by quadrature: the midpoint rule on cells of width 0.02 over +-7, in float64.

    Attributes:
        places: the midpoints (N, 2) of all cells in which the density is not negligible.
        p: the mass of those cells (N,), whose sum is 1.
        log_z: log Z.
    """

    def __init__(self, energy: Energy, *, extent: float = 7.0, width: float = 0.02) -> None:
        axis = torch.arange(-extent + width / 2, extent, width, dtype=torch.float64)
        places = torch.cartesian_prod(axis, axis)
        log_p = -energy.potential(places)
        self.width = width
        self.log_z = log_p.logsumexp(0).item() + 2 * math.log(width)
        keep = log_p - self.log_z > -30
        self.places, self.p = places[keep], log_p[keep].softmax(0)

    def sample(self, count: int) -> Tensor:
        """Draws samples (count, 2) of p, uniform within each cell."""
        chosen = torch.multinomial(self.p, count, replacement=True)
        return self.places[chosen] + self.width * (torch.rand(count, 2) - 0.5)


# --------------------------------------------------------------------------------------------------------- the fit


def build(couplings: int, hidden: Sequence[int]) -> Flow:
    net = partial(MLP, hidden=hidden, activation=nn.ReLU)
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=couplings, net=net))


def annealed(step: int, steps: int, fraction: float, start: float) -> float:
    """Returns beta of a step: it rises along a line from ``start`` to 1 in the first ``fraction`` of the steps.

    By equal factors, most of these steps would go to a density that is all but flat, and few to the modes as they part.
    """
    rise = fraction * steps
    return start + (1 - start) * step / rise if step < rise else 1.0


def path_loss(flow: Flow, energy: Energy, beta: float, count: int) -> Tensor:
    """Estimates E_q[log q(z) + beta U(z)] from ``count`` samples, with the gradient along their path alone."""
    q = PathGradientDistribution(flow.base(), [flow.transforms])
    z = q.rsample((count,))
    return (q.log_prob(z) + beta * energy.potential(z)).mean()


def train(
    options: argparse.Namespace,
    energy: Energy,
    anneal: float,
    device: torch.device,
    run: Run,
    checkpoint: Checkpoint,
) -> tuple[Flow, float]:
    """Trains; returns the flow with the average of the weights over the last steps, and the seconds that it took."""
    set_seed(options.seed)
    flow = build(options.couplings, options.hidden).to(device)
    average = exponential_average(flow, options.ema)
    averaged = average.module
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_schedule(options.steps))
    progress = Progress()

    def loss() -> Tensor:
        return path_loss(flow, energy, annealed(progress.step, options.steps, anneal, options.start), options.batch)

    step = gradient_step(flow, loss, optimizer, scheduler=scheduler, average=average, clip=5.0)
    metrics = Metrics(checkpoint.path.parent)
    modules = {"flow": flow, "average": average}
    recovery = Recovery(optimizer, scheduler, times=run.recoveries, progress=progress, **modules)
    parts = {**modules, "optimizer": optimizer, "scheduler": scheduler, "progress": progress, "recovery": recovery}
    checkpoint.track(**parts, own_metrics=metrics)

    @torch.no_grad()
    def on_interval(taken: int, loss: float) -> bool:
        ess = importance(averaged, energy, 5000)[1]
        metrics.write({"step": taken, "loss": loss, "ess": ess, "seconds": metrics.seconds})
        recovery.remember()
        return False

    # Samples of the flow itself need no check; if they are no numbers any more, neither is the loss, and run_steps says
    # so.
    with pyro.validation_enabled(False):
        run_steps(
            step,
            steps=options.steps,
            interval=options.interval,
            on_interval=on_interval,
            start=progress,
            checkpoint=checkpoint,
            recover=recovery,
        )
    save(averaged, checkpoint.path.parent / "flow.safetensors")
    return averaged.eval(), metrics.seconds


# -------------------------------------------------------------------------------------------------------- the test


def importance(flow: Flow, energy: Energy, count: int) -> tuple[Tensor, float, float]:
    """Draws samples of q, and computes their effective number in percent, and log Z, by importance weights.

    w = exp(-U) / q,   ESS = (sum w)^2 / (N sum w^2),   Z = mean of w
    """
    z = flow.sample((count,))
    log_w = (-energy.potential(z) - flow(z)).double()
    log_sum = log_w.logsumexp(0)
    ess = 100 * (2 * log_sum - (2 * log_w).logsumexp(0)).exp().item() / count
    return z, ess, log_sum.item() - math.log(count)


@torch.no_grad()
def test(flow: Flow, energy: Energy, device: torch.device) -> dict[str, Any]:
    truth = energy.truth
    z, ess, log_z = importance(flow, energy, TEST_SAMPLES)

    def log_ratio(places: Tensor) -> Tensor:
        log_q = torch.cat([flow(part.float().to(device)).double().cpu() for part in places.split(50_000)])
        return -energy.potential(places) - truth.log_z - log_q

    gap = log_ratio(truth.places)
    shares, true_shares = energy.shares(z.cpu(), torch.ones(len(z))), energy.shares(truth.places, truth.p)
    return {
        "ess": ess,
        "forward_ess": 100 / log_ratio(truth.sample(TEST_SAMPLES)).exp().mean().item(),
        "forward_kl": (truth.p * gap).sum().item(),
        "missed": truth.p[gap > math.log(10)].sum().item(),
        "log_z": log_z,
        "log_z_true": truth.log_z,
        "modes": shares,
        "modes_true": true_shares,
        "mode_error": max(abs(shares[name] / true_shares[name] - 1) for name in shares),
    }


# ----------------------------------------------------------------------------------------------------- the picture


@torch.no_grad()
def draw(fits: dict[Energy, dict[str, Flow]], path: Path, device: torch.device) -> None:
    """Draws a row for every energy: the true density, and that of each flow in the same colours."""
    axis_values = torch.linspace(-5, 5, 301)
    places = torch.cartesian_prod(axis_values, axis_values).flip(-1)
    columns = 1 + max(len(flows) for flows in fits.values())
    size = (3.1 * columns, 3.2 * len(fits))
    figure, axes = plt.subplots(len(fits), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (energy, flows) in zip(axes, fits.items(), strict=True):
        densities = {f"{energy.name}: truth": (-energy.potential(places) - energy.truth.log_z).exp()}
        for title, flow in flows.items():
            densities[title] = flow(places.to(device)).exp().cpu()
        highest = densities[f"{energy.name}: truth"].max().item()
        for axis, (title, density) in zip(row, densities.items(), strict=True):
            axis.imshow(density.view(301, 301).numpy(), origin="lower", extent=(-5, 5, -5, 5), vmin=0, vmax=highest)
            axis.set_title(title, fontsize="medium")
            axis.set(xticks=(-4, 0, 4), yticks=(-4, 0, 4))
    save_figure(path, figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A RealNVP fitted by reverse KL to the energies of Rezende, Mohamed.")
    add_options(parser, out="runs/energies", steps=2500)
    parser.add_argument("--energy", nargs="+", choices=ENERGIES, default=list(ENERGIES), help="(default: all)")
    parser.add_argument("--anneal", type=SHARE, default=0.7, help="part of the steps with beta < 1 (default: 0.7)")
    parser.add_argument(
        "--start", type=real(above=0, at_most=1), default=0.01, help="beta of the first step (default: %(default)s)"
    )
    parser.add_argument("--compare", action="store_true", help="fit without annealing too, and draw both")
    parser.add_argument("--couplings", type=COUNT, default=8, help="(default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, nargs="+", default=[64, 64], help="widths (default: %(default)s)")
    parser.add_argument("--batch", type=COUNT, default=512, help="samples a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=2e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--ema", type=SHARE, default=0.995, help="decay of the averaged weights (default: %(default)s)")
    parser.add_argument("--interval", type=COUNT, default=100, help="steps between metrics (default: %(default)s)")
    options = parser.parse_args(arguments)

    device = resolve_device(options.device)
    runs = {"annealed" if options.anneal else "not_annealed": options.anneal}
    if options.compare:
        runs["not_annealed"] = 0.0
    fits: dict[Energy, dict[str, Flow]] = {ENERGIES[name]: {} for name in options.energy}
    stages = {f"{name}/{title}": (name, title, anneal) for name in options.energy for title, anneal in runs.items()}
    with open_run(options, stages=list(stages)) as run:
        if run.is_finished:
            return
        outcomes = []
        for stage, (name, title, anneal) in stages.items():
            energy = ENERGIES[name]
            with run.stage(stage) as checkpoint:
                if checkpoint.result is None:
                    flow, seconds = train(options, energy, anneal, device, run, checkpoint)
                    row = {"energy": name, "anneal": anneal, **test(flow, energy, device), "seconds": seconds}
                    run.metrics.write(row)
                    run.finish_stage(checkpoint, row=row)
                else:
                    row = checkpoint.result["row"]
                    flow = load(options.out / stage / "flow.safetensors", device=device)
            title = title.replace("_", " ")
            outcomes.append(outcome(title, row))
            print(outcomes[-1])
            fits[energy][f"{title}: ESS {row['ess']:.1f} %, KL {row['forward_kl']:.3f}"] = flow
        draw(fits, options.out / "energies.png", device)
        run.finish("; ".join(outcomes))


def outcome(title: str, row: dict[str, Any]) -> str:
    return (
        f"{row['energy']}, {title}: ESS {row['ess']:.1f} %, forward KL {row['forward_kl']:.4f}, log Z "
        f"{row['log_z']:.4f} (true {row['log_z_true']:.4f}), modes within {100 * row['mode_error']:.1f} %"
    )


if __name__ == "__main__":
    # The layers are so small that several threads wait for each other more than they work, above all on a busy machine.
    torch.set_num_threads(1)
    main()
