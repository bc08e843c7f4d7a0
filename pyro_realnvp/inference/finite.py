"""Steps of variational inference that leave out what is not finite, and say where it comes from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor


class FiniteELBO(ELBO):
    """An ELBO that keeps steps finite: where the loss or a gradient is not, no parameter receives a gradient.

    Optimizers pass over parameters without a gradient, so that such a step leaves parameters, and their moments in
    Adam, as they were; the loss is returned as it is, NaN where the model or guide raised an error. One such step may
    be bad luck, a draw far out. The third in a row is not, and raises an error that names the site. An error that has
    nothing to do with numbers, where every value and log-probability is finite, passes at once.

        elbo = FiniteELBO(Trace_ELBO(32, vectorize_particles=True))
        svi = SVI(model, guide, ClippedAdam({"lr": 5e-3}), elbo)     # and svi.step() as usual

        loss = elbo.loss_and_grads(model, guide, data)               # or in a loop of one's own
        optimizer.step()                                             # of torch.optim
        optimizer.zero_grad()                                        # set_to_none=True, as is the default

    Args:
        elbo: any of Pyro's bounds.
        patience: how many such steps in a row raise the error.

    Attributes:
        steps: number of calls of :meth:`loss_and_grads`.
        skipped: number of those that left no gradient.

    Raises:
        FloatingPointError: in :meth:`loss_and_grads`, at the last of ``patience`` such steps in a row.

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.factor("y", -((y - z) ** 2))
        >>> guide = pyro.infer.autoguide.AutoNormal(model)
        >>> elbo = FiniteELBO(pyro.infer.Trace_ELBO())
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        >>> losses = [svi.step(torch.tensor(y)) for y in (1.0, torch.nan, 1.0)]
        >>> elbo.steps, elbo.skipped
        (3, 1)
    """

    def __init__(self, elbo: ELBO, *, patience: int = 3) -> None:
        super().__init__(
            num_particles=elbo.num_particles,
            max_plate_nesting=elbo.max_plate_nesting,
            vectorize_particles=elbo.vectorize_particles,
        )
        if patience < 1:
            raise ValueError(f"patience must be at least 1, but got {patience}.")
        self.elbo: Any = elbo
        self.patience = patience
        self.steps = self.skipped = self._in_a_row = 0

    def _get_trace(self, *args: Any) -> Any:
        return self.elbo._get_trace(*args)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Computes the loss, as the bound does."""
        return self.elbo.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Computes the loss and accumulates its gradients, or sets them to None if something is not finite."""
        self.steps += 1
        state, error = get_rng_state(), None
        with poutine.trace(param_only=True) as seen:
            try:
                loss = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
            except (ValueError, RuntimeError) as raised:
                loss, error = math.nan, raised
        params: dict[str, Tensor] = {name: site["value"].unconstrained() for name, site in seen.trace.nodes.items()}  # type: ignore[union-attr]
        bad = [name for name, value in params.items() if value.grad is not None and not value.grad.isfinite().all()]
        if error is None and not bad and math.isfinite(loss):
            self._in_a_row = 0
            return loss
        source = self._source(model, guide, args, kwargs, state)
        if error is not None and not source:
            raise error
        for value in params.values():
            value.grad = None
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._in_a_row == self.patience:
            self._in_a_row = 0
            if not source:
                source = f"the gradient of '{bad[0]}' is not finite" if bad else "every site is finite by itself"
            raise FloatingPointError(
                f"Neither this step, number {self.steps}, nor the {self.patience - 1} before it had a finite loss and "
                f"finite gradients: {source}. The parameters are those before these steps. A lower learning rate, more "
                f"particles, a start nearer to the posterior (init_loc_fn, a smaller init_scale), double precision, or "
                f"a density of this site without overflow may help."
            ) from error
        return loss

    def _source(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any, state: dict[str, Any]
    ) -> str:
        """Says which site is not finite for the draws of this state; empty if every site is."""
        after = get_rng_state()
        set_rng_state(state)
        watch = _Watch()
        try:
            with torch.no_grad(), warnings.catch_warnings(), pyro.validation_enabled(False), watch:
                warnings.simplefilter("ignore")
                self.elbo.loss(model, guide, *args, **kwargs)
        except (ValueError, RuntimeError):
            pass  # it has seen the sites before
        finally:
            set_rng_state(after)
        return watch.found


class _Watch(Messenger):
    """Keeps the first site whose log-probability is not finite, and prefers a site of the model."""

    found = ""
    _auxiliary = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if (self.found and not self._auxiliary) or not isinstance(msg["value"], Tensor):
            return
        auxiliary = bool((msg["infer"] or {}).get("is_auxiliary"))
        log_prob = scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, msg["mask"])
        wrong = log_prob.numel() - int(log_prob.isfinite().sum())
        if wrong and not (self.found and auxiliary):
            self._auxiliary = auxiliary
            self.found = (
                f"the log-probability of site '{msg['name']}' is not finite in {wrong} of {log_prob.numel()} places"
            )
