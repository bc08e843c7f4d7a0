"""A base with several modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from .base import LinearInContext

_SPREAD = math.sqrt(0.5)  # standard deviation of the locations at the start


@recorded
class MixtureBase(LinearInContext):
    """A mixture of K diagonal Gaussians with learned weights, locations and scales, given a context if there is one.

        p(z) = sum_k w_k N(z; loc_k, diag(scale_k^2)),   w = softmax(logits)

    A draw takes one component for the whole event. The locations start at random, so that the components can part, with
    variance 1/2, beside components of variance 1/2 and of equal weights: every element has variance 1 in expectation.
    From narrower starts more components end in one mode. With a context, logits, locations and logarithms of the scales
    are those parameters plus A context.

    Draws by ``rsample`` have gradients for all parameters; see :class:`DiagonalMixture`. Those for the weights are
    noisy where components are far apart, since mass moves through places that no draw visits: in training by reverse
    KL, the weights of modes that are more than about eight standard deviations apart hardly learn. Training by maximum
    likelihood needs no such gradient.

    In Flow.sample a temperature and a truncation hold within the component of every draw: z = loc_k + T scale_k e, with
    e from N(0, I) within the truncation.

    Args:
        event_shape: of one event, or its length.
        components: K.
        context_shape: length of the context vector; None for none.
        context_dim: length of the context vector, instead.

    Example:
        >>> base = MixtureBase(1, components=2)
        >>> _ = base.loc.data.copy_(torch.tensor([[-4.0], [4.0]]))
        >>> z = base().sample((10_000,))
        >>> round((z > 0).float().mean().item(), 1), round(z.abs().mean().item(), 1)
        (0.5, 4.0)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        components: int,
        *,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
    ) -> None:
        self.components = count_of("components of MixtureBase", components)
        super().__init__(
            event_shape, context_shape, context_dim, per_element=2 * self.components, per_event=self.components
        )
        shape = (self.components, *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.loc = nn.Parameter(_SPREAD * torch.randn(shape))
        self.log_scale = nn.Parameter(torch.full(shape, 0.5 * math.log(1 - _SPREAD**2)))

    def forward(self, context: Tensor | None = None) -> DiagonalMixture:
        size, shape = self.event_shape.numel(), (self.components, self.event_shape.numel())
        logits, loc, log_scale = self.logits, self.loc.reshape(shape), self.log_scale.reshape(shape)
        change = self._of_context(context)
        if change is not None:
            by_event, by_element = change.split((self.components, 2 * size * self.components), -1)
            shift, log_factor = by_element.unflatten(-1, (2, *shape)).unbind(change.dim() - 1)
            logits, loc, log_scale = logits + by_event, loc + shift, log_scale + log_factor
        return DiagonalMixture(logits, loc, log_scale, self.event_shape)

    def draw(
        self, distribution: Any, sample_shape: Size, *, temperature: float = 1.0, truncation: float | None = None
    ) -> Tensor:
        with torch.no_grad():
            loc, log_scale = distribution.sample_component(sample_shape)
        noise = torch.randn_like(loc) if truncation is None else _truncated_noise(loc, truncation)
        return distribution.as_events(loc + temperature * log_scale.exp() * noise)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={self.components}"


def _truncated_noise(like: Tensor, bound: float) -> Tensor:
    """Draws standard Gaussian variables within a bound, of the shape of a tensor."""
    eps = torch.finfo(like.dtype).eps  # a probability of 0 or 1 would be an infinite draw
    probability = 0.5 + 0.5 * math.erf(bound / math.sqrt(2)) * (2 * torch.rand_like(like) - 1)
    return torch.special.ndtri(probability.clamp(eps, 1 - eps))


class DiagonalMixture(dist.TorchDistribution):
    """A mixture of K diagonal Gaussians over events of D elements, whose draws have gradients for all parameters.

    A draw z moves with a parameter phi by a velocity v = dz/dphi that carries the density along: d p/dphi + div(p v) =
    0. With the responsibilities r_k = w_k N_k(z) / p(z) it is

        for loc_ki:         v_i = r_k,                   and 0 for the other elements,
        for log_scale_ki:   v_i = r_k (z_i - loc_ki),    and 0 for the other elements,
        for logits:         v = -(dS/dz)^-1 dS/dlogits,  S_i = P(Z_i <= z_i | Z_1 = z_1, ..., Z_(i-1) = z_(i-1)).

    Given the elements before, an element is a mixture of N_1i, ..., N_Ki with weights that follow from them, so that
    dS/dz is triangular: implicit reparametrization of the distributional transform, Figurnov, Mohamed, Mnih (2018),
    section 3. A gradient takes time and memory in proportion to K D.

    Args:
        logits: (\\*batch, K), logarithms of the weights up to a constant.
        loc: (\\*batch, K, D).
        log_scale: (\\*batch, K, D), logarithms of the standard deviations.
        event_shape: of D elements; (D,) by default.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "log_scale": constraints.independent(constraints.real, 2),
    }
    has_rsample = True

    def __init__(
        self, logits: Tensor, loc: Tensor, log_scale: Tensor, event_shape: Sequence[int] | None = None
    ) -> None:
        self.logits, self.loc, self.log_scale = logits, loc, log_scale
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], log_scale.shape[:-2])
        event = Size(loc.shape[-1:] if event_shape is None else event_shape)
        super().__init__(batch, event, validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def _expanded(self, batch: Size) -> tuple[Tensor, Tensor, Tensor]:
        parts = ((self.logits, 1), (self.loc, 2), (self.log_scale, 2))
        logits, loc, log_scale = (part.expand(batch + part.shape[-dims:]) for part, dims in parts)
        return logits, loc, log_scale

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> DiagonalMixture:
        return DiagonalMixture(*self._expanded(Size(batch_shape)), self.event_shape)

    @property
    def mean(self) -> Tensor:
        """The mean (\\*batch, \\*event_shape), where the density may be small."""
        return self.as_events(self._average(self.loc))

    @property
    def variance(self) -> Tensor:
        """The variance of every element, (\\*batch, \\*event_shape)."""
        about_mean = self.loc - self._average(self.loc).unsqueeze(-2)
        return self.as_events(self._average((2 * self.log_scale).exp() + about_mean.square()))

    def _average(self, values: Tensor) -> Tensor:
        return (self.logits.softmax(-1).unsqueeze(-1) * values).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes log p(z) in nats, of shape (\\*batch), for z (\\*batch, \\*event_shape)."""
        dims = len(self.event_shape)
        z = value.unsqueeze(-1) if dims == 0 else value.flatten(-dims)
        _, log_pdf = _standardized(z, self.loc, self.log_scale)
        return (self.logits.log_softmax(-1) + log_pdf.sum(-1)).logsumexp(-1)

    def sample_component(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws a component for every event; returns its loc and log_scale, (\\*sample_shape, \\*batch, D)."""
        logits, loc, log_scale = self._expanded(Size(sample_shape) + self.batch_shape)
        first = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
        index = first[..., None, None].expand(*first.shape, 1, loc.shape[-1])
        return loc.gather(-2, index).squeeze(-2), log_scale.gather(-2, index).squeeze(-2)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (\\*sample_shape, \\*batch, \\*event_shape), with gradients for logits, loc and log_scale."""
        with torch.no_grad():
            loc, log_scale = self.sample_component(sample_shape)
            z = loc + log_scale.exp() * torch.randn_like(loc)
        moving: Tensor = _Moving.apply(z, *self._expanded(Size(sample_shape) + self.batch_shape))
        return self.as_events(moving)

    def as_events(self, z: Tensor) -> Tensor:
        """Reshapes (\\*batch, D) to (\\*batch, \\*event_shape)."""
        return z.unflatten(-1, self.event_shape) if self.event_shape else z.squeeze(-1)


def _standardized(z: Tensor, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Computes t = (z - loc) / scale and the log-density of every element in every component, (\\*batch, K, D)."""
    t = (z.unsqueeze(-2) - loc) * (-log_scale).exp()
    return t, -0.5 * t.square() - log_scale - 0.5 * math.log(2 * math.pi)


class _Moving(torch.autograd.Function):
    """Returns draws z (\\*batch, D) of a mixture, which move with its parameters as :class:`DiagonalMixture` says."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, logits, loc, log_scale = ctx.saved_tensors
        t, log_pdf = _standardized(z, loc, log_scale)
        share = (logits + log_pdf.sum(-1)).softmax(-1).unsqueeze(-1) * grad.unsqueeze(-2)
        of_logits = _gradient_of_logits(grad, logits, t, log_pdf, log_scale)
        return None, of_logits, share, share * t * log_scale.exp()


def _gradient_of_logits(grad: Tensor, logits: Tensor, t: Tensor, log_pdf: Tensor, log_scale: Tensor) -> Tensor:
    """Computes -grad (dS/dz)^-1 dS/dlogits, (\\*batch, K), by substitution from the last element to the first.

    With the weights w_ki given the elements before i and the density p_i of element i given them,

        dS_i/dlogits_k = b_ki = w_ki (F_k(z_i) - S_i),   dS_j/dz_i = sum_k b_kj d log N_k(z_i)/dz_i for j > i.
    """
    before = torch.cat([torch.zeros_like(log_pdf[..., :1]), log_pdf[..., :-1].cumsum(-1)], -1)
    weights = (logits.unsqueeze(-1) + before).softmax(-2)
    below, above = torch.special.ndtr(t), torch.special.ndtr(-t)
    all_below, all_above = ((weights * part).sum(-2, keepdim=True) for part in (below, above))
    # Of the smaller tail, where the other one would cancel.
    difference = torch.where(all_below < all_above, below - all_below, all_above - above)
    change = weights * difference / (weights * log_pdf.exp()).sum(-2, keepdim=True)
    score = -t * (-log_scale).exp()
    total = torch.zeros_like(logits)
    for of_z, of_change, of_score in zip(*(part.unbind(-1)[::-1] for part in (grad, change, score)), strict=True):
        total = total + (of_z - (of_score * total).sum(-1)).unsqueeze(-1) * of_change
    return -total
