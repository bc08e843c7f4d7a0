"""Keeps everything but the networks in full precision under autocast. See :class:`~pyro_realnvp.Flow`.

Elementwise maps take the precision of their tensors, which is that of the data. Autocast turns matrix products into
bfloat16; those that are maps of a flow, and not layers of a network, are computed inside :func:`full_precision`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Returns a context without autocast on the device of x."""
    # Asked first, since making the context costs more than a small layer.
    return torch.autocast(x.device.type, enabled=False) if has_autocast(x) else nullcontext()


def upcast(x: Tensor) -> Tensor:
    """Returns x, or under autocast, where an earlier network may have made it bfloat16, x in float32."""
    return at_least_float32(x) if has_autocast(x) else x


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in a precision that statistics can be computed in: 8 bits do not suffice."""
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def has_autocast(x: Tensor) -> bool:
    """Returns whether autocast is on for the device of x."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)  # the meta device knows none
