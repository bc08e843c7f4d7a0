"""Training by maximum likelihood in one call."""

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._runtime.checks import at_least
from ..flow import Flow
from .annealing import Noise
from .data import Rows, default_noise, default_weight_decay, hold_out, rows_of
from .history import History
from .maximum_likelihood import MaximumLikelihood, seeded
from .random_numbers import RandomNumbers, Start
from .resume import Checkpoint, CheckpointError
from .stateful import entry, load_part


def fit(
    flow: nn.Module,
    x: Any,
    *,
    context: Any = None,
    validation: Any = 0.1,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float | None = None,
    noise: float | None = None,
    patience: int | None = None,
    interval: int | None = None,
    ema: float = 0.995,
    clip: float = 5.0,
    progress: bool = True,
    seed: int | None = None,
    callback: Callable[[Mapping[str, float]], bool | None] | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    recoveries: int = 0,
) -> History:
    """Trains a flow by maximum likelihood; afterwards it holds the best averaged state and is in evaluation mode.

        history = fit(flow, x)                                    # x (N, D): 10 % are held out, until patience ends it
        history = fit(flow, (x, context), steps=5000)             # a conditional flow, for 5000 steps
        history = fit(ImageFlow(flow, levels=256), images, epochs=50)
        history = fit(flow, x, checkpoint="run.safetensors")      # if it was stopped, the same call goes on

    AdamW minimises -log p(x | context), in nats an event, or bits/dim for an :class:`~pyro_realnvp.ImageFlow`. If the
    number of steps is given, the learning rate rises over a tenth of them, 300 at most, and then falls to 0 along half
    a cosine; else it rises over 100 steps and stays. An exponential moving average of weights and running statistics is
    scored on the held-out rows at every interval, and the one with the lowest loss is kept. If ``fit`` is interrupted,
    or the loss becomes NaN, the flow is left with the best state until then.

    Tensors and numpy arrays are moved to the flow's device; floating point data are converted to its dtype, integers
    are left as they are.

    Args:
        flow: a :class:`~pyro_realnvp.Flow`, :class:`~pyro_realnvp.ImageFlow` or
            :class:`~pyro_realnvp.AugmentedFlow`, or any Module that returns the log-densities (batch,) when it is
            called with x, or with x and a context.
        x: events (N, \\*event_shape); a tuple (x, context); or a DataLoader of either, whose batches are then used. The
            second part of its batches is always the context: labels of an unconditional flow must be left out.
        context: (N, \\*context_shape), if x is not a pair.
        validation: fraction of the rows to hold out, drawn at random (a DataLoader is then made again for the rest, if
            its sampler is torch's random or sequential one); or held-out x, a tuple, or a DataLoader; or None.
        steps: gradient steps to take.
        epochs: passes over the data to take, instead. Without either, ``patience`` ends the training.
        batch_size: rows of a batch; those of a DataLoader are its own.
        learning_rate: the highest.
        weight_decay: of AdamW, for the matrices and kernels; biases and scales are not decayed. None: 30 / N, at most
            0.1 and at least 0.
        noise: standard deviation of Gaussian noise that is added to x at every step, in the units of x. None, for a
            Flow or AugmentedFlow on the whole real line: in units of the standard deviation of each element,
            min(0.05, 1 / sqrt(N)) if steps or epochs are given; else it begins at min(0.3, 4 / sqrt(N)), and whenever
            ``patience`` is exhausted, the training goes back to the best state and on with half the noise, as long as
            that helps. For other flows, 0.
        patience: number of intervals without a lower validation loss that ends the training (but see ``noise``). None:
            10 if neither steps nor epochs are given; else there is no early end, and the best state is kept all the
            same.
        interval: steps between validations; an epoch by default, and at least 50.
        ema: decay of the averaged weights and statistics; 0 keeps the weights of the last step.
        clip: largest norm of the gradient of all parameters together.
        progress: whether a progress bar is shown.
        seed: of all random numbers, whose global state is then left alone; None draws from the global state.
        callback: called after every interval with ``step``, ``loss``, ``validation``, ``learning_rate`` and
            ``seconds``, while the flow holds the averaged state in evaluation mode. True ends the training.
        checkpoint: path of a file in which the state is saved every few minutes, and when the program is stopped: the
            same call goes on from there, and returns what was trained when it has ended. Or a
            :class:`~pyro_realnvp.Checkpoint` in a ``with`` block, whose file may have more than this training.
        recoveries: how often a training whose loss becomes NaN or infinite goes on from the state after the last
            interval, with half the learning rate.

    Returns:
        The losses, with a ``plot()``.

    Warns:
        UserWarning: if a fifth of a column of x reaches the first splines outside of their bound, where they are the
            identity.

    Raises:
        ValueError: if the arguments do not fit each other, the data are empty or not finite, or the file of the
            checkpoint is damaged or of another training.
        OSError: if the file of the checkpoint cannot be read or written, or another process uses it.
        DivergedError: a RuntimeError, if the loss becomes NaN or infinite. Its ``diagnosis`` is that of
            :func:`~pyro_realnvp.diagnose` on the batch of the loss, in the state that the flow then was in; on a GPU,
            which looks at the loss every 20 steps, on the last batch.

    Example:
        >>> x = torch.randn(500, 2) * torch.tensor([1.0, 0.1])
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=4))
        >>> before = flow(x).mean()
        >>> history = fit(flow, x, steps=60, learning_rate=0.005, progress=False)
        >>> bool(flow(x).mean() > before + 0.5), flow.training
        (True, False)
    """
    if not isinstance(flow, nn.Module):
        raise ValueError(f"fit needs a Module, such as Flow(base, transforms), but got {type(flow).__name__}.")
    parameters = [p for p in flow.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"fit needs a Module with parameters to train, but {type(flow).__name__} has none.")
    if steps is not None and epochs is not None:
        raise ValueError(f"fit takes steps or epochs, but got steps={steps} and epochs={epochs}.")
    with seeded(seed, parameters[0].device):
        like, event_shape = parameters[0], getattr(flow, "event_shape", None)
        rows = rows_of(x, context, like=like, batch_size=batch_size, event_shape=event_shape)
        if noise is not None and not 0 <= noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, but got {noise}.")
        if epochs is not None:
            at_least("epochs", epochs)
        if steps is not None:
            at_least("steps", steps)
        settings = {
            "steps": steps,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "noise": noise,
            "patience": patience,
            "interval": interval,
            "ema": ema,
            "clip": clip,
            "seed": seed,
            "recoveries": recoveries,
            "rows": rows.count,
        }
        with _opened(checkpoint, settings, rows, validation, like) as saved:
            if saved is not None and saved.result is not None and not isinstance(checkpoint, Checkpoint):
                return _finished(flow, RandomNumbers(rows.generators), saved)
            if saved is not None:  # the same rows are held out
                saved.track(start=Start(RandomNumbers(rows.generators)))
            _check_dtype(flow, rows)
            rows, held_out = hold_out(rows, validation, like=like, event_shape=event_shape)
            epoch = rows.batches_per_epoch
            if epochs is not None:
                if epoch is None:
                    raise ValueError("fit needs steps instead of epochs for a DataLoader without a length.")
                steps = epochs * epoch
            if steps is None and held_out is None:
                raise ValueError(
                    "fit needs steps or epochs if there are no held-out data, by which patience could end it."
                )
            if patience is None:
                patience = 10 if steps is None else sys.maxsize
            every = at_least("interval", interval if interval is not None else max(50, epoch or 0))
            decay = default_weight_decay(rows) if weight_decay is None else weight_decay
            ends_itself = steps is None and held_out is not None
            spread = default_noise(flow, rows, anneals=ends_itself) if noise is None else noise or None
            training = MaximumLikelihood(
                flow,
                rows,
                held_out,
                learning_rate,
                decay,
                Noise(spread, anneals=noise is None and ends_itself),
                steps,
                ema,
                clip,
                recoveries,
                starts=saved is None or saved.saved is None,
            )
            history = training.run(steps, every, at_least("patience", patience), progress, callback, saved)
            if saved is not None and not isinstance(checkpoint, Checkpoint):
                random = RandomNumbers(rows.generators).state_dict()
                saved.finish({"flow": flow.state_dict(), "history": history.state_dict(), "random": random})
            return history


def _opened(
    checkpoint: Checkpoint | str | Path | None, settings: Mapping[str, Any], rows: Rows, validation: Any, like: Tensor
) -> AbstractContextManager[Checkpoint | None]:
    """Opens the file of a checkpoint, for these settings and data; leaves open one that the caller has opened."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return nullcontext(checkpoint)
    if validation is not None and not isinstance(validation, int | float):
        validation = rows_of(validation, like=like, batch_size=1000).digest()
    return Checkpoint(checkpoint, {**settings, "data": rows.digest(), "validation": validation})


def _finished(flow: nn.Module, random: RandomNumbers, saved: Checkpoint) -> History:
    """Puts everything into the state after a training that an earlier process has ended."""
    before = random.state_dict()
    try:
        history = History.from_state(entry(saved.result, "history", dict))
        load_part(random, "random", saved.result)
        load_part(flow, "flow", saved.result)
    except ValueError as error:
        random.load_state_dict(before)
        raise CheckpointError(f"{saved.path} is of another training than that of this flow: {error}") from error
    flow.eval()
    return history


def _check_dtype(flow: nn.Module, rows: Rows) -> None:
    if isinstance(flow, Flow) and not (dtype := rows.first[0].dtype).is_floating_point:
        raise ValueError(
            f"fit needs floating point x for a Flow, but got {dtype}; convert it by x.float(), or use an ImageFlow "
            f"for integer images."
        )
