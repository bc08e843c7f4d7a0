"""Bijections whose context is computed by a network, once for a whole flow."""

from collections.abc import Sequence

from torch import Size, Tensor, nn

from .._runtime.arguments import shown
from .._runtime.batches import flatten_batch
from .._runtime.construction import recorded
from ..networks.conditioner import shape_of_context
from .bijection import Bijection, Composite, compute


@recorded
class EmbedContext(Composite):
    """A bijection whose context is the output of a network: f(.; e(context)).

    Args:
        bijection: f.
        embedding: e, maps (batch, \\*context_shape) to the context of f.
        context_shape: shape of one context.

    Raises:
        ValueError: if a size of the context is not positive.

    Example:
        >>> inner = Chain(realnvp_transforms(2, context_shape=4))
        >>> f = EmbedContext(inner, torch.nn.Linear(10, 4), (10,))
        >>> x, context = torch.randn(5, 2), torch.randn(5, 10)
        >>> y, log_det = f.forward_and_log_det(x, context)
        >>> torch.allclose(y, inner.forward_and_log_det(x, f.embedding(context))[0])
        True
    """

    def __init__(self, bijection: Bijection, embedding: nn.Module, context_shape: Sequence[int]) -> None:
        super().__init__(bijection.event_shape, bijection.output_shape)
        self.bijection = bijection
        self.embedding = embedding
        shape = shape_of_context("EmbedContext", context_shape)
        if shape is None:
            raise ValueError(f"EmbedContext needs a context, but got context_shape={shown(context_shape)}.")
        self._context_shape = shape

    @property
    def context_shape(self) -> Size | None:
        return self._context_shape

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        shape = self._context_shape
        if context is None:
            raise ValueError(f"EmbedContext needs a context of shape {tuple(shape)}, but got none.")
        batch = self._context_batch_shape(context)
        embedded: Tensor = self.embedding(flatten_batch(context, len(shape)))
        return compute(self.bijection, x, embedded.reshape(*batch, *embedded.shape[1:]), inverse=inverse)
