"""The networks of Flow++: gated convolutions and gated self-attention."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from .._runtime.checks import count_of, in_unit_interval, sizes
from .._runtime.construction import recorded
from .conditioner import Conditioner


def _concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


def _conv(
    in_channels: int, out_channels: int, size: int, *, scale: float = 1.0, weight_norm: bool = False
) -> nn.Module:
    """Makes a convolution that keeps the size of the image, with gain ``scale`` and zero bias.

    The released code takes gain and bias from a first batch.
    """
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.mul_(scale)
    return nn.utils.parametrizations.weight_norm(conv) if weight_norm else conv


def _check_blocks(name: str, hidden: int, blocks: int, dropout: float, heads: int = 1) -> None:
    """Raises a ValueError unless there can be blocks of this size."""
    count_of(f"hidden of {name}", hidden)
    count_of(f"blocks of {name}", blocks, 0)
    in_unit_interval(f"dropout of {name}", dropout)
    if heads < 1 or hidden % heads:
        raise ValueError(f"{name} needs heads that divide hidden={hidden}, but got heads={heads}.")


def _height_and_width(name: str, size: Sequence[int]) -> Size:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} needs a size (height, width) of 1 or more each, but got {tuple(size)}.")
    return sizes(name, size)


class _GatedConv(nn.Module):
    """Computes x + a sigmoid(b), [a, b] = conv(drop(cELU(conv3x3(cELU(x)) + conv1x1(cELU(context)))))."""

    def __init__(self, width: int, context: int, dropout: float, *, size: int = 1, weight_norm: bool) -> None:
        super().__init__()
        self.conv1 = _conv(2 * width, width, 3, weight_norm=weight_norm)
        self.context = _conv(2 * context, width, 1, weight_norm=weight_norm) if context else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(2 * width, 2 * width, size, scale=0.1, weight_norm=weight_norm)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.conv1(_concat_elu(x))
        if self.context is not None and context is not None:
            h = h + self.context(_concat_elu(context))
        a, b = self.conv2(self.dropout(_concat_elu(h))).chunk(2, 1)
        return x + a * b.sigmoid()


class _GatedSelfAttention(nn.Module):
    """Computes x + a sigmoid(b), [a, b] = linear(drop(attention(x + position))), attending to all pixels."""

    def __init__(self, width: int, heads: int, dropout: float, *, weight_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = _conv(width, 3 * width, 1, weight_norm=weight_norm)
        self.dropout = nn.Dropout(dropout)
        self.out = _conv(width, 2 * width, 1, scale=0.1, weight_norm=weight_norm)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.query_key_value(x + position).movedim(1, -1)  # the channels last, as attention reads them
        # (batch, pixels, 3, heads, channels/heads) -> three of (batch, heads, pixels, channels/heads)
        parts = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        h = h.reshape(batch, height, width, channels).movedim(-1, 1)
        a, b = self.out(self.dropout(h)).chunk(2, 1)
        return x + a * b.sigmoid()


class _ChannelLayerNorm(nn.LayerNorm):
    """Normalises over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, context: int, dropout: float, *, size: int = 1, weight_norm: bool
    ) -> None:
        super().__init__()
        self.conv = _GatedConv(width, context, dropout, size=size, weight_norm=weight_norm)
        self.norm1 = _ChannelLayerNorm(width)
        self.attention = _GatedSelfAttention(width, heads, dropout, weight_norm=weight_norm)
        self.norm2 = _ChannelLayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, context: Tensor | None) -> Tensor:
        x = self.norm1(self.conv(x, context))
        return self.norm2(self.attention(x, position))


@recorded
class GatedAttention(Conditioner):
    """The network of Flow++: blocks of gated convolution and gated self-attention. Ho et al. (2019), section 4.3.

        h = conv3x3(x);  per block: h = LN(gated_conv(h, context)), h = LN(gated_attention(h + position));
        output = conv3x3(h)

    with concatenated ELU, layer norm over the channels, and a learned position of every pixel.

    Args:
        in_channels, out_channels: of the images that come in and go out.
        hidden: feature maps.
        blocks: number of blocks.
        heads: number of attention heads, which divides ``hidden``.
        dropout: inside the gates, in training mode.
        weight_norm: weight-normalised convolutions, and a concatenated ELU before the last one, as in the released code
            for ImageNet; without, as for CIFAR-10.
        size: (height, width) of the images; taken from ``mask`` where there is one.
        context_shape: length of a context vector, or shape (C, H, W) of a context map over the image, which every gated
            convolution receives.
        context_dim: length of a context vector, instead.
        level: accepted for the builders and ignored.

    Shapes: (\\*batch, in_channels, H, W) and a context to (\\*batch, out_channels, H, W).

    Raises:
        ValueError: if the heads do not divide the feature maps, or the size is not known.

    Example:
        >>> net = GatedAttention(2, 4, hidden=8, blocks=1, size=(4, 6))
        >>> net(torch.randn(5, 2, 4, 6)).shape
        torch.Size([5, 4, 4, 6])
    """

    starts_at_zero = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 96,
        blocks: int = 10,
        heads: int = 4,
        dropout: float = 0.2,
        size: Sequence[int] | None = None,
        weight_norm: bool = False,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_shape, context_dim)
        self.check_channels(in_channels, out_channels, fewest=1)
        self.check_image_context()
        _check_blocks("GatedAttention", hidden, blocks, dropout, heads)
        if size is None and mask is not None:
            size = mask.shape[-2:]
        if size is None:
            raise ValueError("GatedAttention learns a position for every pixel and needs size=(height, width).")
        size = _height_and_width("GatedAttention", size)
        if self.context_shape is not None and len(self.context_shape) == 3 and self.context_shape[1:] != size:
            raise ValueError(
                f"GatedAttention needs a context map of size {tuple(size)}, but got {tuple(self.context_shape)}."
            )
        context = self.map_channels or self.vector_length
        self.size = size
        self.conv_in = _conv(in_channels, hidden, 3, weight_norm=weight_norm)
        self.position = nn.Parameter(0.01 * torch.randn(hidden, *size))
        self.blocks = nn.ModuleList(
            _Block(hidden, heads, context, dropout, weight_norm=weight_norm) for _ in range(blocks)
        )
        self.concatenates = weight_norm
        width = 2 * hidden if weight_norm else hidden
        self.conv_out = _conv(width, out_channels, 3, scale=0.1, weight_norm=weight_norm)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-2:] != self.size:
            raise ValueError(
                f"GatedAttention was built for images of size {tuple(self.size)}, but got a tensor of {tuple(x.shape)}."
            )
        x, context, batch = self.flatten_batch(x, context, concatenate=False)
        if context is not None and context.dim() == 2:
            context = context[..., None, None].expand(*context.shape, *self.size)
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h, self.position, context)
        out = self.conv_out(_concat_elu(h) if self.concatenates else h)
        return out.reshape(*batch, *out.shape[1:])


@recorded
class GatedConvs(nn.Module):
    """Computes the context of Flow++'s dequantization: conv3x3, then gated convolutions. Ho et al. (2019), 4.1.

    Shapes: (batch, in_channels, H, W) to (batch, hidden, H, W).

    Example:
        >>> from functools import partial
        >>> embedding = partial(GatedConvs, hidden=8, blocks=1)  # as flowpp_dequantizer takes it
        >>> embedding(2)(torch.randn(5, 2, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    def __init__(self, in_channels: int, *, hidden: int = 32, blocks: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        count_of("in_channels of GatedConvs", in_channels)
        _check_blocks("GatedConvs", hidden, blocks, dropout)
        self.channels = hidden
        self.conv_in = _conv(in_channels, hidden, 3)
        self.blocks = nn.ModuleList(_GatedConv(hidden, 0, dropout, size=3, weight_norm=False) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h, None)
        return h


@recorded
class AttentiveConvs(nn.Module):
    """Computes the context of the dequantization for ImageNet, as in the released code of Ho et al. (2019).

    Weight-normalised blocks of gated convolution and gated self-attention follow a conv3x3.

    Shapes: (batch, in_channels, \\*size) to (batch, hidden, \\*size).

    Example:
        >>> from functools import partial
        >>> embedding = partial(AttentiveConvs, size=(4, 4), hidden=8, blocks=1)  # as flowpp_dequantizer takes it
        >>> embedding(2)(torch.randn(5, 2, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        *,
        size: Sequence[int],
        hidden: int = 32,
        blocks: int = 8,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        count_of("in_channels of AttentiveConvs", in_channels)
        _check_blocks("AttentiveConvs", hidden, blocks, dropout, heads)
        size = _height_and_width("AttentiveConvs", size)
        self.channels = hidden
        self.conv_in = _conv(in_channels, hidden, 3, weight_norm=True)
        self.position = nn.Parameter(0.01 * torch.randn(hidden, *size))
        self.blocks = nn.ModuleList(_Block(hidden, heads, 0, dropout, size=3, weight_norm=True) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h, self.position, None)
        return h
