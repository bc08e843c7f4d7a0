"""Makes the figures and tables that pages of the documentation name, from the files of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
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


TIGHT = "test_bits_per_dim_of_8_draws"
FLOWS = {"realnvp": "RealNVP", "glow": "Glow", "spline": "Glow with splines", "flowpp": "Flow++", "nice": "NICE"}


def figures_of(runs: Runs) -> dict[str, str]:
    """Makes every figure and table, by name, of the runs that are there."""
    figures = {"mnist-vectors": comparison(VECTORS, runs, unit="nats an image")}
    figures |= {row.run: f"{runs[row.run]['rows'][-1][row.ours]:.{row.digits}f}" for row in VECTORS if row.run in runs}
    figures |= example_figures(runs)
    for data in ("mnist", "fashion-mnist"):
        images = {name: run for name, run in runs.items() if name.rpartition("-")[0] == data}
        if images:
            figures[f"{data}-images"] = image_table(images)
            figures[f"{data}-commands"] = "\n".join(command(run["run"]) for run in images.values())
            last = [run["rows"][-1] for run in images.values()]
            figures[f"{data}-pixels"] = f"{last[0]['histogram_bits_per_dim']:.2f}"
            figures |= {name: f"{row[TIGHT]:.3f}" for name, row in zip(images, last, strict=True)}
    parts = [run for name, run in runs.items() if name.partition("-")[0] == "simulators"]
    if parts:
        tasks = [row for part in parts for row in part["rows"] if "mean_c2st" in row]
        figures["simulators"] = simulator_table(tasks)
        figures["simulators-command"] = "\n".join(command(part["run"]) for part in parts)
        below = sum(row["mean_c2st"] < row["published_npe"] for row in tasks)
        figures["simulators-below"] = f"{below} of {len(tasks)}"
        gap = mean(row["published_npe"] - row["mean_c2st"] for row in tasks)
        figures["simulators-gap"] = f"{abs(gap):.3f} {'below' if gap > 0 else 'above'}"
    if "guides" in runs:
        _, *posteriors = runs["guides"]["rows"]
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
    for name in ("vae", "vae-network"):
        if name in runs:
            tests = [row for row in runs[name]["rows"] if "test_elbo" in row]
            figures[name] = vae_table(tests)
            figures[f"{name}-command"] = command(runs[name]["run"])
            figures |= {f"{name}-gain": gain(row) for row in tests if row["model"] == "flow prior, normal posterior"}
    return figures


def simulator_table(rows: Sequence[Row]) -> str:
    head = ["task", "published NPE", "ours, ± 2 standard errors over observations", "chosen", "training"]
    lines = []
    for row in rows:
        kind = "on the box" if row["bounded"] else "on the whole space"
        chosen = f"{kind}, dropout {row['dropout']:g}, decay {row['weight_decay']:g}"
        ours = f"**{row['mean_c2st']:.3f}** ± {2 * row['mean_c2st_error']:.3f}"
        name = row["task"].replace("_", " ")
        lines.append([name, f"{row['published_npe']:.3f}", ours, chosen, minutes(row["seconds"])])
    return table(head, lines)


def image_table(runs: Runs) -> str:
    """Lays out the flows of images of one data set, and where validation stood at each quarter of the training."""
    head = ["flow", "parameters", "steps", "minutes", "test, 1 draw", "test, 8 draws", "validation at each quarter"]
    lines = []
    for name, run in runs.items():
        *intervals, last = run["rows"]
        steps = intervals[-1]["step"]
        quarters = [min(intervals, key=lambda row: abs(row["step"] - share * steps)) for share in (0.25, 0.5, 0.75, 1)]
        line = [FLOWS[name.rpartition("-")[2]], f"{last['trainable_parameters']:,}", f"{steps:,}"]
        line.append(f"{last['seconds'] / 60:.0f}")
        line.append(f"{last['test_bits_per_dim']:.3f} ± {2 * last['test_bits_per_dim_error']:.3f}")
        error = last.get(f"{TIGHT}_error")  # which older runs have not kept
        line.append(f"**{last[TIGHT]:.3f}**" + (f" ± {2 * error:.3f}" if error is not None else ""))
        lines.append([*line, ", ".join(f"{row['validation_bits_per_dim']:.3f}" for row in quarters)])
    return table(head, lines)


def digit_table(rows: Mapping[str, Row]) -> str:
    head = ["flow", "parameters", "test, 1 draw, ± 2 standard errors", "test, 8 draws", "time"]
    lines = []
    for name, row in rows.items():
        _, flow, *rest = name.split("-")
        found = f"{row['test_bits_per_dim']:.3f} ± {2 * row['test_bits_per_dim_error']:.3f}"
        tight = f"{row[TIGHT]:.3f}"
        words = FLOWS[flow] + (", uniform noise" if rest else "")
        lines.append([words, f"{row['trainable_parameters']:,}", found, tight, minutes(row["seconds"])])
    return table(head, lines)


def example_figures(runs: Runs) -> dict[str, str]:
    """Makes the figures of the examples, from the last rows of their runs."""
    last = {name: run["rows"][-1] for name, run in runs.items()}
    digits = {name: row for name, row in last.items() if name.startswith("digits-")}
    figures = {name: f"{row['test_bits_per_dim']:.2f}" for name, row in digits.items() if name.count("-") == 1}
    if "digits-realnvp" in digits:
        figures["digits"] = digit_table(digits)
        figures["digits-pixels"] = f"{digits['digits-realnvp']['histogram_bits_per_dim']:.2f}"
        figures["digits-commands"] = "\n".join(command(runs[name]["run"]) for name in digits)
    for name, precision in (("two-moons", 4), ("two-moons-3000", 3)):
        found = [row["test_kl"] for run, row in last.items() if run.rpartition("-")[0] == name]
        if found:
            figures[name] = f"{median(found):.{precision}f}"
            figures[f"{name}-each"] = ", ".join(f"{value:.{precision}f}" for value in found)
            names = [run for run in runs if run.rpartition("-")[0] == name]
            figures[f"{name}-commands"] = "\n".join(command(runs[run]["run"]) for run in names)
    if "energies" in runs:
        tests = [row for row in runs["energies"]["rows"] if "forward_ess" in row]
        figures["energies"] = listed([f"{row['ess']:.0f}" for row in tests]) + " %"
    if "simulator" in last:
        figures["simulator-kl"] = f"{last['simulator']['test_kl']:.2f}"
        figures["simulator-c2st"] = ", ".join(f"{value:.2f}" for value in last["simulator"]["c2st"])
    return figures


def listed(words: Sequence[str]) -> str:
    """Lists words: "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def posterior_table(rows: Sequence[Row]) -> str:
    head = ["posterior", "latents", "steps", "seconds", "largest error of a mean, in sd", "of an sd", "k-hat"]
    lines = [
        [
            row["posterior"].partition("-")[0].replace("_", " "),
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


def vae_table(rows: Sequence[Row]) -> str:
    head = ["model", "test ELBO, nats an image", "bound of 100 draws", "gain of the ELBO", "best step", "time"]
    lines = []
    for row in rows:
        line = [row["model"]]
        line += [f"{row[name]:.2f} ± {2 * row[name + '_error']:.2f}" for name in ("test_elbo", "test_bound")]
        lines.append([*line, gain(row) if row["gain"] else "", f"{row['best_step']:,}", minutes(row["seconds"])])
    return table(head, lines)


def gain(row: Row) -> str:
    """Says by how much a model is better than that without flows, with two standard errors over the images."""
    return f"{row['gain']:.1f} ± {2 * row['gain_error']:.1f}"


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
