"""Squeezing and factoring out: the multi-scale architecture as bijections that keep the shape of the image.

``Sandwich(Squeeze(shape), f)`` applies f to the squeezed image and ``FactorOut(f)`` to half of the channels, so that
(C, H, W) never changes along a flow and the whole model is one ordinary transform, whose latent image is laid out like
the data. Dinh et al. (2017), section 3.6.
"""

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from .._runtime.construction import recorded
from .bijection import Bijection, Composite, compute
from .reversible import Reversible
from .support import elementwise, events


@recorded
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

    Example:
        >>> x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> Squeeze((1, 2, 2))(x).flatten(), Squeeze((1, 2, 2), ordered=True)(x).flatten()
        (tensor([0., 1., 2., 3.]), tensor([0., 3., 1., 2.]))
    """

    rearranges = True

    def __init__(self, event_shape: Sequence[int], *, ordered: bool = False) -> None:
        if len(event_shape) != 3:
            raise ValueError(f"Squeeze needs an image of shape (C, H, W), but got event shape {tuple(event_shape)}.")
        channels, height, width = event_shape
        if height % 2 or width % 2 or not height or not width:
            raise ValueError(f"Squeeze needs even height and width, but got event shape {tuple(event_shape)}.")
        super().__init__(event_shape, (4 * channels, height // 2, width // 2))
        self.ordered = ordered

    # By reshape and permute, since pixel_unshuffle returns a wrong shape for an empty batch.
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[:-3])
        channels, height, width = self.event_shape
        x = x.reshape(*x.shape[:-3], channels, height // 2, 2, width // 2, 2)
        if self.ordered:
            pixels = [x[..., dy, :, dx] for dy, dx in ((0, 0), (1, 1), (0, 1), (1, 0))]
            return torch.cat(pixels, -3), log_det
        return x.movedim((-3, -1), (-4, -3)).flatten(-5, -3), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.ordered:
            a, b, c, d = y.chunk(4, -3)
            # rows [[a, c], [d, b]] of every 2 x 2 block
            x = torch.stack([torch.stack([a, c], -1), torch.stack([d, b], -1)], -3)
        else:
            x = y.unflatten(-3, (self.event_shape[0], 2, 2)).movedim((-4, -3), (-3, -1))
        return x.reshape(*y.shape[:-3], *self.event_shape), y.new_zeros(y.shape[:-3])

    def extra_repr(self) -> str:
        return super().extra_repr() + (", ordered=True" if self.ordered else "")


class _SqueezeWidth(Reversible):
    """Base class of the bijections (C, H, W) -> (2 C, H, W/2) that reorder pixels; log|det dy/dx| = 0."""

    rearranges = True

    def __init__(self, event_shape: Sequence[int]) -> None:
        if len(event_shape) != 3 or event_shape[2] % 2 or not event_shape[2]:
            raise ValueError(
                f"{type(self).__name__} needs an image of even width, but got event shape {tuple(event_shape)}."
            )
        channels, height, width = event_shape
        super().__init__(event_shape, (2 * channels, height, width // 2))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.cat(self._exchange(x[..., 0::2], x[..., 1::2]), -3), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.stack(self._exchange(*y.chunk(2, -3)), -1).flatten(-2), y.new_zeros(y.shape[:-3])

    def _exchange(self, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """Exchanges pixels of the even columns with their neighbours in the odd ones; its own inverse."""
        return even, odd


@recorded
class SqueezeColumns(_SqueezeWidth):
    """Puts the odd columns of an image behind the even ones, as further channels; log|det dy/dx| = 0.

    The released code of Flow++ splits images in this way, and calls it a checkerboard.

    Args:
        event_shape: (C, H, W); y has the shape (2 C, H, W/2).

    Raises:
        ValueError: if the width is odd.

    Example:
        >>> SqueezeColumns((1, 1, 4))(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]))
        tensor([[[0., 2.]],
        <BLANKLINE>
                [[1., 3.]]])
    """


@recorded
class SqueezeCheckerboard(_SqueezeWidth):
    """Puts the odd squares of a checkerboard behind the even ones, as further channels; log|det dy/dx| = 0.

        y[c, i, k] = x[c, i, 2 k + i mod 2],   y[C + c, i, k] = x[c, i, 2 k + (i + 1) mod 2]

    A coupling between the halves of these channels is one between the squares, like one with a
    :func:`~pyro_realnvp.checkerboard` mask, on maps of half the size. It is another function, as its network sees other
    neighbours: those beside each other on the packed board are two columns apart on the image, and those above each
    other are diagonal neighbours, to the right and to the left in turns.

    Args:
        event_shape: (C, H, W); y has the shape (2 C, H, W/2).

    Raises:
        ValueError: if the width is odd.

    Example:
        >>> SqueezeCheckerboard((1, 2, 2))(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]))
        tensor([[[0.],
                 [3.]],
        <BLANKLINE>
                [[1.],
                 [2.]]])
    """

    odd: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("odd", (torch.arange(event_shape[1]) % 2 == 1)[:, None], persistent=False)  # rows

    def _exchange(self, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.odd, odd, even), torch.where(self.odd, even, odd)


@recorded
class Sandwich(Composite):
    """A bijection of rearranged events: outer^-1 . f . outer.

        y = outer^-1(f(outer(x)))

    ``Sandwich(Squeeze((C, H, W)), f)`` is a bijection of images, given one of squeezed images.

    Args:
        outer: a bijection without context, from the events of this one to those of f.
        bijection: f.
        context: a bijection that rearranges a context map before f sees it. By default f sees the context as it is.

    Raises:
        ValueError: if f does not keep the shape of the rearranged events, or expects another context than it gets.

    Example:
        >>> f = Sandwich(Squeeze((1, 4, 4)), ActNorm((4, 2, 2)))
        >>> x = torch.randn(10, 1, 4, 4)
        >>> f.event_shape, bool(f(x)[:, :, ::2, ::2].mean().abs() < 1e-5)  # a channel behind the squeeze
        (torch.Size([1, 4, 4]), True)
    """

    def __init__(self, outer: Bijection, bijection: Bijection, *, context: Bijection | None = None) -> None:
        if bijection.event_shape != outer.output_shape or bijection.output_shape != outer.output_shape:
            raise ValueError(
                f"Sandwich needs a bijection of events of shape {tuple(outer.output_shape)}, but got "
                f"{tuple(bijection.event_shape)} -> {tuple(bijection.output_shape)}."
            )
        if context is not None and bijection.context_shape != context.output_shape:
            raise ValueError(
                f"Sandwich makes a context of shape {tuple(context.output_shape)}, but the bijection inside takes "
                f"{None if bijection.context_shape is None else tuple(bijection.context_shape)}."
            )
        super().__init__(outer.event_shape)
        self.outer, self.bijection, self.context = outer, bijection, context

    @property
    def context_shape(self) -> Size | None:
        return self.bijection.context_shape if self.context is None else self.context.event_shape

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        inner = elementwise(self.bijection.codomain if output else self.bijection.domain)
        if inner is None or not self.outer.rearranges:
            return super()._constraint(output=output)
        return events(inner, len(self.event_shape))

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.context is not None and context is not None:
            self._context_batch_shape(context)
            context = self.context.forward_and_log_det(context)[0]
        h, before = self.outer.forward_and_log_det(x)
        h, log_det = compute(self.bijection, h, context, inverse=inverse)
        y, after = self.outer.inverse_and_log_det(h)
        return y, before + log_det + after


@recorded
class Halves(Composite):
    """Applies one bijection to each half of the channels: y1 = f(x1), y2 = g(x2).

    Args:
        first, second: f and g, of events (C/2, H, W).

    Example:
        >>> f = Halves(Permute((2, 1, 1), [1, 0]), Permute((2, 1, 1), [0, 1]))
        >>> f(torch.arange(4.0).reshape(4, 1, 1)).flatten()
        tensor([1., 0., 2., 3.])
    """

    def __init__(self, first: Bijection, second: Bijection) -> None:
        channels, height, width = _image_shape("Halves", first)
        if second.event_shape != first.event_shape or second.output_shape != first.event_shape:
            raise ValueError(
                f"Halves needs two bijections of events of one shape, but got {tuple(first.event_shape)} and "
                f"{tuple(second.event_shape)}."
            )
        super().__init__((2 * channels, height, width))
        self.first, self.second = first, second

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, -3)
        y1, log_det1 = compute(self.first, x1, context, inverse=inverse)
        y2, log_det2 = compute(self.second, x2, context, inverse=inverse)
        return torch.cat([y1, y2], -3), log_det1 + log_det2


@recorded
class FactorOut(Composite):
    """Applies a bijection to the first half of the channels, and leaves the second as it is.

        y1 = f(x1),   y2 = x2,   log|det dy/dx| = log|det df/dx1|

    Dinh et al. (2017), equation 14.

    Args:
        bijection: f, of events (C/2, H, W).

    Example:
        >>> f = FactorOut(Permute((2, 1, 1), [1, 0]))
        >>> f(torch.arange(4.0).reshape(4, 1, 1)).flatten()
        tensor([1., 0., 2., 3.])
    """

    def __init__(self, bijection: Bijection) -> None:
        channels, height, width = _image_shape("FactorOut", bijection)
        super().__init__((2 * channels, height, width))
        self.bijection = bijection

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, -3)
        y1, log_det = compute(self.bijection, x1, context, inverse=inverse)
        return torch.cat([y1, x2], -3), log_det


def _image_shape(name: str, bijection: Bijection) -> Size:
    shape = bijection.event_shape
    if len(shape) != 3 or bijection.output_shape != shape:
        raise ValueError(
            f"{name} needs a bijection of images that keeps their shape, but got "
            f"{tuple(shape)} -> {tuple(bijection.output_shape)}."
        )
    return shape
