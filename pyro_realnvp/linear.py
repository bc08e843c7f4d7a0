"""Linear bijections: Scale (NICE) and Permute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bijection import Bijection

__all__ = ["Permute", "Scale"]


class Scale(Bijection):
    """Scales every element: y = x exp(log_scale), log|det dy/dx| = sum log_scale. Dinh et al. (2014), section 3.3.

    Args:
        event_shape: of x and of the learned ``log_scale``, which starts at zero.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.zeros(*event_shape))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y * (-self.log_scale).exp(), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(x.shape[: x.dim() - len(self.event_shape)])


class Permute(Bijection):
    """Reorders the channels of an image, or the coordinates of a vector: y_c = x_{p(c)}, log|det dy/dx| = 0.

    Args:
        event_shape: (C, H, W) or (D,).
        permutation: p, each of 0, ..., C - 1 once.

    Raises:
        ValueError: if it is not a permutation of the channels.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, event_shape: Sequence[int], permutation: Sequence[int]) -> None:
        super().__init__(event_shape)
        if sorted(permutation) != list(range(event_shape[0])):
            raise ValueError(
                f"Permute needs a permutation of 0, ..., {event_shape[0] - 1}, but got {list(permutation)}."
            )
        order = torch.tensor(list(permutation))
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", order.argsort(), persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(x, self.permutation)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(y, self.inverse_permutation)

    def _select(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        dim = -len(self.event_shape)
        return x.index_select(dim, order), x.new_zeros(x.shape[:dim])

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self.inverse_permutation.copy_(self.permutation.argsort())
