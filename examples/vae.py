"""Trains variational autoencoders with a flow as the prior, as the posterior, as both, and with neither.

    python examples/vae.py                                        # all four on 8 x 8 digits: minutes on one core
    python examples/vae.py --prior flow --posterior normal        # one of them
    python examples/vae.py --data mnist --root DIR                # 28 x 28 digits, binarised

    prior p(z)            N(0, I), or RealNVP
    posterior q(z | x)    N(loc(x), diag scale(x)^2), or a conditional RealNVP after it
    likelihood p(x | z)   Binomial(levels - 1, sigmoid(decoder(z))) of every pixel: 17 levels for digits, 2 for MNIST

The decoder is one linear layer, as in factor analysis: N(0, I) pushed through it is a poor model of digits, and what
the prior is worth shows. A network as decoder (``--decoder 256 256``) can bend N(0, I) itself, but learns the 1,294
training images of 8 x 8 digits by heart: there a flow prior gains on the training images and loses on the test images.
On MNIST it gains with such a decoder too.

The pixels of MNIST are binarised at random with the grey value as probability (Salakhutdinov & Murray 2008), anew at
every step in training and once for validation and test.

All four get the same budget: the same steps, batches, networks and learning rates, and the weights (averaged over the
last steps) of the interval with the best bound on the validation images. Their seconds differ and are reported, with
the step of the best weights.

The last row for each in ``metrics.jsonl`` has, on the test images in nats per image,

    test_elbo         the evidence lower bound E_q[log p(x, z) - log q(z | x)],
    test_bound        the importance-weighted bound of --draws samples (Burda, Grosse & Salakhutdinov 2016), which is
                      closer to log p(x), each with its standard error over the images,
    gain, gain_error  of test_elbo over the model without flows, image by image (where that has been trained too).

``--out`` also receives ``vae.png`` (samples of every prior, decoded; and the latents of the test images over samples of
the prior) and the models.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine import scale
from torch import Tensor, nn

from pyro_realnvp import MLP, Checkpoint, DiagonalNormal, Flow, StandardNormal, realnvp_transforms, save
from pyro_realnvp.training.average import exponential_average
from pyro_realnvp.training.divergence import Recovery
from pyro_realnvp.training.history import Course
from pyro_realnvp.training.loop import Batches, BestState, Progress, cosine_schedule, gradient_step, run_steps

from shared.checkpoints import load_flow
from shared.image_data import describe_data, load_images
from shared.option_types import COUNT, LIMIT, RATE, SHARE, whole
from shared.options import Config, add_options, resolve_device, set_seed
from shared.pictures import image_grid, save_figure
from shared.run import Run, open_run

KINDS = ("normal", "flow")


class VAE(nn.Module):
    """Holds p(x, z) and q(z | x) as a Pyro model and guide of integer images (N, D)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        pixels, latent, hidden = config["pixels"], config["latent"], config["hidden"]
        self.total = config["levels"] - 1
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Dropout(config["dropout"]), nn.Linear(hidden, hidden), nn.SiLU()
        )
        widths = [latent, *config["decoder"]]
        layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.SiLU())]
        dropout = [nn.Dropout(config["dropout"])] if layers else []
        self.decoder = nn.Sequential(*layers, *dropout, nn.Linear(widths[-1], pixels))
        transforms = partial(
            realnvp_transforms, latent, couplings=config["couplings"], net=partial(MLP, hidden=config["width"])
        )
        self.prior: nn.Module = StandardNormal(latent)
        if config["prior"] == "flow":
            self.prior = Flow(self.prior, transforms())
        self.posterior: nn.Module = DiagonalNormal(latent, context_dim=hidden)
        if config["posterior"] == "flow":
            self.posterior = Flow(self.posterior, transforms(context_dim=hidden))

    def p_of_z(self) -> dist.Distribution:
        return self.prior.distribution() if isinstance(self.prior, Flow) else self.prior()

    def p_of_x(self, z: Tensor) -> dist.Distribution:
        return dist.Binomial(self.total, logits=self.decoder(z)).to_event(1)

    def q_of_z(self, x: Tensor) -> dist.Distribution:
        features = self.encoder(2 * x / self.total - 1)
        return self.posterior.distribution(features) if isinstance(self.posterior, Flow) else self.posterior(features)

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("images", len(x)), scale(scale=1 / len(x)):
            z = pyro.sample("z", self.p_of_z())
            pyro.sample("x", self.p_of_x(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)), scale(scale=1 / len(x)):
            pyro.sample("z", self.q_of_z(x))

    @torch.no_grad()
    def log_weights(self, x: Tensor, draws: int) -> Tensor:
        """Computes log p(x, z) - log q(z | x) of (draws, N) samples z of q."""
        q = self.q_of_z(x)
        z = q.sample((draws,))
        parts = [self.p_of_x(part).log_prob(x) for part in z]  # one by one: the pixels of all would take much memory
        return torch.stack(parts) + self.p_of_z().log_prob(z) - q.log_prob(z)

    def transform_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the flows, without those of their bases."""
        flows = [module for module in (self.prior, self.posterior) if isinstance(module, Flow)]
        return [parameter for flow in flows for parameter in flow.transforms.parameters()]


# ---------------------------------------------------------------------------------------------------- training


class Images(NamedTuple):
    training: Tensor
    validation: Tensor
    test: Tensor


def load(options: argparse.Namespace, device: torch.device) -> tuple[Images, int, bool]:
    """Loads pixels (N, D) as floats, the levels of the likelihood, and whether grey values are to be binarised."""
    parts = [part.flatten(1).float() for part in load_images(options.data, options.root, download=options.download)]
    levels = describe_data(options.data).levels
    to_binarise = levels > 17
    if to_binarise:  # training images stay grey
        training, *others = (part / (levels - 1) for part in parts)
        generator = torch.Generator().manual_seed(0)  # the test set is the same whatever --seed
        parts = [training, *(torch.bernoulli(part, generator=generator) for part in others)]
    return Images(*(part.to(device) for part in parts)), 2 if to_binarise else levels, to_binarise


def train(
    vae: VAE, images: Images, options: argparse.Namespace, run: Run, checkpoint: Checkpoint, *, binarise: bool
) -> tuple[VAE, int]:
    """Trains, and returns the averaged model at its best validation bound, and the step of that."""
    average = exponential_average(vae, options.ema)
    averaged = average.module
    flows = vae.transform_parameters()
    others = [parameter for parameter in vae.parameters() if not any(parameter is flow for flow in flows)]
    groups = [{"params": others}]
    if flows:  # they follow the autoencoder, which would otherwise chase them
        groups.append({"params": flows, "lr": options.lr * options.flow_lr, "weight_decay": options.flow_decay})
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.decay, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_schedule(options.steps, warmup=200))
    batches, elbo = Batches(images.training, options.batch), Trace_ELBO()

    def loss() -> Tensor:
        x = next(batches)
        return elbo.differentiable_loss(vae.model, vae.guide, x.bernoulli() if binarise else x)

    best, progress, course = BestState(averaged, options.patience), Progress(), Course()
    modules = {"vae": vae, "average": average}
    recovery = Recovery(optimizer, scheduler, times=run.recoveries, progress=progress, **modules)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "batches": batches, "recovery": recovery}
    checkpoint.track(**modules, **parts, best=best, progress=progress, course=course)

    def on_interval(taken: int, loss: float) -> bool:
        averaged.eval()
        elbo = averaged.log_weights(images.validation, 8).mean().item()
        row = {"step": taken, "loss": loss, "validation_elbo": elbo, "seconds": run.metrics.seconds}
        run.metrics.write(row)
        if -elbo < best.loss:
            course.best_step = taken
        recovery.remember()
        return best.stop(-elbo)

    step = gradient_step(vae, loss, optimizer, scheduler=scheduler, average=average, clip=options.max_norm)
    run_steps(
        step,
        steps=options.steps,
        interval=options.interval,
        on_interval=on_interval,
        start=progress,
        checkpoint=checkpoint,
        recover=recovery,
    )
    best.restore()
    return averaged.eval(), course.best_step


def test(vae: VAE, x: Tensor, draws: int) -> tuple[dict[str, float], Tensor]:
    """Computes the two bounds with their standard errors, and the first for every image."""
    log_weights = torch.cat([vae.log_weights(part, draws) for part in x.split(500)], 1).double().cpu()
    elbo, bound = log_weights.mean(0), log_weights.logsumexp(0) - math.log(draws)
    row = {}
    for name, value in (("test_elbo", elbo), ("test_bound", bound)):
        row |= {name: value.mean().item(), f"{name}_error": value.std().item() / math.sqrt(len(value))}
    return row, elbo


# -------------------------------------------------------------------------------------------------- the picture


@torch.no_grad()
def draw(models: Mapping[str, VAE], x: Tensor, shape: Sequence[int], path: Path, count: int = 64) -> None:
    """Draws for every model samples of its prior, decoded to the mean, and the latents of x over those of the prior."""
    figure, axes = plt.subplots(2, len(models), figsize=(3.6 * len(models), 8.0), squeeze=False, layout="constrained")
    for column, (name, vae) in zip(axes.T, models.items(), strict=True):
        prior = vae.p_of_z().sample((2000,))
        means = vae.p_of_x(prior[:count]).base_dist.mean / vae.total
        column[0].imshow(image_grid(means.view(-1, *shape), 8)[..., 0].numpy(), cmap="gray", vmin=0, vmax=1)
        column[0].set_title(name)
        column[0].axis("off")
        q = vae.q_of_z(x)
        latents = q.sample()
        # The two coordinates of which the images say most: those where one posterior is narrow beside all of them.
        informative = (q.sample((16,)).std(0).mean(0) / latents.std(0)).argsort()[:2]
        for label, points, color in (("prior", prior, "lightgray"), ("q(z | test images)", latents, "tab:blue")):
            column[1].scatter(*points[:, informative].T.cpu().numpy(), s=3, color=color, label=label)
        column[1].set(xlabel=f"z {informative[0]}", ylabel=f"z {informative[1]}")
        column[1].legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, markerscale=3, frameon=False)
    save_figure(path, figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Variational autoencoders with and without flows.")
    add_options(parser, out="runs/vae", steps=3000)
    parser.add_argument("--prior", choices=KINDS, help="only this prior (default: both)")
    parser.add_argument("--posterior", choices=KINDS, help="only this posterior (default: both)")
    parser.add_argument("--data", choices=("digits", "mnist", "fashion-mnist"), default="digits")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of MNIST (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="fetch the data if they are not there")
    parser.add_argument("--latent", type=whole(2), default=32, help="dimensions of z (default: %(default)s)")
    parser.add_argument("--hidden", type=COUNT, default=256, help="width of the encoder (default: %(default)s)")
    parser.add_argument("--decoder", type=COUNT, nargs="*", default=[], help="widths of the decoder (default: none)")
    parser.add_argument("--couplings", type=COUNT, default=6, help="of each flow (default: %(default)s)")
    parser.add_argument("--width", type=COUNT, nargs="+", default=[64, 64], help="of their networks")
    parser.add_argument("--dropout", type=SHARE, default=0.1, help="(default: %(default)s)")
    parser.add_argument("--batch", type=COUNT, default=128, help="images a step (default: %(default)s)")
    parser.add_argument("--lr", type=RATE, default=2e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--flow-lr", type=RATE, default=0.3, help="times that for the flows (default: %(default)s)")
    parser.add_argument("--decay", type=RATE, default=0.0, help="weight decay (default: %(default)s)")
    parser.add_argument("--flow-decay", type=RATE, default=0.1, help="of the flows (default: %(default)s)")
    parser.add_argument("--max-norm", type=LIMIT, default=50.0, help="gradients are clipped (default: %(default)s)")
    parser.add_argument("--ema", type=SHARE, default=0.995, help="decay of the averaged weights (default: %(default)s)")
    parser.add_argument("--interval", type=COUNT, default=100, help="steps between metrics (default: %(default)s)")
    parser.add_argument("--patience", type=COUNT, default=10, help="intervals without progress (default: %(default)s)")
    parser.add_argument("--draws", type=COUNT, default=100, help="samples of the bounds (default: %(default)s)")
    options = parser.parse_args(arguments)

    device = resolve_device(options.device)
    pyro.enable_validation(False)
    pairs = [
        (prior, posterior)
        for prior, posterior in product(KINDS, KINDS)
        if options.prior in (None, prior) and options.posterior in (None, posterior)
    ]
    with open_run(options, stages=["-".join(pair) for pair in pairs]) as run:
        if run.is_finished:
            return
        images, levels, binarise = load(options, device)
        models: dict[str, VAE] = {}
        outcomes = []
        reference: Tensor | None = None
        for prior, posterior in pairs:
            config: Config = {
                **{
                    name: getattr(options, name)
                    for name in ("latent", "hidden", "decoder", "couplings", "width", "dropout")
                },
                "prior": prior,
                "posterior": posterior,
                "pixels": images.test.shape[1],
                "levels": levels,
            }
            name, file = f"{prior} prior, {posterior} posterior", options.out / f"{prior}-{posterior}.safetensors"
            with run.stage(f"{prior}-{posterior}") as checkpoint:
                if checkpoint.result is None:
                    set_seed(options.seed)
                    vae = VAE(config).to(device)
                    set_seed(options.seed)  # again: the same batches for all
                    vae, best_step = train(vae, images, options, run, checkpoint, binarise=binarise)
                    row, elbo = test(vae, images.test, options.draws)
                    if prior == posterior == "normal":
                        reference = elbo
                    if reference is not None:
                        gain = elbo - reference
                        row |= {"gain": gain.mean().item(), "gain_error": gain.std().item() / math.sqrt(len(gain))}
                    row = {"model": name, **row, "best_step": best_step, "seconds": round(checkpoint.seconds, 1)}
                    run.metrics.write(row)
                    # pyro_realnvp.load(path, build=VAE) makes it again.
                    save(vae, file, build={"config": config})
                    run.finish_stage(checkpoint, row=row, elbo=elbo)
                else:
                    row, elbo = checkpoint.result["row"], checkpoint.result["elbo"]
                    vae = load_flow(file, VAE).to(device)
                    reference = elbo if prior == posterior == "normal" else reference
            models[name] = vae
            outcomes.append(outcome(row))
            print(outcomes[-1])
        set_seed(options.seed)
        draw(models, images.test[:1000], describe_data(options.data).image_shape, options.out / "vae.png")
        run.finish("; ".join(outcomes))


def outcome(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']}: test ELBO {row['test_elbo']:.2f} +- {row['test_elbo_error']:.2f}, bound "
        f"{row['test_bound']:.2f} nats per image, gain {row.get('gain', math.nan):.2f} +- "
        f"{row.get('gain_error', math.nan):.2f}; {row['seconds']} s, best at step {row['best_step']}"
    )


if __name__ == "__main__":
    # The networks are so small that several threads wait for each other more than they work.
    torch.set_num_threads(1)
    main()
