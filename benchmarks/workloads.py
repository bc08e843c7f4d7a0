"""Defines the workloads of benchmark.py: who is timed at what, in which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

import contestants as own
import peers
import spline_peers
from contestants import Contestant
from pyro_realnvp import (
    MLP,
    ConvNet,
    Flow,
    ResNet,
    StandardNormal,
    glow_transforms,
    realnvp_transforms,
    rebuild,
    recompute,
    spline_transforms,
)

KINDS = ("forward + backward", "training step", "log_prob", "sample", "rsample, log_prob")
NETWORKS, BARE = "networks", "bare-loop"

Build = Callable[[Tensor], Contestant]


@dataclass(frozen=True)
class Workload:
    """Holds the contestants of one task.

    Args:
        shape: of a batch of data.
        builds: makes the contestants, given a batch.
        floors: a floor by its name, and the contestant whose networks it has; the first is everyone's who has none.
        kinds: of work.
    """

    shape: tuple[int, ...]
    builds: Mapping[str, Build]
    floors: Mapping[str, str]
    kinds: Sequence[str] = KINDS


def vectors(*, batch: int, dim: int, hidden: Sequence[int], couplings: int) -> Workload:
    sizes = {"hidden": hidden, "couplings": couplings}

    def ours(build: Callable[[Flow, Tensor], Contestant]) -> Build:
        return lambda x: build(own.vector_flow(x, hidden, couplings), x)

    builds: dict[str, Build] = {
        BARE: partial(own.bare_loop, **sizes),
        "ours": ours(own.ours),
        "ours-list": ours(own.ours_as_list),
        "ours-compiled": ours(own.ours_compiled),
        "ours-rebuild": ours(lambda flow, x: own.ours(rebuild(flow), x)),
        "pyro": partial(peers.pyro_coupling, **sizes),
        "zuko": partial(peers.zuko_nice, **sizes),
        "normflows": partial(peers.normflows_coupling, **sizes),
        "nflows": partial(peers.nflows_coupling, **sizes),
        "freia": partial(peers.freia_glow_coupling, **sizes),
    }
    return Workload((batch, dim), builds, {NETWORKS: BARE})


def splines(*, batch: int, dim: int, hidden: Sequence[int], couplings: int) -> Workload:
    """Makes neural spline flows with couplings, of 8 bins on [-5, 5]; the peers' are described in spline_peers.py."""
    sizes = {"hidden": hidden, "couplings": couplings, "bins": 8}

    def flow(x: Tensor) -> Contestant:
        net = partial(MLP, hidden=hidden, activation=nn.ReLU)
        return own.ours(Flow(StandardNormal(dim), spline_transforms(dim, couplings=couplings, net=net)), x)

    builds: dict[str, Build] = {
        "ours": flow,
        "zuko": partial(spline_peers.zuko_splines, **sizes),
        "normflows": partial(spline_peers.normflows_splines, **sizes),
        "nflows": partial(spline_peers.nflows_splines, **sizes),
    }
    return Workload((batch, dim), builds, {NETWORKS: "ours"})


def realnvp(*, batch: int, size: int, scales: int, hidden: int, blocks: int, compiled: bool) -> Workload:
    """Makes RealNVP with as many feature maps at every scale, where the paper doubles them."""
    shape = (3, size, size)

    def net(inputs: int, outputs: int, *, level: int, **options: Any) -> nn.Module:
        return ResNet(
            inputs, outputs, hidden=hidden, blocks=blocks, **options
        )  # the level, with which it would double, is left out

    def flow(*, packed: bool = False) -> Flow:
        return Flow(StandardNormal(shape), realnvp_transforms(shape, scales=scales, net=net, packed=packed))

    builds = {
        **image_builds(flow, compiled=compiled),
        "ours-packed": lambda x: own.ours_channels_last(flow(packed=True), x),
        "ours-packed-bfloat16": lambda x: own.ours_bfloat16(flow(packed=True), x),
        "ours-recompute": lambda x: own.ours(recompute(flow()), x),
    }
    return Workload((batch, *shape), builds, {NETWORKS: "ours"})


def glow(*, batch: int, size: int, levels: int, steps: int, hidden: int, compiled: bool) -> Workload:
    shape = (3, size, size)
    net = partial(ConvNet, hidden=hidden)
    sizes = {"hidden": hidden, "levels": levels, "steps": steps}

    def flow() -> Flow:
        return Flow(StandardNormal(shape), glow_transforms(shape, levels=levels, steps=steps, net=net))

    builds = {
        **image_builds(flow, compiled=compiled),
        "normflows": partial(peers.normflows_glow, **sizes),
        "nflows": partial(peers.nflows_glow, **sizes),
    }
    floors = {NETWORKS: "ours", **{f"{peer}-networks": peer for peer in ("normflows", "nflows")}}
    return Workload((batch, *shape), builds, floors)


def image_builds(flow: Callable[[], Flow], *, compiled: bool) -> dict[str, Build]:
    builds: dict[str, Build] = {
        "ours": lambda x: own.ours(flow(), x),
        "ours-channels-last": lambda x: own.ours_channels_last(flow(), x),
        "ours-bfloat16": lambda x: own.ours_bfloat16(flow(), x),
    }
    return {**builds, "ours-compiled": lambda x: own.ours_compiled(flow(), x)} if compiled else builds


def svi(
    problem: Callable[[Flow], tuple[nn.Module, nn.Module]],
    by_hand: Callable[[Contestant], Contestant],
    *,
    batch: int,
    dim: int,
    hidden: Sequence[int],
    couplings: int,
) -> Workload:
    """Makes training steps through Pyro, of the model and guide of ``problem``, and in a loop, by ``by_hand``."""

    def flow(x: Tensor) -> Flow:
        return own.vector_flow(x, hidden, couplings).to(x.device)

    def with_pyro(build: Callable[..., Contestant]) -> Build:
        def make(x: Tensor) -> Contestant:
            made = flow(x)
            return build(made, *problem(made))

        return make

    builds: dict[str, Build] = {
        BARE: lambda x: by_hand(own.bare_loop(x, hidden, couplings)),
        "ours": lambda x: by_hand(own.ours(flow(x), x)),
        "elbo-module": with_pyro(own.with_elbo),
        "svi-step-fused": with_pyro(partial(own.with_svi, "fused", fused=True)),
        "svi-step": with_pyro(partial(own.with_svi, "plain", fused=False)),
    }
    return Workload((batch, dim), builds, {NETWORKS: BARE}, ("training step",))


def maximum_likelihood(flow: Flow) -> tuple[nn.Module, nn.Module]:
    return own.Observed(flow), own.Unobserved()


def flow_as_guide(flow: Flow) -> tuple[nn.Module, nn.Module]:
    return own.Target(), own.Guide(flow)


def workloads(size: str) -> dict[str, Workload]:
    """Makes all workloads; ``size`` is default, full (large images) or tiny (only to show that everything runs)."""
    if size == "tiny":
        vector = {"batch": 4, "hidden": (4, 4), "couplings": 2}
        wide, narrow = {**vector, "dim": 4}, {**vector, "dim": 2}
        board = {"batch": 2, "size": 8, "scales": 2, "hidden": 4, "blocks": 1}
        levels = {"batch": 2, "size": 8, "levels": 2, "steps": 1, "hidden": 4}
    else:
        vector = {"batch": 256, "couplings": 8}
        wide, narrow = {**vector, "dim": 64, "hidden": (256,) * 2}, {**vector, "dim": 2, "hidden": (256,) * 4}
        if size == "full":
            board = {"batch": 32, "size": 32, "scales": 2, "hidden": 32, "blocks": 4}
            levels = {"batch": 32, "size": 32, "levels": 3, "steps": 4, "hidden": 64}
        else:
            board = {"batch": 16, "size": 16, "scales": 2, "hidden": 32, "blocks": 1}
            levels = {"batch": 16, "size": 16, "levels": 2, "steps": 2, "hidden": 64}
    return {
        "vector-2": vectors(**narrow),
        "vector-64": vectors(**wide),
        "spline-64": splines(**wide),
        # Compiling a flow of images takes minutes, more than all the rest of the default sizes.
        "realnvp": realnvp(**board, compiled=size != "default"),
        "glow": glow(**levels, compiled=size != "default"),
        "svi": svi(maximum_likelihood, lambda contestant: contestant, **wide),
        "svi-guide": svi(flow_as_guide, own.elbo_by_hand, **wide),
    }
