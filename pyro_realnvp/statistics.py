"""When running statistics and data-dependent initialisation must not move.

They belong to the data direction of training, once a step. Sampling in training mode, and computing again what has been
computed before, happen inside :func:`hold_statistics`.
"""

from __future__ import annotations

__all__ = ["hold_statistics", "statistics_are_held"]

_held = False


class hold_statistics:  # noqa: N801  # a context manager, of a class since the generator of contextlib is slower
    """Inside, layers in training mode use batch statistics but do not remember them."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        global _held
        self._before, _held = _held, True

    def __exit__(self, *exception: object) -> None:
        global _held
        _held = self._before


def statistics_are_held() -> bool:
    return _held
