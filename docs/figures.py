"""Makes the figures and tables that pages of the documentation name, from the files of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]
Row = Mapping[str, Any]


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
    figures = {"mnist-vectors": comparison(VECTORS, runs, unit="nats an image")}
    if "guides" in runs:
        step, *posteriors = runs["guides"]["rows"]
        figures["step-ratio"] = f"{step['ratio']:.2f}"
        figures["posteriors"] = posterior_table(posteriors)
        figures["posteriors-command"] = command(runs["guides"]["run"])
        figures["posteriors-mean"] = f"{max(row['mean_error'] for row in posteriors):.3f} sd"
        figures["posteriors-sd"] = f"{100 * max(row['sd_error'] for row in posteriors):.1f} %"
        seconds = [row["seconds"] for row in posteriors]
        figures["posteriors-seconds"] = f"{min(seconds):.0f} to {max(seconds):.0f} s"
        pareto = [row["pareto_k"] for row in posteriors]
        figures["posteriors-khat"] = f"{min(pareto):.2f} to {max(pareto):.2f}"
    if "bbvi" in runs:
        figures["bbvi"] = bbvi_table(runs["bbvi"]["rows"])
        figures["bbvi-command"] = command(runs["bbvi"]["run"])
    if "neutra" in runs:
        figures["neutra"] = neutra_table(runs["neutra"]["rows"])
        figures["neutra-command"] = command(runs["neutra"]["run"])
        for row in runs["neutra"]["rows"]:
            if "gain_total" in row:
                figures[f"neutra-{row['target']}"] = f"{row['gain_total']:.0f}"
    return figures


def posterior_table(rows: Sequence[Row]) -> str:
    head = ["posterior", "latents", "steps", "seconds", "largest error of a mean, in sd", "of an sd", "k-hat"]
    lines = [
        [
            row["posterior"],
            str(row["latents"]),
            f"{row['steps']:,}",
            f"{row['seconds']:.0f}",
            f"{row['mean_error']:.3f}",
            f"{100 * row['sd_error']:.1f} %",
            f"{row['pareto_k']:.2f}",
        ]
        for row in rows
    ]
    return table(head, lines)


def bbvi_table(rows: Sequence[Row]) -> str:
    methods = list(rows[0]["published"])
    lines = [
        [
            row["model"],
            str(row["latents"]),
            f"{row['elbo']:.2f}",
            f"{row['pareto_k']:.2f}",
            f"{row['seconds']:.0f}",
            *(f"{row['published'][method]:.2f}" for method in methods),
        ]
        for row in rows
    ]
    return table(["model", "latents", "ours", "k-hat", "seconds", *methods], lines)


def neutra_table(rows: Sequence[Row]) -> str:
    """Lays out the samplers of every target; rows of the training of guides are left out."""
    head = [
        "target",
        "sampler",
        "effective draws",
        "gradients with warm-up and training",
        "gain",
        "sd over the true sd",
    ]
    lines = []
    for row in rows:
        if "min_bulk_ess" in row and "sd_ratio" in row:
            gradients = row["gradients"] + row["gradients_warmup"] + row["gradients_training"]
            gain = f"{row['gain_total']:.0f}" if "gain_total" in row else "1"
            line = [row["target"], row["sampler"], f"{row['min_bulk_ess']:,.0f}", f"{gradients:,}", gain]
            lines.append([*line, f"{row['sd_ratio']:.2f}"])
    return table(head, lines)


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
