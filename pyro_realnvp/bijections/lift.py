"""Torch's and Pyro's own transforms as bijections."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import ReshapeTransform, Transform, constraints

from .._runtime.batches import sum_rightmost
from .._runtime.construction import recorded
from .bijection import Bijection
from .support import events, without_infinities


@recorded
class Lift(Bijection):
    """Wraps any bijective torch or Pyro transform as a :class:`Bijection`, as a part of a :class:`Chain`, say.

        y = t(x),   log|det dy/dx| = t.log_abs_det_jacobian(x, y)

    Modules keep their parameters, and conditional transforms receive the context. Tensors of a transform that is no
    Module (the ``loc`` of an ``AffineTransform``, say) are not watched: call ``clear_cache()`` after changing one.

    Args:
        transform: the transform.
        event_shape: shape of one x; may stay ``()`` for elementwise transforms.
        owner: the Module whose parameters the transform uses, if it is no Module itself: zuko's transforms, say, are
            closures over a network.

    Raises:
        ValueError: if the transform is not bijective, or needs an event shape and none is given, or uses parameters of
            a Module that is not given as the owner.

    Example:
        >>> f = Lift(dist.transforms.ExpTransform(), (2,))
        >>> y, log_det = f.forward_and_log_det(torch.tensor([1.0, 2.0]))
        >>> log_det  # log|det dy/dx| = 1 + 2
        tensor(3.)
    """

    def __init__(
        self,
        transform: Transform | ConditionalTransform,
        event_shape: Sequence[int] = (),
        *,
        owner: nn.Module | None = None,
    ) -> None:
        name = type(transform).__name__
        if isinstance(transform, Transform):
            if not transform.bijective:
                raise ValueError(f"Lift needs a bijective transform, but got {name}.")
            if len(event_shape) < transform.domain.event_dim:
                raise ValueError(
                    f"Lift of {name} needs the shape of its events, of at least {transform.domain.event_dim} "
                    f"dimensions, but got {tuple(event_shape)}."
                )
            try:
                output_shape = transform.forward_shape(Size(event_shape))
            except ValueError as error:
                reason = str(error).removesuffix(".")
                raise ValueError(f"Lift of {name} takes no events of {tuple(event_shape)}: {reason}.") from error
        elif isinstance(transform, ConditionalTransform):
            output_shape = Size(event_shape)
        else:
            raise ValueError(f"Lift needs a torch or Pyro transform, but got {name}.")
        super().__init__(event_shape, output_shape)
        self.transform = transform
        self.owner = owner
        own = {id(tensor) for tensor in self.parameters()}
        foreign = [tensor for tensor in parameters_behind(transform) if id(tensor) not in own]
        if foreign:
            raise ValueError(
                f"Lift of {name} uses {len(foreign)} Parameters of another Module, one of shape "
                f"{tuple(foreign[0].shape)}: pass Lift(transform, event_shape, owner=module) to register them."
            )

    @property
    def is_conditional(self) -> bool:
        return not isinstance(self.transform, Transform)

    @property
    def rearranges(self) -> bool:  # type: ignore[override]
        return isinstance(self.transform, ReshapeTransform)

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        if not isinstance(self.transform, Transform):
            return super()._constraint(output=output)
        inner = without_infinities(self.transform.codomain if output else self.transform.domain)
        return events(inner, len(self.output_shape if output else self.event_shape) - inner.event_dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = self._conditioned(context)
        x = x.view_as(x)  # a new tensor, which no cache inside the transform can mistake for an earlier one
        y = transform(x)
        return y, self._log_det(transform, x, y)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = self._conditioned(context)
        y = y.view_as(y)
        x = transform.inv(y)
        return x, -self._log_det(transform, x, y)

    def _conditioned(self, context: Tensor | None) -> Transform:
        if isinstance(self.transform, Transform):
            return self.transform
        if context is None:
            raise ValueError(f"Lift of {type(self.transform).__name__} needs a context, but got none.")
        return self.transform.condition(context)

    def _log_det(self, transform: Transform, x: Tensor, y: Tensor) -> Tensor:
        log_det = transform.log_abs_det_jacobian(x, y)
        return sum_rightmost(log_det, len(self.event_shape) - transform.domain.event_dim)


def parameters_behind(value: Any) -> list[nn.Parameter]:
    """Finds the Parameters that an object refers to by attributes, containers, closures, partials and bound methods."""
    found: list[nn.Parameter] = []
    seen: set[int] = set()
    stack = [value]
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen.add(id(each))
        if isinstance(each, nn.Parameter):
            found.append(each)
        elif isinstance(each, nn.Module):
            found += each.parameters()
        elif isinstance(each, Mapping):
            stack += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            stack += each
        elif isinstance(each, partial):
            stack += [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, MethodType):
            stack += [each.__self__, each.__func__, *getattr(each.__self__, "__dict__", {}).values()]
        elif isinstance(each, FunctionType):
            stack += [cell.cell_contents for cell in each.__closure__ or () if cell != CellType()]
        elif isinstance(each, Transform):
            stack += vars(each).values()
    return found
