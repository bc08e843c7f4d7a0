"""What the fuzzed properties draw from, and what every outcome of a call is held to."""

import copy
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import pyro_realnvp
from pyro_realnvp import (
    DiagonalNormal,
    Flow,
    Logit,
    MixtureBase,
    StandardLogistic,
    StandardNormal,
    StudentTBase,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import LAWS, randomize

from zoo import alone, calm, mlp, prime, resnet, small_flowpp, small_glow

# Values that make no sense for one argument or another. Sizes that are huge are refused; none of these takes memory.
WRONG = st.sampled_from(
    [
        *(None, "a", "", b"a", -1, 0, 1.5, -1.5, math.nan, math.inf, 1e300, True, False, 1j, 2**31, 10**30, -(10**30)),
        *((), [], (2, 0), (-1,), (1.5,), ("a",), (None,), ((1, 2),), (2, 2, 2, 2), (10**30,), {}, {"a": 1}, {1, 2}),
        *(object(), int, nn.ReLU, torch.tanh, len, nn.ReLU(), nn.Linear(1, 1)),
        *(torch.zeros(()), torch.tensor(2), torch.zeros(2), torch.zeros(0), torch.ones(2, 2).bool(), torch.tensor(1j)),
        *(np.int64(2), np.float32(0.5), np.zeros(2), np.array([1, 2])),
    ]
)
# Without networks: one that does not take what it is given raises its own error.
WRONG_PARTS = WRONG.filter(lambda value: not isinstance(value, nn.Module))
COUNTS = st.integers(1, 3)
CONTEXTS = st.sampled_from([None, 0, 1, 2, (2,), (1, 4, 4), (1, 2, 2), (2, 2), ()])
FLAGS = st.booleans()


class Case(NamedTuple):
    """A function or class, strategies of values that make sense for its arguments, and one of values that do not."""

    function: Callable[..., Any]
    required: Mapping[str, st.SearchStrategy[Any]]
    optional: Mapping[str, st.SearchStrategy[Any]]
    wrong: st.SearchStrategy[Any]


def case(function, required=(), wrong=WRONG, **optional):
    """A Case; ``required`` are the names of the arguments that every call gives."""
    return Case(function, {name: optional.pop(name) for name in required}, optional, wrong)


@st.composite
def calls(draw, cases: Mapping[str, Case]):
    """Draws a function and its arguments, among which there is a wrong one in every other call."""
    function, required, optional, wrong = cases[draw(st.sampled_from(sorted(cases)))]
    arguments = {name: draw(values) for name, values in required.items()}
    arguments |= {name: draw(values) for name, values in optional.items() if draw(FLAGS)}
    if draw(FLAGS):
        arguments[draw(st.sampled_from(sorted({**required, **optional})))] = draw(wrong)
    return function, arguments


def outcome(call, *names):
    """Returns the result of a call, or None if it is refused in one sentence that names what is wrong."""
    torch.manual_seed(0)
    try:
        return call()
    except (ValueError, TypeError) as error:
        message = str(error)
        assert re.fullmatch(r"\S.*\.", message), f"{message!r} is not one sentence"  # no line breaks
        named = {*re.findall(r"\w+", message)}
        assert named & {*pyro_realnvp.__all__, *names}, f"{message!r} names none of {names}"
        return None


def made(call):
    """Returns what a drawn call makes, or None if it is refused in one sentence."""
    function, arguments = call
    return outcome(lambda: function(**arguments), function.__name__, *arguments)


def follows_the_laws(bijection):
    """Asserts shapes, round trips, log-determinants, and that events in a batch are mapped as alone."""
    bijection = calm(prime(copy.deepcopy(bijection)))
    x = torch.rand(2, *bijection.event_shape)
    conditioned = bijection
    if bijection.is_conditional:
        conditioned = bijection.condition(torch.zeros(bijection.context_shape))
    if outcome(lambda: conditioned.eval()(x)) is None:  # a network that does not fit shows in a call alone
        return
    y = conditioned(x)
    assert y.shape == (2, *bijection.output_shape)
    assert y.isfinite().all()
    checked = calm_parameters(copy.deepcopy(bijection).double())
    context = None if checked.context_shape is None else torch.randn(checked.context_shape, dtype=torch.float64)
    for law in ("round_trip", "jacobian", "batch_shapes", "dtypes"):
        LAWS[law](checked, context)


@torch.no_grad()
def calm_parameters(module):
    """Gives every parameter small random values, with which any composition of layers is well-conditioned."""
    randomize(module)
    for parameter in module.parameters():
        parameter.mul_(0.3)
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------

BATCHES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
LAYOUTS = st.sampled_from(["plain", "transposed", "strided", "expanded", "channels_last", "offset"])
DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
NO_TENSORS = st.sampled_from([None, 1.0, 1, "x", [[0.5, 0.5]], (0.5, 0.5), np.zeros((2, 3), np.float32), object(), {}])


def laid_out(x, layout):
    """A tensor equal to x, or to its first part where it is expanded, that lies otherwise in memory."""
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and x.dim():
        return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    if layout == "expanded" and x.dim() and len(x):
        return x[:1].expand_as(x)
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        return torch.cat([x.flatten(), x.flatten()])[x.numel() :].view(x.shape)
    return x


def values(shape, dtype, layout="plain"):
    """A tensor of values between 0 and 1, which lie in the support of every flow here."""
    torch.manual_seed(0)
    return laid_out((0.01 + 0.98 * torch.rand(shape, dtype=torch.float64)).to(dtype), layout)


@st.composite
def shapes_near(draw, event_shape):
    """Draws a batch shape and behind it the event shape, or one that differs from it."""
    batch, event = draw(BATCHES), list(event_shape)
    change = draw(st.sampled_from(["none", "none", "longer", "shorter", "other", "reversed"]))
    if change == "longer":
        event.append(draw(st.integers(0, 3)))
    elif change == "shorter":
        event.pop(0)
    elif change == "other":
        event[draw(st.integers(0, len(event) - 1))] = draw(st.integers(0, 5))
    elif change == "reversed":
        event.reverse()
    return (*batch, *event)


# ---------------------------------------------------------------------------------------------------------------------
# Flows
# ---------------------------------------------------------------------------------------------------------------------

_IMAGE = (1, 4, 4)
FLOWS = {
    "realnvp": lambda: Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp)),
    "realnvp-1": lambda: Flow(StandardNormal(1), alone(realnvp_transforms)),
    "realnvp-image": lambda: Flow(StandardNormal(_IMAGE), realnvp_transforms(_IMAGE, net=resnet)),
    "realnvp-pixels": lambda: Flow(
        StandardNormal(_IMAGE), [*realnvp_transforms(_IMAGE, scales=1, net=resnet, packed=True), Logit(0.05).inv]
    ),
    "nice": lambda: Flow(StandardLogistic((1, 2, 3)), nice_transforms((1, 2, 3), couplings=2, net=mlp)),
    "glow": lambda: Flow(DiagonalNormal(_IMAGE), small_glow(_IMAGE, levels=1)),
    "flowpp": lambda: Flow(StandardNormal(_IMAGE), small_flowpp(_IMAGE)),
    "student": lambda: Flow(StudentTBase(3, df=2.0), realnvp_transforms(3, couplings=2, net=mlp)),
    "mixture": lambda: Flow(MixtureBase(_IMAGE, 3), realnvp_transforms(_IMAGE, net=resnet)),
}
CONDITIONAL = {
    "vector": lambda: Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp, context_dim=2)),
    "base": lambda: Flow(DiagonalNormal(3, context_dim=2), realnvp_transforms(3, couplings=2, net=mlp)),
    "both": lambda: Flow(DiagonalNormal(3, context_dim=2), realnvp_transforms(3, couplings=2, net=mlp, context_dim=2)),
    "image": lambda: Flow(StandardNormal(_IMAGE), realnvp_transforms(_IMAGE, net=resnet, context_dim=2)),
    "map": lambda: Flow(StandardNormal(_IMAGE), small_glow(_IMAGE, levels=1, context_shape=(2, 4, 4))),
    "student-context": lambda: Flow(
        StudentTBase(3, context_dim=2), realnvp_transforms(3, couplings=2, net=mlp, context_dim=2)
    ),
    "mixture-context": lambda: Flow(MixtureBase(3, 2, context_dim=2), realnvp_transforms(3, couplings=2, net=mlp)),
    "flowpp-map": lambda: Flow(StandardNormal(_IMAGE), small_flowpp(_IMAGE, context_shape=(2, 4, 4))),
}


@cache
def flow_of(name, dtype):
    """The flow of that name with random parameters, in evaluation mode; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = calm(prime({**FLOWS, **CONDITIONAL}[name]()))
        randomize(flow)
        return flow.to(dtype).eval()


def context_shape_of(flow):
    """Shape of the context of a conditional flow."""
    return flow.base.context_shape or flow.transforms.context_shape


def close(got, want):
    """Asserts that two results are equal up to rounding."""
    tolerance = 1e-8 if want.dtype == torch.float64 else 2e-3
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
