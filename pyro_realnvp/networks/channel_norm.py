"""An affine map of every channel that is initialised from data: ActNorm, for networks and layers alike."""

from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.autocast import at_least_float32
from .._runtime.batch_statistics import NotFiniteError, statistics_are_held
from .._runtime.checks import values_are_known
from .._runtime.collectives import moments


class ChannelNorm(nn.Module):
    """Computes (x - shift) exp(log_scale) for every channel. Kingma & Dhariwal (2018), section 3.1.

    The first batch in training mode, unless statistics are held, or a call of :meth:`initialize`, sets shift and
    log_scale so that every channel of the result has mean 0 and standard deviation 1; until then this is the identity.
    Whether that has happened is part of the state: a loaded checkpoint is never initialised again.

    Args:
        shape: (C,) for one shift and scale a channel of tensors (batch, C, ...), (C, H, W) for one an element.
    """

    initialized: Tensor
    synchronized = False

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("initialized", torch.tensor(False))
        self._is_initialized = False  # mirrors the buffer, which costs a host synchronisation and a branch on data

    @property
    def is_fixed(self) -> bool:
        """Whether the next batch will leave shift and scale alone."""
        return self._is_initialized or not self.training

    def forward(self, x: Tensor) -> Tensor:
        self.initialize_once(x)
        shape = self.shift.shape + (1,) * (x.dim() - 1 - self.shift.dim())
        # In the dtype of x: under autocast float32 parameters would turn the feature maps of a network into float32.
        shift, scale = (value.reshape(shape).to(x.dtype) for value in (self.shift, self.log_scale.exp()))
        return (x - shift) * scale

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Returns scale and shift of the map x scale + shift, which the layer before can fold into its weights."""
        scale = self.log_scale.exp()
        return scale, -self.shift * scale

    def initialize_once(self, x: Tensor) -> None:
        """Initialises from x (batch, C, ...) in training mode, if no batch has done so and statistics are not held."""
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
        if values_are_known(var) and not bool(var.isfinite().all()):
            raise NotFiniteError(
                "ActNorm got NaN or infinite data to initialise from; it was left as it was. diagnose(flow, x) says "
                "where they come from."
            )
        self.shift.copy_(mean)
        self.log_scale.copy_(-(var.sqrt() + 1e-6).log())
        self.initialized.fill_(True)
        self._is_initialized = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.initialized.is_meta:
            self._is_initialized = bool(self.initialized)
