"""The reason of an error is the end of a sentence, whatever the error says."""

import pytest

from pyro_realnvp._runtime.arguments import shown
from pyro_realnvp._runtime.reasons import ERRORS, reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x must be 1."), "x must be 1."),
        (ValueError("no full stop"), "no full stop."),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch\n"), "Error(s) in loading: size mismatch."),
        (ValueError("ends with:"), "ends with."),
        (KeyError("weight"), "KeyError: 'weight'."),
        (TypeError("f() takes 1 argument"), "TypeError: f() takes 1 argument."),
        (MemoryError(), "MemoryError."),
        (ValueError(), "ValueError."),
        (ValueError("a\0b\x1b[31mc"), "a b [31mc."),
        (ValueError("x" * 1000), "x" * 400 + " and so on."),
    ],
)
def test_reasons(error, expected):
    assert reason(error) == expected


def test_what_torch_and_python_raise():
    assert issubclass(RecursionError, ERRORS)
    assert issubclass(ZeroDivisionError, ERRORS)
    assert issubclass(IndexError, ERRORS)
    assert not issubclass(KeyboardInterrupt, ERRORS)


def test_values_that_are_too_deep_are_shown_by_their_type():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "list"
    assert shown([1, 2]) == "[1, 2]"
