"""Damaged files of flows and trainings are refused in one sentence, and nothing of them is left; or they make sense."""

import copy
import json
import pickle
import random
import re
import subprocess
import sys
import zipfile
from itertools import permutations
from pathlib import Path

import pytest
import torch
from damages import KINDS, VALUES, FlowFile, Reader, TrainingFile, assert_sentence, damaged, places, replaced, sealed
from test_checkpoint import FLOWS

from pyro_realnvp.training.resume import CheckpointError
from pyro_realnvp.training.stateful import load_part


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def reader(kind):
    made = Reader(kind)
    yield made
    kind.path.write_bytes(kind.content)


def test_a_whole_file_is_used(kind, reader):
    reader.refuses_or_uses(kind.tensors, json.dumps(kind.config))
    assert (reader.refused, reader.used) == (0, 1)


def damage(reader, count):
    """Reads a file with so many damages, one after the other, none of which has a checksum that fits."""
    draw, content = random.Random(0), reader.kind.content
    reader.refuses(b"")
    while reader.refused < count:
        if (changed := damaged(content, draw)) != content:  # zeros may meet zeros
            reader.refuses(changed)


def test_two_hundred_damages(reader):
    damage(reader, 200)


@pytest.mark.slow
def test_five_thousand_damages(reader):
    damage(reader, 5000)


def replace_nodes(reader, count=None):
    config = reader.kind.config
    cases = [(place, text) for place in places(config) for text in VALUES]
    random.Random(1).shuffle(cases)
    for place, text in cases[:count]:
        reader.refuses_or_uses(reader.kind.tensors, replaced(config, place, text))
    print(f"{reader.refused} were refused, {reader.used} made sense")
    assert reader.refused > 10 * reader.used


def test_other_values_in_the_configuration(reader):
    replace_nodes(reader, 80)


@pytest.mark.slow
def test_every_other_value_in_the_configuration(reader):
    replace_nodes(reader)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 20) for name in ("by-hand", "embedded-context", "flowpp-imagenet")),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in FLOWS),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of torch, for a Linear of no features
def test_other_values_in_the_description_of_a_flow(name, count, tmp_path):
    replace_nodes(Reader(FlowFile(tmp_path, FLOWS[name])), count)


def with_value(value):
    """Puts a value into the middle of a tensor of floating point."""

    def changed(tensor):
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        flat = tensor.flatten().clone()
        flat[len(flat) // 2] = value
        return flat.reshape(tensor.shape)

    return changed


CHANGES = {
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half() if tensor.is_floating_point() else tensor.float(),
    "int64": lambda tensor: tensor.long(),
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "bool": lambda tensor: tensor.bool(),
    "one dimension more": lambda tensor: tensor[None],
    "one number more": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
    "none": lambda tensor: tensor.flatten()[:0],
    "NaN": with_value(torch.nan),
    "infinity": with_value(torch.inf),
    "a number, negative": lambda tensor: -tensor - 1 if tensor.dtype == torch.int64 else tensor,
}


def change_tensors(reader, share=1.0):
    tensors, text, draw = reader.kind.tensors, json.dumps(reader.kind.config), random.Random(2)
    reader.refuses(sealed({**tensors, "extra": torch.zeros(2)}, text))
    for key, tensor in tensors.items():
        rest = {other: value for other, value in tensors.items() if other != key}
        for changed in (rest, rest | {f"{key}.": tensor}):
            if draw.random() < share:
                reader.refuses(sealed(changed, text))
        for change in CHANGES.values():
            value = change(tensor)
            same = (value.dtype, value.shape) == (tensor.dtype, tensor.shape) and torch.equal(value, tensor)
            # Losses on held-out data may be infinite, and are NaN where there are none.
            makes_sense = key.endswith("validation") and value.dtype == tensor.dtype and value.shape == tensor.shape
            if not (same or makes_sense) and draw.random() < share:
                reader.refuses(sealed(rest | {key: value}, text))
    print(f"{reader.refused} files with other tensors")


def test_other_tensors(reader):
    change_tensors(reader, min(1.0, 6 / len(reader.kind.tensors)))


@pytest.mark.slow
def test_all_other_tensors(reader):
    change_tensors(reader)


def no_permutation(value):
    return torch.zeros_like(value)


def halves(value):
    return torch.full_like(value, 1 / len(value))


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("by-hand", "permutation", no_permutation, r"should be a permutation, but is \[0, 0, 0\]"),
        ("glow", "permutation", no_permutation, "should be a permutation"),
        ("glow", "permutation", halves, "should be a permutation"),
        ("glow", "sign", lambda value: 2 * value, "should be 1 and -1"),
        ("glow", "sign", torch.zeros_like, "should be 1 and -1"),
        ("realnvp-image", "running_var", torch.neg, "should be not negative"),
        ("shared", "weight", lambda value: value + 1, "is the same tensor as .*, but has other values"),
    ],
)
def test_values_that_would_be_wrong_in_silence(name, key, change, message, tmp_path):
    kind = FlowFile(tmp_path, FLOWS[name])
    first = next(each for each in kind.tensors if each.endswith(key))
    kind.path.write_bytes(sealed(kind.tensors | {first: change(kind.tensors[first])}, json.dumps(kind.config)))
    with pytest.raises(ValueError, match=message) as caught:
        kind.read(kind.start())
    assert_sentence(caught.value, kind.path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("amsgrad", True, "amsgrad of the groups is False, but True in the file"),
        ("maximize", True, "maximize of the groups is False, but True in the file"),
        ("fused", False, "fused of the groups is True, but False in the file"),
        ("betas", (1.5, 0.999), r"betas of the groups should lie in \[0, 1\), but are \(1.5, 0.999\)"),
        ("lr", -0.1, "lr of 0 of the groups cannot be -0.1"),
    ],
)
def test_another_algorithm_in_the_state_of_an_optimizer(option, value, message):
    parameter = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.square().sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    load_part(optimizer, "optimizer", {"optimizer": state})
    state["param_groups"][0][option] = value
    with pytest.raises(ValueError, match=message):
        load_part(optimizer, "optimizer", {"optimizer": state})
    assert optimizer.param_groups[0][option] != value


def call(name, **arguments):
    return {"call": name, "arguments": arguments}


HUGE = 2**31 - 1
#: Objects that take more memory than there is, or no end of time, unless they are known for too large beforehand.
TOO_LARGE = {
    "hidden": call("MLP", in_channels=2, out_channels=2, hidden=[100_000, 100_000]),
    "depth": call("MLP", in_channels=2, out_channels=2, hidden=[2] * 100_000),
    "matrix": call("InvertibleConv1x1", event_shape=[40_000]),
    "factors": call("InvertibleConv1x1", event_shape=[40_000], plu=True),
    "permutation": call("Permute", event_shape=[HUGE], permutation=[1, 0]),
    "scale": call("Scale", event_shape=[HUGE]),
    "base": call("DiagonalNormal", event_shape=HUGE),
    "context": call("DiagonalNormal", event_shape=1000, context_shape=1_000_000),
    "vectors": call("realnvp_transforms", event_shape=HUGE),
    "couplings": call("realnvp_transforms", event_shape=2, couplings=HUGE),
    "images": call("realnvp_transforms", event_shape=[1, 2**15, 2**15]),
    "context maps": call("realnvp_transforms", event_shape=[1, 4, 4], context_shape=[2**20, 4, 4]),
    "nice": call("nice_transforms", event_shape=HUGE),
    "nice images": call("nice_transforms", event_shape=[1, 2**15, 2**15]),
    "steps": call("glow_transforms", event_shape=2, steps=HUGE),
    "glow": call("glow_transforms", event_shape=[10_000, 8, 8], plu=True),
    "components": call("flowpp_transforms", event_shape=2, components=HUGE),
    "channels": call("flowpp_transforms", event_shape=[10**8, 4, 4]),
    "blocks": call("ResNet", in_channels=1, out_channels=1, blocks=HUGE),
    "positions": call("GatedAttention", in_channels=1, out_channels=1, size=[2**15, 2**15]),
    "Linear": {"torch": "Linear", "arguments": {"in_features": 100_000, "out_features": 100_000, "bias": True}},
}
LOADS = """
import resource, sys, torch
from pyro_realnvp import load
torch.set_num_threads(1)
for path in sys.argv[1:]:
    if path == sys.argv[2]:  # the first file is whole; with it everything is imported that there is
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(path)
        print("whole", flush=True)
    except ValueError as error:
        print(error, flush=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_absurd_sizes_take_no_memory(tmp_path):
    """Less than 300 MB may be asked for, and less than that may be used."""
    kind = FlowFile(tmp_path)
    paths = [kind.path]
    for name, node in TOO_LARGE.items():
        config = {**kind.config, "description": {"nodes": [node], "root": -1}}
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(sealed(kind.tensors, json.dumps(config)))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120
    )
    whole, *refused, kilobytes = done.stdout.splitlines()
    assert whole == "whole"
    for path, message in zip(paths[1:], refused, strict=True):
        assert_sentence(message, path)
        assert "is much larger than the weights" in message or "a permutation of 0" in message
    assert int(kilobytes) < 300_000


class Trap:
    """Makes a file if it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickles_in_disguise_are_not_executed(reader, tmp_path):
    marker = tmp_path / "executed"
    pickled = pickle.dumps(Trap(marker))
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(
            {"weights": torch.ones(3), "trap": Trap(marker)}, tmp_path / name, _use_new_zipfile_serialization=zipped
        )
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("data.pkl", pickled)
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "weights")
    for content in (pickled, *((tmp_path / name).read_bytes() for name in ("zip", "legacy", "archive", "weights"))):
        reader.refuses(content)
        padded = content + b" " * (-len(content) % 8)
        reader.refuses(len(padded).to_bytes(8, "little") + padded)  # where the header of a file is
    assert not marker.exists()
    pickle.loads(pickled)  # it would have been
    assert marker.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "of a training with seed = 0, but this one has seed = 1."),
        ({"name": "energies"}, "of a training with name = 'moons', but this one has name = 'energies'."),
        ({"widths": [8, 16]}, "of a training with widths = [8, 8], but this one has widths = [8, 16]."),
        ({"latent": 3}, "of a training with latent = None, but this one has latent = 3."),
        ({"seed": None}, "of a training with seed = 0, but this one has seed = None."),
    ],
)
def test_other_settings_are_refused_by_name(changed, message, tmp_path):
    kind = TrainingFile(tmp_path)
    reader, kind.settings = Reader(kind), {**kind.settings, **changed}
    reader.refuses(kind.content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        kind.read(reader.program)


def test_a_file_of_another_kind(tmp_path):
    made = {}
    for name, make in KINDS.items():
        (tmp_path / name).mkdir()
        made[name] = make(tmp_path / name)
    for kind, other in permutations(made.values(), 2):
        Reader(kind).refuses(other.content)
