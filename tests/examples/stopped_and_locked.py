"""Stops a script of the examples in all the ways there are, and starts it twice at once; prints what happened as JSON.

    python tests/examples/stopped_and_locked.py two_moons --out DIR --steps 1000000 ...

Every attempt is a fork of this process, which has imported everything: importing would take most of the time.
"""

import hashlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import filelock  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo  # the optimizers import it, which takes seconds

from pyro_realnvp import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


class Attempt:
    """A run of the script in a fork, whose output goes into files."""

    count = 0

    def __init__(self, main, arguments, out):
        Attempt.count += 1
        self.logs = [out.with_name(f"{out.name}.{Attempt.count}.{name}") for name in ("stdout", "stderr")]
        self.process = os.fork()
        if not self.process:
            for number, log in enumerate(self.logs, 1):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
            try:
                main(arguments)
                code = 0
            except SystemExit as ended:  # as the interpreter does
                code = ended.code if isinstance(ended.code, int) else 1
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def send(self, number):
        os.kill(self.process, number)

    def wait(self, seconds):
        """Waits until it ends; returns how, or None if it has not."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                stdout, stderr = (log.read_text() for log in self.logs)
                code, took = os.waitstatus_to_exitcode(status), time.monotonic() - start
                return {"code": code, "seconds": took, "stdout": stdout, "stderr": stderr, "process": self.process}
            time.sleep(0.005)
        return None

    def wait_until(self, holds):
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end, [log.read_text() for log in self.logs]
            assert self.wait(0.001) is None or os._exit(3)


def hang():
    """Computes for minutes in compiled code, to which Python's handlers of signals do not come."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


def main(name, arguments):
    torch.set_num_threads(1)
    Checkpoint.__init__.__kwdefaults__["every"] = 0.05
    script = importlib.import_module(name).main
    out = Path(arguments[arguments.index("--out") + 1])
    metrics, state, found = out / "metrics.jsonl", out / "training.safetensors", {}

    def rows():
        return metrics.read_text().count("\n") if metrics.exists() else 0

    first = Attempt(script, arguments, out)
    first.wait_until(lambda: rows() >= 2)
    found["refused"] = {**Attempt(script, arguments, out).wait(30), "first": first.process}
    first.send(signal.SIGKILL)
    found["killed"] = first.wait(10)
    with metrics.open("a") as file:
        file.write('{"step": 4')  # it was killed while it wrote this
    for number in (signal.SIGTERM, signal.SIGINT):
        before = state.stat().st_mtime_ns
        again = Attempt(script, arguments, out)
        again.wait_until(lambda before=before: state.stat().st_mtime_ns > before and rows() > 3)
        again.send(number)
        found[number.name] = {**again.wait(10), "rows": metrics.read_text()}

    own, marker = torch.optim.AdamW.step, out.with_name("hangs")

    def step(self):
        own(self)
        marker.touch()
        hang()

    torch.optim.AdamW.step = step
    hanging = Attempt(script, arguments, out)
    hanging.wait_until(marker.exists)
    hanging.send(signal.SIGINT)
    assert hanging.wait(0.5) is None  # it waits for the step
    hanging.send(signal.SIGINT)
    found["twice"] = hanging.wait(10)

    other = out.with_name("other")
    (other / state.name).mkdir(parents=True)
    found["folder"] = Attempt(script, [*arguments, "--out", str(other)], out).wait(10)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
