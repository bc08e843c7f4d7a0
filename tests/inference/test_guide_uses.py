"""AutoRealNVP in every place where Pyro takes a guide, with every kind of model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroSample
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_realnvp import (
    MLP,
    AutoRealNVP,
    Chain,
    Elementwise,
    MixtureLogistic,
    NeuTra,
    fit_guide,
    flowpp_transforms,
    glow_transforms,
    importance_sample,
    nice_transforms,
    realnvp_transforms,
)
from pyro_realnvp.inference.many_draws import explained

mlp = partial(MLP, hidden=(8,))
small = partial(realnvp_transforms, couplings=2, net=mlp)
quick = partial(AutoRealNVP, transforms=small, init_scale=0.1)  # fits nothing beforehand
jit_is_deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")  # what torch says itself


def nested(y: Tensor) -> None:
    """Sites outside, in one plate and in two, of several supports."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 3, dim=-1):
        group = pyro.sample("group", dist.Normal(mean, scale))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("cells", 2, dim=-2):
            cell = pyro.sample("cell", dist.Gamma(2.0, 1.0))
            pyro.sample("y", dist.Normal(group + cell + share[..., 0], 0.5), obs=y)


DATA = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.5, 2.0]])
SHAPES = {"mean": (), "scale": (), "group": (3,), "share": (3, 3), "cell": (2, 3)}
LATENTS = 1 + 1 + 3 + 3 * 2 + 6


def check_supports(values: dict[str, Tensor]) -> None:
    assert (values["scale"] > 0).all()
    assert (values["cell"] > 0).all()
    torch.testing.assert_close(values["share"].sum(-1), torch.ones(values["share"].shape[:-1]))


ELBOS: dict[str, Callable[[], Any]] = {
    "trace": Trace_ELBO,
    "trace-particles": partial(Trace_ELBO, num_particles=3),
    "trace-vectorized": partial(Trace_ELBO, num_particles=3, vectorize_particles=True),
    "trace-vectorized-nesting": partial(Trace_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=2),
    "jit": partial(JitTrace_ELBO, ignore_jit_warnings=True),
    "jit-vectorized": partial(JitTrace_ELBO, num_particles=3, vectorize_particles=True, ignore_jit_warnings=True),
    "mean-field": TraceMeanField_ELBO,
    "mean-field-vectorized": partial(TraceMeanField_ELBO, num_particles=3, vectorize_particles=True),
    "mean-field-jit": partial(JitTraceMeanField_ELBO, ignore_jit_warnings=True),
    "graph": TraceGraph_ELBO,
    "iwae": partial(RenyiELBO, alpha=0, num_particles=3),
    "iwae-vectorized": partial(RenyiELBO, alpha=0, num_particles=3, vectorize_particles=True),
    "renyi": partial(RenyiELBO, alpha=0.5, num_particles=3),
    "renyi-vectorized": partial(RenyiELBO, alpha=0.5, num_particles=3, vectorize_particles=True),
}


@jit_is_deprecated
@pytest.mark.parametrize("elbo", ELBOS)
def test_every_bound_rises(elbo: str) -> None:
    guide = quick(nested)
    svi = SVI(nested, guide, ClippedAdam({"lr": 5e-2}), ELBOS[elbo]())
    with warnings.catch_warnings():
        if elbo.startswith("mean-field"):  # of every AutoContinuous
            warnings.filterwarnings("ignore", "TraceMeanField_ELBO: Found vars in guide but not model")
        losses = [svi.step(DATA) for _ in range(14)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sorted(losses[-5:])[2] < sorted(losses[:5])[2] - 3  # medians: a few draws of a heavy tail may be far off
    assert guide.latent_dim == LATENTS


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_agree(vectorize: bool) -> None:
    """The bound of many particles in one run of the model, and one after the other."""
    guide = quick(nested)
    guide.initialize(DATA)
    count = 400 if vectorize else 50
    elbo = Trace_ELBO(num_particles=count, vectorize_particles=vectorize, max_plate_nesting=2)
    reference = importance_sample(nested, guide, DATA, num_samples=4000, parallel=True).log_weights
    error = 4 * reference.std().item() / count**0.5
    assert elbo.loss(nested, guide, DATA) == pytest.approx(-reference.mean().item(), abs=error)


def test_the_density_of_a_trace_is_that_of_the_draw() -> None:
    """log q(y) of the sites, with every change of variables, against the density of x by hand."""
    guide = quick(nested)
    trace = pyro.poutine.trace(guide).get_trace(DATA)
    x = trace.nodes["_AutoRealNVP_latent"]["value"]
    values = {name: trace.nodes[name]["value"] for name in SHAPES}
    log_det = 0
    for name, value in values.items():
        transform = torch.distributions.biject_to(guide.prototype_trace.nodes[name]["fn"].support)
        log_det = log_det + transform.log_abs_det_jacobian(transform.inv(value), value).sum()
    log_q = guide.get_posterior().log_prob(x.detach().clone())
    torch.testing.assert_close(trace.log_prob_sum(), log_q - log_det, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- what it answers


@pytest.mark.parametrize("sample_shape", [(), (5,), (4, 5)])
def test_shapes_of_draws(sample_shape: tuple[int, ...]) -> None:
    guide = quick(nested)
    guide.initialize(DATA)
    values = guide.sample_posterior(sample_shape)
    assert {name: value.shape for name, value in values.items()} == {
        name: sample_shape + shape for name, shape in SHAPES.items()
    }
    assert not any(value.requires_grad for value in values.values())
    check_supports(values)
    posterior = guide.get_posterior()
    assert posterior.event_shape == (LATENTS,)
    assert posterior.rsample(torch.Size(sample_shape)).shape == (*sample_shape, LATENTS)


def test_draws_of_a_call() -> None:
    guide = quick(nested)
    values = guide(DATA)
    assert {name: value.shape for name, value in values.items()} == SHAPES
    check_supports(values)
    assert values["group"].requires_grad


def test_transform_without_arguments() -> None:
    guide = quick(nested)
    guide.initialize(DATA)
    transform = guide.get_transform()
    z = guide.get_base_dist().sample((7,))
    assert z.shape == (7, LATENTS)
    x = transform(z)
    torch.testing.assert_close(transform.inv(x.clone()), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        guide.get_posterior().log_prob(x), guide.get_base_dist().log_prob(z) - transform.log_abs_det_jacobian(z, x)
    )


def test_quantiles_are_those_of_the_draws() -> None:
    guide = quick(nested, init_scale=0.5)
    guide.initialize(DATA)
    levels = [0.05, 0.5, 0.9]
    found = guide.quantiles(levels)
    draws = guide.sample_posterior((40_000,))
    for name in ("mean", "scale", "group", "cell"):
        assert found[name].shape == (3, *SHAPES[name])
        expected = torch.quantile(draws[name], torch.tensor(levels), dim=0)
        torch.testing.assert_close(found[name], expected, rtol=0.03, atol=0.03)
    assert {name: value.shape for name, value in guide.median().items()} == SHAPES
    torch.testing.assert_close(guide.median()["cell"], found["cell"][1], rtol=0.03, atol=0)
    check_supports(guide.median())


def test_quantiles_of_a_new_guide_and_of_a_tensor() -> None:
    found = quick(nested).quantiles(torch.tensor([0.25, 0.75]), DATA)
    assert (found["scale"][0] < found["scale"][1]).all()


# --------------------------------------------------------------------------------------------------- kinds of models


def steps(model: Any, guide: Any, *args: Any, count: int = 3, vectorize: bool = True) -> list[float]:
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=vectorize)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-2}), elbo)
    losses = [svi.step(*args) for _ in range(count)]
    assert all(torch.isfinite(torch.tensor(losses)))
    return losses


def test_part_of_a_list() -> None:
    def model() -> None:
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        with pyro.plate("four", 4):
            w = pyro.sample("w", dist.Normal(k, 1.0))
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.arange(4.0))

    guide = AutoGuideList(model)
    guide.append(AutoDelta(pyro.poutine.block(model, expose=["k"])))
    guide.append(quick(pyro.poutine.block(model, hide=["k"])))
    steps(model, guide, vectorize=False)
    values = guide()
    assert values["w"].shape == (4,)
    assert guide[1].sample_posterior((5,))["w"].shape == (5, 4)
    pyro.clear_param_store()
    fitted = AutoGuideList(model)
    fitted.append(AutoRealNVP(pyro.poutine.block(model, expose=["k"]), small))
    fitted.append(AutoRealNVP(pyro.poutine.block(model, expose=["w"]), small))
    steps(model, fitted)


class Network(PyroModule):
    """Weights that are random, weights that are not, and a Module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.shift = nn.Linear(2, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        mean = (self.linear(x) + self.shift(x)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)


@pytest.mark.filterwarnings("ignore:AutoRealNVP cannot run its model on many draws")  # a linear layer takes one weight
@pytest.mark.parametrize("make", [quick, partial(AutoRealNVP, transforms=small)])
def test_parameters_of_the_model_are_learned_too(make: Callable[..., Any]) -> None:
    model, x = Network(), torch.randn(6, 2)
    y = x.sum(-1)
    guide = make(model)
    guide(x, y)
    assert not any(name.startswith("shift") for name, _ in guide.named_parameters())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    noise = pyro.param("noise").item()
    steps(model, guide, x, y, vectorize=False)
    assert pyro.param("noise").item() != noise
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_subsampled_data() -> None:
    y = 3 + torch.randn(200)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 200, subsample_size=20) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    guide = AutoRealNVP(model, small)
    steps(model, guide, count=10)
    assert guide.sample_posterior((500,))["mean"].mean().item() == pytest.approx(y.mean().item(), abs=0.3)


def test_improper_prior() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        b = pyro.sample("b", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(a, b), obs=torch.tensor([1.0, 2.0, 4.0, 5.0]))

    guide = AutoRealNVP(model, small)
    steps(model, guide, vectorize=False)
    assert (guide.sample_posterior((50,))["b"] > 0).all()
    assert guide.sample_posterior((500,))["a"].mean().item() == pytest.approx(3, abs=0.7)


def test_double() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a.sum(-1), 0.1), obs=torch.tensor(1.0, dtype=torch.float64))

    guide = AutoRealNVP(model, small)
    steps(model, guide)
    assert guide()["a"].dtype == torch.float64
    assert {value.dtype for value in guide.parameters()} == {torch.float64}
    assert guide.quantiles([0.5])["a"].dtype == torch.float64


def test_not_vectorizable() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        scale = 0.5 if a > 0 else 1.0
        pyro.sample("y", dist.Normal(a, scale), obs=torch.tensor(0.5))

    guide = AutoRealNVP(model, small)
    with pytest.warns(UserWarning, match="cannot run its model on many draws at once.*ambiguous"):
        guide.initialize()
    steps(model, guide, vectorize=False)
    assert guide.sample_posterior((200,))["a"].mean().item() == pytest.approx(0.4, abs=0.3)


def by_group(y: torch.Tensor) -> None:
    """Indexes its groups from the left, as models of one draw may."""
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 8):
        pyro.sample("y", dist.Normal(a[torch.arange(8) % 4], 1.0), obs=y)


def test_an_index_from_the_left_is_explained() -> None:
    wanted = r"index latent sites from the right, a\[..., group\] instead of a\[group\]"
    guide = AutoRealNVP(by_group, small)
    with pytest.warns(UserWarning, match=wanted), pytest.raises((IndexError, RuntimeError, ValueError)) as failed:
        fit_guide(by_group, guide, torch.zeros(8), steps=2, progress=False)
    assert re.search(f"{wanted}.*vectorize=False", failed.value.__notes__[0])
    with pytest.raises((IndexError, RuntimeError, ValueError)) as failed:
        importance_sample(by_group, guide, torch.zeros(8), num_samples=10, parallel=True)
    assert re.search(f"{wanted}.*parallel=False", failed.value.__notes__[0])
    assert importance_sample(by_group, guide, torch.zeros(8), num_samples=10).samples["a"].shape == (10, 4)


@pytest.mark.parametrize(
    ("error", "many", "noted"),
    [
        (IndexError("index 5"), True, True),
        (RuntimeError("size of tensor a"), True, True),
        (ValueError("Shape mismatch inside plate"), True, True),
        (ValueError("the value is nan"), True, False),
        (IndexError("index 5"), False, False),
    ],
)
def test_which_errors_are_explained(error: Exception, many: bool, noted: bool) -> None:
    with pytest.raises(type(error)), explained("do so", many=many):
        raise error
    assert hasattr(error, "__notes__") == noted


def test_wrong_when_vectorized() -> None:
    """A model that sums over its draws gives numbers, but not theirs: the start must not believe them."""

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a.sum(), 1.0), obs=torch.tensor(0.5))

    guide = AutoRealNVP(model, small)
    with pytest.warns(UserWarning, match="another density together than apart"):
        guide.initialize()
    assert guide.sample_posterior((4000,))["a"].mean().item() == pytest.approx(0.25, abs=0.05)


def test_arguments_that_change() -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    guide = quick(model)
    steps(model, guide, torch.ones(3))
    steps(model, guide, torch.ones(5))


# ----------------------------------------------------------------------------------------------- transforms and users

BUILDERS: dict[str, Callable[[int], Any]] = {
    "flowpp": partial(flowpp_transforms, couplings=2, components=2, net=mlp),
    "glow": partial(glow_transforms, steps=2, net=mlp),
    "nice": partial(nice_transforms, net=mlp),
    "chain": lambda dim: Chain(small(dim)),
    "pyro": lambda dim: [dist.transforms.spline_coupling(dim, hidden_dims=[8], count_bins=4)],
    "elementwise": lambda dim: [Elementwise((dim,), MixtureLogistic(2))],
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_any_transforms(builder: str) -> None:
    guide = AutoRealNVP(nested, BUILDERS[builder], init_scale=0.1)
    before = steps(nested, guide, DATA, count=12)
    assert sum(before[-5:]) < sum(before[:5])
    state = guide.state_dict()
    pyro.clear_param_store()
    fresh = AutoRealNVP(nested, BUILDERS[builder], init_scale=0.1)
    fresh.load_state_dict(state)
    fresh.initialize(DATA)
    z = torch.randn(3, LATENTS)
    torch.testing.assert_close(fresh.get_transform()(z), guide.get_transform()(z.clone()), rtol=0, atol=0)


def test_optimizers_of_torch() -> None:
    guide = quick(nested)
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True)(nested, guide)
    loss(DATA)
    optimizer = torch.optim.Adam(loss.parameters(), lr=4e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        value = loss(DATA)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sorted(losses[-5:])[2] < sorted(losses[:5])[2] - 3


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel: bool) -> None:
    guide = quick(nested)
    guide(DATA)
    model = pyro.poutine.uncondition(nested)
    values = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(DATA)
    assert values["y"].shape == (6, 2, 3)
    assert values["cell"].reshape(6, 2, 3).gt(0).all()


def gaussian() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(a + b, 0.5), obs=torch.tensor(2.0))


def test_neutra_and_importance_sampling() -> None:
    guide = AutoRealNVP(gaussian, small)
    svi = SVI(gaussian, guide, ClippedAdam({"lr": 1e-2}), Trace_ELBO(32, vectorize_particles=True))
    for _ in range(100):  # before, the effective sample size is between 10 and 1300, by chance
        svi.step()
    weighted = importance_sample(gaussian, guide, num_samples=3000, parallel=True)
    mean = (weighted.log_weights.softmax(0) * weighted.samples["b"].flatten()).sum().item()
    assert weighted.effective_sample_size > 1000
    neutra = NeuTra(gaussian, guide)
    mcmc = MCMC(NUTS(neutra), num_samples=80, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    samples = neutra.get_samples(mcmc)
    assert samples["a"].shape == (80,)
    assert samples["b"].mean().item() == pytest.approx(mean, abs=0.3)


def test_reparametrized_by_pyro() -> None:
    guide = quick(gaussian)
    steps(gaussian, guide)
    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    trace = pyro.poutine.trace(neutra.reparam(gaussian)).get_trace()
    (latent,) = (site["value"] for name, site in trace.nodes.items() if name.endswith("_shared_latent"))
    values = neutra.transform_sample(latent)
    torch.testing.assert_close(trace.nodes["b"]["value"], values["b"])
