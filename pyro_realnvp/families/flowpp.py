"""Flow++, assembled."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Size, nn
from torch.distributions import SigmoidTransform, Transform

from .._runtime.checks import built_by, count_of
from .._runtime.construction import recorded
from ..bijections.bijection import Bijection
from ..bijections.chain import Chain
from ..bijections.context import EmbedContext
from ..bijections.coupling import MaskedCoupling, SplitCoupling
from ..bijections.linear import InvertibleConv1x1, Permute
from ..bijections.masks import checkerboard
from ..bijections.mixture import MixtureLogistic
from ..bijections.multiscale import Halves, Sandwich, Squeeze, SqueezeColumns
from ..bijections.normalization import ActNorm
from ..networks.attention import GatedAttention, GatedConvs
from ..networks.conditioner import shape_of_context
from .assembly import (
    Net,
    check_context_map,
    is_map,
    latent_to_data,
    net_of_vectors,
    reject_arguments,
    shape_of_event,
    vector_couplings,
    with_context,
)


@recorded
def flowpp_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int | Sequence[int] | None = None,
    components: int = 32,
    hidden: Sequence[int] | None = None,
    net: Net | None = None,
    pointwise: bool = True,
    true_checkerboard: bool = False,
    context_shape: int | Sequence[int] | None = None,
    context_dim: int = 0,
) -> list[Bijection]:
    """Builds Flow++: couplings whose elementwise map is a mixture of logistics. Ho et al. (2019), section 4.

    For images, the architecture of the released code for CIFAR-10: ``couplings[0]`` couplings between even and odd
    columns; then, on the squeezed image, ``couplings[1]`` between the halves of the channels and ``couplings[2]``
    between columns again. Before each are a normalization with a shift and scale for every element, and a 1x1
    convolution of each half. Nothing is factored out. With one number only couplings of the first kind are made, which
    is the architecture of the variational dequantization. The published models are the defaults for CIFAR-10 (3.08
    bits/dim) and, for ImageNet 32 x 32 (3.86 bits/dim), ``couplings=(7, 3, 3)``, ``pointwise=False`` and
    ``net=partial(GatedAttention, hidden=128, blocks=20, dropout=0, weight_norm=True)``.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 4 (by 2 with one kind of coupling).
        couplings: number of each kind, (4, 2, 3) by default; of a vector flow, 4 by default.
        components: K, logistics in the mixture of every element.
        hidden: widths of the hidden layers of the networks of a vector flow, (64, 64) by default; they are of tanh.
        net: builds the networks, instead; for images ``GatedAttention`` by default, with ``size=(height, width)``.
        pointwise: whether there are 1x1 convolutions in an image flow.
        true_checkerboard: the checkerboard that the paper describes, in place of the columns of the released code.
        context_shape: length of the context vector of a conditional flow, or shape (C, H, W) of its context map. The
            networks see a map rearranged like the image, without the permutation of the channels.
        context_dim: length of the context vector, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if both ``hidden`` and ``net`` are given, an argument does not apply to events of this shape, or the
            shape cannot be split.

    Example:
        >>> f = Chain(flowpp_transforms(3, components=4))
        >>> x = torch.randn(5, 3)
        >>> z, log_det = f.inv.forward_and_log_det(x)
        >>> back, opposite = f.forward_and_log_det(z)  # latent -> data, by a search
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(opposite, -log_det, atol=1e-4)
        (True, True)
    """
    shape = shape_of_event("flowpp_transforms", event_shape)
    count_of("components", components)
    if len(shape) == 1:
        if isinstance(couplings, Sequence):
            raise ValueError(f"flowpp_transforms of vectors takes one number of couplings, but got {couplings}.")
        context = shape_of_context("flowpp_transforms", context_shape, context_dim)
        count = count_of("couplings", 4 if couplings is None else couplings)
        mixture = partial(MixtureLogistic, components)
        net = net_of_vectors("flowpp_transforms", net, hidden)
        return latent_to_data(vector_couplings(shape, count, net, mixture, context))
    reject_arguments("flowpp_transforms", shape, hidden=hidden)
    counts = (4, 2, 3) if couplings is None else tuple(couplings) if isinstance(couplings, Sequence) else (couplings,)
    if len(counts) not in (1, 3):
        raise ValueError(f"flowpp_transforms of images takes one or three numbers of couplings, but got {counts}.")
    context = check_context_map("flowpp_transforms", shape, context_shape, context_dim)
    net = GatedAttention if net is None else net
    build = partial(_couplings, components=components, net=net, pointwise=pointwise)

    def group(count: int, *, squeeze: bool, columns: bool) -> Bijection:
        """Builds couplings on squeezed images, between columns or between channels, or on a checkerboard."""
        outer: list[Bijection] = []
        pack: list[Bijection] = []  # rearranges a context map
        if squeeze:
            outer.append(Squeeze(shape))
            # channel (2 dy + dx) C + c of the released code is channel 4 c + 2 dy + dx here
            order = [4 * c + pixel for pixel in range(4) for c in range(shape[0])]
            outer.append(Permute(outer[0].output_shape, order))
        masked = columns and true_checkerboard
        if columns and not masked:
            outer.append(SqueezeColumns(outer[-1].output_shape if outer else shape))
        if is_map(context):
            for each in outer:
                if not isinstance(each, Permute):
                    pack.append(type(each)(pack[-1].output_shape if pack else context))
        inner_context = pack[-1].output_shape if pack else context
        inner_shape = outer[-1].output_shape if outer else shape
        f: Bijection = Chain(build(inner_shape, count_of("couplings", count), context=inner_context, masked=masked))
        f = Sandwich(Chain(outer), f) if outer else f
        return EmbedContext(f, Chain(pack) if pack else nn.Identity(), context) if is_map(context) else f

    layers = [group(counts[0], squeeze=False, columns=True)]
    if len(counts) == 3:
        layers += [group(counts[1], squeeze=True, columns=False), group(counts[2], squeeze=True, columns=True)]
    return latent_to_data(layers)


@recorded
def flowpp_dequantizer(
    event_shape: Sequence[int],
    *,
    couplings: int = 4,
    components: int = 32,
    net: Net | None = None,
    embedding: Callable[[int], nn.Module] | None = None,
    pointwise: bool = True,
) -> list[Transform]:
    """Builds the variational dequantization of Flow++: noise on (0, 1) given an integer image. Ho et al. (2019), 4.1.

    Couplings between even and odd columns, then a sigmoid. All see the features of one network, whose input is the
    image k / levels - 1/2. Noise is drawn in closed form, as in the released code, and so is its own density; the
    density of other noise takes the search of :class:`~pyro_realnvp.MixtureLogistic`. A Flow of these transforms is the
    ``dequantizer`` of an :class:`~pyro_realnvp.ImageFlow`.

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

    Example:
        >>> shape, levels = (1, 4, 4), 17
        >>> dequantizer = Flow(StandardNormal(shape), flowpp_dequantizer(shape))
        >>> images = torch.randint(levels, (3, *shape))
        >>> u = dequantizer.sample(context=images / levels - 0.5)
        >>> u.shape, bool(((u > 0) & (u < 1)).all())
        (torch.Size([3, 1, 4, 4]), True)
    """
    shape = shape_of_event("flowpp_dequantizer", event_shape)
    count_of("components", components)
    outer, pack = SqueezeColumns(shape), SqueezeColumns(shape)
    embedding = GatedConvs if embedding is None else embedding
    features: Any = built_by("embedding", embedding, 2 * shape[0], kind=nn.Module)
    if not isinstance(getattr(features, "channels", None), int):
        raise ValueError(
            f"embedding must build a network with its number of output channels as the attribute channels, but "
            f"{type(features).__name__} has none."
        )
    layers = _couplings(
        outer.output_shape,
        count_of("couplings", couplings),
        components=components,
        net=partial(GatedAttention, blocks=2) if net is None else net,
        pointwise=pointwise,
        context=Size((features.channels, *pack.output_shape[1:])),
        masked=False,
    )
    flow = EmbedContext(Sandwich(outer, Chain(layers)), nn.Sequential(pack, features), shape)
    return [flow, SigmoidTransform()]


def _couplings(
    shape: Size,
    count: int,
    *,
    components: int,
    net: Net,
    pointwise: bool,
    context: Size | None,
    masked: bool,
) -> list[Bijection]:
    """Builds couplings between the halves of the channels or, ``masked``, between the squares of a checkerboard."""
    read = shape if masked else Size((shape[0] // 2, *shape[1:]))
    network = with_context(partial(net, size=tuple(shape[1:])), context)
    layers: list[Bijection] = []
    for index in range(count):
        transformer, odd = MixtureLogistic(components), index % 2 == 1
        layers.append(ActNorm(shape, per_position=True))
        if masked:
            mask = checkerboard(shape, flip=odd)
            conditioner = network(read[0], transformer.num_parameters * read[0], mask=mask)
            coupling: Bijection = MaskedCoupling(mask, conditioner, transformer)
        else:
            conditioner = network(read[0], transformer.num_parameters * read[0])
            coupling = SplitCoupling(shape, conditioner, transformer, swap=odd)
        if pointwise:
            layers.append(InvertibleConv1x1(shape) if masked else Halves(*(InvertibleConv1x1(read) for _ in range(2))))
        layers.append(coupling)
    return layers
