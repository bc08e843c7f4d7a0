"""Trading time for the memory of training: what backward computes again instead of storing it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .chain import Chain
from .coupling import _Coupling

__all__ = ["rebuild", "recompute"]

M = TypeVar("M", bound=nn.Module)


def recompute(flow: M, *, enabled: bool = True) -> M:
    """Lets backward evaluate the networks of all couplings a second time, instead of storing their activations.

        flow = recompute(Flow(StandardNormal((3, 32, 32)), realnvp_transforms((3, 32, 32))))

    Of every coupling the input alone is stored. Values and gradients stay what they were, running statistics move once,
    and dropout drops the same. A step takes about a third longer where the networks take most of it, as on images, and
    up to twice as long where they are small. Compiled code and function transforms are not affected.

    Args:
        flow: a Flow, a Chain, a coupling, or any Module with couplings inside; it is changed in place.
        enabled: False stores the activations again.

    Returns:
        The same Module.
    """
    for module in flow.modules():
        if isinstance(module, _Coupling):
            module.recomputes = enabled
    return flow


def rebuild(flow: M, *, enabled: bool = True, tolerance: float | None = None) -> M:
    """Lets backward rebuild activations from the output by inverting the layers, so that depth costs no memory.

        flow = rebuild(Flow(StandardNormal(64), realnvp_transforms(64, couplings=64)))

    Of every run of reversible neighbours in a Chain the input and the output alone are stored: couplings with an affine
    or additive map, permutations, scales, 1x1 convolutions, an initialised ActNorm, BatchNorm in evaluation mode, and
    layers of your own that derive from :class:`~pyro_realnvp.Reversible`. The others (BatchNorm in training mode,
    mixtures of logistics, an ActNorm that awaits its first batch) are computed plainly, with their networks evaluated
    again in backward as by :func:`recompute`. A step takes as long as there.

    What inverting a run arrives at is compared with its input, and where any element is off by more than ``tolerance``
    (relative, or absolute below 1) there is a warning, and the gradients are computed once more from the input. They
    are exact then, in memory that grows with depth. Compiled code and function transforms are not affected; there are
    no second derivatives.

    Args:
        flow: a Flow, a Chain, or any Module with chains inside; it is changed in place.
        enabled: False stores the activations again.
        tolerance: the machine epsilon to the power 2/3 by default, 2e-5 in float32 and 4e-11 in float64.

    Returns:
        The same Module.
    """
    for module in recompute(flow, enabled=enabled).modules():
        if isinstance(module, Chain):
            module.rebuilds, module.tolerance = enabled, tolerance
    return flow
