"""Training of a guide in one call."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.optim import ClippedAdam
from torch import Tensor

from .._runtime.arguments import shown
from .._runtime.checks import at_least
from ..bases.mixture import MixtureBase
from ..training.loop import progress_bar
from .finite import FiniteELBO
from .guide import AutoRealNVP
from .guide_report import GuideReport, missed_places, shifts
from .importance import importance_sample
from .many_draws import explained
from .modes import place_components, rebalance
from .sites import joint_density

_WINDOW = 500  # steps, of which two are compared
_GAIN = 0.002  # nats: less is no rise
_CHECKS = 3  # in a row, every 100 steps, that see no rise
_EMA = 0.99  # of the parameters
_DECAY = 0.999  # of the learning rate, in a step
_MOST = 256  # latents, up to which other modes are searched for
_DRAWS = 250  # which the spread of k-hat takes
_ANNEALED = 0.7  # share of the steps in which the temperature falls


def fit_guide(
    model: Callable[..., Any],
    guide: AutoGuide,
    *args: Any,
    steps: int = 5000,
    particles: int = 32,
    learning_rate: float = 5e-3,
    annealing: float | None = None,
    draws: int = 10_000,
    vectorize: bool = True,
    progress: bool = True,
    callback: Callable[[int, float], bool | None] | None = None,
    **kwargs: Any,
) -> GuideReport:
    """Trains a guide by SVI until its ELBO no longer rises, and reports how far it can be trusted.

        guide = AutoRealNVP(model)
        report = fit_guide(model, guide, data)
        print(report)                           # ELBO, Pareto k-hat, effective draws, the worst sites, warnings
        report.samples.resample(1000)           # draws that the importance weights have corrected

    Steps are those of ``ClippedAdam`` on ``Trace_ELBO(particles, vectorize_particles=True)``, with a learning rate that
    falls by 0.1 % a step, but stays while the model is annealed; those that are not finite are left out
    (:class:`FiniteELBO`). The training ends when the mean ELBO of the last 500 steps is not above that of the 500
    before by more than twice its standard error, or 0.002 nats, at three looks in a row, one every 100 steps. Then the
    guide has its last parameters or their moving average, whichever has the higher ELBO.

    For a posterior with several modes, give the guide a wide start and a mixture as base:

        guide = AutoRealNVP(model, base=partial(MixtureBase, components=4), init_scale=4.0)

    Before the training of a guide that has seen no model yet, its components are put on the modes that are found by
    climbing from wide draws, and after every training they get the shares that importance weights see in them
    (:mod:`pyro_realnvp.inference.modes`).

    Args:
        model: a Pyro model.
        guide: for it, an :class:`AutoRealNVP` or another automatic guide of Pyro.
        args, kwargs: what both are called with; a keyword of the model that is an argument here, such as ``steps``,
            must be bound to the model before.
        steps: the most that are taken.
        particles: draws a step.
        learning_rate: at the start.
        annealing: beta_0 in (0, 1): the model is p(x, data)^beta, where beta rises from it to 1 by one factor in every
            step of the first 70 %, so that a guide with a wide start, ``init_scale``, finds several modes before they
            part. None for beta = 1.
        draws: fresh draws for the report, at least 250.
        vectorize: whether the draws are made at once, for which the model declares its batch dimensions by plates and
            indexes latent sites from the right: ``a[..., group]``.
        progress: whether a progress bar is shown.
        callback: called with the step and the loss after every step; True ends the training.

    Raises:
        ValueError: if an argument is out of its range, or the guide has no counterpart for a site of the model.
        FloatingPointError: if three steps in a row are not finite.

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)
        >>> y = torch.tensor(3.0)
        >>> report = fit_guide(model, AutoRealNVP(model), y, steps=20, draws=1000, progress=False)
        >>> evidence = dist.Normal(0.0, 3**0.5).log_prob(y).item()  # known here
        >>> abs(report.log_evidence - evidence) < 0.1
        True
    """
    at_least("steps", steps), at_least("particles", particles), at_least("draws", draws, _DRAWS)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, but got {learning_rate}.")
    if annealing is not None and not 0 < annealing < 1:
        raise ValueError(f"annealing must be between 0 and 1, but got {annealing}.")
    if not isinstance(guide, AutoGuide):
        raise ValueError(f"fit_guide needs an automatic guide, such as AutoRealNVP(model), but got {shown(guide)}.")
    start = time.perf_counter()
    fresh = isinstance(guide, AutoRealNVP) and guide.prototype_trace is None
    with poutine.block():
        guide(*args, **kwargs)  # makes its parameters
    continuous: Any = guide
    mixture = _mixture(guide) if vectorize else None
    if mixture is not None and fresh:
        place_components(mixture, continuous.get_transform(), joint_density(continuous, args, kwargs))
    bound = FiniteELBO(Trace_ELBO(particles, vectorize_particles=vectorize))
    tempered = _Tempered(model, annealing, int(_ANNEALED * steps) if annealing else 0)
    svi = SVI(tempered, guide, ClippedAdam({"lr": learning_rate}), bound)
    parameters = [each.detach() for each in guide.parameters()]  # in the same memory
    average = [each.clone() for each in parameters]
    losses: list[float] = []
    converged = False
    with warnings.catch_warnings(), progress_bar(steps, shown=progress) as bar:
        warnings.filterwarnings("ignore", "Encountered NaN: loss")  # of a step that is left out, and reported
        for step in range(steps):
            tempered.step = step
            with explained("fit_guide(..., vectorize=False), which takes much longer", many=vectorize):
                losses.append(svi.step(*args, **kwargs))
            for optimizer in svi.optim.optim_objs.values():
                optimizer.param_groups[0]["lr"] = learning_rate * _DECAY ** max(0, step + 1 - tempered.steps)
            torch._foreach_lerp_(average, parameters, 1 - _EMA)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix_str(f"ELBO {-_mean(losses[-50:]):.3f}", refresh=False)
            converged = _has_converged(losses, tempered.steps)
            if converged or (callback is not None and callback(step, losses[-1])):
                break
    seconds = time.perf_counter() - start
    _take_better(model, guide, average, args, kwargs, draws=min(draws, 2000), vectorize=vectorize)
    if mixture is not None:
        transform, density = continuous.get_transform(), joint_density(continuous, args, kwargs)
        with torch.no_grad():
            z = mixture().sample((draws,))
            x = transform(z)
            log_q = mixture().log_prob(z) - transform.log_abs_det_jacobian(z, x)
            rebalance(mixture, z, density(x) - log_q)
    return _report(
        model,
        guide,
        args,
        kwargs,
        draws=draws,
        vectorize=vectorize,
        losses=losses,
        skipped=bound.skipped,
        converged=converged,
        seconds=seconds,
    )


class _Tempered:
    """A model to the power of beta, which rises from ``start`` to 1 by one factor a step."""

    def __init__(self, model: Callable[..., Any], start: float | None, steps: int) -> None:
        self.model, self.start, self.steps, self.step = model, start, steps, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.start is None or self.step >= self.steps:
            return self.model(*args, **kwargs)
        with poutine.scale(scale=self.start ** (1 - self.step / self.steps)):
            return self.model(*args, **kwargs)


def _mixture(guide: AutoGuide) -> MixtureBase | None:
    """Returns the base of a guide, if it is a mixture."""
    base = guide._modules.get("base") if isinstance(guide, AutoRealNVP) else None
    return base if isinstance(base, MixtureBase) else None


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / max(1, len(finite))


def _has_converged(losses: list[float], hot: int) -> bool:
    """Returns whether the last looks, one every hundred steps after the first ``hot`` ones, saw no rise."""
    looks = [len(losses) - 100 * back for back in range(_CHECKS)]
    if (len(losses) - hot) % 100 or looks[-1] < hot + 2 * _WINDOW:
        return False
    return not any(_rises(losses[:end]) for end in looks)


def _rises(losses: list[float]) -> bool:
    """Returns whether the loss of the last window is lower than that of the one before by more than its noise."""
    recent = torch.tensor(losses[-2 * _WINDOW :], dtype=torch.float64)
    earlier, later = (part[part.isfinite()] for part in recent.split(_WINDOW))
    # A single draw far out is a thousand nats: what lies beyond 5 quartile ranges counts as much as what lies there.
    quartiles = recent[recent.isfinite()].quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    reach = 5 * (quartiles[1] - quartiles[0])
    low, high = float(quartiles[0] - reach), float(quartiles[1] + reach)
    earlier, later = earlier.clamp(low, high), later.clamp(low, high)
    noise = (earlier.var() / len(earlier) + later.var() / len(later)).sqrt()
    return bool(earlier.mean() - later.mean() > max(2 * float(noise), _GAIN))


def _take_better(
    model: Callable[..., Any],
    guide: AutoGuide,
    average: list[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    draws: int,
    vectorize: bool,
) -> None:
    """Gives the guide the averaged parameters if their ELBO at the same random numbers is higher."""
    parameters = list(guide.parameters())
    last = [each.detach().clone() for each in parameters]
    seed = int(torch.randint(2**31, ()))
    elbos = []
    for values in (average, last):
        _set(parameters, values)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            bound = Trace_ELBO(draws if vectorize else 100, vectorize_particles=vectorize)
            elbos.append(-bound.loss(model, guide, *args, **kwargs))
    if elbos[0] > elbos[1]:
        _set(parameters, average)


@torch.no_grad()
def _set(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _report(
    model: Callable[..., Any],
    guide: AutoGuide,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    draws: int,
    vectorize: bool,
    **training: Any,
) -> GuideReport:
    samples = importance_sample(
        model, guide, *args, num_samples=draws, parallel=vectorize, batch_size=min(draws, 1000), **kwargs
    )
    log_weights = samples.log_weights.double()
    missed: tuple[Tensor | None, Tensor | None] = (None, None)
    if vectorize and isinstance(guide, AutoContinuous) and guide.latent_dim <= _MOST:
        missed = missed_places(guide, samples.log_evidence, args, kwargs)
    return GuideReport(
        elbo=float(log_weights.mean()),
        elbo_error=float(log_weights.std()) / math.sqrt(draws),
        log_evidence=samples.log_evidence,
        pareto_k=samples.pareto_k,
        pareto_k_spread=samples.pareto_k_spread,
        ess=samples.effective_sample_size / draws,
        shifts=shifts(samples),
        missed=missed[0],
        missed_excess=missed[1],
        steps=len(training["losses"]),
        samples=samples,
        **training,
    )
