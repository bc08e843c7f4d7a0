"""The couplings of the guide, which are one parameter and draw with their score, against those that they stand for."""

import pytest
import torch
from pyro import distributions as dist
from torch import nn

from pyro_realnvp import (
    Affine,
    Chain,
    FixedAffine,
    FixedLowRank,
    PathGradientDistribution,
    Permute,
    SoftClipLogScale,
    SplitCoupling,
)
from pyro_realnvp.inference.affine_couplings import AffineCouplings
from pyro_realnvp.inference.learned_affine import LearnedAffine
from pyro_realnvp.inference.steady import SteadyMLP
from pyro_realnvp.testing import randomize


def couplings(dim, **options):
    f = AffineCouplings(dim, **options).double()
    with torch.no_grad():
        f.weights.add_(0.3 * torch.randn_like(f.weights))
    return f


def composed(f):
    """Builds the couplings one by one, with the weights of f."""
    (dim,) = f.event_shape
    layers = []
    for index, weights in enumerate(f._layers(f.weights.detach())):
        read, changed = f.halves[1 - index % 2], f.halves[index % 2]
        net = SteadyMLP(read, 2 * changed).double()
        first, second, last = (layer for layer in net.layers if isinstance(layer, nn.Linear))
        with torch.no_grad():
            first.weight.copy_(weights.read[:64])
            first.bias.copy_(weights.bias[:64])
            second.weight.copy_(weights.hidden)
            second.bias.copy_(weights.hidden_bias)
            last.weight.copy_(torch.cat([weights.out, weights.read[64:]], 1))
            last.bias.copy_(weights.bias[64:])
        layers.append(SplitCoupling((dim,), net, Affine(SoftClipLogScale(1.0)), swap=index % 2 == 0).inv)
        if index % 2 and index < 2 * f.pairs - 1:
            layers.append(Permute((dim,), [*range(0, dim, 2), *range(1, dim, 2)]))
    last = LearnedAffine((dim,)).double()
    with torch.no_grad():
        last.theta.copy_(f.weights[-2 * dim :])
    return Chain([*layers, last])


@pytest.mark.parametrize("dim", [2, 3, 8, 11])
def test_it_is_the_composition_of_couplings(dim):
    f = couplings(dim, pairs=3)
    x = torch.randn(5, 4, dim, dtype=torch.float64)
    for one, other in (
        (f.forward_and_log_det(x), composed(f).forward_and_log_det(x)),
        (f.inverse_and_log_det(x), composed(f).inverse_and_log_det(x)),
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)  # factors are rounded to float32


def test_it_starts_as_the_networks_that_it_stands_for():
    torch.manual_seed(0)
    f = AffineCouplings(40)
    net = SteadyMLP(20, 40)
    first, second, _ = (layer for layer in net.layers if isinstance(layer, nn.Linear))
    weights = f._layers(f.weights.detach())
    for name, of_layer in (("read", first.weight), ("bias", first.bias), ("hidden", second.weight)):
        mine = torch.cat([getattr(each, name)[:64].flatten() for each in weights])
        assert mine.std().item() == pytest.approx(of_layer.std().item(), rel=0.15)
    x = torch.randn(3, 40)
    assert torch.equal(f(x), Chain([Permute((40,), each) for each in [[*range(0, 40, 2), *range(1, 40, 2)]] * 3])(x))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("dim", [2, 3, 8, 11])
def test_a_draw_comes_with_its_score(dim, skip):
    f = couplings(dim, skip=skip)
    x = torch.randn(6, 2, dim, dtype=torch.float64)
    score = torch.randn_like(x)  # of any density

    def log_density(y):
        z, log_det = f.inverse_and_log_det(y)
        return (z * score).sum() + log_det.sum()

    y = f(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(log_density(y), y)
    drawn, log_det, found = f.forward_and_score(x, score)
    torch.testing.assert_close(drawn, y, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(log_det, f.forward_and_log_det(x)[1], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("dim", [2, 5])
def test_the_gradient_of_a_draw_is_that_of_autodiff(dim, skip):
    f = couplings(dim, skip=skip)
    x = torch.randn(6, dim, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    for one, other in zip(
        torch.autograd.grad((f.forward_and_score(x, -x.detach())[0] * cotangent).sum(), [x, f.weights]),
        torch.autograd.grad((f.forward_and_log_det(x)[0] * cotangent).sum(), [x, f.weights]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def guide_like(dim=5, *, low_rank=False):
    root = torch.randn(dim, dim, dtype=torch.float64).tril(-1) + torch.eye(dim, dtype=torch.float64)
    learned = LearnedAffine((dim,)).double()
    randomize(learned)
    loc = torch.randn(dim, dtype=torch.float64)
    last = FixedAffine(loc, root)
    if low_rank:
        directions = torch.linalg.qr(torch.randn(dim, 2, dtype=torch.float64))[0]
        last = FixedLowRank(loc, root.diagonal() + 0.5, directions, torch.tensor([2.0, -0.4]).double())
    return Chain([couplings(dim), learned, last])


@pytest.mark.parametrize("base", ["unit", "student"])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("batch", [(7,), (3, 4)])
def test_pushed_scores_give_the_gradient_of_a_second_pass(base, batch, low_rank):
    chain = guide_like(low_rank=low_rank)
    zeros = torch.zeros(5, dtype=torch.float64)
    of_base = dist.Normal(zeros, 1).to_event(1) if base == "unit" else dist.StudentT(zeros + 5).to_event(1)
    generic = Chain([*chain, Permute((5,), range(5))])  # the last part pushes no scores
    results = []
    for transform in (chain, generic):
        q = PathGradientDistribution(of_base, [transform])
        torch.manual_seed(1)
        x = q.rsample(batch)
        log_q = q.log_prob(x)
        loss = (log_q - x.sin().sum(-1)).mean()
        results.append((x, log_q, *torch.autograd.grad(loss, list(chain.parameters()))))
        assert (q._last_draw.score is not None) == (transform is chain)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "loss",
    [
        lambda log_q, x: (torch.arange(6.0, dtype=torch.float64) * log_q).sum(),
        lambda log_q, x: (x.sin().sum(-1) - log_q).logsumexp(0),
        lambda log_q, x: log_q[0],
    ],
)
def test_weighted_draws_have_the_total_gradient(loss):
    chain, zeros = guide_like(), torch.zeros(5, dtype=torch.float64)
    results = []
    for kind in (PathGradientDistribution, dist.TransformedDistribution):
        q = kind(dist.Normal(zeros, 1).to_event(1), [chain])
        torch.manual_seed(1)
        x = q.rsample((6,))
        results.append(torch.autograd.grad(loss(q.log_prob(x), x), list(chain.parameters())))
    for one, other in zip(*results, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_a_base_with_parameters_is_a_part_of_the_path():
    loc = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    chain = guide_like()
    q = PathGradientDistribution(dist.Normal(loc, 1).to_event(1), [chain])
    x = q.rsample((6,))
    (found,) = torch.autograd.grad((q.log_prob(x) - x.sin().sum(-1)).mean(), loc)
    assert found.abs().min() > 0


@pytest.mark.parametrize("dim", [1, 0, 2.5])
def test_senseless_sizes_are_refused(dim):
    with pytest.raises(ValueError, match="dim"):
        AffineCouplings(dim)
