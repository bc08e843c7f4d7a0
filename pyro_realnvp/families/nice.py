"""NICE, assembled."""

from collections.abc import Sequence
from functools import partial

from torch import Size, nn
from torch.distributions import ReshapeTransform

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from ..bijections.bijection import Bijection
from ..bijections.lift import Lift
from ..bijections.linear import Permute, Scale
from ..bijections.transformers import Additive
from ..networks.conditioner import shape_of_context
from ..networks.mlp import MLP
from .assembly import Net, latent_to_data, net_of_vectors, shape_of_event, vector_couplings, warn_of_one_coordinate


@recorded
def nice_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int = 4,
    hidden: Sequence[int] | None = None,
    net: Net | None = None,
    context_shape: int | Sequence[int] | None = None,
    context_dim: int = 0,
) -> list[Bijection]:
    """Builds NICE: additive couplings and one diagonal scaling. Dinh, Krueger & Bengio (2014).

    The coordinates with even and with odd index take turns; images are flattened. A single coordinate is only shifted
    and scaled; a warning says so if it is to depend on a context. The paper's prior is
    :class:`~pyro_realnvp.StandardLogistic` for MNIST and Gaussian elsewhere.

    Args:
        event_shape: D or (D,), or (C, H, W).
        couplings: number of couplings.
        hidden: widths of the hidden layers of the networks: for vectors (64, 64) by default, of tanh; for images the
            paper's five layers of 1000, of ReLU.
        net: builds the networks, instead.
        context_shape: length of the context vector of a conditional flow, or shape (C, H, W) of its context map.
        context_dim: length of the context vector, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if both ``hidden`` and ``net`` are given.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> f = Chain(nice_transforms(4))
        >>> randomize(f)
        >>> log_det = f.forward_and_log_det(torch.randn(5, 4))[1]
        >>> torch.allclose(log_det, log_det[0])  # additive couplings keep volumes, the scaling changes all alike
        True
    """
    shape = shape_of_event("nice_transforms", event_shape)
    context = shape_of_context("nice_transforms", context_shape, context_dim)
    flat = Size((shape.numel(),))
    warn_of_one_coordinate("nice_transforms", shape, context)
    if net is None and len(shape) == 3:
        net = partial(MLP, hidden=(1000,) * 5 if hidden is None else hidden, activation=nn.ReLU)
    else:
        net = net_of_vectors("nice_transforms", net, hidden)
    layers = vector_couplings(flat, count_of("couplings", couplings), net, Additive, context)
    if flat[0] > 1:
        layers = [Permute(flat, [*range(0, flat[0], 2), *range(1, flat[0], 2)]), *layers]
    layers = [*layers, Scale(flat)]
    if len(shape) == 3:
        layers = [Lift(ReshapeTransform(shape, flat), shape), *layers, Lift(ReshapeTransform(flat, shape), flat)]
    return latent_to_data(layers)
