"""Checks that a layer of your own obeys the laws of a bijection: ``check_bijection(MyLayer((2,)))``."""

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of
from torch.distributions import biject_to, constraints

from .bijections.bijection import Bijection


def check_bijection(
    bijection: Bijection,
    *,
    context: Tensor | None = None,
    laws: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Checks the laws of a bijection, on a copy in float64 and evaluation mode with random parameters.

    Args:
        bijection: it is not changed. Buffers that hold statistics should be away from their start.
        context: one context of shape ``context_shape``; drawn where it is needed and not given.
        laws: names of the laws to check, keys of ``LAWS``; all by default.
        seed: of all random numbers.
        device: where to compute.

    Raises:
        AssertionError: if a law does not hold; the message says which and by how much.

    Example:
        >>> from pyro_realnvp.testing import check_bijection
        >>> class Wrong(Bijection):
        ...     def forward_and_log_det(self, x, context=None):
        ...         return 2 * x, x.new_zeros(x.shape[:-1])  # without log 2
        ...     def inverse_and_log_det(self, y, context=None):
        ...         return y / 2, y.new_zeros(y.shape[:-1])
        >>> check_bijection(Wrong((1,)))
        Traceback (most recent call last):
        AssertionError: log-determinant of forward against autodiff: the error is 6.93e-01, more than 1e-10.
    """
    if not isinstance(bijection, Bijection):
        raise ValueError(
            f"check_bijection needs a Bijection, but got {type(bijection).__name__}; put a transformer or a network "
            f"into a coupling."
        )
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        checked = copy.deepcopy(bijection).to(device, torch.float64).eval()
        randomize(checked)
        if context is None and checked.context_shape is not None:
            context = torch.randn(checked.context_shape)
        context = None if context is None else context.to(device, torch.float64)
        for law in LAWS if laws is None else laws:
            LAWS[law](checked, context)


@torch.no_grad()
def randomize(bijection: torch.nn.Module) -> None:
    """Gives every parameter small random values, so that a layer that starts as the identity no longer is.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> f = Chain(realnvp_transforms(2))
        >>> x = torch.randn(5, 2)
        >>> identity = torch.allclose(f(x), x)
        >>> randomize(f)
        >>> identity, torch.allclose(f(x), x)
        (True, False)
    """
    for parameter in bijection.parameters():
        spread = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        parameter.copy_(spread * torch.randn(parameter.shape, dtype=parameter.dtype))


def draw(bijection: Bijection, batch: Sequence[int] = (), *, output: bool = False) -> Tensor:
    """Draws a random x (\\*batch, \\*event_shape) in the domain, or y (\\*batch, \\*output_shape) in the codomain.

    Example:
        >>> from pyro_realnvp.testing import draw
        >>> x = draw(Logit(0.05), (1000,))
        >>> x.shape, bool(Logit(0.05).domain.check(x).all())
        (torch.Size([1000]), True)
    """
    constraint: constraints.Constraint = bijection.codomain if output else bijection.domain
    shape = (*batch, *(bijection.output_shape if output else bijection.event_shape))
    like = next((t for t in (*bijection.parameters(), *bijection.buffers())), torch.empty(()))
    return biject_to(constraint)(torch.randn(shape, dtype=torch.float64).to(like.device))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    _require(got.shape == want.shape, f"{what}: the shape is {tuple(got.shape)} instead of {tuple(want.shape)}.")
    error = ((got - want).abs() / want.abs().clamp(min=1)).max().item() if got.numel() else 0.0
    _require(error <= tolerance, f"{what}: the error is {error:.2e}, more than {tolerance:.0e}.")


def _loss(f: Bijection, x: Tensor) -> Tensor:
    y = f(x)
    return y.sin().sum() + f.log_abs_det_jacobian(x, y).cos().sum()


def _conditioned(f: Bijection, context: Tensor | None) -> Bijection:
    return f if context is None else f.condition(context)


def _directions(f: Bijection, context: Tensor | None = None) -> list[tuple[str, Bijection, bool]]:
    f = _conditioned(f, context)
    return [("forward", f, False), ("inverse", f.inv, True)]  # name, bijection, whether its argument is an output of f


def round_trip(f: Bijection, context: Tensor | None) -> None:
    _require(f.inv.inv is f, "The inverse of the inverse must be the bijection itself.")
    for name, g, output in _directions(f):
        x = draw(f, (5,), output=output)
        y, log_det = g.forward_and_log_det(x.clone(), context)
        back, inverse_log_det = g.inverse_and_log_det(y.clone(), context)
        _close(back, x, 1e-9, f"{name}, then back")
        _close(inverse_log_det, -log_det, 1e-9, f"log-determinant of the way back from {name}")


def jacobian(f: Bijection, context: Tensor | None) -> None:
    for name, g, output in _directions(f):
        x = draw(f, output=output)
        log_det = g.forward_and_log_det(x, context)[1]
        function = partial(g.forward_and_log_det, context=context)
        matrix = jacobian_of(lambda x, function=function: function(x)[0], x).reshape(x.numel(), x.numel())
        _close(log_det, torch.linalg.slogdet(matrix)[1], 1e-10, f"log-determinant of {name} against autodiff")


def batch_shapes(f: Bijection, context: Tensor | None) -> None:
    for name, g, output in _directions(f, context):
        for batch in ((), (3,), (2, 3), (0,)):
            x = draw(f, batch, output=output)
            y = g(x)
            log_det = g.log_abs_det_jacobian(x, y)
            what = f"{name} of batch shape {batch}"
            _require(g.forward_shape(x.shape) == y.shape, f"{what}: forward_shape does not give the shape of y.")
            _require(g.inverse_shape(y.shape) == x.shape, f"{what}: inverse_shape does not give the shape of x.")
            _require(tuple(log_det.shape) == batch, f"{what}: the log-determinant has shape {tuple(log_det.shape)}.")
            for index in range(batch[0] if batch else 0):
                one = x[index].clone()
                made = g(one)
                _close(made, y[index], 1e-9, f"{what}: events alone and in the batch")
                _close(g.log_abs_det_jacobian(one, made), log_det[index], 1e-9, f"{what}: log-determinants alone")


def cache(f: Bijection, context: Tensor | None) -> None:
    f = _conditioned(f, context)
    for name, g, output in _directions(f):
        values = []
        for cache_size in (0, 1):
            h = (f.inv if output else f).with_cache(cache_size)
            torch.manual_seed(1)
            x = draw(f, (4,), output=output).requires_grad_()
            loss = _loss(h, x)
            values.append([loss, *torch.autograd.grad(loss, [x, *f.parameters()], materialize_grads=True)])
        for without, with_cache in zip(*values, strict=True):
            _close(with_cache, without, 1e-8, f"{name}: values and gradients with the cache and without")
        x = draw(f, (4,), output=output)
        y = g(x)
        _close(g.inv(y.clone()), x, 1e-9, f"{name}: the inverse of a copy of the output")
        with torch.no_grad():
            for parameter in f.parameters():
                parameter.mul_(0.5)
        _close(g(x), g(x.clone()), 1e-12, f"{name} of the same tensor after the parameters have changed")


def gradients(f: Bijection, context: Tensor | None) -> None:
    named = dict(f.named_parameters())
    for name, g, output in _directions(f, context) if named else []:
        found = torch.autograd.grad(_loss(g, draw(f, (16,), output=output)), list(named.values()), allow_unused=True)
        for key, gradient in zip(named, found, strict=True):
            reached = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
            _require(reached, f"{name}: the gradient of {key} is missing, zero everywhere, or not finite.")


def contexts(f: Bijection, context: Tensor | None) -> None:
    if context is None:
        return
    x = draw(f, (3,))
    several = torch.stack([context, context + 1, context - 1])
    y = f.condition(several)(x.clone())
    for index in range(3):
        _close(y[index], f.forward_and_log_det(x[index], several[index])[0], 1e-9, "a batch of contexts")
    _close(f.inv.condition(several)(y.clone()), x, 1e-9, "the inverse, conditioned")
    _require(not y[0].equal(f.condition(context + 1)(x[0].clone())), "Another context must give another result.")
    for wrong in (None, context[:-1]):
        try:
            f.forward_and_log_det(x, wrong)
        except ValueError:
            continue
        raise AssertionError("A context that is missing or has the wrong shape must raise a ValueError.")


def copies(f: Bijection, context: Tensor | None) -> None:
    def copied() -> list[Bijection]:
        return [copy.deepcopy(f), pickle.loads(pickle.dumps(f)), copy.deepcopy(f.inv).inv]

    others = copied()
    x = draw(f, (3,)).requires_grad_()
    y = _conditioned(f, context)(x)  # kept alive, and with it what f remembers, while f is copied again
    others += copied()
    loaded = copy.deepcopy(f)
    randomize(loaded)
    loaded.load_state_dict(f.state_dict())
    for other in (*others, loaded):
        _close(_conditioned(other, context)(x), y, 1e-12, "a copy by deepcopy, pickle or state_dict")


def dtypes(f: Bijection, context: Tensor | None) -> None:
    for name, g, output in _directions(copy.deepcopy(f).float(), None if context is None else context.float()):
        y, log_det = g.forward_and_log_det(draw(f, (3,), output=output).float())
        found = {y.dtype, log_det.dtype}
        _require(found == {torch.float32}, f"{name} of float32 must be float32 throughout, but got {found}.")


LAWS: dict[str, Callable[[Bijection, Tensor | None], None]] = {
    law.__name__: law for law in (round_trip, jacobian, batch_shapes, cache, gradients, contexts, copies, dtypes)
}
