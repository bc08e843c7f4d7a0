"""Holds running statistics and data-dependent initialisation where they must not change.

They belong to the data direction of training, once a step. Sampling in training mode, and recomputing in backward,
happen inside :func:`hold_statistics`.
"""

_held = False


class hold_statistics:  # noqa: N801  # a context manager; a class, since a generator of contextlib is slower
    """Lets layers in training mode use batch statistics without remembering them, inside a ``with`` block."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        global _held
        self._before, _held = _held, True

    def __exit__(self, *exception: object) -> None:
        global _held
        _held = self._before


def statistics_are_held() -> bool:
    """Returns whether running statistics are held now."""
    return _held
