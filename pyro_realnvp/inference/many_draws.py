"""Says what a model needs so that it runs on many draws at once, where it fails to."""

from collections.abc import Iterator
from contextlib import contextmanager

NEEDS = (
    "Many draws are made at once, along a new dimension on the left: index latent sites from the right, a[..., group] "
    "instead of a[group], sum along negative dimensions, and declare batch dimensions by plates."
)


@contextmanager
def explained(instead: str, *, many: bool) -> Iterator[None]:
    """Adds a note to an error of shapes or indices that a model raises inside a ``with`` block.

    Args:
        instead: what to call if the model cannot be written so.
        many: whether many draws are made at once; else nothing is added.
    """
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        # Pyro raises ValueErrors for other reasons too, such as a NaN.
        if many and (not isinstance(error, ValueError) or "shape" in str(error).lower()):
            error.add_note(f"{NEEDS} If that is not possible: {instead}.")
        raise
