"""Distributions whose density is an integral over an auxiliary variable, of which they compute a lower bound."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import torch
from pyro import distributions as dist
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ._runtime.arguments import shown
from ._runtime.checks import count_of


class Conditional(Protocol):
    """A conditional distribution in the sense of Pyro; a conditional :class:`~pyro_realnvp.Flow` is one."""

    def condition(self, context: Tensor) -> Distribution: ...


class AuxiliaryBound(dist.TorchDistribution):
    """A distribution of x that integrates a density over an auxiliary variable e, drawn from some q(e | x).

        log p(x) = log integral of w(x, e) q(e | x) de >= E log 1/S sum_s w(x, e_s),   e_1, ..., e_S from q(e | x)

    The bound grows with S to log p(x). Burda, Grosse, Salakhutdinov (2016), equation 8. A subclass writes
    :meth:`_log_weight`, ``log_prob``, ``sample`` and ``support``.

    Args:
        density: of what x and e make together; its batch shape is that of this distribution.
        event_shape: of x.
        num_samples: S.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, density: Distribution, event_shape: Size, num_samples: int, *, validate_args: bool | None = None
    ) -> None:
        self.density = density
        self.num_samples = count_of(f"num_samples of {type(self).__name__}", num_samples)
        super().__init__(density.batch_shape, event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        new = copy.copy(self)
        new.density = self.density.expand(Size(batch_shape))
        new._batch_shape = Size(batch_shape)
        return new

    @abstractmethod
    def _log_weight(self, x: Tensor) -> Tensor:
        """Draws e from q(e | x) and computes log w(x, e), (\\*batch), for x (\\*batch, \\*event_shape)."""

    def _bound(self, x: Tensor) -> Tensor:
        """Computes log 1/S sum_s w(x, e_s), (\\*batch), for x that broadcasts to (\\*batch, \\*event_shape)."""
        if self.num_samples == 1:
            return self._log_weight(x)
        batch = torch.broadcast_shapes(x.shape[: x.dim() - len(self.event_shape)], self.batch_shape)
        log_weights = self._log_weight(x.expand(self.num_samples, *batch, *self.event_shape))
        return log_weights.logsumexp(0) - math.log(self.num_samples)


def check_density(name: str, density: object) -> None:
    """Raises a ValueError unless what the class ``name`` is given as a density is a distribution."""
    if not isinstance(density, Distribution):
        raise ValueError(f"{name} needs a distribution as density, but got {shown(density)}.")


def dtype_of(density: Distribution) -> torch.dtype:
    """Returns the dtype of a density's own parameters, in which its events are computed."""
    while inner := getattr(density, "base_dist", None) or getattr(density, "density", None):
        density = inner
    parameters = (getattr(density, name, None) for name in density.arg_constraints)
    found = (value.dtype for value in parameters if isinstance(value, Tensor) and value.is_floating_point())
    return next(found, torch.get_default_dtype())
