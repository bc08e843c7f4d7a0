"""Normalization as layers of a flow: BatchNorm (RealNVP) and ActNorm (Glow)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._runtime.batch_statistics import NotFiniteError, statistics_are_held
from .._runtime.batches import flatten_batch
from .._runtime.checks import positive, values_are_known
from .._runtime.collectives import moments
from .._runtime.construction import recorded
from ..networks.channel_norm import ChannelNorm
from .reversible import Reversible


class _ChannelMap(Reversible):
    """Base class of maps with one set of numbers per channel of an image, or per coordinate of a vector."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        if len(event_shape) not in (1, 3):
            raise ValueError(f"{type(self).__name__} needs events (D,) or (C, H, W), but got {tuple(event_shape)}.")
        super().__init__(event_shape)

    def _flat(self, x: Tensor) -> Tensor:
        """Reshapes (\\*batch, C, ...) to (batch, C, ...)."""
        return flatten_batch(x, len(self.event_shape))

    def _per_channel(self, value: Tensor) -> Tensor:
        """Reshapes (C,) to (C, 1, 1), to broadcast against events."""
        return value.reshape(-1, *[1] * (len(self.event_shape) - 1))

    def _over(self) -> tuple[int, ...]:
        """Returns the dimensions of a flat batch to reduce: all but the channels."""
        return (0, *range(2, len(self.event_shape) + 1))


@recorded
class BatchNorm(_ChannelMap):
    """Normalises every channel by the mean and variance of the batch. Dinh et al. (2017), section 3.7.

        y = (x - mean) / sqrt(var + eps),   log|det dy/dx| = -1/2 sum log(var + eps)

    where the sum is over all changed elements of an event. In training mode the statistics are those of the batch, and
    gradients flow through them; running averages follow with ``momentum``. In evaluation mode they are the running
    averages. The inverse in training mode uses the statistics of the last forward, so it is its inverse (before any
    forward: the running ones). With a mask, only the elements where it is False are changed and counted; the released
    code of the paper counts the unchanged ones too, as zeros.

    The density of a batch in training mode is not that of its members: evaluate in evaluation mode.

    Args:
        event_shape: (C, H, W) or (D,).
        mask: boolean, of the event shape; True = passes unchanged, as in the coupling before.
        momentum: weight of the newest batch in the running averages.
        eps: added to the variance.

    Raises:
        ValueError: in training mode, if the batch has fewer than two events, or is not finite.

    Example:
        >>> f = BatchNorm((2,))
        >>> x = torch.randn(100, 2) + 10
        >>> y = f(x)  # in training mode, by the statistics of the batch
        >>> torch.allclose(y.mean(0), torch.zeros(2), atol=1e-4), bool((f.eval()(x) > 5).all())  # running ones lag
        (True, True)
    """

    running_mean: Tensor
    running_var: Tensor
    last_mean: Tensor
    last_var: Tensor
    mask: Tensor | None
    count: Tensor
    synchronized = False

    def __init__(
        self, event_shape: Sequence[int], mask: Tensor | None = None, *, momentum: float = 0.1, eps: float = 1e-4
    ) -> None:
        super().__init__(event_shape)
        if mask is not None and mask.shape != self.event_shape:
            raise ValueError(f"BatchNorm needs a mask of shape {tuple(event_shape)}, but got {tuple(mask.shape)}.")
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"BatchNorm needs a boolean mask, but got {mask.dtype}.")
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm needs a momentum in [0, 1], but got {momentum}.")
        self.momentum = float(momentum)
        self.eps = positive("eps of BatchNorm", eps)
        channels, places = event_shape[0], self.event_shape[1:].numel()
        changed = torch.full((channels,), places) if mask is None else (~mask).reshape(channels, -1).sum(1)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("count", changed.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("last_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("last_var", torch.ones(channels), persistent=False)

    @property
    def is_reversible(self) -> bool:
        return not self.training  # gradients flow through the statistics of the batch, which the inverse does not know

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        var = var + self.eps
        y = (x - self._per_channel(mean)) * self._per_channel(var.rsqrt())
        return self._keep_masked(x, y), self._log_det(x, var)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # Copies, so that the next forward, which overwrites these, does not disturb a graph that uses them.
        mean, var = (self.last_mean, self.last_var) if self.training else (self.running_mean, self.running_var)
        var = var + self.eps
        x = y * self._per_channel(var.sqrt()) + self._per_channel(mean.clone())
        return self._keep_masked(y, x), -self._log_det(y, var)

    def _keep_masked(self, before: Tensor, after: Tensor) -> Tensor:
        return after if self.mask is None else torch.where(self.mask, before, after)

    def _log_det(self, x: Tensor, var: Tensor) -> Tensor:
        return self._per_event(-0.5 * (self.count * var.log()).sum(), x)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._flat(x)
        if x.shape[0] < (1 if self.synchronized else 2):
            raise ValueError(
                f"BatchNorm in training mode needs a batch of at least 2 events, but got {x.shape[0]}; "
                f"call eval() to use the running statistics."
            )
        mean, var = self._moments(x)
        if not statistics_are_held():
            if values_are_known(var) and not bool(var.isfinite().all()):
                raise NotFiniteError(
                    "BatchNorm got NaN or infinite data; its statistics were left as they were. diagnose(flow, x) says "
                    "where they come from."
                )
            with torch.no_grad():
                self.last_mean.copy_(mean)
                self.last_var.copy_(var)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        return mean, var

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        over = self._over()
        if self.mask is None:
            var, mean = torch.var_mean(x, over, correction=0)
            return moments(mean, var, x.numel() / max(1, mean.numel()), synchronized=self.synchronized)[:2]
        # A channel that is unchanged everywhere divides by 1 instead of 0, and its result is not used.
        count = (self.count * x.shape[0]).clamp(min=1)
        mean = torch.where(self.mask, 0, x).sum(over) / count
        var = torch.where(self.mask, 0, x - self._per_channel(mean)).square().sum(over) / count
        return moments(mean, var, count, synchronized=self.synchronized)[:2]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.last_mean.copy_(self.running_mean)
        self.last_var.copy_(self.running_var)


@recorded
class ActNorm(_ChannelMap):
    """An affine map per channel that starts by normalising a batch. Kingma & Dhariwal (2018), section 3.1.

        y = (x - shift) exp(log_scale),   log|det dy/dx| = H W sum_c log_scale_c

    ``shift`` and ``log_scale`` are parameters. The first batch in training mode and in the data direction, or a call of
    :meth:`initialize`, sets them so that every channel of y has mean 0 and standard deviation 1; until then the layer
    is the identity. Whether that has happened is part of the state: a loaded checkpoint is never initialised again.

    Args:
        event_shape: (C, H, W) or (D,).
        per_position: one shift and scale for every element of the event, as in Flow++ (Ho et al., 2019).

    Example:
        >>> f = ActNorm((2,))
        >>> x = 10 + 3 * torch.randn(100, 2)
        >>> y = f(x)  # the first batch
        >>> torch.allclose(y.mean(0), torch.zeros(2), atol=1e-4), torch.allclose(y.std(0, correction=0), torch.ones(2))
        (True, True)
        >>> torch.allclose(f.log_abs_det_jacobian(x, y), -x.std(0, correction=0).log().sum())
        True
    """

    def __init__(self, event_shape: Sequence[int], *, per_position: bool = False) -> None:
        super().__init__(event_shape)
        self.norm = ChannelNorm(*(event_shape if per_position else event_shape[:1]))

    @property
    def shift(self) -> Tensor:
        return self.norm.shift

    @property
    def log_scale(self) -> Tensor:
        return self.norm.log_scale

    @property
    def initialized(self) -> Tensor:
        return self.norm.initialized

    @property
    def is_reversible(self) -> bool:
        return self.norm.is_fixed

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.initialize_once(x)
        y = (x - self._per_element(self.shift)) * self._per_element(self.log_scale.exp())
        return y, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = y * self._per_element((-self.log_scale).exp()) + self._per_element(self.shift)
        return x, -self._log_det(y)

    def initialize_once(self, x: Tensor) -> None:
        """Initialises from x in training mode, if no batch has done so and statistics are not held."""
        self.norm.initialize_once(self._flat(x))

    def initialize(self, x: Tensor) -> None:
        """Sets shift and log_scale from a batch x (\\*batch, \\*event_shape), at least one event, finite.

        A constant channel gets the scale 1 / 1e-6.
        """
        self.norm.initialize(self._flat(x))

    def _per_element(self, value: Tensor) -> Tensor:
        return value if value.shape == self.event_shape else self._per_channel(value)

    def _log_det(self, x: Tensor) -> Tensor:
        return self._per_event(self.log_scale.sum() * (self.event_shape.numel() // self.log_scale.numel()), x)
