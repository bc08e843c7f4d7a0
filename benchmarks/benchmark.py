"""Measures how fast the flows are: beside their networks alone, a loop by hand, and other libraries.

    pip install -e '.[bench]'                          # the other libraries; any that is missing is left out
    python benchmarks/benchmark.py                     # everything
    python benchmarks/benchmark.py --full              # images as large as in docs/speed.md
    python benchmarks/benchmark.py --only vector-64    # one workload
    python benchmarks/benchmark.py --only glow nflows normflows --device cuda

The *floor* of a contestant is its networks alone, on the same inputs, eager and contiguous: what no library can beat
without touching the networks. Glow of other libraries has networks of its own, and so a floor of its own. Every kind of
work is timed in rounds, in which all contestants take turns, in reversed order every other round; a ratio is the median
over the rounds of the ratio within a round, so that a machine whose speed drifts does not favour anyone. Absolute times
mean little on a shared machine, and differences below 7 % nothing.

"saved" is the most memory that autograd holds at once for backward, in forward + backward, without parameters and
buffers. ``--out`` receives ``benchmark.csv`` and ``benchmark.png``.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib

matplotlib.use("Agg")  # before pyplot: the picture is a file, and no display is needed

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

from contestants import Contestant, networks_alone
from workloads import BARE, KINDS, NETWORKS, Workload, workloads

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))  # its options are checked as theirs

from shared.option_types import COUNT, SEED, out_folder, whole

TRAINING = ("forward + backward", "training step")  # the other kinds are timed in evaluation mode
SAVED, PARAMETERS = "saved", "parameters"
UNITS = {SAVED: " MiB", PARAMETERS: ""}
SIZES = {
    "full": "large images, and compiled flows of images: much longer",
    "tiny": "sizes that only show that everything runs",
}
PACKAGES = {"zuko": "zuko", "normflows": "normflows", "nflows": "nflows", "freia": "FrEIA"}

Times = dict[str, list[float]]


# --------------------------------------------------------------------------------------------------- measuring


class SavedForBackward:
    """Counts the memory that autograd holds for backward while it is active: now, and at its peak.

        with SavedForBackward(module) as saved: ...
        saved.peak  # bytes

    Every storage counts once, as a whole; parameters and buffers of the module do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._owned:
            self._hold(storage.data_ptr(), storage.nbytes())
            weakref.finalize(held, self._release, storage.data_ptr(), storage.nbytes())
        return held

    @staticmethod
    def _unpack(held: _Held) -> Tensor:
        return held.tensor

    def _hold(self, place: int, size: int) -> None:
        self._holders[place] += 1
        if self._holders[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if self._holders[place] == 0:
            self.now -= size


class _Held:
    """Stands for a saved tensor; it dies when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(contestant: Contestant, kind: str, data: Tensor) -> float:
    contestant.module.zero_grad(set_to_none=True)
    Distribution.set_default_validate_args(__debug__)  # the first torch.compile of a process switches it off
    x = data.clone()  # caches by the identity of tensors have not seen it
    synchronize(data.device)
    start = perf_counter()
    result = contestant.work[kind](x)
    synchronize(data.device)
    seconds = perf_counter() - start
    del result  # here, for everyone: freeing a graph takes time too
    return seconds


def time_kind(field: Mapping[str, Contestant], kind: str, data: Tensor, *, rounds: int, warmup: int) -> Times:
    """Measures milliseconds of every round, by contestant; they take turns, in reversed order every other round."""
    for contestant in field.values():
        contestant.module.train(kind in TRAINING)
    names = list(field)
    times: Times = {name: [] for name in names}
    for index in range(-warmup, rounds):
        for name in names if index % 2 == 0 else reversed(names):
            seconds = seconds_of(field[name], kind, data)
            if index >= 0:
                times[name].append(1e3 * seconds)
    return times


def saved_bytes(contestant: Contestant, data: Tensor) -> int:
    contestant.module.train()
    contestant.module.zero_grad(set_to_none=True)
    with SavedForBackward(contestant.module) as saved:
        contestant.work["forward + backward"](data.clone())
    return saved.peak


# ------------------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Row:
    """Holds one number: milliseconds of a kind of work, MiB saved for backward, or the number of parameters."""

    workload: str
    contestant: str
    measure: str
    value: float
    over_networks: float
    over_bare_loop: float  # NaN where there is none


def assemble(workload: Workload, data: Tensor, wanted: set[str], seed: int) -> dict[str, Contestant]:
    """Builds the floors, then the contestants; all of a workload start from the same seed."""
    built: dict[str, Contestant] = {}
    for name, build in workload.builds.items():
        if wanted and name not in {*wanted, BARE, workload.floors[NETWORKS]}:
            continue
        pyro.set_rng_seed(seed)
        try:
            built[name] = build(data)
        except ModuleNotFoundError as error:
            if name not in PACKAGES:
                raise
            print(f"{name} is left out, as there is no module {error.name}: pip install {PACKAGES[name]}")
    floors = {floor: networks_alone(built[of], data) for floor, of in workload.floors.items() if of in built}
    return {**floors, **built}


def rows_of(
    workload: str, measure: str, values: Mapping[str, Sequence[float]], floor_of: Mapping[str, str]
) -> list[Row]:
    """Makes rows of what every contestant got in every round; ``floor_of`` has those with a floor of their own."""

    def over(contestant: str, other: str) -> float:
        if other not in values:
            return math.nan
        return median(value / unit for value, unit in zip(values[contestant], values[other], strict=True))

    return [
        Row(workload, who, measure, median(all_), over(who, floor_of.get(who, NETWORKS)), over(who, BARE))
        for who, all_ in values.items()
    ]


def measure(name: str, workload: Workload, options: argparse.Namespace, device: torch.device) -> list[Row]:
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    torch.compiler.reset()  # or the graphs of one workload count against the limit for the next
    data = torch.randn(workload.shape, device=device)
    field = assemble(workload, data, options.contestants, options.seed)
    floor_of = {of: floor for floor, of in workload.floors.items()}

    rows: list[Row] = []
    for kind in tqdm(workload.kinds, desc=name, leave=False):
        times = time_kind(field, kind, data, rounds=options.rounds, warmup=options.warmup)
        rows += rows_of(name, kind, times, floor_of)
    if len(workload.kinds) == len(KINDS):
        saved = {who: [saved_bytes(contestant, data) / 2**20] for who, contestant in field.items()}
        rows += rows_of(name, SAVED, saved, floor_of)
    count = {who: [sum(p.numel() for p in contestant.module.parameters())] for who, contestant in field.items()}
    return rows + rows_of(name, PARAMETERS, count, floor_of)


# ----------------------------------------------------------------------------------------------------- reports


def table(name: str, workload: Workload, rows: Sequence[Row]) -> str:
    """Formats the rows; a cell has the value, times the floor, times the loop by hand where there is one."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    lines = [f"{name}: batches {workload.shape}"]
    lines.append(" " * 20 + "".join(f"{measure + UNITS.get(measure, ' ms'):>24}" for measure in measures))
    for who in dict.fromkeys(row.contestant for row in rows):
        cells = {row.measure: row for row in rows if row.contestant == who}
        lines.append(f"{who:<20}" + "".join(f"{cell(cells[measure]):>24}" for measure in measures))
    return "\n".join(lines) + "\n"


def cell(row: Row) -> str:
    value = f"{row.value:.0f}" if row.measure == PARAMETERS else f"{row.value:.2f}"
    return value + "".join(f" {ratio:.2f}x" for ratio in (row.over_networks, row.over_bare_loop) if ratio == ratio)


def save_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([each.name for each in fields(Row)])
        writer.writerows(["" if value != value else value for value in astuple(row)] for row in rows)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draws one panel for each workload: how many times its floor everything takes."""
    names = list(dict.fromkeys(row.workload for row in rows))
    everyone = list(dict.fromkeys(row.contestant for row in rows))
    color = dict(zip(everyone, plt.colormaps["tab20"].colors, strict=False))
    figure, axes = plt.subplots(len(names), figsize=(13, 3.4 * len(names)), squeeze=False, layout="constrained")
    for axis, name in zip(axes[:, 0], names, strict=True):
        inside = [row for row in rows if row.workload == name and row.measure != PARAMETERS]
        measures = list(dict.fromkeys(row.measure for row in inside))
        field = list(dict.fromkeys(row.contestant for row in inside))
        for index, who in enumerate(field):
            heights = [row.over_networks for row in inside if row.contestant == who]
            places = [group + (index - (len(field) - 1) / 2) * 0.85 / len(field) for group in range(len(heights))]
            axis.bar(places, heights, 0.85 / len(field), label=who, color=color[who])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(measures)), measures)
        axis.set(title=name, ylabel="times the networks alone")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures how fast the flows are, beside their networks alone and other libraries."
    )
    parser.add_argument("--seed", type=SEED, default=0, help="of the data and the weights (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--out", type=out_folder, default="runs/benchmark", help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these workloads, these contestants")
    parser.add_argument("--rounds", type=COUNT, default=11, help="timed, after the warm-up (default: %(default)s)")
    parser.add_argument("--warmup", type=whole(0), default=3, help="rounds before them (default: %(default)s)")
    parser.add_argument("--threads", type=COUNT, help="of the processor (default: as torch chooses)")
    sizes = parser.add_mutually_exclusive_group()
    for size, meaning in SIZES.items():
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="default", help=meaning)
    options = parser.parse_args(arguments)
    options.workloads = workloads(options.size)
    contestants = {who for workload in options.workloads.values() for who in workload.builds}
    options.contestants = contestants & {*options.only}
    for unknown in set(options.only) - contestants - options.workloads.keys():
        parser.error(f"--only knows {', '.join([*options.workloads, *sorted(contestants)])}, but got {unknown}.")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        options.device = torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used here: {str(error).splitlines()[0]}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    everything, device = options.workloads, options.device
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    print("in every cell: the value, times the networks alone, times the loop by hand\n")

    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in [name for name in everything if name in options.only] or everything:
        rows += (new := measure(name, everything[name], options, device))
        print(table(name, everything[name], new), flush=True)
        save_csv(options.out / "benchmark.csv", rows)
    draw(options.out / "benchmark.png", rows)


if __name__ == "__main__":
    main()
