"""The states of all generators of random numbers that a training may draw from."""

import random
import sys
from importlib import import_module
from typing import Any

import torch


class RandomNumbers:
    """Reads and sets the global generators of Python, NumPy (where it is imported), torch, and the accelerator in use.

    A generator of your own is not among them: an object with its state has to be tracked besides.
    """

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
        if "numpy" in sys.modules:
            kind, keys, *rest = sys.modules["numpy"].random.get_state()
            state["numpy"] = [kind, keys.tolist(), *rest]
        if (device := _accelerator()) is not None:
            state[device.__name__] = device.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        torch.set_rng_state(state["torch"].cpu())
        if "numpy" in state:  # it need not be imported yet, but will be
            import_module("numpy").random.set_state(tuple(state["numpy"]))
        if (device := _accelerator()) is not None and device.__name__ in state:
            device.set_rng_state(state[device.__name__].cpu())


def _accelerator() -> Any:
    """Returns the torch module of the accelerator, such as torch.cuda, once it is in use."""
    place = torch.accelerator.current_accelerator(check_available=True)
    module = None if place is None else torch.get_device_module(place)
    return module if module is not None and getattr(module, "is_initialized", lambda: True)() else None
