"""The flow of the guide by default, and its network, whose output one step of Adam moves little."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from .._runtime.construction import recorded
from ..bijections.bijection import Bijection
from ..bijections.coupling import Elementwise
from ..bijections.linear import Permute
from ..bijections.mixture import MixtureLogistic
from ..bijections.transformers import Affine, SoftClipLogScale
from ..families.assembly import latent_to_data, vector_couplings
from ..networks.mlp import MLP

_BOUND = 1.0  # of the logarithm of the scale of a coupling


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


def default_transforms(dim: int) -> list[Bijection]:
    """Builds four pairs of couplings with small networks, and shuffles the coordinates between the pairs.

    Without the shuffles two latents in one half, as the scale of a hierarchy and its groups, would never meet in a
    coupling. One latent gets a mixture of logistics, in the direction that needs no search.

    From a start far narrower than the posterior all couplings widen at once, and each reads what the last one widened.
    So that this does not run away at a usual learning rate, the networks answer slowly to Adam (:class:`SteadyMLP`),
    and the scale of a coupling is bounded, as in Andrade (2024), Stable training of normalizing flows for
    high-dimensional variational inference: log_scale = raw / (1 + |raw|), within (-1, 1). What the scales together
    cannot reach, the learned ``log_scale`` of the guide does, one learning rate in a step.
    """
    if dim == 1:
        return [Elementwise((1,), MixtureLogistic(components=8))]
    shuffled = [*range(0, dim, 2), *range(1, dim, 2)]
    layers: list[Bijection] = []
    for _ in range(4):
        if layers:
            layers.append(Permute((dim,), shuffled))
        layers += latent_to_data(vector_couplings(Size((dim,)), 2, SteadyMLP, _bounded_affine, None))
    return layers


def _bounded_affine() -> Affine:
    return Affine(SoftClipLogScale(_BOUND))
