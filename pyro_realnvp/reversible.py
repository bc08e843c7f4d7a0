"""Backward without stored activations: the inputs of layer after layer are rebuilt by inverting them.

What a plain graph stores grows with the number of layers. A run of reversible layers y = f_n(... f_1(x)) stores x and
y; backward inverts f_n, computes it once more with a graph of its own, takes the gradients, and goes on with f_{n-1}.
What comes out at the end is compared with x. Gomez et al., "The Reversible Residual Network" (2017), section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .bijection import Bijection, Inverse, sum_rightmost
from .replay import Replay

__all__ = ["Retraced", "Reversible", "Step", "run_reversibly"]


class Retraced(NamedTuple):
    """A layer computed again: its input, leaves whose gradients sum to that of the input, and its results."""

    x: Tensor
    leaves: tuple[Tensor, ...]
    y: Tensor
    log_det: Tensor


class Reversible(Bijection):
    """A bijection whose input can be computed from its output in closed form, so that backward need not store it.

    A layer of your own takes part in :func:`~pyro_realnvp.rebuild` if it derives from this class. In both directions
    it is then to be a function of the value, the context, the parameters, the buffers and the random state alone.
    """

    @property
    def is_reversible(self) -> bool:
        """Whether the inverse undoes, in the present mode, what is computed."""
        return True

    def retrace(self, y: Tensor, context: Tensor | None, *, inverse: bool) -> Retraced:
        """Computes x from y = f(x), or of the inverse from y = f^-1(x), and then y again, with a graph."""
        there, back = Step(self, inverse, 0), Step(self, not inverse, 0)
        with torch.no_grad():
            x = back.compute(y, context)[0]
        return there.recompute(x, context)


class Step(NamedTuple):
    """A layer, in which direction it is computed, and how many batch dimensions of it belong to the event."""

    layer: Bijection
    inverse: bool
    extra: int

    def compute(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = self.layer
        y, log_det = (layer.inverse_and_log_det if self.inverse else layer.forward_and_log_det)(x, context)
        return y, sum_rightmost(log_det, self.extra)

    def inner(self) -> tuple[Bijection, bool]:
        """The layer itself, where this one is its inverse."""
        if isinstance(self.layer, Inverse):
            return self.layer.bijection, not self.inverse
        return self.layer, self.inverse

    @property
    def is_reversible(self) -> bool:
        layer, _ = self.inner()
        return isinstance(layer, Reversible) and layer.is_reversible

    def retrace(self, y: Tensor, context: Tensor | None) -> Retraced:
        layer, inverse = self.inner()
        x, leaves, y, log_det = cast(Reversible, layer).retrace(y, context, inverse=inverse)
        return Retraced(x, leaves, y, sum_rightmost(log_det, self.extra))

    def recompute(self, x: Tensor, context: Tensor | None) -> Retraced:
        leaf = x.detach().requires_grad_()
        return Retraced(x, (leaf,), *self.compute(leaf, context))


def run_reversibly(
    steps: Sequence[Step], x: Tensor, context: Tensor | None, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """All steps. Neighbours that are reversible store what enters and what leaves them; others are computed plainly."""
    log_dets: list[Tensor] = []
    for reversible, group in groupby(steps, lambda step: step.is_reversible):
        run = list(group)
        if reversible and len(run) > 1:
            rebuilt = _Run(run, x, tolerance)
            tensors = list({id(t): t for replay in rebuilt.replays for t in replay.tensors}.values())
            if tensors or x.requires_grad or (context is not None and context.requires_grad):
                x, log_det = _Rebuilt.apply(rebuilt, x, context, *tensors)
                log_dets.append(log_det)
                continue
        for step in run:
            x, log_det = step.compute(x, context)
            log_dets.append(log_det)
    return x, sum(log_dets[1:], log_dets[0])


class _Run:
    """Steps that are computed now and once more in backward."""

    def __init__(self, steps: list[Step], x: Tensor, tolerance: float | None) -> None:
        self.steps, self.device = steps, x.device
        self.tolerance = torch.finfo(x.dtype).eps ** (2 / 3) if tolerance is None else tolerance
        self.replays = [Replay(step.layer) for step in steps]
        kind = x.device.type
        self.precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.random: dict[int, list[Tensor]] = {}  # the state before a step that draws random numbers, such as dropout

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        # Without the cache, which would hand weights that were cast without a graph to those who need one.
        return torch.autocast(self.device.type, dtype=self.precision, cache_enabled=False)

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_dets: list[Tensor] = []
        with self.autocast():
            for index, step in enumerate(self.steps):
                before = _random_state(self.device) if step.layer.training else []
                x, log_det = step.compute(x, context)
                log_dets.append(log_det)
                if before and not all(map(torch.equal, before, _random_state(self.device))):
                    self.random[index] = before
        for replay in self.replays:  # at the end, since layers may share parameters, or initialise them
            replay.computed()
        return x, sum(log_dets[1:], log_dets[0])

    def inputs(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        """What enters every step, from the start."""
        found = []
        with self.autocast():
            for index, step in enumerate(self.steps):
                found.append(x)
                with self.replays[index], self._random_state(index):
                    x = step.compute(x, context)[0]
        return found

    def again(self, index: int, y: Tensor, context: Tensor | None, inputs: Sequence[Tensor]) -> Retraced:
        """Step ``index``, which made y, with a graph; from its input where that is known."""
        step = self.steps[index]
        with torch.enable_grad(), self.replays[index], self.autocast(), self._random_state(index):
            return step.recompute(inputs[index], context) if inputs else step.retrace(y, context)

    def _random_state(self, index: int) -> AbstractContextManager[Any]:
        if index not in self.random:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]))
        cpu, *others = self.random[index]
        torch.set_rng_state(cpu)
        for state in others:
            torch.get_device_module(self.device).set_rng_state(state, self.device)
        return stack


def _random_state(device: torch.device) -> list[Tensor]:
    others = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *others]


class _Rebuilt(torch.autograd.Function):
    """A run as one node of the graph. Arguments: run, x, context, and every other tensor that gets a gradient."""

    @staticmethod
    def forward(ctx: Any, run: _Run, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = run.forward(x, context)
        ctx.run, ctx.keys = run, [id(tensor) for tensor in tensors]
        ctx.save_for_backward(x, context, y)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A chain whose activations are rebuilt has no second derivatives; call rebuild(flow, enabled=False)."
            )
        run: _Run = ctx.run
        x, context, y = ctx.saved_tensors
        sweep = _Sweep(run, context, ctx.needs_input_grad[1:3], grad_log_det)
        rebuilt, grad_x = sweep(y, grad_y)
        if not (error := _distance(rebuilt, x)) <= run.tolerance:
            warnings.warn(
                f"Inverting {len(run.steps)} layers missed their input by {error:.0e}, more than {run.tolerance:.0e}; "
                f"their inputs were computed again from the first, in memory that grows with their number.",
                stacklevel=2,
            )
            sweep = _Sweep(run, context, ctx.needs_input_grad[1:3], grad_log_det, run.inputs(x, context))
            _, grad_x = sweep(y, grad_y)
        return (None, grad_x, sweep.grad_context, *[sweep.gradients.get(key) for key in ctx.keys])


class _Sweep:
    """Backward through a run, from the last step to the first, and the gradients that have been found."""

    def __init__(
        self,
        run: _Run,
        context: Tensor | None,
        needs: Sequence[bool],
        grad_log_det: Tensor,
        inputs: Sequence[Tensor] = (),
    ) -> None:
        self.run, self.inputs, self.grad_log_det = run, inputs, grad_log_det
        self.needs_x, needs_context = needs
        self.context = None if context is None else context.detach().requires_grad_(needs_context)
        self.gradients: dict[int, Tensor] = {}  # by the id of the tensor

    @property
    def grad_context(self) -> Tensor | None:
        return self.gradients.get(id(self.context))

    def __call__(self, y: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """What entered the first step, and its gradient, given what left the last one and its gradient."""
        grad_x: Tensor | None = grad
        for index in reversed(range(len(self.run.steps))):
            y, grad_x = self._step(index, y, grad)
            if grad_x is not None:
                grad = grad_x
        return y, grad_x

    def _step(self, index: int, y: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, leaves, y, log_det = self.run.again(index, y, self.context, self.inputs)
        tensors = list(self.run.replays[index].tensors)
        if self.context is not None and self.context.requires_grad:
            tensors.append(self.context)
        if index == 0 and not self.needs_x:
            leaves = ()
        results = [(made, g) for made, g in ((y, grad), (log_det, self.grad_log_det)) if made.requires_grad]
        if not leaves and not tensors:
            return x, None
        outputs, grads = zip(*results, strict=True)
        found = torch.autograd.grad(outputs, [*leaves, *tensors], grads, allow_unused=True)
        for tensor, gradient in zip(tensors, found[len(leaves) :], strict=True):
            if gradient is not None:
                before = self.gradients.get(id(tensor))
                self.gradients[id(tensor)] = gradient if before is None else before + gradient
        of_x = [gradient for gradient in found[: len(leaves)] if gradient is not None]
        return x, sum(of_x[1:], of_x[0]) if of_x else None


def _distance(rebuilt: Tensor, x: Tensor) -> float:
    return ((rebuilt - x).abs() / x.abs().clamp(min=1)).max().item() if x.numel() else 0.0
