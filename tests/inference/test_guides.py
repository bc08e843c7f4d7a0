"""AutoRealNVP: what goes wrong with Pyro's AutoNormalizingFlow, shown on both, and every way a guide is used."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_realnvp import MLP, AutoRealNVP, Permute, realnvp_transforms
from pyro_realnvp.inference.default_flow import default_transforms
from pyro_realnvp.testing import randomize

# What torch and Pyro emit themselves.
jit_is_deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")

small = partial(realnvp_transforms, couplings=2, net=partial(MLP, hidden=(8,)))


def regression() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    c = pyro.sample("c", dist.Beta(2.0, 3.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(a + c, b + 0.1), obs=torch.tensor([0.5, 1.0, 1.5, 0.8, 1.2]))


def single() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Poisson(rate), obs=torch.tensor([1.0, 0.0, 2.0]))


quick = partial(AutoRealNVP, init_scale=0.1)  # fits nothing beforehand


def train(guide: Any, steps: int = 1, lr: float = 1e-2, *args: Any) -> list[float]:
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    svi = SVI(guide.model, guide, ClippedAdam({"lr": lr}), elbo)
    return [svi.step(*args) for _ in range(steps)]


def moved(guide: Any) -> float:
    """How far one step of training takes the parameters."""
    guide()
    before = {key: value.detach().clone() for key, value in guide.named_parameters()}
    train(guide, 3)
    assert before, "nothing to learn"
    return max((value.detach() - before[key]).abs().max().item() for key, value in guide.named_parameters())


# ------------- what goes wrong in Pyro's AutoNormalizingFlow: every probe passes here and fails there


class Here:
    guide = staticmethod(quick)


class There:
    @staticmethod
    def guide(model: Callable[..., Any]) -> AutoNormalizingFlow:
        return AutoNormalizingFlow(model, lambda dim: iterated(2, affine_coupling, dim, hidden_dims=[8]))


def loaded_into_a_fresh_guide(make: Any) -> None:
    guide = make.guide(regression)
    train(guide, 2)
    state = guide.state_dict()
    pyro.clear_param_store()
    fresh = make.guide(regression)
    fresh.load_state_dict(state)
    fresh()
    pyro.set_rng_seed(1)
    values = fresh()
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    for name, value in guide().items():
        assert torch.equal(values[name], value)


def every_entry_of_the_state_is_a_tensor_of_its_own(make: Any) -> None:
    guide = make.guide(regression)
    train(guide)
    places = [value.data_ptr() for value in guide.state_dict().values()]
    assert len(set(places)) == len(places), "aliased"


def double_before_the_first_call(make: Any) -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1).to_event(1))
        pyro.sample("y", dist.Normal(a.sum(-1), 1), obs=torch.tensor(1.0, dtype=torch.float64))

    guide = make.guide(model).double()
    train(guide)
    assert guide()["a"].dtype == torch.float64, "still single"


def jitted(make: Any) -> None:
    guide = make.guide(regression)
    svi = SVI(regression, guide, ClippedAdam({"lr": 1e-2}), JitTrace_ELBO(ignore_jit_warnings=True))
    guide()
    before = [p.detach().clone() for p in guide.parameters()]
    for _ in range(3):
        svi.step()
    if all(torch.equal(p, q) for p, q in zip(guide.parameters(), before, strict=True)):
        raise RuntimeError("nothing has moved")


def medians(make: Any) -> None:
    guide = make.guide(regression)
    train(guide)
    assert 0 < guide.median()["c"] < 1


def quantiles(make: Any) -> None:
    guide = make.guide(regression)
    train(guide)
    found = guide.quantiles([0.1, 0.9])
    assert found["b"][0] < found["b"][1]


def copied_after_a_step(make: Any) -> None:
    guide = make.guide(regression)
    train(guide)
    copied = copy.deepcopy(guide)
    assert copied().keys() == guide().keys()


def a_second_guide_learns(make: Any) -> None:
    """Or says loudly why it cannot."""
    train(make.guide(regression), 3)
    second = make.guide(regression)
    try:
        assert moved(second) > 1e-4, "does not learn"
    except ValueError as error:
        if "name=" not in str(error):
            raise


def one_latent_is_learned(make: Any) -> None:
    assert moved(make.guide(single)) > 1e-4


def every_latent_is_transformed(make: Any) -> None:
    """No coordinate of x is a function of one coordinate of z alone, and in none is the flow linear."""
    torch.manual_seed(0)
    guide = make.guide(regression)
    guide()
    randomize(guide.get_transform())
    transform = guide.get_transform()
    z = torch.randn(20, 3)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda z: transform(z.clone()), each) for each in z])
    assert (jacobians.std(0).amax(1) > 1e-3).all(), "linear in a coordinate"
    assert ((jacobians.abs() > 1e-4).any(0).sum(1) > 1).all(), "a coordinate alone"


# The alias of the first weight is what breaks the jit. One latent: a layer without elements, of which torch warns.
PROBES: list[tuple[Callable[[Any], None], tuple[Any, str | None]]] = [
    (loaded_into_a_fresh_guide, (RuntimeError, "Unexpected key")),
    (every_entry_of_the_state_is_a_tensor_of_its_own, (AssertionError, "aliased")),
    (double_before_the_first_call, (AssertionError, "still single")),
    (jitted, (AssertionError, None)),
    (medians, (NotImplementedError, None)),
    (quantiles, (NotImplementedError, None)),
    (copied_after_a_step, (RuntimeError, "deepcopy")),
    (a_second_guide_learns, (AssertionError, "does not learn")),
    (one_latent_is_learned, (UserWarning, "zero-element")),
    (every_latent_is_transformed, (AssertionError, "linear in a coordinate")),
]
by_name = [
    pytest.param(probe, failure, id=probe.__name__, marks=jit_is_deprecated if probe is jitted else ())
    for probe, failure in PROBES
]


@pytest.mark.parametrize(("probe", "failure"), by_name)
def test_right_here(probe: Callable[[Any], None], failure: tuple[Any, str | None]) -> None:
    probe(Here)


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "failure"), by_name)
def test_wrong_in_pyro(probe: Callable[[Any], None], failure: tuple[Any, str | None]) -> None:
    error, message = failure
    with pytest.raises(error, match=message):
        probe(There)


# ---------------------------------------------------------------------------------------- state, copies, the store


def draws(guide: Any) -> dict[str, Tensor]:
    pyro.set_rng_seed(3)
    found: dict[str, Tensor] = guide.sample_posterior((6,))
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def assert_differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def correlated() -> None:
    """Gaussian: for w, mean (0.99, 0.01), the covariance dense."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w.sum(-1), 0.1), obs=torch.tensor(1.0))
    pyro.sample("d", dist.Normal(w[..., 0] - w[..., 1], 1.0), obs=torch.tensor(1.0))


def test_state_with_the_constants_of_the_start() -> None:
    guide = AutoRealNVP(correlated)
    train(guide, 2)
    last = guide.transform[-1]
    assert last.scale.shape == (2, 2)
    assert last.scale[1, 0] != 0
    expected = draws(guide)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    pyro.clear_param_store()
    fresh = AutoRealNVP(correlated)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    pyro.set_rng_seed(3)
    x = fresh.get_posterior().rsample((6,))  # before it has seen the model
    torch.testing.assert_close(x, expected["w"])  # drawn with a gradient, in other operations
    fresh.initialize()
    assert_same(draws(fresh), expected)
    train(fresh)
    assert_differ(draws(fresh), expected)


def test_store_saved_and_loaded_by_a_fresh_guide(tmp_path: Any) -> None:
    """As another process does it: the store comes from a file, the guide has other constants at first."""
    guide = AutoRealNVP(correlated)
    train(guide, 2)
    expected = draws(guide)
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.set_rng_seed(17)
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    fresh = AutoRealNVP(correlated)
    fresh()
    assert_same(draws(fresh), expected)
    optimizer = ClippedAdam({"lr": 1e-2})
    svi = SVI(correlated, fresh, optimizer, Trace_ELBO())
    svi.step()
    assert_differ(draws(fresh), expected)


def test_store_of_a_smaller_model_is_refused(tmp_path: Any) -> None:
    train(quick(correlated))
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    with pytest.raises(ValueError, match="AutoRealNVP"):
        quick(regression)()


def test_state_of_another_number_of_latents_is_refused() -> None:
    guide = quick(correlated)
    guide()
    pyro.clear_param_store()
    fresh = quick(regression)
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"2 latents.*3"):
        fresh()


def test_two_guides_of_one_name_collide() -> None:
    first = quick(regression, small)
    train(first)
    with pytest.raises(ValueError, match=r"another guide named 'AutoRealNVP'.*name="):
        quick(regression, small)()
    with pytest.raises(ValueError, match="another guide"):
        quick(correlated, small)()
    train(first)  # is not disturbed


def test_two_guides_of_two_names_learn_apart() -> None:
    first, second = quick(regression, small), quick(regression, small, name="second")
    train(first, 2)
    before = draws(first)
    assert moved(second) > 1e-3
    assert_same(draws(first), before)
    names = list(pyro.get_param_store().keys())
    assert any(name.startswith("second.") for name in names)
    assert any(name.startswith("AutoRealNVP.") for name in names)


def test_a_new_guide_after_the_store_was_cleared() -> None:
    first = quick(regression, small)
    train(first, 2)
    pyro.clear_param_store()
    assert moved(quick(regression, small)) > 1e-3


def test_clearing_the_store_leaves_the_guide_alone() -> None:
    guide = quick(regression, small)
    train(guide, 2)
    before = draws(guide)
    pyro.clear_param_store()
    guide()
    assert_same(draws(guide), before)
    train(guide, 2)
    assert_differ(draws(guide), before)


def test_local_parameters() -> None:
    with pyro.settings.context(module_local_params=True):
        first, second = quick(regression, small), quick(regression, small)
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
        before = None
        for guide in (first, second):
            loss = elbo(regression, guide)
            loss()
            optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
            start = draws(guide)
            for _ in range(2):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            assert_differ(draws(guide), start)
            before = draws(first) if before is None else before
        assert_same(draws(first), before or {})
        assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_copy_is_a_guide_of_its_own(steps: int) -> None:
    guide = quick(regression, small)
    guide()
    train(guide, steps)
    copied = copy.deepcopy(guide)
    before = draws(guide)
    assert_same(draws(copied), before)
    assert copied.model is guide.model
    train(copied, 2)
    assert_differ(draws(copied), before)
    assert_same(draws(guide), before)
    again = copy.deepcopy(copied)
    train(again)
    train(guide)
    assert_differ(draws(guide), before)


def test_a_copy_of_a_new_guide() -> None:
    guide = quick(regression, small)
    copied = copy.deepcopy(guide)
    train(copied)
    train(guide)


def by_torch(guide: AutoRealNVP) -> Any:
    file = io.BytesIO()
    torch.save(guide, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("saved_and_loaded", [lambda guide: pickle.loads(pickle.dumps(guide)), by_torch])
def test_saved_as_a_whole(saved_and_loaded: Callable[[AutoRealNVP], Any]) -> None:
    guide = quick(regression, small)
    train(guide, 2)
    expected = draws(guide)
    assert_same(draws(saved_and_loaded(guide)), expected)
    train(guide)  # has lost nothing, its model least of all
    assert_differ(draws(guide), expected)


# --------------------------------------------------------------------------------------------------- where it starts


def test_starts_where_it_is_told_to() -> None:
    start = {"a": torch.tensor(0.7), "b": torch.tensor(0.4), "c": torch.tensor(0.2)}
    guide = AutoRealNVP(regression, init_loc_fn=init_to_value(values=start), init_scale=0.05)
    guide.initialize()
    x = guide.get_posterior().rsample((20_000,))
    expected = torch.stack([start["a"], start["b"].log(), start["c"].logit()])
    torch.testing.assert_close(x.mean(0), expected, rtol=0, atol=0.002)
    torch.testing.assert_close(x.std(0), torch.full((3,), 0.05), rtol=0.03, atol=0)
    assert x.T.corrcoef().triu(1).abs().max() < 0.03


@pytest.mark.parametrize("given", [{"init_scale": 0.3}, {"init_loc_fn": init_to_value(values={"w": torch.ones(2)})}])
def test_either_of_location_and_scale(given: dict[str, Any]) -> None:
    guide = AutoRealNVP(correlated, **given)
    guide.initialize()
    x = guide.get_posterior().rsample((20_000,))
    scale = given.get("init_scale", 0.1)
    torch.testing.assert_close(x.std(0), torch.full((2,), scale), rtol=0.03, atol=0)
    if "init_loc_fn" in given:
        torch.testing.assert_close(x.mean(0), torch.ones(2), rtol=0, atol=0.01)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(ValueError, match=f"init_scale.*{scale}"):
        AutoRealNVP(regression, init_scale=scale)


def test_starts_at_a_gaussian_posterior() -> None:
    guide = AutoRealNVP(correlated)
    guide.initialize()
    x = guide.get_posterior().rsample((50_000,))
    # Precision I + 100 (1, 1)(1, 1)^T + (1, -1)(1, -1)^T, and the right-hand side 100 (1, 1) + (1, -1).
    precision = torch.eye(2) + 100 * torch.ones(2, 2) + torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    covariance = precision.inverse()
    mean = covariance @ torch.tensor([101.0, 99.0])
    deviation = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean) / deviation).abs().max() < 0.03
    torch.testing.assert_close(x.std(0), deviation, rtol=0.03, atol=0)
    assert x.T.corrcoef()[0, 1].item() == pytest.approx((covariance[0, 1] / deviation.prod()).item(), abs=0.01)


# ---------------------------------------------------------------------------------------------- what is not built yet


@pytest.mark.parametrize(
    "use",
    [
        lambda guide: guide.get_transform(),
        lambda guide: guide.get_posterior(),
        lambda guide: guide.get_base_dist(),
        lambda guide: guide.sample_posterior(),
    ],
)
def test_a_guide_that_knows_no_model(use: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="initialize"):
        use(AutoRealNVP(regression))


def test_initialize_is_idempotent() -> None:
    guide = quick(regression, small)
    guide.initialize()
    transform = guide.get_transform()
    guide.initialize()
    assert guide.get_transform() is transform
    train(guide)
    assert guide.get_transform() is transform


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 16])
def test_every_two_latents_meet_in_a_coupling_of_the_default_flow(dim: int) -> None:
    """So that shift and scale of one can depend on the other directly."""
    order = list(range(dim))
    meetings = set()
    for part in default_transforms(dim):
        if isinstance(part, Permute):
            order = [order[index] for index in part.permutation.tolist()]
            continue
        x = torch.randn(dim, requires_grad=True)
        randomize(part)
        jacobian = torch.autograd.functional.jacobian(part.forward_and_log_det, x)[0]
        moved, read = jacobian.abs().gt(0).nonzero().T.tolist()
        meetings |= {frozenset((order[i], order[j])) for i, j in zip(moved, read, strict=True) if i != j}
    assert len(meetings) == dim * (dim - 1) // 2


def test_a_model_without_latents() -> None:
    with pytest.raises(RuntimeError, match="no latent variables"):
        quick(lambda: None)()
