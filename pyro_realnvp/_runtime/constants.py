"""Treats the parameters of a module as constants for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def constant_parameters(module: nn.Module) -> Iterator[None]:
    """Replaces the parameters of a module by tensors without gradients, inside a ``with`` block.

    ``requires_grad`` is left alone: a graph that torch.jit has traced keeps these tensors, and must not see it change.
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
    # Tracing would record detach() of a parameter that it cannot own; .data is not recorded and becomes a constant.
    return parameter.data if torch.jit.is_tracing() else parameter.detach()  # type: ignore[attr-defined]
