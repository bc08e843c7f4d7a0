"""Data for a training: tensors or a DataLoader as batches on the flow's device, and rows that are held out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, random_split

from .._runtime.checks import at_least
from ..augmented_flow import AugmentedFlow
from ..bijections.support import unbounded
from ..flow import Flow
from .files import safetensors
from .loop import Batches
from .random_numbers import Stream
from .stateful import entry

Batch = tuple[Tensor, ...]  #: (x,) or (x, context)

_PLAIN_SAMPLERS = (RandomSampler, SequentialSampler)
_LOADER_OPTIONS = ("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")


class BatchStream(Iterator[Batch], ABC):
    """Base class of batches without end that go on where an earlier process stopped."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns the position."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""


class Rows(ABC):
    """Base class of the data of a training: batches without end, or once through."""

    device: torch.device
    generators: Sequence[torch.Generator] = ()  #: of the user's, that the order of the rows is drawn from

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of rows, if it is known."""

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int | None:
        """Number of batches in a pass over the data, if it is known."""

    @cached_property
    @abstractmethod
    def first(self) -> Batch:
        """Returns a batch for data-dependent initialisation; always the same one."""

    @abstractmethod
    def standard_deviation(self) -> Tensor:
        """Computes that of every element of x, of the shape of an event; of a DataLoader: over its first batch."""

    @abstractmethod
    def batches(self) -> BatchStream:
        """Returns batches without end."""

    @abstractmethod
    def digest(self) -> str | None:
        """Computes the SHA-256 of all values, if they are at hand."""

    @abstractmethod
    def once(self) -> Iterator[Batch]:
        """Returns all rows, each once and in their order."""

    @abstractmethod
    def split(self, fraction: float) -> tuple[Rows, Rows]:
        """Splits the rows at random, a fraction of them into the second part."""


def _held(fraction: float, count: int) -> int:
    """Returns how many rows are held out, at least one."""
    held = max(1, round(fraction * count))
    if held >= count:
        raise ValueError(f"fit cannot hold out {fraction} of {count} rows; give validation=None or more rows.")
    return held


class TensorRows(Rows):
    """Rows of tensors of equal length."""

    def __init__(self, tensors: Batch, batch_size: int) -> None:
        self.tensors, self.batch_size = tensors, batch_size
        self.device = tensors[0].device

    @property
    def count(self) -> int:
        return len(self.tensors[0])

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.count // self.batch_size)

    @cached_property
    def first(self) -> Batch:
        rows = torch.randperm(self.count)[: max(256, self.batch_size)].to(self.device)
        return tuple(tensor[rows] for tensor in self.tensors)

    def standard_deviation(self) -> Tensor:
        return self.tensors[0].std(0, correction=0)

    def batches(self) -> BatchStream:
        return _TensorBatches(self.tensors, self.batch_size)

    def digest(self) -> str:
        tensors = {str(index): tensor.cpu().contiguous().clone() for index, tensor in enumerate(self.tensors)}
        return hashlib.sha256(safetensors().save(tensors)).hexdigest()

    def once(self) -> Iterator[Batch]:
        return zip(*(tensor.split(max(1000, self.batch_size)) for tensor in self.tensors), strict=True)

    def split(self, fraction: float) -> tuple[Rows, Rows]:
        held = _held(fraction, self.count)
        order = torch.randperm(self.count).to(self.device)
        parts = [tuple(tensor[rows] for tensor in self.tensors) for rows in (order[held:], order[:held])]
        return TensorRows(parts[0], self.batch_size), TensorRows(parts[1], self.batch_size)


class LoadedRows(Rows):
    """Batches of a DataLoader, moved to the flow's device and dtype."""

    def __init__(self, loader: DataLoader[Any], like: Tensor) -> None:
        self.loader, self.like, self.device = loader, like, like.device
        holders = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
        own = {id(own): own for holder in holders if (own := getattr(holder, "generator", None)) is not None}
        self.generators = tuple(own.values())

    @property
    def count(self) -> int | None:
        try:
            return len(self.loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def batches_per_epoch(self) -> int | None:
        try:
            return len(self.loader)
        except TypeError:
            return None

    @cached_property
    def first(self) -> Batch:
        return next(self.once())

    def standard_deviation(self) -> Tensor:
        return self.first[0].std(0, correction=0)

    def batches(self) -> BatchStream:
        return _LoadedBatches(self)

    def digest(self) -> None:
        return None

    def once(self) -> Iterator[Batch]:
        empty = True
        for batch in self.loader:
            empty = False
            parts = (batch,) if isinstance(batch, Tensor) else batch
            if not isinstance(parts, tuple | list) or not 1 <= len(parts) <= 2:
                raise ValueError(
                    f"fit needs batches x or (x, context) of a DataLoader, but got {type(batch).__name__}"
                    f"{f' of {len(parts)} parts' if isinstance(parts, tuple | list) else ''}."
                )
            yield tuple(_tensor(part, self.like) for part in parts)
        if empty:
            raise ValueError("fit needs data, but the DataLoader returned no batch.")

    def split(self, fraction: float) -> tuple[Rows, Rows]:
        loader, count = self.loader, self.count
        for sampler, plain in ((loader.sampler, _PLAIN_SAMPLERS), (loader.batch_sampler, (BatchSampler,))):
            if count is None or type(sampler) not in plain:
                raise ValueError(
                    f"fit cannot hold out a fraction of a DataLoader with a {type(sampler).__name__}; give "
                    f"validation=None, or held-out data."
                )
        held = _held(fraction, count or 0)
        shuffled = isinstance(loader.sampler, RandomSampler)
        options: dict[str, Any] = {name: getattr(loader, name) for name in _LOADER_OPTIONS}
        training, rest = random_split(loader.dataset, [(count or 0) - held, held])
        parts = (
            DataLoader(training, shuffle=shuffled, drop_last=loader.drop_last, **options),
            DataLoader(rest, **options),
        )
        return LoadedRows(parts[0], self.like), LoadedRows(parts[1], self.like)


class _TensorBatches(BatchStream):
    def __init__(self, tensors: Batch, size: int) -> None:
        self.tensors = tensors
        self.rows = Batches(torch.arange(len(tensors[0]), device=tensors[0].device), size)

    def __next__(self) -> Batch:
        rows = next(self.rows)
        return tuple(tensor[rows] for tensor in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        return self.rows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows.load_state_dict(state)


class _LoadedBatches(BatchStream):
    """The batches of a DataLoader. Its position is the state of random numbers before a pass, and batches since then.

    To go on there, these batches are read again: a DataLoader has no other way. It draws from random numbers apart, so
    that it then returns and draws what it did, whatever the flow drew in between.
    """

    def __init__(self, rows: LoadedRows) -> None:
        self.rows, self.used = rows, 0
        self.random = Stream(rows.generators)
        self.before = self.random.state
        self.iterator: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self.iterator is None:
            self.before, self.used = self.random.state, 0
            self.iterator = self.rows.once()
        with self.random.drawing():
            batch = next(self.iterator, None)
        if batch is None:
            self.iterator = None
            return next(self)
        self.used += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "now": self.random.state, "used": self.used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before, now, used = entry(state, "before", dict), entry(state, "now", dict), entry(state, "used", int)
        self.used, self.iterator, self.random.state = used, None, now
        with self.random.drawing():
            pass  # an error if there is no such state
        if used == 0:
            return
        self.random.state, self.iterator = self.before, self.rows.once()
        with self.random.drawing():
            if used < 0 or sum(1 for _ in islice(self.iterator, used)) < used:
                raise ValueError(f"the DataLoader has no {used} batches.")


def rows_of(
    x: Any,
    context: Any = None,
    *,
    like: Tensor,
    batch_size: int,
    event_shape: Sequence[int] | None = None,
    of: str = "x",
) -> Rows:
    """Turns the data arguments of :func:`~pyro_realnvp.fit` into rows on the device and in the dtype of ``like``.

    Args:
        x: events, a pair or a DataLoader.
        context: of the events, if x is not a pair.
        like: a parameter of the flow.
        batch_size: rows of a batch.
        event_shape: of an event, if it is known.
        of: the name of x in errors.
    """
    if isinstance(x, DataLoader):
        if context is not None:
            raise ValueError("fit takes the context from the batches of a DataLoader, but got a context besides.")
        return LoadedRows(x, like)
    if isinstance(x, tuple):
        if context is not None or len(x) != 2:
            besides = "" if context is None else " and a context besides"
            raise ValueError(f"fit takes {of} as a tensor or a pair (x, context), but got {len(x)} parts{besides}.")
        x, context = x
    tensors = tuple(_tensor(part, like) for part in (x, context) if part is not None)
    if any(part.dim() == 0 or len(part) != len(tensors[0]) for part in tensors) or not len(tensors[0]):
        shapes = " and ".join(str(tuple(part.shape)) for part in tensors)
        raise ValueError(f"fit needs a row of every tensor for every event, and one at least, but got shapes {shapes}.")
    if event_shape is not None and tensors[0].shape[1:] != Size(event_shape):
        hint = f"; {of}[:, None] has that shape" if tensors[0].dim() == 1 and tuple(event_shape) == (1,) else ""
        expected = ", ".join(map(str, event_shape))
        raise ValueError(f"fit expects {of} of shape (N, {expected}), but got {tuple(tensors[0].shape)}{hint}.")
    for name, part in zip((of, f"the context of {of}"), tensors, strict=False):
        bad = ~part.flatten(1).isfinite().all(1) if part.dim() > 1 else ~part.isfinite()
        if bad.any():
            raise ValueError(f"fit needs finite data, but row {int(bad.nonzero()[0])} of {name} is not.")
    return TensorRows(tensors, at_least("batch_size", batch_size))


def hold_out(
    rows: Rows, validation: Any, *, like: Tensor, event_shape: Sequence[int] | None = None
) -> tuple[Rows, Rows | None]:
    """Returns the rows to train on and those to validate on, given the argument of :func:`~pyro_realnvp.fit`."""
    if validation is None:
        return rows, None
    if isinstance(validation, int | float):
        if not 0 < validation < 1:
            raise ValueError(
                f"validation as a fraction lies between 0 and 1, but got {validation}; held-out rows are given as x."
            )
        return rows.split(validation)
    held_out = rows_of(validation, like=like, batch_size=1000, event_shape=event_shape, of="validation")
    parts = [len(each.tensors) for each in (rows, held_out) if isinstance(each, TensorRows)]
    if len(parts) == 2 and parts[0] != parts[1]:
        raise ValueError("fit needs a context for both the training rows and the validation, or for neither.")
    return rows, held_out


def default_weight_decay(rows: Rows) -> float:
    """Returns 30 / N, at most 0.1, as a prior does that weighs as much as a fixed number of rows; 0 for unknown N."""
    return min(0.1, 30 / rows.count) if rows.count else 0.0


def default_noise(flow: nn.Module, rows: Rows, *, anneals: bool) -> Tensor | None:
    """Returns the noise of a flow on the whole real line: a share of the standard deviation of every element of x.

    It is 1 / sqrt(N), at most 0.05; or the start of an annealing, from more than any data should need.
    """
    flow = flow.flow if isinstance(flow, AugmentedFlow) else flow
    if not isinstance(flow, Flow) or not rows.count or not rows.first[0].is_floating_point():
        return None
    on_real_line = unbounded(flow.transforms.codomain)
    share = min(0.3, 4 * rows.count**-0.5) if anneals else min(0.05, rows.count**-0.5)
    return rows.standard_deviation() * share if on_real_line else None


def _tensor(value: Any, like: Tensor) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"fit takes tensors, arrays, a pair of them as a tuple, or a DataLoader, but got {type(value).__name__}: "
            f"{error}"
        ) from error
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)
