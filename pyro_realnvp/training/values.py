"""Compares a state from a file with the Module that it is to be loaded into."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.arguments import shown


def _is_not_negative(value: Tensor) -> bool:
    return bool((value >= 0).all())


def _is_permutation(value: Tensor) -> bool:
    """Tells whether a vector has each of its indices once, or a matrix a single 1 in every row and column."""
    if value.dim() == 1:
        return torch.equal(value.sort()[0], torch.arange(len(value), dtype=value.dtype, device=value.device))
    zeros_and_ones = ((value == 0) | (value == 1)).all()
    return bool(zeros_and_ones and (value.sum(0) == 1).all() and (value.sum(1) == 1).all())


# With other values in these buffers, all that is computed would be wrong in silence.
_BUFFERS: dict[str, tuple[Callable[[Tensor], bool], str]] = {
    "running_var": (_is_not_negative, "not negative"),
    "num_batches_tracked": (_is_not_negative, "a count"),
    "n_averaged": (_is_not_negative, "a count"),
    "permutation": (_is_permutation, "a permutation"),
    "sign": (lambda value: bool((value.abs() == 1).all()), "1 and -1"),
}


def check_values(module: nn.Module, state: Any) -> None:
    """Compares a state from a file with a Module that it is to be loaded into.

    Raises:
        ValueError: if a tensor is missing or of another shape or dtype, or has values that none of its kind can have.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"The weights should be a dict, but are a {type(state).__name__}.")
    own = module.state_dict(keep_vars=True)
    keys: dict[int, str] = {}
    if other := sorted(map(str, own.keys() ^ state.keys())):
        raise ValueError(f"{other[0]} is {'missing' if other[0] in own else 'unknown'}.")
    for key, expected in own.items():
        value = state[key]
        if not isinstance(expected, Tensor):
            continue  # an extra state of the user's
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} should be a tensor, but is a {type(value).__name__}.")
        if value.shape != expected.shape:
            raise ValueError(f"{key} should have shape {tuple(expected.shape)}, but has {tuple(value.shape)}.")
        if value.dtype != expected.dtype:
            raise ValueError(f"{key} should have the dtype {expected.dtype}, but has {value.dtype}.")
        if value.is_floating_point() and not value.isfinite().all() and expected.isfinite().all():
            raise ValueError(f"{key} has a value that is not finite.")
        name = key.rpartition(".")[2]
        if name in _BUFFERS and not isinstance(expected, nn.Parameter):
            fits, kind = _BUFFERS[name]
            if fits(expected) and not fits(value):
                raise ValueError(f"{key} should be {kind}, but is {shown(value.tolist())}.")
        first = keys.setdefault(id(expected), key)
        if first != key and not torch.equal(value.nan_to_num(), state[first].nan_to_num()):
            raise ValueError(f"{key} is the same tensor as {first}, but has other values.")
