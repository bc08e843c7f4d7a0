"""Families of flows, as functions that assemble layers.

Layers are listed here as the papers draw them, data -> latent; each function returns what Pyro wants, latent -> data,
ready for ``dist.TransformedDistribution(base, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import Size, Tensor, nn
from torch.distributions import ReshapeTransform

from .bijection import Bijection
from .chain import Chain, Lift
from .conditioners import MLP, ResNet
from .coupling import Elementwise, MaskedCoupling, SplitCoupling
from .embedding import Embedded, Rearranged
from .linear import Permute, Scale
from .masks import channelwise, checkerboard
from .multiscale import Arranged, FactorOut, Squares, Squeezed
from .normalization import BatchNorm
from .transformers import Additive, Affine, TanhScale, Transformer

__all__ = ["nice_transforms", "realnvp_transforms"]


class Net(Protocol):
    """What builds the network of a coupling; see :mod:`pyro_realnvp.conditioners`."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        /,
        *,
        context_dim: int = 0,
        context_shape: Sequence[int] | None = None,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> nn.Module: ...


def realnvp_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int | None = None,
    scales: int | None = None,
    net: Net | None = None,
    packed: bool = False,
    context_dim: int = 0,
    context_shape: Sequence[int] | None = None,
) -> list[Bijection]:
    """RealNVP: affine couplings. Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP" (2017).

    For vectors, couplings that transform one half of the coordinates given the other, in turns, without normalization
    layers, so that batches of one, guides and NUTS work. One coordinate alone has nothing to be conditioned on and
    gets one elementwise affine map. For images, the multi-scale architecture of section 3.6: at every scale three
    checkerboard couplings, three channel-wise ones on the squeezed image, and half of the variables factored out; at
    the last scale four checkerboard couplings. Batch normalization (section 3.7) follows each.

    A new flow is close to the identity. The defaults for images are the paper's for CIFAR-10.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 2**(scales - 1).
        couplings: number of couplings of a vector flow, 8 by default.
        scales: number of scales of an image flow, 2 by default.
        net: builds the networks; ``MLP`` by default for vectors, ``partial(ResNet, hidden=64, blocks=8)`` for images.
        packed: in an image flow, checkerboard couplings on boards of half the size (:class:`Squares`): a step takes
            about half as long, and the networks see other neighbourhoods than the paper's. The width is to be divisible
            by 2**scales.
        context_dim: length of the context vector of a conditional flow.
        context_shape: (C, H, W) of its context map, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if an argument does not apply to events of this shape, or the shape cannot be squeezed.
    """
    shape = shape_of_event("realnvp_transforms", event_shape)
    if len(shape) == 1:
        refuse("realnvp_transforms", shape, scales=scales, packed=packed or None)
        layers = vector_layers(
            shape,
            at_least_one("couplings", 8 if couplings is None else couplings),
            partial(MLP if net is None else net, context_dim=context_dim, context_shape=context_shape),
            Affine,
            conditional=bool(context_dim or context_shape),
        )
    else:
        refuse("realnvp_transforms", shape, couplings=couplings)
        net = partial(ResNet, hidden=64, blocks=8) if net is None else net
        shape_of_map(shape, context_shape)
        board = _packed_board if packed else _board
        count = at_least_one("scales", 2 if scales is None else scales)
        layers = _image_layers(shape, count, 0, net, board, context_dim, context_shape)
    return [layer.inv for layer in reversed(layers)]


def nice_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int = 4,
    net: Net | None = None,
    context_dim: int = 0,
    context_shape: Sequence[int] | None = None,
) -> list[Bijection]:
    """NICE: additive couplings and one diagonal scaling. Dinh, Krueger & Bengio (2014).

    The coordinates with even and with odd index take turns; images are flattened. The paper's prior is
    :class:`~pyro_realnvp.StandardLogistic` for MNIST and Gaussian elsewhere.

    Args:
        event_shape: D or (D,), or (C, H, W).
        couplings: number of couplings.
        net: builds the networks; ``MLP`` by default for vectors, the paper's five layers of 1000 ReLU for images.
        context_dim: length of the context vector of a conditional flow.
        context_shape: (C, H, W) of its context map, instead.

    Returns:
        Bijections latent -> data.
    """
    shape = shape_of_event("nice_transforms", event_shape)
    flat = Size((shape.numel(),))
    if net is None:
        net = MLP if len(shape) == 1 else partial(MLP, hidden=(1000,) * 5, activation=nn.ReLU)
    layers = vector_layers(
        flat,
        at_least_one("couplings", couplings),
        partial(net, context_dim=context_dim, context_shape=context_shape),
        Additive,
        conditional=bool(context_dim or context_shape),
    )
    if flat[0] > 1:
        layers = [Permute(flat, [*range(0, flat[0], 2), *range(1, flat[0], 2)]), *layers]
    layers = [*layers, Scale(flat)]
    if len(shape) == 3:
        layers = [Lift(ReshapeTransform(shape, flat), shape), *layers, Lift(ReshapeTransform(flat, shape), flat)]
    return [layer.inv for layer in reversed(layers)]


def vector_layers(
    shape: Size, couplings: int, net: Net, transformer: Callable[[], Transformer], *, conditional: bool
) -> list[Bijection]:
    """Couplings that transform one half of the coordinates given the other, in turns; one coordinate: elementwise."""
    dim = shape[0]
    if dim == 1:
        alone = transformer()
        return [Elementwise(shape, alone, net(0, alone.num_parameters) if conditional else None)]
    layers: list[Bijection] = []
    for index in range(couplings):
        swap, transform = index % 2 == 1, transformer()
        changed = dim - dim // 2 if swap else dim // 2
        conditioner = net(dim - changed, transform.num_parameters * changed)
        layers.append(SplitCoupling(shape, conditioner, transform, swap=swap))
    return layers


def _board(
    shape: Size, count: int, level: int, net: Net, context_dim: int, context_shape: Sequence[int] | None
) -> list[Bijection]:
    """Checkerboard couplings, the two colours in turns."""
    channels = shape[0]
    layers: list[Bijection] = []
    for index in range(count):
        mask = checkerboard(shape, flip=index % 2 == 1)
        conditioner = net(
            channels, 2 * channels, mask=mask, level=level, context_dim=context_dim, context_shape=context_shape
        )
        layers += [MaskedCoupling(mask, conditioner, _affine(conditioner, initial=0.0)), BatchNorm(shape, mask)]
    return layers


def _packed_board(
    shape: Size, count: int, level: int, net: Net, context_dim: int, context_shape: Sequence[int] | None
) -> list[Bijection]:
    """The same on the packed board, which is unpacked once behind the last."""
    outer = Squares(shape)
    arrange = None if context_shape is None else Rearranged(context_shape, [outer])
    inner = outer.output_shape
    layers: list[Bijection] = []
    for index in range(count):
        swap = index % 2 == 1
        conditioner = net(
            shape[0],
            2 * shape[0],
            level=level,
            context_dim=context_dim,
            context_shape=None if arrange is None else arrange.output_shape,
        )
        layers += [
            SplitCoupling(inner, conditioner, _affine(conditioner, initial=0.0), swap=swap),
            BatchNorm(inner, channelwise(inner, flip=swap)),
        ]
    arranged = Arranged(outer, Chain(layers))
    return [arranged if arrange is None or context_shape is None else Embedded(arranged, arrange, context_shape)]


def _image_layers(
    shape: Size,
    scales: int,
    level: int,
    net: Net,
    board: Callable[..., list[Bijection]],
    context_dim: int,
    context_shape: Sequence[int] | None,
) -> list[Bijection]:
    """Scale ``level`` and all below it. SPEC: Dinh et al. (2017), section 3.6, and their released code."""
    channels = shape[0]
    layers = board(shape, 4 if level == scales - 1 else 3, level, net, context_dim, context_shape)
    if level == scales - 1:
        return layers

    context_shape = None if context_shape is None else quartered(Size(context_shape))
    squeezed = quartered(shape)
    inner: list[Bijection] = []
    for index in range(3):
        swap = index % 2 == 1
        conditioner = net(
            2 * channels, 4 * channels, level=level + 1, context_dim=context_dim, context_shape=context_shape
        )
        inner += [
            SplitCoupling(squeezed, conditioner, _affine(conditioner, initial=1.0), swap=swap),
            BatchNorm(squeezed, channelwise(squeezed, flip=swap)),
        ]
    half = Size((squeezed[0] // 2, *squeezed[1:]))
    deeper = _image_layers(half, scales, level + 1, net, board, context_dim, context_shape)
    return [*layers, Squeezed(Chain(inner)), Squeezed(FactorOut(Chain(deeper)), ordered=True)]


def _affine(conditioner: nn.Module, *, initial: float) -> Transformer:
    """Starts near the identity by a zero network or by alpha = ``initial``; with both, no gradient would flow."""
    return Affine(TanhScale(1.0 if getattr(conditioner, "starts_at_zero", True) else initial))


def quartered(shape: Size) -> Size:
    channels, height, width = shape
    if height % 2 or width % 2:
        raise ValueError(f"Squeeze needs even height and width, but got event shape {tuple(shape)}.")
    return Size((4 * channels, height // 2, width // 2))


def shape_of_event(name: str, event_shape: int | Sequence[int]) -> Size:
    shape = Size((event_shape,)) if isinstance(event_shape, int) else Size(event_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"{name} needs an event shape D, (D,) or (C, H, W), but got {event_shape}.")
    return shape


def shape_of_map(shape: Size, context_shape: Sequence[int] | None) -> None:
    """An error if a context map does not lie over the image."""
    if context_shape is not None and (len(context_shape) != 3 or tuple(context_shape[1:]) != tuple(shape[1:])):
        raise ValueError(
            f"A context map has the height and width of the image {tuple(shape)}, but got {tuple(context_shape)}."
        )


def refuse(name: str, shape: Size, **arguments: int | None) -> None:
    for argument, value in arguments.items():
        if value is not None:
            kind = "vectors" if len(shape) == 1 else "images"
            raise ValueError(f"{name} of {kind} takes no {argument}, but got {argument}={value} for {tuple(shape)}.")


def at_least_one(argument: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, but got {value}.")
    return value
