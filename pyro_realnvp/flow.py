"""A flow as one Module: a base distribution and the transforms after it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from ._runtime.autocast import upcast
from ._runtime.checks import check_context, check_floating, draws, number, positive, values_are_known
from ._runtime.construction import recorded
from .bases import Base
from .bases.base import draw_about_the_mean
from .bijections.bijection import Bijection
from .bijections.chain import Chain
from .bijections.support import Box, box, finite
from .description import load_state
from .networks.channel_norm import ChannelNorm
from .summary import outline, summary

_BASE = "a base Module that returns a distribution, such as StandardNormal(event_shape)"


@recorded
class Flow(nn.Module):
    """A density p(x | context) = p_base(z) |det dz/dx|: one Module that owns the base and the transforms.

    ``flow(x)`` is log p(x), for ``DistributedDataParallel``, ``torch.compile`` and anything else that goes through
    ``Module.__call__``, and so is ``flow.log_prob(x)``; :meth:`distribution` returns the Pyro distribution, for
    ``pyro.sample``.

    Only ``train()`` and ``eval()`` differ between training by maximum likelihood and everything else: call ``eval()``
    on a flow that serves as a prior, in ``Predictive`` or for scoring, since batch normalization and dropout make the
    density of an event depend on the batch or on chance in training mode. A vector flow as it is built has neither, so
    that as a guide or a prior it may stay in training mode.

    Under ``torch.autocast(device, dtype=torch.bfloat16)`` the networks run in bfloat16, and everything else stays in
    float32: affine maps, mixtures, 1x1 convolutions and their determinants, normalization and its statistics, the base,
    the sums of log-determinants, and the result. As always with autocast, ``backward()`` belongs outside. A network
    reads equal values in both directions, so that a coupling is inverted to the accuracy of float32; along a whole flow
    a value that is off in its last digit may, rarely, be rounded to another bfloat16. A network of your own, or a
    bijection with a matrix product, runs as autocast decides. ``flow.to(memory_format=torch.channels_last)`` makes the
    convolutional networks compute in that layout, whatever that of x is.

    ``print(flow)`` shows the number of parameters and a line a layer, in which a pattern that repeats in a deep flow
    stands once. :meth:`summary` lists every layer, and ``print(flow.transforms)`` the whole tree of Modules.

    Keys of the state: ``transforms.<i>.bijection.<...>`` for the i-th transform of a list from a builder, whose items
    are inverses, counted from the latent side.

    Args:
        base: a Module that returns a distribution when called with a context or None, and has an ``event_shape``;
            :class:`~pyro_realnvp.StandardNormal`, say.
        transforms: latent -> data, as the builders return them; torch and Pyro transforms may be among them.

    Raises:
        ValueError: if the base is not such a Module, or its events do not fit the transforms: by their shape, or as
            some of their coordinates are angles, say, in one and real numbers in the other.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2))
        >>> x = flow.sample((5,))
        >>> torch.allclose(flow(x), flow.distribution().log_prob(x))
        True
        >>> pyro.sample("x", flow.distribution()).shape  # as a prior
        torch.Size([2])
    """

    def __init__(self, base: Annotated[nn.Module, _BASE], transforms: Iterable[Transform]) -> None:
        super().__init__()
        if not hasattr(base, "event_shape"):
            raise ValueError(f"Flow needs {_BASE}, but got {type(base).__name__}, which has no event_shape.")
        self.base = base
        self.transforms = Chain(transforms, base.event_shape)  # type: ignore[arg-type]
        self.event_shape = self.transforms.output_shape
        self._check_base()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes log p(x | context) in nats, of shape (\\*batch), for x (\\*batch, \\*event_shape).

        Raises:
            ValueError: if x or the context has the wrong shape or type, and, with validation on, outside of compiled
                code, if x lies outside the support: NaN, infinite, or not in the unit cube, say.
        """
        check_floating("Flow", "events", x)
        x, transforms = upcast(x), self._conditioned(context)
        transforms._check(x, self.event_shape)
        if Distribution._validate_args and values_are_known(x):
            self._check_support(x)
        # In one pass, so that it compiles as one graph; equal to distribution(context).log_prob(x).
        z, log_det = transforms.inverse_and_log_det(x)
        base_log_prob = (
            self.base.log_prob(z, context) if isinstance(self.base, Base) else self.base(context).log_prob(z)
        )
        return base_log_prob + log_det

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes log p(x | context) in nats, as calling the flow does."""
        return self(x, context)

    def _check_base(self) -> None:
        """Raises a ValueError if the transforms start from angles or intervals, and a base of the package does not."""
        domain = self.transforms.domain
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        if isinstance(domain, Box) and isinstance(self.base, Base) and not domain.low.is_meta:
            bounds = box(self.base.coordinates, len(self.transforms.event_shape))
            if bounds is None or bounds != domain:
                raise ValueError(
                    f"Flow needs a base on the domain of its transforms, {domain}, but {type(self.base).__name__} is "
                    f"on {bounds or 'the real line'}; MixedBase takes the same circular and intervals as "
                    f"spline_transforms."
                )

    def _conditioned(self, context: Tensor | None) -> Bijection:
        if context is None:
            return self.transforms
        if self.transforms.is_conditional:
            return self.transforms.condition(context)  # which checks the context
        check_context("Flow", context)
        if getattr(self.base, "context_shape", None) is None:
            raise ValueError(
                f"Flow was built without a context, but got one of shape {tuple(context.shape)}; pass context_shape "
                f"when building its transforms."
            )
        return self.transforms

    def _check_support(self, x: Tensor) -> None:
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
        """Loads a state as any Module does, but all or nothing: before an error nothing has changed.

        Neither the values nor, with ``assign``, the Parameters themselves, which an optimizer may hold.
        """
        return load_state(self, super().load_state_dict, state_dict, strict=strict, assign=assign)

    def distribution(self, context: Tensor | None = None) -> dist.TransformedDistribution:
        """Returns the Pyro distribution of x, of event shape ``event_shape``, with the batch shape of the context."""
        return dist.TransformedDistribution(self.base(context), [self._conditioned(context)])

    def condition(self, context: Tensor) -> dist.TransformedDistribution:
        """Returns ``distribution(context)``, under the name that Pyro's conditional distributions use."""
        return self.distribution(context)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> Tensor:
        """Draws samples of shape (\\*sample_shape, \\*context batch, \\*event_shape), without gradients.

        With a temperature T the latents are drawn as mean + T (z - mean), at every level of a multi-scale flow. This is
        the density p(x)^(1/T^2), normalised, if the base is Gaussian and the log-determinant constant (NICE, Glow with
        additive couplings); elsewhere it is a heuristic. Kingma & Dhariwal (2018), section 6. With a truncation t every
        latent is drawn from the base within t standard deviations of its mean, which is exact for the base and a
        heuristic for x.

        Raises:
            ValueError: if the temperature is negative, the truncation not positive, or either is given for a base with
                angles or intervals.
        """
        temperature = number("temperature", temperature)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, but got {temperature}.")
        if truncation is not None:
            truncation = positive("truncation", truncation)
        # The batch of a context comes in through the distribution; without one, making it would take longer than z.
        base = self.base(None) if context is None else self.distribution(context).base_dist
        draw = self.base.draw if isinstance(self.base, Base) else draw_about_the_mean
        z = draw(base, draws("sample_shape", sample_shape), temperature=temperature, truncation=truncation)
        return self._conditioned(context).forward_and_log_det(z)[0]  # the distribution would remember it

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialises, in any mode, every ActNorm that has seen no data yet, in networks too, from a batch.

        Layers data -> latent see x; layers latent -> data, as in the dequantizer of Flow++, see draws of the base.
        """
        transforms = self._conditioned(context)
        transforms._check(x, self.event_shape)
        norms = [module for module in self.modules() if isinstance(module, ChannelNorm)]
        modes = [norm.training for norm in norms]
        try:
            for norm in norms:
                norm.train()
            z, _ = transforms.inverse_and_log_det(x)
            if not all(norm.is_fixed for norm in norms):
                batch = z.shape[: z.dim() - len(self.transforms.event_shape)]
                transforms.forward_and_log_det(self.base(context).expand(batch).sample())
        finally:
            for norm, mode in zip(norms, modes, strict=True):
                norm.train(mode)

    def summary(self) -> str:
        """Returns a table of the layers from the data to the latent side: name, event shape, trainable parameters.

        A flow that is built under ``torch.device("meta")`` takes no memory, so that any size can be described.
        """
        return summary(self.transforms, self.base)

    def __repr__(self) -> str:
        return outline(self)
