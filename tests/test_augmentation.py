"""Flows with more elements than the data: the bound, samples, and the Module that owns density and noise."""

import copy
import math
import pickle
from functools import partial

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from scipy import stats
from torch import nn

from pyro_realnvp import (
    Augmented,
    AugmentedFlow,
    Dequantized,
    DiagonalNormal,
    Flow,
    Logit,
    Permute,
    Scale,
    StandardNormal,
    fit,
    glow_transforms,
    load,
    realnvp_transforms,
    save,
)
from pyro_realnvp.networks.channel_norm import ChannelNorm
from pyro_realnvp.testing import randomize

from zoo import alone, convnet, mlp, prime, resnet


def density(dim=2):
    """A density over (x, e) that is far from one of independent elements."""
    flow = Flow(StandardNormal(dim), realnvp_transforms(dim, couplings=3, net=mlp)).double()
    randomize(flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.7)
    return flow.requires_grad_(False)


def noise(dim=1, context=1):
    build = partial(alone, realnvp_transforms) if dim == 1 else partial(realnvp_transforms, dim)
    flow = Flow(StandardNormal(dim), build(couplings=2, net=mlp, context_shape=context)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.requires_grad_(False)


def exact(flow, x, points=4001, reach=60.0):
    """log p(x) of one element, by the rectangle rule over t, for e = sinh(t) of one element."""
    t = torch.linspace(-math.asinh(reach), math.asinh(reach), points, dtype=x.dtype)
    pairs = torch.stack([x[:, None].expand(-1, points), t.sinh().expand(len(x), -1)], -1)
    log_prob = flow(pairs.reshape(-1, 2)).reshape(len(x), points)
    return (log_prob + t.cosh().log()).logsumexp(1) + (t[1] - t[0]).log()


# ---------------------------------------------------------------------------------------------------------------- bound


@pytest.mark.parametrize("make", [noise, lambda: StandardNormal(1).double(), lambda: StandardNormal(1).double()()])
def test_the_bound_grows_to_the_exact_density(make):
    flow, q = density(), make()
    x = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)
    truth = exact(flow, x)
    repeated = x.repeat(4000)[:, None]
    gaps = []
    for num_samples in (1, 4, 16, 64):
        bound = Augmented(flow.distribution(), q, num_samples=num_samples).log_prob(repeated).reshape(4000, 5)
        error = bound.std(0) / 4000**0.5
        assert (bound.mean(0) <= truth + 4 * error + 1e-6).all()
        gaps.append((truth - bound.mean(0)).max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.02
    many = Augmented(flow.distribution(), q, num_samples=300_000).log_prob(x[:, None])
    torch.testing.assert_close(many, truth, atol=0.03, rtol=0)


class Posterior:
    """The conditional of e given x of a Gaussian with these moments."""

    event_shape = (1,)

    def __init__(self, mean, covariance):
        self.mean, self.covariance = mean, covariance

    def condition(self, x):
        slope = self.covariance[1, 0] / self.covariance[0, 0]
        variance = self.covariance[1, 1] - slope * self.covariance[0, 1]
        return dist.Normal(self.mean[1] + slope * (x - self.mean[0]), variance.sqrt()).to_event(1)


def test_with_the_posterior_as_noise_one_draw_is_exact_and_so_are_its_gradients():
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([[1.5, 0.0], [0.8, 0.6]], dtype=torch.float64, requires_grad=True)
    x = torch.randn(2000, 1, dtype=torch.float64)
    q = Posterior(mean.detach(), (factor @ factor.T).detach())
    bound = Augmented(dist.MultivariateNormal(mean, scale_tril=factor), q).log_prob(x)
    marginal = dist.Normal(mean[0], factor[0, 0]).log_prob(x[:, 0])
    torch.testing.assert_close(bound, marginal)
    # Draw by draw a gradient has noise, of mean zero.
    repeats = 50
    x = x[:200]
    wanted = torch.autograd.grad(dist.Normal(mean[0], factor[0, 0]).log_prob(x[:, 0]).mean(), [mean, factor])
    found = []
    for _ in range(repeats):
        loss = Augmented(dist.MultivariateNormal(mean, scale_tril=factor), q).log_prob(x).mean()
        found.append(torch.autograd.grad(loss, [mean, factor]))
    for index, exactly in enumerate(wanted):
        each = torch.stack([gradients[index] for gradients in found])
        error = each.std(0) / repeats**0.5
        assert ((each.mean(0) - exactly).abs() <= 4.5 * error + 1e-9).all()


def test_training_makes_the_bound_tight():
    """In one dimension and one: to 0.02 nats by 100 draws, against quadrature. Two modes, which no affine map has."""
    target = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.4, 0.6])), dist.Normal(torch.tensor([[-1.0], [1.2]]), 0.4).to_event(1)
    )
    torch.manual_seed(0)
    both = Flow(StandardNormal(2), realnvp_transforms(2, couplings=4, net=partial(mlp, hidden=(32,))))
    q = Flow(StandardNormal(1), alone(realnvp_transforms, net=partial(mlp, hidden=(32,)), context_shape=1))
    model = AugmentedFlow(both, q)
    fit(model, target.sample((4000,)), steps=1500, learning_rate=1e-2, noise=0.0, progress=False)
    x = target.sample((500,))
    with torch.no_grad():
        bound = torch.stack([model.distribution(num_samples=100).log_prob(x) for _ in range(20)])
        truth = exact(model.flow, x[:, 0])
    gap = truth - bound.mean(0)
    print(f"gap of the bound {gap.mean():.4f} at 100 draws, KL {(target.log_prob(x) - truth).mean():.4f}")
    assert gap.mean() < 0.02
    assert gap.mean() > -4 * float(bound.std(0).mean()) / (20 * 500) ** 0.5
    plain = Flow(StandardNormal(1), realnvp_transforms(1))
    fit(plain, target.sample((4000,)), steps=800, learning_rate=1e-2, noise=0.0, progress=False)
    with torch.no_grad():
        assert (target.log_prob(x) - bound.mean(0)).mean() < 0.3 * (target.log_prob(x) - plain(x)).mean()


def test_every_parameter_gets_gradients_and_noise_is_drawn_anew():
    model = AugmentedFlow(density(4).requires_grad_(True), noise(2, 2).requires_grad_(True))
    x = torch.randn(5, 2, dtype=torch.float64)
    first, second = model(x), model(x)
    assert (first != second).all()
    for gradient in torch.autograd.grad(first.sum(), list(model.parameters())):
        assert gradient.isfinite().all()
        assert gradient.any()


# -------------------------------------------------------------------------------------------------------------- samples


def test_samples_have_the_exact_density():
    flow = density()
    x = Augmented(flow.distribution(), noise()).sample((4000,))
    assert x.shape == (4000, 1)
    grid = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
    below = exact(flow, grid, points=801).exp().cumsum(0) * (grid[1] - grid[0])
    assert below[-1].item() == pytest.approx(1, abs=1e-3)
    places = ((x[:, 0] - grid[0]) / (grid[1] - grid[0])).round().long().clamp(0, len(grid) - 1)
    assert stats.kstest(below[places].numpy(), "uniform").pvalue > 1e-3


def test_samples_are_those_of_the_flow_without_the_noise():
    model = AugmentedFlow(density(5), noise(2, 3))
    for kwargs in ({}, {"temperature": 0.5}, {"truncation": 1.0}):
        torch.manual_seed(1)
        x = model.sample((6, 2), **kwargs)
        torch.manual_seed(1)
        assert torch.equal(x, model.flow.sample((6, 2), **kwargs)[..., :3])
    x = model.distribution().rsample((3,))
    assert x.shape == (3, 3)
    assert model.distribution().has_rsample
    assert not model.sample((2,)).requires_grad


# --------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("num_samples", [1, 2, 3])
@pytest.mark.parametrize("q", [dist.Normal(torch.zeros(2), 1).to_event(1), DiagonalNormal(2, context_shape=1)])
def test_expand_and_batches(num_samples, q):
    base = dist.Normal(torch.zeros(3, 3), torch.tensor([[0.4], [0.7], [0.9]])).to_event(1)
    d = Augmented(base, q, num_samples=num_samples)
    assert (d.batch_shape, d.event_shape) == ((3,), (1,))
    wide = d.expand((5, 3))
    assert wide.batch_shape == (5, 3)
    assert wide.num_samples == num_samples
    assert wide.sample((2,)).shape == (2, 5, 3, 1)
    for values, shape in (
        ((6, 5, 3), (6, 5, 3)),
        ((5, 3), (5, 3)),
        ((3,), (5, 3)),
        ((), (5, 3)),
    ):
        assert wide.log_prob(torch.zeros(*values, 1)).shape == shape
    # Each with its own density.
    alone = Augmented(dist.Normal(torch.zeros(3), 0.7).to_event(1), q, num_samples=1000).log_prob(torch.ones(1))
    many = Augmented(base, q, num_samples=1000).log_prob(torch.ones(1))
    torch.testing.assert_close(many[1], alone, atol=0.15, rtol=0)
    assert many[0] != many[1] != many[2]


@pytest.mark.parametrize("extra", [1, 2])
def test_images_get_channels(extra):
    shape = (1 + extra, 4, 4)
    flow = prime(Flow(StandardNormal(shape), realnvp_transforms(shape, scales=1, net=resnet))).eval()
    q = Flow(
        StandardNormal((extra, 4, 4)),
        realnvp_transforms((extra, 4, 4), scales=1, net=resnet, context_shape=(1, 4, 4)),
    )
    model = AugmentedFlow(flow, prime(q).eval()).eval()
    assert model.event_shape == (1, 4, 4)
    x = model.sample((3, 2))
    assert x.shape == (3, 2, 1, 4, 4)
    assert model(x).shape == (3, 2)
    assert model.distribution(num_samples=5).log_prob(x).shape == (3, 2)
    torch.manual_seed(1)
    both = model.flow.sample((3,))
    torch.manual_seed(1)
    assert torch.equal(model.sample((3,)), both[:, :1])


def test_a_context_is_that_of_the_density():
    flow = Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp, context_shape=4))
    randomize(flow)
    model = AugmentedFlow(flow, DiagonalNormal(1, context_shape=2))
    context, x = torch.randn(6, 4), torch.randn(6, 2)
    assert model.sample((5,), context).shape == (5, 6, 2)
    assert model.distribution(context).batch_shape == (6,)
    torch.manual_seed(1)
    bound = model(x, context)
    torch.manual_seed(1)
    assert (model(x, context + 1) != bound).all()
    assert model(x[0], context).shape == (6,)
    with pytest.raises(ValueError, match="context"):
        model(x)


def test_dequantized_images_with_further_channels():
    """The bounds of both hold together, and the dtype is that of the density."""
    shape = (2, 2, 2)
    flow = Flow(StandardNormal(shape), [*realnvp_transforms(shape, scales=1, net=resnet), Logit(0.05).inv])
    inside = dist.Uniform(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).expand((1, 2, 2)).to_event(3)
    augmented = Augmented(prime(flow).eval().double().distribution(), inside)
    k = torch.randint(4, (5, 1, 2, 2))
    d = Dequantized(augmented, levels=4, num_samples=3)
    assert d.log_prob(k).shape == (5,)
    assert d.log_prob(k).dtype == torch.float64
    assert d.sample((2,)).shape == (2, 1, 2, 2)
    assert augmented.support.check(torch.full((1, 2, 2), 0.5))
    assert not augmented.support.check(torch.full((1, 2, 2), 1.5))


def test_it_is_an_observation_in_pyro():
    model = AugmentedFlow(
        Flow(StandardNormal(3), realnvp_transforms(3, couplings=2, net=mlp)), DiagonalNormal(1, context_shape=2)
    )
    data = torch.randn(40, 2) * 0.3 + 1

    def observed():
        pyro.module("model", model)
        with pyro.plate("rows", 40):
            return pyro.sample("x", model.distribution(), obs=data)

    svi = SVI(observed, lambda: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() / 40 for _ in range(100)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    trace = pyro.poutine.trace(pyro.poutine.uncondition(observed)).get_trace()
    assert trace.nodes["x"]["value"].shape == (40, 2)


# --------------------------------------------------------------------------------------------------------------- errors


def raises_one_sentence(call, pattern):
    with pytest.raises(ValueError, match=pattern) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.endswith(".")


@pytest.mark.parametrize(
    "make", [lambda both, q: AugmentedFlow(both, q), lambda both, q: Augmented(both.distribution(), q)]
)
@pytest.mark.parametrize(
    ("both", "q", "pattern"),
    [
        (2, 2, r"noise that is a part.*\(2,\).*\(2,\)"),
        (2, 3, r"noise that is a part.*\(2,\).*\(3,\)"),
        (4, (1, 2, 2), r"noise that is a part.*\(4,\).*\(1, 2, 2\)"),
        ((2, 4, 4), 2, r"noise that is a part.*\(2, 4, 4\).*\(2,\)"),
        ((2, 4, 4), (1, 4, 2), r"noise that is a part.*\(1, 4, 2\)"),
        ((2, 4), (1, 4), r"vectors or images.*\(2, 4\)"),
    ],
)
def test_noise_that_does_not_fit(make, both, q, pattern):
    flow = Flow(StandardNormal(both), [Scale(torch.Size((both,) if isinstance(both, int) else both))])
    raises_one_sentence(lambda: make(flow, StandardNormal(q)), rf"Augmented(Flow)? needs .*{pattern}")


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda d: Augmented(3, StandardNormal(1)), "Augmented needs a distribution as density, but got 3"),
        (lambda d: Augmented(d, 1), "Augmented needs .* as noise, but got 1"),
        (lambda d: Augmented(d, nn.ReLU()), "Augmented needs .* as noise, but got ReLU"),
        (lambda d: Augmented(d, StandardNormal(1), num_samples=0), "num_samples of Augmented .* got 0"),
        (
            lambda d: Augmented(d, StandardNormal(1)).log_prob(torch.zeros(4, 3)),
            r"Augmented expects .*\(2,\).*\(4, 3\)",
        ),
        (lambda d: Augmented(d, StandardNormal(1)).log_prob(torch.zeros(())), r"Augmented expects .*\(2,\).*\(\)"),
        (lambda d: Augmented(d, StandardNormal(1)).log_prob(None), "Augmented needs a tensor as events"),
        (lambda d: Augmented(d, StandardNormal(1)).log_prob(torch.zeros(4, 2).long()), "Augmented .*floating.*int64"),
        (lambda d: AugmentedFlow(d, StandardNormal(1)), "AugmentedFlow needs a Flow as flow, but got"),
        (lambda d: AugmentedFlow(density(3), 3), "AugmentedFlow needs a Flow or a Base as noise, but got 3"),
        (lambda d: AugmentedFlow(density(3), nn.ReLU()), "AugmentedFlow needs a Flow or a Base as noise, but got ReLU"),
        (
            lambda d: AugmentedFlow(density(3), DiagonalNormal(1, context_shape=3))(torch.zeros(4, 2)),
            r"\(3,\).*\(4, 2\)",
        ),
    ],
)
def test_arguments_that_are_refused(call, pattern):
    raises_one_sentence(lambda: call(density(3).distribution()), pattern)


# --------------------------------------------------------------------------------------------------------------- Module


def owned(**kwargs):
    flow = Flow(StandardNormal(4), [*realnvp_transforms(4, couplings=2, net=mlp), Permute((4,), [0, 2, 1, 3])])
    q = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp, context_shape=2))
    return AugmentedFlow(flow, kwargs.get("noise", q))


@pytest.mark.parametrize(
    "make", [owned, lambda: owned(noise=DiagonalNormal(2, context_shape=2)), lambda: owned(noise=StandardNormal(2))]
)
def test_copies_and_files(make, tmp_path):
    model = make()
    randomize(model)
    x = torch.randn(5, 2)

    def scored(model):
        torch.manual_seed(3)
        return model(x)

    save(model, tmp_path / "model.safetensors")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), load(tmp_path / "model.safetensors")):
        assert torch.equal(scored(other), scored(model))
        assert other.event_shape == (2,)
    assert not load(tmp_path / "model.safetensors").training
    assert model.double()(x.double()).dtype == torch.float64


def test_a_state_is_loaded_whole_or_not_at_all():
    model = owned()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items() if value.is_floating_point()}
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_printing():
    model = owned()
    count = sum(parameter.numel() for parameter in model.parameters())
    text = repr(model)
    assert f"events (2,), {count:,} parameters" in text
    assert "(flow): Flow of events (4,)" in text
    assert "(noise): Flow of events (2,)" in text
    assert model.summary().startswith("flow:\n")
    assert "noise:\n" in model.summary()
    assert "StandardNormal((2,))" in owned(noise=StandardNormal(2)).summary()
    half = AugmentedFlow.__new__(AugmentedFlow)
    nn.Module.__init__(half)
    assert "events None" in repr(half)


def test_normalizations_are_initialised_by_the_data_and_the_noise():
    both = Flow(StandardNormal(4), glow_transforms(4, steps=1, net=mlp))
    q = Flow(StandardNormal(2), glow_transforms(2, steps=1, net=mlp, context_shape=2))
    x = 5 + 3 * torch.randn(500, 2)
    for model in (AugmentedFlow(both, q), AugmentedFlow(copy.deepcopy(both), DiagonalNormal(2))):
        model.initialize(x)
        norms = [module for module in model.modules() if isinstance(module, ChannelNorm)]
        assert len(norms) >= 1
        assert all(norm.is_fixed for norm in norms)
        assert model.training
    image = prime(Flow(StandardNormal((2, 4, 4)), glow_transforms((2, 4, 4), levels=1, steps=1, net=convnet)))
    AugmentedFlow(image, StandardNormal((1, 4, 4))).initialize(torch.randn(6, 1, 4, 4))


def test_no_events_have_the_density_of_none():
    for model in (owned(), owned(noise=StandardNormal(2)), owned(noise=DiagonalNormal(2, context_shape=2))):
        for batch in ((0,), (2, 0)):
            assert model(torch.zeros(*batch, 2)).shape == batch
            assert model.distribution(num_samples=3).log_prob(torch.zeros(*batch, 2)).shape == batch


def test_fit_initialises_and_trains_and_goes_on(tmp_path):
    first = torch.randn(300)
    x = torch.stack([first, first.square() + 0.2 * torch.randn(300)], 1)

    def trained(**kwargs):
        torch.manual_seed(0)
        flow = Flow(StandardNormal(4), glow_transforms(4, steps=1, net=mlp))
        model = AugmentedFlow(flow, DiagonalNormal(2, context_shape=2))
        history = fit(model, x, steps=150, learning_rate=1e-2, seed=0, progress=False, **kwargs)
        return model, history

    def stop(row):
        raise KeyboardInterrupt

    model, history = trained()
    assert history.validation.min() < history.validation[0] - 0.1
    assert history.unit == "nats"
    assert not model.training
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=tmp_path / "run", callback=stop)
    again, _ = trained(checkpoint=tmp_path / "run")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
