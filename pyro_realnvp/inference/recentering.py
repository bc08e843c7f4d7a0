"""Centred or not, site by site: hierarchies whose latents depend on a location and a scale that are latent too."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.inspect import get_dependencies
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import Independent, TransformedDistribution, constraints

from .guide import AutoRealNVP
from .sites import log_joint, median_or_feasible

_DRAWS = 200
_CHOICES = (0.0, 0.5, 1.0)


@final
class Recentered:
    """Non-centres those latents of a model whose location or scale is latent too, where that helps.

    A site theta ~ F(loc, scale) of a location-scale family becomes, with centredness c in [0, 1],

        theta_decentered ~ F(c loc, scale^c),   theta = loc + scale^(1 - c) (theta_decentered - c loc)

    With c = 1, centred, it is as it was: good where the data say much about every theta. With c = 0, non-centred, its
    prior depends on nothing: good where they say little, and theta and its scale are a funnel, whose neck no guide
    visits. Papaspiliopoulos, Roberts, Sköld (2007); for probabilistic programs Gorinova, Moore, Hoffman (2020).

        model = Recentered(model)
        guide = AutoRealNVP(model)

    The first call takes for each such site, in their order, the c of 0, 1/2 and 1 with the highest ELBO of the Gaussian
    at which :class:`AutoRealNVP` starts, and goes over them again until no change is better. Each trial is a search and
    200 runs of the model: three trials for one site, about four times as many as there are sites for several. The
    choice takes no random numbers of the caller, and depends on the arguments of the first call alone.

    ``theta`` is a deterministic site now: :func:`importance_sample` and ``Predictive(model, guide=guide, ...)`` return
    it, and ``guide.sample_posterior`` has the latent, ``theta_decentered``. A LogNormal site and the like is a
    transform of ``theta_base``, and that one is non-centred. To condition on ``theta``, condition the model inside.

    Args:
        model: a Pyro model. Sites whose distribution depends on no latent, or is of no such family, stay as they are.
        centered: c by the name of the site; sites that are not named are centred. By default it is found by the first
            call, which :class:`AutoRealNVP` must be able to see: all latents are continuous.

    Raises:
        ValueError: if a c is outside of [0, 1]; on the first call, if ``centered`` names a site that is no latent of a
            location-scale family.

    Example:
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("theta", dist.Normal(0.0, scale))
        >>> trace = pyro.poutine.trace(Recentered(model, {"theta": 0.0})).get_trace()
        >>> trace.stochastic_nodes
        ['scale', 'theta_decentered']
        >>> theta, scale, decentered = (trace.nodes[name]["value"] for name in ("theta", "scale", "theta_decentered"))
        >>> torch.allclose(theta, scale * decentered)
        True
    """

    def __init__(self, model: Callable[..., Any], centered: Mapping[str, float] | None = None) -> None:
        for name, value in (centered or {}).items():
            if not 0 <= value <= 1:
                raise ValueError(f"The centredness of {name!r} must be between 0 and 1, but is {value}.")
        self.model = model
        self._centered = None if centered is None else dict(centered)
        self._config: dict[str, Reparam] | None = None

    @property
    def centered(self) -> dict[str, float]:
        """c by the name of the site, as it was given or as the first call has found it."""
        if self._centered is None:
            raise ValueError("The centredness is not known yet: call the model with its arguments.")
        return dict(self._centered)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model with its sites recentred."""
        if self._config is None:
            # Hidden from what handles this call: replays, traces, plates of particles.
            with poutine.block(), torch.random.fork_rng():
                torch.manual_seed(0)
                families = _families(self.model, args, kwargs)
                if self._centered is None:
                    self._centered = _found(self.model, families, args, kwargs)
            for name in self._centered:
                if name not in families:
                    raise ValueError(f"The model has no latent site {name!r} of a location-scale family.")
            self._config = _config(families, self._centered)
        return poutine.reparam(self.model, config=self._config)(*args, **kwargs)


def _families(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the latent sites of location-scale families, or of transforms of these, with their distribution."""
    trace = poutine.trace(InitMessenger(median_or_feasible)(model)).get_trace(*args, **kwargs)
    sites = {name: _unwrapped(site["fn"]) for name, site in prune_subsample_sites(trace).iter_stochastic_nodes()}
    return {name: fn for name, fn in sites.items() if _is_loc_scale(fn) or _is_loc_scale(_transformed(fn))}


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _transformed(fn: Any) -> Any:
    return _unwrapped(fn.base_dist) if isinstance(fn, TransformedDistribution) else None


def _is_loc_scale(fn: Any) -> bool:
    # Stable has a choice of coordinates beside its parameters, which LocScaleReparam would lose.
    if not isinstance(fn, torch.distributions.Distribution) or isinstance(fn, dist.Stable):
        return False
    return {"loc", "scale"} <= {*fn.arg_constraints} and fn.support is constraints.real


def _found(
    model: Callable[..., Any], families: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, float]:
    known: Any = get_dependencies(InitMessenger(median_or_feasible)(model), args, kwargs)
    names = [name for name in families if set(known["prior_dependencies"].get(name, ())) - {name}]
    best = dict.fromkeys(names, 1.0)
    if not names:
        return best
    highest, changed = _elbo(model, args, kwargs), True
    tried = [best]
    while changed:  # as one site's funnel hides what another one gains
        changed = False
        for name, value in itertools.product(names, _CHOICES):
            trial = {**best, name: value}
            if trial in tried:
                continue
            tried.append(trial)
            elbo = _elbo(poutine.reparam(model, config=_config(families, trial)), args, kwargs)
            if elbo > highest:
                best, highest, changed = trial, elbo, True
    return best


def _elbo(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Estimates the ELBO of the Gaussian at which a guide starts; -inf if it is not finite."""
    guide = AutoRealNVP(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the guide that is trained warns by itself
        guide.initialize(*args, **kwargs)
        posterior = guide.get_posterior()
        x = posterior.sample(torch.Size([_DRAWS]))
        log_p = torch.stack([log_joint(guide, row, args, kwargs) for row in x])
        value = float((log_p - posterior.log_prob(x)).mean())
    return value if math.isfinite(value) else -math.inf


def _config(families: Mapping[str, Any], centered: Mapping[str, float]) -> dict[str, Reparam]:
    config: dict[str, Reparam] = {}
    for name, value in centered.items():
        if _is_loc_scale(families[name]):
            config[name] = LocScaleReparam(float(value))
        elif value < 1:
            config |= {name: TransformReparam(), name + "_base": LocScaleReparam(float(value))}
    return config
