"""Remembers one result per bijection, and never returns a stale one.

Pyro's and torch's transform caches compare the input alone, so that they return stale values after a parameter update.
This one also compares everything else that the result depends on; see :class:`Cache`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

Key = Callable[[Tensor, Tensor], list[Any] | None]


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
    and with it the graph. A key says everything else that the result depends on, or None where that cannot be told.
    What one thread has computed is not returned to another.
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

    def store(self, key: Key, argument: Tensor, result: Tensor, log_det: Tensor, *, forward: bool) -> None:
        self._entry = None
        state = key(argument, result)
        if state is None or argument is result:
            return
        cache = weakref.ref(self)

        def forget(dead: weakref.ref[Tensor]) -> None:
            alive = cache()
            if alive is not None and alive._entry is not None and alive._entry.result is dead:
                alive._entry = None

        self._entry = _Entry(argument, weakref.ref(result, forget), log_det, forward, state, get_ident())

    def recall(
        self, key: Key, *, x: Tensor | None = None, y: Tensor | None = None
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
        if key(entry.argument, result) != entry.key:
            self._entry = None
            return None
        return (*pair, entry.log_det)
