"""Multi-scale architecture as shape-preserving combinators. Dinh et al. (2017), section 3.6.

``Squeezed(f)`` works on the squeezed image and ``FactorOut(f)`` on half of the channels, so (C, H, W) never changes
along a flow and the whole model is one ordinary transform. The latent image is laid out like the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from .bijection import Bijection
from .reversible import Reversible

__all__ = ["Arranged", "Columns", "FactorOut", "Parallel", "Squares", "Squeeze", "Squeezed"]


def _squeezed_shape(name: str, event_shape: Sequence[int]) -> Size:
    if len(event_shape) != 3:
        raise ValueError(f"{name} needs an image of shape (C, H, W), but got event shape {tuple(event_shape)}.")
    channels, height, width = event_shape
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"{name} needs even height and width, but got event shape {tuple(event_shape)}.")
    return Size((4 * channels, height // 2, width // 2))


# By reshape and permute, since pixel_unshuffle returns a wrong shape for an empty batch.
def _squeeze(x: Tensor, *, ordered: bool) -> Tensor:
    *batch, channels, height, width = x.shape
    x = x.reshape(*batch, channels, height // 2, 2, width // 2, 2)
    if not ordered:  # channel 4 c + 2 dy + dx
        x = x.movedim((-3, -1), (-4, -3))
        return x.reshape(*batch, 4 * channels, height // 2, width // 2)
    # slot-major: top left, bottom right | top right, bottom left
    slots = [x[..., dy, :, dx] for dy, dx in ((0, 0), (1, 1), (0, 1), (1, 0))]
    return torch.cat(slots, -3)


def _unsqueeze(y: Tensor, *, ordered: bool) -> Tensor:
    *batch, channels, height, width = y.shape
    channels //= 4
    if not ordered:
        y = y.reshape(*batch, channels, 2, 2, height, width).movedim((-4, -3), (-3, -1))
    else:
        a, b, c, d = y.chunk(4, -3)
        # rows [[a, c], [d, b]] of every 2 x 2 block
        y = torch.stack([torch.stack([a, c], -1), torch.stack([d, b], -1)], -3)
    return y.reshape(*batch, channels, 2 * height, 2 * width)


class Squeeze(Reversible):
    """Turns every 2 x 2 block of pixels into 4 channels; log|det dy/dx| = 0. Dinh et al. (2017), section 3.6, figure 3.

    Plain order: pixel (dy, dx) of channel c becomes channel 4 c + 2 dy + dx. Ordered, for factoring out: all channels
    of the top left pixel, then bottom right, top right, bottom left, so that the first half of the channels holds the
    pixels with even row + column.

    Args:
        event_shape: (C, H, W); y has the shape (4 C, H/2, W/2).
        ordered: the second order instead of the first.

    Raises:
        ValueError: if the height or the width is odd.
    """

    def __init__(self, event_shape: Sequence[int], *, ordered: bool = False) -> None:
        super().__init__(event_shape, _squeezed_shape("Squeeze", event_shape))
        self.ordered = ordered

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _squeeze(x, ordered=self.ordered), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _unsqueeze(y, ordered=self.ordered), y.new_zeros(y.shape[:-3])

    def extra_repr(self) -> str:
        return super().extra_repr() + (", ordered=True" if self.ordered else "")


class Squeezed(Bijection):
    """A bijection of squeezed images as a bijection of images: unsqueeze . f . squeeze.

    A context map is squeezed (in the plain order) with the image, a context vector handed on.

    Args:
        bijection: f, of events (4 C, H, W).
        ordered: the order of the channels, as in :class:`Squeeze`.
    """

    def __init__(self, bijection: Bijection, *, ordered: bool = False) -> None:
        channels, height, width = _image_shape("Squeezed", bijection)
        if channels % 4:
            raise ValueError(
                f"Squeezed needs a bijection of events with a multiple of 4 channels, "
                f"but got {(channels, height, width)}."
            )
        super().__init__((channels // 4, 2 * height, 2 * width))
        self.bijection = bijection
        self.ordered = ordered

    @property
    def context_shape(self) -> Size | None:
        shape = self.bijection.context_shape
        if shape is None or len(shape) != 3:
            return shape
        return Size((shape[0] // 4, 2 * shape[1], 2 * shape[2]))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.bijection.forward_and_log_det(_squeeze(x, ordered=self.ordered), self._squeezed(context))
        return _unsqueeze(y, ordered=self.ordered), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.bijection.inverse_and_log_det(_squeeze(y, ordered=self.ordered), self._squeezed(context))
        return _unsqueeze(x, ordered=self.ordered), log_det

    def _squeezed(self, context: Tensor | None) -> Tensor | None:
        shape = self.bijection.context_shape
        if context is None or shape is None or len(shape) != 3:
            return context
        return _squeeze(context, ordered=False)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", ordered=True" if self.ordered else "")


class FactorOut(Bijection):
    """Applies a bijection to the first half of the channels; the second half is done. Dinh et al. (2017), equation 14.

        y1 = f(x1),   y2 = x2,   log|det dy/dx| = log|det df/dx1|

    Args:
        bijection: f, of events (C/2, H, W).
    """

    def __init__(self, bijection: Bijection) -> None:
        channels, height, width = _image_shape("FactorOut", bijection)
        super().__init__((2 * channels, height, width))
        self.bijection = bijection

    @property
    def context_shape(self) -> Size | None:
        return self.bijection.context_shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, -3)
        y1, log_det = self.bijection.forward_and_log_det(x1, context)
        return torch.cat([y1, x2], -3), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y1, y2 = y.chunk(2, -3)
        x1, log_det = self.bijection.inverse_and_log_det(y1, context)
        return torch.cat([x1, y2], -3), log_det


class Columns(Reversible):
    """Puts the odd columns of an image behind the even ones, as further channels; log|det dy/dx| = 0.

    What the released code of Flow++ splits by, under the name of a checkerboard.

    Args:
        event_shape: (C, H, W); y has the shape (2 C, H, W/2).

    Raises:
        ValueError: if the width is odd.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        if len(event_shape) != 3 or event_shape[2] % 2 or not event_shape[2]:
            raise ValueError(f"Columns needs an image of even width, but got event shape {tuple(event_shape)}.")
        channels, height, width = event_shape
        super().__init__(event_shape, (2 * channels, height, width // 2))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.cat([x[..., 0::2], x[..., 1::2]], -3), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        even, odd = y.chunk(2, -3)
        return torch.stack([even, odd], -1).flatten(-2), y.new_zeros(y.shape[:-3])


class Squares(Reversible):
    """Puts the odd squares of a checkerboard behind the even ones, as further channels; log|det dy/dx| = 0.

        y[c, i, k] = x[c, i, 2 k + i mod 2],   y[C + c, i, k] = x[c, i, 2 k + (i + 1) mod 2]

    A coupling between the halves of these channels is one between the squares, like one with a
    :func:`~pyro_realnvp.checkerboard` mask, on maps of half the size. It is not the same function: neighbours on the
    packed board are neighbours in a row, or diagonal ones on the board, to the right and to the left in turns.

    Args:
        event_shape: (C, H, W); y has the shape (2 C, H, W/2).

    Raises:
        ValueError: if the width is odd.
    """

    odd: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        if len(event_shape) != 3 or event_shape[2] % 2 or not event_shape[2]:
            raise ValueError(f"Squares needs an image of even width, but got event shape {tuple(event_shape)}.")
        channels, height, width = event_shape
        super().__init__(event_shape, (2 * channels, height, width // 2))
        self.register_buffer("odd", (torch.arange(height) % 2 == 1)[:, None], persistent=False)  # rows

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.cat(self._exchanged(x[..., 0::2], x[..., 1::2]), -3), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.stack(self._exchanged(*y.chunk(2, -3)), -1).flatten(-2), y.new_zeros(y.shape[:-3])

    def _exchanged(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The two with their odd rows exchanged."""
        return torch.where(self.odd, b, a), torch.where(self.odd, a, b)


class Arranged(Bijection):
    """A bijection of events in another arrangement: outer^-1 . f . outer, as :class:`Squeezed` is of squeezed images.

    Args:
        outer: a bijection without context, from events of this one to those of f; a ``Columns``, say.
        bijection: f.
    """

    def __init__(self, outer: Bijection, bijection: Bijection) -> None:
        if bijection.event_shape != outer.output_shape or bijection.output_shape != outer.output_shape:
            raise ValueError(
                f"Arranged needs a bijection of events of shape {tuple(outer.output_shape)}, but got "
                f"{tuple(bijection.event_shape)} -> {tuple(bijection.output_shape)}."
            )
        super().__init__(outer.event_shape)
        self.outer, self.bijection = outer, bijection

    @property
    def context_shape(self) -> Size | None:
        return self.bijection.context_shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, before = self.outer.forward_and_log_det(x)
        h, log_det = self.bijection.forward_and_log_det(h, context)
        y, after = self.outer.inverse_and_log_det(h)
        return y, before + log_det + after

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, before = self.outer.forward_and_log_det(y)
        h, log_det = self.bijection.inverse_and_log_det(h, context)
        x, after = self.outer.inverse_and_log_det(h)
        return x, before + log_det + after


class Parallel(Bijection):
    """One bijection for each half of the channels: y1 = f(x1), y2 = g(x2).

    Args:
        first, second: f and g, of events (C/2, H, W).
    """

    def __init__(self, first: Bijection, second: Bijection) -> None:
        channels, height, width = _image_shape("Parallel", first)
        if second.event_shape != first.event_shape or second.output_shape != first.event_shape:
            raise ValueError(
                f"Parallel needs two bijections of the same events, but got {tuple(first.event_shape)} and "
                f"{tuple(second.event_shape)}."
            )
        super().__init__((2 * channels, height, width))
        self.first, self.second = first, second

    @property
    def context_shape(self) -> Size | None:
        return self.second.context_shape if self.first.context_shape is None else self.first.context_shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, -3)
        y1, log_det1 = self.first.forward_and_log_det(x1, context)
        y2, log_det2 = self.second.forward_and_log_det(x2, context)
        return torch.cat([y1, y2], -3), log_det1 + log_det2

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y1, y2 = y.chunk(2, -3)
        x1, log_det1 = self.first.inverse_and_log_det(y1, context)
        x2, log_det2 = self.second.inverse_and_log_det(y2, context)
        return torch.cat([x1, x2], -3), log_det1 + log_det2


def _image_shape(name: str, bijection: Bijection) -> Size:
    shape = bijection.event_shape
    if len(shape) != 3 or bijection.output_shape != shape:
        raise ValueError(
            f"{name} needs a bijection of images that keeps their shape, but got "
            f"{tuple(shape)} -> {tuple(bijection.output_shape)}."
        )
    return shape
