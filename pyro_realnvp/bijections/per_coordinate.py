"""Another transformer for every coordinate."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .._runtime.construction import recorded
from .._runtime.coordinates import Coordinates
from .transformers import Transformer


@recorded
class PerCoordinate(Transformer):
    """Transforms every coordinate of a vector, or channel of an image, by a transformer of its own: angles, say, by
    :class:`CircularSpline` and real numbers by :class:`RationalQuadratic`.

        y_i = g_i(x_i; theta_i)

    Coordinates that share one transformer, one and the same object, are transformed together. The parameters of the
    first transformer and its coordinates come first, in the order that it expects, then those of the second, and so on:
    with P_i parameters of g_i it has P_1 + ... + P_C channels of parameters. In a :class:`MaskedCoupling` there is one
    for every coordinate, also for those that pass unchanged.

    Args:
        transformers: g_1, ..., g_C; those of the coordinates that the coupling changes.

    Raises:
        ValueError: if there is none, or a coupling changes another number of coordinates.

    Example:
        >>> g = PerCoordinate([CircularSpline(bins=4), RationalQuadratic(bins=4)])
        >>> g.channels(2)  # 3 K + 1 for the angle, and 3 K - 1 for the real number
        24
        >>> f = SplitCoupling((3,), MLP(1, 24), g, swap=True)
        >>> f(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    order: Tensor
    places: Tensor

    def __init__(self, transformers: Sequence[Transformer]) -> None:
        super().__init__()
        if not transformers:
            raise ValueError("PerCoordinate needs a transformer for every coordinate, but got none.")
        kinds = list(dict.fromkeys(transformers))
        self.transformers = nn.ModuleList(kinds)
        self._kinds = [kinds.index(each) for each in transformers]
        self._counts = [self._kinds.count(kind) for kind in range(len(kinds))]
        order = torch.tensor(self._kinds).argsort(stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)
        self.closed_form = all(each.closed_form for each in transformers)

    def channels(self, changed: int) -> int:
        if changed != len(self._kinds):
            raise ValueError(
                f"PerCoordinate has transformers for {len(self._kinds)} coordinates, but is given {changed}."
            )
        return sum(each.channels(count) for each, count in self._groups())

    def coordinates(self, changed: int) -> Coordinates:
        return tuple(self.transformers[kind].coordinate for kind in self._kinds)  # type: ignore[misc]

    def forward_and_log_det(self, x: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return self._each(x, params, dim, inverse=False)

    def inverse_and_log_det(self, y: Tensor, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        return self._each(y, params, dim, inverse=True)

    def at_bound(self, params: Tensor, dim: int) -> Tensor | None:
        parts = zip(self._groups(), self.parts(params, dim), strict=True)
        found = [(each.at_bound(part, dim), part, count) for (each, count), part in parts]
        if all(flat is None for flat, _, _ in found):
            return None
        flats = [
            torch.zeros_like(part.narrow(dim, 0, count), dtype=torch.bool) if flat is None else flat
            for flat, part, count in found
        ]
        return torch.cat(flats, dim).index_select(dim, self.places)

    def _groups(self) -> Iterator[tuple[Transformer, int]]:
        """Lists the transformers, and how many coordinates each has."""
        return zip(self.transformers, self._counts, strict=True)  # type: ignore[arg-type]

    def parts(self, params: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Splits parameters into those of each transformer."""
        return params.split_with_sizes([each.channels(count) for each, count in self._groups()], dim)

    def _each(self, x: Tensor, params: Tensor, dim: int, *, inverse: bool) -> tuple[Tensor, Tensor]:
        values, log_dets = [], []
        each = x.index_select(dim, self.order).split_with_sizes(self._counts, dim)
        for (transformer, _), part, theta in zip(self._groups(), each, self.parts(params, dim), strict=True):
            g = transformer.inverse_and_log_det if inverse else transformer.forward_and_log_det
            y, log_det = g(part, theta, dim)
            values.append(y)
            log_dets.append(log_det.expand_as(y))
        y, log_det = torch.cat(values, dim), torch.cat(log_dets, dim)
        return y.index_select(dim, self.places), log_det.index_select(dim, self.places)
