"""Treats the parameters of a transform as constants, without touching it: other threads may use it meanwhile."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

T = TypeVar("T")


def constant_copy(transform: T) -> T:
    """Copies the structure of a Module, a torch transform or a distribution around detached parameters.

    The parameters share memory with those of the original, the buffers are the same tensors, and nothing else is copied
    but the modules themselves: the copy computes the values of the original at this moment, without gradients for it.
    """
    copied: T = _copy(transform, {})
    return copied


def _copy(part: Any, known: dict[int, Any]) -> Any:
    if isinstance(part, Tensor):
        return _constant(part) if part.requires_grad else part
    if isinstance(part, list | tuple):
        return type(part)(_copy(each, known) for each in part) if type(part) in (list, tuple) else part
    if not isinstance(part, nn.Module | Transform | Distribution):
        return part
    if id(part) not in known:
        new = known[id(part)] = copy.copy(part)
        for name, value in vars(part).items():
            if name in ("_parameters", "_modules"):
                new.__dict__[name] = {key: _copy(each, known) for key, each in value.items()}
            elif isinstance(value, Tensor | Transform | Distribution | list):
                new.__dict__[name] = _copy(value, known)
    return known[id(part)]


def _constant(parameter: Tensor) -> Tensor:
    # Tracing would record detach() of a parameter that it cannot own; .data is not recorded and becomes a constant.
    return parameter.data if torch.jit.is_tracing() else parameter.detach()  # type: ignore[attr-defined]
