"""Small trainings with everything that a checkpoint keeps, and processes that are stopped while they take them."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_realnvp import (
    DiagonalNormal,
    Flow,
    ImageFlow,
    Logit,
    StandardNormal,
    fit,
    glow_transforms,
    realnvp_transforms,
)
from pyro_realnvp.training import files, resume
from pyro_realnvp.training.maximum_likelihood import MaximumLikelihood
from pyro_realnvp.training.resume import Checkpoint

from zoo import convnet, mlp


class Killed(BaseException):
    """Stands for the death of the process."""


class Shuffled(IterableDataset):
    """Endless rows by way of a buffer, drawn from all generators there are."""

    def __iter__(self):
        buffer = [torch.randn(2) for _ in range(16)]
        while True:
            index = int(torch.randint(16, ()))
            yield buffer[index] * (1 + random.random())
            buffer[index] = torch.tensor(np.random.randn(2), dtype=torch.float32)


def rows(count=60, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


def vectors(context=None):
    """A flow with ActNorm and running statistics; statistics of batches change with their order."""
    layers = glow_transforms(2, steps=1, net=mlp, context_shape=context)
    layers += realnvp_transforms(2, couplings=2, net=mlp, context_shape=context)
    base = StandardNormal(2) if context is None else DiagonalNormal(2, context_shape=context)
    return Flow(base, layers)


def images():
    layers = glow_transforms((1, 4, 4), levels=1, steps=1, net=convnet)
    return ImageFlow(Flow(StandardNormal((1, 4, 4)), [*layers, Logit(0.05).inv]), 4)


def generator_of_its_own():
    return DataLoader(TensorDataset(rows()), 8, shuffle=True, generator=torch.Generator().manual_seed(4))


STEPS = {"steps": 24, "interval": 6, "batch_size": 16}
#: Makes a flow, and the arguments of fit.
TRAININGS = {
    "vectors": lambda: (vectors(), rows(), STEPS),
    "context": lambda: (vectors(1), (rows(), rows(dim=1)), STEPS),
    "images": lambda: (images(), torch.randint(4, (40, 1, 4, 4)), STEPS),
    "without validation": lambda: (vectors(), rows(), STEPS | {"validation": None, "ema": 0.0, "clip": 0.5}),
    "loader": lambda: (vectors(), DataLoader(TensorDataset(rows()), 8, shuffle=True), STEPS),
    "loader alone": lambda: (vectors(), generator_of_its_own(), STEPS | {"validation": None}),
    "generator": lambda: (vectors(), generator_of_its_own(), STEPS),
    "endless": lambda: (vectors(), DataLoader(Shuffled(), 8), STEPS | {"validation": None, "noise": 0.1}),
    "patience": lambda: (
        vectors(),
        rows(20),
        {"validation": rows(100) + 1, "patience": 5, "interval": 4, "learning_rate": 0.1, "batch_size": 8},
    ),
    "recoveries": lambda: (vectors(), rows(), STEPS | {"recoveries": 2}),
}


def train(name, path=None, *, seed=None, **more):
    """Trains as a program does that has just begun; returns all that must be equal however often it was stopped."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    flow, x, options = TRAININGS[name]()
    history = fit(flow, x, checkpoint=path, seed=seed, progress=False, **{**options, **more})
    state = {f"flow.{key}": value for key, value in flow.state_dict().items()}
    state |= {f"history.{key}": value for key, value in history.state_dict().items() if key != "seconds"}
    assert not flow.training
    later = {"torch": torch.rand(3), "numpy": torch.tensor(np.random.rand(3)), "python": random.random()}
    return state | later


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        same = torch.equal(found[key].nan_to_num(7), value.nan_to_num(7)) if torch.is_tensor(value) else None
        assert found[key] == value if same is None else same, key


def save_often(patch, *, steps=2):
    """Lets a checkpoint be saved after every interval, and after every second step."""
    calls = iter(range(10**9))

    def is_due(self):
        return self._interruption.received > 0 or next(calls) % steps == 1

    patch(resume, "_SHARE", 1e9)
    patch(Checkpoint, "is_due", is_due)


def before(patch, owner, name, number, act):
    """Calls a function before the call of another one that has this number, from 1."""
    own, calls = getattr(owner, name), iter(range(1, 10**9))

    def called(*args, **options):
        if next(calls) == number:
            act()
        return own(*args, **options)

    patch(owner, name, called)


#: Where a training can be stopped: the owner and the name of a function.
PLACES = {
    "step": (torch.optim.AdamW, "step"),
    "validation": (MaximumLikelihood, "validate"),
    "write": (files.os, "fsync"),
    "rename": (files.os, "replace"),
    "poll": (Checkpoint, "poll"),
    "finish": (Checkpoint, "finish"),
}


def hang():
    """Computes for minutes in compiled code, to which Python's handlers of signals do not come."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


def receive(*numbers, then=None):
    """Sends signals to this very process."""

    def act():
        for number in numbers:
            os.kill(os.getpid(), number)
        if then is not None:
            then()

    return act


#: What happens there.
ACTS = {
    "kill": receive(signal.SIGKILL),
    "terminate": receive(signal.SIGTERM),
    "interrupt": receive(signal.SIGINT),
    "terminate and wait": receive(signal.SIGTERM, then=partial(time.sleep, 100)),
    "say and hang": lambda: (print("hangs", flush=True), hang()),
}


def child(name, path, out, seed, stop, log):
    """Trains in a process of its own, and writes what is found into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    save_often(setattr)
    if stop is not None:
        place, number, act = stop
        before(setattr, *PLACES[place], number, ACTS[act])
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    print("started", flush=True)
    try:
        torch.save(train(name, path, seed=seed), out)
    finally:
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def process_of(function, *arguments):
    """Starts a process that calls a function; only the first one imports everything."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings", "savers"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def start(name, path, *, out, seed=None, stop=None):
    """Starts a process with a training."""
    log = str(path) + ".log"
    return process_of(child, name, str(path), str(out), seed, stop, log), Path(log)
