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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro import distributions as dist
from torch import Size, Tensor
from torch.autograd.function import once_differentiable

from .._runtime.batch_statistics import hold_statistics
from .._runtime.constants import constant_copy
from ..bases.independent import UnitNormal
from ..bijections.chain import Chain


@runtime_checkable
class PushesScore(Protocol):
    """A bijection that maps a draw x and d log q(x) / dx to y, log|det dy/dx| and the score of the density of y at y.

    Only y has a gradient. All are (\\*batch, D), the log-determinant (\\*batch).
    """

    def forward_and_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class _Draw(NamedTuple):
    """Keeps what is known of a draw: itself, weakly, and log q(x) and its score where the transform pushed them."""

    value: Callable[[], Tensor | None]
    log_prob: Tensor | None = None
    score: Tensor | None = None


class PathGradientDistribution(dist.TransformedDistribution):  # type: ignore[misc]
    """A ``TransformedDistribution`` of one :class:`~pyro_realnvp.Bijection`, with the path gradient for its own draws.

    The log-density of its last draws, if they are a batch, receives a gradient for each of them. Where that is equal
    for all, as in the mean of an ELBO, it flows along the path of the draws alone. Where it differs between draws, as
    in bounds that weigh them, it flows along the path and to the parameters, as usual; so do the gradients of the
    density of other values, and of a single draw, where the two cannot be told apart. All are unbiased. The path costs
    a second pass through the transform, unless that computes the score of a draw along with the draw
    (:class:`PushesScore`).

    Example:
        >>> f = Scale((2,))
        >>> q = PathGradientDistribution(StandardNormal(2)(), [f])
        >>> x = q.rsample((256,))
        >>> (q.log_prob(x) - StandardNormal(2)().log_prob(x)).mean().backward()  # reverse KL to what q already is
        >>> f.log_scale.grad.abs().max() < 1e-6  # without the noise of the score
        tensor(True)
    """

    _last_draw = _Draw(lambda: None)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        (transform,) = self.transforms
        parts: list[Any] = list(transform) if isinstance(transform, Chain) else [transform]
        pushed = _is_plain() and all(isinstance(part, PushesScore) for part in parts)
        x: Tensor = self.base_dist.rsample(Size(sample_shape))
        if not pushed or x.requires_grad:  # a base with parameters is a part of the path
            x = transform(x)
            self._last_draw = _Draw(weakref.ref(x))
            return x
        log_prob, score = _log_prob_and_score(self.base_dist, x)
        for part in parts:
            x, log_det, score = part.forward_and_score(x, score)
            log_prob = log_prob - log_det
        self._last_draw = _Draw(weakref.ref(x), log_prob, score)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        draw = self._last_draw
        if draw.value() is not value or not value.requires_grad or torch._C._get_tracing_state():
            return self._total(value)
        if draw.score is not None and draw.log_prob is not None and draw.log_prob.numel() > 1:
            parameters = [each for each in self.transforms[0].parameters() if each.requires_grad]
            return _PushedPath.apply(value, draw.log_prob, draw.score, self._total, *parameters)
        total = self._total(value)
        if total.numel() <= 1:
            return total
        with hold_statistics():  # a copy must not initialise an ActNorm, whose parameters it shares
            z, log_det = constant_copy(self.transforms[0]).inverse_and_log_det(value)
        path = constant_copy(self.base_dist).log_prob(z) + log_det
        result: Tensor = _PathIfUniform.apply(total, path)
        return result

    def _total(self, value: Tensor) -> Tensor:
        result: Tensor = super().log_prob(value)
        return result


def _log_prob_and_score(base: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Computes log p(z) and its gradient for z, without a graph."""
    if isinstance(getattr(base, "base_dist", None), UnitNormal):
        return base.log_prob(z), -z
    leaf = z.detach().requires_grad_()
    log_prob = base.log_prob(leaf)
    return log_prob.detach(), torch.autograd.grad(log_prob.sum(), leaf)[0]


def _is_plain() -> bool:
    """Returns whether gradients are recorded, and neither autocast nor tracing needs other operations."""
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
        and not torch._C._get_tracing_state()
        and not torch.compiler.is_compiling()
    )


def _is_uniform(grad: Tensor) -> bool:
    return bool((grad == grad.flatten()[0]).all())


class _PathIfUniform(torch.autograd.Function):
    """Returns the first of two equal tensors; a gradient that is equal for all elements goes to the second."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, path: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return (None, grad) if _is_uniform(grad) else (grad, None)


class _PushedPath(torch.autograd.Function):
    """Returns log q(x); a gradient that is equal for all draws goes to x by the score, others to the parameters too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_prob: Tensor, score: Tensor, total: Callable[[Tensor], Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, score, *parameters)
        ctx.total = total
        return log_prob.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, score, *parameters = ctx.saved_tensors
        if _is_uniform(grad):
            return grad.unsqueeze(-1) * score, None, None, None, *(None for _ in parameters)
        with torch.enable_grad(), hold_statistics():
            leaf = x.detach().requires_grad_()
            along, *others = torch.autograd.grad(ctx.total(leaf), [leaf, *parameters], grad, allow_unused=True)
        return along, None, None, None, *others
