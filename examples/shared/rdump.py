"""Reads data that R has written by ``dump``, as the example models of Stan have it.

N <- 3
y <-
structure(c(1L, 0L, NA, 2.5e-1, 4, 5), .Dim = 2:3)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?L?"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>{_NUMBER}|[-+]?Inf\b|NaN\b|NA\b)|(?P<quoted>\"[^\"]*\"|`[^`]*`)|(?P<word>\.?[A-Za-z][\w.]*)"
    r"|(?P<sign><-|[=(),:;]))"
)
_SPECIAL = {"NA": math.nan, "NaN": math.nan, "Inf": math.inf, "+Inf": math.inf, "-Inf": -math.inf}


def read_rdump(path: Path) -> dict[str, Tensor]:
    """Reads a file by :func:`parse_rdump`; it names the file where the text cannot be read."""
    try:
        return parse_rdump(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_rdump(text: str) -> dict[str, Tensor]:
    """Returns the variables of a dump, in double precision.

    One number has shape (), ``c(...)`` and ``a:b`` have (n,), and ``structure(..., .Dim = c(...))`` has these
    dimensions, filled with the first index running fastest. ``NA`` becomes NaN.

    Raises:
        ValueError: if the text is anything else.
    """
    reader = _Reader(text)
    variables: dict[str, Tensor] = {}
    while not reader.is_at_end:
        name = reader.name()
        reader.expect("<-", "=")
        variables[name] = reader.value(name)
        reader.accept(";")
    return variables


class _Reader:
    """Takes one token after the other from a text, and looks one ahead."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(re.sub(r"#[^\n]*", "", text).rstrip())
        self._kind, self._next = next(self._tokens)

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise ValueError(f"No dump of R has {text[place:].split()[0]!r}.")
            place = match.end()
            yield str(match.lastgroup), match[str(match.lastgroup)]
        yield "end", ""

    @property
    def is_at_end(self) -> bool:
        return self._kind == "end"

    @property
    def _seen(self) -> str:
        return "its end" if self.is_at_end else repr(self._next)

    def _take(self) -> str:
        taken = self._next
        if not self.is_at_end:
            self._kind, self._next = next(self._tokens)
        return taken

    def accept(self, *signs: str) -> bool:
        """Takes the next token if it is one of these."""
        found = self._kind in ("sign", "word") and self._next in signs
        if found:
            self._take()
        return found

    def expect(self, *signs: str) -> None:
        if not self.accept(*signs):
            raise ValueError(f"A dump of R needs {' or '.join(signs)} here, but has {self._seen}.")

    def name(self) -> str:
        if self._kind not in ("word", "quoted"):
            raise ValueError(f"A dump of R needs the name of a variable here, but has {self._seen}.")
        return self._take().strip('"`')

    def value(self, name: str) -> Tensor:
        if not self.accept("structure"):
            numbers, is_scalar = self._numbers(name)
            value = torch.tensor(numbers, dtype=torch.float64)
            return value[0] if is_scalar else value
        self.expect("(")
        numbers, _ = self._numbers(name)
        self.expect(",")
        self.expect(".Dim")
        self.expect("=")
        shape = [int(size) for size in self._numbers(name)[0]]
        self.expect(")")
        if math.prod(shape) != len(numbers):
            raise ValueError(f"The variable {name} has dimensions {shape}, but {len(numbers)} numbers.")
        return torch.tensor(numbers, dtype=torch.float64).reshape(shape[::-1]).permute(*range(len(shape))[::-1])

    def _numbers(self, name: str) -> tuple[list[float], bool]:
        """Returns the numbers of ``c(...)``, of a:b or of one number, and whether it is but one number."""
        if not self.accept("c"):
            numbers = self._range(name)
            return numbers, len(numbers) == 1
        self.expect("(")
        numbers = []
        while not self.accept(")"):
            numbers += self._range(name)
            if not self.accept(","):
                self.expect(")")
                break
        return numbers, False

    def _range(self, name: str) -> list[float]:
        first = self._number(name)
        if not self.accept(":"):
            return [first]
        last = self._number(name)
        step = 1 if first <= last else -1
        return [float(number) for number in range(int(first), int(last) + step, step)]

    def _number(self, name: str) -> float:
        if self._kind != "number":
            raise ValueError(f"The variable {name} needs a number here, but has {self._seen}.")
        text = self._take()
        return _SPECIAL[text] if text in _SPECIAL else float(text.rstrip("L"))
