"""Neural spline flows with couplings, assembled."""

from collections.abc import Sequence
from functools import partial

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from .._runtime.coordinates import Coordinate, Intervals, coordinates_of
from ..bijections.bijection import Bijection
from ..bijections.circular import CircularSpline
from ..bijections.interval import IntervalSpline
from ..bijections.spline import RationalQuadratic
from ..bijections.transformers import Transformer
from ..networks.conditioner import shape_of_context
from .assembly import Net, latent_to_data, net_of_vectors, reject_arguments, shape_of_event
from .glow import glow_transforms
from .mixed import mixed_couplings


@recorded
def spline_transforms(
    event_shape: int | Sequence[int],
    *,
    couplings: int | None = None,
    levels: int | None = None,
    steps: int | None = None,
    bins: int = 8,
    bound: float = 5.0,
    circular: Sequence[int] = (),
    intervals: Intervals = (),
    hidden: Sequence[int] | None = None,
    net: Net | None = None,
    context_shape: int | Sequence[int] | None = None,
    context_dim: int = 0,
) -> list[Bijection]:
    """Builds a neural spline flow with couplings, RQ-NSF (C). Durkan, Bekasov, Murray & Papamakarios (2019).

    For vectors, couplings that transform one half of the coordinates by rational-quadratic splines given the other, in
    turns. A single coordinate gets one spline, whose parameters depend on the context if there is one. For images,
    Glow's architecture with splines in its couplings (section 5.2 there): ``levels`` levels of ``steps`` steps.

    Outside of [-bound, bound] a spline is the identity. Data should be standardised, to mean 0 and standard deviation
    1: then next to nothing lies there. A new flow of vectors is the identity.

    Coordinates of a vector may be angles in [-pi, pi), by Rezende et al. (2020): they get splines of the circle, and
    the networks read their cosine and sine. Or they may be numbers in an interval, whose ends the splines leave where
    they are. Such a flow needs a base of the same kind, in which these coordinates are uniform:
    :class:`~pyro_realnvp.MixedBase`.

    Args:
        event_shape: D or (D,), or (C, H, W) with H and W divisible by 2**levels.
        couplings: number of couplings of a vector flow, 8 by default.
        levels: number of levels of an image flow, 3 by default.
        steps: steps of a level, 8 by default.
        bins: bins of a spline.
        bound: of the splines, in the units of the data.
        circular: the coordinates of a vector that are angles.
        intervals: triples (coordinate, low, high) of the coordinates of a vector in an interval.
        hidden: widths of the hidden layers of the networks of a vector flow, (64, 64) by default; they are of tanh.
        net: builds the networks, instead; for images ``ConvNet`` by default.
        context_shape: length of the context vector of a conditional flow, or shape (C, H, W) of its context map.
        context_dim: length of the context vector, instead.

    Returns:
        Bijections latent -> data.

    Raises:
        ValueError: if both ``hidden`` and ``net`` are given, an argument does not apply to events of this shape, the
            shape cannot be squeezed, or a coordinate of ``circular`` and ``intervals`` is not there, or named twice.

    Example:
        >>> kinds = {"circular": [0], "intervals": [(1, 0.0, 10.0)]}
        >>> flow = Flow(MixedBase(3, **kinds), spline_transforms(3, **kinds))
        >>> angle, number, _ = flow.sample((100,)).unbind(-1)
        >>> bool((angle.abs() <= torch.pi).all()), bool(((0 <= number) & (number <= 10)).all())
        (True, True)
    """
    shape = shape_of_event("spline_transforms", event_shape)
    if len(shape) == 3:
        vectors_only = {"circular": circular or None, "intervals": intervals or None, "hidden": hidden}
        reject_arguments("spline_transforms", shape, couplings=couplings, **vectors_only)
        return glow_transforms(
            shape,
            levels=levels,
            steps=8 if steps is None else steps,
            net=net,
            transformer=partial(RationalQuadratic, bins, bound=bound),
            context_shape=context_shape,
            context_dim=context_dim,
        )
    reject_arguments("spline_transforms", shape, levels=levels, steps=steps)
    context = shape_of_context("spline_transforms", context_shape, context_dim)
    count = count_of("couplings", 8 if couplings is None else couplings)
    net = net_of_vectors("spline_transforms", net, hidden)
    where = coordinates_of("spline_transforms", shape[0], circular, intervals)
    return latent_to_data(mixed_couplings(where, count, net, partial(_spline, bins, bound), context))


def _spline(bins: int, bound: float, where: Coordinate) -> Transformer:
    if where.circular:
        return CircularSpline(bins)
    return IntervalSpline(where.low, where.high, bins) if where.is_bounded else RationalQuadratic(bins, bound=bound)
