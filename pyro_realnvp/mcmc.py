"""MCMC with a trained guide: Hamiltonian Monte Carlo in the space where the guide is simple, and independence moves."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from .diagnostics import ImportanceSamples, importance_sample
from .frozen import frozen
from .sites import constrained

__all__ = ["IndependenceMH", "NeuTra"]

_LATENT = "_neutra_latent"


class NeuTra:
    """A model seen through a trained guide: neural transport, for HMC and NUTS.

    The guide's transform x = T(z) maps its base, usually N(0, I), to the unconstrained latents x of the model, and
    each y = b(x) to the support of its site. In place of the model's sites this one has a single latent vector z with

        log p(z) = log p(y, data) + log|det dy/dx| + log|det dx/dz|

    which is close to the base where the guide is close to the posterior, whatever the guide: NUTS moves in an easy
    geometry, and stays exact. Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan (2019).

        guide = AutoRealNVP(model)                           # 1. train it by SVI
        neutra = NeuTra(model, guide)                        # 2. sample
        mcmc = MCMC(NUTS(neutra), num_samples=1000, warmup_steps=500, num_chains=4)
        mcmc.run(data)
        posterior = neutra.get_samples(mcmc)                 # 3. the sites of the model

    Chains, divergences, ``jit_compile`` and the rest are those of :class:`~pyro.infer.MCMC`. The parameters of the
    guide are constants here: no gradient is computed for them, and nothing of the guide changes.

    Pyro's ``NeuTraReparam`` adds log|det dx/dz| to the density of the first site, element by element: if that site is
    in a plate of n elements it counts n times, and another distribution is sampled. Here it counts once.

    Args:
        model: the model that the guide was made for.
        guide: an ``AutoContinuous`` guide whose ``get_transform`` needs no arguments, after training.

    Raises:
        ValueError: if the guide is no such guide, or has not been called yet.
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model at T(z), for a latent vector z."""
        with frozen(self.guide):
            # Masked: the density of z comes from the model alone, the base gives its shape and where to start.
            z = pyro.sample(_LATENT, self.guide.get_base_dist().mask(False))
            transform = self.guide.get_transform()
            x = transform(z)
            values, log_det = constrained(self.guide, x)
            # A sum, as that of an elementwise transform comes element by element.
            pyro.factor(_LATENT + "_log_det", transform.log_abs_det_jacobian(z, x).sum() + log_det)
        return poutine.condition(self.model, data=values)(*args, **kwargs)

    def get_samples(self, mcmc: MCMC, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """The samples of a finished run by the names of the model's sites, as ``mcmc.get_samples`` of the model itself.

        Each is (num_samples, \\*shape of the site) or, by chain, (num_chains, num_samples, \\*shape of the site).
        """
        z = mcmc.get_samples(group_by_chain=group_by_chain)[_LATENT]
        with torch.no_grad():
            return constrained(self.guide, self.guide.get_transform()(z))[0]


class IndependenceMH(MCMCKernel):
    """Metropolis-Hastings that proposes draws of a guide, whatever the current state: jumps between modes are easy.

    From a state z the proposal z' ~ q is accepted with probability

        a(z, z') = min(1, w(z') / w(z)),   w(z) = p(x, z) / q(z)

    which leaves the posterior invariant. Where w <= M p(x), that is, nowhere too little of the guide, the chain is
    within (1 - 1/M)^n of the posterior after n steps, and without such an M it sticks where w is large: Pareto k-hat
    (:func:`~pyro_realnvp.pareto_k`) tells beforehand. Tierney (1994); Mengersen and Tweedie (1996), theorem 2.1; with a
    flow as q: Gabrié, Rotskoff, Vanden-Eijnden (2022).

        mcmc = MCMC(IndependenceMH(model, guide, parallel=True), num_samples=10_000, warmup_steps=100)
        mcmc.run(data)
        mcmc.get_samples()                                   # by the names of the model's sites
        mcmc.diagnostics()["acceptance rate"]

    Proposals do not depend on the chain, so they are drawn and weighed many at a time, and no gradient is needed.

    Args:
        model, guide, parallel: as for :func:`~pyro_realnvp.importance_sample`.
        batch_size: how many proposals are drawn and weighed at a time.
    """

    # What MCMC asks a kernel: samples come in the space of their sites, there is nothing to transform.
    transforms: Mapping[str, Any] = {}

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        parallel: bool = False,
        batch_size: int = 1000,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}.")
        self.model, self.guide, self.parallel, self.batch_size = model, guide, parallel, batch_size

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Starts a chain at a draw of the guide."""
        self._warmup_steps, self._args, self._kwargs = warmup_steps, args, kwargs
        self._steps = self._accepted = 0
        self._state, self._log_weight = next(proposals := self._proposals())
        self._next = proposals

    def _proposals(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        while True:
            batch = self._batch()
            for index, log_weight in enumerate(batch.log_weights.double().tolist()):
                yield {name: value[index] for name, value in batch.samples.items()}, log_weight

    def _batch(self) -> ImportanceSamples:
        return importance_sample(
            self.model,
            self.guide,
            *self._args,
            num_samples=self.batch_size,
            parallel=self.parallel,
            **self._kwargs,
        )

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._state

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        raise ValueError(f"IndependenceMH starts at a draw of its guide, but got initial_params for {list(params)}.")

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step: the proposal if it is accepted, else the present state."""
        proposal, log_weight = next(self._next)
        self._steps += 1
        if self._steps == self._warmup_steps + 1:
            self._accepted = 0
        # From a state of weight zero everything is accepted; -inf - -inf is NaN, and no.
        if math.log1p(-float(torch.rand(()))) < log_weight - self._log_weight:
            self._state, self._log_weight = proposal, log_weight
            self._accepted += 1
        return self._state

    @property
    def acceptance_rate(self) -> float:
        """The share of accepted proposals, after the warm-up once that has ended."""
        after = self._steps - self._warmup_steps
        return self._accepted / max(1, after if after > 0 else self._steps)

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict([("acc. rate", f"{self.acceptance_rate:.3f}")])

    def diagnostics(self) -> dict[str, float]:
        return {"acceptance rate": self.acceptance_rate}

    def cleanup(self) -> None:
        """Forgets the proposals that are left over."""
        self._next = iter(())
