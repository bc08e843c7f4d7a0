"""What Pyro expects of a transform, and what goes wrong with its own affine coupling, shown on both."""

import copy
import gc
import itertools
import pickle
import weakref

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import transforms as pyro_transforms
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam, TransformReparam
from torch import nn
from torch.distributions import ComposeTransform, IndependentTransform, ReshapeTransform
from torch.func import functional_call

from pyro_realnvp import Chain, Flow, Scale, StandardNormal, nice_transforms, realnvp_transforms
from pyro_realnvp.networks.conditioner import Conditioner
from pyro_realnvp.testing import randomize

from zoo import component, mlp, prime, resnet, split


def normal(*shape, event_dim=1, device="cpu", dtype=torch.float32):
    zeros = torch.zeros(shape, device=device, dtype=dtype)
    return dist.Normal(zeros, zeros + 1).to_event(event_dim)


def density(transform, size=4):
    return dist.TransformedDistribution(normal(size), [transform])


# ---------------------------------------------------------------- Pyro's own checks of a transform, written afresh

# A vector with a context, an image whose shape changes, and an inverse; the laws are checked on every component.
CHECKED = ["split-context", "chain-changes-shape", "conditioned-inverse"]


@pytest.fixture(params=CHECKED)
def transform(request, device):
    f = copy.deepcopy(component(request.param)).double().to(device).eval()
    randomize(f)
    if f.context_shape is not None:
        f = f.condition(torch.rand(1, *f.context_shape, dtype=torch.float64, device=device))
    return f


def events(transform, *batch, device):
    return torch.randn(*batch, *transform.event_shape, dtype=torch.float64, device=device)


def test_inverse_without_the_cache(transform, device):
    x = events(transform, 10, device=device)
    y = transform._call(x)
    transform.clear_cache()
    back = transform._inverse(y.clone())
    transform.clear_cache()
    assert (back - x).abs().max() < 1e-6
    difference = transform.log_abs_det_jacobian(x, y) - transform.log_abs_det_jacobian(back, y)
    assert difference.abs().max() < 1e-6


def test_jacobian_by_finite_differences(transform, device):
    eps = 1e-4
    x = events(transform, 1, device=device)
    size = x.numel()
    steps = eps * torch.eye(size, dtype=x.dtype, device=device).reshape(size, *transform.event_shape)
    with torch.no_grad():
        columns = (transform._call(x + steps) - transform._call(x - steps)) / (2 * eps)
        log_det = transform.log_abs_det_jacobian(x, transform._call(x))
    matrix = columns.reshape(size, size).T
    torch.testing.assert_close(torch.linalg.slogdet(matrix)[1], log_det.squeeze(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [(3,), (3, 4), (3, 4, 5)])
def test_shapes(transform, batch, device):
    event, output = transform.event_shape, transform.output_shape
    ones = () if transform.forward_shape(event) == output else (1,)  # a context has a batch of one
    assert transform.forward_shape(event) == ones + output
    assert transform.inverse_shape(output) == ones + event
    assert transform.forward_shape(batch + event) == batch + output
    assert transform.inverse_shape(batch + output) == batch + event
    base = normal(*batch, *event, event_dim=len(event), device=device, dtype=torch.float64)
    flow = dist.TransformedDistribution(base, [transform])
    assert flow.batch_shape == batch
    assert flow.event_shape == output
    x = flow.sample()
    assert x.shape == batch + output
    assert flow.log_prob(x).shape == batch


def test_three_adam_steps_change_every_parameter(transform, device):
    parameters = list(transform.parameters())
    if not parameters:
        pytest.skip("nothing to learn")
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    base = normal(*transform.event_shape, event_dim=len(transform.event_shape), device=device, dtype=torch.float64)
    flow = dist.TransformedDistribution(base, [transform])
    x = torch.randn(7, *transform.output_shape, dtype=torch.float64, device=device)
    for _ in range(3):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
    for new, old in zip(parameters, before, strict=True):
        assert not torch.equal(new, old)


# ----------------------- what goes wrong in Pyro's own couplings: every probe passes here and fails there


class Here:
    """Couplings of this package."""

    @staticmethod
    def coupling(count=1):
        layers = [split((4,), swap=index % 2 == 1) for index in range(count)]
        randomize(nn.ModuleList(layers))
        return layers[0] if count == 1 else Chain(layers)

    @staticmethod
    def conditional(image=False):
        return split((4, 2, 2), context_dim=2) if image else split((4,), context_dim=2)

    @staticmethod
    def weights(transform):
        return transform.conditioner.layers[0].weight


class There:
    """The same of Pyro."""

    @staticmethod
    def coupling(count=1):
        if count == 1:
            return pyro_transforms.affine_coupling(4, [8])
        return pyro_transforms.iterated(count, pyro_transforms.affine_coupling, 4, [8])

    @staticmethod
    def conditional(image=False):
        if image:
            return pyro_transforms.conditional_affine_coupling((4, 2, 2), 2, [8], dim=-3)
        return pyro_transforms.conditional_affine_coupling(4, 2, [8])

    @staticmethod
    def weights(transform):
        return transform.nn.layers[0].weight


@torch.no_grad()
def update(module):
    for parameter in module.parameters():
        parameter.add_(0.1)


@torch.no_grad()
def is_fresh(flow, x):
    assert torch.equal(flow.log_prob(x), flow.log_prob(x.clone())), "stale"


def updated(make):
    """The same tensor is scored again after the parameters have changed."""
    transform = make.coupling()
    flow, x = density(transform), torch.randn(3, 4)
    with torch.no_grad():
        before = flow.log_prob(x)
        update(transform)
        assert not torch.equal(flow.log_prob(x), before), "stale"
    is_fresh(flow, x)


def updated_and_cleared_in_a_composition(make):
    transform = make.coupling(2)
    flow, x = density(transform), torch.randn(3, 4)
    with torch.no_grad():
        flow.log_prob(x)
        update(transform)
        flow.clear_cache()
    is_fresh(flow, x)


def updated_and_cleared_in_an_inverse(make):
    transform = make.coupling()
    flow, x = density(transform.inv), torch.randn(3, 4)
    with torch.no_grad():
        flow.log_prob(x)
        update(transform)
        flow.clear_cache()
    is_fresh(flow, x)


def updated_with_gradients(make):
    """Two training steps on the same tensor."""
    transform = make.coupling()
    flow, x = density(transform), torch.randn(3, 4)
    optimizer = torch.optim.SGD(transform.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()


def scored_twice_with_gradients(make):
    flow, x = density(make.coupling()), torch.randn(3, 4)
    for _ in range(2):
        flow.log_prob(x).sum().backward()


def loaded(make):
    """The same tensor is scored again after other weights were loaded."""
    transform, other = make.coupling(), make.coupling()
    update(other)
    flow, x = density(transform), torch.randn(3, 4)
    with torch.no_grad():
        flow.log_prob(x)
        transform.load_state_dict(other.state_dict())
    is_fresh(flow, x)


def called_with_other_weights(make):
    """torch.func.functional_call on the same tensor."""
    transform, x = make.coupling(), torch.randn(3, 4)
    with torch.no_grad():
        y = transform(x)
        others = {key: value + 1 for key, value in transform.named_parameters()}
        again = functional_call(transform, others, (x,))
        assert torch.equal(again, functional_call(transform, others, (x.clone(),))), "stale"
        assert torch.equal(transform(x), y)


def sampled_then_scored(make):
    """log_prob of a sample drawn without gradients has one for the parameters."""
    flow = density(make.coupling())
    assert flow.log_prob(flow.sample((3,))).requires_grad, "no gradient"


def moved_to_another_dtype(make):
    transform, x = make.coupling(), torch.randn(3, 4)
    y = transform(x)
    transform.double()
    try:
        again = transform(x)
    except (RuntimeError, ValueError):  # Pyro's: the matrix product of float32 and float64; ours: a sentence
        return
    assert again is not y, "stale"


def conditional_updated_and_cleared(make):
    transform = make.conditional()
    flow = dist.ConditionalTransformedDistribution(normal(4), [transform])
    given, x = flow.condition(torch.randn(2)), torch.randn(3, 4)
    with torch.no_grad():
        given.log_prob(x)
        update(transform)
        flow.clear_cache()
    is_fresh(given, x)


def changed_in_place(make):
    """A result that was overwritten is not the result any more."""
    transform, x = make.coupling(), torch.randn(3, 4)
    with torch.no_grad():
        z = transform.inv(x)
        z.zero_()
        assert not torch.equal(transform(z), x), "stale"


def input_changed_in_place(make):
    transform, x = make.coupling(), torch.randn(3, 4)
    with torch.no_grad():
        transform(x)
        x.zero_()
        assert torch.equal(transform(x), transform(x.clone())), "stale"


def copied_after_use(make):
    transform = make.coupling()
    y = transform(torch.randn(3, 4, requires_grad=True))
    copied = copy.deepcopy(transform)
    assert torch.equal(copied(torch.ones(4)), transform(torch.ones(4)))
    assert y.requires_grad


def inverse_is_a_module(make):
    transform = make.coupling()
    parameters = list(transform.inv.parameters())
    assert [id(p) for p in parameters] == [id(p) for p in transform.parameters()]
    assert transform.inv.state_dict()


def without_a_cache(make):
    transform, x = make.coupling(), torch.randn(3, 4)
    without = transform.with_cache(0)
    assert torch.equal(without(x), transform(x.clone()))
    assert without(x) is not without(x)


def composed_without_a_cache(make):
    transform, x = make.coupling(), torch.randn(3, 4)
    for wrapped in (ComposeTransform([transform]).with_cache(1), IndependentTransform(transform, 1)):
        assert torch.equal(wrapped(x), transform(x.clone()))


def conditional_image_has_image_events(make):
    assert make.conditional(image=True).domain.event_dim == 3, "event_dim"


def dropped_sample(make):
    """The last result does not outlive its last user."""
    transform = make.coupling()
    y = transform(torch.randn(3, 4))
    result = weakref.ref(y)
    del y
    gc.collect()
    assert result() is None, "kept alive"


STALE = (AssertionError, "stale")
PROBES = [
    (updated, STALE),
    (updated_and_cleared_in_a_composition, STALE),
    (updated_and_cleared_in_an_inverse, STALE),
    (updated_with_gradients, (RuntimeError, "second time")),
    (scored_twice_with_gradients, (RuntimeError, "second time")),
    (loaded, STALE),
    (called_with_other_weights, STALE),
    (sampled_then_scored, (AssertionError, "no gradient")),
    (moved_to_another_dtype, STALE),
    (conditional_updated_and_cleared, STALE),
    (changed_in_place, STALE),
    (input_changed_in_place, STALE),
    (copied_after_use, (RuntimeError, "deepcopy")),
    (inverse_is_a_module, (AttributeError, "parameters")),
    (without_a_cache, (NotImplementedError, "with_cache")),
    (composed_without_a_cache, (NotImplementedError, "with_cache")),
    (conditional_image_has_image_events, (AssertionError, "event_dim")),
    (dropped_sample, (AssertionError, "kept alive")),
]
by_name = [pytest.param(probe, failure, id=probe.__name__) for probe, failure in PROBES]


@pytest.mark.parametrize(("probe", "failure"), by_name)
def test_right_here(probe, failure):
    probe(Here)


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "failure"), by_name)
def test_wrong_in_pyro(probe, failure):
    error, message = failure
    with pytest.raises(error, match=message):
        probe(There)


def test_the_memo_sees_new_weights_at_the_address_of_old_ones():
    # Weights that functional_call was given and nobody kept are freed, and the next ones may lie in the same place.
    f, x, kept = split((4,)), torch.randn(3, 4), []
    with torch.no_grad():
        for step in range(50):
            weights = {key: torch.full_like(value, 0.1 + 0.01 * step) for key, value in f.named_parameters()}
            kept.append(functional_call(f, weights, (x,)))
            del weights
    for one, next_one in itertools.pairwise(kept):
        assert not torch.equal(one, next_one)


def test_the_memo_sees_a_parameter_that_was_replaced():
    f, x = split((4,)), torch.randn(3, 4)
    randomize(f)
    y = f(x)
    for layer in f.conditioner.layers[::2]:
        layer.weight = nn.Parameter(layer.weight.detach() + 1)
    assert not torch.equal(f(x), y)


def test_the_memo_sees_another_training_mode():
    f = prime(Chain([split((4,), net=lambda *_: nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5)))]))
    x = torch.randn(50, 4)
    y = f(x)
    f.eval()
    assert not torch.equal(f(x), y)


def test_clear_cache_is_for_changes_that_cannot_be_seen():
    f, x = Chain([split((4,)), split((4,), swap=True)]), torch.randn(3, 4)
    with torch.no_grad():
        y = f(x)
        for p in f.parameters():
            p.data.add_(0.1)
        f.inv.clear_cache()
        assert not torch.equal(f(x), y)


def test_nothing_is_remembered_in_inference_mode():
    f = split((4,))
    x = torch.randn(3, 4)
    with torch.inference_mode():
        y = f(x)
        update(f)
        assert not torch.equal(f(x), y)


# ---------------------------------------------------------------------------------------------- one evaluation


def flows(kind):
    if kind == "vector":
        return realnvp_transforms(4, couplings=3, net=mlp), torch.randn(5, 4)
    if kind == "nice":
        return nice_transforms(4, couplings=3, net=mlp), torch.randn(5, 4)
    return realnvp_transforms((1, 4, 4), net=resnet), torch.randn(5, 1, 4, 4)


def counted(network, counts):
    """The forward of a network, which counts its calls."""
    forward = network.forward

    def call(*args):
        counts[network] = counts.get(network, 0) + 1
        return forward(*args)

    return call


@pytest.mark.parametrize("kind", ["vector", "nice", "image"])
@pytest.mark.parametrize("as_chain", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("what", ["log_prob", "rsample, log_prob"])
def test_each_network_runs_once(kind, as_chain, gradients, training, what, device):
    transforms, x = flows(kind)
    modules = nn.ModuleList(transforms).to(device).train(training)
    counts = {}
    for network in modules.modules():
        if isinstance(network, Conditioner):
            counts[network] = 0
            network.forward = counted(network, counts)  # not by a hook, with which nothing is remembered
    base = normal(*x.shape[1:], event_dim=x.dim() - 1, device=device)
    flow = dist.TransformedDistribution(base, [Chain(transforms)] if as_chain else transforms)
    assert len(counts) >= 3
    with torch.set_grad_enabled(gradients):
        flow.log_prob(x.to(device) if what == "log_prob" else flow.rsample((5,)))
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("validate", [False, True])
def test_each_network_runs_once_in_a_flow(validate, device):
    flow = Flow(StandardNormal(4), realnvp_transforms(4, couplings=3, net=mlp, context_dim=2)).to(device)
    counts = {}
    for network in flow.modules():
        if isinstance(network, Conditioner):
            network.forward = counted(network, counts)
    context = torch.randn(5, 2, device=device)
    with pyro.validation_enabled(validate):
        flow(torch.randn(5, 4, device=device), context)
        assert list(counts.values()) == [1, 1, 1]
        conditioned = flow.distribution(context)
        conditioned.log_prob(conditioned.rsample())
        assert list(counts.values()) == [2, 2, 2]


# ------------------------------------------------------------------------------------------ torch's combinators


def test_with_cache_shares_parameters():
    f = Chain([split((4,)), Scale((4,))])
    without = f.with_cache(0)
    assert {id(p) for p in f.parameters()} == {id(p) for p in without.parameters()}
    assert f.with_cache(1) is f
    x = torch.randn(3, 4)
    assert torch.equal(without(x), f(x))
    assert without(x) is not without(x)
    assert without.with_cache(1)(x) is not None
    assert f.inv.with_cache(0).inv(x) is not f.inv.with_cache(0).inv(x)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_compose_transform(cache_size):
    parts = [split((4,)), split((4,), swap=True)]
    randomize(nn.ModuleList(parts))
    x = torch.randn(6, 5, 4)
    ours = Chain(parts)
    for theirs in (
        ComposeTransform(parts, cache_size=cache_size),
        pyro_transforms.ComposeTransformModule(parts, cache_size=cache_size),
        ComposeTransform(parts).with_cache(cache_size),
    ):
        y = theirs(x)
        torch.testing.assert_close(y, ours(x.clone()))
        torch.testing.assert_close(theirs.inv(y.clone()), x)
        torch.testing.assert_close(theirs.log_abs_det_jacobian(x, y), ours.log_abs_det_jacobian(x, y))
    assert set(pyro_transforms.ComposeTransformModule(parts).parameters()) == set(ours.parameters())


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("batch", [(), (7,), (6, 5)])
def test_conditional_compose_transform_module(cache_size, batch):
    parts = [split((4,), context_dim=2), Scale((4,)), split((4,), context_dim=2, swap=True)]
    randomize(nn.ModuleList(parts))
    composed = ConditionalComposeTransformModule(parts, cache_size=cache_size)
    assert set(composed.parameters()) == set(Chain(parts).parameters())
    context, x = torch.randn(*batch, 2), torch.randn(*batch, 4)
    given = composed.condition(context)
    y = given(x)
    torch.testing.assert_close(y, Chain(parts).condition(context)(x.clone()))
    torch.testing.assert_close(given.inv(y.clone()), x)
    assert given.log_abs_det_jacobian(x, y).shape == batch


@pytest.mark.parametrize("cache_size", [0, 1])
def test_independent_transform(cache_size):
    f = split((4,))
    randomize(f)
    wrapped = IndependentTransform(f, 1, cache_size=cache_size)
    x = torch.randn(5, 3, 4)
    y = wrapped(x)
    torch.testing.assert_close(wrapped.log_abs_det_jacobian(x, y), f.log_abs_det_jacobian(x, y).sum(-1))
    torch.testing.assert_close(wrapped.inv(y.clone()), x)


def test_reshape_transform_before_and_after():
    f = split((4, 2, 2))
    randomize(f)
    flow = dist.TransformedDistribution(
        normal(16), [ReshapeTransform((16,), (4, 2, 2)), f.eval(), ReshapeTransform((4, 2, 2), (2, 8))]
    )
    assert flow.event_shape == (2, 8)
    assert flow.expand((3,)).sample((5,)).shape == (5, 3, 2, 8)
    x = torch.randn(7, 2, 8)
    image = x.reshape(7, 4, 2, 2)
    expected = dist.TransformedDistribution(normal(4, 2, 2, event_dim=3), [f]).log_prob(image)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_chain_of_reshapes_and_couplings():
    chain = Chain([ReshapeTransform((16,), (4, 2, 2)), split((4, 2, 2)), ReshapeTransform((4, 2, 2), (16,))]).eval()
    assert chain.event_shape == (16,)
    assert chain(torch.randn(3, 16)).shape == (3, 16)


def test_expand():
    flow = dist.TransformedDistribution(normal(4), realnvp_transforms(4, couplings=2, net=mlp))
    wide = flow.expand((2, 3))
    assert wide.batch_shape == (2, 3)
    x = wide.sample((5,))
    assert x.shape == (5, 2, 3, 4)
    assert wide.log_prob(x).shape == (5, 2, 3)
    given = dist.ConditionalTransformedDistribution(normal(4), [split((4,), context_dim=2)]).condition(
        torch.randn(3, 2)
    )
    assert given.batch_shape == (3,)
    assert given.expand((2, 3)).sample().shape == (2, 3, 4)


def test_log_prob_of_a_flat_base_over_batches_is_expanded():
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3, 4), 1), [split((4,))])
    assert flow.batch_shape == (3,)
    assert flow.event_shape == (4,)


def test_a_wrong_base_is_refused_when_the_distribution_is_built():
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        dist.TransformedDistribution(normal(5), [split((4,))])


def test_inverse_of_the_inverse():
    f = split((4,))
    inverse = f.inv
    assert inverse.inv is f
    assert f.inv is inverse
    for other in (copy.deepcopy(inverse), pickle.loads(pickle.dumps(inverse))):
        assert other.inv.inv is other


@pytest.mark.parametrize("used", [False, True])
def test_copies_of_inverses_keep_their_transform(used):
    inverse = split((4,)).inv
    randomize(inverse)
    x = torch.randn(3, 4)
    y = inverse(x) if used else None
    for other in (copy.deepcopy(inverse), pickle.loads(pickle.dumps(inverse))):
        torch.testing.assert_close(other(x), inverse(x.clone()))
        torch.testing.assert_close(other.inv(other(x).clone()), x)
        assert {id(p) for p in other.parameters()}.isdisjoint({id(p) for p in inverse.parameters()})
    assert y is None or y.requires_grad


def test_keys_of_an_inverted_list():
    transforms = nn.ModuleList(realnvp_transforms(4, couplings=2, net=mlp))
    parameters = [f"conditioner.layers.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")]
    assert list(transforms.state_dict()) == [f"{i}.bijection.{name}" for i in (0, 1) for name in parameters]
    flow = Flow(StandardNormal(4), list(transforms))
    assert list(flow.state_dict()) == [f"transforms.{key}" for key in transforms.state_dict()]
    # Using an inverse registers nothing: two modules that own each other would have endless keys.
    bijection = transforms[0].inv
    assert list(bijection.state_dict()) == parameters
    assert bijection.inv is transforms[0]


def test_functional_call_of_a_flow_differentiates_the_given_weights():
    flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp))
    x = torch.randn(3, 2)
    weights = {key: torch.randn_like(value) * 0.1 for key, value in flow.named_parameters()}
    gradient = torch.func.grad(lambda weights: functional_call(flow, weights, (x,)).sum())(weights)
    copied = copy.deepcopy(flow)
    copied.load_state_dict(weights)
    copied(x).sum().backward()
    for key, parameter in copied.named_parameters():
        torch.testing.assert_close(gradient[key], parameter.grad)


# ---------------------------------------------------------------------------------------------- conditioning


def test_conditional_transformed_distribution():
    transforms = realnvp_transforms(4, couplings=2, net=mlp, context_dim=2)
    transforms.insert(1, Scale((4,)))  # has no use for a context and ignores it
    randomize(nn.ModuleList(transforms))
    flow = dist.ConditionalTransformedDistribution(normal(4), transforms)
    context, x = torch.randn(5, 2), torch.randn(5, 4)
    given = flow.condition(context)
    assert given.sample().shape == (5, 4)
    log_prob = given.log_prob(x)
    for index in range(5):
        torch.testing.assert_close(flow.condition(context[index]).log_prob(x[index]), log_prob[index])
    ours = Flow(StandardNormal(4), transforms)
    torch.testing.assert_close(ours(x, context), log_prob)


def test_conditioned_inverse_is_the_inverse_conditioned():
    f, context, y = split((4,), context_dim=2), torch.randn(2), torch.randn(3, 4)
    randomize(f)
    torch.testing.assert_close(f.inv.condition(context)(y), f.condition(context).inv(y))
    assert f.inv.inv is f


def test_gradients_reach_the_context():
    f, context = split((4,), context_dim=2), torch.randn(2, requires_grad=True)
    randomize(f)
    density(f.condition(context)).log_prob(torch.randn(3, 4)).sum().backward()
    assert context.grad.any()


def test_a_context_changed_in_place_is_seen():
    f, context, x = split((4,), context_dim=2), torch.randn(2), torch.randn(3, 4)
    randomize(f)
    given = f.condition(context)
    with torch.no_grad():
        y = given(x)
        context.add_(1)
        assert not torch.equal(given(x), y)


# ---------------------------------------------------------------------------------------------- inference


def vector_flow(size=2, **kwargs):
    return Flow(StandardNormal(size), realnvp_transforms(size, couplings=2, net=mlp, **kwargs))


def test_svi_is_maximum_likelihood(device):
    data = (torch.randn(64, 2) * torch.tensor([2.0, 0.5]) + 1).to(device)
    flow = vector_flow().to(device)
    twin = copy.deepcopy(flow)

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)), poutine.scale(scale=1 / len(x)):
            pyro.sample("x", flow.distribution(), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = -twin(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((svi.step(data), loss.item()))
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in losses)
    assert losses[-1][1] < losses[0][1] - 0.5


def test_svi_with_subsampling_scales_the_loss():
    flow, data = vector_flow(), torch.randn(40, 2)

    def model():
        with pyro.plate("data", 40, subsample_size=10) as index:
            pyro.sample("x", flow.distribution(), obs=data[index])

    trace = poutine.trace(model).get_trace()
    index = trace.nodes["data"]["value"]
    torch.testing.assert_close(trace.log_prob_sum(), 4 * flow(data[index]).sum())


def posterior_model(flow, y):
    def model():
        z = pyro.sample("z", flow.distribution())
        pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=y)
        return z

    return model


def test_nuts_samples_a_flow_prior():
    flow = vector_flow().eval().requires_grad_(False)
    mcmc = MCMC(NUTS(posterior_model(flow, torch.tensor(1.0))), num_samples=20, warmup_steps=10, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()["z"]
    assert samples.shape == (20, 2)
    assert samples.std(0).min() > 0


def test_auto_normal_on_a_flow_prior():
    flow = vector_flow().requires_grad_(False)
    guide = AutoNormal(posterior_model(flow, torch.tensor(1.0)))
    svi = SVI(guide.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step())) for _ in range(3))
    assert guide().get("z").shape == (2,)


def test_transform_reparam():
    flow = vector_flow()
    randomize(flow)
    model = posterior_model(flow, torch.tensor(1.0))
    reparametrised = poutine.reparam(model, {"z": TransformReparam()})
    trace = poutine.trace(reparametrised).get_trace()
    assert trace.nodes["z_base"]["value"].shape == (2,)
    assert not trace.nodes["z_base"]["is_observed"]
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(flow.transforms(trace.nodes["z_base"]["value"].clone()), z)
    # p(z) dz = p(z_base) dz_base: the log-joint differs by the log-determinant.
    log_det = flow.transforms.log_abs_det_jacobian(trace.nodes["z_base"]["value"], z)
    direct = poutine.trace(poutine.condition(model, {"z": z})).get_trace().log_prob_sum()
    torch.testing.assert_close(trace.log_prob_sum(), direct + log_det)


def test_transform_reparam_of_given_values():
    flow = vector_flow()
    randomize(flow)
    z = torch.randn(2)
    model = poutine.condition(posterior_model(flow, torch.tensor(1.0)), {"z": z})
    trace = poutine.trace(poutine.reparam(model, {"z": TransformReparam()})).get_trace()
    torch.testing.assert_close(flow.transforms(trace.nodes["z_base"]["value"].clone()), z)


def regression():
    a = pyro.sample("a", dist.Normal(0, 1))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(a, b + 0.1), obs=torch.tensor([0.5, 1.0, 1.5, 0.8, 1.2]))


def chain(size):
    return Chain(realnvp_transforms(size, couplings=2, net=mlp))


def test_auto_normalizing_flow_learns():
    guide = AutoNormalizingFlow(regression, chain)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert any(p.any() for name, p in guide.named_parameters() if name.endswith("layers.2.weight"))
    sample = guide()
    assert sample["b"] > 0
    copied = copy.deepcopy(guide.transform)
    torch.testing.assert_close(copied(torch.ones(2)), guide.transform(torch.ones(2)))


def test_neutra_reparam():
    guide = AutoNormalizingFlow(regression, chain)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    model = neutra.reparam(regression)
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    (name,) = mcmc.get_samples()
    latent = mcmc.get_samples()[name]
    assert name.endswith("_shared_latent")
    samples = neutra.transform_sample(latent)
    assert samples["a"].shape == (5,)
    assert (samples["b"] > 0).all()


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    flow = vector_flow().eval()

    def model():
        with pyro.plate("rows", 3):
            return pyro.sample("z", flow.distribution())

    samples = Predictive(model, num_samples=7, parallel=parallel)()
    assert samples["z"].shape == (7, 3, 2)


def test_nested_plates_and_context():
    flow = vector_flow(context_dim=3)
    context = torch.randn(4, 3)

    def model():
        with pyro.plate("inner", 4, dim=-1), pyro.plate("outer", 5, dim=-2):
            return pyro.sample("z", flow.distribution(context))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (5, 4, 2)
    assert trace.nodes["z"]["log_prob"].shape == (5, 4)


def test_vectorized_particles():
    flow = vector_flow()
    guide = AutoNormal(posterior_model(flow, torch.tensor(1.0)))
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)
    assert torch.isfinite(torch.tensor(elbo.loss(guide.model, guide)))
