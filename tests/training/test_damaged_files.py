"""Damaged files of flows and trainings are refused in one sentence, and nothing of them is left; or they make sense."""

import json
import random

import pytest
import torch
from damages import KINDS, VALUES, FlowFile, Reader, damaged, places, replaced, sealed
from test_checkpoint import FLOWS


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
    replace_nodes(reader, 250)


@pytest.mark.slow
def test_every_other_value_in_the_configuration(reader):
    replace_nodes(reader)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 60) for name in ("by-hand", "embedded-context", "flowpp-imagenet")),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in FLOWS),
    ],
)
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
    change_tensors(reader, min(1.0, 30 / len(reader.kind.tensors)))


@pytest.mark.slow
def test_all_other_tensors(reader):
    change_tensors(reader)
