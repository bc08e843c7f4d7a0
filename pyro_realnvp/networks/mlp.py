"""The network of vector flows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .._runtime.checks import built_by, count_of, finite_number, in_unit_interval
from .._runtime.construction import recorded
from .conditioner import Conditioner


@recorded
class MLP(Conditioner):
    """A multilayer perceptron on vectors, whose last layer starts at zero, so that a flow starts as the identity.

    Args:
        in_channels, out_channels: length of the vectors that come in and go out.
        hidden: widths of the hidden layers.
        activation: constructor of the activation.
        dropout: probability with which a hidden unit is set to 0 in training mode; the density of an event is then a
            matter of chance.
        gain: multiplies the last hidden layer before the last layer reads it. Adam moves each weight by about the
            learning rate, so that a sum over n features moves n times as fast; a gain below 1 compensates.
        skip: multiplies the input, which the last layer then reads too; 0 for a network without. Far from the data,
            a map that is linear in the input stays tame.
        context_shape: length of a context vector or shape of a context map, flattened and concatenated to the input.
        context_dim: length of a context vector, instead.
        mask, level: accepted for the builders and ignored; networks on images use them.

    Shapes: (\\*batch, in_channels) and a context (\\*batch, \\*context_shape) to (\\*batch, out_channels).

    Example:
        >>> net = MLP(2, 4, hidden=(16,), context_shape=3)
        >>> y = net(torch.randn(5, 2), torch.randn(5, 3))
        >>> y.shape, bool((y == 0).all())
        (torch.Size([5, 4]), True)
    """

    starts_at_zero = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        gain: float = 1.0,
        skip: float = 0.0,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_shape, context_dim)
        self.check_channels(in_channels, out_channels)
        self.gain, self.skip = finite_number("gain of MLP", gain), finite_number("skip of MLP", skip)
        width = inputs = in_channels + (self.context_shape.numel() if self.context_shape else 0)
        dropout = in_unit_interval("dropout of MLP", dropout)
        layers: list[nn.Module] = []
        for size in hidden:
            layers.append(nn.Linear(width, count_of("hidden of MLP", size)))
            layers.append(built_by("activation", activation, kind=nn.Module))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        last = nn.Linear(width + inputs if self.skip else width, out_channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"MLP maps vectors of length {self.in_channels}, but got a tensor of {tuple(x.shape)}.")
        if context is not None or self.context_shape is not None:
            context = self.expand_context(context, x.shape[:-1])
        if context is not None:
            x = torch.cat([x, context.flatten(x.dim() - 1)], -1)
        *body, last = self.layers
        h = x
        for layer in body:
            h = layer(h)
        if self.gain != 1:
            h = self.gain * h
        return last(torch.cat([h, self.skip * x], -1) if self.skip else h)
