"""The contract of a bijection, and the whole bridge to Pyro.

A :class:`Bijection` is two pure methods that return a value *and* its log-determinant, one for each direction.
Everything that Pyro and torch expect of a transform (calls, inverses, Jacobians, caches, shapes, conditioning) is
derived from these two here, once.

Direction: layers are written as the papers write f, data -> latent, top to bottom in the order of the paper's figure;
:class:`~torch.distributions.TransformedDistribution` takes latent -> data, as the builders return them.
"""

from __future__ import annotations

import copy
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import constraints

from .._runtime.batch_statistics import hold_statistics
from .._runtime.checks import check_broadcast, check_context, check_dtype, check_floating, shape_of, sizes, zero_or_one
from .cache import Cache
from .support import events, finite


class Bijection(TransformModule, ConditionalTransform):
    """A differentiable bijection y = f(x; context) between events of fixed shape, with its log-determinant.

    A subclass writes :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`; being a Pyro transform, a Module
    and a conditional transform follows from them.

    The last result is remembered for the call that follows, so that ``log_prob(x)``, or ``rsample()`` and then
    ``log_prob``, evaluates each network once. It is used only for the very same tensors, unmodified, with unmodified
    parameters and buffers, and in the same grad, autocast and training mode. A change by ``parameter.data.op_()``
    cannot be seen: call :meth:`clear_cache` after it.

    Args:
        event_shape: shape of one x: ``()``, ``(D,)`` or ``(C, H, W)``.
        output_shape: shape of one y, if it differs.
        cache_size: 1 remembers the last result, 0 does not.

    Example:
        >>> class Double(Bijection):
        ...     def forward_and_log_det(self, x, context=None):
        ...         return 2 * x, self._per_event(torch.tensor(2.0).log(), x)
        ...     def inverse_and_log_det(self, y, context=None):
        ...         return y / 2, self._per_event(-torch.tensor(2.0).log(), y)
        >>> density = dist.TransformedDistribution(StandardNormal(1)(), [Double((1,))])
        >>> torch.allclose(density.log_prob(torch.ones(1)), dist.Normal(0.0, 2.0).log_prob(torch.tensor(1.0)))
        True
    """

    bijective = True
    rearranges = False  #: whether y has the elements of x, in another order or shape

    def __init__(
        self, event_shape: Sequence[int], output_shape: Sequence[int] | None = None, *, cache_size: int = 1
    ) -> None:
        super().__init__(cache_size=zero_or_one("cache_size", cache_size))
        self.event_shape = sizes(type(self).__name__, event_shape)
        self.output_shape = self.event_shape if output_shape is None else sizes(type(self).__name__, output_shape)
        self._cache = Cache()

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps x (\\*batch, \\*event_shape) to y (\\*batch, \\*output_shape) and log|det dy/dx| (\\*batch)."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps y (\\*batch, \\*output_shape) to x (\\*batch, \\*event_shape) and log|det dx/dy| (\\*batch)."""

    @property
    def context_shape(self) -> Size | None:
        """Shape of one context, ``(length,)`` or ``(C, H, W)``, or None: by default that of the first part with one."""
        shapes = [part.context_shape for part in self._modules.values() if isinstance(part, Bijection)]  # for Dynamo
        return next((shape for shape in shapes if shape is not None), None)

    @property
    def is_conditional(self) -> bool:
        """Whether this bijection, or a part of it, takes a context."""
        parts = [part for part in self._modules.values() if isinstance(part, Bijection)]
        return self.context_shape is not None or any(part.is_conditional for part in parts)

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        """Returns the set of all x or, if ``output``, of all y."""
        return events(finite, len(self.output_shape if output else self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self._constraint(output=False)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self._constraint(output=True)

    def __call__(self, x: Tensor) -> Tensor:
        known = self._cache.recall(self, x=x)
        return self._call(x) if known is None else known[1]

    def _inv_call(self, y: Tensor) -> Tensor:
        known = self._cache.recall(self, y=y)
        return self._inverse(y) if known is None else known[0]

    def _call(self, x: Tensor) -> Tensor:
        self._check(x, self.event_shape)
        y, log_det = self.forward_and_log_det(x)
        self._remember(x, y, log_det, forward=True)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        self._check(y, self.output_shape)
        x, log_det = self.inverse_and_log_det(y)
        self._remember(y, x, log_det, forward=False)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes log|det dy/dx| of shape (\\*batch), for any x with y = f(x)."""
        known = self._cache.recall(self, x=x, y=y)
        if known is not None:
            self._cache.clear()  # handed out once, so that no graph is backpropagated twice
            return known[2]
        self._check(x, self.event_shape)
        with hold_statistics():
            return self.forward_and_log_det(x)[1]

    def forward_shape(self, shape: Sequence[int]) -> Size:
        return self._batch_shape(shape_of(type(self).__name__, shape), self.event_shape) + self.output_shape

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return self._batch_shape(shape_of(type(self).__name__, shape), self.output_shape) + self.event_shape

    def with_cache(self, cache_size: int = 1) -> Bijection:
        """Returns a bijection with these parameters that remembers its last result (1) or does not (0)."""
        if zero_or_one("cache_size", cache_size) == self._cache_size:
            return self
        other = copy.copy(self)  # with a cache of its own
        other._cache_size = cache_size
        return other

    @property
    def sign(self) -> int:  # torch raises NotImplementedError, at which torch.jit.trace stops
        raise AttributeError(f"{type(self).__name__} is no monotone map of numbers and has no sign.")

    def clear_cache(self) -> None:
        """Forgets the last results of this bijection and of all its parts."""
        for module in self.modules():
            if isinstance(module, Bijection):
                module._cache.clear()

    def condition(self, context: Tensor) -> Bijection:
        """Fixes the context, of shape (\\*batch, \\*context_shape); batch dimensions broadcast.

        A bijection that takes none ignores it here, as Pyro's own transforms do: ``ConditionalTransformedDistribution``
        conditions every transform of a list. A :class:`~pyro_realnvp.Flow` without any use for a context refuses it.
        """
        return Conditioned(self, context) if self.is_conditional else self

    @property
    def inv(self) -> Bijection:
        # Held weakly: two modules that register each other make state_dict() recurse for ever.
        inverse = None if self._inv is None else self._inv()  # type: ignore[call-arg]
        if inverse is None:
            inverse = Inverse(self)
            if not torch.compiler.is_compiling():  # Dynamo cannot set a weak reference as an attribute
                self._inv = weakref.ref(inverse)  # type: ignore[assignment]
        return inverse

    def _context_batch_shape(self, context: Tensor) -> Size:
        """Returns the batch dimensions of a context; an error if it does not end in ``context_shape``."""
        return Size() if self.context_shape is None else self._leading(context.shape, self.context_shape, "a context")

    def _batch_shape(self, shape: Sequence[int], event_shape: Size) -> Size:
        """Returns the batch dimensions of events; an error if the shape does not end in ``event_shape``."""
        return self._leading(shape, event_shape, "events")

    def _leading(self, shape: Sequence[int], trailing: Size, expected: str) -> Size:
        cut = len(shape) - len(trailing)
        if cut < 0 or tuple(shape[cut:]) != tuple(trailing):
            raise ValueError(
                f"{type(self).__name__} expects {expected} of shape {tuple(trailing)}, "
                f"but got a tensor of shape {tuple(shape)}."
            )
        return Size(shape[:cut])

    def _check(self, value: Tensor, event_shape: Size) -> None:
        """Raises a ValueError unless the values are floating point events of this shape."""
        check_floating(type(self).__name__, "events", value)
        self._batch_shape(value.shape, event_shape)
        check_dtype(self, "values", value)

    def _per_event(self, log_det: Tensor, x: Tensor) -> Tensor:
        """Expands a log-determinant that is equal for all events to the batch shape of x."""
        return log_det.expand(x.shape[: x.dim() - len(self.event_shape)])

    def _remember(self, argument: Tensor, result: Tensor, log_det: Tensor, *, forward: bool) -> None:
        if self._cache_size and not torch.compiler.is_compiling():
            self._cache.store(self, argument, result, log_det if forward else -log_det, forward=forward)

    def _apply(self, fn: Any, recurse: bool = True) -> Bijection:
        self._cache.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inv": None, "_cache": Cache()}

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def extra_repr(self) -> str:
        shape = str(tuple(self.event_shape))
        return shape if self.event_shape == self.output_shape else f"{shape} -> {tuple(self.output_shape)}"


class Inverse(Bijection):
    """The inverse of a bijection, as a Module that keeps its parameters (under ``bijection.`` in the state).

        y = f^-1(x),   log|det dy/dx| = -log|det df(y)/dy|

    Made by :attr:`Bijection.inv`, and ``f.inv.inv is f``.

    Example:
        >>> f = FixedAffine(torch.ones(2), torch.tensor([2.0, 4.0]))
        >>> f.inv.forward_and_log_det(torch.tensor([3.0, 5.0]))[0], f.inv.inv is f
        (tensor([1., 1.]), True)
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(bijection.output_shape, bijection.event_shape, cache_size=bijection._cache_size)
        self.bijection = bijection

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        return self.bijection.domain if output else self.bijection.codomain

    @property
    def inv(self) -> Bijection:
        return self.bijection

    @property
    def rearranges(self) -> bool:  # type: ignore[override]
        return self.bijection.rearranges

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.bijection._inv is None:  # that of a deep copy: g.inv.inv is g there too
            self.bijection._inv = weakref.ref(self)  # type: ignore[assignment]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(y, context)

    def __call__(self, x: Tensor) -> Tensor:
        return self.bijection._inv_call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self.bijection(y)

    def _call(self, x: Tensor) -> Tensor:
        return self.bijection._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.bijection._call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.bijection.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        return self.bijection.inverse_shape(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return self.bijection.forward_shape(shape)

    def with_cache(self, cache_size: int = 1) -> Bijection:
        return self.bijection.with_cache(cache_size).inv

    def condition(self, context: Tensor) -> Bijection:
        return self.bijection.condition(context).inv


class Composite(Bijection):
    """Base class of bijections made of others: a subclass writes both directions as one method."""

    @abstractmethod
    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Maps x to y or, if ``inverse``, y to x, and returns its log-determinant."""

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._compute(x, context, inverse=False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._compute(y, context, inverse=True)


def compute(bijection: Bijection, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Passes x through a bijection or, if ``inverse``, through its inverse; returns the log-determinant of that."""
    return (bijection.inverse_and_log_det if inverse else bijection.forward_and_log_det)(x, context)


class Conditioned(Composite):
    """A bijection with its context fixed: f(.; context), which takes no further context.

    Made by :meth:`Bijection.condition`. Batch dimensions of the context broadcast against those of the values, and in
    :meth:`forward_shape`, so that a base distribution is expanded to one event per context.

    Raises:
        ValueError: if the context does not end in the bijection's ``context_shape``.

    Example:
        >>> f = Elementwise((1,), Affine(), MLP(0, 2, context_shape=3)).condition(torch.zeros(4, 3))
        >>> f.is_conditional, f(torch.zeros(1)).shape  # one event for each of four contexts
        (False, torch.Size([4, 1]))
    """

    context: Tensor

    def __init__(self, bijection: Bijection, context: Tensor) -> None:
        super().__init__(bijection.event_shape, bijection.output_shape, cache_size=bijection._cache_size)
        self.bijection = bijection
        check_context(type(bijection).__name__, context)
        check_dtype(bijection, "a context", context)
        self.register_buffer("context", context, persistent=False)
        self.context_batch = bijection._context_batch_shape(context)

    @property
    def context_shape(self) -> Size | None:
        return None

    @property
    def is_conditional(self) -> bool:
        return False

    def _constraint(self, *, output: bool) -> constraints.Constraint:
        return self.bijection.codomain if output else self.bijection.domain

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        event_shape = self.output_shape if inverse else self.event_shape
        shape = self._batch_shape(x.shape, event_shape) + event_shape
        return compute(self.bijection, x if x.shape == shape else x.expand(shape), self.context, inverse=inverse)

    def _batch_shape(self, shape: Sequence[int], event_shape: Size) -> Size:
        batch = super()._batch_shape(shape, event_shape)
        return check_broadcast(batch, self.context_batch)
