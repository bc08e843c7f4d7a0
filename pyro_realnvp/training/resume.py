"""The state of a training in a file, so that the same program goes on after it was stopped."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from torch import distributed

from .._runtime.arguments import shown
from .._runtime.reasons import reason
from .files import make_folder_of, naming, read_file, remove_parts_of, write_file
from .interruption import Interruption
from .nested import flatten, unflatten
from .random_numbers import RandomNumbers
from .stateful import Constant, Stateful, load_part

_FORMAT = 1
_SHARE = 0.01  # of the time, at most, for saving after intervals


class CheckpointError(ValueError):
    """Raised when the file of a checkpoint is damaged, or belongs to another training."""


class Checkpoint:
    """Keeps the state of a training in one file, so that the same program goes on where it was stopped.

    Pass it to :func:`~pyro_realnvp.fit`. In a loop of your own, let it track everything that changes while you train:

        with Checkpoint("training.safetensors") as checkpoint:
            progress = Progress()
            checkpoint.track(flow=flow, optimizer=optimizer, batches=batches, progress=progress)
            run_steps(step, steps=5000, interval=100, on_interval=score, start=progress, checkpoint=checkpoint)

    The state is saved every few minutes; after intervals, as long as this takes less than 1 % of the time; when the
    last step was taken; and within the step at which SIGTERM or Ctrl-C arrives, which then ends the program. The file
    is replaced whole or not at all. Random numbers of Python, NumPy, torch and the accelerator belong to the state: on
    the CPU, a training that was stopped and went on takes the very steps of one that was not.

    The ``with`` block holds a lock, which ends with the process. Under ``torch.distributed`` every process keeps random
    numbers of its own, and the first one writes the file.

    Args:
        path: of the file.
        settings: plain JSON values that must be the same when the training goes on.
        every: seconds between saves.
        stop_after: seconds after which the state is saved and the program ends; the next call goes on.

    Raises:
        BlockingIOError: on entering, if another process holds the lock; the message has its number.
        CheckpointError: a ValueError, on entering or later, if the file is damaged or belongs to another training.
        OSError: if the file cannot be read or written.

    Example:
        >>> flow, x = Flow(StandardNormal(2), realnvp_transforms(2)), torch.randn(200, 2)
        >>> def train():
        ...     with Checkpoint("run.safetensors", {"steps": 20}) as checkpoint:
        ...         if checkpoint.result is None:
        ...             fit(flow, x, steps=20, checkpoint=checkpoint, progress=False)
        ...             checkpoint.finish({"rows": len(x)})
        ...         return checkpoint.result
        >>> train(), train()  # the second call finds that the training has ended
        ({'rows': 200}, {'rows': 200})
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any] | None = None,
        *,
        every: float = 240.0,
        stop_after: float | None = None,
    ) -> None:
        self.path, self.every, self.stop_after = Path(path), every, stop_after
        try:
            self.settings = json.loads(json.dumps({**(settings or {}), "processes": _size()}))
        except TypeError as error:
            raise ValueError(f"The settings of a training are plain JSON values: {error}.") from error
        self.parts: dict[str, Stateful] = {}
        self._before: dict[str, Any] = {}  # of the parts, until all are known to fit
        self.saved: dict[str, Any] | None = None
        self._interruption = Interruption()
        self._start = self._last = perf_counter()
        self._cost, self._calls = 0.0, 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if _rank() == 0:
                stack.enter_context(locked(self.path))
            self.saved = self._read()
            stack.enter_context(self._interruption)
            self._stack = stack.pop_all()
        self._start = self._last = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self._interruption.received and kind is not None and _rank() == 0:
            name = signal.Signals(self._interruption.received).name
            print(f"Stopped by {name}; the same call goes on from {self.path}.", flush=True)
        self._stack.__exit__(kind, *error)

    @property
    def result(self) -> Any:
        """What :meth:`finish` was called with, by this process or an earlier one; None before."""
        return None if self.saved is None else self.saved.get("result")

    @property
    def seconds(self) -> float:
        """Seconds since the start, with those of earlier processes."""
        return perf_counter() - self._start + (self.saved or {}).get("seconds", 0.0)

    def track(self, **parts: Stateful) -> None:
        """Takes parts of the training, and gives them the state in which an earlier process left them.

        Raises:
            ValueError: if the file has no such state, or one that does not fit; all parts are then as they were. Or if
                the training has ended, and the file has its result alone.
        """
        if self.saved is None:
            self.parts |= parts
            return
        if "result" in self.saved:
            raise CheckpointError(f"{self.path} is of a training that has ended; it has the result of it and no state.")
        for name, part in parts.items():
            self.parts[name], self._before[name] = part, deepcopy(part.state_dict())
        with self._all_or_nothing():
            for name, part in parts.items():
                load_part(part, name, self.saved["parts"])

    def constant(self, name: str, value: Any) -> Any:
        """Returns the value that the first process gave, such as the state of random numbers at the start."""
        part = Constant(value)
        self.track(**{name: part})
        return part.value

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Sets the random numbers of an earlier process, or saves the start; signals then wait for :meth:`poll`."""
        if self.saved is None:
            self.save()
        else:
            with self._all_or_nothing():
                if unknown := sorted(map(str, self.saved["parts"].keys() - self.parts.keys())):
                    raise ValueError(f"it has a state of {unknown[0]!r} besides.")
                load_part(RandomNumbers(), "random", {"random": self.saved["random"][_rank()]})
            self._before.clear()
        with self._interruption.waiting():
            yield
            self._stop_if_received()

    def is_due(self) -> bool:
        """Tells whether :meth:`poll` has something to do; all processes are told the same."""
        self._calls += 1
        now = perf_counter()
        due = (
            self._interruption.received > 0
            or now - self._last > self.every
            or (self.stop_after is not None and now - self._start > self.stop_after)
        )
        if _size() == 1:
            return due
        return self._calls % 20 == 0 and _agreed(due)  # asking the others costs time

    def poll(self) -> None:
        """Saves, after a step; then ends the program if there was a signal, or if its time is over."""
        self.save()
        self._stop_if_received()
        if self.stop_after is not None and _agreed(perf_counter() - self._start > self.stop_after):
            if _rank() == 0:
                print(f"Its time is over; the same call goes on from {self.path}.", flush=True)
            raise SystemExit(0)

    @contextmanager
    def interval(self) -> Iterator[None]:
        """Surrounds what is done between steps: a signal ends it, and the state before it is saved.

        Afterwards the state is saved if that takes little of the time.
        """
        before = self._state()
        try:
            with self._interruption.waiting(waits=False):
                self._stop_if_received()  # since the step before
                yield
        except (KeyboardInterrupt, SystemExit):
            if self._interruption.received:
                self._write(before)
            raise
        if _agreed(perf_counter() - self._last > self._cost / _SHARE):
            self.save()

    def save(self) -> None:
        """Writes the state of all parts, and the random numbers of every process."""
        start = perf_counter()
        self._write(self._state())
        self._last = perf_counter()
        self._cost = self._last - start

    def finish(self, result: Any) -> None:
        """Replaces the state by the result (anything that is not None): the training does not start again.

        Args:
            result: numbers, strings, tensors, lists and dicts, for :attr:`result`.
        """
        self.saved = {"result": result, "seconds": self.seconds}
        self._start = perf_counter()
        self._write(self.saved)

    def _stop_if_received(self) -> None:
        if _agreed(self._interruption.received > 0):
            self._interruption.stop()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Takes back what was loaded if there is an error, which then has the path."""
        try:
            yield
        except ValueError as error:
            for name, before in self._before.items():
                self.parts[name].load_state_dict(before)
            raise CheckpointError(f"{self.path} is of another training: {reason(error)}") from error

    def _state(self) -> dict[str, Any]:
        randoms: list[Any] = [RandomNumbers().state_dict()] * _size()
        if _size() > 1:
            distributed.all_gather_object(randoms, randoms[0])
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {"parts": parts, "random": randoms, "seconds": self.seconds}

    def _write(self, state: Mapping[str, Any]) -> None:
        if _rank() == 0:
            tree, tensors = flatten(state)
            write_file(self.path, tensors, {"training": _FORMAT, "settings": self.settings, "state": tree})

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            tensors, config = read_file(self.path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        if config is None or config.get("training") != _FORMAT:
            raise CheckpointError(f"{self.path} holds no training that this version reads.")
        before = config.get("settings")
        if not isinstance(before, dict):
            raise CheckpointError(f"{self.path} holds no training: it has no settings.")
        for name in sorted(self.settings.keys() | before.keys()):
            if self.settings.get(name) != before.get(name):
                raise CheckpointError(
                    f"{self.path} is of a training with {name} = {shown(before.get(name))}, but this one has {name} = "
                    f"{shown(self.settings.get(name))}."
                )
        try:
            state = unflatten(config.get("state"), tensors)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} holds no training: {reason(error)}") from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} holds no training: its state is a {type(state).__name__}.")
        kinds = {"seconds": float} | ({} if "result" in state else {"parts": dict, "random": list})
        if any(not isinstance(state.get(name), kind) for name, kind in kinds.items()):
            raise CheckpointError(f"{self.path} holds no training: a part of its state is missing.")
        if "random" in kinds and len(state["random"]) != _size():
            raise CheckpointError(f"{self.path} holds the random numbers of {len(state['random'])} processes.")
        return state


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, and removes what a process that was killed has left half written."""
    import filelock  # comes with torch

    make_folder_of(path)
    file = path.with_name(path.name + ".lock")
    lock = filelock.FileLock(file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        holder = file.read_text().strip()
        raise BlockingIOError(
            f"{path} is in use by {f'the process {holder}' if holder else 'another process'}."
        ) from error
    try:
        with naming(file):
            file.write_text(f"{os.getpid()}\n")
        remove_parts_of(path)
        yield
    finally:
        lock.release()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _agreed(value: bool) -> bool:
    """Returns whether any of the processes says so."""
    if _size() == 1:
        return value
    values: list[Any] = [None] * _size()
    distributed.all_gather_object(values, value)
    return any(values)
