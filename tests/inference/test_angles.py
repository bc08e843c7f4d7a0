"""AutoRealNVP on models with angles: which latents these are, where it starts, and what it draws.

The accuracy of three posteriors, by ``pytest -m slow -s tests/inference/test_angles.py``.
"""

import io
import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch.distributions import constraints

from pyro_realnvp import (
    AutoRealNVP,
    CircularSpline,
    Flow,
    MixedBase,
    NeuTra,
    Permute,
    importance_sample,
    load,
    realnvp_transforms,
    save,
    spline_transforms,
)
from pyro_realnvp.inference.angles import Chart, quantiles_of
from pyro_realnvp.inference.default_flow import default_transforms
from pyro_realnvp.inference.fixed_mixed import FixedMixed
from pyro_realnvp.testing import randomize

PI = math.pi
DATA = torch.tensor([2.9, -3.0, 2.5, -2.8, 3.1, 2.2, -2.4, 2.0])


def direction():
    angle = pyro.sample("angle", dist.VonMises(0.5, 1.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.VonMises(angle, 4.0), obs=DATA[:5])


def mixed():
    """A direction and a concentration; the angle is the first latent, log kappa the second."""
    angle = pyro.sample("angle", dist.VonMises(0.0, 0.5))
    kappa = pyro.sample("kappa", dist.LogNormal(1.0, 1.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.VonMises(angle, kappa), obs=DATA)


def kinds():
    """Angles of every kind, among others."""
    pyro.sample("a", dist.Normal(0, 1).expand([2]).to_event(1))
    pyro.sample("b", dist.VonMises(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("plate", 2):
        pyro.sample("c", dist.VonMises(0.0, 1.0))
        pyro.sample("d", dist.SineBivariateVonMises(0.0, 0.0, 3.0, 3.0, correlation=torch.tensor(1.0)))
    pyro.sample("e", dist.VonMises(0.0, 1.0).mask(False))
    pyro.sample("f", dist.VonMises(0.0, 1.0).expand([1]))
    pyro.sample("g", dist.HalfNormal(1.0))


def built(model, **kwargs):
    guide = AutoRealNVP(model, **{"init_scale": 0.1, **kwargs})
    guide.initialize()
    return guide


def train(guide, model, steps, lr=5e-3):
    optimizer = ClippedAdam({"lr": lr, "lrd": 0.999})
    svi = SVI(model, guide, optimizer, Trace_ELBO(32, vectorize_particles=True))
    return [svi.step() for _ in range(steps)]


def circular_mean_and_deviation(angles, weight):
    cosine, sine = weight @ angles.cos(), weight @ angles.sin()
    return torch.atan2(sine, cosine), (-2 * torch.hypot(cosine, sine).log()).sqrt()


def distance(a, b):
    return abs(math.remainder(float(a - b), 2 * PI))


# ------------------------------------------------------------------------------------------- which latents are angles


def test_angles_are_the_sites_of_von_mises_distributions():
    guide = built(kinds)
    assert guide.latent_dim == 2 + 3 + 2 + 4 + 1 + 1 + 1
    assert guide._angles == list(range(2, 13))
    for name in "bcdef":
        value = guide.sample_posterior((100,))[name]
        assert ((value >= -torch.tensor(PI)) & (value < torch.tensor(PI))).all()


def test_angles_may_be_named():
    def model():
        pyro.sample("x", dist.Normal(0, 1))
        pyro.sample("angle", dist.VonMises(0.0, 1.0))

    assert built(model)._angles == [1]
    assert built(model, circular=["x"], name="x")._angles == [0]
    assert built(model, circular=["x", "angle"], name="both")._angles == [0, 1]
    plain = built(model, circular=[], name="none")
    assert plain._angles == []
    assert isinstance(plain.get_base_dist().base_dist, dist.Normal)


@pytest.mark.parametrize(
    ("name", "message"), [("z", "'z', which is no latent site"), ("g", r"'g', whose support is .*not real")]
)
def test_names_that_cannot_be_angles(name, message):
    with pytest.raises(ValueError, match=message):
        built(kinds, circular=[name])


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 16])
def test_every_two_latents_meet_and_keep_their_kind(dim):
    circular = list(range(0, dim, 3))
    order = list(range(dim))
    meetings = set()
    for part in default_transforms(dim, circular):
        if isinstance(part, Permute):
            order = [order[index] for index in part.permutation.tolist()]
            continue
        where = part.bijection._coordinates()
        assert [index for index, each in zip(order, where, strict=True) if each.circular] == [
            index for index in order if index in circular
        ]
        randomize(part)
        jacobian = torch.autograd.functional.jacobian(lambda x, f=part: f.forward_and_log_det(x)[0], torch.randn(dim))
        moved, read = jacobian.abs().gt(0).nonzero().T.tolist()
        meetings |= {frozenset((order[i], order[j])) for i, j in zip(moved, read, strict=True) if i != j}
    assert order == list(range(dim))
    assert len(meetings) == dim * (dim - 1) // 2


def test_a_flow_of_ones_own():
    guide = built(kinds, transforms=lambda dim, circular: spline_transforms(dim, circular=circular, couplings=2))
    assert any(isinstance(module, CircularSpline) for module in guide.modules())
    guide.sample_posterior((3,))


def test_a_flow_that_knows_no_angles_is_refused():
    with pytest.raises(TypeError, match=r"transforms was called with \(1, circular=\[0\]\), which it does not take"):
        built(direction, transforms=realnvp_transforms)


# ------------------------------------------------------------------------------------------------------ where it starts


def test_a_narrow_start_is_as_wide_as_is_asked_for():
    draws = built(mixed, init_scale=0.02).sample_posterior((5000,))
    assert draws["angle"].std().item() == pytest.approx(0.02, rel=0.1)
    assert draws["kappa"].log().std().item() == pytest.approx(0.02, rel=0.1)


def test_the_search_finds_the_angle_on_the_other_side_of_the_seam():
    guide = AutoRealNVP(direction)
    guide.initialize()
    angle = guide.sample_posterior((20_000,))["angle"].double()
    mean, deviation = circular_mean_and_deviation(angle, torch.full((20_000,), 1 / 20_000).double())
    assert distance(mean, torch.tensor(3.0255)) < 0.02
    assert deviation.item() == pytest.approx(0.2387, rel=0.05)


def test_a_chart_of_a_density_with_two_modes_is_wide():
    """The Gaussian of the search sees one of them."""

    def log_density(x):
        return 50 * (2 * (x[:, 0] - 1)).cos() - 0.5 * (x[:, 1] / 0.3).square()

    loc = torch.zeros(2)
    chart = Chart(log_density, loc, [0], draws=200)
    mean, root = torch.tensor([0.0, 0.1]), torch.tensor([[0.05, 0.0], [0.2, 0.25]])
    center, scale = chart.constants(mean, root)
    assert abs(math.sin(float(center[0]) - 1)) < 0.1
    assert scale[0, 0] > 2.5
    assert scale[1, 0] == 0
    torch.testing.assert_close(scale[1, 1], (root[1] @ root[1]).sqrt())


def test_the_density_of_a_chart_is_proper():
    chart = Chart(lambda x: 2 * (x[:, 0] - 1).cos(), torch.zeros(1), [0], draws=20)
    t = torch.linspace(-1000, 1000, 2_000_001, dtype=torch.float64)[:, None]
    total = chart(t).exp().sum() * 1e-3
    assert total.item() == pytest.approx(2 * PI * torch.special.i0(torch.tensor(2.0)).item(), rel=2e-3)


@pytest.mark.parametrize("s", [1e-4, 0.05, 0.3, 1.0, 100.0])
def test_the_last_layer_narrows_the_base(s):
    layer = FixedMixed(torch.tensor([3.0, 0.0]), torch.tensor([s, 2.0]), [0])
    y = layer(layer.base()().sample((20_000,)))
    narrowed = torch.tensor([distance(angle, 3.0) for angle in y[:, 0]])
    if s < 10:
        assert narrowed.quantile(0.6827).item() == pytest.approx(s, rel=0.08)
    else:
        assert narrowed.quantile(0.5).item() == pytest.approx(PI / 2, rel=0.05)  # uniform
    assert y[:, 1].std().item() == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("s", [1e-6, 1e-3, 1.0, 1e3])
def test_the_last_layer_is_finite_in_float32(s):
    layer = FixedMixed(torch.tensor([3.0]), torch.tensor([s]), [0])
    x = torch.tensor([-PI, PI, math.nextafter(PI, 0), 0.0, 1e-30, 4.0, -1e4])[:, None].requires_grad_()
    for g in (layer.forward_and_log_det, layer.inverse_and_log_det):
        y, log_det = g(x)
        assert ((y >= -torch.tensor(PI)) & (y < torch.tensor(PI))).all()
        assert log_det.isfinite().all()
        assert torch.autograd.grad(y.sum() + log_det.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("scale", "circular", "message"),
    [
        (torch.ones(3), [0], "scale"),
        (torch.tensor([1.0, -1.0]), [0], "positive diagonal"),
        (torch.tensor([[1.0, 0.0], [0.5, 1.0]]), [0], "zeros beside the diagonal for angles"),
        (torch.tensor([[1.0, 0.0], [0.5, 1.0]]), [1], "zeros beside the diagonal for angles"),
        (torch.ones(2), [2], "FixedMixed has coordinates 0 to 1"),
    ],
)
def test_constants_that_do_not_fit(scale, circular, message):
    with pytest.raises(ValueError, match=message):
        FixedMixed(torch.zeros(2), scale, circular)


# -------------------------------------------------------------------------------------------------------- what it draws


def test_the_density_of_the_guide_is_that_of_its_flow():
    guide = built(mixed).double()
    randomize(guide.transform)
    flow = guide.flow
    assert isinstance(flow.base, MixedBase)
    x = guide.get_posterior().rsample((50,))
    torch.testing.assert_close(guide.get_posterior().log_prob(x.detach().clone()), flow(x))
    angles = torch.linspace(-PI, PI, 401, dtype=torch.float64)[:-1]
    others = torch.linspace(-4, 4, 401, dtype=torch.float64)
    center = guide.transform[-1].loc[1]
    grid = torch.cartesian_prod(angles, center + others)
    total = flow(grid).exp().sum() * (angles[1] - angles[0]) * (others[1] - others[0])
    assert total.item() == pytest.approx(1, abs=5e-3)


def test_the_flow_of_a_guide_is_saved_and_loaded(tmp_path):
    guide = built(mixed)
    randomize(guide.transform)
    save(guide.flow, tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors")
    x = guide.flow.sample((5,))
    assert isinstance(loaded, Flow)
    torch.testing.assert_close(loaded(x), guide.flow(x), rtol=0, atol=0)


def test_a_state_loads_into_a_fresh_guide_before_it_sees_the_model():
    guide = AutoRealNVP(mixed)
    train(guide, mixed, 2)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    pyro.clear_param_store()
    fresh = AutoRealNVP(mixed)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert fresh._angles == [0]
    fresh.initialize()
    results = []
    for each in (guide, fresh):
        pyro.set_rng_seed(3)
        results.append(each.sample_posterior((6,)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in ("angle", "kappa"))
    other = AutoRealNVP(mixed, circular=[])
    other.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"has angles at \[0\] of its latents, but the model at \[\]"):
        other.initialize()


def test_a_store_loads_into_a_fresh_guide(tmp_path):
    guide = AutoRealNVP(mixed)
    train(guide, mixed, 2)
    pyro.set_rng_seed(3)
    expected = guide.sample_posterior((6,))
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.set_rng_seed(17)
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    fresh = AutoRealNVP(mixed)
    fresh()
    pyro.set_rng_seed(3)
    drawn = fresh.sample_posterior((6,))
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)


def test_a_guide_saved_whole():
    guide = built(mixed)
    file = io.BytesIO()
    torch.save(guide, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    pyro.set_rng_seed(3)
    expected = guide.sample_posterior((6,))
    pyro.set_rng_seed(3)
    assert torch.equal(loaded.sample_posterior((6,))["angle"], expected["angle"])


def test_quantiles_of_an_angle_go_around_its_mean():
    guide = built(direction, init_scale=0.3, init_loc_fn=lambda site: torch.tensor(3.1))
    low, median, high = guide.quantiles([0.1, 0.5, 0.9])["angle"].tolist()
    assert median == pytest.approx(3.1, abs=1e-3)
    assert 2.6 < low < 2.85
    assert -PI < high < -2.75
    assert distance(low, 3.1) == pytest.approx(distance(high, 3.1), abs=1e-3)
    assert guide.median()["angle"].item() == pytest.approx(median)


def test_quantiles_of_draws():
    x = torch.stack([torch.linspace(3, 2 * PI - 3, 101), torch.linspace(0, 1, 101)], 1)
    x[:, 0] = torch.remainder(x[:, 0] + PI, 2 * PI) - PI
    found = quantiles_of(x, torch.tensor([0.0, 0.5, 1.0]), [0])
    torch.testing.assert_close(found[[0, 2]], torch.tensor([[3.0, 0.0], [-3.0, 1.0]]))
    assert distance(found[1, 0], torch.tensor(PI)) < 1e-3
    assert torch.equal(quantiles_of(x, torch.tensor([0.5]), []), x.quantile(torch.tensor([0.5]), dim=0))


def test_training_gets_better_and_other_uses_work():
    guide = AutoRealNVP(mixed)
    losses = train(guide, mixed, 60)
    assert sum(losses[-20:]) < sum(losses[:20])
    weighted = importance_sample(mixed, guide, num_samples=500, parallel=True)
    assert weighted.log_weights.isfinite().all()
    assert math.isfinite(weighted.log_evidence)
    assert guide.get_posterior().support.check(guide.get_posterior().sample((10,))).all()
    neutra = NeuTra(mixed, guide)
    mcmc = MCMC(NUTS(neutra), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run()
    angle = neutra.get_samples(mcmc)["angle"]
    assert ((angle >= -torch.tensor(PI)) & (angle < torch.tensor(PI))).all()


# ------------------------------------------------------------------------------------------------------------- accuracy


def phase():
    """Phase and frequency of a wave; their correlation is -0.9."""
    angle = pyro.sample("angle", dist.VonMises(0.0, 0.01))
    frequency = pyro.sample("frequency", dist.LogNormal(0.0, 1.0))
    times = torch.linspace(0, 3, 20)
    with pyro.plate("data", 20):
        pyro.sample("y", dist.Normal(torch.sin(frequency * times + angle), 0.3), obs=WAVE)


WAVE = torch.sin(1.3 * torch.linspace(0, 3, 20) + 2.8) + 0.3 * torch.randn(
    20, generator=torch.Generator().manual_seed(1)
)


def density_of_direction(angle, other):
    return (angle - 0.5).cos() + 4 * sum((angle - y).cos() for y in DATA[:5].double())


def density_of_mixed(angle, kappa):
    prior = 0.5 * angle.cos() + dist.LogNormal(torch.tensor(1.0).double(), 1.0).log_prob(kappa)
    likelihood = sum(kappa * (angle - y).cos() for y in DATA.double())
    return prior + likelihood - len(DATA) * (torch.special.i0e(kappa).log() + kappa)


def density_of_phase(angle, frequency):
    waves = torch.sin(frequency[:, None] * torch.linspace(0, 3, 20).double() + angle[:, None])
    prior = 0.01 * angle.cos() + dist.LogNormal(torch.tensor(0.0).double(), 1.0).log_prob(frequency)
    return prior - 0.5 * ((WAVE.double() - waves) / 0.3).square().sum(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "density", "other", "high"),
    [
        (direction, density_of_direction, None, 1.0),
        (mixed, density_of_mixed, "kappa", 30.0),
        (phase, density_of_phase, "frequency", 8.0),
    ],
)
def test_defaults_find_the_posterior(model, density, other, high):
    guide = AutoRealNVP(model)
    start = time.process_time()
    train(guide, model, 3000)
    seconds = time.process_time() - start
    angles = (torch.arange(800, dtype=torch.float64) + 0.5) * 2 * PI / 800 - PI
    others = torch.linspace(1e-3, high, 800 if other else 1, dtype=torch.float64)
    grid = torch.cartesian_prod(angles, others).reshape(-1, 2)
    weight = torch.cat([density(*part.unbind(1)) for part in grid.split(40_000)]).softmax(0)
    mean, deviation = circular_mean_and_deviation(grid[:, 0], weight)
    draws = guide.sample_posterior((50_000,))
    equal = torch.full((50_000,), 1 / 50_000).double()
    found, found_deviation = circular_mean_and_deviation(draws["angle"].double(), equal)
    errors = [distance(found, mean) / deviation.item(), abs(found_deviation / deviation - 1).item()]
    if other:
        real = weight @ grid[:, 1]
        spread = (weight @ (grid[:, 1] - real).square()).sqrt()
        value = draws[other].double()
        errors += [abs((value.mean() - real) / spread).item(), abs(value.std() / spread - 1).item()]
    k = importance_sample(model, guide, num_samples=10_000, parallel=True).pareto_k
    text = ", ".join(f"{error:.3f}" for error in errors)
    print(f"\n{model.__name__}: mean and sd off by {text} sd, k-hat {k:.2f}, {seconds:.0f} s of one thread")
    assert max(errors) <= 0.05
    assert k <= 0.7


def test_the_support_of_the_latents_has_the_circle_in_it():
    constraint = built(mixed).get_posterior().support
    assert isinstance(constraint, constraints.independent)
    assert not constraint.check(torch.tensor([3.2, 0.0]))
    assert constraint.check(torch.tensor([3.1, 100.0]))
