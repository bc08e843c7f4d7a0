"""The support of a flow without bounds."""

from torch import Tensor
from torch.distributions import biject_to, constraints, identity_transform, transform_to


class _Finite(type(constraints.real)):  # type: ignore[misc]
    """The finite real numbers; torch's ``real`` accepts infinities."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


finite = _Finite()


def unbounded(constraint: constraints.Constraint) -> bool:
    """Returns whether a constraint is the whole real line, for every element of an event."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is finite or constraint is constraints.real


def without_infinities(constraint: constraints.Constraint) -> constraints.Constraint:
    """Returns a constraint of torch in which the real numbers are the finite ones."""
    if isinstance(constraint, constraints.independent):
        return constraints.independent(
            without_infinities(constraint.base_constraint), constraint.reinterpreted_batch_ndims
        )
    return finite if constraint is constraints.real else constraint


biject_to.register(_Finite, lambda constraint: identity_transform)
transform_to.register(_Finite, lambda constraint: identity_transform)
