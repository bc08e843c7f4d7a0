"""Defines the contestants of benchmark.py from other libraries, each used as the library is meant to be.

All of a workload have the same networks, as far as a library lets one choose: ReLU, one network for shift and scale.
The maps from a network's output to a scale differ (clamp, soft clip, sigmoid, atan, exp) and are left as each library
has them. Glow of normflows has LeakyReLU, which is ReLU at the slope it uses, and stores more; Glow of both libraries
lacks the networks of the learned priors that ours has. A library is imported where it is used, so that one that is
missing is missed there alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms as pyro_transforms
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from contestants import Contestant, density, mlp


def pyro_coupling(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    """Clears the cache every time: it goes by the identity of tensors, and is stale after a step of the optimizer."""
    dim = x.shape[-1]
    swap = torch.arange(dim, device=x.device).roll(dim // 2)
    layers: list[Any] = []
    for _ in range(couplings):
        layers += [pyro_transforms.affine_coupling(dim, list(hidden)), pyro_transforms.Permute(swap)]
    module = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module)).to(x.device)
    zeros = torch.zeros(dim, device=x.device)
    distribution = dist.TransformedDistribution(dist.Normal(zeros, zeros + 1).to_event(1), layers)

    def log_prob(x: Tensor) -> Tensor:
        distribution.clear_cache()
        return distribution.log_prob(x)

    def sample(count: int) -> Tensor:
        distribution.clear_cache()
        return distribution.sample((count,))

    def pair(count: int) -> tuple[Tensor, Tensor]:
        distribution.clear_cache()
        x = distribution.rsample((count,))
        return x, distribution.log_prob(x)

    return density(module, log_prob, sample, pair)


def zuko_nice(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    # Importing zuko switches the validation of every distribution in the process off: only zuko is to run like that.
    validate = Distribution._validate_args
    try:
        import zuko
    finally:
        Distribution.set_default_validate_args(bool(validate))

    def unchecked(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(argument: Any) -> Any:
            Distribution._validate_args, before = False, Distribution._validate_args
            try:
                return function(argument)
            finally:
                Distribution._validate_args = before

        return call

    options: dict[str, Any] = {"transforms": couplings, "hidden_features": hidden, "activation": nn.ReLU}
    flow = zuko.flows.NICE(x.shape[-1], **options).to(x.device)
    return density(
        flow,
        unchecked(lambda x: flow().log_prob(x)),
        unchecked(lambda count: flow().sample((count,))),
        unchecked(lambda count: flow().rsample_and_log_prob((count,))),
    )


def normflows_coupling(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    import normflows as nf

    dim = x.shape[-1]
    layers: list[nn.Module] = []
    for _ in range(couplings):
        layers += [nf.flows.AffineCouplingBlock(mlp(dim // 2, dim, hidden)), nf.flows.Permute(dim, mode="swap")]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), layers).to(x.device)
    return density(flow, flow.log_prob, lambda count: flow.sample(count)[0], flow.sample)


class WithoutContext(nn.Module):
    """Drops the context, None here, that nflows hands to every network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.network(x)


def nflows_coupling(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    dim = x.shape[-1]

    def network(inputs: int, outputs: int) -> nn.Module:
        return WithoutContext(mlp(inputs, outputs, hidden))

    second = (torch.arange(dim) >= dim // 2).int()
    layers = [AffineCouplingTransform(second if i % 2 else 1 - second, network) for i in range(couplings)]
    flow = Flow(CompositeTransform(layers), StandardNormal([dim])).to(x.device)
    return density(flow, flow.log_prob, flow.sample, flow.sample_and_log_prob)


def freia_glow_coupling(x: Tensor, hidden: Sequence[int], couplings: int) -> Contestant:
    """Makes blocks of two couplings each; FrEIA leaves the density of the latents to the user."""
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import GLOWCouplingBlock

    dim = x.shape[-1]
    flow = SequenceINN(dim)
    for _ in range(couplings // 2):
        flow.append(GLOWCouplingBlock, subnet_constructor=lambda inputs, outputs: mlp(inputs, outputs, hidden))
    flow.to(x.device)

    def log_base(z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(-1) + dim * math.log(2 * math.pi))

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow(x)
        return log_base(z) + log_det

    def pair(count: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, dim, device=x.device)
        draws, log_det = flow(z, rev=True)
        return draws, log_base(z) - log_det

    return density(flow, log_prob, lambda count: pair(count)[0], pair)


# ----------------------------------------------------------------------------------------------- Glow, of images


def normflows_glow(x: Tensor, hidden: int, levels: int, steps: int) -> Contestant:
    import normflows as nf

    channels, height, width = x.shape[1:]
    bases, blocks, merges = [], [], []
    for level in reversed(range(levels)):  # from the latent side
        inside = channels * 2 ** (level + 2)
        blocks.append([*(nf.flows.GlowBlock(inside, hidden) for _ in range(steps)), nf.flows.Squeeze()])
        if level < levels - 1:
            merges.append(nf.flows.Merge())
        kept = inside if level == levels - 1 else inside // 2
        shape = (kept, height >> (level + 1), width >> (level + 1))
        bases.append(nf.distributions.DiagGaussian(shape, trainable=False))
    flow = nf.MultiscaleFlow(bases, blocks, merges, class_cond=False).to(x.device)
    networks = [module for module in flow.modules() if isinstance(module, nf.nets.ConvNet2d)]
    return density(flow, lambda x: flow.log_prob(x, None), lambda count: flow.sample(count)[0], flow.sample, networks)


class Conv313(nn.Module):
    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 1)
        self.conv3 = nn.Conv2d(hidden, outputs, 3, padding=1)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


def nflows_glow(x: Tensor, hidden: int, levels: int, steps: int) -> Contestant:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        ActNorm,
        AffineCouplingTransform,
        CompositeTransform,
        MultiscaleCompositeTransform,
        OneByOneConvolution,
        SqueezeTransform,
    )

    def network(inputs: int, outputs: int) -> nn.Module:
        return Conv313(inputs, outputs, hidden)

    multiscale = MultiscaleCompositeTransform(levels)
    shape = tuple(x.shape[1:])
    for _ in range(levels):
        squeeze = SqueezeTransform()
        shape = squeeze.get_output_shape(*shape)
        layers: list[nn.Module] = [squeeze]
        for _ in range(steps):
            second = (torch.arange(shape[0]) >= shape[0] // 2).int()
            layers += [ActNorm(shape[0]), OneByOneConvolution(shape[0]), AffineCouplingTransform(second, network)]
        shape = multiscale.add_transform(CompositeTransform(layers), shape)
    flow = Flow(multiscale, StandardNormal([x[0].numel()])).to(x.device)
    networks = [module for module in flow.modules() if isinstance(module, Conv313)]
    return density(flow, flow.log_prob, flow.sample, flow.sample_and_log_prob, networks)
