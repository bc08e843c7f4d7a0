"""Lifted transforms: their supports are finite, and they do not lose the parameters of Modules elsewhere."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, ExpTransform, Transform, constraints

from pyro_realnvp import Chain, Flow, Lift, StandardNormal, nice_transforms, realnvp_transforms

from zoo import mlp, resnet


class Shift(Transform):
    """y = x + f(), where f is any callable; no Module, so that nobody sees what f holds."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, f):
        super().__init__()
        self.f = f

    def _call(self, x):
        return x + self.f()

    def _inverse(self, y):
        return y - self.f()

    def log_abs_det_jacobian(self, x, y):
        return x.new_zeros(x.shape[:-1])


class Holder:
    """An object that is no Module and has a method which uses one."""

    def __init__(self, module):
        self.module = module

    def shift(self):
        return apply(self.module)


def apply(module):
    return module(torch.ones(1))


def closure(module):
    return Shift(lambda: apply(module))


def nested_closure(module):
    def outer():
        return inner()

    def inner():
        return module(torch.ones(1))

    return Shift(outer)


def bound(module):
    return Shift(partial(module.forward, torch.ones(1)))


HIDDEN = {
    "closure": closure,
    "closure-in-a-closure": nested_closure,
    "partial": lambda module: Shift(partial(apply, module)),
    "partial-of-keywords": lambda module: Shift(partial(apply, module=module)),
    "bound-method": bound,
    "method-of-an-object": lambda module: Shift(Holder(module).shift),
}
every = pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize(
    "make",
    [partial(nice_transforms, couplings=2, net=mlp), partial(realnvp_transforms, scales=1, net=resnet)],
    ids=["nice", "realnvp"],
)
def test_images_that_are_not_finite_are_outside_of_the_support(make, bad):
    shape = (1, 4, 4)
    flow = Flow(StandardNormal(shape), make(shape)).eval()
    x = torch.randn(3, *shape)
    x[1, 0, 2, 3] = bad
    with pytest.raises(ValueError, match=f"support.*{bad}"):
        flow(x)
    with pytest.raises(ValueError, match="support"):
        flow.distribution().log_prob(x)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_lifted_transforms_have_finite_supports(bad):
    flow = Flow(StandardNormal(2), [AffineTransform(1.0, 2.0)])
    with pytest.raises(ValueError, match="support"):
        flow(torch.tensor([0.0, bad]))
    assert not bool(Lift(AffineTransform(1.0, 2.0), (2,)).codomain.check(torch.tensor([0.0, bad])))
    assert bool(Lift(ExpTransform(), (2,)).codomain.check(torch.tensor([0.5, 1.0])))


@every
def test_a_lift_with_an_owner_registers_its_parameters(hide):
    module = nn.Linear(1, 2)
    lift = Lift(hide(module), (2,), owner=module)
    assert {id(parameter) for parameter in lift.parameters()} == {id(parameter) for parameter in module.parameters()}
    flow = Flow(StandardNormal(2), [lift])
    assert len(list(flow.parameters())) == 2
    x = torch.randn(3, 2)
    torch.testing.assert_close(flow(x), flow.base().log_prob(x - apply(module)))
    flow(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@every
def test_a_lift_with_an_owner_sees_its_parameters_change(hide):
    module = nn.Linear(1, 2)
    lift = Lift(hide(module), (2,), owner=module)
    x = torch.randn(3, 2)
    before = lift(x)
    with torch.no_grad():
        module.bias.add_(1)
    torch.testing.assert_close(lift(x), before + 1)


@every
def test_a_lift_without_the_owner_of_its_parameters_asks_for_it(hide):
    with pytest.raises(ValueError, match="owner="):
        Lift(hide(nn.Linear(1, 2)), (2,))
    with pytest.raises(ValueError, match="owner="):
        Chain([hide(nn.Linear(1, 2))], (2,))


def test_a_lift_of_a_transform_without_parameters_needs_no_owner():
    for f in (lambda: torch.ones(2), partial(torch.ones, 2)):
        lift = Lift(Shift(f), (2,))
        torch.testing.assert_close(lift(torch.zeros(3, 2)), torch.ones(3, 2))
        assert not list(lift.parameters())
