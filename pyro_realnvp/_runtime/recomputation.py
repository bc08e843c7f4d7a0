"""Computes in backward once more what forward has computed: in the same state, and without side effects."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .batch_statistics import hold_statistics, statistics_are_held


def can_recompute() -> bool:
    """Returns whether backward can recompute: in eager code, with gradients, and under no function transform.

    A compiler decides by itself which activations to keep for backward.
    """
    compiling = torch.compiler.is_compiling()
    return torch.is_grad_enabled() and not compiling and not torch._C._are_functorch_transforms_active()


class Recomputation:
    """A context in which a Module computes again with the parameters, the mode and the statistics of the first time.

    Parameters are not copied: a change of them after :meth:`finish_forward` is an error, as it is in a plain graph.
    Running statistics are updated in copies, which are thrown away.

    Raises:
        RuntimeError: on entering, if a parameter or the training mode has changed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.modules())
        tensors = (t for part in self.modules for t in (*part._parameters.values(), *part._buffers.values()))
        unique = {id(t): t for t in tensors if t is not None and t.requires_grad}
        self.tensors = list(unique.values())  # the tensors that get a gradient, each once
        self._state: list[Any] = []
        self._held = statistics_are_held()
        self._stack = ExitStack()

    def finish_forward(self) -> None:
        """Notes the state in which forward ended; networks may have initialised themselves in it."""
        self._state = self._now()

    def _now(self) -> list[Any]:
        tensors = [p for part in self.modules for p in part._parameters.values() if p is not None]
        return [[part.training for part in self.modules], [id(p) for p in tensors], [p._version for p in tensors]]

    def __enter__(self) -> None:
        if self._now() != self._state:
            raise RuntimeError(
                "The parameters or the training mode of a flow have changed between forward and backward, "
                "which computes the activations again."
            )
        self._stack = ExitStack()
        self._stack.enter_context(hold_statistics() if self._held else nullcontext())
        for part in self.modules:
            if part.training and part._buffers:
                self._stack.callback(part._buffers.update, dict(part._buffers))
                part._buffers.update({name: _copy(buffer) for name, buffer in part._buffers.items()})

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def _copy(buffer: Tensor | None) -> Tensor | None:
    return buffer if buffer is None or buffer.requires_grad else buffer.clone()


def compute_and_recompute(
    module: nn.Module, function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns ``function(x, context)`` of a Module; backward keeps only these two arguments and recomputes the rest."""
    recomputation = Recomputation(module)
    result: tuple[Tensor, Tensor] = checkpoint(
        function, x, context, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputation)
    )
    recomputation.finish_forward()
    return result
