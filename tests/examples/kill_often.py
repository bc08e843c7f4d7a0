"""Runs a script of the examples, kills it at random moments, and lets it go on until it ends.

    python tests/examples/kill_often.py two_moons 20 1.5 0.2 ONE -- --steps 300 --out DIR

Before, it runs in one go into the folder ONE, unless that is there already. Then it is killed (SIGKILL) so many times,
each after a random part of so many seconds, where the state is saved as often as the next number of seconds says (0:
after every step, so that many kills fall into a save). Every attempt is a fork of this process, which has imported
everything: importing would take most of the time.
"""

import importlib
import os
import random
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


def attempt(main, arguments, seconds):
    """Runs the script in a fork; kills it after so many seconds. Returns whether it has ended before."""
    child = os.fork()
    if not child:
        try:
            main(arguments)
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr, flush=True)
            os._exit(0 if ended.code is None else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"The script ended with the status {status}.")
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run(name, kills, seconds, every, one, arguments):
    Checkpoint.__init__.__kwdefaults__["every"] = every
    torch.set_num_threads(1)
    main = importlib.import_module(name).main
    if not Path(one).exists():
        attempt(main, [*arguments, "--out", one], 3600)
    draw = random.Random(0)
    done = 0
    while done < kills:
        if attempt(main, arguments, draw.uniform(0.02, 1) * seconds):
            break
        done += 1
    attempt(main, arguments, 3600)
    print(f"{done} kills")


if __name__ == "__main__":
    script, kills, seconds, every, one, _, *arguments = sys.argv[1:]
    run(script, int(kills), float(seconds), float(every), one, arguments)
