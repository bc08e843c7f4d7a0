"""Training by maximum likelihood: data of any kind, a held-out part, the best averaged state, errors that help."""

import copy
import importlib
import math
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_realnvp import (
    ActNorm,
    Chain,
    DiagonalNormal,
    EmbedContext,
    Flow,
    History,
    ImageFlow,
    Logit,
    MixedBase,
    MixtureBase,
    StandardNormal,
    fit,
    flowpp_dequantizer,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    spline_transforms,
    standardized_from,
)
from pyro_realnvp.training.annealing import Noise
from pyro_realnvp.training.data import default_noise, default_weight_decay, rows_of
from pyro_realnvp.training.loop import decayed

from zoo import alone, calm_attention, convnet, features, mlp

mpl.use("Agg")

QUIET = {"progress": False, "seed": 0}


def flow_of(dim=2, **options):
    return Flow(StandardNormal(dim), realnvp_transforms(dim, couplings=2, net=mlp, **options))


def gaussian(rows=2000, seed=0):
    """Correlated, with entropy 1/2 log |2 pi e Sigma| = 2.3265 nats."""
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)) @ root.T


ENTROPY = math.log(2 * math.pi * math.e) + math.log(0.6)


def test_it_reaches_the_entropy_of_the_data():
    flow = flow_of()
    history = fit(flow, gaussian(20_000), steps=800, learning_rate=1e-2, **QUIET)
    assert not flow.training
    assert -flow(gaussian(20_000, seed=1)).mean().item() == pytest.approx(ENTROPY, abs=0.02)
    assert history.ended_by == "steps"
    assert history.step[-1] == 800
    assert history.loss[0] > history.loss[-1]
    assert history.best == history.validation.min()
    assert history.best_step == history.step[history.validation.argmin()]
    assert history.unit == "nats"


def test_patience_ends_it_at_the_best_state():
    torch.manual_seed(0)
    flow, x, held_out = flow_of(), gaussian(60), gaussian(200, seed=1)
    history = fit(
        flow, x, validation=held_out, learning_rate=2e-2, patience=3, noise=0.0, weight_decay=0.0, interval=10, **QUIET
    )
    assert history.ended_by == "patience"
    assert len(history.step) == int(history.validation.argmin()) + 4
    assert -flow(held_out).mean().item() == pytest.approx(history.best, abs=1e-5)  # the flow holds the best state
    assert history.validation[-1] > history.best


def test_a_conditional_flow_learns_what_the_context_says():
    context = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    x = torch.cat([2 * context, -context], 1) + 0.1 * gaussian(4000)
    flow = Flow(DiagonalNormal(2, context_shape=1), realnvp_transforms(2, couplings=2, net=mlp, context_shape=1))
    fit(flow, x, context=context, steps=800, learning_rate=1e-2, **QUIET)
    assert -flow.log_prob(x, context).mean().item() < ENTROPY + 2 * math.log(0.1) + 0.3
    samples = flow.sample((500,), torch.ones(1))
    torch.testing.assert_close(samples.mean(0), torch.tensor([2.0, -1.0]), atol=0.15, rtol=0)


def test_log_prob_is_what_calling_the_flow_gives():
    flow, x = flow_of(context_shape=3), torch.randn(5, 2)
    assert torch.equal(flow.log_prob(x, torch.ones(3)), flow(x, torch.ones(3)))
    images = torch.zeros(2, 1, 2, 2)
    model = ImageFlow(Flow(StandardNormal((1, 2, 2)), [Logit(0.05).inv]), 4)
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    assert torch.equal(model.log_prob(images), expected)


def pairs_of(x):
    return x, torch.ones(len(x), 1)


def loader_with_own_batches():
    return DataLoader(gaussian(8), batch_sampler=[[0, 1], [2, 3]])


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(32, 2)


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda x: x, 0),
        (lambda x: x.double(), 0),
        (lambda x: x.numpy(), 0),
        (lambda x: x.double().numpy(), 0),
        (lambda x: pairs_of(x), 1),
        (lambda x: tuple(part.numpy() for part in pairs_of(x)), 1),
        (lambda x: DataLoader(x, batch_size=32), 0),
        (lambda x: DataLoader(TensorDataset(x), batch_size=32, shuffle=True), 0),
        (lambda x: DataLoader(TensorDataset(*pairs_of(x.double())), batch_size=32, shuffle=True), 1),
    ],
)
def test_data_of_every_kind(make, context):
    flow = flow_of(context_shape=context)
    data = make(gaussian(200))
    history = fit(flow, data, epochs=3, batch_size=32, **QUIET)
    # Of 180 rows a DataLoader also returns the batch that is not full.
    assert history.step[-1] == 3 * (6 if isinstance(data, DataLoader) else 5)
    assert history.validation.isfinite().all()
    assert next(flow.parameters()).dtype == torch.float32


def test_a_loader_without_end():
    loader = DataLoader(Endless(), batch_size=None)
    history = fit(flow_of(), loader, validation=None, steps=20, interval=10, **QUIET)
    assert history.step.tolist() == [10, 20]
    assert history.validation.isnan().all()
    assert history.best_step == 20
    for options, message in (
        ({"steps": 5}, "cannot hold out a fraction of a DataLoader with a _InfiniteConstantSampler"),
        ({"epochs": 2, "validation": None}, "steps instead of epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(flow_of(), loader, **options, **QUIET)


@pytest.mark.parametrize(
    "held_out", [0.25, gaussian(50), gaussian(50).numpy(), (gaussian(50), None), DataLoader(gaussian(50))]
)
def test_held_out_data_of_every_kind(held_out):
    if isinstance(held_out, tuple):
        held_out = pairs_of(held_out[0])
        flow, x = flow_of(context_shape=1), pairs_of(gaussian(200))
    else:
        flow, x = flow_of(), gaussian(200)
    history = fit(flow, x, validation=held_out, steps=20, interval=10, **QUIET)
    assert history.validation.isfinite().all()
    assert len(history.step) == 2


def test_a_fraction_is_held_out_and_never_trained_on():
    x = torch.arange(200.0)[:, None].expand(200, 2).contiguous()
    seen = set()

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow_of()

        def forward(self, x):
            if self.training and self.flow.training:
                seen.update(x[:, 0].round().int().tolist())
            return self.flow(x / 200)

    fit(Spy(), x, validation=0.2, epochs=5, batch_size=32, noise=0.0, **QUIET)
    assert len(seen) == 160


@pytest.mark.parametrize("dequantizer", [False, True])
def test_integer_images_in_bits_per_dim(dequantizer):
    shape = (1, 2, 4)
    noise = None
    if dequantizer:
        transforms = flowpp_dequantizer(shape, couplings=1, components=2, net=calm_attention, embedding=features)
        noise = Flow(StandardNormal(shape), transforms)
    density = Flow(StandardNormal(shape), [*glow_transforms(shape, levels=1, steps=2, net=convnet), Logit(0.05).inv])
    model = ImageFlow(density, 4, noise)
    x = torch.randint(0, 2, (600, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    history = fit(model, x, steps=150, batch_size=64, learning_rate=1e-2, interval=50, **QUIET)
    assert history.unit == "bits/dim"
    assert 1.0 < history.best < 1.6  # a fair coin of four levels: 1 bit; uniform: 2
    assert all(norm.norm._is_initialized for norm in model.modules() if isinstance(norm, ActNorm))
    assert model.sample((3,)).dtype == torch.int64


def test_images_are_validated_with_equal_noise():
    shape = (1, 4, 4)
    model = ImageFlow(Flow(StandardNormal(shape), [*nice_transforms(shape, net=mlp), Logit(0.05).inv]), 4).eval()
    x = torch.randint(0, 4, (60, *shape), generator=torch.Generator().manual_seed(0))
    history = fit(model, x, steps=20, interval=10, learning_rate=1e-12, weight_decay=0.0, ema=0.99999, **QUIET)
    assert history.validation[1].item() == pytest.approx(history.validation[0].item(), abs=1e-3)


def test_any_module_that_returns_a_log_density():
    class Normal(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return -0.5 * (x - self.loc).square().sum(-1)

    module, x = Normal(), gaussian() + 3
    fit(module, x, steps=400, learning_rate=5e-2, **QUIET)
    torch.testing.assert_close(module.loc.data, x.mean(0), atol=0.1, rtol=0)


def test_a_seed_repeats_a_run_and_leaves_the_global_state_alone():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        flow = flow_of()
        before = torch.get_rng_state()
        history = fit(flow, gaussian(), steps=30, interval=10, progress=False, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        results.append([*flow.state_dict().values(), history.loss, history.validation])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.manual_seed(3)
    flow = flow_of()
    fit(flow, gaussian(), steps=30, interval=10, progress=False, seed=6)
    assert not all(torch.equal(a, b) for a, b in zip(flow.state_dict().values(), results[0], strict=False))


def test_the_callback_sees_the_averaged_flow_and_can_end_it():
    flow, rows, losses = flow_of(), [], []
    held_out = gaussian(300, seed=1)

    def callback(row):
        rows.append(row)
        losses.append(-flow(held_out).mean().item())
        assert not flow.training
        return row["step"] == 30

    history = fit(flow, gaussian(), validation=held_out, steps=1000, interval=10, callback=callback, **QUIET)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[0].keys() == {"step", "loss", "validation", "learning_rate", "seconds"}
    assert history.ended_by == "callback"
    assert losses == pytest.approx(history.validation.tolist(), abs=1e-5)


def test_without_an_average_the_last_weights_are_kept():
    flow = flow_of()
    last = {}

    def callback(row):
        last.update({key: value.clone() for key, value in flow.state_dict().items()})

    fit(flow, gaussian(), validation=None, steps=40, interval=10, ema=0.0, callback=callback, **QUIET)
    assert all(torch.equal(last[key], value) for key, value in flow.state_dict().items())


def test_an_interrupted_training_leaves_the_best_state():
    flow, held_out, best = flow_of(), gaussian(300, seed=1), []

    def callback(row):
        best.append(row["validation"])
        if len(best) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(flow, gaussian(), validation=held_out, steps=1000, interval=10, callback=callback, **QUIET)
    assert -flow(held_out).mean().item() == pytest.approx(min(best), abs=1e-5)
    assert not flow.training


def test_a_loss_that_is_not_finite_is_an_error():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return (x - self.loc).sum(-1) * math.nan

    with pytest.raises(
        RuntimeError, match=r"loss became nan at about step 1, with a learning rate of 0.0001. A smaller"
    ):
        fit(Wrong(), gaussian(), steps=100, **QUIET)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (gaussian(), {"steps": 10, "epochs": 2}, "steps=10 and epochs=2"),
        (gaussian(), {"validation": None}, "needs steps or epochs"),
        (gaussian(), {"patience": 0}, "patience must be at least 1, but got 0"),
        (gaussian(), {"steps": 0}, "steps must be at least 1, but got 0"),
        (gaussian(), {"epochs": -1}, "epochs must be at least 1, but got -1"),
        (gaussian(), {"batch_size": 0, "steps": 5}, "batch_size must be at least 1"),
        (gaussian(), {"steps": 5, "interval": 0}, "interval must be at least 1"),
        (gaussian(), {"validation": 1.5}, r"between 0 and 1, but got 1.5"),
        (gaussian(1), {"steps": 5}, "cannot hold out 0.1 of 1 rows"),
        (gaussian(), {"ema": 1.0, "steps": 5}, r"lies in \[0, 1\), but got 1.0"),
        (torch.zeros(0, 2), {"steps": 5}, r"shapes \(0, 2\)"),
        ((gaussian(), torch.ones(3, 1)), {"steps": 5}, r"shapes \(2000, 2\) and \(3, 1\)"),
        ((gaussian(), gaussian(), gaussian()), {"steps": 5}, "pair .*, but got 3 parts"),
        ((gaussian(), gaussian()), {"context": gaussian(), "steps": 5}, "2 parts and a context besides"),
        ([gaussian(), gaussian()], {"steps": 5}, "a pair of them as a tuple.*list"),
        ("data.csv", {"steps": 5}, "but got str"),
        (gaussian()[:, 0], {"steps": 5}, r"expects x of shape \(N, 2\), but got \(2000,\)"),
        (torch.randn(10, 10, 2), {"steps": 5}, r"expects x of shape \(N, 2\), but got \(10, 10, 2\)"),
        (gaussian(), {"steps": 5, "validation": torch.ones(3, 1)}, r"validation of shape \(N, 2\), but got \(3, 1\)"),
        (gaussian(), {"steps": 5, "validation": gaussian(4) * math.nan}, "row 0 of validation is not"),
        (gaussian(), {"steps": 5, "validation": pairs_of(gaussian(4))}, "context for both .* or for neither"),
        (gaussian(), {"steps": 5, "validation": 20}, "held-out rows are given as x"),
        (gaussian(), {"steps": 5, "noise": -1.0}, "noise must be finite and not negative, but got -1.0"),
        (gaussian(), {"steps": 10.0}, "steps must be an integer, but got 10.0"),
        (DataLoader(TensorDataset(*[gaussian(8)] * 3)), {"steps": 5}, "but got list of 3 parts"),
        (DataLoader([{"x": 1.0}] * 8), {"steps": 5}, "but got dict"),
        (loader_with_own_batches(), {"steps": 5}, "DataLoader with a list"),
        (torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, 0.0]]), {"steps": 5}, "row 1 of x is not"),
        (pairs_of(torch.ones(3, 2) / 0), {"steps": 5}, "row 0 of x is not"),
        (torch.ones(20, 3), {"steps": 5}, r"expects x of shape \(N, 2\), but got \(20, 3\)"),
        (torch.ones(20, 2, dtype=torch.long), {"steps": 5}, r"needs floating point x.*int64.*x\.float\(\)"),
        (DataLoader([], batch_size=2), {"steps": 5, "validation": None}, "returned no batch"),
    ],
)
def test_arguments_that_do_not_fit(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit(flow_of(), data, **options, **QUIET)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (realnvp_transforms(2), "needs a Module, such as Flow.*list"),
        (gaussian(), "needs a Module, such as Flow.*Tensor"),
        (Chain(realnvp_transforms(2)), r"shape \(200,\), but Chain returned \(200, 2\)"),
        (nn.Linear(2, 1), r"shape \(200,\), but Linear returned \(200, 1\)"),
    ],
)
def test_what_is_no_density(module, message):
    with pytest.raises(ValueError, match=message):
        fit(module, gaussian(), steps=3, **QUIET)


def test_one_dimension_needs_a_column():
    flow = Flow(StandardNormal(1), alone(realnvp_transforms))
    with pytest.raises(ValueError, match=r"shape \(N, 1\), but got \(100,\); x\[:, None\] has that shape"):
        fit(flow, torch.randn(100), steps=5, **QUIET)
    fit(flow, torch.randn(100)[:, None], steps=5, **QUIET)


def test_lists_of_numbers_are_data():
    history = fit(flow_of(), gaussian(50).tolist(), steps=5, **QUIET)
    assert history.validation.isfinite().all()


def test_samples_by_their_number():
    flow = flow_of()
    assert flow.sample(5).shape == flow.sample((5,)).shape == (5, 2)
    model = ImageFlow(Flow(StandardNormal((1, 2, 2)), [Logit(0.05).inv]), 4)
    assert model.sample(3).shape == (3, 1, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageFlow(flow_of(), 4), "a density on the unit cube, but got one on the whole real line"),
        (lambda: ImageFlow(Chain(realnvp_transforms(2)), 4), "a Flow as flow, but got Chain"),
        (lambda: ImageFlow(Flow(StandardNormal(2), [Logit(0.05).inv]), 4.5), "an integer as levels, but got 4.5"),
        (lambda: ImageFlow(Flow(StandardNormal(2), [Logit(0.05).inv]), 1), "must be at least 2, but got 1"),
        (lambda: ImageFlow(Flow(StandardNormal(2), [Logit(0.05).inv]), 4, flow_of()), "a dequantizer on the unit cube"),
    ],
)
def test_what_is_no_image_flow(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_flow_without_parameters_has_nothing_to_learn():
    with pytest.raises(ValueError, match="Flow has none"):
        fit(flow_of().requires_grad_(False), gaussian(), steps=3, **QUIET)


def test_defaults_by_the_number_of_rows():
    rows = {n: rows_of(gaussian(n), None, like=torch.zeros(()), batch_size=10) for n in (100, 3000, 300_000)}
    assert [default_weight_decay(each) for each in rows.values()] == pytest.approx([0.1, 0.01, 1e-4])
    for n, each in rows.items():
        for anneals, share in ((False, min(0.05, n**-0.5)), (True, min(0.3, 4 * n**-0.5))):
            noise = default_noise(flow_of(), each, anneals=anneals)
            torch.testing.assert_close(noise, share * gaussian(n).std(0, correction=0))
    bounded = Flow(StandardNormal(2), [Logit(0.05).inv])
    assert default_noise(bounded, rows[100], anneals=True) is None
    assert default_noise(nn.Linear(2, 1), rows[100], anneals=True) is None


def test_a_flow_that_cannot_be_improved_stays_as_it_starts():
    flow = flow_of()
    start = copy.deepcopy(flow.state_dict())
    history = fit(flow, torch.randn(40, 2), learning_rate=0.5, clip=math.inf, patience=2, seed=0, progress=False)
    assert history.best_step == 0
    assert all(torch.equal(value, start[key]) for key, value in flow.state_dict().items())


def test_without_steps_the_noise_is_halved_as_long_as_that_helps():
    """Two narrow clusters, which wide noise hides; of few rows, narrow noise would make a cluster each."""
    torch.manual_seed(0)
    x = 0.03 * torch.randn(600, 2) + torch.randint(2, (600, 1)) * 2.0 - 1
    made, factors = [], []

    def make(*args, **options):
        made.append(Noise(*args, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("pyro_realnvp.training.fit"), "Noise", make)
        options = {"patience": 3, "seed": 0, "progress": False}
        history = fit(flow_of(), x, callback=lambda _: factors.append(made[0].factor), **options)
    assert sorted(set(factors), reverse=True) == [2.0**-k for k in range(len(set(factors)))]
    assert len(set(factors)) > 3
    assert factors == sorted(factors, reverse=True)
    assert history.ended_by == "patience"


def test_noise_that_is_given_stays():
    noise = Noise(0.1, anneals=False)
    assert not noise.halve(lambda: pytest.fail("it went back"))
    assert Noise(None, anneals=True)(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_halving_that_did_not_help_is_the_last():
    noise, backs = Noise(0.1, anneals=True), []
    assert noise.halve(lambda: backs.append(1))
    noise.note(improved=False)
    assert not noise.halve(lambda: backs.append(2))
    noise.note(improved=True)
    noise.note(improved=False)
    assert noise.halve(lambda: backs.append(3))
    assert (backs, noise.factor) == ([1, 3], 0.25)
    again = Noise(0.1, anneals=True)
    again.load_state_dict(noise.state_dict())
    assert (again.factor, again.helped) == (0.25, False)
    with pytest.raises(ValueError, match=r"factor of the noise should be in \(0, 1\], but is -1"):
        again.load_state_dict({"factor": -1.0, "helped": True})


def test_noise_is_in_the_units_of_x():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            if torch.is_grad_enabled():
                seen.append(x.detach())
            return -(x - self.loc).square().sum(-1)

    fit(Spy(), torch.zeros(1000, 2), noise=3.0, steps=20, batch_size=500, **QUIET)
    assert torch.cat(seen).std().item() == pytest.approx(3.0, rel=0.05)


def test_learning_rate_rises_and_falls():
    history = fit(flow_of(), gaussian(), steps=100, interval=5, learning_rate=1e-2, **QUIET)
    rate = history.learning_rate
    assert rate[0] < rate[2] > rate[-2] > rate[-1]
    assert rate.max() == pytest.approx(1e-2, rel=0.05)
    assert rate[-1] == pytest.approx(0, abs=1e-8)
    endless = fit(flow_of(), gaussian(), interval=50, patience=4, learning_rate=1e-2, **QUIET)
    assert endless.learning_rate[-1] == 1e-2


def test_the_bar_shows_the_unit_and_can_be_switched_off(capsys):
    fit(flow_of(), gaussian(), steps=20, seed=0)
    assert "nats" in capsys.readouterr().err
    fit(flow_of(), gaussian(), steps=20, seed=0, progress=False)
    assert capsys.readouterr().err == ""


def test_the_history_draws_itself(monkeypatch):
    history = fit(flow_of(), gaussian(), steps=40, interval=10, **QUIET)
    axes = history.plot()
    assert axes.get_ylabel() == "negative log-density, nats"
    assert len(axes.lines) == 3
    np.testing.assert_allclose(axes.lines[1].get_ydata(), history.validation)
    assert history.plot(axes) is axes
    assert repr(history).startswith("History(40 steps in ")
    assert isinstance(history, History)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        history.plot()


def test_matrices_are_decayed_but_not_those_of_a_base() -> None:
    flow = Flow(MixtureBase(2, components=3), realnvp_transforms(2, couplings=1))
    matrices, others = decayed(flow, 0.3)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {id(p) for p in flow.base.parameters()} <= {id(p) for p in others["params"]}
    assert len(matrices["params"]) + len(others["params"]) == len(list(flow.parameters()))


@pytest.mark.parametrize("context", [None, torch.zeros(400, 3)])
def test_data_that_splines_would_leave_as_they_are_are_named(context):
    x = torch.rand(400, 2)
    x[:, 1] += 20  # all of it, so that every batch says so
    flow = Flow(StandardNormal(2), spline_transforms(2, couplings=2, context_shape=None if context is None else 3))
    said = r"^100 % of column 1 reach transforms.*, the first spline, outside of \[-5, 5\]"
    with pytest.warns(UserWarning, match=said):
        fit(flow, x, context=context, steps=1, seed=0, progress=False)


def test_no_warning_of_data_that_are_standardised_or_of_other_flows():
    """Warnings are errors in these tests."""
    torch.manual_seed(0)
    x = torch.randn(400, 2) * 20 + 300
    fit(Flow(StandardNormal(2), [*spline_transforms(2), standardized_from(x)]), x, steps=1, progress=False)
    fit(Flow(StandardNormal(2), realnvp_transforms(2)), x, steps=1, progress=False)
    tails = torch.distributions.Cauchy(0.0, 1.0).sample((400, 2))
    fit(Flow(StandardNormal(2), spline_transforms(2)), tails, steps=1, progress=False)
    inside = torch.rand(400, 1) * 100
    bounded = Flow(MixedBase(1, intervals=[(0, 0.0, 100.0)]), spline_transforms(1, intervals=[(0, 0.0, 100.0)]))
    fit(bounded, inside, steps=1, progress=False)
    embedded = EmbedContext(Chain(spline_transforms(2, context_shape=3)), nn.Linear(5, 3), (5,))
    fit(Flow(StandardNormal(2), [embedded]), tails, context=torch.randn(400, 5), steps=1, progress=False)
