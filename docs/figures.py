"""Makes the figures and tables that pages of the documentation name, from the files of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Published:
    """A published figure beside one of ours.

    Attributes:
        run: name of our run.
        data, model: in words.
        value, source: the figure as it is published, and where.
        ours: key of our figure, in the last row of the run.
        digits: behind the point.
    """

    run: str
    data: str
    model: str
    value: str
    source: str
    ours: str
    digits: int


MAF = "Papamakarios et al. (2017), table 4"
VECTORS = [
    Published(
        "nice", "unit cube", "NICE, 4 couplings of 5 x 1000", "1980.5", "Dinh et al. (2014), figure 3", "test_nats", 1
    ),
    Published("realnvp", "logit space", "RealNVP (5)", "-1323.2 ± 6.6", MAF, "test_nats", 1),
    Published(
        "realnvp-conditional", "logit space", "RealNVP (5), given the digit", "-1326.3 ± 5.8", MAF, "test_nats", 1
    ),
]


def figures_of(runs: Runs) -> dict[str, str]:
    """Makes every figure and table, by name, of the runs that are there."""
    figures: dict[str, str] = {}
    figures["mnist-vectors"] = comparison(VECTORS, runs, unit="nats an image")
    return figures


# ------------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(rows: Sequence[Published], runs: Runs, *, unit: str) -> str:
    """Lays out our figures beside the published ones, and below them the commands."""
    lines, commands = [], []
    for row in rows:
        if row.run not in runs:
            continue
        last = runs[row.run]["rows"][-1]
        ours = f"{last[row.ours]:.{row.digits}f} ± {2 * last[row.ours + '_error']:.{row.digits}f}"
        lines.append([row.data, row.model, f"{row.value} ({row.source})", f"**{ours}**", minutes(last["seconds"])])
        commands.append(command(runs[row.run]["run"]))
    head = ["data", "model", f"published, {unit}", f"ours, {unit}, ± 2 standard errors", "time"]
    return table(head, lines) + "\n\n" + "\n".join(commands)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"


def command(run: Mapping[str, Any]) -> str:
    """Says how a run was made: the command, the commit and the machine."""
    seed = "" if "--seed" in run["command"] else ", seed 0"
    threads = f"{run['device']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    return f"* `{run['command']}`{seed}; commit {run['commit']}, torch {run['torch']}, {threads}"
