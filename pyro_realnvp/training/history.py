"""The course of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._runtime.arguments import shown
from .stateful import entry

_COLUMNS = {
    "step": torch.int64,
    "loss": torch.float64,
    "validation": torch.float64,
    "learning_rate": torch.float64,
    "seconds": torch.float64,
}


def _end(state: Mapping[str, Any]) -> str:
    end: str = entry(state, "ended_by", str)
    if end not in ("steps", "patience", "callback"):
        raise ValueError(f"ended_by should be steps, patience or callback, but is {shown(end)}.")
    return end


def _check_values(columns: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all but the losses on held-out data are numbers that a training has."""
    for name in ("loss", "learning_rate", "seconds"):
        if not columns[name].isfinite().all():
            raise ValueError(f"{name} should be finite, but is {shown(columns[name].tolist())}.")
    if (columns["step"] < 0).any():
        raise ValueError(f"step should not be negative, but is {shown(columns['step'].tolist())}.")


@dataclass
class Course:
    """The rows of a training that is not over, and what is known of its best state and its end."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    ended_by: str = "steps"

    @property
    def seconds(self) -> float:
        """Until the last row."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows, best_step, ended_by = entry(state, "rows", list), entry(state, "best_step", int), _end(state)
        for row in rows:
            if not isinstance(row, dict) or row.keys() != _COLUMNS.keys():
                raise ValueError(f"a row should have {', '.join(_COLUMNS)}, but is {shown(row)}.")
            for name in _COLUMNS:
                entry(row, name, *((int,) if name == "step" else (float, int)))
            _check_values({name: torch.tensor(row[name]) for name in _COLUMNS})
        self.rows, self.best_step, self.ended_by = rows, best_step, ended_by


@dataclass(eq=False)
class History:
    """The course of a training by :func:`~pyro_realnvp.fit`; every array has one element an interval.

    Attributes:
        step: number of steps taken, (I,).
        loss: mean training loss over the interval, (I,), in ``unit``.
        validation: loss of the averaged flow on held-out data, (I,), in ``unit``; NaN without validation.
        learning_rate: of the last step of the interval, (I,).
        seconds: since the start, (I,).
        unit: ``"nats"`` an event, or ``"bits/dim"`` for images.
        best_step: step of the state that the flow holds now.
        ended_by: ``"steps"``, ``"patience"`` or ``"callback"``.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2))
        >>> history = fit(flow, torch.randn(500, 2), steps=40, interval=10, progress=False)
        >>> history.step, history.unit, history.ended_by
        (tensor([10, 20, 30, 40]), 'nats', 'steps')
        >>> history.best == history.validation.min()
        tensor(True)
    """

    step: Tensor
    loss: Tensor
    validation: Tensor
    learning_rate: Tensor
    seconds: Tensor
    unit: str
    best_step: int
    ended_by: str

    @classmethod
    def from_rows(cls, rows: list[dict[str, float]], *, unit: str, best_step: int, ended_by: str) -> History:
        columns = {name: torch.tensor([row[name] for row in rows], dtype=dtype) for name, dtype in _COLUMNS.items()}
        return cls(**columns, unit=unit, best_step=best_step, ended_by=ended_by)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """Undoes :meth:`state_dict`.

        Raises:
            ValueError: if the state is none of a History.
        """
        columns = {name: entry(state, name, Tensor) for name in _COLUMNS}
        for name, column in columns.items():
            if column.dtype != _COLUMNS[name] or column.shape != (len(columns["step"]),):
                raise ValueError(f"{name} should be a column, but is of {column.dtype} and {tuple(column.shape)}.")
        _check_values(columns)
        rest = {"unit": entry(state, "unit", str), "best_step": entry(state, "best_step", int)}
        return cls(**columns, **rest, ended_by=_end(state))

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def best(self) -> float:
        """The lowest loss on held-out data, in ``unit``; the last training loss if there were none."""
        finite = self.validation[self.validation.isfinite()]
        return float(finite.min()) if len(finite) else float(self.loss[-1])

    def plot(self, axes: Any = None) -> Any:
        """Draws the losses over the steps by matplotlib, into ``axes`` or a new figure, and returns the axes."""
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("History.plot needs matplotlib: pip install matplotlib") from error
        axes = plt.subplots(layout="constrained")[1] if axes is None else axes
        axes.plot(self.step, self.loss, label="training")
        if self.validation.isfinite().any():
            axes.plot(self.step, self.validation, label="validation, averaged weights")
        axes.axvline(self.best_step, color="gray", linewidth=0.8, linestyle=":", label="state kept")
        axes.set(xlabel="step", ylabel=f"negative log-density, {self.unit}")
        axes.legend()
        return axes

    def __repr__(self) -> str:
        return (
            f"History({int(self.step[-1])} steps in {float(self.seconds[-1]):.1f} s, ended by {self.ended_by}, "
            f"best {self.best:.4f} {self.unit} at step {self.best_step})"
        )
