"""SIGTERM and Ctrl-C: the state is saved, the process ends and says how it goes on; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from trainings import PLACES, assert_equal, before, receive, save_often, start, train, vectors

from pyro_realnvp import Checkpoint
from pyro_realnvp.training.checkpoint import save
from pyro_realnvp.training.files import read_file
from pyro_realnvp.training.interruption import Interruption
from pyro_realnvp.training.loop import Progress, run_steps

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("place", ["step", "validation", "write", "poll", "rename"])
@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)]
)
def test_the_state_is_saved_and_a_line_says_so(place, number, error, code, tmp_path, capsys):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    path = tmp_path / "training.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as caught:  # noqa: PT012
        save_often(patch.setattr)
        before(patch.setattr, *PLACES[place], 3, receive(number))
        train("vectors", path)
    assert getattr(caught.value, "code", None) == code
    assert capsys.readouterr().out == f"Stopped by {number.name}; the same call goes on from {path}.\n"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    read_file(path)  # no error: it is whole
    assert_equal(train("vectors", path), train("vectors"))


def test_a_step_is_not_lost(tmp_path, monkeypatch):
    """The signal comes within step 11, which is then the last one."""
    path, taken = tmp_path / "training.safetensors", []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (taken.append(1), step(self)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):  # noqa: PT012
        before(patch.setattr, *PLACES["step"], 11, receive(signal.SIGTERM))
        train("vectors", path)
    assert len(taken) == 11
    train("vectors", path)
    assert len(taken) == 24


@pytest.mark.parametrize("place", ["finish", "write"])
def test_a_signal_at_the_very_end_is_not_lost(place, tmp_path):
    path = tmp_path / "training.safetensors"
    writes, own = [], os.fsync
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch.setattr, steps=1000)
        patch.setattr(os, "fsync", lambda descriptor: (writes.append(1), own(descriptor)))
        train("vectors", tmp_path / "counted")
    number = 1 if place == "finish" else len(writes) - 1  # the last state, before the result
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="143"):  # noqa: PT012
        save_often(patch.setattr, steps=1000)
        before(patch.setattr, *PLACES[place], number, receive(signal.SIGTERM))
        train("vectors", path)
    assert_equal(train("vectors", path), train("vectors"))


def test_exit_codes_of_processes(tmp_path):
    """SIGTERM within a long validation, too, which is cut off and done again."""
    expected = train("vectors")
    for place, number, act, codes in (
        ("step", 10, "terminate", {143}),
        ("validation", 2, "terminate and wait", {143}),
    ):
        path, out = tmp_path / f"{place}.safetensors", tmp_path / "found.pt"
        process, log = start("vectors", path, out=out, stop=(place, number, act))
        process.join(20)
        assert process.exitcode in codes, log.read_text()
        assert f"Stopped by SIGTERM; the same call goes on from {path}.\n" in log.read_text()
        assert_equal(train("vectors", path), expected)


CTRL_C = """
import sys
sys.path.insert(0, {here!r})
import trainings
trainings.before(setattr, *trainings.PLACES["step"], 5, trainings.ACTS["interrupt"])
trainings.train("vectors", sys.argv[1])
"""


def test_ctrl_c_ends_a_program_as_it_always_does(tmp_path):
    path = tmp_path / "training.safetensors"
    command = [sys.executable, "-c", CTRL_C.format(here=str(HERE)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT  # a shell makes 130 of it
    assert done.stdout == f"Stopped by SIGINT; the same call goes on from {path}.\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert_equal(train("vectors", path), train("vectors"))


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_one_ends_a_step_that_hangs(numbers, tmp_path):
    process, log = start("vectors", tmp_path / "training", out=tmp_path / "found", stop=("step", 5, "say and hang"))
    while "hangs" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.01)
        assert process.is_alive(), log.read_text()
    os.kill(process.pid, numbers[0])
    process.join(0.3)
    assert process.is_alive()
    os.kill(process.pid, numbers[1])
    process.join(5)
    assert process.exitcode in (130, -signal.SIGINT)
    assert_equal(train("vectors", tmp_path / "training"), train("vectors"))


def test_in_another_thread_there_are_no_signals(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train("vectors", tmp_path / "training")))
    thread.start()
    thread.join()
    assert_equal(found[0], train("vectors"))


def test_a_handler_that_is_not_pythons_is_no_error(monkeypatch):
    own = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: (own(number, handler), None)[1])
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        with Interruption():
            pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            own(number, handler)


def test_an_interruption_is_used_again_and_keeps_the_pipe_of_others(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    earlier = signal.set_wakeup_fd(write)
    interruption, before = Interruption(), set(threading.enumerate())  # others may end meanwhile
    try:
        for _ in range(3):
            with pytest.raises(SystemExit), interruption:
                os.kill(os.getpid(), signal.SIGTERM)
            with interruption:
                assert interruption.received == 0
        for _ in range(100):
            if set(threading.enumerate()) <= before:
                break
            time.sleep(0.01)
        assert set(threading.enumerate()) <= before
    finally:
        assert signal.set_wakeup_fd(earlier) == write
        os.close(read)
        os.close(write)


def test_in_a_loop_of_your_own(tmp_path):
    """A signal within an interval leaves the state of before it in the file."""
    path, intervals = tmp_path / "training", []

    def run(act):
        progress = Progress()

        def on_interval(step, loss):
            if len(intervals) == 1:
                act()
            intervals.append((step, loss))
            return False

        with Checkpoint(path) as checkpoint:
            checkpoint.track(progress=progress)
            options = {"start": progress, "checkpoint": checkpoint, "bar": False}
            return run_steps(lambda: 1.0 + progress.step, steps=6, interval=2, on_interval=on_interval, **options)

    with pytest.raises(SystemExit, match="143"):
        run(receive(signal.SIGTERM))
    assert intervals == [(2, 1.5)]
    assert run(lambda: None) == 6
    assert intervals == [(2, 1.5), (4, 3.5), (6, 5.5)]


WORKERS = """
import os, signal, sys
sys.path.insert(0, {here!r})
import torch, trainings
from torch.utils.data import DataLoader, TensorDataset
trainings.TRAININGS["workers"] = lambda: (
    trainings.vectors(),
    DataLoader(TensorDataset(trainings.rows()), 8, shuffle=True, num_workers=1),
    trainings.STEPS,
)
os.setpgid(0, 0)
if len(sys.argv) > 3:
    act = lambda: os.killpg(0, getattr(signal, sys.argv[3]))  # as a terminal, or a scheduler, does
    trainings.before(setattr, *trainings.PLACES["step"], 10, act)
torch.save(trainings.train("workers", sys.argv[1]), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 143)])
def test_workers_of_a_loader_that_receive_it_too(name, code, tmp_path):
    script = WORKERS.format(here=str(HERE))
    command = [sys.executable, "-c", script, str(tmp_path / "training"), str(tmp_path / "found")]
    done = subprocess.run([*command, name], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout == f"Stopped by {name}; the same call goes on from {tmp_path / 'training'}.\n"
    subprocess.run(command, check=True)
    command[-2:] = [str(tmp_path / "one"), str(tmp_path / "expected")]
    subprocess.run(command, check=True)
    assert_equal(torch.load(tmp_path / "found"), torch.load(tmp_path / "expected"))


def test_a_file_of_a_flow_is_whole_when_a_signal_comes_in_between(tmp_path):
    path = tmp_path / "flow.safetensors"
    save(vectors(), path)
    content = path.read_bytes()
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            before(patch.setattr, *PLACES["rename"], 1, receive(signal.SIGINT))
            save(vectors(), path)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["flow.safetensors"]
