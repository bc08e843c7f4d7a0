"""A training that is stopped at any moment and goes on is, to the last bit, the one that was never stopped."""

import random
import signal
import time

import pytest
import torch
from trainings import PLACES, TRAININGS, Killed, assert_equal, before, save_often, start, train


def die():
    raise Killed


@pytest.mark.parametrize(("name", "seed"), [*((name, None) for name in TRAININGS), ("vectors", 5), ("endless", 5)])
def test_stopped_again_and_again_it_is_the_same_training(name, seed, tmp_path):
    expected = train(name, seed=seed)
    path = tmp_path / "training.safetensors"
    stops = [("step", 1), ("step", 4), ("validation", 1), ("poll", 2), ("write", 2), ("validation", 2), ("rename", 3)]
    for place, number in [*stops, ("step", 3), ("finish", 1)]:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
            save_often(patch.setattr)
            before(patch.setattr, *PLACES[place], number, die)
            train(name, path, seed=seed)
    assert_equal(train(name, path, seed=seed), expected)
    with pytest.MonkeyPatch.context() as patch:
        before(patch.setattr, *PLACES["step"], 1, die)
        assert_equal(train(name, path, seed=seed), expected)  # it returns at once


def test_nothing_changes_by_saving(tmp_path):
    for name in ("vectors", "endless"):
        assert_equal(train(name, tmp_path / name), train(name))


@pytest.mark.parametrize(("name", "seed"), [("images", None), ("loader", 5), ("endless", None)])
def test_killed_at_a_random_moment_it_is_the_same_training(name, seed, tmp_path):
    killed_and_continued(name, seed, tmp_path, times=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in TRAININGS for seed in (None, 5)])
def test_killed_at_twenty_random_moments(name, seed, tmp_path):
    killed_and_continued(name, seed, tmp_path, times=20)


def killed_and_continued(name, seed, folder, *, times):
    began = time.perf_counter()
    expected = train(name, seed=seed)
    duration = time.perf_counter() - began
    moments, path, out = random.Random(f"{name} {seed}"), folder / "training.safetensors", folder / "found.pt"
    killed = 0
    while killed < times:
        process, log = start(name, path, out=out, seed=seed)
        while process.is_alive() and not log.exists():
            time.sleep(0.001)
        process.join(moments.uniform(0, 1.5 * duration))
        if process.is_alive():
            process.kill()
            killed += 1
        else:  # it was done before; once more from the start
            assert process.exitcode == 0, log.read_text()
            assert_equal(torch.load(out), expected)
            path.unlink()
            killed += 1
        process.join()
        log.unlink(missing_ok=True)
    process, log = start(name, path, out=out, seed=seed)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert_equal(torch.load(out), expected)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("place", ["write", "validation", "finish"])
def test_killed_at_a_certain_place_it_is_the_same_training(place, tmp_path):
    path, out = tmp_path / "training.safetensors", tmp_path / "found.pt"
    number = 1 if place == "finish" else 3
    process, log = start("patience", path, out=out, stop=(place, number, "kill"))
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    assert len(list(tmp_path.glob("*.part"))) == (place == "write")
    assert_equal(train("patience", path), train("patience"))
    assert not list(tmp_path.glob("*.part"))
