"""Steps that are not finite: left out, counted, and explained."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

from pyro_realnvp import MLP, AutoRealNVP, FiniteELBO, realnvp_transforms

quick = partial(AutoRealNVP, transforms=partial(realnvp_transforms, couplings=2, net=partial(MLP, hidden=(8,))))
pytestmark = pytest.mark.filterwarnings("ignore:Encountered", "ignore:.*parameters? .*nan", "ignore:.*log_prob")


class Faulty:
    """A model whose site "bad" is not finite in the runs that it is told to spoil."""

    def __init__(self, value: float = math.nan) -> None:
        self.spoil, self.value = False, value

    def __call__(self) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        pyro.sample("fine", dist.Normal(a, b), obs=torch.tensor(1.0))
        pyro.factor("bad", a * self.value if self.spoil else a)


def parameters(guide: torch.nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in guide.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [AutoNormal, partial(quick, init_scale=0.1)])
def test_a_step_that_is_not_finite_leaves_the_parameters(make: Any, value: float) -> None:
    model = Faulty(value)
    guide = make(model)
    elbo = FiniteELBO(Trace_ELBO(4, vectorize_particles=True))
    svi = SVI(model, guide, ClippedAdam({"lr": 0.1}), elbo)
    for _ in range(2):
        svi.step()
    before = parameters(guide)
    model.spoil = True
    for _ in range(2):
        assert not math.isfinite(svi.step())
    assert same(parameters(guide), before)
    assert (elbo.steps, elbo.skipped) == (4, 2)
    model.spoil = False
    assert math.isfinite(svi.step())
    assert not same(parameters(guide), before)
    model.spoil = True
    before = parameters(guide)
    for _ in range(2):
        svi.step()
    with pytest.raises(FloatingPointError, match=r"number 8.*'bad' is not finite.*learning rate"):
        svi.step()
    assert same(parameters(guide), before)


@pytest.mark.parametrize("bound", [Trace_ELBO, TraceGraph_ELBO])
def test_the_message_names_the_step_the_site_and_remedies(bound: Any) -> None:
    """Where the site is a latent whose draws have overflowed, and Pyro itself would raise an error about them."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(100.0, 1.0))
        pyro.sample("overflow", dist.Normal(0.0, (20 * x).exp()), obs=torch.tensor(1.0))

    guide = quick(model, init_scale=0.1)
    svi = SVI(model, guide, Adam({"lr": 0.01}), FiniteELBO(bound(), patience=1))
    with pytest.raises(FloatingPointError, match=r"number 1,.*'overflow' is not finite.*init_loc_fn"):
        svi.step()


def test_a_gradient_that_is_not_finite() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("root", torch.where(a > -math.inf, 0.0, (-a.abs()).sqrt()))

    guide = AutoNormal(model)
    elbo = FiniteELBO(Trace_ELBO(), patience=2)
    svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
    assert math.isfinite(svi.step())
    with pytest.raises(FloatingPointError, match=r"gradient of 'AutoNormal.locs.a'"):
        svi.step()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated", "ignore:.*Found vars in guide but not model")
@pytest.mark.parametrize(
    "bound",
    [
        Trace_ELBO(3),
        Trace_ELBO(3, vectorize_particles=True),
        JitTrace_ELBO(ignore_jit_warnings=True),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=3),
    ],
    ids=lambda bound: type(bound).__name__,
)
def test_every_bound(bound: Any) -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0, validate_args=False), obs=y)

    guide = quick(model, init_scale=0.1)
    svi = SVI(model, guide, Adam({"lr": 0.1}), FiniteELBO(bound))
    svi.step(torch.tensor(1.0))
    before = parameters(guide)
    for _ in range(2):
        assert not math.isfinite(svi.step(torch.tensor(math.nan)))
    assert same(parameters(guide), before)
    assert math.isfinite(svi.step(torch.tensor(1.0)))
    assert not same(parameters(guide), before)


def test_in_a_loop_of_ones_own() -> None:
    model = Faulty()
    guide = quick(model, init_scale=0.1)
    guide()
    elbo = FiniteELBO(Trace_ELBO(4, vectorize_particles=True))
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    states = []
    for model.spoil in (False, True, False):
        before = parameters(guide)
        elbo.loss_and_grads(model, guide)
        optimizer.step()
        optimizer.zero_grad()
        states.append(same(before, parameters(guide)))
    assert states == [False, True, False]


def test_other_errors_pass() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        FiniteELBO(Trace_ELBO()).loss_and_grads(model, lambda: None)


def test_a_finite_step_is_that_of_the_bound() -> None:
    model = Faulty()
    found = []
    for wrap in (FiniteELBO, lambda elbo: elbo):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, AutoNormal(model), Adam({"lr": 0.01}), wrap(Trace_ELBO(3)))
        found.append([svi.step() for _ in range(4)] + [svi.evaluate_loss()])
    assert found[0] == found[1]


@pytest.mark.parametrize("patience", [0, -1])
def test_patience(patience: int) -> None:
    with pytest.raises(ValueError, match=f"patience.*{patience}"):
        FiniteELBO(Trace_ELBO(), patience=patience)
