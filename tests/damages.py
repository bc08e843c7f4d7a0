"""Files of flows and of trainings, what they hold, and ways to damage them; with and without a checksum that fits."""

import copy
import json
import random
import re

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from trainings import rows, vectors

from pyro_realnvp import load, save
from pyro_realnvp.training import files
from pyro_realnvp.training.data import rows_of
from pyro_realnvp.training.history import Course
from pyro_realnvp.training.loop import BestState
from pyro_realnvp.training.maximum_likelihood import MaximumLikelihood
from pyro_realnvp.training.nested import flatten
from pyro_realnvp.training.random_numbers import RandomNumbers
from pyro_realnvp.training.resume import Checkpoint, CheckpointError


class FlowFile:
    """The file of a flow."""

    error = ValueError

    def __init__(self, flow):
        self.flow = flow

    def write(self, path):
        save(self.flow, path)

    def read(self, path):
        """Returns all that a process has that reads the file."""
        return {}, load(path).state_dict()


class TrainingFile:
    """The checkpoint of a training that has taken a few steps."""

    error = CheckpointError
    settings = {"seed": 0, "name": "moons", "widths": [8, 8]}  # noqa: RUF012

    def __init__(self):
        self.made = training(1)
        for _ in range(3):
            self.made.step()
        self.made.progress.step = self.made.progress.count = 3
        self.made.best.stop(1.5)
        self.made.course.rows = [{"step": 3, "loss": 2.0, "validation": 1.5, "learning_rate": 1e-3, "seconds": 0.1}]
        self.made.recovery.remember()

    def write(self, path):
        path.unlink(missing_ok=True)
        with Checkpoint(path, self.settings) as checkpoint:
            checkpoint.track(**self.made.parts)
            checkpoint.save()

    def read(self, path):
        fresh = training(2)
        self.resume(fresh, path)
        return content(fresh)

    def resume(self, fresh, path):
        """Gives a training that has just begun the state in the file, as a loop does."""
        with Checkpoint(path, self.settings) as checkpoint:
            checkpoint.track(**fresh.parts)
            with checkpoint.steps():
                pass


def training(seed):
    """The pieces of a training by fit, before its first step."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)
    flow = vectors()
    data = rows_of(rows(), like=next(flow.parameters()), batch_size=16)
    made = MaximumLikelihood(flow, data, None, 1e-3, 1e-4, None, 20, 0.9, 5.0, 1, starts=True)
    made.best, made.course = BestState(made.averaged, 5), Course()
    made.parts |= {"best": made.best, "course": made.course}
    return made


def content(made):
    """The states of all parts and generators: a JSON value, and tensors that do not change any more."""
    parts = {name: part.state_dict() for name, part in made.parts.items()}
    tree, tensors = flatten({"parts": parts, "random": [RandomNumbers().state_dict()]})
    return tree, {key: value.clone() for key, value in tensors.items()}


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        assert found[1][key].dtype == value.dtype, key
        assert torch.equal(found[1][key].nan_to_num(7), value.nan_to_num(7)), key


def assert_sentence(error, path):
    """Asserts that an error is one sentence, which names the file."""
    message = str(error)
    assert message.isprintable(), message
    assert re.search(r"[\w\])}'\"]\.$", message), message
    assert len(message) < 800, message
    assert str(path) in message, message


def sealed(path, tensors, text):
    """Writes a file whose configuration is a text of one's own, with the checksum that belongs to it."""
    made = safetensors_bytes(files._apart(tensors), {"pyro_realnvp": text})
    size = int.from_bytes(made[:8], "little")
    header, data = json.loads(made[8 : 8 + size]), made[8 + size :]
    header["__metadata__"]["sha256"] = files._digest(header, memoryview(data))
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    path.write_bytes(len(written).to_bytes(8, "little") + written + data)


def nested(depth):
    return "[" * depth + "]" * depth


#: Texts of JSON values that take the place of another one.
VALUES = [
    *("null", "-1", "0", str(10**30), "1.5", "NaN", "Infinity", '"x"', '"a\\nb"', "[]", "{}", "true", "false"),
    *(nested(depth) for depth in (500, 900, 10_000)),
]


def places(tree, place=()):
    """The places of all nodes; of long lists only the first ones, one in the middle and the last."""
    yield place
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*place, key))
    elif isinstance(tree, list):
        several = range(len(tree))
        for index in several if len(tree) <= 20 else (0, 1, len(tree) // 2, len(tree) - 1):
            yield from places(tree[index], (*place, index))


def replaced(tree, place, text):
    """The text of a JSON value with another one at a place."""
    mark = "the place of another value"
    changed = copy.deepcopy(tree)
    if not place:
        return text
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = mark
    return json.dumps(changed).replace(json.dumps(mark), text)
