"""The support of a flow without bounds."""

from torch import Tensor
from torch.distributions import IndependentTransform, biject_to, constraints, identity_transform, transform_to


class _Finite(type(constraints.real)):  # type: ignore[misc]
    """The finite real numbers; torch's ``real`` accepts infinities."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


finite = _Finite()


class _Events(constraints.independent):
    """Holds for an event if it holds for all its elements; unlike its base class it can check an empty batch."""

    def check(self, value: Tensor) -> Tensor:
        result = self.base_constraint.check(value)
        dims: int = self.reinterpreted_batch_ndims
        if result.dim() < dims:
            raise ValueError(f"Events of {dims} dimensions or more are expected, but got a tensor of {result.dim()}.")
        return result.flatten(-dims).all(-1) if dims else result


def events(constraint: constraints.Constraint, dims: int) -> constraints.Constraint:
    """Returns the constraint that an event satisfies if all its elements, over ``dims`` dimensions, satisfy this."""
    return _Events(constraint, dims)


def elementwise(constraint: constraints.Constraint) -> constraints.Constraint | None:
    """Returns the constraint of every element by itself, or None if there is none."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return None if constraint.event_dim else constraint


def unbounded(constraint: constraints.Constraint) -> bool:
    """Returns whether a constraint is the whole real line, for every element of an event."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is finite or constraint is constraints.real


def without_infinities(constraint: constraints.Constraint) -> constraints.Constraint:
    """Returns a constraint of torch in which the real numbers are the finite ones."""
    if isinstance(constraint, constraints.independent):
        return events(without_infinities(constraint.base_constraint), constraint.reinterpreted_batch_ndims)
    return finite if constraint is constraints.real else constraint


biject_to.register(_Finite, lambda constraint: identity_transform)
transform_to.register(_Finite, lambda constraint: identity_transform)
for _registry in (biject_to, transform_to):
    _registry.register(
        _Events,
        lambda constraint, of=_registry: IndependentTransform(
            of(constraint.base_constraint), constraint.reinterpreted_batch_ndims
        ),
    )
