"""The path gradient of an ELBO, where it is one.

The gradient of E_q[log p(x) - log q(x)] for the parameters of q has two parts: what moves the draw x, and the score
d log q(x) / d parameters at a fixed x. The score has expectation 0, but its noise remains when q is already the
posterior, while the first part alone, the path gradient, then vanishes draw by draw. Roeder, Wu, Duvenaud (2017),
equation 6; for flows: Vaitl, Nicoli, Nakajima, Kessel (2022).

Leaving the score out is right only where every draw counts the same. Bounds that weigh draws, such as those of
importance-weighted or Renyi objectives, need it.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from .bijection import Bijection
from .frozen import frozen

__all__ = ["PathGradientDistribution"]


class PathGradientDistribution(dist.TransformedDistribution):  # type: ignore[misc]
    """base -> transform, like any ``TransformedDistribution`` of one :class:`Bijection`, but for one gradient.

    The log-density of its own last draws, when it has a batch of them, passes a gradient that is the same for every
    draw along the path alone. A gradient that differs between draws, as in bounds that weigh them, passes along the
    path and to the parameters, as usual. So does every gradient of the density of anything else, and of a single draw,
    where the two cannot be told apart. Both are unbiased. The path costs a second pass through the transform.

        q = PathGradientDistribution(base, [transform])     # an event of base is one x of the transform
        x = q.rsample((256,))
        (q.log_prob(x) - log_p(x)).mean().backward()        # reverse KL, without the noise of the score
    """

    def log_prob(self, value: Tensor) -> Tensor:
        (transform,) = self.transforms
        # What the transform remembers tells its own draws from data.
        mine = isinstance(transform, Bijection) and transform._memo.input_of(transform, value) is not None
        total = super().log_prob(value)
        if not (mine and value.requires_grad and total.numel() > 1) or torch._C._get_tracing_state():
            return total
        with frozen(transform):
            z, log_det = transform.inverse_and_log_det(value)
        path = self.base_dist.log_prob(z) + log_det
        result: Tensor = _OneOf.apply(total, path)
        return result


class _OneOf(torch.autograd.Function):
    """The first of two equal tensors; its gradient goes to the second where it is the same for all elements."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, path: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return (None, grad) if bool((grad == grad.flatten()[0]).all()) else (grad, None)
