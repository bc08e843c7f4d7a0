"""Three kinds of files, the programs that read them, and ways to damage them, with and without a checksum that fits."""

import copy
import json
import random
import re
from abc import ABC, abstractmethod
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from test_checkpoint import log_probs
from trainings import STEPS, rows, vectors

from pyro_realnvp import fit, load, save
from pyro_realnvp.bases import Base
from pyro_realnvp.testing import randomize
from pyro_realnvp.training import files
from pyro_realnvp.training.annealing import Noise
from pyro_realnvp.training.data import rows_of
from pyro_realnvp.training.divergence import DivergedError
from pyro_realnvp.training.history import Course
from pyro_realnvp.training.loop import BestState
from pyro_realnvp.training.maximum_likelihood import MaximumLikelihood
from pyro_realnvp.training.nested import flatten, unflatten
from pyro_realnvp.training.random_numbers import RandomNumbers
from pyro_realnvp.training.resume import Checkpoint, CheckpointError


def seed(number):
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(number)


def assert_same(found, expected):
    """Compares JSON values with their tensors, as :func:`flatten` returns them."""
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


def assert_density(flow):
    """Asserts that a flow gives a density to events, or says in one sentence that it does not."""
    try:
        density = flow.log_prob(torch.randn(4, *flow.event_shape)) if isinstance(flow, Base) else log_probs(flow)
    except (ValueError, RuntimeError) as error:
        refused = str(error)
    else:
        assert density.shape == (4,)
        return
    of_torch = "shapes cannot be multiplied"  # by a network of torch, whose context has another shape
    assert of_torch in refused or (refused.isprintable() and refused.endswith(".")), refused


class Kind(ABC):
    """A file, and the program that reads it.

    Attributes:
        path: of the file.
        content: its bytes.
        tensors, config: what is in it.
        error: which it ends with if it cannot read the file.
    """

    error = CheckpointError

    def __init__(self, folder):
        self.path = folder / "file.safetensors"
        seed(1)
        self.write()
        self.content = self.path.read_bytes()
        self.tensors, self.config = files.read_file(self.path)
        assert sealed(self.tensors, json.dumps(self.config)) == self.content

    @abstractmethod
    def write(self): ...

    @abstractmethod
    def start(self):
        """Returns all that a program has before it reads the file."""

    @abstractmethod
    def read(self, program): ...

    @abstractmethod
    def state(self, program):
        """Returns what the program has and the file may change."""

    @abstractmethod
    def assert_usable(self, program, tensors, config):
        """Asserts that the program has what is in a file, and goes on with it."""

    def held(self, program):
        tree, tensors = flatten({"state": self.state(program), "random": RandomNumbers().state_dict()})
        return tree, {key: value.clone() for key, value in tensors.items()}


class FlowFile(Kind):
    """The file of a flow."""

    error = ValueError

    def __init__(self, folder, make=vectors):
        self.make = make
        super().__init__(folder)

    def write(self):
        flow = self.make()
        randomize(flow)
        save(flow, self.path)

    def start(self):
        return {}

    def read(self, program):
        with torch.random.fork_rng([]):  # the layers that are made draw from it
            program["flow"] = load(self.path)

    def state(self, program):
        return program["flow"].state_dict() if program else {}

    def assert_usable(self, program, tensors, config):
        weights = {key: value for key, value in tensors.items() if not key.startswith("argument.")}
        assert_same((None, self.state(program)), (None, weights))
        assert_density(program["flow"])


class TrainingFile(Kind):
    """The checkpoint of a training that has taken a few steps."""

    settings = {"seed": 0, "name": "moons", "widths": [8, 8]}  # noqa: RUF012

    def write(self):
        made = self.start()
        for _ in range(3):
            made.step()
        made.progress.step = made.progress.count = 3
        made.best.stop(1.5)
        made.course.rows = [{"step": 3, "loss": 2.0, "validation": 1.5, "learning_rate": 1e-3, "seconds": 0.1}]
        made.recovery.remember()
        with Checkpoint(self.path, self.settings) as checkpoint:
            checkpoint.track(**made.parts)
            checkpoint.save()

    def start(self):
        """Makes the pieces of a training by fit."""
        flow = vectors()
        data = rows_of(rows(), like=next(flow.parameters()), batch_size=16)
        made = MaximumLikelihood(flow, data, None, 1e-3, 1e-4, Noise(0.1, anneals=True), 20, 0.9, 5.0, 1, starts=True)
        made.best, made.course = BestState(made.averaged, 5), Course()
        made.parts |= {"best": made.best, "course": made.course}
        return made

    def read(self, program):
        with Checkpoint(self.path, self.settings) as checkpoint:
            checkpoint.track(**program.parts)
            with checkpoint.steps():
                pass

    def state(self, program):
        return {name: part.state_dict() for name, part in program.parts.items()}

    def assert_usable(self, program, tensors, config):
        found = {"parts": self.state(program), "random": [RandomNumbers().state_dict()]}
        expected = unflatten(config["state"], tensors)
        del expected["seconds"]
        assert_same(flatten(found), flatten(expected))
        with suppress(DivergedError):  # with a learning rate of 10^30, say
            program.step()


class ResultFile(Kind):
    """The checkpoint of a training that has ended."""

    def write(self):
        self.read(self.start())

    def start(self):
        return vectors()

    def read(self, program):
        fit(program, rows(), checkpoint=self.path, progress=False, **STEPS)

    def state(self, program):
        return program.state_dict()

    def assert_usable(self, program, tensors, config):
        result = unflatten(config["state"], tensors)["result"]
        assert_same((None, program.state_dict()), (None, result["flow"]))
        assert_same(flatten(RandomNumbers().state_dict()), flatten(result["random"]))
        assert_density(program)


KINDS = {"flow": FlowFile, "training": TrainingFile, "result": ResultFile}


class Reader:
    """Reads files that are damaged, and counts what comes of it.

    A program that has refused a file is as it was before, and reads the next one.
    """

    def __init__(self, kind):
        self.kind, self.refused, self.used = kind, 0, 0
        self._begin()

    def _begin(self):
        seed(2)
        self.program = self.kind.start()
        self.before = self.kind.held(self.program)

    def refuses(self, content):
        """Asserts that a file is refused in one sentence, and nothing of it is left in the program."""
        self.kind.path.write_bytes(content)
        with pytest.raises(Exception) as caught:  # noqa: PT011, of which type is asserted below
            self.kind.read(self.program)
        self._assert_refused(caught.value)

    def refuses_or_uses(self, tensors, text):
        """As before; but the file may also make sense, where the program then has what is in it."""
        self.kind.path.write_bytes(sealed(tensors, text))
        try:
            self.kind.read(self.program)
        except self.kind.error as error:
            self._assert_refused(error)
        else:
            self.kind.assert_usable(self.program, tensors, json.loads(text))
            self.used += 1
            self._begin()

    def _assert_refused(self, error):
        assert type(error) is self.kind.error, repr(error)
        assert_sentence(error, self.kind.path)
        assert_same(self.kind.held(self.program), self.before)
        self.refused += 1


# ------------------------------------------------------------------------------------------------------ the damages


def sealed(tensors, text):
    """The bytes of a file whose configuration is a text of one's own, with the checksum that belongs to it."""
    made = safetensors_bytes(files._apart(tensors), {"pyro_realnvp": text})
    size = int.from_bytes(made[:8], "little")
    header, data = json.loads(made[8 : 8 + size]), made[8 + size :]
    header["__metadata__"]["sha256"] = files._digest(header, memoryview(data))
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written + data


def damaged(content, draw):
    """Content with one damage, drawn at random."""
    start = draw.randrange(len(content))
    length = draw.choice([1, 8, 64, 512, 4096])
    noise = draw.randbytes(length)
    end = start + length
    match draw.choice(["bit", "bit", "truncated", "zeros", "noise", "appended", "missing", "twice"]):
        case "bit":
            return content[:start] + bytes([content[start] ^ (1 << draw.randrange(8))]) + content[start + 1 :]
        case "truncated":
            return content[:start]
        case "zeros":
            return content[:start] + bytes(len(content[start:end])) + content[end:]
        case "noise":
            return content[:start] + noise[: len(content[start:end])] + content[end:]
        case "appended":
            return content + draw.choice([noise, bytes(length)])
        case "missing":
            return content[:start] + content[end:]
        case "twice":
            return content[:end] + content[start:]


def nested(depth):
    return "[" * depth + "]" * depth


#: Texts of JSON values that take the place of another one.
VALUES = [
    *("null", "-1", "0", str(10**30), "1.5", "NaN", "Infinity", '"x"', '"a\\nb"', "[]", "{}", "true", "false"),
    *(nested(depth) for depth in (500, 900, 10_000)),
]


def places(tree, place=()):
    """The places of all nodes; in long lists, as of the states of generators, of the first, middle and last ones."""
    yield place
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*place, key))
    elif isinstance(tree, list):
        for index in range(len(tree)) if len(tree) <= 20 else (0, 1, len(tree) // 2, len(tree) - 1):
            yield from places(tree[index], (*place, index))


def replaced(tree, place, text):
    """The text of a JSON value with another one at a place."""
    if not place:
        return text
    changed, mark = copy.deepcopy(tree), "the place of another value"
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = mark
    return json.dumps(changed).replace(json.dumps(mark), text)
