"""Bad input gets one clear sentence, and changes no state."""

import pytest
import torch
from pyro import distributions as dist

from pyro_realnvp import (
    ActNorm,
    Chain,
    Dequantized,
    Flow,
    Logit,
    Permute,
    Scale,
    StandardNormal,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import alone, mlp, prime, resnet, split


def vector(**kwargs):
    flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp, **kwargs))
    randomize(flow)
    return flow


def image(**kwargs):
    flow = prime(Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), net=resnet, **kwargs)))
    randomize(flow)
    return flow.train()


class Unchanged:
    """Asserts that the block raises a ValueError in one sentence, and leaves the module as it was."""

    def __init__(self, module, *named):
        self.module, self.named = module, named

    def __enter__(self):
        self.state = {key: value.clone() for key, value in self.module.state_dict().items()}
        self.modes = [m.training for m in self.module.modules()]

    def __exit__(self, kind, error, traceback):
        assert kind is not None, "nothing was raised"
        assert issubclass(kind, ValueError), f"{kind.__name__}: {error}"
        first = str(error).splitlines()[0]
        for name in self.named:
            assert name in first, f"{name!r} is not in {first!r}"
        for key, value in self.module.state_dict().items():
            assert torch.equal(value, self.state[key]), f"{key} has changed"
        assert [m.training for m in self.module.modules()] == self.modes
        return True


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (5, 1), (2, 5)])
def test_wrong_event_shape_of_vectors(shape):
    flow, x = vector(), torch.randn(shape)
    with Unchanged(flow, str(tuple(shape)), "(2,)"):
        flow(x)
    for transform in (flow.transforms, flow.transforms[0], flow.transforms.inv):
        for direction in (transform, transform.inv):
            with Unchanged(flow, str(tuple(shape)), "(2,)"):
                direction(x)
        with Unchanged(flow, str(tuple(shape)), "(2,)"):
            transform.log_abs_det_jacobian(x, x)
        with Unchanged(flow, str(tuple(shape)), "(2,)"):
            transform.forward_shape(shape)


@pytest.mark.parametrize("shape", [(16,), (5, 4, 4), (5, 2, 4, 4), (5, 1, 8, 8), (5, 1, 4, 5)])
def test_wrong_event_shape_of_images(shape):
    flow, x = image(), torch.randn(shape)
    with Unchanged(flow, str(tuple(shape)), "(1, 4, 4)"):
        flow(x)
    with Unchanged(flow, str(tuple(shape)), "(1, 4, 4)"):
        flow.transforms.inv(x)
    with Unchanged(flow, str(tuple(shape)), "(1, 4, 4)"):
        flow.transforms[0](x)


def test_a_base_of_another_shape():
    flow = vector()
    with Unchanged(flow, "(3,)", "(2,)"):
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1).to_event(1), [flow.transforms])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [vector, image])
def test_data_that_is_not_finite(make, bad):
    flow = make()
    x = torch.randn(5, *flow.event_shape)
    x.view(-1)[3] = bad
    with Unchanged(flow, "support", str(bad)):
        flow(x)
    with Unchanged(flow, "support", "TransformedDistribution"):
        flow.distribution().log_prob(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("make", [vector, image])
def test_integers_where_floats_are_needed(make, dtype):
    flow = make()
    x = torch.ones(5, *flow.event_shape).to(dtype)
    for call in (flow, flow.transforms, flow.transforms.inv, flow.transforms[0], flow.transforms[0].inv):
        with Unchanged(flow, "floating point", str(dtype)):
            call(x)


def test_floats_where_integers_are_needed():
    flow = Flow(StandardNormal(2), [*realnvp_transforms(2, couplings=2, net=mlp), Logit(0.05).inv])
    with Unchanged(flow, "integers from 0 to 3", "0.5"):
        Dequantized(flow.distribution(), 4).log_prob(torch.full((3, 2), 0.5))


@pytest.mark.parametrize("make", [vector, image])
@pytest.mark.parametrize("validate", [False, True])
def test_context(make, validate):
    given, without = make(context_dim=3), make()
    x = torch.randn(5, *given.event_shape)
    dist.enable_validation(validate)
    try:
        with Unchanged(given, "(3,)", "none"):
            given(x)
        with Unchanged(given, "(3,)", "none"):
            given.transforms(x)
        with Unchanged(given, "(3,)", "none"):
            given.sample((2,))
        for shape in ((4,), (5, 4), (), (3, 1)):
            with Unchanged(given, "(3,)", str(shape)):
                given(x, torch.randn(shape))
            with Unchanged(given, "(3,)", str(shape)):
                given.sample((2,), torch.randn(shape))
        with Unchanged(given, "5", "4"):
            given(x, torch.randn(4, 3))  # batches that do not go together
        with Unchanged(without, "without a context", "(3,)"):
            without(x, torch.randn(3))
        with Unchanged(without, "without a context", "(3,)"):
            without.sample((2,), torch.randn(3))
    finally:
        dist.enable_validation(True)


@pytest.mark.parametrize("transforms", [alone(realnvp_transforms), alone(nice_transforms), nice_transforms(4, net=mlp)])
def test_a_context_that_the_builder_was_not_told_of(transforms):
    flow = Flow(StandardNormal(transforms[0].event_shape), transforms)
    with Unchanged(flow, "without a context", "(3,)"):
        flow(torch.randn(5, *flow.event_shape), torch.randn(3))


def test_context_maps_of_another_size():
    flow = image(context_shape=(2, 4, 4))
    for shape in ((2, 8, 8), (3, 4, 4), (4, 4), (5, 2, 4, 3)):
        with Unchanged(flow, "(2, 4, 4)", str(shape)):
            flow(torch.randn(5, 1, 4, 4), torch.randn(shape))


def test_parts_with_contexts_of_different_shapes():
    chain = Chain([split((4,), context_dim=2), split((4,), context_dim=3)])
    for size in (2, 3):
        with Unchanged(chain, f"({5 - size},)", f"({size},)"):
            chain.condition(torch.randn(size))(torch.randn(4))


@pytest.mark.parametrize("size", [0, 1])
def test_batches_too_small_for_normalization_in_training_mode(size):
    flow = image()
    with Unchanged(flow, "at least 2", str(size)):
        flow(torch.randn(size, 1, 4, 4))
    with Unchanged(flow, "at least 2", str(size)):
        flow.transforms.inv(torch.randn(size, 1, 4, 4))


@pytest.mark.parametrize("make", [vector, image])
def test_an_empty_batch_is_allowed_elsewhere(make):
    flow = make().eval()
    x = torch.randn(0, *flow.event_shape)
    z = flow.transforms.inv(x)
    assert z.shape == x.shape
    assert flow.transforms.log_abs_det_jacobian(z, x).shape == (0,)
    assert flow.sample((0,)).shape == x.shape


@pytest.mark.parametrize("shape", [(5, 3), (0, 2), (5,)])
def test_initializing_from_a_bad_batch(shape):
    flow = Flow(StandardNormal(2), [split((2,)).inv, ActNorm((2,)).inv])
    with Unchanged(flow, str(shape[-1]) if shape[0] else "empty"):
        flow.initialize(torch.randn(shape))
    with Unchanged(flow, "NaN"):
        flow.initialize(torch.full((4, 2), torch.nan))
    flow.initialize(torch.randn(4, 2))


def test_the_state_of_another_architecture():
    flow, other = vector(), Flow(StandardNormal(2), realnvp_transforms(2, couplings=3, net=mlp))
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        flow.load_state_dict(other.state_dict())
    for key, value in flow.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Permute((3,), [0, 1]), r"0, ..., 2.*\[0, 1\]"),
        (lambda: Permute((3,), [0, 1, 1]), r"\[0, 1, 1\]"),
        (lambda: Scale((2,)).with_cache(2), "cache_size.*2"),
        (lambda: Chain([]), "at least one"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
