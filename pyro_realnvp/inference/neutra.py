"""Hamiltonian Monte Carlo in the space where a trained guide makes the posterior simple."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from .._runtime.batch_statistics import hold_statistics
from .._runtime.constants import constant_copy
from .sites import constrained

_LATENT = "_neutra_latent"


class NeuTra:
    """A model in the coordinates of a trained guide: neural transport, for HMC and NUTS.

    The guide's transform x = T(z) maps its base, usually N(0, I), to the unconstrained latents x of the model, and
    each y = b(x) to the support of its site. In place of the model's sites this one has a single latent vector z with

        log p(z) = log p(y, data) + log|det dy/dx| + log|det dx/dz|

    which is close to the base where the guide is close to the posterior, whatever the guide: NUTS moves in an easy
    geometry, and stays exact. Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan (2019).

    Chains, divergences, ``jit_compile`` and the rest are those of :class:`~pyro.infer.MCMC`, and any HMC or NUTS takes
    ``neutra`` as its model. :meth:`kernel` knows what a trained guide makes superfluous: its chains start at draws of
    the guide, and its warm-up has only the step size to find. The parameters of the guide are constants here: no
    gradient is computed for them, and nothing of the guide changes.

    Pyro's ``NeuTraReparam`` adds log|det dx/dz| to the density of the first site, element by element: if that site is
    in a plate of n elements it counts n times, and another distribution is sampled. Here it counts once.

    Args:
        model: the model that the guide was made for.
        guide: an ``AutoContinuous`` guide whose ``get_transform`` needs no arguments, after training.

    Raises:
        ValueError: if the guide is no such guide, or has not been called yet.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = AutoRealNVP(model)
        >>> report = fit_guide(model, guide, steps=10, draws=500, progress=False)
        >>> neutra = NeuTra(model, guide)
        >>> mcmc = pyro.infer.MCMC(neutra.kernel(), num_samples=10, warmup_steps=5, disable_progbar=True)
        >>> mcmc.run()
        >>> neutra.get_samples(mcmc)["x"].shape
        torch.Size([10, 2])
    """

    def __init__(self, model: Callable[..., Any], guide: AutoContinuous) -> None:
        name = type(guide).__name__
        if not isinstance(guide, AutoContinuous):
            raise ValueError(f"NeuTra needs an AutoContinuous guide, but got {name}.")
        if guide.prototype_trace is None:
            raise ValueError(f"NeuTra needs a trained guide, but got an {name} that was never called.")
        try:
            guide.get_base_dist(), guide.get_transform()
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"NeuTra needs a guide with a transform that takes no arguments, but got {name}."
            ) from error
        self.model, self.guide = model, guide
        self._parts: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def _base_and_transform(self) -> tuple[Any, Any]:
        """Returns base and transform of the guide, with constants for its parameters.

        torch.jit cannot trace a parameter that it does not own: what it traces uses those of the call before.
        """
        parts = self._parts
        if parts is None or not torch.jit.is_tracing():  # type: ignore[attr-defined]
            with torch.no_grad():
                base = self.guide.get_base_dist().mask(False)
                parts = self._parts = base, constant_copy(self.guide.get_transform())
        return parts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model at T(z), for a latent vector z."""
        # Masked: the density of z comes from the model alone, the base gives its shape and where to start.
        base, transform = self._base_and_transform()
        z = pyro.sample(_LATENT, base)
        with hold_statistics():  # an ActNorm of the guide must not be initialised from here
            x = transform(z)
            # A sum, as that of an elementwise transform comes element by element.
            path = transform.log_abs_det_jacobian(z, x).sum()
        values, log_det = constrained(self.guide, x)
        pyro.factor(_LATENT + "_log_det", path + log_det)
        return poutine.condition(self.model, data=values)(*args, **kwargs)

    def kernel(self, **options: Any) -> NUTS:
        """Makes the NUTS kernel for a guide that is close to the posterior, whose warm-up is short.

        Every chain starts at its own draw z of the base, that is at a draw T(z) of the guide. As the D coordinates of
        z have about unit scale and no correlations, the mass matrix stays the identity, and the search for the step
        size starts at D^(-1/4), by which it shrinks as D grows: Beskos, Pillai, Roberts, Sanz-Serna, Stuart (2013),
        Optimal tuning of the hybrid Monte Carlo algorithm. A hundred steps of warm-up find it. Where the guide is
        poor, as before its training, ``adapt_mass_matrix=True`` and a longer warm-up are better.

        Args:
            options: of :class:`~pyro.infer.NUTS`, such as ``jit_compile``; they override what is said here.
        """
        base, _ = self._base_and_transform()
        step_size = base.event_shape.numel() ** -0.25
        return NUTS(
            self, **{"init_strategy": init_to_sample, "step_size": step_size, "adapt_mass_matrix": False, **options}
        )

    def get_samples(self, mcmc: MCMC, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Returns the samples of a finished run by the names of the model's sites, as ``mcmc.get_samples`` does.

        Each is (num_samples, \\*shape of the site) or, by chain, (num_chains, num_samples, \\*shape of the site).
        """
        z = mcmc.get_samples(group_by_chain=group_by_chain)[_LATENT]
        with torch.no_grad():
            return constrained(self.guide, self.guide.get_transform()(z))[0]
