"""One remembered result per bijection, which cannot lie.

Pyro's and torch's transform caches compare the input alone, so that they answer with stale values after a parameter
update. This one also compares everything else the result depends on; see :class:`Memo`.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Memo", "fingerprint"]


class Owner(Protocol):
    def state_key(self, given: Tensor, made: Tensor) -> list[Any] | None: ...


def fingerprint(module: nn.Module) -> list[int]:
    """What identifies the values of all parameters and buffers without reading them."""
    found: list[int] = []
    stack = [module]
    while stack:
        current = stack.pop()
        for tensors in (current._parameters, current._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    found += (id(tensor), tensor._version, tensor.data_ptr())
        stack += [child for child in current._modules.values() if child is not None]
    return found


class Memo:
    """The last (x, y, log|det dy/dx|) of one bijection, kept for the call that follows and only while it is true.

    The tensor that was given is held strongly and the one that was made from it weakly: when the user drops the
    result, the entry goes too and with it the graph.
    """

    __slots__ = ("__weakref__", "_entry")

    def __init__(self) -> None:
        self._entry: tuple[Any, ...] | None = None

    def clear(self) -> None:
        self._entry = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Memo:
        return Memo()

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()

    def store(self, owner: Owner, given: Tensor, made: Tensor, log_det: Tensor, *, forward: bool) -> None:
        self._entry = None
        key = owner.state_key(given, made)
        if key is None or given is made:
            return
        memo = weakref.ref(self)

        def forget(dead: weakref.ref[Tensor]) -> None:
            alive = memo()
            if alive is not None and alive._entry is not None and alive._entry[1] is dead:
                alive._entry = None

        self._entry = (given, weakref.ref(made, forget), log_det, forward, key)

    def _pair(self, owner: Owner) -> tuple[Tensor, Tensor, Tensor] | None:
        """The remembered (x, y, log_det), or None if there is none or something has changed since."""
        if self._entry is None:
            return None
        given, made_ref, log_det, forward, key = self._entry
        made = made_ref()
        if made is None:
            return None
        if hasattr(made, "_fix_weakref"):  # the Python object of a tensor can be revived by its C++ owner
            made._fix_weakref()
        if owner.state_key(given, made) != key:
            self._entry = None
            return None
        return (given, made, log_det) if forward else (made, given, log_det)

    def output_of(self, owner: Owner, x: Tensor) -> Tensor | None:
        if self._entry is None or not (self._entry[0] is x or self._entry[1]() is x):
            return None
        pair = self._pair(owner)
        return pair[1] if pair is not None and pair[0] is x else None

    def input_of(self, owner: Owner, y: Tensor) -> Tensor | None:
        if self._entry is None or not (self._entry[0] is y or self._entry[1]() is y):
            return None
        pair = self._pair(owner)
        return pair[0] if pair is not None and pair[1] is y else None

    def take_log_det(self, owner: Owner, x: Tensor, y: Tensor) -> Tensor | None:
        """The log-determinant of this very pair; given once, so that no graph is backpropagated twice."""
        pair = self._pair(owner)
        if pair is None or pair[0] is not x or pair[1] is not y:
            return None
        self._entry = None
        return pair[2]
