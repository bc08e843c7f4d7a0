"""Writes the rows of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any


class Metrics:
    """Appends rows to ``metrics.jsonl`` in a folder, and measures the seconds since it was made.

    Args:
        folder: is created; the rows of an earlier run there are deleted.
        quiet: write nothing, as all processes but the first do.
        step, seconds: of an earlier process that this one continues: its rows up to that step stay.
    """

    def __init__(self, folder: Path, *, quiet: bool = False, step: int = 0, seconds: float = 0.0) -> None:
        self.path, self.quiet = folder / "metrics.jsonl", quiet
        self._start = perf_counter() - seconds
        if not quiet:
            folder.mkdir(parents=True, exist_ok=True)
            rows = self.path.read_text().splitlines(keepends=True) if step and self.path.is_file() else []
            self.path.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))

    def write(self, row: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    @property
    def seconds(self) -> float:
        return round(perf_counter() - self._start, 1)
