"""Densities with more elements than the data have: the further ones are integrated out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ._runtime.arguments import shown
from ._runtime.checks import check_floating
from .auxiliary import AuxiliaryBound, check_density
from .bijections.support import elementwise, events, finite


@runtime_checkable
class ConditionalNoise(Protocol):
    """A conditional distribution whose events have the same shape given any x: a Flow or a Base, say."""

    @property
    def event_shape(self) -> Sequence[int]: ...

    def condition(self, context: Tensor) -> Any: ...  # a distribution, of torch or of Pyro


class Augmented(AuxiliaryBound):
    """The distribution of x if (x, e) has a density with more elements, which the couplings of a flow can use.

        p(x) = integral over e of p(x, e)

    ``log_prob`` is a lower bound on log p(x) in nats: with e_1, ..., e_S from q(e | x),

        log 1/S sum_s p(x, e_s) / q(e_s | x),

    which in the mean grows with S to log p(x), and is exact for every S if q is p(e | x). Variational data
    augmentation: Chen, Lu, Chenli, Zhu, Tian (2020), VFlow; Huang, Dinh, Courville (2020), Augmented normalizing flows.
    Samples are exact: those of the density without e. Noise is drawn anew at every call.

    The events of the density are vectors (x, e), or images whose last channels are e; how many belong to e is told by
    the event shape of q. For N(0, I) as q, which a density of independent e starts from, give ``StandardNormal(k)``. A
    distribution registers no Modules; :class:`~pyro_realnvp.AugmentedFlow` owns the density and q, and makes this of
    them.

    Args:
        density: a distribution over events (D + k,) or (C + k, H, W). Its batch shape is that of this distribution.
        noise: q, of events (k,) or (k, H, W): conditioned on x, as a :class:`~pyro_realnvp.Flow` or
            :class:`~pyro_realnvp.Base` with a context of the shape of x, or a distribution that does not depend on x.
        num_samples: S.

    Raises:
        ValueError: if the two event shapes do not leave any element for x; from ``log_prob``, with validation on, if
            events have another shape.

    Example:
        >>> both = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        >>> x = torch.ones(10_000, 1)
        >>> one, ten = (Augmented(both, StandardNormal(1), num_samples=s).log_prob(x).mean() for s in (1, 10))
        >>> exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))
        >>> bool(one < ten < exact)
        True
    """

    def __init__(
        self,
        density: Distribution,
        noise: ConditionalNoise | Distribution,
        *,
        num_samples: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        check_density("Augmented", density)
        if not isinstance(noise, Distribution | ConditionalNoise):
            raise ValueError(
                f"Augmented needs a distribution, or a Flow or Base that can be conditioned, as noise, but got "
                f"{shown(noise)}."
            )
        self.noise = noise
        event_shape = shape_without_noise("Augmented", density.event_shape, Size(noise.event_shape))
        super().__init__(density, event_shape, num_samples, validate_args=validate_args)

        self.has_rsample = density.has_rsample

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        of_both: Any = self.density.support
        return events(elementwise(of_both) or finite, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Bounds from below, in expectation, the log-density of x (\\*batch, \\*event_shape)."""
        if self._validate_args:
            check_floating("Augmented", "events", value)
            shape = tuple(value.shape)
            if shape[max(0, len(shape) - len(self.event_shape)) :] != tuple(self.event_shape):
                raise ValueError(
                    f"Augmented expects events of shape {tuple(self.event_shape)}, but got a tensor of shape {shape}."
                )
        return self._bound(value)

    def _log_weight(self, x: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(x.shape[: x.dim() - len(self.event_shape)], self.batch_shape)
        x = x.expand(batch + self.event_shape)
        q = self.noise if isinstance(self.noise, Distribution) else self.noise.condition(x)
        q = q if q.batch_shape == batch else q.expand(batch)
        e = q.rsample()
        log_weight: Tensor = self.density.log_prob(torch.cat([x, e], _axis(self.event_shape))) - q.log_prob(e)
        return log_weight

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws x (\\*sample_shape, \\*batch_shape, \\*event_shape), exactly and without gradients."""
        with torch.no_grad():
            return without_noise(self.density.sample(Size(sample_shape)), self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws x (\\*sample_shape, \\*batch_shape, \\*event_shape), exactly, with gradients for the density."""
        return without_noise(self.density.rsample(Size(sample_shape)), self.event_shape)


def _axis(event_shape: Sequence[int]) -> int:
    """Returns the dimension that the noise extends: of a vector its elements, of an image its channels."""
    return -len(event_shape)


def without_noise(both: Tensor, event_shape: Size) -> Tensor:
    """Returns x of (x, e)."""
    return both.narrow(_axis(event_shape), 0, event_shape[0])


def shape_without_noise(name: str, both: Size, noise: Size) -> Size:
    """Returns the event shape of x; ``name`` is that of the class.

    Raises:
        ValueError: if the events are neither vectors nor images, or the noise is as large as they are, or an image of
            another size.
    """
    if len(both) not in (1, 3):
        raise ValueError(f"{name} needs a density over vectors or images, but got one over events of {tuple(both)}.")
    if len(noise) != len(both) or noise[1:] != both[1:] or not 0 < noise[0] < both[0]:
        raise ValueError(
            f"{name} needs noise that is a part of the events of the density, but they have the shape {tuple(both)} "
            f"and the noise {tuple(noise)}."
        )
    return Size((both[0] - noise[0], *both[1:]))
