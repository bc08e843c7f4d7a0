"""The state of Pyro's optimizers, for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.optim import PyroOptim


class OptimizerState:
    """Reads and sets the state of an optimizer of Pyro, which makes its parts when it first sees a parameter."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self.optimizer = optimizer
        self.earlier: dict[str, Any] = {}  # of parameters that the optimizer has not seen yet

    def state_dict(self) -> dict[str, Any]:
        return {**self.earlier, **self.optimizer.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.earlier = dict(state)
        self.optimizer.set_state(self.earlier)
