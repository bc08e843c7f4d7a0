"""When running statistics and data-dependent initialisation must not move.

They belong to the data direction of training, once a step. Sampling in training mode, and computing again what has been
computed before, happen inside :func:`hold_statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hold_statistics", "statistics_are_held"]

_held = False


@contextmanager
def hold_statistics() -> Iterator[None]:
    """Inside, layers in training mode use batch statistics but do not remember them."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


def statistics_are_held() -> bool:
    return _held
