"""A table of the layers of a flow."""

from collections.abc import Iterator

from torch import Size, nn

from .bases import Base
from .bijections.bijection import Bijection
from .bijections.chain import Chain


def summary(transforms: Chain, base: nn.Module) -> str:
    """Returns a line for every layer, from the data to the latent side, and one for the base."""
    layers = [layer.inv for layer in reversed(transforms.bijections)]
    lines = [line for layer in layers for line in _describe(layer, 1)]
    shape = base.event_shape if isinstance(base, Base) else transforms.event_shape
    return "\n".join([*lines, _line("  " + type(base).__name__, shape, base)])


def _describe(layer: Bijection, depth: int) -> Iterator[str]:
    yield _line("  " * depth + type(layer).__name__, layer.event_shape, layer)
    for part in layer.children():
        if isinstance(part, Bijection):
            yield from _describe(part, depth + 1)


def _line(name: str, shape: Size, module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return f"{name:<24} {tuple(shape) or 'any shape'!s:<16} {count:>12,}"
