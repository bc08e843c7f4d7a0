"""Couplings of vectors with angles and numbers in an interval among their coordinates."""

from collections.abc import Callable, Sequence

from torch import Size, nn

from .._runtime.coordinates import Coordinate
from ..bijections.bijection import Bijection
from ..bijections.per_coordinate import PerCoordinate
from ..bijections.transformers import Transformer
from ..networks.coordinate_features import CoordinateFeatures
from .assembly import Net, couplings_in_turns, with_context


def mixed_couplings(
    where: Sequence[Coordinate],
    couplings: int,
    net: Net,
    transformer: Callable[[Coordinate], Transformer],
    context_shape: Size | None,
) -> list[Bijection]:
    """Couplings that transform one half of the coordinates given the other, in turns; one coordinate: elementwise.

    Args:
        where: where the coordinates lie.
        couplings: how many.
        net: builds the networks, which read the cosine and sine of angles.
        transformer: builds the transformer of coordinates that lie there.
        context_shape: shape of one context, or None.
    """
    net = with_context(net, context_shape)

    def build(changed: Sequence[int]) -> Transformer:
        made = {each: transformer(each) for each in dict.fromkeys(where[index] for index in changed)}
        return next(iter(made.values())) if len(made) == 1 else PerCoordinate([made[where[index]] for index in changed])

    def read(read: Sequence[int], out_channels: int) -> nn.Module:
        lie = [where[index] for index in read]
        circular = [index for index, each in enumerate(lie) if each.circular]
        intervals = [(i, each.low, each.high) for i, each in enumerate(lie) if each.is_bounded and not each.circular]
        network = net(len(read) + len(circular), out_channels)
        if not circular and not intervals:
            return network
        return CoordinateFeatures(network, len(read), circular=circular, intervals=intervals)

    return couplings_in_turns(Size((len(where),)), couplings, build, read, conditional=context_shape is not None)
