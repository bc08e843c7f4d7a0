"""Glow, assembled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Size

from .bijection import Bijection
from .builders import Net, at_least_one, quartered, refuse, shape_of_event, shape_of_map
from .chain import Chain
from .conditioners import MLP
from .convnet import ConvNet, ZeroConv
from .coupling import Elementwise, SplitCoupling
from .linear import InvertibleConv1x1
from .multiscale import FactorOut, Squeezed
from .normalization import ActNorm
from .transformers import Affine, SigmoidScale, Transformer

__all__ = ["glow_transforms"]


def glow_transforms(
    event_shape: int | Sequence[int],
    *,
    levels: int | None = None,
    steps: int | None = None,
    net: Net | None = None,
    transformer: Callable[[], Transformer] | None = None,
    plu: bool = False,
    context_dim: int = 0,
    context_shape: Sequence[int] | None = None,
) -> list[Bijection]:
    """Glow: ActNorm, invertible 1x1 convolution, coupling. Kingma & Dhariwal (2018), section 3 and figure 2.

    For images every level squeezes, takes ``steps`` steps, and factors out half of the channels. The prior of that half
    given the other, N(mean(z1), diag(exp(2 log_std(z1)))), is one more coupling from the kept to the factored-out half,
    and the learned prior of the top level an elementwise affine map, so that the base stays N(0, I). A context reaches
    every coupling and both kinds of priors: a one-hot label gives the class-conditional top prior.

    The scale is that of the released code, sigmoid(raw + 2), with which the published 3.35 bits/dim on CIFAR-10 were
    obtained; ``transformer=Affine`` takes the exponential of the paper's table 1, softly bounded, and
    ``transformer=Additive`` the additive couplings of the paper's 5-bit models. The released code computes
    (x + shift) scale, here it is x scale + shift, the same family.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 2**levels.
        levels: number of levels of an image flow, 3 by default.
        steps: steps of a level, 32 by default; of a vector flow, 8 by default.
        net: builds the networks; ``ConvNet`` for images, ``MLP`` for vectors by default.
        transformer: builds the map of a coupling; ``lambda: Affine(SigmoidScale())`` by default.
        plu: the factorized 1x1 convolution instead of the plain one, which is what the released code runs.
        context_dim: length of the context vector of a conditional flow.
        context_shape: (C, H, W) of its context map, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if an argument does not apply to events of this shape, or the shape cannot be squeezed.
    """
    shape = shape_of_event("glow_transforms", event_shape)
    if transformer is None:
        transformer = _sigmoid_affine
    if len(shape) == 1:
        refuse("glow_transforms", shape, levels=levels)
        net = partial(MLP if net is None else net, context_dim=context_dim, context_shape=context_shape)
        layers = _steps(shape, at_least_one("steps", 8 if steps is None else steps), net, transformer, plu=plu)
        if shape[0] == 1 and (context_dim or context_shape):
            layers.append(Elementwise(shape, Affine(), net(0, 2)))  # in place of couplings
    else:
        shape_of_map(shape, context_shape)
        net = ConvNet if net is None else net
        count = at_least_one("levels", 3 if levels is None else levels)
        per_level = at_least_one("steps", 32 if steps is None else steps)

        def level(index: int, shape: Size, context_map: Size | None) -> Bijection:
            squeezed = quartered(shape)
            context_map = None if context_map is None else quartered(context_map)
            channels = squeezed[0]
            network = partial(net, context_dim=context_dim, context_shape=context_map, level=index + 1)
            prior = partial(ZeroConv, context_dim=context_dim, context_shape=context_map)
            layers = _steps(squeezed, per_level, network, transformer, plu=plu)
            if index == count - 1:
                layers.append(Elementwise(squeezed, Affine(), prior(0, 2 * channels)))
            else:
                half = Size((channels // 2, *squeezed[1:]))
                layers.append(SplitCoupling(squeezed, prior(channels // 2, channels), Affine()))
                layers.append(FactorOut(level(index + 1, half, context_map)))
            return Squeezed(Chain(layers))

        layers = [level(0, shape, None if context_shape is None else Size(context_shape))]
    return [layer.inv for layer in reversed(layers)]


def _sigmoid_affine() -> Transformer:
    return Affine(SigmoidScale())


def _steps(shape: Size, steps: int, net: Net, transformer: Callable[[], Transformer], *, plu: bool) -> list[Bijection]:
    layers: list[Bijection] = []
    channels = shape[0]
    for _ in range(steps):
        layers.append(InvertibleConv1x1(shape, norm=ActNorm(shape), plu=plu))
        if channels == 1:  # nothing to condition on
            continue
        changed, transform = channels // 2, transformer()
        layers.append(SplitCoupling(shape, net(channels - changed, transform.num_parameters * changed), transform))
    return layers
