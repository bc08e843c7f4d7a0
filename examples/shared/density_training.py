"""Fits a density, and writes a row of metrics after every interval: what two_moons.py and simulator.py share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pyro_realnvp import Flow, fit

from shared.run import Run


def fit_density(
    flow: Flow, data: Any, validation: Any, options: argparse.Namespace, run: Run, *, noise: float = 0.0
) -> None:
    """Fits a flow with the options of the command line, and no weight decay.

    Args:
        data, validation: as :func:`pyro_realnvp.fit` takes them.
        options: steps, batch, lr, patience, interval and ema.
        run: its metrics get a row with step, loss, seconds and, if there are held-out data, validation_nats; its
            checkpoint keeps the state.
        noise: standard deviation of noise that is added to the data at every step.
    """

    def write(row: Mapping[str, float]) -> None:
        held_out = {} if validation is None else {"validation_nats": row["validation"]}
        run.metrics.write({"step": row["step"], "loss": row["loss"], **held_out, "seconds": run.metrics.seconds})

    run.checkpoint.track(metrics=run.metrics)
    fit(
        flow,
        data,
        validation=validation,
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.lr,
        weight_decay=0.0,
        noise=noise,
        patience=options.patience,
        interval=options.interval,
        ema=options.ema,
        callback=write,
        checkpoint=run.checkpoint,
        recoveries=run.recoveries,
    )
