"""Signals that wait until a training has saved its state."""

import os
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
        self._watcher: _Watcher | None = None

    def __enter__(self) -> "Interruption":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._watcher = _Watcher()
            self._earlier = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            # None is one that was not installed from Python, and cannot be from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._earlier = {}
        if self._watcher is not None:
            self._watcher.end()
            self._watcher = None

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


class _Watcher:
    """Ends the process at the second signal, even while Python's handlers wait for a call of compiled code to return.

    Such a call may hang: a collective operation whose other process is gone, say. But the number of every signal is at
    once written to a pipe, which a thread reads.
    """

    writing: "_Watcher | None" = None  # to the pipe of which the signals of this process are written

    def __init__(self) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._earlier = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._outer, _Watcher.writing = _Watcher.writing, self
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._earlier)
        _Watcher.writing = self._outer
        os.write(self._write, b"\0")  # not only closed: processes that were forked have it open, too
        os.close(self._write)

    @staticmethod
    def _watch(read: int) -> None:
        count = 0
        while (byte := os.read(read, 1)) not in (b"", b"\0"):
            count += byte[0] in _SIGNALS
            if count == 2:
                os._exit(128 + byte[0])
        os.close(read)


def _forked() -> None:
    # The workers of a DataLoader receive Ctrl-C, too, and would count as the second one.
    if _Watcher.writing is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forked)
