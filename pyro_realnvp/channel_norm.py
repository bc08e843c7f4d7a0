"""An affine map of every channel whose start is taken from data: what ActNorm is to a flow, for any tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .precision import at_least_float32
from .ranks import moments
from .statistics import statistics_are_held

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.Module):
    """(x - shift) exp(log_scale) for every channel. Kingma & Dhariwal (2018), section 3.1.

    The first batch in training mode, unless statistics are held, or a call of :meth:`initialize`, sets the two so that
    every channel of the result has mean 0 and standard deviation 1; until then this is the identity. That it has
    happened is part of the state: a loaded checkpoint is never initialised again.

    Args:
        shape: (C,) for tensors (batch, C, ...); a longer one has numbers of their own for every further place.
    """

    initialized: Tensor
    synchronized = False

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("initialized", torch.tensor(False))
        self._is_initialized = False  # the buffer without a host synchronisation, or a data-dependent branch

    @property
    def is_fixed(self) -> bool:
        """Whether no batch will initialise it now."""
        return self._is_initialized or not self.training

    def forward(self, x: Tensor) -> Tensor:
        self.initialize_once(x)
        shape = self.shift.shape + (1,) * (x.dim() - 1 - self.shift.dim())
        # In the dtype of x: under autocast float32 parameters would turn the feature maps of a network into float32.
        shift, scale = (value.reshape(shape).to(x.dtype) for value in (self.shift, self.log_scale.exp()))
        return (x - shift) * scale

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The same map as x scale + shift, which a layer before it can take into its weights."""
        scale = self.log_scale.exp()
        return scale, -self.shift * scale

    def initialize_once(self, x: Tensor) -> None:
        if self.training and not self._is_initialized and not statistics_are_held():
            self.initialize(x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets shift and log_scale from x (batch, C, ...). A constant channel gets the scale 1 / 1e-6.

        Raises:
            ValueError: if the batch is empty, or not finite.
        """
        if x.shape[0] < 1:
            raise ValueError("ActNorm needs a batch of at least 1 event to initialise, but got an empty one.")
        over = (0, *range(1 + self.shift.dim(), x.dim()))
        var, mean = torch.var_mean(at_least_float32(x), over, correction=0)
        count = x.numel() / max(1, mean.numel())
        mean, var, _ = moments(mean, var, count, synchronized=self.synchronized)
        if not torch.compiler.is_compiling() and not bool(var.isfinite().all()):
            raise ValueError("ActNorm got NaN or infinite data to initialise from; it was left as it was.")
        self.shift.copy_(mean)
        self.log_scale.copy_(-(var.sqrt() + 1e-6).log())
        self.initialized.fill_(True)
        self._is_initialized = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.initialized.is_meta:
            self._is_initialized = bool(self.initialized)
