"""What stays in full precision under autocast: everything but the networks. See :class:`~pyro_realnvp.Flow`.

Elementwise maps take the precision of their tensors, which is that of the data. Matrix products are what autocast turns
into bfloat16; those that are maps of a flow, and not layers of a network, are computed inside :func:`full_precision`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least_float32", "full_precision", "lifted"]


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A region without autocast on the device of x."""
    # Asked first, since making the context costs more than a small layer.
    return torch.autocast(x.device.type, enabled=False) if _has_autocast(x) else nullcontext()


def lifted(x: Tensor) -> Tensor:
    """x, or under autocast, where a network before may have made it bfloat16, x in float32."""
    return at_least_float32(x) if _has_autocast(x) else x


def at_least_float32(x: Tensor) -> Tensor:
    """x for statistics, which 8 bits of precision do not carry."""
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def _has_autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)  # the meta device knows none
