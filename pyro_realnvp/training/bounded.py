"""Making a Module from a configuration that may be wrong, without more memory than its weights need."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration


class TooLargeError(ValueError):
    """Raised when a configuration makes a Module that cannot be the one whose weights are given."""


def shapes_of(make: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes in the state of the Module that a function makes, without memory for it.

    The function is called on the meta device, where tensors have shapes and no values.

    Args:
        make: is called once.
        state: the weights that are to be loaded.

    Raises:
        TooLargeError: as soon as the Module has several times the parameters or layers that the weights are for.
    """
    with _no_larger_than(state), torch.device("meta"), torch.random.fork_rng([]):
        return {key: tuple(value.shape) for key, value in make().state_dict().items()}


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    # Some layers are made and replaced on the way, hence several times.
    limits = {"numbers": 4 * sum(value.numel() for value in state.values()) + 10_000, "parts": 100 * len(state) + 1000}
    counts = dict.fromkeys(limits, 0)
    thread = threading.get_ident()  # the hooks see the Modules that other threads make, too

    def count(of: nn.Module, name: str, part: Any) -> None:
        if threading.get_ident() != thread or part is None:
            return
        counts["parts"] += 1
        counts["numbers"] += part.numel() if isinstance(part, Tensor) else 0
        if any(counts[kind] > limit for kind, limit in limits.items()):
            raise TooLargeError(
                f"it makes a Module that is much larger than the weights, which are {len(state)} tensors of "
                f"{sum(value.numel() for value in state.values())} numbers: a {type(of).__name__} has {name}"
                f"{f' of shape {tuple(part.shape)}' if isinstance(part, Tensor) else ''}."
            )

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
