"""Networks that map the unchanged part of an event, and a context, to the parameters of a transformer.

They know nothing of flows. Builders construct them as ``net(in_channels, out_channels, *, context_dim=0,
context_shape=None, mask=None, level=0)``, so one ``partial(ResNet, hidden=64, blocks=8)`` builds them everywhere; a
network of your own needs this signature and, to use a context, the attribute ``context_shape``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from .precision import at_least_float32
from .ranks import moments
from .statistics import statistics_are_held

__all__ = ["MLP", "Conditioner", "ResNet"]


class Conditioner(nn.Module):
    """Checks the context and broadcasts it: what every network here does first.

    Args:
        context_dim: length of a context vector; 0 for none.
        context_shape: (C, H, W) of a context map, instead.
    """

    starts_at_zero = False  #: whether a new network returns zeros, so that a learned scale must not start at 0

    def __init__(self, context_dim: int, context_shape: Sequence[int] | None) -> None:
        super().__init__()
        if context_dim < 0:
            raise ValueError(
                f"{type(self).__name__} needs context_dim of 0 or more, but got context_dim={context_dim}."
            )
        if context_dim and context_shape is not None:
            raise ValueError(
                f"{type(self).__name__} takes a context vector or a context map, but got context_dim={context_dim} "
                f"and context_shape={tuple(context_shape)}."
            )
        self.context_shape = Size((context_dim,)) if context_dim else None
        if context_shape is not None:
            self.context_shape = Size(context_shape)

    def expanded(self, context: Tensor | None, batch: Size) -> Tensor | None:
        """The context with batch dimensions ``batch``, or None; an error if it is missing, too much or misshapen."""
        name, shape = type(self).__name__, self.context_shape
        if shape is None:
            if context is not None:
                raise ValueError(
                    f"{name} was built without a context, but got one of shape {tuple(context.shape)}; "
                    f"pass context_dim or context_shape when building."
                )
            return None
        if context is None:
            raise ValueError(f"{name} needs a context of shape {tuple(shape)}, but got none.")
        if context.shape[-len(shape) :] != shape:
            raise ValueError(f"{name} needs a context of shape {tuple(shape)}, but got {tuple(context.shape)}.")
        return context if context.shape[: -len(shape)] == batch else context.expand(batch + shape)

    def flattened(
        self, x: Tensor, context: Tensor | None, *, concatenate: bool = True
    ) -> tuple[Tensor, Tensor | None, Size]:
        """Images (\\*batch, C, H, W) with one batch dimension, the context too, and the batch they had.

        A context map is concatenated to the images, unless it is not to be.
        """
        batch = x.shape[:-3]
        context = self.expanded(context, batch)
        x = x.reshape(batch.numel(), *x.shape[-3:])
        if context is not None and self.context_shape is not None:
            context = context.reshape(batch.numel(), *self.context_shape)
            if concatenate and context.dim() == 4:
                return torch.cat([x, context], 1), None, batch
        return x, context, batch


class MLP(Conditioner):
    """A multilayer perceptron on vectors, whose last layer starts at zero, so that a flow starts as the identity.

    Args:
        in_channels, out_channels: length of the vectors that come in and go out.
        hidden: widths of the hidden layers.
        activation: constructor of the activation.
        gain: multiplies the last hidden layer before the last layer reads it. Optimisers like Adam move all weights at
            one speed, and so the sum of many features fast; a gain below 1 slows it down.
        skip: multiplies the input, which the last layer then reads too; 0 for a network without. Far out, where data
            are few, what is linear in the input stays so.
        context_dim, context_shape: of the context, concatenated (a map: flattened) to the input.
        mask, level: taken and ignored; networks on images use them.

    Shapes: (\\*batch, in_channels) and a context (\\*batch, \\*context_shape) to (\\*batch, out_channels).
    """

    starts_at_zero = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: Callable[[], nn.Module] = nn.SiLU,
        gain: float = 1.0,
        skip: float = 0.0,
        context_dim: int = 0,
        context_shape: Sequence[int] | None = None,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_dim, context_shape)
        self.in_channels, self.gain, self.skip = in_channels, gain, skip
        width = in_channels + (math.prod(self.context_shape) if self.context_shape else 0)
        entering = width
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), activation()]
            width = size
        last = nn.Linear(width + entering if self.skip else width, out_channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"MLP maps vectors of length {self.in_channels}, but got a tensor of {tuple(x.shape)}.")
        if context is not None or self.context_shape is not None:
            context = self.expanded(context, x.shape[:-1])
        if context is not None:
            x = torch.cat([x, context.flatten(x.dim() - 1)], -1)
        *body, last = self.layers
        h = x
        for layer in body:
            h = layer(h)
        if self.gain != 1:
            h = self.gain * h
        return last(torch.cat([h, self.skip * x], -1) if self.skip else h)


class _WeightNormConv2d(nn.Module):
    """A convolution whose filters have norm g, or norm 1 for ever. Salimans & Kingma (2016).

    Initialised as in the released RealNVP code: V uniform in +-sqrt(2 / in_channels), g = sqrt(k / 6) for k places.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, *, learn_norm: bool, bias: bool = True) -> None:
        super().__init__()
        bound = math.sqrt(2 / in_channels)
        self.direction = nn.Parameter(torch.empty(out_channels, in_channels, size, size).uniform_(-bound, bound))
        self.norm = nn.Parameter(torch.full((out_channels, 1), math.sqrt(size**2 / 6))) if learn_norm else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # In the shape of a filter, not flattened: the weight then has the memory format of the parameter.
        length = torch.linalg.vector_norm(self.direction, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        scale = length.reciprocal() if self.norm is None else self.norm[..., None, None] / length
        weight = self.direction * scale
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class _BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization with a learned offset and no gain, as in the released RealNVP code."""

    synchronized = False

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-4)
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.synchronized:
            return self._over_ranks(x)
        if self.training and not statistics_are_held() and x.shape[0] < 2:
            raise ValueError(
                f"Batch normalization in training mode needs a batch of at least 2 events, but got {x.shape[0]}; "
                f"call eval() to use the running statistics."
            )
        if self.training and statistics_are_held():
            return F.batch_norm(x, None, None, None, self.bias, training=True, eps=self.eps)
        return super().forward(x)

    def _over_ranks(self, x: Tensor) -> Tensor:
        """The same with the statistics of all processes."""
        var, mean = torch.var_mean(at_least_float32(x), (0, 2, 3), correction=0)
        mean, var, count = moments(mean, var, x.numel() / max(1, len(mean)), synchronized=True)
        if not statistics_are_held():
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased, self.momentum)  # type: ignore[union-attr, arg-type]
        scale = (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None].to(x.dtype), x, scale[:, None, None].to(x.dtype))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _BatchNorm2d(width),
            nn.ReLU(),
            _WeightNormConv2d(width, width, 3, learn_norm=False, bias=False),
            _BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            _WeightNormConv2d(width, width, 3, learn_norm=True),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class ResNet(Conditioner):
    """The network of RealNVP: a residual network with skip sums. Dinh et al. (2017), section 4.1, and their code.

        a = 2 BN(x) if masked, else BN(x)
        h_0 = conv3x3(ReLU([a, -a, mask]))
        h_i = h_{i-1} + conv3x3(ReLU(BN(conv3x3(ReLU(BN(h_{i-1}))))))
        output = conv1x1(ReLU(BN(sum_i conv1x1_i(h_i))))

    with weight-normalised convolutions of ``hidden * 2**level`` feature maps. A context map is normalised and
    concatenated to the input; a context vector is added to h_0 after a linear map.

    Args:
        in_channels, out_channels: of the images that come in and go out.
        hidden: feature maps at level 0.
        blocks: number of residual blocks.
        dropout: probability of a feature map entry to be dropped in each block, in training mode.
        context_dim, context_shape: of the context; a map has the height and width of the image.
        mask: (C, H, W), the checkerboard of a masked coupling, whose first channel the network sees; it is known from
            it that only half of the input is there, hence the factor 2.
        level: how often the resolution has been halved.

    Shapes: (\\*batch, in_channels, H, W) and a context to (\\*batch, out_channels, H, W).
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 64,
        blocks: int = 8,
        dropout: float = 0.0,
        context_dim: int = 0,
        context_shape: Sequence[int] | None = None,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_dim, context_shape)
        width = hidden * 2**level
        channels = in_channels + (context_shape[0] if context_shape is not None else 0)
        self.register_buffer("mask", None if mask is None else mask[:1].to(torch.get_default_dtype()), persistent=False)
        self.norm_in = _BatchNorm2d(channels)
        self.conv_in = _WeightNormConv2d(2 * channels + (mask is not None), width, 3, learn_norm=False)
        self.context_in = nn.Linear(context_dim, width) if context_dim else None
        self.blocks = nn.ModuleList(_ResidualBlock(width, dropout) for _ in range(blocks))
        self.skips = nn.ModuleList(_WeightNormConv2d(width, width, 1, learn_norm=True) for _ in range(blocks + 1))
        self.norm_out = _BatchNorm2d(width)
        self.conv_out = _WeightNormConv2d(width, out_channels, 1, learn_norm=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context, batch = self.flattened(x, context)
        a = self.norm_in(x)
        if self.mask is None:
            features = torch.cat([a, -a], 1)
        else:
            a = 2 * a
            features = torch.cat([a, -a, self.mask.to(a.dtype).expand(a.shape[0], *self.mask.shape)], 1)
        h = self.conv_in(features.relu())
        if context is not None and self.context_in is not None:
            h = h + self.context_in(context)[..., None, None]
        total = self.skips[0](h)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            h = block(h)
            total = total + skip(h)
        out = self.conv_out(self.norm_out(total).relu())
        return out.reshape(*batch, *out.shape[1:])
