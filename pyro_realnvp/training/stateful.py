"""Parts of a training that have a state, and checks of states that a file may have changed."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from .._runtime.arguments import shown
from .._runtime.reasons import ERRORS, reason
from .values import check_values


class Stateful(Protocol):
    """Has a state of tensors, numbers, strings, lists and dicts."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Attributes:
    """Treats some attributes of an object as its state.

    They are assigned, never changed in place, by the object; their tensors keep the device they had.
    """

    def __init__(self, owner: object, *names: str) -> None:
        self.owner, self.names = owner, names

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self.owner, name) for name in self.names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.names:
            found, own = state[name], getattr(self.owner, name)
            if type(found) is not type(own) and not (_is_number(found) and _is_number(own)):
                raise TypeError(f"{name} should be a {type(own).__name__}, but is a {type(found).__name__}.")
            both = isinstance(own, Tensor) and isinstance(found, Tensor)
            setattr(self.owner, name, found.to(own.device) if both else found)


class Constant:
    """A value that a training had at its start."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


def entry(state: Any, name: str, *kinds: type) -> Any:
    """Returns an entry of a state.

    Raises:
        ValueError: if it is missing, or of none of these types; a bool is no int, but an OrderedDict is a dict.
    """
    if not isinstance(state, Mapping) or name not in state:
        raise ValueError(f"it has no {name!r}.")
    value = state[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{name} should be a {kinds[0].__name__}, but is a {type(value).__name__}.")
    return value


def load_part(part: Stateful, name: str, states: Any) -> None:
    """Gives a part its state, of those of all parts.

    Raises:
        ValueError: if there is none, or one that does not fit; the part may then have some of it.
    """
    if not isinstance(states, Mapping) or name not in states:
        raise ValueError(f"it has no state of {name!r}.")
    state = states[name]
    try:
        if isinstance(part, nn.Module):
            check_values(part, state)
        elif isinstance(part, torch.optim.Optimizer):
            _check_optimizer(part, state)
        elif isinstance(part, LRScheduler):
            _check_alike(state, part.state_dict(), "the schedule")
        part.load_state_dict(state)
    except ERRORS as error:
        raise ValueError(f"its state of {name!r} does not fit: {reason(error)}") from error


def _check_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    own, groups = optimizer.state_dict()["param_groups"], entry(state, "param_groups", list)
    _check_alike(groups, own, "the groups")
    for group, expected in zip(groups, own, strict=True):
        if group["params"] != expected["params"]:
            raise ValueError("it has other parameters.")
        for key, value in expected.items():
            if isinstance(value, bool) and group[key] != value:  # which algorithm it is: amsgrad, maximize, ...
                raise ValueError(f"{key} of the groups is {value}, but {group[key]} in the file.")
        if isinstance(optimizer, torch.optim.Adam) and not all(0 <= float(beta) < 1 for beta in group["betas"]):
            raise ValueError(f"betas of the groups should lie in [0, 1), but are {shown(group['betas'])}.")
    parameters = [(each, group) for group in optimizer.param_groups for each in group["params"]]
    for index, values in entry(state, "state", dict).items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(values, dict):
            raise ValueError(f"there is no parameter {shown(index)} with a state.")
        for key, value in values.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{key} of the parameter {index} is not finite.")
        if isinstance(optimizer, torch.optim.Adam):  # what the states of others are made of is not known here
            parameter, group = parameters[index]
            _check_moments(values, parameter, f"of the parameter {index}", amsgrad=group["amsgrad"])


def _check_moments(values: Any, parameter: Tensor, of: str, *, amsgrad: bool) -> None:
    """Raises ValueError unless these are the averages that Adam keeps for a parameter, and the number of its steps."""
    for key in ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ())):
        value = entry(values, key, Tensor)
        shape, dtype = parameter.shape, parameter.dtype
        if key == "step":
            shape, dtype = torch.Size(), torch.float32
            if value.dtype == torch.get_default_dtype():  # as it has without fused=True
                dtype = value.dtype
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(
                f"{key} {of} should have shape {tuple(shape)} and {dtype}, but has {tuple(value.shape)} and "
                f"{value.dtype}."
            )
        if key != "exp_avg" and (value < 0).any():
            raise ValueError(f"{key} {of} cannot be {value.min().item():g}.")


def _check_alike(found: Any, own: Any, place: str) -> None:
    """Raises ValueError unless a state is made of the types, lengths and signs of another one."""
    numbers = _is_number(found) and _is_number(own) and not isinstance(own, bool) and not isinstance(found, bool)
    if type(found) is not type(own) and not numbers:
        raise ValueError(f"{place} should be a {type(own).__name__}, but is a {type(found).__name__}.")
    if isinstance(own, dict):
        if other := sorted(found.keys() ^ own.keys(), key=str):
            raise ValueError(f"{shown(other[0])} of {place} is {'missing' if other[0] in own else 'unknown'}.")
        for key, value in own.items():
            _check_alike(found[key], value, f"{key} of {place}")
    elif isinstance(own, list | tuple):
        if len(found) != len(own):
            raise ValueError(f"{place} should have length {len(own)}, but has {len(found)}.")
        for index, value in enumerate(own):
            _check_alike(found[index], value, f"{index} of {place}")
    elif numbers:
        number = float(found)
        if not math.isfinite(number) or number < 0 <= float(own):
            raise ValueError(f"{place} cannot be {number:g}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
