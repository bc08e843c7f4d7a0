"""Pauses a training after some minutes, and continues it when the same command is given again.

The folder of the results then holds ``training.pt``: parameters, averages, optimizer, schedule, random numbers, the
order of the data, and the options of the run, which must not change. Stopped and resumed, a run takes the very steps
that it would have taken in one go. What torch.compile has made is kept in ``compiled`` there, so that the next process
does not begin with minutes of compilation, though it may be on another machine.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch

from shared.options import Config, fail
from shared.processes import Processes


class Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Attributes:
    """Treats some attributes of an object as its state."""

    def __init__(self, owner: object, *names: str) -> None:
        self.owner, self.names = owner, names

    def state_dict(self) -> Config:
        return {name: getattr(self.owner, name) for name in self.names}

    def load_state_dict(self, state: Config) -> None:
        for name in self.names:
            setattr(self.owner, name, state[name])


class RandomNumbers:
    """Holds the state of every generator that a process draws from: of processor, device, and order of the data."""

    def __init__(self, device: torch.device, order: torch.Generator | None) -> None:
        self.device, self.order = device, order

    def state_dict(self) -> Config:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            state["device"] = torch.get_device_module(self.device).get_rng_state(self.device)
        if self.order is not None:
            state["order"] = self.order.get_state()
        return state

    def load_state_dict(self, state: Config) -> None:
        torch.set_rng_state(state["cpu"].cpu())
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device"].cpu(), self.device)
        if self.order is not None:
            self.order.set_state(state["order"].cpu())


class Resumable:
    """Pauses a run after so many minutes, and restores it.

    Args:
        folder: where ``training.pt`` is, or will be.
        minutes: from the time at which this is made.
        run: what must be the same when the run goes on; numbers, strings, lists and dicts of these.
    """

    def __init__(self, folder: Path, minutes: float, run: Mapping[str, Any], processes: Processes) -> None:
        self.path, self.processes = folder / "training.pt", processes
        self.run = {**run, "processes": processes.size}
        self.end = perf_counter() + 60 * minutes
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.resolve() / "compiled"))
        self.paused = False

    def load(self) -> Config | None:
        """Reads the state that an earlier process has left, or None; ends the script if that was another run."""
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, map_location=self.processes.device, weights_only=True)
            before = state["run"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            fail(f"{self.path} is truncated or holds no training: {str(error).splitlines()[0]}")
        for name in sorted(self.run.keys() | before.keys()):
            if self.run.get(name) != before.get(name):
                fail(
                    f"{self.path} is of a run with {name} = {before.get(name)}, but this one has {name} = "
                    f"{self.run.get(name)}; give the same options to go on, or another --out to start anew."
                )
        return state

    def restore(self, state: Config, parts: Mapping[str, Stateful], random: RandomNumbers) -> None:
        """Restores the parts, and the random numbers last, as the parts may draw some."""
        for name, part in parts.items():
            part.load_state_dict(state[name])
        random.load_state_dict(state["random"][self.processes.rank])

    def is_due(self) -> bool:
        """Tells whether the time is over, for all processes alike."""
        left = self.processes.mean(self.end - perf_counter())
        self.paused = bool(left <= 0)
        return self.paused

    def save(self, parts: Mapping[str, Stateful], random: RandomNumbers, **more: Any) -> None:
        """Writes the state of all parts, and the random numbers of every process."""
        states = self.processes.gather(random.state_dict())
        self._write({**{name: part.state_dict() for name, part in parts.items()}, "random": states, **more})

    def finish(self, row: Mapping[str, Any]) -> None:
        """Replaces the state by the result, so that the same command does not start again."""
        self._write({"finished": dict(row)})

    def _write(self, state: Config) -> None:
        if not self.processes.is_first:
            return
        part = self.path.with_suffix(".part")
        torch.save({"run": self.run, **state}, part)
        os.replace(part, self.path)  # at once, so that a process that dies meanwhile leaves the earlier one
