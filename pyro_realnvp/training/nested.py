"""Nested states of optimizers, schedules and loops as tensors and plain JSON, and back, without pickle."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._runtime.arguments import shown
from .._runtime.reasons import reason


def flatten(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Turns dicts, lists and tuples of tensors, numbers, strings and None into a JSON value and its tensors.

    Raises:
        ValueError: if there is anything else inside; the message names where.
    """
    tensors: dict[str, Tensor] = {}

    def tree(value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            key = f"{len(tensors)}{place}"
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, Mapping):
            return {"dict": [[tree(k, place), tree(v, f"{place}.{k}")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [tree(each, f"{place}.{index}") for index, each in enumerate(value)]}
        raise ValueError(
            f"The state of a training is made of tensors, numbers, strings, lists and dicts, but{place} is a "
            f"{type(value).__name__}."
        )

    return tree(value, " "), tensors


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undoes :func:`flatten`.

    Raises:
        ValueError: if the JSON value is none that :func:`flatten` has made, or has other tensors.
    """
    left = dict(tensors)
    value = _made(tree, left)
    if left:
        raise ValueError(f"the state of a training has no place for a tensor {shown(min(left))}.")
    return value


def _made(tree: Any, left: dict[str, Tensor]) -> Any:
    """Makes the value of a JSON value, and takes out the tensors that it has; each has one place."""
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case {"tensor": str(key), **rest} if not rest and key in left:
            return left.pop(key)
        case {"list": list(parts), **rest} if not rest:
            return [_made(part, left) for part in parts]
        case {"tuple": list(parts), **rest} if not rest:
            return tuple(_made(part, left) for part in parts)
        case {"dict": list(pairs), **rest} if not rest and all(type(pair) is list and len(pair) == 2 for pair in pairs):
            try:
                made = {_made(key, left): _made(value, left) for key, value in pairs}
            except TypeError as error:
                raise ValueError(f"the state of a training has a dict that is none: {reason(error)}") from error
            if len(made) == len(pairs):
                return made
    raise ValueError(f"the state of a training has a part that is not known, {shown(tree)}.")
