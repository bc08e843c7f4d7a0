"""The mixture-of-logistics transformer of Flow++, its inverse, and the gradient of the inverse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._runtime.checks import at_least, count_of
from .._runtime.construction import recorded
from .transformers import Transformer, is_flat


class _Components(NamedTuple):
    """Mixture of every element: log-weights, means and log-scales (\\*batch, K, C, ...), the components at ``dim``."""

    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor
    dim: int

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes u = logit F(x) and log du/dx, where F is the distribution function of the mixture."""
        below, above = self._sides(x)
        of_f, of_s = self.log_weight + below, self.log_weight + above
        u = of_f.logsumexp(self.dim) - of_s.logsumexp(self.dim)
        # log f / (F S) = log (f/F + f/S), each a mean over components: the large terms of a far tail do not meet.
        left = (of_f.log_softmax(self.dim) + above - self.log_scale).logsumexp(self.dim)
        right = (of_s.log_softmax(self.dim) + below - self.log_scale).logsumexp(self.dim)
        return u, torch.logaddexp(left, right)

    def at_coarsely(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes u and log du/dx at less cost; the second is coarse in far tails, yet good for Newton steps."""
        below, above = self._sides(x)
        log_f = (self.log_weight + below).logsumexp(self.dim)
        log_s = (self.log_weight + above).logsumexp(self.dim)
        log_density = (self.log_weight + below + above - self.log_scale).logsumexp(self.dim)
        return log_f - log_s, log_density - log_f - log_s

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the logarithms of the probability of every component below x and above."""
        z = (x.unsqueeze(self.dim) - self.mean) * (-self.log_scale).exp()
        return logsigmoid(z), logsigmoid(-z)

    def detach(self) -> _Components:
        return _Components(self.log_weight.detach(), self.mean.detach(), self.log_scale.detach(), self.dim)


@recorded
class MixtureLogistic(Transformer):
    """The logit of the distribution function of a mixture of logistics, then an affine map. Ho et al. (2019), 4.2.

        y = exp(s) logit F(x) + shift,   F(x) = sum_k w_k sigmoid((x - m_k) exp(-l_k))
        log dy/dx = log f(x) - log F(x) - log(1 - F(x)) + s

    with w = softmax(logits), s = tanh(raw) and l_k in [-7, 30], all in logarithms, so that values far in both tails
    stay finite. 2 + 3 K parameters: raw, shift, K logits, K means, K values of l. At parameters of zero it is close to
    the identity; the means are offset by up to +-1 against each other, since equal components would stay equal.

    The inverse brackets the solution by the points where the first and the last component alone reach it, and takes
    Newton steps, or halves the bracket where these leave it. Its first and second derivatives are those of the implicit
    function theorem.

    Args:
        components: K.
        iterations: the most that the inverse takes.

    Raises:
        ValueError: if there is no component.

    Example:
        >>> g = MixtureLogistic(components=4)
        >>> x, params = torch.randn(5, 1), torch.randn(5, g.channels(1))
        >>> y, log_det = g.forward_and_log_det(x, params, dim=-1)
        >>> back, opposite = g.inverse_and_log_det(y, params, dim=-1)
        >>> torch.allclose(back, x, atol=1e-3), torch.allclose(opposite, -log_det, atol=1e-3)
        (True, True)
    """

    offset: Tensor

    def __init__(self, components: int = 32, *, iterations: int = 100) -> None:
        super().__init__()
        self.components = components = count_of("components of MixtureLogistic", components)
        self.iterations = at_least("iterations of MixtureLogistic", iterations)
        self.num_parameters = 2 + 3 * components
        offset = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
        self.register_buffer("offset", offset, persistent=False)

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        log_scale, shift, mixture = self._split(params, dim)
        u, log_det = mixture.at(x)
        return torch.addcmul(shift, u, log_scale.exp()), log_det + log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        log_scale, shift, mixture = self._split(params, dim)
        u = (y - shift) * (-log_scale).exp()
        with torch.no_grad():
            x = self._solve(u, mixture.detach())
        reached, log_det = mixture.at(x)
        # One more Newton step, whose derivative is that of x(u, parameters) by the implicit function theorem.
        x = x - (reached - u) * (-log_det).exp()
        if torch.is_grad_enabled():
            # A Newton step from a point that is right to first order in the parameters is right to third order. Its
            # value is 0, so that no rounding enters the gradient.
            reached, log_det = mixture.at(x)
            x = x - (reached - reached.detach() - (u - u.detach())) * (-log_det).exp()
            log_det = mixture.at(x)[1]
        return x, -(log_det + log_scale)

    def at_bound(self, params: Tensor, dim: int) -> Tensor | None:
        """Tells where s is close to 1 or -1, or components of most of the weight have a scale l that is clamped."""
        raw = params.narrow(dim, 0, params.shape[dim] // self.num_parameters)
        mixture = self._split(params.detach(), dim)[2]
        clamped = (mixture.log_scale == -7) | (mixture.log_scale == 30)
        weight = torch.where(clamped, mixture.log_weight.exp(), 0).sum(mixture.dim)
        return is_flat(torch.tanh, raw) | (weight > 0.5)

    def _split(self, params: Tensor, dim: int) -> tuple[Tensor, Tensor, _Components]:
        parts = params.unflatten(dim, (self.num_parameters, params.shape[dim] // self.num_parameters))
        at, k = dim - 1, self.components
        raw, shift = parts.narrow(at, 0, 2).unbind(at)
        logits, mean, log_scale = parts.narrow(at, 2, 3 * k).split(k, at)
        offset = self.offset.reshape(k, *[1] * -dim)
        return raw.tanh(), shift, _Components(logits.log_softmax(at), mean + offset, log_scale.clamp(-7, 30), at)

    def _solve(self, u: Tensor, mixture: _Components) -> Tensor:
        """Solves logit F(x) = u. x lies between the smallest and the largest x_k with (x_k - m_k) exp(-l_k) = u."""
        alone = mixture.mean + u.unsqueeze(mixture.dim) * mixture.log_scale.exp()
        low, high = alone.amin(mixture.dim), alone.amax(mixture.dim)
        x = (low + high) / 2
        # A compiled graph unrolls the loop: half of it is enough in practice.
        for iteration in range(self.iterations // 2 if torch.compiler.is_compiling() else self.iterations):
            reached, log_slope = mixture.at_coarsely(x)
            error = reached - u
            low, high = torch.where(error > 0, low, x), torch.where(error > 0, x, high)
            newton = x - error * (-log_slope).exp()
            middle = (low + high) / 2
            new = torch.where((newton > low) & (newton < high), newton, middle)
            # A Newton step that moves little inside a wide bracket is slow or has arrived: every third one is a halving
            # unless it has arrived.
            arrived = (new - x).abs() <= 4 * torch.finfo(x.dtype).eps * x.abs().clamp(min=1)
            x = torch.where(arrived | (iteration % 3 != 2), new, middle)
            if iteration % 8 == 7 and _all_and_known(arrived):  # no host synchronisation in between
                break
        return x


def _all_and_known(condition: Tensor) -> bool:
    """Returns whether all hold; False in compiled code and under vmap, where values cannot be read."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(condition.all())
    except RuntimeError:
        return False
