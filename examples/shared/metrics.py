"""Writes the rows of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from pyro_realnvp.training.files import naming, replace


class Metrics:
    """Appends rows to ``metrics.jsonl`` in a folder, and measures the seconds of the run.

    The rows are part of what a checkpoint tracks: when a run goes on, the file is written again with those that the
    checkpoint has, so that rows of steps that are now made once more, or half a row, do not stay.

    Args:
        folder: of the file.
        quiet: write nothing, as all processes but the first do.
    """

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self.path, self.quiet = folder / "metrics.jsonl", quiet
        self.rows: list[dict[str, Any]] = []
        self._start = perf_counter()

    def write(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        if not self.quiet:
            with naming(self.path), self.path.open("a" if len(self.rows) > 1 else "w") as file:
                file.write(json.dumps(dict(row)) + "\n")

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run, without the time in which it was stopped."""
        return round(perf_counter() - self._start, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._start = perf_counter() - float(state["seconds"])
        if not self.quiet:
            replace(self.path, ["".join(json.dumps(row) + "\n" for row in self.rows).encode()])
