"""Nested states of optimizers, schedules and loops as tensors and plain JSON, and back, without pickle."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


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
        ValueError: if the JSON value is none that :func:`flatten` has made.
    """
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case {"tensor": str(key), **rest} if not rest and key in tensors:
            return tensors[key]
        case {"list": list(parts), **rest} if not rest:
            return [unflatten(part, tensors) for part in parts]
        case {"tuple": list(parts), **rest} if not rest:
            return tuple(unflatten(part, tensors) for part in parts)
        case {"dict": list(pairs), **rest} if not rest:
            try:
                return {unflatten(key, tensors): unflatten(value, tensors) for key, value in pairs}
            except TypeError as error:
                raise ValueError(f"The state of a training has a dict that is none: {error}.") from error
    raise ValueError(f"The state of a training has a part that is not known: {tree!r:.100}.")
