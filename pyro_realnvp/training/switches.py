"""Switches that are set in a whole flow: what backward stores or recomputes, and where statistics come from."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .._runtime.arguments import shown
from ..bijections.chain import Chain
from ..bijections.coupling import Coupling
from ..bijections.normalization import BatchNorm

M = TypeVar("M", bound=nn.Module)


def _modules(name: str, flow: nn.Module) -> list[nn.Module]:
    """Returns all parts of a Module, itself among them; a ValueError if it is none."""
    if not isinstance(flow, nn.Module):
        raise ValueError(f"{name} needs a Module, such as a Flow, but got {shown(flow)}.")
    return list(flow.modules())


def recompute(flow: M, *, enabled: bool = True) -> M:
    """Lets backward evaluate the networks of all couplings a second time, instead of storing their activations.

    Only the input of every coupling is stored. Values and gradients do not change, running statistics are updated once,
    and dropout drops the same entries. A step takes about a third longer where the networks take most of it, as on
    images, and up to twice as long where they are small. Compiled code and function transforms are not affected.

    Args:
        flow: a Flow, a Chain, a coupling, or any Module with couplings inside; it is changed in place.
        enabled: False stores the activations again.

    Returns:
        The Module that was given.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> flow, x = Flow(StandardNormal(4), realnvp_transforms(4)), torch.randn(5, 4, requires_grad=True)
        >>> randomize(flow)
        >>> (stored,) = torch.autograd.grad(flow(x).sum(), x)
        >>> (recomputed,) = torch.autograd.grad(recompute(flow)(x).sum(), x)
        >>> torch.allclose(stored, recomputed, atol=1e-5)
        True
    """
    for module in _modules("recompute", flow):
        if isinstance(module, Coupling):
            module.recomputes = enabled
    return flow


def rebuild(flow: M, *, enabled: bool = True, tolerance: float | None = None) -> M:
    """Lets backward rebuild activations from the output by inverting the layers, so that depth costs no memory.

    Of every run of reversible neighbours in a Chain only the input and the output are stored: couplings with an affine
    or additive map, permutations, scales, 1x1 convolutions, an initialised ActNorm, BatchNorm in evaluation mode, and
    layers of your own that derive from :class:`~pyro_realnvp.Reversible`. The others (BatchNorm in training mode,
    mixtures of logistics, an ActNorm before its first batch) are computed plainly, with their networks evaluated
    again in backward as by :func:`recompute`. A step takes as long as there.

    The rebuilt input of a run is compared with the stored one. Where any element is off by more than ``tolerance``
    (relative, or absolute below 1) there is a warning, and the gradients are computed once more from the stored input;
    they are exact then, in memory that grows with depth. Compiled code and function transforms are not affected; there
    are no second derivatives.

    Args:
        flow: a Flow, a Chain, or any Module with chains inside; it is changed in place.
        enabled: False stores the activations again.
        tolerance: the machine epsilon to the power 2/3 by default, 2e-5 in float32 and 4e-11 in float64.

    Returns:
        The Module that was given.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> flow, x = Flow(StandardNormal(4), realnvp_transforms(4)), torch.randn(5, 4, requires_grad=True)
        >>> randomize(flow)
        >>> (stored,) = torch.autograd.grad(flow(x).sum(), x)
        >>> (rebuilt,) = torch.autograd.grad(rebuild(flow)(x).sum(), x)
        >>> torch.allclose(stored, rebuilt, rtol=1e-3, atol=1e-3)
        True
    """
    modules = _modules("rebuild", flow)
    recompute(flow, enabled=enabled)
    for module in modules:
        if isinstance(module, Chain):
            module.rebuilds, module.tolerance = enabled, tolerance
    return flow


def synchronize(flow: M, *, enabled: bool = True) -> M:
    """Lets batch normalization and ActNorm, in networks too, take their statistics over all processes.

        model = DistributedDataParallel(synchronize(flow))

    The mean loss of equal parts, and its gradients, are then those of the whole batch in one process. Every process of
    the default group has to evaluate the flow in training mode equally often. Without a process group there is no
    effect. Every normalization costs one small all-reduce in forward and one in backward.

    Args:
        flow: a Flow, or any Module with normalization of this package inside; it is changed in place.
        enabled: False takes statistics in every process separately again.

    Returns:
        The Module that was given.

    Example:
        >>> flow = synchronize(Flow(StandardNormal(2), [BatchNorm((2,)).inv]))
        >>> [layer.synchronized for layer in flow.modules() if isinstance(layer, BatchNorm)]
        [True]
    """
    for module in _modules("synchronize", flow):
        if hasattr(type(module), "synchronized"):
            module.synchronized = enabled  # type: ignore[assignment]
    return flow


@torch.no_grad()
def recalibrate(flow: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Sets the running statistics of all batch normalization, in the flow and in its networks, from data.

    Every statistic becomes the mean over the batches, weighted by their sizes, at the present parameters. Running
    averages instead mix in those of earlier parameters, which breaks evaluation on test data.

    Args:
        flow: called on every batch; a :class:`~pyro_realnvp.Flow`, say.
        batches: tensors x (batch, \\*event_shape), or tuples (x, context).

    Raises:
        ValueError: if there is no batch, or one is no tensor and no tuple of tensors.

    Example:
        >>> norm = BatchNorm((2,))
        >>> flow = Flow(StandardNormal(2), [norm.inv])
        >>> recalibrate(flow, [torch.tensor([[0.0, 10.0], [2.0, 30.0]])])
        >>> norm.running_mean, norm.running_var
        (tensor([ 1., 20.]), tensor([  1., 100.]))
    """
    modules = _modules("recalibrate", flow)
    if not isinstance(batches, Iterable) or (isinstance(batches, Tensor) and not batches.dim()):
        raise ValueError(f"recalibrate needs an iterable of batches of data, but got {shown(batches)}.")
    norms = [m for m in modules if isinstance(m, BatchNorm | nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in modules}
    momenta = [norm.momentum for norm in norms]
    flow.eval()
    for norm in norms:
        norm.train()
    seen = 0
    try:
        for batch in batches:
            inputs = tuple(batch) if isinstance(batch, Sequence) else (batch,)
            if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].dim():
                raise ValueError(f"recalibrate needs tensors or tuples of tensors as batches, but got {shown(batch)}.")
            seen += inputs[0].shape[0]
            for norm in norms:
                norm.momentum = inputs[0].shape[0] / seen
            flow(*inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("recalibrate needs at least one batch of data, but got none.")
