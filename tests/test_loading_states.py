"""A state is loaded all or nothing, and a flow without values gets all of them from a state."""

from functools import partial

import numpy as np
import pytest
import torch

from pyro_realnvp import (
    Flow,
    GatedAttention,
    GatedConvs,
    ImageFlow,
    Logit,
    StandardNormal,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import convnet, mlp, prime, resnet

SHAPE = (1, 4, 4)
attention = partial(GatedAttention, hidden=4, blocks=1, heads=2, dropout=0.0)
features = partial(GatedConvs, hidden=2, blocks=1, dropout=0.0)


def vector():
    return Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp))


def nice():
    return Flow(StandardNormal(3), nice_transforms(3, couplings=2, net=mlp))


def image():
    return Flow(StandardNormal(SHAPE), realnvp_transforms(SHAPE, net=resnet))


def packed():
    return Flow(StandardNormal(SHAPE), realnvp_transforms(SHAPE, net=resnet, packed=True))


def glow(**kwargs):
    return Flow(StandardNormal(SHAPE), glow_transforms(SHAPE, levels=2, steps=1, net=convnet, **kwargs))


def flowpp():
    main = flowpp_transforms(SHAPE, couplings=(1, 1, 1), components=2, net=attention)
    noise = flowpp_dequantizer(SHAPE, couplings=1, components=2, net=attention, embedding=features)
    return ImageFlow(Flow(StandardNormal(SHAPE), [*main, Logit(0.05).inv]), 256, Flow(StandardNormal(SHAPE), noise))


def integers():
    return ImageFlow(Flow(StandardNormal(SHAPE), [*realnvp_transforms(SHAPE, net=resnet), Logit(0.05).inv]), 256)


def data(model):
    if isinstance(model, ImageFlow):
        return torch.randint(256, (4, *model.event_shape))
    return torch.randn(4, *model.event_shape)


def log_prob(model, x):
    torch.manual_seed(7)
    return model(x)


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def without_the_last_key(state):
    state.popitem()


def with_another_key(state):
    state["another"] = torch.zeros(2)


def of_another_shape(state):
    state[list(state)[-1]] = torch.zeros(5, 7, 3)


def with_a_numpy_array(state):
    key = list(state)[-1]
    state[key] = np.asarray(state[key])


def with_a_meta_tensor(state):
    key = list(state)[-1]
    state[key] = state[key].to("meta")


WRONG = [without_the_last_key, with_another_key, of_another_shape, with_a_numpy_array, with_a_meta_tensor]
MODELS = [vector, image, glow, integers]


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("spoil", WRONG)
@pytest.mark.parametrize("make", MODELS)
def test_a_state_that_does_not_fit_changes_nothing(make, spoil, assign):
    model, source = prime(make()), prime(make())
    randomize(source)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = tensors(model)
    values = {key: value.detach().clone() for key, value in before.items()}
    state = dict(source.state_dict())
    spoil(state)
    given = dict(state)
    given_values = {k: v.clone() if isinstance(v, torch.Tensor) else np.copy(v) for k, v in state.items()}

    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        model.load_state_dict(state, assign=assign)

    assert state.keys() == given.keys()
    for key, value in state.items():
        assert value is given[key], f"{key} of the given state is another object"
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, given_values[key])
        elif not value.is_meta:
            assert torch.equal(value, given_values[key]), f"{key} of the given state has changed"
    now = tensors(model)
    assert now.keys() == before.keys()
    for key, value in now.items():
        assert value is before[key], f"{key} is another tensor"
        assert torch.equal(value, values[key]), f"{key} has changed"
    (-log_prob(model.eval(), data(model)).mean()).backward()
    moving = {key for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moving
    optimizer.step()
    for key in moving:
        assert not torch.equal(now[key], values[key]), f"{key} is not trained any more"


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("make", MODELS)
def test_a_state_that_fits_is_loaded(make, assign):
    model, source = prime(make()).eval(), prime(make()).eval()
    randomize(source)
    x = data(model)
    model.load_state_dict(source.state_dict(), assign=assign)
    torch.testing.assert_close(log_prob(model, x), log_prob(source, x))


def test_a_state_may_leave_keys_out_where_it_is_not_strict():
    model, source = vector(), vector()
    randomize(source)
    state = dict(source.state_dict())
    left_out, _ = state.popitem()
    kept = model.state_dict()[left_out].clone()
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == [left_out]
    assert torch.equal(model.state_dict()[left_out], kept)
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value)


META = [vector, nice, image, packed, glow, partial(glow, plu=True), flowpp]
IDS = ["vector", "nice", "image", "packed", "glow", "glow-plu", "flowpp"]


@pytest.mark.parametrize("make", META, ids=IDS)
def test_a_flow_built_without_values_gets_all_of_them_from_a_state(make):
    source = prime(make())
    source.initialize(data(source))
    randomize(source)
    with torch.device("meta"):
        model = make()
    assert any(value.is_meta for value in tensors(model).values())
    model.load_state_dict(source.state_dict(), assign=True)
    left = [key for key, value in tensors(model).items() if value.is_meta]
    assert not left, f"{left} are still on the meta device"
    x = data(source)
    torch.testing.assert_close(log_prob(model.eval(), x), log_prob(source.eval(), x), rtol=0, atol=0)
    torch.manual_seed(3)
    drawn = model.sample((2,))
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, source.sample((2,)), rtol=0, atol=0)


@pytest.mark.parametrize("make", META, ids=IDS)
def test_a_flow_built_without_values_trains_after_loading_as_its_source_does(make):
    source = prime(make())
    source.initialize(data(source))
    randomize(source)
    with torch.device("meta"):
        model = make()
    model.load_state_dict({key: value.clone() for key, value in source.state_dict().items()}, assign=True)
    x = data(source)
    losses = []
    for each in (model.train(), source.train()):
        losses.append(-log_prob(each, x).mean())
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    for (key, one), other in zip(model.named_parameters(), source.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), key
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
