"""Fills figures into the pages of the documentation, from the files of runs: python docs/results.py

    python docs/results.py                       writes every page again
    python docs/results.py --add NAME FOLDER     first takes over run.json and metrics.jsonl of a run, as NAME

A page marks a figure, or a table, by its name: <!--result NAME-->1985.1<!--/result-->. docs/figures.py says what stands
there. The files of runs are benchmarks/results/NAME.json; nothing in a page between marks is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!--result ([\w-]+)-->(.*?)<!--/result-->", re.S)


def load_runs() -> dict[str, dict[str, Any]]:
    """Reads every file of a run: its name, and {"run": ..., "rows": [...]}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RUNS.glob("*.json"))}


def add(name: str, folder: Path) -> None:
    """Takes over a run: what run.json says of it, and all rows of metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    run = json.loads((folder / "run.json").read_text())
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    RUNS.mkdir(exist_ok=True)
    (RUNS / f"{name}.json").write_text(f'{{\n  "run": {json.dumps(run)},\n  "rows": [\n    {lines}\n  ]\n}}\n')


def fill(page: str, figures: Mapping[str, str]) -> str:
    """Puts every figure that a page names between its marks; a table stands on lines of its own.

    Raises:
        ValueError: if there is no figure of a name.
    """

    def put(match: re.Match[str]) -> str:
        name = match[1]
        if name not in figures:
            raise ValueError(f"There is no figure {name!r}; docs/figures.py has {', '.join(sorted(figures))}.")
        text = figures[name]
        if "\n" in text:
            text = f"\n\n{text}\n\n"
        return f"<!--result {name}-->{text}<!--/result-->"

    return MARK.sub(put, page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("NAME", "FOLDER"), help="take over a run first")
    options = parser.parse_args(argv)
    if options.add:
        add(options.add[0], Path(options.add[1]))
    sys.path.insert(0, str(Path(__file__).parent))
    from figures import figures_of

    figures = figures_of(load_runs())
    for path in PAGES:
        page = path.read_text()
        if (filled := fill(page, figures)) != page:
            path.write_text(filled)
            print(f"{path.relative_to(ROOT)} has new figures")


if __name__ == "__main__":
    main()
