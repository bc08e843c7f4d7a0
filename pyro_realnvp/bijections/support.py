"""The support of a flow without bounds."""

from torch import Tensor
from torch.distributions import biject_to, constraints, identity_transform, transform_to


class _Finite(type(constraints.real)):  # type: ignore[misc]
    """The finite real numbers; torch's ``real`` accepts infinities."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


finite = _Finite()
biject_to.register(_Finite, lambda constraint: identity_transform)
transform_to.register(_Finite, lambda constraint: identity_transform)
