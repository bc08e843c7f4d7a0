"""Pieces that the families share: the shapes of events and contexts, and couplings of vectors."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeGuard

from torch import Size, nn

from .._runtime.checks import built_by, integers
from ..bijections.bijection import Bijection
from ..bijections.coupling import Elementwise, SplitCoupling
from ..bijections.multiscale import Sandwich, Squeeze
from ..bijections.transformers import Transformer
from ..networks.conditioner import shape_of_context
from ..networks.mlp import MLP

Net = Callable[..., nn.Module]  #: builds the network of a coupling; see :mod:`pyro_realnvp.networks.conditioner`


def latent_to_data(layers: Sequence[Bijection]) -> list[Bijection]:
    """Turns layers data -> latent into the list latent -> data that ``TransformedDistribution`` expects."""
    return [layer.inv for layer in reversed(layers)]


def with_context(net: Net, context_shape: Size | None) -> Net:
    """Fixes the context of a network, in the two keywords of its contract, and checks what ``net`` builds."""
    vector = context_shape is not None and len(context_shape) == 1
    length = context_shape[0] if context_shape is not None and vector else 0
    shape = None if vector else context_shape
    return partial(built_by, "net", net, kind=nn.Module, context_dim=length, context_shape=shape)


def shape_of_event(name: str, event_shape: int | Sequence[int]) -> Size:
    """Returns the shape (D,) or (C, H, W) of events that the family ``name`` is asked for."""
    shape = Size(integers(name, "event_shape", event_shape))
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"{name} needs an event shape D, (D,) or (C, H, W), but got {event_shape}.")
    return shape


def check_context_map(
    name: str, shape: Size, context_shape: int | Sequence[int] | None, context_dim: int
) -> Size | None:
    """Returns the shape of the context of an image flow; an error if a map does not lie over the image."""
    context = shape_of_context(name, context_shape, context_dim)
    if context is not None and len(context) != 1 and (len(context) != 3 or context[1:] != shape[1:]):
        raise ValueError(
            f"{name} needs a context map of the height and width of the image {tuple(shape)}, but got the context "
            f"shape {tuple(context)}."
        )
    return context


def reject_arguments(name: str, shape: Size, **arguments: object) -> None:
    """Raises a ValueError if an argument was given that does not apply to events of this shape."""
    for argument, value in arguments.items():
        if value is not None:
            kind = "vectors" if len(shape) == 1 else "images"
            raise ValueError(f"{name} of {kind} takes no {argument}, but got {argument}={value} for {tuple(shape)}.")


def net_of_vectors(name: str, net: Net | None, hidden: Sequence[int] | None) -> Net:
    """Returns what builds the networks of a vector flow: ``net``, or an ``MLP`` of tanh with layers of these widths.

    Features of tanh are bounded, so that far from the data a network returns what it returned at their border. On
    tables of a few hundred rows held-out points lie there: with SiLU a flow lost 2 to 8 nats on them.
    """
    if net is None:
        return partial(MLP, hidden=(64, 64) if hidden is None else hidden, activation=nn.Tanh)
    if hidden is not None:
        raise ValueError(
            f"{name} takes hidden, the widths of an MLP, or net, but got both; write "
            f"net=partial(MLP, hidden={hidden}, ...) for an MLP with other options."
        )
    return net


def warn_of_one_coordinate(name: str, shape: Size, context_shape: Size | None) -> None:
    """Warns if one coordinate is to depend on a context, which can only shift and scale it."""
    if shape == (1,) and context_shape is not None:
        warnings.warn(
            f"{name} of one coordinate is one affine map: the density given a context has the shape of the base, a "
            f"Gaussian say, whatever the context. spline_transforms(1, ...) learns other shapes.",
            stacklevel=4,  # behind `recorded`, which wraps the builders
        )


def vector_couplings(
    shape: Size, couplings: int, net: Net, transformer: Callable[[], Transformer], context_shape: Size | None
) -> list[Bijection]:
    """Couplings that transform one half of the coordinates given the other, in turns; one coordinate: elementwise."""
    net = with_context(net, context_shape)

    def build(changed: Sequence[int]) -> Transformer:
        made: Transformer = built_by("transformer", transformer, kind=Transformer)
        return made

    def read(read: Sequence[int], out_channels: int) -> nn.Module:
        return net(len(read), out_channels)

    return couplings_in_turns(shape, couplings, build, read, conditional=context_shape is not None)


def couplings_in_turns(
    shape: Size,
    couplings: int,
    transformer: Callable[[Sequence[int]], Transformer],
    net: Callable[[Sequence[int], int], nn.Module],
    *,
    conditional: bool,
) -> list[Bijection]:
    """Couplings that transform one half of the coordinates given the other, in turns; one coordinate: elementwise.

    Args:
        shape: (D,).
        couplings: how many.
        transformer: builds the transformer of the coordinates that a coupling changes, given their indices.
        net: builds the network, given the indices of the coordinates that it reads and the length of its output.
        conditional: whether the networks take a context.
    """
    dim = shape[0]
    if dim == 1:
        alone = transformer([0])
        return [Elementwise(shape, alone, net([], alone.channels(1)) if conditional else None)]
    halves = range(dim - dim // 2), range(dim - dim // 2, dim)
    layers: list[Bijection] = []
    for index in range(couplings):
        swap = index % 2 == 1
        read, changed = reversed(halves) if swap else halves
        transform = transformer(changed)
        conditioner = net(read, transform.channels(len(changed)))
        layers.append(SplitCoupling(shape, conditioner, transform, swap=swap))
    return layers


def is_map(context_shape: Size | None) -> TypeGuard[Size]:
    """Returns whether a context is a map (C, H, W), which is rearranged with the image."""
    return context_shape is not None and len(context_shape) == 3


def squeezed_context(context_shape: Size | None) -> Size | None:
    """Returns the shape of a context behind a :class:`Squeeze`: a map is squeezed in plain order, a vector is not."""
    return Squeeze(context_shape).output_shape if is_map(context_shape) else context_shape


def on_squeezed(shape: Size, f: Bijection, context_shape: Size | None, *, ordered: bool = False) -> Bijection:
    """Applies a bijection of squeezed images to images, and squeezes a context map with them."""
    context = Squeeze(context_shape) if is_map(context_shape) else None
    return Sandwich(Squeeze(shape, ordered=ordered), f, context=context)
