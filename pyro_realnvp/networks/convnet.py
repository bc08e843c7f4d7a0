"""The networks of Glow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._runtime.autocast import full_precision
from .._runtime.checks import count_of
from .._runtime.construction import recorded
from .channel_norm import ChannelNorm
from .conditioner import Conditioner


class _EdgeConv2d(nn.Module):
    """A 3x3 convolution that sees where the image ends, with a scale and a shift for every output channel.

    An additional input channel is 1 on the padding and 0 elsewhere. It is concatenated to the image if that has fewer
    channels than the output. Otherwise its contribution, one map that does not depend on the image, is added to the
    output, so that a wide image is never copied. Scale and shift are folded into weights, bias and map, which saves
    passes over a wide output.
    """

    def __init__(self, in_channels: int, out_channels: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(out_channels, in_channels + 1, 3, 3))

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        weight = self.weight * scale[:, None, None, None]
        border = F.pad(weight.new_zeros(1, 1, *x.shape[-2:]), (1, 1, 1, 1), value=1.0)
        if 0 < x.shape[1] < len(weight):
            wider = F.pad(x, (1, 1, 1, 1, 0, 1))  # unlike cat, it keeps to channels_last
            wider[:, -1:].copy_(border)  # an assignment would be traced for this batch size alone
            return F.conv2d(wider, weight, shift)
        with full_precision(x):  # one small map, so that shift is rounded once, with the sum
            edge = F.conv2d(border, weight[:, -1:], shift)
        if x.shape[1] == 0:  # there is nothing but the edge
            return edge.expand(x.shape[0], *edge.shape[1:]).contiguous()  # to be changed in place
        return F.conv2d(x, weight[:, :-1], padding=1).add_(edge)


@recorded
class ZeroConv(Conditioner):
    """One 3x3 convolution that starts at zero: (conv3x3(x) + bias) exp(3 gain). The released code of Glow.

    It computes the learned priors: that of one half given the other or, without input channels, that of the top level
    given the context alone. A context map is concatenated to the input, a context vector added by a linear map.

    Shapes: (\\*batch, in_channels, H, W) and a context to (\\*batch, out_channels, H, W).
    """

    starts_at_zero = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(context_shape, context_dim)
        self.check_channels(in_channels, out_channels)
        self.check_image_context()
        channels = in_channels + self.map_channels
        self.conv = _EdgeConv2d(channels, out_channels, 0.0)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = nn.Parameter(torch.zeros(out_channels))
        self.context_in = nn.Linear(self.vector_length, out_channels, bias=False) if self.vector_length else None
        if self.context_in is not None:
            nn.init.zeros_(self.context_in.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context, batch = self.flatten_batch(x, context)
        gain = (3 * self.gain).exp()
        out = self.conv(x, gain, self.bias * gain)
        if context is not None and self.context_in is not None:
            out = out + (self.context_in(context) * gain)[..., None, None]
        return out.reshape(*batch, *out.shape[1:])


@recorded
class ConvNet(Conditioner):
    """The network of Glow: 3x3, 1x1 and 3x3 convolutions. Kingma & Dhariwal (2018), section 3.3, and their code.

        h = ReLU(norm(conv3x3(x)));  h = ReLU(norm(conv1x1(h)));  output = (conv3x3(h) + bias) exp(3 gain)

    where norm is an ActNorm with data-dependent initialisation, and the last convolution, its bias and gain start at
    zero, so that the flow starts from a fixed map. A context map is concatenated to the input, a context vector added
    after a linear map before the first ReLU.

    Args:
        in_channels, out_channels: of the images that come in and go out.
        hidden: feature maps; 512 in the paper.
        context_shape: length of a context vector, or shape (C, H, W) of a context map over the image.
        context_dim: length of a context vector, instead.
        mask, level: accepted for the builders and ignored.

    Shapes: (\\*batch, in_channels, H, W) and a context to (\\*batch, out_channels, H, W).

    Example:
        >>> net = ConvNet(3, 6, hidden=16, context_shape=10)
        >>> y = net(torch.randn(5, 3, 4, 4), torch.randn(5, 10))
        >>> y.shape, bool((y == 0).all())
        (torch.Size([5, 6, 4, 4]), True)
    """

    starts_at_zero = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 512,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(context_shape, context_dim)
        self.check_channels(in_channels, out_channels)
        self.check_image_context()
        channels = in_channels + self.map_channels
        hidden = count_of("hidden of ConvNet", hidden)
        self.conv1 = _EdgeConv2d(channels, hidden, 0.05)
        self.norm1 = ChannelNorm(hidden)
        self.context_in = nn.Linear(self.vector_length, hidden) if self.vector_length else None
        self.conv2 = nn.Parameter(0.05 * torch.randn(hidden, hidden, 1, 1))
        self.norm2 = ChannelNorm(hidden)
        self.conv3 = ZeroConv(hidden, out_channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context, batch = self.flatten_batch(x, context)
        added = None
        if context is not None and self.context_in is not None:
            added = self.context_in(context)[..., None, None]
        if not (self.norm1.is_fixed and self.norm2.is_fixed):
            self._initialize_once(x, added)
        h = self._first(x, added)
        scale, shift = self.norm2.scale_and_shift()
        h = F.conv2d(h, self.conv2 * scale[:, None, None, None], shift).relu_()
        out = self.conv3(h)
        return out.reshape(*batch, *out.shape[1:])

    def _first(self, x: Tensor, added: Tensor | None) -> Tensor:
        h = self.conv1(x, *self.norm1.scale_and_shift())
        return (h if added is None else h + added).relu_()

    @torch.no_grad()
    def _initialize_once(self, x: Tensor, added: Tensor | None) -> None:
        """Runs layer by layer, so that each norm is initialised from its own input."""
        one = torch.ones_like(self.norm1.shift)
        self.norm1.initialize_once(self.conv1(x, one, 0 * one))
        self.norm2.initialize_once(F.conv2d(self._first(x, added), self.conv2))
