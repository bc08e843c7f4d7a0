"""A flow as one Module: a base distribution and the transforms after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from .bijection import Bijection, finite, sum_rightmost
from .chain import Chain
from .channel_norm import ChannelNorm
from .precision import full_precision, lifted

__all__ = ["DiagonalNormal", "Flow", "StandardLogistic", "StandardNormal"]


class _Base(nn.Module):
    """A distribution without parameters, as a Module: it moves with ``.to()`` and has the dtype of the model."""

    zero: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = Size((event_shape,) if isinstance(event_shape, int) else event_shape)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def extra_repr(self) -> str:
        return str(tuple(self.event_shape))


class _UnitNormal(dist.Normal):
    """A Normal whose loc and scale are known to be 0 and 1: a third of the passes over the value."""

    def log_prob(self, value: Tensor) -> Tensor:
        return _log_unit_normal(value)


def _log_unit_normal(z: Tensor) -> Tensor:
    return (z * z).mul_(-0.5).sub_(0.5 * math.log(2 * math.pi))


class StandardNormal(_Base):
    """N(0, I) on events of shape ``event_shape``; calling it returns the Pyro distribution."""

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return _UnitNormal(zeros, zeros + 1, validate_args=False).to_event(len(self.event_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        """The same as ``self().log_prob(z)``, without making a distribution: that takes as long as a small coupling."""
        return sum_rightmost(_log_unit_normal(z), len(self.event_shape))


class StandardLogistic(_Base):
    """Independent standard logistic variables, log p(z) = sum -softplus(z) - softplus(-z). Dinh et al. (2014), 3.4."""

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        zeros = self.zero.expand(self.event_shape)
        return dist.Logistic(zeros, zeros + 1, validate_args=False).to_event(len(self.event_shape))


class DiagonalNormal(_Base):
    """N(loc, diag(scale^2)) with a learned location and scale of every element, given a context if there is one.

        loc = loc_0 + A context,   scale = exp(log_scale_0 + B context)

    It starts as N(0, I). One-hot labels as context make the base of a class-conditional flow.

    Args:
        event_shape: of one event.
        context_dim: length of the context vector; 0 for none.
    """

    def __init__(self, event_shape: int | Sequence[int], *, context_dim: int = 0) -> None:
        super().__init__(event_shape)
        self.context_shape = Size((context_dim,)) if context_dim else None
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.linear = nn.Linear(context_dim, 2 * self.event_shape.numel(), bias=False) if context_dim else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        loc, log_scale = self.loc, self.log_scale
        if self.linear is not None:
            if context is None:
                raise ValueError(
                    f"DiagonalNormal needs a context of shape {tuple(self.context_shape or ())}, got none."
                )
            context = lifted(context)
            with full_precision(context):
                both = self.linear(context).unflatten(-1, (2, *self.event_shape))
            shift, log_factor = both.unbind(context.dim() - 1)
            loc, log_scale = loc + shift, log_scale + log_factor
        return dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(len(self.event_shape))


class Flow(nn.Module):
    """A density p(x | context) = p_base(z) |det dz/dx|: one Module that owns the base and the transforms.

    ``flow(x)`` is log p(x), for ``DistributedDataParallel``, ``torch.compile`` and anything else that goes through
    ``Module.__call__``; :meth:`distribution` is the same as a Pyro distribution, for ``pyro.sample``.

    Only ``train()`` and ``eval()`` differ between training by maximum likelihood and everything else: call ``eval()``
    on a flow that serves as a prior, in ``Predictive`` or for scoring, since batch normalization and dropout make the
    density of an event depend on the batch or on chance in training mode. A vector flow as it is built has neither, so
    that as a guide or a prior it may stay in training mode.

    Under ``torch.autocast(device, dtype=torch.bfloat16)`` the networks run in bfloat16, and everything else stays in
    float32: affine maps, mixtures, 1x1 convolutions and their determinants, normalization and its statistics, the base,
    the sums of log-determinants, and the result. As always with autocast, ``backward()`` belongs outside. A network
    sees the same in both directions, so that a coupling is inverted to the accuracy of float32; along a whole flow a
    value that is off in its last digit may, rarely, be rounded to another bfloat16. A network of your own, or a
    bijection with a matrix product, runs as autocast has it. ``flow.to(memory_format=torch.channels_last)`` makes the
    convolutional networks compute in that layout, whatever that of x is.

    Keys of the state: ``transforms.<i>.bijection.<...>`` for the i-th transform of a list from a builder, whose items
    are inverses, counted from the latent side.

    Args:
        base: a Module that returns a distribution when called with a context or None, and has an ``event_shape``;
            :class:`StandardNormal`, say.
        transforms: latent -> data, as the builders return them; torch and Pyro transforms may be among them.

    Raises:
        ValueError: if the base is not such a Module, or its events do not fit the transforms.
    """

    def __init__(self, base: nn.Module, transforms: Iterable[Transform]) -> None:
        super().__init__()
        if not isinstance(base, nn.Module) or not hasattr(base, "event_shape"):
            raise ValueError(
                f"Flow needs a base Module that returns a distribution, such as StandardNormal(event_shape), "
                f"but got {type(base).__name__}."
            )
        self.base = base
        self.transforms = Chain(transforms, base.event_shape)  # type: ignore[arg-type]
        self.event_shape = self.transforms.output_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x | context) in nats, of shape (\\*batch), for x (\\*batch, \\*event_shape).

        Raises:
            ValueError: if x or the context has the wrong shape or type, and, with validation on, outside of compiled
                code, if x lies outside the support: NaN, infinite, or not in the unit cube, say.
        """
        x, transforms = lifted(x), self._given(context)
        transforms.check(x, self.event_shape)
        if Distribution._validate_args and not torch.compiler.is_compiling():
            self._refuse_outside_support(x)
        # In one pass, so that it compiles as one graph; the same as distribution(context).log_prob(x).
        z, log_det = transforms.inverse_and_log_det(x)
        base = self.base if isinstance(self.base, StandardNormal) else self.base(context)
        return base.log_prob(z) + log_det

    def _given(self, context: Tensor | None) -> Bijection:
        if context is None:
            return self.transforms
        # Where only the base depends on the context, the transforms do not see it.
        of_base_alone = self.transforms.context_shape is None and getattr(self.base, "context_shape", None) is not None
        return self.transforms if of_base_alone else self.transforms.condition(context)

    def _refuse_outside_support(self, x: Tensor) -> None:
        constraint = self.transforms.codomain
        while isinstance(constraint, constraints.independent):
            constraint = constraint.base_constraint  # elementwise, which works for an empty batch too
        if constraint is finite and math.isfinite(x.detach().sum()):  # a sum is not, if a term is not
            return
        inside = constraint.check(x)
        if not inside.all():
            raise ValueError(
                f"Flow has no density outside of its support {constraint}, but got {x[~inside].flatten()[0].item()}."
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any Module, except that a state of another architecture changes nothing before the error."""
        own = self.state_dict()
        fits = own.keys() == state_dict.keys() and all(own[key].shape == state_dict[key].shape for key in own)
        before = None if fits else {key: value.clone() for key, value in own.items()}
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError:
            if before is not None:
                super().load_state_dict(before)
            raise

    def distribution(self, context: Tensor | None = None) -> dist.TransformedDistribution:
        """The Pyro distribution of x, of event shape ``event_shape``, with the batch shape of the context."""
        return dist.TransformedDistribution(self.base(context), [self._given(context)])

    def condition(self, context: Tensor) -> dist.TransformedDistribution:
        """The same, under the name by which Pyro's conditional distributions are known."""
        return self.distribution(context)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> Tensor:
        """Samples of shape (\\*sample_shape, \\*context batch, \\*event_shape), without gradients.

        With a temperature T the latents are drawn as mean + T (z - mean), at every level of a multi-scale flow. This is
        the density p(x)^(1/T^2), normalised, if the base is Gaussian and the log-determinant constant (NICE, Glow with
        additive couplings); elsewhere it is a heuristic. Kingma & Dhariwal (2018), section 6. With a truncation t every
        latent is drawn from the base within t standard deviations of its mean, which is exact for the base and a
        heuristic for x: it leaves out what is rare in the latent space.

        Raises:
            ValueError: if the temperature is negative, or the truncation not positive.
        """
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, but got {temperature}.")
        if truncation is not None and truncation <= 0:
            raise ValueError(f"truncation must be positive, but got {truncation}.")
        # The batch of a context comes in through the distribution; without one, making it would take longer than z.
        base = self.base(None) if context is None else self.distribution(context).base_dist
        z = base.sample(Size(sample_shape))
        if truncation is not None:
            each = base.base_dist  # of independent elements
            low, high = (each.cdf(each.mean + sign * truncation * each.stddev) for sign in (-1, 1))
            z = each.icdf(low + (high - low) * torch.rand_like(z))
        if temperature != 1.0:
            z = base.mean + temperature * (z - base.mean)
        return self._given(context).forward_and_log_det(z)[0]  # not through the distribution, which would remember it

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialises every ActNorm, in networks too, that is not yet so, from a batch of data; in any mode."""
        transforms = self._given(context)
        transforms.check(x, self.event_shape)
        norms = [module for module in self.modules() if isinstance(module, ChannelNorm)]
        modes = [norm.training for norm in norms]
        try:
            for norm in norms:
                norm.train()
            transforms.inverse_and_log_det(x)
        finally:
            for norm, mode in zip(norms, modes, strict=True):
                norm.train(mode)
