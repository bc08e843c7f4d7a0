"""Reads the flows that the scripts have saved, today or with version 0.1 of the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pyro_realnvp import load
from pyro_realnvp.training.files import read_file

from shared.options import Config, fail


def load_flow(path: Path, build: Callable[[Config], nn.Module]) -> Any:
    """Loads a flow in evaluation mode, or ends the script with one sentence.

    Args:
        path: of a file by ``pyro_realnvp.save(flow, path)``; by ``save(flow, path, build={"config": config})``; or by
            version 0.1, which wrote the weights alone, and the configuration beside them with the suffix .json.
        build: makes the flow of a configuration.
    """
    if not path.is_file():
        fail(f"There is no checkpoint {path}.")
    try:
        weights, saved = read_file(path)
        if saved is not None:
            return load(path, build=build if "build" in saved else None)
    except ValueError as error:
        fail(str(error))
    config = configuration_beside(path)
    if config.get("dequantization") is not None:
        fail(
            f"{path} was written by version 0.1, whose Flow++ drew the noise of dequantization by a numerical search; "
            f"now it is drawn in closed form, by another network. Train it again, or sample with version 0.1."
        )
    try:
        flow = build(config)
    except (KeyError, TypeError, ValueError) as error:
        fail(f"The configuration {path.with_suffix('.json')} does not describe a flow of this script: {error!r}.")
    try:
        flow.load_state_dict(weights)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        fail(f"The checkpoint {path} is of another architecture than {path.with_suffix('.json')} describes: {problem}")
    return flow.eval()


def configuration_beside(path: Path) -> Config:
    """Reads the configuration that lies beside a checkpoint, with the suffix .json."""
    file = path.with_suffix(".json")
    if not file.is_file():
        fail(f"There is no file {file}, which belongs to the checkpoint {path.name}.")
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        fail(f"The configuration {file} is no JSON: {error}.")
    if not isinstance(config, dict):
        fail(f"The configuration {file} is no JSON object.")
    return config
