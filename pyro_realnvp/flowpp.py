"""Flow++, assembled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Size, nn
from torch.distributions import SigmoidTransform, Transform

from .attention import GatedAttention, GatedConvs
from .bijection import Bijection
from .builders import at_least_one, shape_of_event, shape_of_map, vector_layers
from .chain import Chain
from .conditioners import MLP
from .coupling import MaskedCoupling, SplitCoupling
from .embedding import Embedded, Rearranged
from .linear import InvertibleConv1x1, Permute
from .masks import checkerboard
from .mixture import MixtureLogistic
from .multiscale import Arranged, Columns, Parallel, Squeeze
from .normalization import ActNorm

__all__ = ["flowpp_dequantizer", "flowpp_transforms"]


def flowpp_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int | Sequence[int] | None = None,
    components: int = 32,
    net: Callable[..., nn.Module] | None = None,
    pointwise: bool = True,
    true_checkerboard: bool = False,
    context_dim: int = 0,
    context_shape: Sequence[int] | None = None,
) -> list[Bijection]:
    """Flow++: couplings whose elementwise map is a mixture of logistics. Ho et al., "Flow++" (2019), section 4.

    For images, the architecture of the released code for CIFAR-10: ``couplings[0]`` couplings between even and odd
    columns; then, on the squeezed image, ``couplings[1]`` between the halves of the channels and ``couplings[2]``
    between columns again. Each comes behind a normalization with numbers of its own at every position and a 1x1
    convolution of each half. Nothing is factored out. With one number only the first kind is made, which is the
    architecture of the variational dequantization. The published models are the defaults for CIFAR-10 (3.08 bits/dim)
    and, for ImageNet 32 x 32 (3.86 bits/dim), ``couplings=(7, 3, 3)``, ``pointwise=False`` and
    ``net=partial(GatedAttention, hidden=128, blocks=20, dropout=0, weight_norm=True)``.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 4 (by 2 with one kind of coupling).
        couplings: number of each kind, (4, 2, 3) by default; of a vector flow, 4 by default.
        components: K, logistics in the mixture of every element.
        net: builds the networks, with ``size=(height, width)`` for images; ``GatedAttention`` by default, for vectors
            ``MLP``.
        pointwise: whether there are 1x1 convolutions in an image flow.
        true_checkerboard: the checkerboard that the paper describes, in place of the columns of the released code.
        context_dim: length of the context vector of a conditional flow.
        context_shape: (C, H, W) of its context map, instead; the networks see it with the even and the odd columns, and
            where the image is squeezed the pixels of a block, as channels of their own.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if an argument does not apply to events of this shape, or the shape cannot be split.
    """
    shape = shape_of_event("flowpp_transforms", event_shape)
    if components < 1:
        raise ValueError(f"flowpp_transforms needs one component or more, but got components={components}.")
    if len(shape) == 1:
        if couplings is not None and not isinstance(couplings, int):
            raise ValueError(f"flowpp_transforms of vectors takes one number of couplings, but got {couplings}.")
        count = at_least_one("couplings", 4 if couplings is None else couplings)
        vector_net = partial(MLP if net is None else net, context_dim=context_dim, context_shape=context_shape)
        transformer = partial(MixtureLogistic, components)
        layers = vector_layers(shape, count, vector_net, transformer, conditional=bool(context_dim or context_shape))
    else:
        shape_of_map(shape, context_shape)
        counts = (4, 2, 3) if couplings is None else (couplings,) if isinstance(couplings, int) else tuple(couplings)
        if len(counts) not in (1, 3):
            raise ValueError(f"flowpp_transforms of images takes one or three numbers of couplings, but got {counts}.")
        network = GatedAttention if net is None else net
        build = partial(_couplings, components=components, net=network, pointwise=pointwise, context_dim=context_dim)
        board = partial(
            _masked_couplings, components=components, net=network, pointwise=pointwise, context_dim=context_dim
        )
        context_map = None if context_shape is None else Size(context_shape)
        layers = _image_layers(shape, counts, build, board if true_checkerboard else None, context_map)
    return [layer.inv for layer in reversed(layers)]


def flowpp_dequantizer(
    event_shape: Sequence[int],
    *,
    couplings: int = 4,
    components: int = 32,
    net: Callable[..., nn.Module] | None = None,
    embedding: Callable[[int], nn.Module] | None = None,
    pointwise: bool = True,
) -> list[Transform]:
    """The variational dequantization of Flow++: noise on (0, 1) given an integer image. Ho et al. (2019), section 4.1.

    Couplings between even and odd columns, then a sigmoid. All see the same features of the image k / levels - 1/2:

        dequantizer = Flow(StandardNormal(shape), flowpp_dequantizer(shape))
        Dequantized(density, levels, dequantizer=dequantizer)

    Args:
        event_shape: (C, H, W) with even W.
        couplings: number of couplings.
        components: K, logistics in the mixture of every element.
        net: builds the networks; ``partial(GatedAttention, blocks=2)`` by default.
        embedding: builds, for 2 C channels, the network that makes the features; it has an attribute ``channels``.
            ``GatedConvs`` by default.
        pointwise: whether there are 1x1 convolutions.

    Returns:
        Transforms latent -> noise, conditional on a map of the event shape.
    """
    shape = shape_of_event("flowpp_dequantizer", event_shape)
    outer = Columns(shape)
    arrange = Rearranged(shape, [outer])
    features = (GatedConvs if embedding is None else embedding)(2 * shape[0])
    context_map = Size((int(features.channels), *arrange.output_shape[1:]))  # type: ignore[arg-type]
    network = partial(GatedAttention, blocks=2) if net is None else net
    layers = _couplings(
        outer.output_shape,
        at_least_one("couplings", couplings),
        components=components,
        net=network,
        pointwise=pointwise,
        context_shape=context_map,
    )
    flow = Embedded(Arranged(outer, Chain(layers)), nn.Sequential(arrange, features), shape)
    return [flow.inv, SigmoidTransform()]


def _image_layers(
    shape: Size,
    counts: tuple[int, ...],
    build: Callable[..., list[Bijection]],
    board: Callable[..., list[Bijection]] | None,
    context_shape: Size | None,
) -> list[Bijection]:
    def group(outer: list[Bijection], count: int, couplings: Callable[..., list[Bijection]] = build) -> Bijection:
        """Couplings on the arrangement that ``outer`` makes, which is undone again."""
        inner_shape = outer[-1].output_shape if outer else shape
        arrange = None if context_shape is None else Rearranged(context_shape, outer)
        inner_context = None if arrange is None else arrange.output_shape
        chain = Chain(couplings(inner_shape, at_least_one("couplings", count), context_shape=inner_context))
        arranged = Arranged(Chain(outer), chain) if outer else chain
        return arranged if arrange is None or context_shape is None else Embedded(arranged, arrange, context_shape)

    def squeezed() -> list[Bijection]:
        squeeze = Squeeze(shape)
        # channel (2 dy + dx) C + c of the released code is channel 4 c + 2 dy + dx here
        order = [4 * c + slot for slot in range(4) for c in range(shape[0])]
        return [squeeze, Permute(squeeze.output_shape, order)]

    def spatial(outer: list[Bijection], count: int) -> Bijection:
        inner_shape = outer[-1].output_shape if outer else shape
        if board is None:
            return group([*outer, Columns(inner_shape)], count)
        return group(outer, count, board)

    layers = [spatial([], counts[0])]
    if len(counts) == 3:
        layers += [group(squeezed(), counts[1]), spatial(squeezed(), counts[2])]
    return layers


def _couplings(
    shape: Size,
    count: int,
    *,
    components: int,
    net: Callable[..., nn.Module],
    pointwise: bool,
    context_dim: int = 0,
    context_shape: Size | None = None,
) -> list[Bijection]:
    half = Size((shape[0] // 2, *shape[1:]))
    network = partial(net, size=tuple(shape[1:]), context_dim=context_dim, context_shape=context_shape)
    layers: list[Bijection] = []
    for index in range(count):
        transformer = MixtureLogistic(components)
        conditioner = network(half[0], transformer.num_parameters * half[0])
        layers.append(ActNorm(shape, per_position=True))
        if pointwise:
            layers.append(Parallel(InvertibleConv1x1(half), InvertibleConv1x1(half)))
        layers.append(SplitCoupling(shape, conditioner, transformer, swap=index % 2 == 1))
    return layers


def _masked_couplings(
    shape: Size,
    count: int,
    *,
    components: int,
    net: Callable[..., nn.Module],
    pointwise: bool,
    context_dim: int = 0,
    context_shape: Size | None = None,
) -> list[Bijection]:
    layers: list[Bijection] = []
    for index in range(count):
        transformer, mask = MixtureLogistic(components), checkerboard(shape, flip=index % 2 == 1)
        conditioner = net(
            shape[0],
            transformer.num_parameters * shape[0],
            size=tuple(shape[1:]),
            mask=mask,
            context_dim=context_dim,
            context_shape=context_shape,
        )
        layers.append(ActNorm(shape, per_position=True))
        if pointwise:
            layers.append(InvertibleConv1x1(shape))
        layers.append(MaskedCoupling(mask, conditioner, transformer))
    return layers
