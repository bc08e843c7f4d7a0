"""The flow that the guide has unless it is given another."""

from collections.abc import Sequence

from .._runtime.coordinates import Coordinate, coordinates_of
from ..bijections.bijection import Bijection
from ..bijections.coupling import Elementwise
from ..bijections.linear import Permute
from ..bijections.mixture import MixtureLogistic
from ..bijections.transformers import Affine, SoftClipLogScale, Transformer
from ..families.assembly import latent_to_data
from ..families.mixed import mixed_couplings
from .affine_couplings import AffineCouplings
from .quantile_spline import QuantileSpline
from .steady import SteadyMLP

_SKIPPED = 1024  # latents, up to which the networks have matrices of their square, which keep a narrow start calm
_BOUND = 1.0  # of the logarithm of the scale of a coupling


def default_transforms(dim: int, circular: Sequence[int] = ()) -> list[Bijection]:
    """Builds four pairs of couplings with small networks, and shuffles the coordinates between the pairs.

    Without the shuffles two latents in one half, as the scale of a hierarchy and its groups, would never meet in a
    coupling. One latent gets a mixture of logistics, in the direction that needs no search. Angles get splines of the
    circle (:class:`QuantileSpline`) in place of affine maps, and networks read their cosine and sine.

    From a start far narrower than the posterior all couplings widen at once, and each reads what the last one widened.
    So that this does not run away at a usual learning rate, the networks answer slowly to Adam (:class:`SteadyMLP`),
    and the scale of a coupling is bounded, as in Andrade (2024), Stable training of normalizing flows for
    high-dimensional variational inference: log_scale = raw / (1 + |raw|), within (-1, 1). What the scales together
    cannot reach, the learned ``log_scale`` of the guide does, one learning rate in a step.

    Args:
        dim: D, number of latents.
        circular: those that are angles.
    """
    where = coordinates_of("default_transforms", dim, circular, ())
    if dim == 1:
        return [
            Elementwise((1,), QuantileSpline()).inv if circular else Elementwise((1,), MixtureLogistic(components=8))
        ]
    if not circular:
        return [AffineCouplings(dim, skip=dim <= _SKIPPED)]
    shuffled = [*range(0, dim, 2), *range(1, dim, 2)]
    back = sorted(range(dim), key=shuffled.__getitem__)
    orders = [list(range(dim))]  # of the latents in every pair, from the data to the latent side
    for _ in range(3):
        orders.append([orders[-1][index] for index in back])
    layers: list[Bijection] = [Permute((dim,), orders[-1])]  # angles must meet those of the base
    for order in reversed(orders):
        if order is not orders[-1]:
            layers.append(Permute((dim,), shuffled))
        layers += latent_to_data(mixed_couplings([where[index] for index in order], 2, SteadyMLP, _transformer, None))
    return layers


def _transformer(where: Coordinate) -> Transformer:
    return QuantileSpline() if where.circular else Affine(SoftClipLogScale(_BOUND))
