"""Signals that wait until a training has saved its state."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Receives SIGTERM and Ctrl-C inside a ``with`` block: they wait while a step is made, and else end it at once.

    A second one always ends the process at once. In a thread other than the main one, where Python handles no signals,
    nothing happens.

    Attributes:
        received: number of the signal that waits; 0 if there is none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._waits = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    @contextmanager
    def waiting(self, *, waits: bool = True) -> Iterator[None]:
        """Lets signals wait inside a ``with`` block, until :meth:`stop` is called; or not, within such a block."""
        before, self._waits = self._waits, waits
        try:
            yield
        finally:
            self._waits = before

    def stop(self) -> NoReturn:
        """Ends the block, as the signal that has waited would have: by KeyboardInterrupt or SystemExit(143)."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.received = number
        if not self._waits:
            self.stop()
