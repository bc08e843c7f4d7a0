"""The laws of a bijection, for every component and every builder."""

import copy
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from pyro import distributions as dist
from torch import nn

from pyro_realnvp import MLP, BatchNorm, Bijection, Chain, nice_transforms, realnvp_transforms
from pyro_realnvp.testing import LAWS, check_bijection, draw, randomize

from zoo import ZOO, Sinh, component, mlp, prime, split

# Lift adds nothing to these two: Pyro's networks reshape empty batches to -1, and its caches hold non-leaf tensors.
PYROS_OWN = {("batch_shapes", "lift-pyro"), ("batch_shapes", "lift-pyro-conditional"), ("copies", "lift-pyro")}


@pytest.mark.parametrize(("law", "name"), [(law, name) for law in LAWS for name in ZOO if (law, name) not in PYROS_OWN])
def test_law(law, name, device):
    check_bijection(component(name), laws=[law], device=device)


def test_every_component_is_a_pyro_transform_of_events_of_its_shapes():
    for name in ZOO:
        f = component(name)
        assert isinstance(f, Bijection), name
        assert isinstance(f, dist.TransformModule), name
        assert isinstance(f, dist.conditional.ConditionalTransform), name
        assert f.bijective, name
        assert f.domain.event_dim == len(f.event_shape), name
        assert f.codomain.event_dim == len(f.output_shape), name


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's own, in attention on the CPU
@pytest.mark.parametrize("name", ZOO)
def test_vmap_maps_each_event_as_a_batch_does(name, device):
    f = copy.deepcopy(component(name)).to(device).eval()
    if f.context_shape is not None:
        f = f.condition(torch.randn(f.context_shape).to(device))
    x = draw(f, (3,)).float()
    y = f(x)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    torch.testing.assert_close(
        torch.func.vmap(f.log_abs_det_jacobian)(x, y), f.log_abs_det_jacobian(x, y), atol=1e-4, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in jacfwd
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_function_transforms_see_through_the_memo(mode, device):
    f = split((3,)).double().to(device)
    randomize(f)
    x = torch.randn(3, dtype=torch.float64, device=device)
    y = f(x)  # remembered for this very x; what differentiates through it must not get the constant
    jacobian = (torch.func.jacfwd if mode == "forward" else torch.func.jacrev)(f)(x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], f.log_abs_det_jacobian(x, y))


def two_dimensional():
    yield "realnvp", realnvp_transforms(2, couplings=4, net=mlp)
    yield "nice", nice_transforms(2, net=mlp)
    yield "batchnorm", [split((2,)).inv, prime(BatchNorm((2,))).inv, split((2,), swap=True).inv]
    yield "own layer", [Sinh(2).inv]


@pytest.mark.parametrize(("name", "transforms"), list(two_dimensional()))
def test_density_integrates_to_one(name, transforms, device):
    transforms = nn.ModuleList(transforms).double().to(device).eval()
    torch.manual_seed(0)
    randomize(transforms)
    zeros = torch.zeros(2, dtype=torch.float64, device=device)
    flow = dist.TransformedDistribution(dist.Normal(zeros, 1).to_event(1), list(transforms))
    # x = sinh(t) reaches far with a fine grid in the middle: dx = cosh(t) dt.
    t = torch.linspace(-6, 6, 801, dtype=torch.float64, device=device)
    grid = torch.cartesian_prod(t, t)
    with torch.no_grad():
        integrand = (flow.log_prob(grid.sinh()) + grid.cosh().log().sum(-1)).exp()
    assert integrand.sum().item() * (t[1] - t[0]).item() ** 2 == pytest.approx(1, abs=1e-3)


class Wrong(Bijection):
    """Consistent in both directions, with the wrong log-determinant: what a round trip cannot find."""

    def __init__(self):
        super().__init__((2,))
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward_and_log_det(self, x, context=None):
        return x * self.log_scale.exp(), 2 * self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y * (-self.log_scale).exp(), -2 * self.log_scale.sum().expand(y.shape[:-1])


class NotInverse(Wrong):
    def forward_and_log_det(self, x, context=None):
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y, -self.log_scale.sum().expand(y.shape[:-1])


class Unreached(Wrong):
    def forward_and_log_det(self, x, context=None):
        return x, 0 * self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y, 0 * self.log_scale.sum().expand(y.shape[:-1])


class BadShape(Wrong):
    def forward_and_log_det(self, x, context=None):
        return x * self.log_scale.exp(), self.log_scale.sum()

    def inverse_and_log_det(self, y, context=None):
        return y * (-self.log_scale).exp(), -self.log_scale.sum()


class Doubling(Wrong):
    def forward_and_log_det(self, x, context=None):
        return (x * self.log_scale.exp()).double(), self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return (y * (-self.log_scale).exp()).double(), -self.log_scale.sum().expand(y.shape[:-1])


@pytest.mark.parametrize(
    ("law", "layer", "message"),
    [
        ("jacobian", Wrong, "against autodiff"),
        ("round_trip", NotInverse, "then back"),
        ("gradients", Unreached, "gradient of log_scale"),
        ("batch_shapes", BadShape, "log-determinant has shape"),
        ("dtypes", Doubling, "must be float32"),
    ],
)
def test_check_bijection_finds_a_broken_layer(law, layer, message):
    with pytest.raises(AssertionError, match=message):
        check_bijection(layer(), laws=[law])
    with pytest.raises(AssertionError):
        check_bijection(layer())


def test_check_bijection_leaves_the_layer_and_the_random_state_alone():
    layer = Sinh(2)
    before = torch.get_rng_state()
    check_bijection(layer)
    assert torch.equal(before, torch.get_rng_state())
    assert layer.log_a.item() == 0
    assert layer.training
    assert layer.log_a.dtype == torch.float32


class _Payload:
    pass


class _Traced(torch.autograd.Function):
    """The identity, whose node in the graph owns a payload: the payload lives as long as the graph does."""

    payloads: ClassVar[list[weakref.ref]] = []

    @staticmethod
    def forward(ctx, x):
        ctx.payload = _Payload()
        _Traced.payloads.append(weakref.ref(ctx.payload))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class _TracedMLP(MLP):
    def forward(self, x, context=None):
        return _Traced.apply(super().forward(x, context))


@pytest.mark.parametrize("as_chain", [False, True])
@pytest.mark.parametrize("direction", ["sample", "score"])
def test_a_dropped_result_frees_its_graph(as_chain, direction, device):
    layers = [split((2,), net=_TracedMLP, swap=swap) for swap in (False, True)]
    transforms = [(Chain(layers) if as_chain else nn.ModuleList(layers)).to(device)]
    transforms = transforms if as_chain else list(transforms[0])
    _Traced.payloads.clear()
    value = torch.randn(5, 2, device=device)
    for transform in transforms:
        value = (transform if direction == "sample" else transform.inv)(value)
    assert len(_Traced.payloads) == 2
    assert all(payload() is not None for payload in _Traced.payloads)
    del value
    gc.collect()
    assert all(payload() is None for payload in _Traced.payloads)
