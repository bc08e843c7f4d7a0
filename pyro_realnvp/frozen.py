"""Parameters that are constants for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["frozen"]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Puts constants in the place of the parameters, for a while.

    ``requires_grad`` is not touched: a graph that torch.jit has traced keeps these tensors, and must not see it change.
    """
    kept = [(part, dict(part._parameters)) for part in module.modules()]
    try:
        for part, parameters in kept:
            constants = {name: _constant(value) for name, value in parameters.items() if value is not None}
            part._parameters.update(constants)  # type: ignore[arg-type]
        yield
    finally:
        for part, parameters in kept:
            part._parameters.update(parameters)


def _constant(parameter: Tensor) -> Tensor:
    # A trace records detach(), of a tensor that it cannot hold; what it does not record it takes for a constant.
    return parameter.data if torch.jit.is_tracing() else parameter.detach()  # type: ignore[attr-defined]
