"""Compares flows on tables of a few hundred rows with Gaussians and mixtures of them: by the held-out log-density.

    python benchmarks/tables.py                       # about an hour on one core
    python benchmarks/tables.py --tables wine --folds 3 --flows default

Ten folds of scikit-learn's wine (178 rows, 13 columns), diabetes (442, 10) and breast cancer (569, 30), each
standardised by the mean and standard deviation of its training rows. Beside each other, in nats a row (more is better):

    gaussian    the mean and covariance of the training rows
    shrunk      the better of Ledoit and Wolf's and the oracle approximating shrinkage, by the test rows
    mixture     Gaussians whose number and added variance are the best in a cross-validation of five folds
    default     fit(Flow(StandardNormal(D), realnvp_transforms(D)), x), without any option
    splines     the same with spline_transforms(D)
    whitened    the same as default behind standardized_from(x)

``--out`` receives ``tables.csv``, with a row for every fold, which a second call does not repeat. One column of
diabetes has two values. There the density has no bound: a mixture gains from every smaller variance until
scikit-learn's least.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from torch import Tensor

from pyro_realnvp import Flow, StandardNormal, fit, realnvp_transforms, spline_transforms, standardized_from

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from shared.option_types import COUNT

TABLES = {"wine": load_wine, "diabetes": load_diabetes, "breast-cancer": load_breast_cancer}
FOLDS = 10
FIELDS = ("table", "model", "fold", "nats")
GRID = {"n_components": [1, 2, 3, 4, 5, 6], "reg_covar": [1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1]}

Array = np.ndarray[Any, Any]
Model = Callable[[Array, Array, int], float]


def folds(table: str) -> Iterator[tuple[Array, Array]]:
    """Gives the training and test rows of every fold, standardised."""
    x = TABLES[table]().data
    for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(x):
        loc, scale = x[train].mean(0), x[train].std(0)
        yield (x[train] - loc) / scale, (x[test] - loc) / scale


def gaussian(train: Array, test: Array, seed: int) -> float:
    return float(EmpiricalCovariance().fit(train).score(test))


def shrunk(train: Array, test: Array, seed: int) -> float:
    return max(float(model.fit(train).score(test)) for model in (LedoitWolf(), OAS()))


def mixture(train: Array, test: Array, seed: int) -> float:
    search = GridSearchCV(GaussianMixture(random_state=seed, n_init=2), GRID, cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mixtures that do not converge, which the search does not choose
        return float(search.fit(train).score(test))


def flow_of(build: Callable[[Tensor], Flow]) -> Model:
    def score(train: Array, test: Array, seed: int) -> float:
        torch.manual_seed(seed)
        x = torch.from_numpy(train).float()
        flow = build(x)
        fit(flow, x, progress=False, seed=seed)
        with torch.no_grad():
            return flow(torch.from_numpy(test).float()).mean().item()

    return score


def default(x: Tensor) -> Flow:
    return Flow(StandardNormal(x.shape[1]), realnvp_transforms(x.shape[1]))


def splines(x: Tensor) -> Flow:
    return Flow(StandardNormal(x.shape[1]), spline_transforms(x.shape[1]))


def whitened(x: Tensor) -> Flow:
    return Flow(StandardNormal(x.shape[1]), [*realnvp_transforms(x.shape[1]), standardized_from(x)])


OTHERS: dict[str, Model] = {"gaussian": gaussian, "shrunk": shrunk, "mixture": mixture}
FLOWS = {"default": default, "splines": splines, "whitened": whitened}


def report(rows: Sequence[dict[str, str]]) -> str:
    """Returns a table of the mean over the folds, and its standard error."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [f"{'nats a row':14}" + "".join(f"{model:>18}" for model in models)]
    for table in dict.fromkeys(row["table"] for row in rows):
        cells = []
        for model in models:
            nats = [float(row["nats"]) for row in rows if (row["table"], row["model"]) == (table, model)]
            error = f" +- {stdev(nats) / math.sqrt(len(nats)):.2f}" if len(nats) > 1 else ""
            cells.append(f"{mean(nats):.2f}{error}" if nats else "")
        lines.append(f"{table:14}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares flows on tables of a few hundred rows with Gaussians.")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--flows", nargs="*", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--folds", type=COUNT, default=FOLDS, help="the first ones of ten (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tables.csv"
    rows: list[dict[str, str]] = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    models = OTHERS | {name: flow_of(FLOWS[name]) for name in options.flows}
    for table in options.tables:
        for fold, (train, test) in zip(range(options.folds), folds(table), strict=False):
            for name, model in models.items():
                key = {"table": table, "model": name, "fold": str(fold)}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append({**key, "nats": f"{model(train, test, fold):.4f}"})
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
        print(report([row for row in rows if row["table"] == table]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the layers are small
    main()
