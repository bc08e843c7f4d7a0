"""Runs a script in several processes under ``torchrun``: one process a device, each with its part of every batch.

    torchrun --standalone --nproc-per-node 2 examples/images.py --device cpu

The global batch, the learning rate and the number of steps stay what they are in one process. All processes draw one
order of the data and take every size-th row of a batch; noise and dropout are drawn by each for its own rows, from a
seed of its own. Losses and test figures are those of all rows; the first process alone writes files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from pyro_realnvp._runtime.collectives import moments

from shared.options import fail, resolve_device, set_seed


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        device: of this process.
        rank: number of this process, from 0.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Returns the rows of this process."""
        return batch[self.rank :: self.size]

    def order(self, seed: int) -> torch.Generator | None:
        """Makes the generator of the order of the data, equal in all processes, and seeds all other numbers apart.

        Returns None, the global generator, where there is one process.
        """
        if self.size == 1:
            return None
        set_seed(seed * self.size + self.rank)
        return torch.Generator().manual_seed(seed)

    def mean(self, value: Tensor | float) -> Tensor | float:
        """Computes the mean over the processes."""
        if self.size == 1:
            return value
        total = torch.as_tensor(value, device=self.device, dtype=torch.float32).clone()
        distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in their order; anything that can be pickled."""
        found = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value)
        return found

    def estimate(self, value: float, error: float, count: int) -> tuple[float, float]:
        """Computes a mean and its standard error over all rows, given those over the ``count`` rows of this process."""
        if self.size == 1:
            return value, error
        row = torch.tensor([value, error**2 * (count - 1)], device=self.device, dtype=torch.float64)
        mean, var, total = moments(row[0], row[1], count, synchronized=True)
        return mean.item(), math.sqrt(var.item() / (total.item() - 1))

    @contextmanager
    def first_of_node(self) -> Iterator[None]:
        """Lets the first process of every machine through alone, then the others: for files that it downloads."""
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if self.size > 1 and not first:
            distributed.barrier()
        yield
        if self.size > 1 and first:
            distributed.barrier()


@contextmanager
def start(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun has started, or none: NCCL between GPUs, Gloo between processors."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Processes(resolve_device(device))
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = resolve_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, distributed.get_rank(), size)
        distributed.barrier()  # the others wait for the files of the first
    finally:
        distributed.destroy_process_group()


def check_batch(size: int, processes: Processes) -> None:
    if size % processes.size:
        fail(f"--batch-size must be divisible by the {processes.size} processes, but got {size}.")
