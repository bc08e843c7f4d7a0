"""Metropolis-Hastings with independent proposals from a guide."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from .._runtime.checks import at_least
from .importance import ImportanceSamples, importance_sample


class IndependenceMH(MCMCKernel):
    """Metropolis-Hastings that proposes draws of a guide, whatever the current state: jumps between modes are easy.

    From a state z the proposal z' ~ q is accepted with probability

        a(z, z') = min(1, w(z') / w(z)),   w(z) = p(x, z) / q(z)

    which leaves the posterior invariant. If w <= M p(x) everywhere, the chain is within (1 - 1/M)^n of the posterior
    after n steps; without such an M it sticks where w is large. Pareto k-hat (:func:`~pyro_realnvp.pareto_k`) tells
    beforehand. Tierney (1994); Mengersen and Tweedie (1996), theorem 2.1; with a flow as q: Gabrié, Rotskoff,
    Vanden-Eijnden (2022).

    Proposals do not depend on the chain, so they are drawn and weighed many at a time, and no gradient is needed.

    Args:
        model, guide, parallel: as for :func:`~pyro_realnvp.importance_sample`.
        batch_size: how many proposals are drawn and weighed at a time.

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):  # the posterior itself, of which every draw is accepted
        ...     pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
        >>> kernel = IndependenceMH(model, guide, parallel=True)
        >>> mcmc = pyro.infer.MCMC(kernel, num_samples=100, warmup_steps=10, disable_progbar=True)
        >>> mcmc.run(torch.tensor(1.0))
        >>> mcmc.get_samples()["z"].shape, mcmc.diagnostics()["acceptance rate"]
        (torch.Size([100]), {'chain 0': 1.0})
    """

    # Read by MCMC: samples are in the space of their sites, so that there is nothing to transform.
    transforms: Mapping[str, Any] = {}

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        parallel: bool = False,
        batch_size: int = 1000,
    ) -> None:
        self.model, self.guide, self.parallel = model, guide, parallel
        self.batch_size = at_least("batch_size", batch_size)

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
        """Takes one step: returns the proposal if it is accepted, else the present state."""
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
        """The fraction of accepted proposals, after the warm-up once that has ended."""
        after = self._steps - self._warmup_steps
        return self._accepted / max(1, after if after > 0 else self._steps)

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict([("acc. rate", f"{self.acceptance_rate:.3f}")])

    def diagnostics(self) -> dict[str, float]:
        return {"acceptance rate": self.acceptance_rate}

    def cleanup(self) -> None:
        """Forgets the proposals that are left over."""
        self._next = iter(())
