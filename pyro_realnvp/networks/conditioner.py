"""The contract of a network that serves a coupling.

Builders construct networks as ``net(in_channels, out_channels, *, context_dim=0, context_shape=None, mask=None,
level=0)``, so that one ``partial(ResNet, hidden=64, blocks=8)`` builds them everywhere. A network of your own needs
this signature and, to use a context, the attribute ``context_shape``; deriving from :class:`Conditioner` is optional.
"""

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from .._runtime.batches import flatten_batch
from .._runtime.checks import count_of, integers


def shape_of_context(name: str, context_shape: int | Sequence[int] | None, context_dim: int = 0) -> Size | None:
    """Returns the shape of one context, or None if there is none.

    Args:
        name: of the class or function that takes the context, for errors.
        context_shape: length of a context vector, or shape (C, H, W) of a context map.
        context_dim: length of a context vector, instead.

    Raises:
        ValueError: if both are given, or a length is negative.
    """
    shape = Size(() if context_shape is None else integers(name, "context_shape", context_shape))
    (context_dim,) = integers(name, "context_dim", context_dim)
    if context_dim and shape:
        raise ValueError(
            f"{name} takes a context vector or a context map, but got context_dim={context_dim} and "
            f"context_shape={tuple(shape)}."
        )
    if context_dim < 0 or any(size < 0 for size in shape):
        given = f"context_dim={context_dim}" if context_dim else f"context_shape={tuple(shape)}"
        raise ValueError(f"{name} needs a context of length 0 or more, but got {given}.")
    shape = Size((context_dim,)) if context_dim else shape
    return shape if shape.numel() and shape else None


class Conditioner(nn.Module):
    """Base class of the networks: checks the context and broadcasts it over the batch.

    Args:
        context_shape: length of a context vector, or shape (C, H, W) of a context map; None for no context.
        context_dim: length of a context vector, instead.

    Example:
        >>> class Linear(Conditioner):
        ...     def __init__(self, in_channels, out_channels, *, context_shape=None, context_dim=0, **ignored):
        ...         super().__init__(context_shape, context_dim)
        ...         self.linear = torch.nn.Linear(in_channels + self.vector_length, out_channels)
        ...     def forward(self, x, context=None):
        ...         return self.linear(torch.cat([x, self.expand_context(context, x.shape[:-1])], -1))
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, net=Linear, context_shape=3))
        >>> flow(torch.randn(5, 2), torch.randn(3)).shape  # one context for all
        torch.Size([5])
    """

    in_channels: int
    starts_at_zero: bool | None = None  #: whether a new network returns zeros; None: not known

    def __init__(self, context_shape: int | Sequence[int] | None = None, context_dim: int = 0) -> None:
        super().__init__()
        self.context_shape = shape_of_context(type(self).__name__, context_shape, context_dim)

    def check_channels(self, in_channels: int, out_channels: int, *, fewest: int = 0) -> None:
        """Keeps the number of input channels; a ValueError unless it is ``fewest`` or more, and there is an output."""
        self.in_channels = count_of(f"in_channels of {type(self).__name__}", in_channels, fewest)
        count_of(f"out_channels of {type(self).__name__}", out_channels)

    @property
    def map_channels(self) -> int:
        """Number of channels of a context map; 0 if there is none."""
        return 0 if self.context_shape is None or len(self.context_shape) != 3 else self.context_shape[0]

    @property
    def vector_length(self) -> int:
        """Length of a context vector; 0 if there is none."""
        return 0 if self.context_shape is None or len(self.context_shape) != 1 else self.context_shape[0]

    def expand_context(self, context: Tensor | None, batch: Size) -> Tensor | None:
        """Returns the context with batch dimensions ``batch``, or None if the network takes none.

        Raises:
            ValueError: if the context is missing, unexpected, or has the wrong shape.
        """
        name, shape = type(self).__name__, self.context_shape
        if shape is None:
            if context is not None:
                raise ValueError(
                    f"{name} was built without a context, but got one of shape {tuple(context.shape)}; "
                    f"pass context_shape when building."
                )
            return None
        if context is None:
            raise ValueError(f"{name} needs a context of shape {tuple(shape)}, but got none.")
        if context.shape[-len(shape) :] != shape:
            raise ValueError(f"{name} needs a context of shape {tuple(shape)}, but got {tuple(context.shape)}.")
        return context if context.shape[: -len(shape)] == batch else context.expand(batch + shape)

    def check_image_context(self) -> None:
        """Raises a ValueError unless the context, if there is one, is a vector or a map (C, H, W)."""
        if self.context_shape is not None and len(self.context_shape) not in (1, 3):
            raise ValueError(
                f"{type(self).__name__} takes a context vector or a context map (C, H, W), but got the context_shape "
                f"{tuple(self.context_shape)}."
            )

    def flatten_batch(
        self, x: Tensor, context: Tensor | None, *, concatenate: bool = True
    ) -> tuple[Tensor, Tensor | None, Size]:
        """Returns images (\\*batch, C, H, W) with one batch dimension, their context alike, and the former batch shape.

        A context map is concatenated to the images, and None returned for it, unless ``concatenate`` is False.

        Raises:
            ValueError: if x is no batch of images with ``in_channels``, or the context does not fit.
        """
        name = type(self).__name__
        if x.dim() < 3 or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"{name} maps images of shape ({self.in_channels}, H, W), but got a tensor of {tuple(x.shape)}."
            )
        if self.map_channels and self.context_shape is not None and self.context_shape[1:] != x.shape[-2:]:
            raise ValueError(
                f"{name} needs a context map of the size of the image, but has the context_shape "
                f"{tuple(self.context_shape)} and got an image of {tuple(x.shape[-3:])}."
            )
        batch = x.shape[:-3]
        context = self.expand_context(context, batch)
        x = flatten_batch(x, 3)
        if context is not None and self.context_shape is not None:
            context = flatten_batch(context, len(self.context_shape))
            if concatenate and context.dim() == 4:
                return torch.cat([x, context], 1), None, batch
        return x, context, batch
