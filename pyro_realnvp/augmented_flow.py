"""A flow with more elements than the data, as one Module."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._runtime.checks import check_floating
from ._runtime.construction import recorded
from .augmentation import Augmented, shape_without_noise, without_noise
from .bases import Base
from .description import load_state
from .flow import Flow
from .summary import count


@recorded
class AugmentedFlow(nn.Module):
    """A flow over data x and noise e: owns the density of both, and q(e | x).

    Calling it returns the bound on the log-density of x of :class:`~pyro_realnvp.Augmented`, so that
    :func:`~pyro_realnvp.fit`, :func:`~pyro_realnvp.save` and ``DistributedDataParallel`` take it. A coupling then
    transforms x given e as a whole, and what one layer can express is no longer bound to the number of elements of x.

    A context is that of the density. The noise is conditioned on x alone: with a context the bound still holds, but is
    less tight.

    ``print(model)`` shows a line a layer, as that of a :class:`~pyro_realnvp.Flow` does.

    Args:
        flow: a density over vectors (x, e), or images whose last channels are e.
        noise: q(e | x), with a context of the shape of x: a conditional Flow or, with a looser bound, a
            :class:`~pyro_realnvp.DiagonalNormal`; ``StandardNormal(k)`` for noise that does not depend on x.

    Raises:
        ValueError: if the events of the noise are no part of those of the flow.

    Example:
        >>> density = Flow(StandardNormal(4), realnvp_transforms(4))  # of two elements of x, and two of e
        >>> noise = Flow(StandardNormal(2), realnvp_transforms(2, couplings=4, context_shape=2))
        >>> model = AugmentedFlow(density, noise)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(model(x), StandardNormal(2)().log_prob(x), atol=1e-5)  # exact: x and e are independent
        True
    """

    def __init__(self, flow: Flow, noise: Flow | Base) -> None:
        super().__init__()
        self.event_shape = shape_without_noise("AugmentedFlow", flow.event_shape, noise.event_shape)
        self.flow, self.noise = flow, noise

    def distribution(self, context: Tensor | None = None, *, num_samples: int = 1) -> Augmented:
        """Returns the distribution of x, whose bound averages ``num_samples`` draws of the noise."""
        return Augmented(self.flow.distribution(context), self.noise, num_samples=num_samples)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the bound on log p(x | context) in nats, (\\*batch), for x (\\*batch, \\*event_shape)."""
        check_floating("AugmentedFlow", "events", x)
        return self.distribution(context).log_prob(x)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the bound on the log-density, as calling the Module does."""
        return self(x, context)

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> Tensor:
        """Draws x (\\*sample_shape, \\*context batch, \\*event_shape) exactly, with the settings of ``Flow.sample``."""
        both = self.flow.sample(sample_shape, context, temperature=temperature, truncation=truncation)
        return without_noise(both, self.event_shape)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialises every ActNorm that has seen no data yet, of the noise and then of the density, from a batch.

        Those of the noise that run from noise to latents see draws of N(0, I), as there are no data for them.
        """
        batch = x.shape[: x.dim() - len(self.event_shape)]
        e = x.new_empty(batch + self.noise.event_shape).normal_()
        if isinstance(self.noise, Flow):
            self.noise.initialize(e, x)
        q: Any = self.noise.condition(x)
        e = q.expand(batch).sample()
        self.flow.initialize(torch.cat([x, e], -len(self.event_shape)), context)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state all or nothing: before an error nothing has changed."""
        return load_state(self, super().load_state_dict, state_dict, strict=strict, assign=assign)

    def summary(self) -> str:
        """Returns a table of the layers of the density, and of those of the noise; see ``Flow.summary``."""
        noise = self.noise.summary() if isinstance(self.noise, Flow) else f"  {self.noise}"
        return f"flow:\n{self.flow.summary()}\nnoise:\n{noise}"

    def extra_repr(self) -> str:
        shape = getattr(self, "event_shape", None)  # also in the middle of __init__
        return f"events {None if shape is None else tuple(shape)}, {count(self):,} parameters"
