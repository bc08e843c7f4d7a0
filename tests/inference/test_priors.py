"""A flow as the prior of a Pyro model, and a conditional one as an amortized guide: the posteriors against known ones.

Known, because the couplings of an affine flow are affine, so that the prior is Gaussian and the posterior conjugate;
or because two dimensions can be integrated on a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import TransformReparam
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_realnvp import MLP, Flow, SplitCoupling, StandardNormal, realnvp_transforms
from pyro_realnvp.testing import randomize

from zoo import mlp

NOISE = 0.5
Model = Callable[[], object]


def affine_flow(size: int = 2, context_dim: int = 0) -> Flow:
    """A RealNVP whose scales are constants and whose shifts are linear: x = loc + A z (+ B context)."""
    transforms = realnvp_transforms(size, couplings=2, net=partial(MLP, hidden=()), context_dim=context_dim)
    flow = Flow(StandardNormal(size), transforms)
    randomize(flow)
    with torch.no_grad():
        for coupling in flow.modules():
            if isinstance(coupling, SplitCoupling):
                weight = coupling.conditioner.layers[-1].weight
                weight[len(weight) // 2 :] = 0  # the second half of the parameters is the scales
    return flow


def curved_flow(*, context_dim: int = 0) -> Flow:
    flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=mlp, context_dim=context_dim))
    randomize(flow)
    return flow


@torch.no_grad()
def normal_of(flow: Flow) -> dist.MultivariateNormal:
    """What an affine flow is, from images of points alone: no log-determinant takes part."""
    size = flow.event_shape[0]
    loc = flow.transforms(torch.zeros(size))
    columns = (flow.transforms(torch.eye(size)) - loc).T
    return dist.MultivariateNormal(loc, columns @ columns.T)


def posterior_of(prior: dist.MultivariateNormal, design: Tensor, y: Tensor) -> dist.MultivariateNormal:
    """p(z | y) for y ~ N(design z, NOISE^2 I)."""
    precision = prior.precision_matrix + design.T @ design / NOISE**2
    mean = torch.linalg.solve(precision, prior.precision_matrix @ prior.loc + design.T @ y / NOISE**2)
    return dist.MultivariateNormal(mean, precision_matrix=precision)


def evidence_of(prior: dist.MultivariateNormal, design: Tensor) -> dist.MultivariateNormal:
    """p(y), the same."""
    noise = NOISE**2 * torch.eye(len(design))
    return dist.MultivariateNormal(design @ prior.loc, design @ prior.covariance_matrix @ design.T + noise)


LOADINGS = torch.tensor([[1.0, 0.5], [-0.3, 1.0], [0.8, 0.8]])
Y = torch.tensor([1.5, -0.5, 1.0])


def regression(flow: Flow) -> Model:
    def model() -> Tensor:
        z = pyro.sample("z", flow.distribution())
        pyro.sample("y", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=Y)
        return z

    return model


def nuts(model: Model, *, samples: int = 150, compiled: bool = True) -> dict[str, Tensor]:
    """Draws of NUTS; the model traced by torch's jit takes half the time."""
    kernel = NUTS(model, jit_compile=compiled, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=50, disable_progbar=True)
    with pyro.validation_enabled(False):  # takes half of the time
        mcmc.run()
    assert not mcmc.diagnostics()["divergences"]["chain 0"]
    return mcmc.get_samples()


def assert_moments(z: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Means, variances and covariance of a chain (N, 2), up to four standard errors."""
    centred = z - mean
    products = torch.stack([centred[:, 0] ** 2, centred[:, 1] ** 2, centred[:, 0] * centred[:, 1]], -1)
    truth = torch.stack([covariance[0, 0], covariance[1, 1], covariance[0, 1]])
    for value, expected in ((z, mean), (products, truth)):
        error = value.std(0) / effective_sample_size(value[None]).clamp(max=len(z)).sqrt()
        assert ((value.mean(0) - expected).abs() < 4 * error).all()
        assert (error < 0.15 * covariance.diagonal().max().sqrt()).all()  # or else this would say nothing


def learn(model: Model, guide: Model, *, steps: int, rate: float) -> None:
    decay = pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.02 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True)
    svi = SVI(model, guide, decay, elbo)
    with pyro.validation_enabled(False):
        for _ in range(steps):
            svi.step()


# ------------------------------------------------------------------------------------------------------- NUTS


def test_an_affine_flow_is_the_normal_distribution_it_should_be() -> None:
    flow = affine_flow()
    z = torch.randn(5, 2)
    torch.testing.assert_close(flow(z), normal_of(flow).log_prob(z), atol=1e-4, rtol=1e-4)
    assert normal_of(flow).covariance_matrix[0, 1].abs() > 0.05


def grid_posterior(flow: Flow) -> tuple[Tensor, Tensor]:
    """Mean and covariance by the trapezoidal rule, which for smooth densities on such a grid is exact."""
    side = torch.linspace(-8, 8, 321)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        log_joint = flow(z) + dist.Normal(z @ LOADINGS.T, NOISE).log_prob(Y).sum(-1)
    weight = log_joint.softmax(0)
    assert weight.view(321, 321)[[0, -1]].max() < 1e-8  # nothing lies outside
    mean = weight @ z
    return mean, (z - mean).T @ (weight[:, None] * (z - mean))


jit = pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")  # of Pyro's own call


@jit
@pytest.mark.parametrize("reparametrised", [False, True])
def test_nuts_finds_the_posterior_under_a_curved_prior(reparametrised: bool) -> None:
    flow = curved_flow().eval().requires_grad_(False)
    model = regression(flow)
    if reparametrised:
        z = flow.transforms(nuts(poutine.reparam(model, {"z": TransformReparam()}), samples=300)["z_base"])
    else:
        z = nuts(model, samples=300, compiled=False)["z"]
    assert_moments(z, *grid_posterior(flow))


@jit
def test_nuts_over_a_plate_of_latents_with_their_own_contexts() -> None:
    flow = affine_flow(context_dim=2).eval().requires_grad_(False)
    context, y = torch.randn(2, 2), 2 * torch.randn(2, 3)

    def model() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", flow.distribution(context))
            pyro.sample("y", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=y)

    z = nuts(model)["z"]
    assert z.shape == (150, 2, 2)
    for row in range(2):
        given = Flow(flow.base, [flow.transforms.condition(context[row])])
        truth = posterior_of(normal_of(given), LOADINGS, y[row])
        assert_moments(z[:, row], truth.mean, truth.covariance_matrix)


# -------------------------------------------------------------------------------------------- SVI and autoguides


def test_the_reparametrised_model_has_the_same_evidence() -> None:
    """A full-covariance guide over the base of an affine flow is exact: its bound is log p(y)."""
    flow = affine_flow().eval().requires_grad_(False)
    model = poutine.reparam(regression(flow), {"z": TransformReparam()})
    guide = AutoMultivariateNormal(model)
    learn(model, guide, steps=300, rate=0.05)
    bound = -Trace_ELBO(num_particles=1000, vectorize_particles=True).loss(model, guide)
    evidence = evidence_of(normal_of(flow), LOADINGS).log_prob(Y)
    assert bound == pytest.approx(evidence.item(), abs=0.02)
    draws = Predictive(model, guide=guide, num_samples=300)()["z"]  # z itself is there, not only its base
    truth = posterior_of(normal_of(flow), LOADINGS, Y)
    error = truth.variance.sqrt() / 300**0.5
    assert ((draws.squeeze().mean(0) - truth.mean).abs() < 5 * error).all()


ROWS = 24


def local_model(flow: Flow, y: Tensor, batch: int) -> Model:
    """A latent of its own for every row, seen in minibatches."""

    def model() -> None:
        pyro.module("prior", flow)
        with pyro.plate("rows", ROWS, subsample_size=batch) as index:
            z = pyro.sample("z", flow.distribution())
            pyro.sample("y", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=y[index])

    return model


def test_auto_normal_with_subsampling() -> None:
    flow = affine_flow().eval().requires_grad_(False)
    y = 2 * torch.randn(ROWS, 3)
    model = local_model(flow, y, batch=8)
    guide = AutoNormal(model, create_plates=lambda: pyro.plate("rows", ROWS, subsample_size=8))
    learn(model, guide, steps=700, rate=0.1)
    truth = [posterior_of(normal_of(flow), LOADINGS, row) for row in y]
    mean = torch.stack([each.mean for each in truth])
    # The optimum of KL(q || p) has the mean of p, and the precisions of p's conditionals.
    scale = truth[0].precision_matrix.diagonal().rsqrt().expand(ROWS, 2)
    assert ((guide.locs.z.detach() - mean).abs() < 0.2 * scale).all()
    torch.testing.assert_close(guide.scales.z.detach(), scale, atol=0, rtol=0.15)


def test_the_gradient_of_a_learned_prior_with_subsampling() -> None:
    """Of the flow's own parameters, as in a VAE: that of N / B sum log p(z) over the rows of the minibatch."""
    flow = curved_flow()
    y = torch.randn(ROWS, 3)
    model = local_model(flow, y, batch=6)

    def guide() -> None:
        with pyro.plate("rows", ROWS, subsample_size=6) as index:
            pyro.sample("z", dist.Normal(y[index, :2], 0.3).to_event(1))

    drawn = poutine.trace(guide).get_trace()
    loss = Trace_ELBO().differentiable_loss(model, poutine.replay(guide, drawn))
    loss.backward()
    got = [parameter.grad.clone() for parameter in flow.parameters()]
    flow.zero_grad()
    z = drawn.nodes["z"]["value"]
    (-ROWS / 6 * flow(z).sum()).backward()
    assert all(gradient.any() for gradient in got)
    for gradient, parameter in zip(got, flow.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


# ---------------------------------------------------------------------------------------------------- Predictive


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_of_prior_and_posterior(parallel: bool) -> None:
    flow = affine_flow()
    prior, count = normal_of(flow), 1000

    def model() -> None:
        z = pyro.sample("z", flow.distribution())
        pyro.sample("y", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1))

    y = Predictive(model, num_samples=count, parallel=parallel)()["y"].reshape(count, 3)
    marginal = evidence_of(prior, LOADINGS)
    assert ((y.mean(0) - marginal.mean).abs() < 4 * marginal.variance.sqrt() / count**0.5).all()
    torch.testing.assert_close(y.var(0), marginal.variance, atol=0, rtol=4 * (2 / count) ** 0.5)

    # Given samples of z, the y follow from them and not from the prior.
    z = posterior_of(prior, LOADINGS, Y).sample((count,))
    given = Predictive(model, posterior_samples={"z": z}, parallel=parallel)()["y"]
    residual = (given.reshape(count, 3) - z @ LOADINGS.T) / NOISE
    assert residual.mean().abs() < 4 / (3 * count) ** 0.5
    torch.testing.assert_close(residual.std(), torch.tensor(1.0), atol=0.06, rtol=0)


# ------------------------------------------------------------------------------------------ amortized posteriors


def test_an_amortized_guide_with_subsampling_finds_every_posterior() -> None:
    """q(z | y), one conditional flow for all rows, learned in minibatches under a flow prior."""
    prior = affine_flow().eval().requires_grad_(False)
    y = evidence_of(normal_of(prior), LOADINGS).sample((ROWS,))
    net = partial(MLP, hidden=())
    posterior = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2, net=net, context_dim=3))

    def guide(batch: int = 12) -> None:
        pyro.module("posterior", posterior)
        with pyro.plate("rows", ROWS, subsample_size=batch) as index:
            pyro.sample("z", posterior.distribution(y[index]))

    learn(local_model(prior, y, batch=12), guide, steps=1000, rate=0.03)
    assert poutine.trace(guide).get_trace().nodes["z"]["value"].shape == (12, 2)
    everything = partial(guide, batch=ROWS)
    with torch.no_grad():
        z = posterior.distribution(y).sample((4000,))
        log_q = posterior(z, y)
        bound = -Trace_ELBO(num_particles=500, vectorize_particles=True).loss(local_model(prior, y, ROWS), everything)
    assert bound / ROWS == pytest.approx(evidence_of(normal_of(prior), LOADINGS).log_prob(y).mean().item(), abs=0.03)
    for row in range(ROWS):
        truth = posterior_of(normal_of(prior), LOADINGS, y[row])
        assert (log_q[:, row] - truth.log_prob(z[:, row])).mean().abs() < 0.03  # KL(q || p)
