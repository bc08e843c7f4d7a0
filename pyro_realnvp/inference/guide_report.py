"""How far a guide can be trusted: the report of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from .importance import ImportanceSamples
from .modes import climb, root_at_mode
from .pareto import pareto_k_threshold
from .sites import joint_density

_WIDER = (2.0, 5.0, 12.0)  # times the deviations of the guide, from which points climb
_EXCESS = 5.0  # nats
_SHARE = math.log(100)  # of the evidence, below which a place does not matter
_PLACES = 40  # that are looked at
_EQUAL = 0.01  # nats, to which weights are equal


@dataclass(frozen=True, eq=False)
class GuideReport:
    """Holds what is known of a guide after its training. Print it for a summary.

    Attributes:
        elbo, elbo_error: mean of the log-weights of fresh draws, in nats, and its standard error.
        log_evidence: log of the mean weight.
        pareto_k, pareto_k_spread: k-hat of these weights, and its standard error.
        ess: effective sample size of the weights, as a fraction of the draws.
        shifts: by site, by how many standard deviations importance weights move the mean of one of its elements at
            most; the largest first.
        missed: points of higher density than the guide knows of, found by climbing from wide draws, (K, D)
            unconstrained, one for each place; None where this could not be tried.
        missed_excess: log p(x, data) - log q(x) - log evidence at these, (K,), in nats; about 0 where a guide is right.
        steps, skipped: steps of the training, and how many of them were left out as they were not finite.
        converged: whether the ELBO had stopped rising.
        seconds: of the training.
        losses: -ELBO of every step.
        samples: the weighted draws.

    Example:
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> report = fit_guide(model, AutoRealNVP(model), steps=20, draws=1000, progress=False)
        >>> report.ess > 0.9, report.warnings
        (True, ['The ELBO was still rising after 20 steps: allow more.'])
    """

    elbo: float
    elbo_error: float
    log_evidence: float
    pareto_k: float
    pareto_k_spread: float
    ess: float
    shifts: Mapping[str, float]
    missed: Tensor | None
    missed_excess: Tensor | None
    steps: int
    skipped: int
    converged: bool
    seconds: float
    losses: Sequence[float] = field(repr=False)
    samples: ImportanceSamples = field(repr=False)

    @property
    def warnings(self) -> list[str]:
        """Sentences on what speaks against the guide; k-hat and the ESS see only where it draws."""
        found = []
        draws = len(self.samples.log_weights)
        threshold = pareto_k_threshold(draws)
        # Of weights that are all but equal, k-hat is the shape of a tail that holds nothing.
        if self.pareto_k > threshold and self.log_evidence - self.elbo > _EQUAL:
            found.append(
                f"Pareto k-hat is {self.pareto_k:.2f}, above {threshold:.2f}: {draws} draws cannot correct this guide."
            )
        name, shift = next(iter(self.shifts.items()), ("", 0.0))
        if shift > 0.1:
            found.append(f"Importance weights move the mean of {name!r} by {shift:.2f} standard deviations.")
        if self.missed_excess is not None and len(self.missed_excess):
            found.append(
                f"The posterior is up to e^{float(self.missed_excess.max()):.0f} times as dense as the guide in "
                f"{len(self.missed_excess)} place(s) where it hardly draws: there may be other modes. Give it a wide "
                f"init_scale, and base=partial(MixtureBase, components=...)."
            )
        if not self.converged:
            found.append(f"The ELBO was still rising after {self.steps} steps: allow more.")
        if self.skipped:
            found.append(f"{self.skipped} of {self.steps} steps were left out, as they were not finite.")
        return found

    def __str__(self) -> str:
        sites = ", ".join(f"{name} {shift:.2f}" for name, shift in list(self.shifts.items())[:3])
        lines = [
            f"ELBO {self.elbo:.3f} +- {self.elbo_error:.3f} nats, log evidence {self.log_evidence:.3f}",
            f"Pareto k-hat {self.pareto_k:.2f} +- {self.pareto_k_spread:.2f}, effective draws {100 * self.ess:.0f} %",
            f"largest shifts of a mean by the weights, in sd: {sites}",
            f"{self.steps} steps in {self.seconds:.1f} s",
            *self.warnings,
        ]
        return "\n".join(lines)


def shifts(samples: ImportanceSamples) -> dict[str, float]:
    """Computes by how many deviations weights move the mean of an element of every site; the largest first."""
    weights = (samples.log_weights.double() - samples.log_weights.double().logsumexp(0)).exp()
    found = {}
    for name, value in samples.samples.items():
        x = value.reshape(len(value), -1).double()
        spread = x.std(0).clamp(min=torch.finfo(x.dtype).tiny)
        found[name] = float(((weights @ x - x.mean(0)) / spread).abs().max()) if x.numel() else 0.0
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def missed_places(
    guide: AutoContinuous,
    log_evidence: float,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Climbs the posterior density from wide draws of the guide, and returns the places that it does not know.

    Points x, from the guide with 2, 5 and 12 times its deviations about its mean, follow the gradient of
    log p(x, data) by Adam in units of the deviations of the guide. Those where then log p - log q - log evidence is
    more than 5 nats are kept, one for each place, if it is a mode, and a Gaussian with the curvature there has a
    hundredth of the evidence or more: the density of a hierarchy has a spike without mass, where a scale is 0.

    Returns:
        x (K, D) and this difference (K,).

    Raises:
        RuntimeError, ValueError: if the model cannot be run on many draws at once.
    """
    posterior = guide.get_posterior(*args, **kwargs)
    density = joint_density(guide, args, kwargs)
    with torch.no_grad():
        draws = posterior.sample((2000,))
    x = climb(density, draws, _WIDER)
    with torch.no_grad():
        log_p = density(x)
        excess = log_p - posterior.log_prob(x) - log_evidence
    height = torch.where(excess.isfinite() & (excess > _EXCESS), log_p, -math.inf)
    reach = draws.std(0)
    kept: list[int] = []
    seen: list[int] = []
    for index in height.argsort(descending=True).tolist():  # those that are still on their way come last
        if height[index] == -math.inf:
            break
        if all(((x[index] - x[other]) / reach).abs().max() > 1 for other in seen):
            seen.append(index)
            root = root_at_mode(density, x[index], reach)
            if root is not None:
                log_mass = float(log_p[index]) + float((math.sqrt(2 * math.pi) * root.diagonal()).log().sum())
                if log_mass > log_evidence - _SHARE:
                    kept.append(index)
        if len(seen) == _PLACES:
            break
    return x[kept], excess[kept]
