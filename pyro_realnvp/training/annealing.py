"""Noise on the data of a training, less and less of it as long as that helps."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .stateful import entry


class Noise:
    """Adds Gaussian noise to events, and halves it whenever the training comes to rest and the last halving has helped.

    With noise of standard deviation s the flow learns the data smoothed by a Gaussian kernel. Few rows need a wide one,
    and the best width depends on the density: the held-out rows decide.

    Args:
        spread: standard deviation at the start, of a shape that broadcasts to the events; None for no noise.
        anneals: whether it is ever halved.
    """

    def __init__(self, spread: Tensor | float | None, *, anneals: bool) -> None:
        self.spread, self.anneals = spread, anneals and spread is not None
        self.factor, self.helped = 1.0, True

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.spread is None else x + self.factor * self.spread * torch.randn_like(x)

    def note(self, *, improved: bool) -> None:
        """Takes notice of an interval."""
        self.helped |= improved

    def halve(self, go_back: Callable[[], None]) -> bool:
        """Halves the noise and goes back to the best state, or returns False if the last halving did not help."""
        if not (self.anneals and self.helped):
            return False
        self.factor, self.helped = self.factor / 2, False
        go_back()
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "helped": self.helped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        factor, helped = entry(state, "factor", float), entry(state, "helped", bool)
        if not 0 < factor <= 1:
            raise ValueError(f"the factor of the noise should be in (0, 1], but is {factor}.")
        self.factor, self.helped = factor, helped
