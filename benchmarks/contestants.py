"""Defines the contestants of benchmark.py: yardsticks, and the flows of this package in several ways of use.

A contestant is a Module and, for every kind of work, a function that does it once. peers.py has those of other
libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_realnvp import MLP, Flow, StandardNormal, realnvp_transforms
from pyro_realnvp.networks.conditioner import Conditioner

Work = Callable[[Tensor], Any]  # of a batch of data; what draws samples draws as many
LogProb = Callable[[Tensor], Tensor]
Draw = Callable[[int], Any]


@dataclass(frozen=True)
class Contestant:
    """Holds a Module and the work that is timed.

    Args:
        module: owns the parameters; it is switched between training and evaluation mode.
        work: by kind; kinds that a contestant has no use for are missing.
        networks: the conditioners, of which :func:`networks_alone` makes a yardstick.
    """

    module: nn.Module
    work: dict[str, Work]
    networks: Sequence[nn.Module] = ()


def fused_adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)


def step_of(module: nn.Module, loss: Callable[[Tensor], None]) -> Work:
    """Makes a training step of ``loss``, which runs backward too."""
    optimizer = fused_adam(module)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x)
        optimizer.step()

    return step


def density(
    module: nn.Module, log_prob: LogProb, sample: Draw, pair: Draw, networks: Sequence[nn.Module] = ()
) -> Contestant:
    """Makes a contestant of functions: log p(x), samples, and samples with gradients together with their log p."""

    def backward(x: Tensor) -> None:
        (-log_prob(x).mean()).backward()

    work: dict[str, Work] = {
        "forward + backward": backward,
        "training step": step_of(module, backward),
        "log_prob": torch.no_grad()(log_prob),
        "sample": torch.no_grad()(lambda x: sample(len(x))),
        "rsample, log_prob": lambda x: pair(len(x)),
    }
    return Contestant(module, work, networks)


# --------------------------------------------------------------------------------------------------- yardsticks


def networks_alone(contestant: Contestant, x: Tensor) -> Contestant:
    """Makes the floor: copies of the conditioners, on what they are given in ``log_prob(x)`` and in backward.

    The gradients that come back to them are random numbers, and those of their inputs are computed where the flow
    computes them: everywhere but at the data.
    """
    networks = deepcopy(nn.ModuleList(contestant.networks))
    copies = dict(zip(contestant.networks, networks, strict=True))
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = inputs[0].detach().clone().requires_grad_(inputs[0].requires_grad)
        calls.append((copies[network], given, torch.randn_like(output)))

    hooks = [network.register_forward_hook(record) for network in contestant.networks]
    contestant.work["forward + backward"](x)
    for hook in hooks:
        hook.remove()

    def forward(_: Tensor) -> list[Tensor]:
        return [network(given) for network, given, _ in calls]

    def backward(x: Tensor) -> None:
        for _, given, _ in calls:
            given.grad = None
        torch.autograd.backward(forward(x), [gradient for *_, gradient in calls])

    scoring = torch.no_grad()(forward)
    work: dict[str, Work] = {
        "forward + backward": backward,
        "training step": step_of(networks, backward),
        "log_prob": scoring,
        "sample": scoring,
        "rsample, log_prob": forward,
    }
    return Contestant(networks, work)


def mlp(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class BareLoop(nn.Module):
    """Computes RealNVP by hand, with nothing around it: what a library can hope to come near."""

    def __init__(self, dim: int, hidden: Sequence[int], couplings: int) -> None:
        super().__init__()
        self.dim = dim
        self.networks = nn.ModuleList(mlp(dim // 2, dim, hidden) for _ in range(couplings))

    def log_prob(self, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, -1)
        log_det: Tensor | float = 0.0
        for network in self.networks:
            shift, raw = network(kept).chunk(2, -1)
            log_scale = raw.tanh()
            kept, moved = (moved - shift) * (-log_scale).exp(), kept
            log_det = log_det - log_scale.sum(-1)
        square = kept.square().sum(-1) + moved.square().sum(-1)
        return log_det - 0.5 * (square + self.dim * math.log(2 * math.pi))

    def rsample_and_log_prob(self, count: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, self.dim, device=next(self.parameters()).device)
        log_prob = -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))
        moved, kept = z.chunk(2, -1)
        for network in reversed(self.networks):
            shift, raw = network(kept).chunk(2, -1)
            log_scale = raw.tanh()
            moved, kept = kept, torch.addcmul(shift, moved, log_scale.exp())
            log_prob = log_prob - log_scale.sum(-1)
        return torch.cat([moved, kept], -1), log_prob


def bare_loop(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    flow = BareLoop(x.shape[-1], hidden, couplings).to(x.device)
    pair = flow.rsample_and_log_prob
    return density(flow, flow.log_prob, lambda count: pair(count)[0], pair, list(flow.networks))


# ------------------------------------------------------------------------------------------------- this package


def conditioners_of(module: nn.Module) -> list[nn.Module]:
    """Finds the outermost conditioners: the network of a coupling may be made of others."""
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if isinstance(child, Conditioner) else conditioners_of(child)
    return found


def pair_of(flow: Flow) -> Draw:
    def pair(count: int) -> tuple[Tensor, Tensor]:
        distribution = flow.distribution()
        x = distribution.rsample((count,))
        return x, distribution.log_prob(x)

    return pair


def ours(flow: Flow, x: Tensor) -> Contestant:
    flow.to(x.device).initialize(x)
    return density(flow, flow, lambda n: flow.sample((n,)), pair_of(flow), conditioners_of(flow))


def ours_compiled(flow: Flow, x: Tensor) -> Contestant:
    flow.to(x.device).initialize(x)
    # The prior that the latents come from stays outside: there is nothing in it to compile.
    decode = torch.compile(flow.transforms.forward_and_log_det)

    def pair(count: int) -> tuple[Tensor, Tensor]:
        base = flow.base()
        z = base.rsample((count,))
        x, log_det = decode(z)
        return x, base.log_prob(z) - log_det

    return density(flow, torch.compile(flow), lambda count: pair(count)[0], pair)


def ours_as_list(flow: Flow, x: Tensor) -> Contestant:
    """Uses a plain ``TransformedDistribution`` with the transforms as the builder returns them."""
    flow.to(x.device)
    zeros = torch.zeros(x.shape[1:], device=x.device)
    base = dist.Normal(zeros, zeros + 1).to_event(x.dim() - 1)
    distribution = dist.TransformedDistribution(base, list(flow.transforms))

    def pair(count: int) -> tuple[Tensor, Tensor]:
        x = distribution.rsample((count,))
        return x, distribution.log_prob(x)

    return density(flow, distribution.log_prob, lambda count: distribution.sample((count,)), pair)


def ours_channels_last(flow: Flow, x: Tensor) -> Contestant:
    return ours(flow.to(memory_format=torch.channels_last), x)


def ours_bfloat16(flow: Flow, x: Tensor) -> Contestant:
    """Puts channels last, and the networks in bfloat16 by autocast; affine maps and log-determinants stay float32."""
    ours_channels_last(flow, x)
    mixed = torch.autocast(x.device.type, torch.bfloat16)
    return density(flow, mixed(flow), mixed(lambda n: flow.sample((n,))), mixed(pair_of(flow)))


def vector_flow(x: Tensor, hidden: Sequence[int], couplings: int) -> Flow:
    dim = x.shape[-1]
    net = partial(MLP, hidden=hidden, activation=nn.ReLU)
    return Flow(StandardNormal(dim), realnvp_transforms(dim, couplings=couplings, net=net))


# ---------------------------------------------------------------------------------------------------------- SVI


class Observed(nn.Module):
    """Models the data as draws of the flow, for maximum likelihood."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> None:
        with pyro.plate("batch", len(x)):
            pyro.sample("x", self.flow.distribution(), obs=x)


class Unobserved(nn.Module):
    """Guides :class:`Observed`, in which nothing is latent."""

    def forward(self, x: Tensor) -> None:
        pass


class Target(nn.Module):
    """Models latent vectors of independent normals of standard deviation 2, one for every row of ``x``."""

    def forward(self, x: Tensor) -> None:
        zeros = torch.zeros(x.shape[-1], device=x.device)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(zeros, zeros + 2).to_event(1))


class Guide(nn.Module):
    """Guides :class:`Target` by a flow."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> None:
        with pyro.plate("batch", len(x)):
            pyro.sample("z", self.flow.distribution())


def with_svi(name: str, flow: Flow, model: nn.Module, guide: nn.Module, *, fused: bool) -> Contestant:
    """Trains by ``SVI.step``; ``name`` is that of the flow in the parameter store."""

    def registered(x: Tensor) -> None:
        pyro.module(name, flow)
        model(x)

    optimizer = pyro.optim.Adam({"lr": 1e-4, "fused": fused})
    svi = SVI(registered, guide, optimizer, Trace_ELBO())
    return Contestant(flow, {"training step": svi.step})


def with_elbo(flow: Flow, model: nn.Module, guide: nn.Module) -> Contestant:
    """Trains by ``Trace_ELBO()(model, guide)``, a Module that returns the loss, and an optimizer of torch."""
    loss = Trace_ELBO()(model, guide)
    return Contestant(flow, {"training step": step_of(flow, lambda x: loss(x).backward())})


def elbo_by_hand(contestant: Contestant) -> Contestant:
    """Trains as with :class:`Target` and :class:`Guide`, in a loop that is written by hand."""
    pair = contestant.work["rsample, log_prob"]

    def loss(x: Tensor) -> None:
        z, log_q = pair(x)
        (log_q + 0.5 * (z / 2).square().sum(-1)).mean().backward()  # but for a constant

    work = {**contestant.work, "training step": step_of(contestant.module, loss)}
    return Contestant(contestant.module, work, contestant.networks)
