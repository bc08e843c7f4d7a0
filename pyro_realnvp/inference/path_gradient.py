"""The path gradient of an ELBO, where it is one.

The gradient of E_q[log p(x) - log q(x)] for the parameters of q has two parts: the path, by which they move the draw x,
and the score d log q(x) / d parameters at a fixed x. The score has expectation 0, but its noise remains when q is
already the posterior, while the path gradient then vanishes draw by draw. Roeder, Wu, Duvenaud (2017), equation 6; for
flows: Vaitl, Nicoli, Nakajima, Kessel (2022).

The score may be left out only where every draw has the same weight. Bounds that weigh draws, such as those of
importance-weighted or Renyi objectives, need it.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Size, Tensor

from .._runtime.batch_statistics import hold_statistics
from .._runtime.constants import constant_copy


class PathGradientDistribution(dist.TransformedDistribution):  # type: ignore[misc]
    """A ``TransformedDistribution`` of one :class:`~pyro_realnvp.Bijection`, with the path gradient for its own draws.

    The log-density of its last draws, if they are a batch, passes a gradient that is equal for all draws along the path
    alone. A gradient that differs between draws, as in bounds that weigh them, passes along the path and to the
    parameters, as usual; so does every gradient of the density of other values, and of a single draw, where the two
    cannot be told apart. Both are unbiased. The path costs a second pass through the transform.

        q = PathGradientDistribution(base, [transform])     # an event of base is one x of the transform
        x = q.rsample((256,))
        (q.log_prob(x) - log_p(x)).mean().backward()        # reverse KL, without the noise of the score
    """

    _last_draw: Callable[[], Tensor | None] = staticmethod(lambda: None)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draw: Tensor = super().rsample(Size(sample_shape))
        self._last_draw = weakref.ref(draw)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        (transform,) = self.transforms
        total = super().log_prob(value)
        own = self._last_draw() is value and value.requires_grad and total.numel() > 1
        if not own or torch._C._get_tracing_state():
            return total
        with hold_statistics():  # a copy must not initialise an ActNorm, whose parameters it shares
            z, log_det = constant_copy(transform).inverse_and_log_det(value)
        path = constant_copy(self.base_dist).log_prob(z) + log_det
        result: Tensor = _PathIfUniform.apply(total, path)
        return result


class _PathIfUniform(torch.autograd.Function):
    """Returns the first of two equal tensors; a gradient that is equal for all elements goes to the second."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, path: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return (None, grad) if bool((grad == grad.flatten()[0]).all()) else (grad, None)
