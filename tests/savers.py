"""Programs that write two contents into one file in turn, without end, and what they find when they read it."""

import hashlib
from itertools import cycle

import torch

from pyro_realnvp import Checkpoint
from pyro_realnvp.training.files import read_file, write_file

CONTENTS = (b"the first", b"the second")


def tensor_of(content):
    """A few megabytes, so that most of the time goes into writing."""
    return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8).repeat(100_000)


def replace_forever(path):
    for content in cycle(CONTENTS):
        write_file(path, {"tensor": tensor_of(content)}, {"content": content.decode()})


class Part:
    """A part of a training that has one tensor."""

    content = CONTENTS[0]

    def state_dict(self):
        return {"content": self.content.decode(), "tensor": tensor_of(self.content)}

    def load_state_dict(self, state):
        self.content = state["content"].encode()
        assert torch.equal(state["tensor"], tensor_of(self.content))


def save_forever(path):
    part = Part()
    with Checkpoint(path) as checkpoint:
        checkpoint.track(part=part)
        for part.content in cycle(CONTENTS):
            checkpoint.save()


def read_file_of_a_flow(path):
    tensors, config = read_file(path)
    assert torch.equal(tensors["tensor"], tensor_of(config["content"].encode()))
    return config["content"]


def read_training(path):
    part = Part()
    with Checkpoint(path) as checkpoint:
        checkpoint.track(part=part)
    return part.content.decode()


#: By kind of file: writes, without end; reads.
WRITERS = {"file": (replace_forever, read_file_of_a_flow), "training": (save_forever, read_training)}
