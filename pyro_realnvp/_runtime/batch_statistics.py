"""Holds running statistics and data-dependent initialisation where they must not change.

They belong to the data direction of training, once a step. Sampling in training mode, and recomputing in backward,
happen inside :func:`hold_statistics`. Each thread has its own state: one that samples does not hold the statistics of
another that trains.
"""

import threading


class _State(threading.local):
    def __init__(self) -> None:  # in every thread: Dynamo guards that the attribute is there, or not
        self.held = False


_state = _State()


class NotFiniteError(ValueError):
    """Raised by a layer whose batch is NaN or infinite, before it would remember statistics of it."""


class hold_statistics:  # noqa: N801  # a context manager; a class, since a generator of contextlib is slower
    """Lets layers in training mode use batch statistics without remembering them, inside a ``with`` block."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before, _state.held = _state.held, True

    def __exit__(self, *exception: object) -> None:
        _state.held = self._before


def statistics_are_held() -> bool:
    """Returns whether running statistics are held now, in this thread."""
    return _state.held
