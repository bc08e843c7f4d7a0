"""Defines neural spline flows with couplings of other libraries, each as its documentation builds it.

Couplings of zuko (``passes=2``) and normflows also transform the coordinates that the other half is conditioned on, by
splines without a network, and normflows has linear maps between the couplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from contestants import Contestant, density, mlp
from peers import WithoutContext


class Zuko(nn.Module):
    """Gives log p(x) when called, with zuko's validation off: importing it switches that of the whole process off."""

    def __init__(self, dim: int, couplings: int, bins: int, hidden: Sequence[int]) -> None:
        super().__init__()
        validate = Distribution._validate_args
        try:
            import zuko
        finally:
            Distribution.set_default_validate_args(bool(validate))
        self.flow = zuko.flows.NSF(
            dim, transforms=couplings, passes=2, bins=bins, hidden_features=list(hidden), activation=nn.ReLU
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._unchecked("log_prob", x)

    def sample(self, count: int) -> Tensor:
        return self._unchecked("sample", (count,))

    def pair(self, count: int) -> tuple[Tensor, Tensor]:
        return self._unchecked("rsample_and_log_prob", (count,))

    def _unchecked(self, method: str, argument: Any) -> Any:
        Distribution._validate_args, before = False, Distribution._validate_args
        try:
            return getattr(self.flow(), method)(argument)
        finally:
            Distribution._validate_args = before


class Normflows(nn.Module):
    """Gives log p(x) when called."""

    def __init__(self, dim: int, couplings: int, bins: int, bound: float, width: int) -> None:
        super().__init__()
        import normflows as nf

        layers: list[nn.Module] = []
        for _ in range(couplings):
            layers.append(nf.flows.CoupledRationalQuadraticSpline(dim, 1, width, num_bins=bins, tail_bound=bound))
            layers.append(nf.flows.LULinearPermute(dim))
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


def zuko_splines(x: Tensor, hidden: Sequence[int], couplings: int, bins: int) -> Contestant:
    flow = Zuko(x.shape[-1], couplings, bins, hidden).to(x.device)
    return density(flow, flow, flow.sample, flow.pair)


def normflows_splines(x: Tensor, hidden: Sequence[int], couplings: int, bins: int) -> Contestant:
    flow = Normflows(x.shape[-1], couplings, bins, 5.0, hidden[0]).to(x.device)
    return density(flow, flow, lambda count: flow.flow.sample(count)[0], flow.flow.sample)


def nflows_splines(x: Tensor, hidden: Sequence[int], couplings: int, bins: int) -> Contestant:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    dim = x.shape[-1]

    def network(inputs: int, outputs: int) -> nn.Module:
        made = WithoutContext(mlp(inputs, outputs, hidden))
        made.hidden_features = hidden[-1]  # by its root the library divides what goes into a softmax
        return made

    second = (torch.arange(dim) >= dim // 2).int()
    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            second if index % 2 else 1 - second, network, num_bins=bins, tails="linear", tail_bound=5.0
        )
        for index in range(couplings)
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([dim])).to(x.device)
    return density(flow, flow.log_prob, flow.sample, flow.sample_and_log_prob)
