"""Where the coordinates of a vector lie: on the real line, in an interval, or on a circle."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from .checks import finite_number, integers

Intervals = Annotated[Sequence[Sequence[float]], "a sequence of triples (coordinate, low, high)"]


class Coordinate(NamedTuple):
    """The values that a coordinate can have: from ``low`` to ``high``, which on the circle are the same point."""

    low: float = -math.inf
    high: float = math.inf
    circular: bool = False

    @property
    def is_bounded(self) -> bool:
        return self.high < math.inf


Coordinates = tuple[Coordinate, ...]
REAL = Coordinate()
ANGLE = Coordinate(-math.pi, math.pi, circular=True)


def coordinates_of(name: str, dim: int, circular: Sequence[int], intervals: Sequence[Sequence[float]]) -> Coordinates:
    """Returns where each of ``dim`` coordinates lies, of which those that are not mentioned are real.

    Args:
        name: of the class or function that takes the arguments, for errors.
        dim: D.
        circular: indices of angles.
        intervals: triples (index, low, high) of the coordinates in an interval.

    Raises:
        ValueError: if an index is not in 0, ..., D - 1, is mentioned twice, or an interval is empty or not finite.
    """
    found: dict[int, Coordinate] = {}
    for index in integers(name, "circular", circular):
        _enter(found, name, dim, index, ANGLE)
    for interval in intervals:
        if len(interval) != 3:
            raise ValueError(f"{name} needs triples (coordinate, low, high) as intervals, but got {tuple(interval)}.")
        (index,) = integers(name, "the coordinate of an interval", interval[0])  # type: ignore[arg-type]
        low, high = (
            finite_number(f"{end} of intervals of {name}", value)
            for end, value in zip(("low", "high"), interval[1:], strict=True)
        )
        if not low < high:
            raise ValueError(f"{name} needs intervals with low < high, but got low={low} and high={high}.")
        _enter(found, name, dim, index, Coordinate(low, high))
    return tuple(found.get(index, REAL) for index in range(dim))


def _enter(found: dict[int, Coordinate], name: str, dim: int, index: int, coordinate: Coordinate) -> None:
    if not 0 <= index < dim:
        raise ValueError(f"{name} has coordinates 0 to {dim - 1}, but circular or intervals name {index}.")
    if index in found:
        raise ValueError(f"{name} needs every coordinate in circular or intervals at most once, but got {index} twice.")
    found[index] = coordinate
