"""A file is the earlier one or the new one, and always whole: on a full disk, when the process is killed, anywhere."""

import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from limits import largest_file
from savers import CONTENTS, WRITERS, tensor_of
from trainings import process_of, train, vectors

from pyro_realnvp import Checkpoint, load, save
from pyro_realnvp.training import resume
from pyro_realnvp.training.files import write_file
from pyro_realnvp.training.loop import Progress


def fill_up(path, write):
    """Writes a file where the disk is full at many sizes; none of that changes the earlier one."""
    earlier = path.read_bytes()
    size, names = len(earlier), sorted(file.name for file in path.parent.iterdir())
    sizes = {*range(64), *range(size - 64, size), *(size * part // 200 for part in range(200))}
    for limit in sorted(sizes):
        with largest_file(limit), pytest.raises(OSError, match="File too large") as caught:
            write()
        assert str(path) in str(caught.value)
        assert path.read_bytes() == earlier, limit
        assert sorted(file.name for file in path.parent.iterdir()) == names, limit
    with largest_file(size):
        write()
    assert path.read_bytes() != earlier
    assert len(path.read_bytes()) == size
    assert len(sizes) > 300


def test_a_flow_on_a_full_disk(tmp_path):
    path = tmp_path / "flow.safetensors"
    save(vectors(), path)
    other = vectors()
    fill_up(path, lambda: save(other, path))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in load(path).state_dict().items())


def test_a_training_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "perf_counter", lambda: 0.0)  # the digits of the seconds are a part of the size
    path, flow, progress = tmp_path / "training.safetensors", vectors(), Progress()
    with Checkpoint(path) as checkpoint:
        checkpoint.track(flow=flow, progress=progress)
        checkpoint.save()
        progress.step = 1
        fill_up(path, checkpoint.save)
    again = Progress()
    with Checkpoint(path) as checkpoint:
        checkpoint.track(flow=flow, progress=again)
    assert again.step == 1


# --------------------------------------------------------------------------------------------------------- kills


def kill(name, path, times):
    """Kills a process that saves so many times; returns what was found, and how often a file was half written."""
    write, read = WRITERS[name]
    moments, found, halves = random.Random(name), Counter(), 0
    while found.total() < times or halves == 0:
        earlier = path.stat().st_mtime_ns if path.exists() else 0
        process = process_of(write, path)
        while not path.exists() or path.stat().st_mtime_ns == earlier:
            time.sleep(0.001)
            assert process.is_alive()
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        halves += len(list(path.parent.glob("*.part")))
        found[read(path)] += 1
        for part in path.parent.glob("*.part"):  # a training has removed it
            assert name == "file"
            part.unlink()
    return found, halves


def assert_always_whole(name, folder, times):
    path = folder / "file.safetensors"
    found, halves = kill(name, path, times)
    print(f"{found.total()} kills, {halves} of them while the file was half written: {dict(found)}")
    assert found.keys() <= {content.decode() for content in CONTENTS}


def test_what_a_killed_process_has_left_is_removed_after_an_hour(tmp_path):
    """Before, it may be of a process that is alive."""
    names = ["file.0123abcd.part", "file.part", "file.old.part", "other.0123abcd.part"]
    for age, left in ((3000, 4), (4000, 2)):
        for name in names:
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (time.time() - age,) * 2)
        write_file(tmp_path / "file", {}, {})
        assert len(list(tmp_path.glob("*.part"))) == left
    with Checkpoint(tmp_path / "training"):
        pass
    assert {file.name for file in tmp_path.iterdir()} - {"training.lock"} == {"file", *names[2:]}
    for name in ("training.0123abcd.part", "training.part"):
        (tmp_path / name).touch()
    with Checkpoint(tmp_path / "training"):  # it has the lock
        assert not list(tmp_path.glob("training.*part"))


@pytest.mark.parametrize("name", WRITERS)
def test_killed_while_it_saves(name, tmp_path):
    assert_always_whole(name, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_killed_a_hundred_times_while_it_saves(name, tmp_path):
    assert_always_whole(name, tmp_path, 100)


# --------------------------------------------------------------------------------- places where no file can be


def not_a_file(folder):
    """Paths where no file can be written, and words of the errors."""
    file = folder / "file"
    file.write_text("kept")
    (folder / "folder").mkdir()
    return {
        folder / "folder": "folder",
        file / "below": "as .*file is no folder",
        file / "below" / "it": "as .*file is no folder",
        folder / ("long" * 100): "File name too long",
        Path("/sys/file"): "Permission denied|Read-only",  # not even for root
        Path("/proc/file"): "No such file|Permission denied",
    }


def writes(path):
    return {
        "flow": lambda: save(vectors(), path),
        "training": lambda: Checkpoint(path).__enter__().save(),
        "fit": lambda: train("vectors", path),
    }


@pytest.mark.parametrize("name", writes(None))
def test_paths_that_cannot_be_a_file(name, tmp_path):
    for path, words in not_a_file(tmp_path).items():
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(OSError, match=words) as caught:
            writes(path)[name]()
        assert str(caught.value).isprintable()
        assert str(path) in str(caught.value)
        left = {file for file in tmp_path.rglob("*") if file not in before}
        assert {file.suffix for file in left} <= {".lock"}
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", writes(None))
def test_a_folder_without_permission(name, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="Permission denied") as caught:
            writes(tmp_path / "file")[name]()
        assert str(tmp_path / "file") in str(caught.value)
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o700)


def test_paths_that_cannot_be_read(tmp_path):
    for path in not_a_file(tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:
            load(path)
        assert str(caught.value).isprintable()


def test_two_processes_that_save_one_file(tmp_path):
    """As when every process of a training saves its flow under one name."""
    path = tmp_path / "file.safetensors"
    write, read = WRITERS["file"]
    write_file(path, {"tensor": tensor_of(CONTENTS[0])}, {"content": CONTENTS[0].decode()})
    processes = [process_of(write, path) for _ in range(2)]
    try:
        found = Counter(read(path) for _ in range(60))
        assert all(process.is_alive() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert found.keys() == {content.decode() for content in CONTENTS}
