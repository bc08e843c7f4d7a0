"""RealNVP, assembled."""

from collections.abc import Sequence
from functools import partial

from torch import Size, nn

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from ..bijections.bijection import Bijection
from ..bijections.chain import Chain
from ..bijections.context import EmbedContext
from ..bijections.coupling import MaskedCoupling, SplitCoupling
from ..bijections.masks import channelwise, checkerboard
from ..bijections.multiscale import FactorOut, Sandwich, Squeeze, SqueezeCheckerboard
from ..bijections.normalization import BatchNorm
from ..bijections.transformers import Affine, SoftClipLogScale, TanhLogScale, Transformer
from ..networks.conditioner import shape_of_context
from ..networks.resnet import ResNet
from .assembly import (
    Net,
    check_context_map,
    is_map,
    latent_to_data,
    net_of_vectors,
    on_squeezed,
    reject_arguments,
    shape_of_event,
    squeezed_context,
    vector_couplings,
    warn_of_one_coordinate,
    with_context,
)


@recorded
def realnvp_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int | None = None,
    scales: int | None = None,
    hidden: Sequence[int] | None = None,
    net: Net | None = None,
    packed: bool = False,
    context_shape: int | Sequence[int] | None = None,
    context_dim: int = 0,
) -> list[Bijection]:
    """Builds RealNVP: affine couplings. Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP" (2017).

    For vectors, couplings that transform one half of the coordinates given the other, in turns, without normalization
    layers, so that batches of one, guides and NUTS work. A single coordinate has nothing to be conditioned on and gets
    one affine map, whose shift and scale depend on the context if there is one. Given a context, its density then is
    Gaussian, and a warning says so; :func:`spline_transforms` learns other shapes. For images, the multi-scale
    architecture of section 3.6: at every scale three checkerboard couplings, three channel-wise ones on the squeezed
    image, and half of the variables factored out; at the last scale four checkerboard couplings. Batch normalization
    (section 3.7) follows each.

    A new flow is close to the identity. The defaults for images are the paper's for CIFAR-10.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 2**(scales - 1).
        couplings: number of couplings of a vector flow, 8 by default.
        scales: number of scales of an image flow, 2 by default.
        hidden: widths of the hidden layers of the networks of a vector flow, (64, 64) by default; they are of tanh.
        net: builds the networks, instead; for images ``partial(ResNet, hidden=64, blocks=8)`` by default. For vectors,
            the scales of a coupling are at most exp(7) with a ``net``, as those of ``Affine()``, and exp(2) without.
        packed: in an image flow, checkerboard couplings on boards of half the size (:class:`SqueezeCheckerboard`): a
            step takes about half as long, and the networks see other neighbourhoods than the paper's. The width must
            be divisible by 2**scales.
        context_shape: length of the context vector of a conditional flow, or shape (C, H, W) of its context map.
        context_dim: length of the context vector, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if both ``hidden`` and ``net`` are given, an argument does not apply to events of this shape, or the
            shape cannot be squeezed.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, context_shape=3))
        >>> x, context = torch.randn(5, 2), torch.randn(5, 3)
        >>> flow(x, context).shape
        torch.Size([5])
        >>> torch.allclose(flow(x, context), StandardNormal(2)().log_prob(x))  # a new flow of vectors is the identity
        True
    """
    shape = shape_of_event("realnvp_transforms", event_shape)
    if len(shape) == 1:
        reject_arguments("realnvp_transforms", shape, scales=scales, packed=packed or None)
        context = shape_of_context("realnvp_transforms", context_shape, context_dim)
        count = count_of("couplings", 8 if couplings is None else couplings)
        warn_of_one_coordinate("realnvp_transforms", shape, context)
        affine = _calm_affine if net is None else Affine
        net = net_of_vectors("realnvp_transforms", net, hidden)
        return latent_to_data(vector_couplings(shape, count, net, affine, context))
    reject_arguments("realnvp_transforms", shape, couplings=couplings, hidden=hidden)
    context = check_context_map("realnvp_transforms", shape, context_shape, context_dim)
    net = partial(ResNet, hidden=64, blocks=8) if net is None else net
    count = count_of("scales", 2 if scales is None else scales)
    return latent_to_data(_scale(shape, count, 0, net, context, packed=packed))


def _calm_affine() -> Affine:
    """Makes couplings that together scale by exp(8) and more, and a point far from the data by little enough."""
    return Affine(SoftClipLogScale(2.0))


def _scale(shape: Size, scales: int, level: int, net: Net, context: Size | None, *, packed: bool) -> list[Bijection]:
    """Builds scale ``level`` and all below it. Dinh et al. (2017), section 3.6, and their released code."""
    board = _packed_board if packed else _board
    layers = board(shape, 4 if level == scales - 1 else 3, level, net, context)
    if level == scales - 1:
        return layers
    squeezed, inner_context = Squeeze(shape).output_shape, squeezed_context(context)
    couplings = _split_couplings(squeezed, 3, level + 1, net, inner_context, initial=1.0)
    half = Size((squeezed[0] // 2, *squeezed[1:]))
    deeper = _scale(half, scales, level + 1, net, inner_context, packed=packed)
    return [
        *layers,
        on_squeezed(shape, Chain(couplings), context),
        on_squeezed(shape, FactorOut(Chain(deeper)), context, ordered=True),
    ]


def _board(shape: Size, count: int, level: int, net: Net, context: Size | None) -> list[Bijection]:
    """Builds checkerboard couplings, the two colours in turns."""
    layers: list[Bijection] = []
    for index in range(count):
        mask = checkerboard(shape, flip=index % 2 == 1)
        conditioner = with_context(net, context)(shape[0], 2 * shape[0], mask=mask, level=level)
        layers += [MaskedCoupling(mask, conditioner, _affine(conditioner, initial=0.0)), BatchNorm(shape, mask)]
    return layers


def _packed_board(shape: Size, count: int, level: int, net: Net, context: Size | None) -> list[Bijection]:
    """Builds checkerboard couplings on the packed board, which is unpacked once behind the last."""
    outer = SqueezeCheckerboard(shape)
    if not is_map(context):
        return [Sandwich(outer, Chain(_split_couplings(outer.output_shape, count, level, net, context, initial=0.0)))]
    pack = SqueezeCheckerboard(context)
    couplings = _split_couplings(outer.output_shape, count, level, net, pack.output_shape, initial=0.0)
    return [EmbedContext(Sandwich(outer, Chain(couplings)), pack, context)]


def _split_couplings(
    shape: Size, count: int, level: int, net: Net, context: Size | None, *, initial: float
) -> list[Bijection]:
    """Builds couplings between the halves of the channels, in turns."""
    layers: list[Bijection] = []
    for index in range(count):
        swap = index % 2 == 1
        conditioner = with_context(net, context)(shape[0] // 2, shape[0], level=level)
        layers += [
            SplitCoupling(shape, conditioner, _affine(conditioner, initial=initial), swap=swap),
            BatchNorm(shape, channelwise(shape, flip=swap)),
        ]
    return layers


def _affine(conditioner: nn.Module, *, initial: float) -> Transformer:
    """Starts near the identity by a zero network or by alpha = ``initial``; with both zero, no gradient would flow.

    Of a network that does not say how it starts, alpha is at least 0.1, so that it can move in either case.
    """
    zero = getattr(conditioner, "starts_at_zero", None)
    return Affine(TanhLogScale(1.0 if zero else initial if zero is False else max(initial, 0.1)))
