"""Python blocks of Markdown pages, run at a tenth of their size."""

import re
from pathlib import Path

COUNT = re.compile(r"\b(steps=|rows=|num_samples=|warmup_steps=|range\()(\d+)")


def shortened(code: str) -> str:
    """Takes a tenth of the steps, rows and samples; everything else runs as it stands."""
    return COUNT.sub(lambda found: f"{found[1]}{int(found[2]) // 10}", code)


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def run(page: Path) -> dict:
    """Runs the blocks in order, in one namespace, which is returned."""
    names: dict = {}
    for block in blocks_of(page):
        exec(compile(shortened(block), str(page), "exec"), names)
    return names
