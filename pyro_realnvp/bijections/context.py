"""Bijections whose context is computed by a network, once for a whole flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Size, Tensor, nn

from .._runtime.construction import recorded
from .bijection import Bijection

__all__ = ["EmbedContext"]


@recorded
class EmbedContext(Bijection):
    """A bijection whose context is the output of a network: f(.; e(context)).

    Args:
        bijection: f.
        embedding: e, maps (batch, \\*context_shape) to the context of f.
        context_shape: shape of one context.
    """

    def __init__(self, bijection: Bijection, embedding: nn.Module, context_shape: Sequence[int]) -> None:
        super().__init__(bijection.event_shape, bijection.output_shape)
        self.bijection = bijection
        self.embedding = embedding
        self._context_shape = Size(context_shape)

    @property
    def context_shape(self) -> Size | None:
        return self._context_shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(x, self._embed(context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(y, self._embed(context))

    def _embed(self, context: Tensor | None) -> Tensor:
        shape = tuple(self._context_shape)
        if context is None:
            raise ValueError(f"EmbedContext needs a context of shape {shape}, but got none.")
        batch = self._context_batch_shape(context)
        embedded: Tensor = self.embedding(context.reshape(batch.numel(), *shape))
        return embedded.reshape(*batch, *embedded.shape[1:])
