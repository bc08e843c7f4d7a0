"""Glow, assembled."""

from collections.abc import Callable, Sequence

from torch import Size

from .._runtime.checks import built_by, count_of
from .._runtime.construction import recorded
from ..bijections.bijection import Bijection
from ..bijections.chain import Chain
from ..bijections.coupling import Elementwise, SplitCoupling
from ..bijections.linear import InvertibleConv1x1
from ..bijections.multiscale import FactorOut, Squeeze
from ..bijections.normalization import ActNorm
from ..bijections.transformers import Affine, SigmoidLogScale, Transformer
from ..networks.conditioner import shape_of_context
from ..networks.convnet import ConvNet, ZeroConv
from .assembly import (
    Net,
    check_context_map,
    latent_to_data,
    net_of_vectors,
    on_squeezed,
    reject_arguments,
    shape_of_event,
    squeezed_context,
    with_context,
)


@recorded
def glow_transforms(
    event_shape: int | Sequence[int],
    *,
    levels: int | None = None,
    steps: int | None = None,
    hidden: Sequence[int] | None = None,
    net: Net | None = None,
    transformer: Callable[[], Transformer] | None = None,
    plu: bool = False,
    context_shape: int | Sequence[int] | None = None,
    context_dim: int = 0,
) -> list[Bijection]:
    """Builds Glow: ActNorm, invertible 1x1 convolution, coupling. Kingma & Dhariwal (2018), section 3 and figure 2.

    For images every level squeezes, takes ``steps`` steps, and factors out half of the channels. The prior of that half
    given the other, N(mean(z1), diag(exp(2 log_std(z1)))), is one more coupling from the kept to the factored-out half,
    and the learned prior of the top level an elementwise affine map, so that the base stays N(0, I). A context reaches
    every coupling and both kinds of priors: a one-hot label gives the class-conditional top prior.

    The scale is that of the released code, sigmoid(raw + 2), with which the published 3.35 bits/dim on CIFAR-10 were
    obtained; ``transformer=Affine`` takes the exponential of the paper's table 1, softly bounded, and
    ``transformer=Additive`` the additive couplings of the paper's 5-bit models. The released code computes
    (x + shift) scale, and this function x scale + shift, which is the same family of maps.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 2**levels.
        levels: number of levels of an image flow, 3 by default.
        steps: steps of a level, 32 by default; of a vector flow, 8 by default.
        hidden: widths of the hidden layers of the networks of a vector flow, (64, 64) by default; they are of tanh.
        net: builds the networks, instead; for images ``ConvNet`` by default.
        transformer: builds the map of a coupling; ``lambda: Affine(SigmoidLogScale())`` by default.
        plu: the factorised 1x1 convolution instead of the plain one, which the released code uses.
        context_shape: length of the context vector of a conditional flow, or shape (C, H, W) of its context map.
        context_dim: length of the context vector, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if both ``hidden`` and ``net`` are given, an argument does not apply to events of this shape, or the
            shape cannot be squeezed.

    Example:
        >>> from functools import partial
        >>> shape = (3, 8, 8)
        >>> transforms = glow_transforms(shape, levels=2, steps=2, net=partial(ConvNet, hidden=16))
        >>> flow = Flow(StandardNormal(shape), transforms)
        >>> flow(torch.rand(4, *shape)).shape, flow.sample((2,)).shape
        (torch.Size([4]), torch.Size([2, 3, 8, 8]))
    """
    shape = shape_of_event("glow_transforms", event_shape)
    transformer = _sigmoid_affine if transformer is None else transformer
    if len(shape) == 1:
        reject_arguments("glow_transforms", shape, levels=levels)
        context = shape_of_context("glow_transforms", context_shape, context_dim)
        network = with_context(net_of_vectors("glow_transforms", net, hidden), context)
        layers = _steps(shape, count_of("steps", 8 if steps is None else steps), network, transformer, plu=plu)
        if shape[0] == 1 and context is not None:
            layers.append(Elementwise(shape, Affine(), network(0, 2)))  # in place of couplings
        return latent_to_data(layers)
    reject_arguments("glow_transforms", shape, hidden=hidden)
    context = check_context_map("glow_transforms", shape, context_shape, context_dim)
    count = count_of("levels", 3 if levels is None else levels)
    per_level = count_of("steps", 32 if steps is None else steps)

    def level(index: int, shape: Size, context: Size | None) -> Bijection:
        squeezed, inner_context = Squeeze(shape).output_shape, squeezed_context(context)
        channels = squeezed[0]
        network = with_context(ConvNet if net is None else net, inner_context)
        layers = _steps(squeezed, per_level, network, transformer, plu=plu, level=index + 1)
        if index == count - 1:
            prior = ZeroConv(0, 2 * channels, context_shape=inner_context)
            layers.append(Elementwise(squeezed, Affine(), prior))
        else:
            half = Size((channels // 2, *squeezed[1:]))
            prior = ZeroConv(channels // 2, channels, context_shape=inner_context)
            layers.append(SplitCoupling(squeezed, prior, Affine()))
            layers.append(FactorOut(level(index + 1, half, inner_context)))
        return on_squeezed(shape, Chain(layers), context)

    return latent_to_data([level(0, shape, context)])


def _sigmoid_affine() -> Transformer:
    return Affine(SigmoidLogScale())


def _steps(
    shape: Size, steps: int, net: Net, transformer: Callable[[], Transformer], *, plu: bool, **options: int
) -> list[Bijection]:
    layers: list[Bijection] = []
    channels = shape[0]
    for _ in range(steps):
        layers.append(InvertibleConv1x1(shape, norm=ActNorm(shape), plu=plu))
        if channels == 1:  # nothing to condition on
            continue
        changed, transform = channels // 2, built_by("transformer", transformer, kind=Transformer)
        conditioner = net(channels - changed, transform.num_parameters * changed, **options)
        layers.append(SplitCoupling(shape, conditioner, transform))
    return layers
