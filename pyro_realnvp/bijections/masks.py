"""Masks of the part of an event that a coupling leaves unchanged: boolean, True = unchanged (b in the papers)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._runtime.checks import sizes, zero_or_one


def checkerboard(event_shape: Sequence[int], *, flip: bool = False) -> Tensor:
    """Makes a checkerboard mask, equal in all channels.

        b[c, i, j] = (i + j + 1) mod 2

    so the top left pixel is unchanged, as in the released code of Dinh et al. (2017); their figure 3 shows the other
    parity, which ``flip`` gives.

    Args:
        event_shape: (C, H, W).
        flip: exchanges True and False.

    Returns:
        A boolean tensor of shape (C, H, W).

    Raises:
        ValueError: if the event is not an image of at least two pixels.

    Example:
        >>> checkerboard((1, 2, 3)).int()
        tensor([[[1, 0, 1],
                 [0, 1, 0]]], dtype=torch.int32)
    """
    shape = sizes("checkerboard", event_shape)
    if len(shape) != 3 or shape.numel() == shape[0]:
        raise ValueError(
            f"checkerboard needs an image of shape (C, H, W) with two pixels or more, but got {tuple(shape)}."
        )
    channels, height, width = shape
    flip = bool(zero_or_one("flip of checkerboard", flip))
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == int(flip)).expand(channels, height, width).clone()


def channelwise(event_shape: Sequence[int], *, flip: bool = False) -> Tensor:
    """Makes a mask of the first half of the channels of an image. Dinh et al. (2017), section 3.4.

        b[c, i, j] = 1 if c < C/2 else 0

    Args:
        event_shape: (C, H, W).
        flip: exchanges True and False.

    Returns:
        A boolean tensor of shape (C, H, W).

    Raises:
        ValueError: if the event is not an image, or its number of channels is odd.

    Example:
        >>> channelwise((4, 8, 8))[:, 0, 0]
        tensor([ True,  True, False, False])
    """
    shape = sizes("channelwise", event_shape)
    if len(shape) != 3 or shape[0] % 2:
        raise ValueError(
            f"channelwise needs an image of shape (C, H, W) with an even number of channels, but got {tuple(shape)}."
        )
    channels, height, width = shape
    flip = bool(zero_or_one("flip of channelwise", flip))
    first = torch.arange(channels) < channels // 2
    return (first ^ flip)[:, None, None].expand(channels, height, width).clone()


def alternating(event_shape: Sequence[int], *, flip: bool = False) -> Tensor:
    """Makes a mask of every other coordinate of a vector, beginning with the first.

        b[i] = (i + 1) mod 2

    Args:
        event_shape: (D,).
        flip: exchanges True and False.

    Returns:
        A boolean tensor of shape (D,).

    Raises:
        ValueError: if the event is not a vector of at least two coordinates.

    Example:
        >>> alternating((5,))
        tensor([ True, False,  True, False,  True])
    """
    shape = sizes("alternating", event_shape)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"alternating needs a vector of shape (D,) with D of 2 or more, but got {tuple(shape)}.")
    flip = bool(zero_or_one("flip of alternating", flip))
    return torch.arange(shape[0]) % 2 == int(flip)
