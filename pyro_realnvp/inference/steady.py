"""The flow of the guide by default, and its network, whose output one step of Adam moves little."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._runtime.construction import recorded
from ..networks.mlp import MLP


@recorded
class SteadyMLP(MLP):
    """An :class:`MLP` whose output moves by about the learning rate in a step of Adam, whatever its width.

        theta(x) = (W [g h(s x), k s x] + b) / 4,   s = min(1, 16/n),   x of n elements

    Adam moves every weight by about the learning rate, so that a sum over n elements moves n times as fast: s makes it
    that of at most 16 inputs, and g = ``gain`` that of half of the features. Multipliers by width are those of Yang and
    Hu (2021), Tensor programs IV. Four couplings, which at first pull alike, transform each latent of a guide; the
    quarter makes their sum move like one parameter.

    Args:
        in_channels, out_channels, hidden, gain, skip, context_shape, context_dim, mask, level: as of ``MLP``;
            ``skip`` is k.
    """

    input_scale: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (64, 64),
        gain: float = 0.5,
        skip: float = 0.3,
        context_shape: int | Sequence[int] | None = None,
        context_dim: int = 0,
        mask: Tensor | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            hidden=hidden,
            gain=gain,
            skip=skip,
            context_shape=context_shape,
            context_dim=context_dim,
            mask=mask,
            level=level,
        )
        # In the state, so that a state of version 0.1, whose weights would mean another density, is refused.
        self.register_buffer("input_scale", torch.tensor(min(1.0, 16 / max(1, in_channels))))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(self.input_scale * x, context) / 4
