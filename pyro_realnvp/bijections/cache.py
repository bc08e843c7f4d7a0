"""Remembers one result per bijection, and never returns a stale one.

Pyro's and torch's transform caches compare the input alone, so that they return stale values after a parameter update.
This one also compares everything else that the result depends on; see :class:`Cache`.
"""

from __future__ import annotations

import weakref
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList


def fingerprint(module: nn.Module) -> list[int] | None:
    """Identifies the values of all parameters and buffers without reading them.

    Returns None if the results of the module depend on more than these: on hooks, on sites of Pyro (``PyroSample``,
    ``PyroParam``), or on a parametrization other than torch's weight normalization.
    """
    if _global_forward_hooks or _global_forward_pre_hooks:
        return None
    found: list[int] = []
    stack = [module]
    while stack:
        current = stack.pop()
        attributes = current.__dict__
        if attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]:
            return None
        if attributes.get("_pyro_samples") or attributes.get("_pyro_params"):
            return None
        if type(current) is ParametrizationList and not all(type(part) is _WeightNorm for part in current):
            return None
        for tensors in (current._parameters, current._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    found += (id(tensor), tensor._version, tensor.data_ptr())
        stack += [child for child in current._modules.values() if child is not None]
    return found


def state_key(module: nn.Module, argument: Tensor, result: Tensor) -> list[Any] | None:
    """Lists everything that a result of the module depends on; None where that cannot be told."""
    device, state = argument.device, fingerprint(module)
    if state is None:
        return None
    try:
        return [
            *(argument._version, result._version, argument.dtype, device, module.training, torch.is_grad_enabled()),
            torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
            *state,
        ]
    except RuntimeError:  # inference tensors have no version, tensors under a function transform no address
        return None


class _Entry(NamedTuple):
    argument: Tensor
    result: weakref.ref[Tensor]
    log_det: Tensor
    forward: bool
    key: list[Any]
    thread: int


class Cache:
    """The last (x, y, log|det dy/dx|) of one bijection, kept for the call that follows and only while it is true.

    The argument of a call is held strongly and its result weakly: when the user drops the result, the entry goes too,
    and with it the graph. An entry is used only while everything else that the result depends on is as it was; see
    :func:`state_key`. What one thread has computed is not returned to another.
    """

    __slots__ = ("__weakref__", "_entry")

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def clear(self) -> None:
        self._entry = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return Cache()

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, ()

    def store(self, module: nn.Module, argument: Tensor, result: Tensor, log_det: Tensor, *, forward: bool) -> None:
        self._entry = None
        state = state_key(module, argument, result)
        if state is None or argument is result:
            return
        cache = weakref.ref(self)

        def forget(dead: weakref.ref[Tensor]) -> None:
            alive = cache()
            if alive is not None and alive._entry is not None and alive._entry.result is dead:
                alive._entry = None

        self._entry = _Entry(argument, weakref.ref(result, forget), log_det, forward, state, get_ident())

    def recall(
        self, module: nn.Module, *, x: Tensor | None = None, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns the remembered (x, y, log_det) of these very tensors, or None if anything has changed since."""
        entry = self._entry
        if entry is None or torch.compiler.is_compiling():
            return None
        result = entry.result()
        if result is None or entry.thread != get_ident():
            return None
        pair = (entry.argument, result) if entry.forward else (result, entry.argument)
        if (x is not None and pair[0] is not x) or (y is not None and pair[1] is not y):
            return None
        if hasattr(result, "_fix_weakref"):  # the Python object of a tensor can be revived by its C++ owner
            result._fix_weakref()
        if state_key(module, entry.argument, result) != entry.key:
            self._entry = None
            return None
        return (*pair, entry.log_det)
