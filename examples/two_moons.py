"""Learns the density of two moons, with affine couplings only.

    python examples/two_moons.py                    # fresh points at every step
    python examples/two_moons.py --points 3000      # from 3,000 points only: 80 % to train, 20 % to stop early
    python examples/two_moons.py --sample runs/two_moons/flow.safetensors     # no training

The generator is that of scikit-learn's ``make_moons`` with noise 0.05, not standardised: a point on one of two half
circles, plus N(0, 0.05^2) on both coordinates. Its density is known, so the last row of ``metrics.jsonl`` has, from
20,000 fresh points x,

    test_nats      the mean of -log q(x), in nats per point,
    test_kl        the mean of log p_true(x) - log q(x): 0 for a perfect model (test_kl_error: its standard error).

``--out`` also receives ``two_moons.png`` and the model, ``flow.safetensors``, for ``pyro_realnvp.load``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pyro_realnvp import MLP, Flow, StandardNormal, realnvp_transforms, save

from shared.checkpoints import load_flow
from shared.density_training import fit_density
from shared.option_types import COUNT, RATE, SHARE, TEN_OR_NONE, checkpoint
from shared.options import Config, add_options, resolve_device, set_seed
from shared.pictures import save_figure
from shared.run import Run, open_run

NOISE = 0.05
TEST_POINTS = 20_000


# ------------------------------------------------------------------------------------------------- the generator


def on_arcs(angle: Tensor, inner: Tensor) -> Tensor:
    """Returns the point at an angle in [0, pi] of the outer half circle, or of the inner one."""
    outer_moon = torch.stack([angle.cos(), angle.sin()], -1)
    inner_moon = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    return torch.where(inner[..., None], inner_moon, outer_moon)


def sample_moons(count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Draws points (count, 2), and says which of them belong to the inner moon."""
    angle = math.pi * torch.rand(count, device=device)
    inner = torch.rand(count, device=device) < 0.5
    return on_arcs(angle, inner) + NOISE * torch.randn(count, 2, device=device), inner


def log_density(x: Tensor, nodes: int = 128) -> Tensor:
    """Computes log p_true of points (N, 2), by Gauss-Legendre quadrature along both arcs, in float64.

    p_true(x) = 1/2 sum over the arcs of 1/pi times the integral over [0, pi] of N(x; arc(angle), 0.05^2 I)

    The nodes are at most 0.8 standard deviations of the noise apart, where the rule is exact to about 1e-12.
    """
    where, weight = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(nodes))
    angle = math.pi * (where + 1) / 2
    inner = torch.tensor([[False], [True]]).expand(2, nodes)
    points = on_arcs(angle.expand(2, nodes), inner).reshape(-1, 2)
    log_weight = (weight / 4).log().repeat(2)
    log_normal = -math.log(2 * math.pi * NOISE**2)
    parts = []
    for part in x.detach().double().cpu().split(4096):  # a distance for every point and node: keep it small
        square = part.square().sum(-1, keepdim=True) - 2 * part @ points.T + points.square().sum(-1)
        parts.append((log_weight - square / (2 * NOISE**2)).logsumexp(-1) + log_normal)
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------------- the model


def build(config: Config) -> Flow:
    # The moons end abruptly: with ReLU the networks follow that three times better than with a smooth activation.
    net = partial(MLP, hidden=config["hidden"], activation=nn.ReLU)
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=config["couplings"], net=net))


class FreshPoints(IterableDataset[Tensor]):
    """Draws another batch of points at every step, without end."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield sample_moons(self.batch_size, self.device)[0]


def train(flow: Flow, options: argparse.Namespace, run: Run) -> None:
    """Fits the flow to fresh points, or to fixed ones, of which every fifth is held out to stop early."""
    device = next(flow.parameters()).device
    data, validation, jitter = DataLoader(FreshPoints(options.batch, device), batch_size=None), None, 0.0
    if options.points:
        points = make_moons(options.points, noise=NOISE, random_state=options.seed)[0]  # it has shuffled them
        data, validation = torch.tensor(points, dtype=torch.float32).tensor_split([options.points * 4 // 5])
        # A little fresh noise, as in a kernel density estimate: without it the flow learns the single points, and
        # the density that it leaves between them is as good as zero.
        jitter = options.jitter

    fit_density(flow, data, validation, options, run, noise=jitter)


@torch.no_grad()
def test(flow: Flow, device: torch.device) -> dict[str, float]:
    x, _ = sample_moons(TEST_POINTS, device)
    log_q = flow(x).double().cpu()
    gap = log_density(x) - log_q
    return {
        "test_nats": -log_q.mean().item(),
        "test_kl": gap.mean().item(),
        "test_kl_error": gap.std().item() / math.sqrt(TEST_POINTS),
    }


# -------------------------------------------------------------------------------------------------- the picture


@torch.no_grad()
def draw(flow: Flow, path: Path, device: torch.device, count: int = 3000) -> None:
    """Draws data, samples and latents, the true and the learned density, and a straight line of latents, decoded."""
    data, inner = sample_moons(count, device)
    latent = flow.transforms.inv(data)
    start, end = torch.tensor([-1.0, 1.0], device=device), torch.tensor([0.5, 1.0], device=device)
    line = torch.lerp(start, end, torch.linspace(0, 1, 11, device=device)[:, None])
    xs, ys = torch.linspace(-1.5, 2.5, 321), torch.linspace(-1.0, 1.5, 201)
    places = torch.cartesian_prod(ys, xs).flip(-1)
    log_q = flow(places.to(device)).double().cpu()

    figure, axes = plt.subplots(2, 3, figsize=(13.5, 6.2), layout="constrained")
    moon = np.where(inner.cpu().numpy(), "tab:orange", "tab:blue")
    scatter(axes[0, 0], "data", data, moon)
    scatter(axes[0, 1], "samples", flow.sample((count,)), "tab:green")
    scatter(axes[0, 2], "latent space: the data, and a straight line", latent, moon)
    scatter(axes[1, 2], "the line, decoded", data, "lightgray")
    for axis, points in ((axes[0, 2], line), (axes[1, 2], flow.transforms(line))):
        axis.plot(*points.T.cpu().numpy(), "o-", color="black", markersize=3, linewidth=1)
    for axis, title, log_p in (
        (axes[1, 0], "true density", log_density(places)),
        (axes[1, 1], "learned density", log_q),
    ):
        density = log_p.exp().view(len(ys), len(xs)).numpy()
        # The highest true density is 1.27: the same colours mean the same in both.
        image = axis.imshow(density, origin="lower", extent=(-1.5, 2.5, -1.0, 1.5), vmin=0, vmax=1.3)
        axis.set_title(title)
    figure.colorbar(image, ax=axes[1, :2].tolist(), label="density", location="bottom", shrink=0.5, aspect=40)
    for axis in axes.flat:
        axis.set(aspect="equal", xlim=(-1.5, 2.5), ylim=(-1.0, 1.5))
    axes[0, 2].set(xlim=(-4.8, 4.8), ylim=(-3, 3))
    save_figure(path, figure)


def scatter(axis: Axes, title: str, points: Tensor, color: str | np.ndarray) -> None:
    axis.scatter(*points.T.cpu().numpy(), c=color, s=3, alpha=0.6, linewidths=0)
    axis.set_title(title)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learns the density of two moons, with affine couplings only.")
    add_options(parser, out="runs/two_moons", steps=5000)
    parser.add_argument(
        "--points", type=TEN_OR_NONE, default=0, help="train on this many fixed points; 0: fresh ones always"
    )
    parser.add_argument(
        "--sample", type=checkpoint, metavar="CHECKPOINT", help="test and draw this model, without training"
    )
    parser.add_argument("--couplings", type=COUNT, default=16, help="(default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, nargs="+", default=[64, 64], help="widths (default: %(default)s)")
    parser.add_argument("--batch", type=COUNT, default=512, help="points a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--ema", type=SHARE, default=0.995, help="decay of the averaged weights (default: %(default)s)")
    parser.add_argument("--jitter", type=RATE, default=0.02, help="noise on fixed points (default: %(default)s)")
    parser.add_argument("--interval", type=COUNT, default=100, help="steps between metrics (default: %(default)s)")
    parser.add_argument("--patience", type=COUNT, default=10, help="intervals without progress (default: %(default)s)")
    options = parser.parse_args(arguments)

    device = resolve_device(options.device)
    set_seed(options.seed)
    if options.sample:
        flow = load_flow(options.sample, build).to(device)
        picture = options.out / f"sample-of-{options.sample.stem}.png"
        row = test(flow, device)
        draw(flow, picture, device)
        print(f"{outcome(row)}; see {picture}")
        return
    with open_run(options) as run:
        if run.is_finished:
            return
        flow = build({"couplings": options.couplings, "hidden": options.hidden}).to(device)
        train(flow, options, run)
        save(flow, options.out / "flow.safetensors")
        row = test(flow, device)
        run.metrics.write({**row, "seconds": run.metrics.seconds})
        draw(flow, options.out / "two_moons.png", device)
        run.finish(outcome(row))
        print(f"{outcome(row)}; see {options.out}")


def outcome(row: dict[str, float]) -> str:
    return f"test: {row['test_nats']:.4f} nats, KL {row['test_kl']:.4f} +- {row['test_kl_error']:.4f}"


if __name__ == "__main__":
    # The layers are so small that several threads wait for each other more than they work, above all on a busy machine.
    torch.set_num_threads(1)
    main()
