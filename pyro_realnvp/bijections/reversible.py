"""Backward without stored activations: the inputs of layer after layer are rebuilt by inverting them.

The activations that a plain graph stores grow with the number of layers. A segment of reversible layers
y = f_n(... f_1(x)) stores x and y; backward inverts f_n, computes it once more with a graph of its own, takes the
gradients, and goes on with f_{n-1}. The x that it ends with is compared with the stored one. Gomez et al., "The
Reversible Residual Network" (2017), section 3.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._runtime.batches import sum_rightmost
from .._runtime.recomputation import Recomputation
from .bijection import Bijection, compute


class LayerGraph(NamedTuple):
    """Result of recomputing one layer. ``leaves``: detached inputs; their gradients sum to the gradient of ``x``."""

    x: Tensor
    leaves: tuple[Tensor, ...]
    y: Tensor
    log_det: Tensor


class Reversible(Bijection):
    """A bijection whose input can be computed from its output in closed form, so that backward need not store it.

    A layer of your own takes part in :func:`~pyro_realnvp.rebuild` if it derives from this class. In both directions
    it must then be a function of the value, the context, the parameters, the buffers and the random state alone.

    Example:
        >>> class Negate(Reversible):
        ...     def forward_and_log_det(self, x, context=None):
        ...         return -x, x.new_zeros(x.shape[:-1])
        ...     inverse_and_log_det = forward_and_log_det
        >>> f = rebuild(Chain([Negate((2,)), Scale((2,)), Negate((2,))]))  # backward stores x and y alone
        >>> f(torch.ones(2)).sum().backward()
        >>> f[1].log_scale.grad
        tensor([1., 1.])
    """

    @property
    def is_reversible(self) -> bool:
        """Whether, in the present mode, each direction is inverted by the other."""
        return True

    def recompute_from_output(self, y: Tensor, context: Tensor | None, *, inverse: bool) -> LayerGraph:
        """Computes x from y = f(x), or if ``inverse`` from y = f^-1(x), and then y again, with a graph."""
        with torch.no_grad():
            x = DirectedLayer(self, not inverse, 0).compute(y, context)[0]
        return DirectedLayer(self, inverse, 0).recompute(x, context)


class DirectedLayer(NamedTuple):
    """A layer of a chain, no :class:`Inverse`, its direction, and how many of its batch dimensions are of the event."""

    layer: Bijection
    inverse: bool
    event_dims: int
    conditional: bool = True  #: whether the layer receives the context

    def compute(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det = compute(self.layer, x, context if self.conditional else None, inverse=self.inverse)
        return y, sum_rightmost(log_det, self.event_dims) if self.event_dims else log_det

    @property
    def is_reversible(self) -> bool:
        return isinstance(self.layer, Reversible) and self.layer.is_reversible

    def recompute_from_output(self, y: Tensor, context: Tensor | None) -> LayerGraph:
        context = context if self.conditional else None
        graph = cast(Reversible, self.layer).recompute_from_output(y, context, inverse=self.inverse)
        return graph._replace(log_det=sum_rightmost(graph.log_det, self.event_dims))

    def recompute(self, x: Tensor, context: Tensor | None) -> LayerGraph:
        leaf = x.detach().requires_grad_()
        return LayerGraph(x, (leaf,), *self.compute(leaf, context))


def compute_reversibly(
    layers: Sequence[DirectedLayer], x: Tensor, context: Tensor | None, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Passes x through all layers. Neighbours that are reversible store only the first input and the last output."""
    log_dets: list[Tensor] = []
    for reversible, group in groupby(layers, lambda layer: layer.is_reversible):
        neighbours = list(group)
        if reversible and len(neighbours) > 1:
            segment = _Segment(neighbours, x, tolerance)
            tensors = list({id(t): t for each in segment.recomputations for t in each.tensors}.values())
            if tensors or x.requires_grad or (context is not None and context.requires_grad):
                x, log_det = _Rebuilt.apply(segment, x, context, *tensors)
                log_dets.append(log_det)
                continue
        for layer in neighbours:
            x, log_det = layer.compute(x, context)
            log_dets.append(log_det)
    return x, sum(log_dets[1:], log_dets[0])


class _Segment:
    """Neighbouring reversible layers, which are computed now and once more in backward."""

    def __init__(self, layers: list[DirectedLayer], x: Tensor, tolerance: float | None) -> None:
        self.layers, self.device = layers, x.device
        self.tolerance = torch.finfo(x.dtype).eps ** (2 / 3) if tolerance is None else tolerance
        self.recomputations = [Recomputation(each.layer) for each in layers]
        kind = x.device.type
        self.precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.random: dict[int, list[Tensor]] = {}  # by layer, the state before it drew random numbers, as for dropout

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        # Without the cache, which would hand weights that were cast without a graph to layers that need one.
        return torch.autocast(self.device.type, dtype=self.precision, cache_enabled=False)

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_dets: list[Tensor] = []
        with self.autocast():
            for index, each in enumerate(self.layers):
                before = _random_state(self.device) if each.layer.training else []
                x, log_det = each.compute(x, context)
                log_dets.append(log_det)
                if before and not all(map(torch.equal, before, _random_state(self.device))):
                    self.random[index] = before
        for recomputation in self.recomputations:  # at the end, as layers may share parameters, or initialise them
            recomputation.finish_forward()
        return x, sum(log_dets[1:], log_dets[0])

    def inputs(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        """Computes the inputs of all layers from that of the first."""
        found = []
        with self.autocast():
            for index, each in enumerate(self.layers):
                found.append(x)
                with self.recomputations[index], self._random_state(index):
                    x = each.compute(x, context)[0]
        return found

    def recompute(self, index: int, y: Tensor, context: Tensor | None, inputs: Sequence[Tensor]) -> LayerGraph:
        """Recomputes the layer that made y, with a graph; from its input where ``inputs`` are known."""
        each = self.layers[index]
        with torch.enable_grad(), self.recomputations[index], self.autocast(), self._random_state(index):
            return each.recompute(inputs[index], context) if inputs else each.recompute_from_output(y, context)

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
    """A segment as one node of the graph. Arguments: segment, x, context, and all other tensors with a gradient."""

    @staticmethod
    def forward(
        ctx: Any, segment: _Segment, x: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, log_det = segment.forward(x, context)
        ctx.segment, ctx.keys = segment, [id(tensor) for tensor in tensors]
        ctx.save_for_backward(x, context, y)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A chain whose activations are rebuilt has no second derivatives; call rebuild(flow, enabled=False)."
            )
        segment: _Segment = ctx.segment
        x, context, y = ctx.saved_tensors
        needs_x, needs_context = ctx.needs_input_grad[1:3]
        context = None if context is None else context.detach().requires_grad_(needs_context)
        rebuilt, gradients = _backward(segment, y, context, grad_y, grad_log_det, needs_x=needs_x)
        if not (error := _distance(rebuilt, x)) <= segment.tolerance:
            warnings.warn(
                f"Inverting {len(segment.layers)} layers missed their input by {error:.0e}, more than "
                f"{segment.tolerance:.0e}; their inputs were computed again from the first, in memory that grows with "
                f"their number.",
                stacklevel=2,
            )
            inputs = segment.inputs(x, context)
            _, gradients = _backward(segment, y, context, grad_y, grad_log_det, needs_x=needs_x, inputs=inputs)
        return (None, gradients.get(0), gradients.get(id(context)), *[gradients.get(key) for key in ctx.keys])


def _backward(
    segment: _Segment,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
    *,
    needs_x: bool,
    inputs: Sequence[Tensor] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Goes from the last layer of a segment to the first.

    Returns the input of the first, and the gradients by the ``id`` of their tensor; that of the input under 0.
    """
    gradients: dict[int, Tensor] = {}
    grad = grad_y
    for index in reversed(range(len(segment.layers))):
        x, leaves, output, log_det = segment.recompute(index, y, context, inputs)
        y = x
        tensors = list(segment.recomputations[index].tensors)
        if context is not None and context.requires_grad:
            tensors.append(context)
        if index == 0 and not needs_x:
            leaves = ()
        if not leaves and not tensors:
            break
        results = [(made, g) for made, g in ((output, grad), (log_det, grad_log_det)) if made.requires_grad]
        outputs, grads = zip(*results, strict=True)
        found = torch.autograd.grad(outputs, [*leaves, *tensors], grads, allow_unused=True)
        for tensor, gradient in zip(tensors, found[len(leaves) :], strict=True):
            if gradient is not None:
                before = gradients.get(id(tensor))
                gradients[id(tensor)] = gradient if before is None else before + gradient
        of_x = [gradient for gradient in found[: len(leaves)] if gradient is not None]
        if of_x:
            grad = sum(of_x[1:], of_x[0])
            if index == 0:
                gradients[0] = grad
    return y, gradients


def _distance(rebuilt: Tensor, x: Tensor) -> float:
    return ((rebuilt - x).abs() / x.abs().clamp(min=1)).max().item() if x.numel() else 0.0
