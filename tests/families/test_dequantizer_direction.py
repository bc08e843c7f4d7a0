"""The noise of Flow++ is drawn, and its draws are scored, without a search for an inverse."""

from functools import partial

import pytest
import torch

from pyro_realnvp import (
    Dequantized,
    Flow,
    GatedAttention,
    GatedConvs,
    ImageFlow,
    Logit,
    MixtureLogistic,
    StandardNormal,
    flowpp_dequantizer,
    nice_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import calm, mlp

SHAPE = (1, 4, 4)


def noise():
    net = partial(GatedAttention, hidden=4, blocks=1, heads=2, dropout=0.0)
    features = partial(GatedConvs, hidden=2, blocks=1, dropout=0.0)
    flow = Flow(
        StandardNormal(SHAPE), flowpp_dequantizer(SHAPE, couplings=2, components=2, net=net, embedding=features)
    )
    calm(flow)
    randomize(flow)
    return flow.eval()


@pytest.fixture
def searches(monkeypatch):
    """How often a search has been made."""
    found = []
    solve = MixtureLogistic._solve
    monkeypatch.setattr(MixtureLogistic, "_solve", lambda self, *args: (found.append(1), solve(self, *args))[1])
    return found


@pytest.fixture
def no_search(monkeypatch):
    def search(*args):
        raise AssertionError("an inverse was searched for")

    monkeypatch.setattr(MixtureLogistic, "_solve", search)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_draw_its_score_and_their_gradients_need_no_search(training):
    flow = noise().train(training)
    q = flow.condition(torch.rand(5, *SHAPE) - 0.5)
    u = q.rsample()
    assert u.shape == (5, *SHAPE)
    assert ((u > 0) & (u < 1)).all()
    (q.log_prob(u) - u.square().sum((-3, -2, -1))).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.usefixtures("no_search")
def test_the_bound_of_integer_images_needs_no_search():
    density = Flow(StandardNormal(SHAPE), [*nice_transforms(SHAPE, couplings=2, net=mlp), Logit(0.05).inv])
    images = torch.randint(256, (3, *SHAPE))
    (-Dequantized(density.distribution(), dequantizer=noise()).log_prob(images).mean()).backward()


def test_the_score_of_other_values_searches(searches):
    q = noise().condition(torch.rand(5, *SHAPE) - 0.5)
    q.log_prob(torch.rand(5, *SHAPE))
    assert searches


def test_the_score_of_a_draw_is_that_of_the_same_value_from_elsewhere():
    flow = noise().double()
    q = flow.condition(torch.rand(5, *SHAPE, dtype=torch.float64) - 0.5)
    u = q.rsample()
    torch.testing.assert_close(q.log_prob(u), q.log_prob(u.detach().clone()))


def test_the_jacobian_is_right():
    flow = noise().double()
    transform = flow.transforms.condition(torch.rand(SHAPE, dtype=torch.float64) - 0.5)
    z = torch.randn(SHAPE, dtype=torch.float64)
    u, log_det = transform.forward_and_log_det(z)
    matrix = torch.autograd.functional.jacobian(lambda z: transform.forward_and_log_det(z)[0], z).reshape(16, 16)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet)
    back, inverse_log_det = transform.inverse_and_log_det(u.detach())
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse_log_det, -log_det)


def test_initialize_sets_every_normalization_from_data():
    density = Flow(StandardNormal(SHAPE), [*nice_transforms(SHAPE, couplings=2, net=mlp), Logit(0.05).inv])
    model = ImageFlow(density, 256, noise())
    norms = [value for key, value in model.state_dict().items() if key.endswith("initialized")]
    assert norms
    assert not any(bool(value) for value in norms)
    model.initialize(torch.randint(256, (8, *SHAPE)))
    assert all(bool(value) for key, value in model.state_dict().items() if key.endswith("initialized"))
