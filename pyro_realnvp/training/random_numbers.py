"""The states of all generators of random numbers that a training may draw from."""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from .._runtime.arguments import shown


class RandomNumbers:
    """Reads and sets the global generators of Python, NumPy (where it is imported), torch, and the accelerator in use.

    Args:
        generators: of your own, whose states belong to it, too.
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self.generators = generators

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
        if "numpy" in sys.modules:
            kind, keys, *rest = sys.modules["numpy"].random.get_state()
            state["numpy"] = [kind, keys.tolist(), *rest]
        if (device := _accelerator()) is not None:
            state[device.__name__] = device.get_rng_state()
        if self.generators:
            state["own"] = [generator.get_state() for generator in self.generators]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets all generators, or none if a state is wrong."""
        before = self.state_dict()
        try:
            self._set(state)
        except Exception:
            self._set(before)
            raise

    def _set(self, state: dict[str, Any]) -> None:
        for name in state:
            if name not in ("python", "torch", "numpy", "own") and not str(name).startswith("torch."):
                raise ValueError(f"there is no generator {shown(name)}.")
        version, words, gauss = state["python"]
        if gauss is not None and not _is_finite(gauss):  # anything is taken, and returned when it is drawn
            raise TypeError(f"Python's next Gaussian number cannot be {shown(gauss)}.")
        random.setstate((version, tuple(words), gauss))
        if state["torch"].shape != torch.get_rng_state().shape:  # torch takes any that has as many bytes
            raise ValueError(f"the state of torch's generator cannot have shape {tuple(state['torch'].shape)}.")
        torch.set_rng_state(state["torch"].cpu())
        if "numpy" in state:  # it need not be imported yet, but will be
            kind, keys, position, has_gauss, gauss = state["numpy"]
            if kind != "MT19937" or type(position) is not int or not 0 <= position <= len(keys):  # NumPy does not look
                raise ValueError(f"NumPy's generator cannot be {shown(kind)} at {shown(position)}.")
            if any(type(key) is not int for key in keys):  # they would be rounded
                raise ValueError("NumPy's generator cannot have other words than integers.")
            if has_gauss not in (0, 1) or not _is_finite(gauss):
                raise ValueError(f"NumPy's next Gaussian number cannot be {shown(has_gauss)}, {shown(gauss)}.")
            import_module("numpy").random.set_state((kind, keys, position, has_gauss, gauss))
        if (device := _accelerator()) is not None and device.__name__ in state:
            device.set_rng_state(state[device.__name__].cpu())
        for generator, own in zip(self.generators, state.get("own", ()), strict=True):
            generator.set_state(own.cpu())


class Start:
    """The random numbers at the start of a training: where it goes on, they are set as they were then."""

    def __init__(self, numbers: RandomNumbers) -> None:
        self.numbers, self.state = numbers, numbers.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.numbers.load_state_dict(state)
        self.state = state


class Stream:
    """Random numbers that are drawn apart from all others, from global generators or those of your own.

    Where a program draws from it inside a ``with`` block of :meth:`drawing`, the numbers are the same whatever is drawn
    between the blocks, and what is drawn there does not change.

    Args:
        generators: of your own; the global ones are seeded by a number of torch's.
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self.numbers = RandomNumbers(generators)
        seed = int(torch.randint(2**32, ()))
        outside = self.numbers.state_dict()
        random.seed(seed)
        torch.manual_seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        self.state = self.numbers.state_dict()
        self.numbers.load_state_dict(outside)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        outside = self.numbers.state_dict()
        self.numbers.load_state_dict(self.state)
        try:
            yield
        finally:
            self.state = self.numbers.state_dict()
            self.numbers.load_state_dict(outside)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _accelerator() -> Any:
    """Returns the torch module of the accelerator, such as torch.cuda, once it is in use."""
    place = torch.accelerator.current_accelerator(check_available=True)
    module = None if place is None else torch.get_device_module(place)
    return module if module is not None and getattr(module, "is_initialized", lambda: True)() else None
