"""A script that is stopped says so and goes on; one that cannot begin, as another one is at it, ends with one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TINY = ["--steps", "1000000", "--interval", "20", "--couplings", "2", "--hidden", "8", "--batch", "16"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("stops") / "out"
    command = [sys.executable, str(HERE / "stopped_and_locked.py"), "two_moons", *TINY, "--device", "cpu"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "out": out}


def test_a_second_run_is_refused_with_the_number_of_the_first(found):
    refused = found["refused"]
    assert refused["code"] == 1
    assert refused["stderr"] == (
        f"{found['out'] / 'training.safetensors'} is in use by the process {refused['first']}. "
        "Wait until it ends, or give another --out.\n"
    )
    assert refused["stdout"] == ""


def test_the_lock_ends_with_a_process_that_is_killed(found):
    assert found["killed"]["code"] == -9
    assert found["SIGTERM"]["code"] != 1  # the next one was not refused


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_it_soon_and_a_line_says_that_it_goes_on(name, code, found):
    stopped = found[name]
    assert stopped["code"] == code
    assert stopped["seconds"] < 10
    state = found["out"] / "training.safetensors"
    assert stopped["stdout"] == f"Stopped by {name}; the same call goes on from {state}.\n"
    assert "Traceback" not in stopped["stderr"]
    steps = [json.loads(row)["step"] for row in stopped["rows"].splitlines()]  # half a row is gone
    assert steps == [*range(20, 20 * len(steps) + 1, 20)]
    assert len(steps) > 2


def test_a_file_that_is_a_folder_is_one_line(found):
    state = found["out"].with_name("other") / "training.safetensors"
    assert found["folder"]["code"] == 1
    assert found["folder"]["stdout"] == ""
    assert found["folder"]["stderr"] == f"A file cannot be read or written: {state} is a folder.\n"


def test_a_second_signal_ends_a_step_that_hangs(found):
    twice = found["twice"]
    assert twice["code"] in (130, -2)
    assert twice["seconds"] < 1
    assert "Traceback" not in twice["stderr"]
