"""A base with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from .._runtime.checks import number
from .._runtime.construction import recorded
from .base import Events, LinearInContext

_FLOOR = 0.5  # of the degrees of freedom
_GAIN = 10.0  # by which they answer to their parameter
_SERIES = 30.0  # degrees of freedom from which on a series is closer than a difference of two lgamma


@recorded
class StudentTBase(LinearInContext):
    """Independent Student-t variables with learned degrees of freedom of every element, given a context if any.

        log p(z) = sum_i -(nu_i + 1)/2 log(1 + z_i^2 / nu_i) + log Gamma((nu_i + 1)/2) - log Gamma(nu_i / 2)
                   - 1/2 log(pi nu_i),
        nu = 0.5 + 10 softplus(10 (raw_0 + A context))

    A map that grows at most linearly, as couplings with bounded scales do, makes no heavy tail of a Gaussian one: the
    tails of such a flow are those of its base, which here are learned, element by element. Jaini, Kobyzev, Yu, Brubaker
    (2020), Tails of Lipschitz triangular flows; Laszkiewicz, Lederer, Fischer (2022), Marginal tail-adaptive
    normalizing flows.

    The floor of 0.5, at which the tails are heavier than those of a Cauchy variable (nu = 1), keeps draws and gradients
    finite in single precision. Because of the factors 10, a step of Adam, which moves raw by the learning rate, moves
    the logarithm of a small nu by up to ten times as much. From the start at nu = 10, with a centre close to that of
    N(0, 1), heavy tails are found in some hundred steps at a learning rate of 0.01, and thin ones are no worse by more
    than a few thousandths of a nat. The density is that of the formula, up to rounding, for |z| up to 1e38, and draws
    by ``rsample`` have gradients for nu.

    A network with bounded activations, ``partial(MLP, activation=nn.Tanh)`` say, leaves the tails of the coordinates
    independent, where one that grows linearly drags a coordinate along with far values of another. Data with heavy
    tails have a large or infinite standard deviation, which the default ``noise`` of ``fit`` follows: give it a number.

    Flow.sample multiplies the draws by a temperature, as 0 is their centre whether they have a mean or not; it takes no
    truncation, since for nu <= 2 there is no standard deviation.

    Args:
        event_shape: of one event, or its length.
        df: the degrees of freedom nu at the start, above 0.5.
        context_shape: length of the context vector; None for none.
        context_dim: length of the context vector, instead.

    Raises:
        ValueError: if ``df`` is not above 0.5 and finite.

    Example:
        >>> far = torch.tensor([10.0])
        >>> round(StandardNormal(1)().log_prob(far).item(), 2)
        -50.92
        >>> round(StudentTBase(1, df=2.0)().log_prob(far).item(), 2)
        -6.94
    """

    is_even = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        df: float = 10.0,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape, context_shape, context_dim, per_element=1)
        above = (number("df", df) - _FLOOR) / _GAIN
        if not 0 < above < torch.finfo(torch.float32).max:
            raise ValueError(f"df of StudentTBase must be finite and above {_FLOOR}, but got {df}.")
        raw = (above + math.log(-math.expm1(-above))) / _GAIN  # the inverse of softplus
        self.raw_df = nn.Parameter(torch.full(self.event_shape, raw))

    def df(self, context: Tensor | None = None) -> Tensor:
        """Computes the degrees of freedom nu, of shape (\\*batch of the context, \\*event_shape)."""
        raw, change = self.raw_df, self._of_context(context)
        if change is not None:
            raw = raw + change.unflatten(-1, (1, *self.event_shape)).squeeze(change.dim() - 1)
        return _FLOOR + _GAIN * softplus(_GAIN * raw)

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        return Events(_StudentT(self.df(context)), len(self.event_shape))

    def draw(
        self, distribution: Any, sample_shape: Size, *, temperature: float = 1.0, truncation: float | None = None
    ) -> Tensor:
        if truncation is not None:
            raise ValueError(
                f"StudentTBase has no standard deviation to truncate at, but got truncation={truncation}; a "
                f"temperature below 1 draws closer to the centre."
            )
        return temperature * distribution.sample(sample_shape)


class _StudentT(dist.TorchDistribution):
    """Standard Student-t variables whose density and draws neither overflow nor cancel in single precision."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"df": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, df: Tensor) -> None:
        self.df = df
        super().__init__(df.shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _StudentT:
        return _StudentT(self.df.expand(Size(batch_shape)))

    @property
    def mean(self) -> Tensor:
        return torch.where(self.df > 1, 0.0, math.nan).to(self.df)

    @property
    def variance(self) -> Tensor:
        finite = torch.where(self.df > 2, self.df / (self.df - 2), math.inf)
        return torch.where(self.df > 1, finite, math.nan)

    def log_prob(self, value: Tensor) -> Tensor:
        return _log_normalizer(self.df) - 0.5 * (self.df + 1) * _log1p_square(value * self.df.rsqrt())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        # z = n sqrt(a / g), g ~ Gamma(a), a = df/2, by logarithms: for a small g neither 1/g nor its gradient
        # overflows. g is g' u^(1/a), with g' ~ Gamma(a + 1) and u uniform, whose logarithm is that of no rounded zero.
        a = 0.5 * self.df.expand(Size(sample_shape) + self.df.shape)
        larger = dist.Gamma(a + 1, torch.ones_like(a), validate_args=False).rsample()
        minus_log_u = torch.empty_like(a).exponential_()
        return torch.randn_like(a) * (0.5 * (a.log() - larger.log() + minus_log_u / a)).exp()


def _log1p_square(t: Tensor) -> Tensor:
    """Computes log(1 + t^2) without the square of a large number."""
    larger = t.abs().clamp(min=1)
    return 2 * larger.log() + (t / larger / larger).square().log1p()


def _log_normalizer(df: Tensor) -> Tensor:
    """Computes log Gamma((nu + 1)/2) - log Gamma(nu/2) - 1/2 log(pi nu).

    For large nu by the asymptotic series -1/2 log(2 pi) - 1/(4 nu) + 1/(24 nu^3) - 1/(20 nu^5) + 17/(112 nu^7).
    """
    is_small, border = df < _SERIES, df.new_tensor(_SERIES)
    small, large = torch.where(is_small, df, border), torch.where(is_small, border, df)
    difference = (0.5 * (small + 1)).lgamma() - (0.5 * small).lgamma() - 0.5 * (math.pi * small).log()
    x = 1 / large
    y = x * x
    series = -0.5 * math.log(2 * math.pi) - x * (1 / 4 - y * (1 / 24 - y * (1 / 20 - y * (17 / 112))))
    return torch.where(is_small, difference, series)
