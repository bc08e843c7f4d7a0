"""Opens the run of a script in a folder: the same command goes on where it was stopped, for whatever reason.

The folder has the state of the run, ``training.safetensors`` (:class:`pyro_realnvp.Checkpoint`), ``metrics.jsonl``, and
``run.json``, which says what command and commit they come from.
Scripts that train several models in turn keep the state of each in a file of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_realnvp import Checkpoint
from pyro_realnvp.training.divergence import DivergedError
from pyro_realnvp.training.random_numbers import RandomNumbers
from pyro_realnvp.training.resume import CheckpointError, locked

from shared.metrics import Metrics
from shared.options import fail
from shared.processes import Processes
from shared.provenance import write_provenance

STATE = "training.safetensors"
# Options that may change when a run goes on: they say where, and how long, but not what is computed.
FREE = ("out", "fresh", "on_nan", "device", "root", "download", "sample", "temperature", "describe", "minutes")


class Run:
    """Holds the checkpoint of a run and its metrics.

    Attributes:
        folder: of the results.
        checkpoint: of the training, or of the whole run if the script trains several models.
        metrics: the rows of ``metrics.jsonl``; the checkpoint tracks them.
        recoveries: how often a training goes on after a loss that is not finite.
    """

    def __init__(self, options: argparse.Namespace, checkpoint: Checkpoint, metrics: Metrics) -> None:
        self.folder, self.checkpoint, self.metrics = options.out, checkpoint, metrics
        self.recoveries = 3 if options.on_nan == "skip" else 0

    @property
    def is_finished(self) -> bool:
        return self.checkpoint.result is not None

    def finish(self, outcome: str) -> None:
        """Marks the run as finished, with one line that says how it ended."""
        self.checkpoint.finish({"outcome": outcome})

    @contextmanager
    def stage(self, name: str) -> Iterator[Checkpoint]:
        """Opens the checkpoint of one training of several, in a folder of its own; end it by :meth:`finish_stage`.

        If it has ended already, ``checkpoint.result`` is what it ended with.
        """
        with Checkpoint(self.folder / name / STATE, self.checkpoint.settings) as checkpoint:
            if checkpoint.result is None:
                checkpoint.track(metrics=self.metrics)
            else:
                self.metrics.load_state_dict(checkpoint.result["metrics"])
                RandomNumbers().load_state_dict(checkpoint.result["random"])
            yield checkpoint

    def finish_stage(self, checkpoint: Checkpoint, **result: Any) -> None:
        """Ends a stage; what follows finds the metrics and the random numbers of now, in a later process too."""
        checkpoint.finish({"metrics": self.metrics.state_dict(), "random": RandomNumbers().state_dict(), **result})


@contextmanager
def open_run(
    options: argparse.Namespace,
    settings: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    stages: Sequence[str] = (),
) -> Iterator[Run]:
    """Opens the run in the folder ``options.out``, and ends the script with one sentence where it has to end.

    Args:
        options: of the command line, with those of :func:`shared.options.add_options`.
        settings: what must be the same when the run goes on; by default the options but for ``FREE``.
        processes: of the run, if it may have several.
        stages: names of all that :meth:`Run.stage` may open.
    """
    if settings is None:
        settings = {name: value for name, value in vars(options).items() if name not in FREE}
    folder, first = options.out, processes is None or processes.is_first
    minutes = getattr(options, "minutes", None)
    state = folder / STATE
    try:
        if options.fresh and first:
            begin_anew(folder, stages)
        checkpoint = Checkpoint(state, settings, stop_after=None if minutes is None else 60 * minutes)
        with checkpoint:
            run = Run(options, checkpoint, Metrics(folder, quiet=not first))
            if first:
                write_provenance(folder, keep=True)
            if run.is_finished and first:
                outcome = checkpoint.result["outcome"]
                print(f"{folder} holds a finished run: {outcome}; --fresh begins anew.")
            yield run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except CheckpointError as error:
        fail(f"{error} Give the same options to go on, another --out, or --fresh to begin anew.")
    except BlockingIOError as error:
        fail(f"{error} Wait until it ends, or give another --out.")
    except OSError as error:
        kept = f" The state that {state} had before is whole." if state.is_file() else ""
        fail(f"A file cannot be read or written: {str(error).rstrip('.')}.{kept}")
    except DivergedError as error:
        if error.diagnosis is not None:
            print(error.diagnosis, file=sys.stderr)
        fail(f"{error} The last good state is in {state}; --on-nan skip goes on from there with half the rate.")


def begin_anew(folder: Path, stages: Sequence[str]) -> None:
    """Deletes the state and the metrics of an earlier run, unless a process is still at it."""
    with locked(folder / STATE):
        for part in (folder, *(folder / name for name in stages)):
            for name in (STATE, "metrics.jsonl", "run.json"):
                (part / name).unlink(missing_ok=True)
