"""The network of RealNVP on images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._runtime.autocast import at_least_float32
from .._runtime.batch_statistics import statistics_are_held
from .._runtime.checks import count_of, in_unit_interval
from .._runtime.collectives import moments
from .._runtime.construction import recorded
from .conditioner import Conditioner


class _WeightNormConv2d(nn.Module):
    """A weight-normalised convolution: filters of norm g, or of fixed norm 1. Salimans & Kingma (2016).

    Initialised as in the released RealNVP code: V uniform in +-sqrt(2 / in_channels), and g = sqrt(k / 6) for
    k weights a channel.
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
            return self._over_processes(x)
        if self.training and not statistics_are_held() and x.shape[0] < 2:
            raise ValueError(
                f"Batch normalization in training mode needs a batch of at least 2 events, but got {x.shape[0]}; "
                f"call eval() to use the running statistics."
            )
        if self.training and statistics_are_held():
            return F.batch_norm(x, None, None, None, self.bias, training=True, eps=self.eps)
        return super().forward(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        """Normalises by the statistics of all processes."""
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


@recorded
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
        dropout: probability with which each block drops an entry of a feature map in training mode.
        context_shape: length of a context vector, or shape (C, H, W) of a context map over the image.
        context_dim: length of a context vector, instead.
        mask: (C, H, W), the checkerboard of a masked coupling, whose first channel the network sees. Half of a masked
            input is zero, hence the factor 2.
        level: how often the resolution has been halved.

    Shapes: (\\*batch, in_channels, H, W) and a context to (\\*batch, out_channels, H, W).

    Example:
        >>> from functools import partial
        >>> net = partial(ResNet, hidden=8, blocks=2)  # as realnvp_transforms takes it
        >>> net(1, 2)(torch.randn(5, 1, 4, 4)).shape
        torch.Size([5, 2, 4, 4])
    """

    starts_at_zero = False
    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 64,
        blocks: int = 8,
        dropout: float = 0.0,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_shape, context_dim)
        self.check_channels(in_channels, out_channels, fewest=1)
        self.check_image_context()
        if mask is not None and mask.dim() != 3:
            raise ValueError(f"ResNet needs a mask of shape (C, H, W), but got {tuple(mask.shape)}.")
        blocks, dropout = count_of("blocks of ResNet", blocks, 0), in_unit_interval("dropout of ResNet", dropout)
        count_of("hidden of ResNet", hidden)
        width = count_of("hidden * 2**level of ResNet", hidden * 2 ** min(count_of("level", level, 0), 32))
        channels = in_channels + self.map_channels
        self.register_buffer("mask", None if mask is None else mask[:1].to(torch.get_default_dtype()), persistent=False)
        self.norm_in = _BatchNorm2d(channels)
        self.conv_in = _WeightNormConv2d(2 * channels + (mask is not None), width, 3, learn_norm=False)
        self.context_in = nn.Linear(self.vector_length, width) if self.vector_length else None
        self.blocks = nn.ModuleList(_ResidualBlock(width, dropout) for _ in range(blocks))
        self.skips = nn.ModuleList(_WeightNormConv2d(width, width, 1, learn_norm=True) for _ in range(blocks + 1))
        self.norm_out = _BatchNorm2d(width)
        self.conv_out = _WeightNormConv2d(width, out_channels, 1, learn_norm=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context, batch = self.flatten_batch(x, context)
        if self.mask is not None and x.shape[-2:] != self.mask.shape[-2:]:
            raise ValueError(
                f"ResNet has a mask of shape {tuple(self.mask.shape)}, but got images of {tuple(x.shape[-3:])}."
            )
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
