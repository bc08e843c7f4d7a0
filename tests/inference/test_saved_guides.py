"""A guide that was saved whole: it comes back beside the first or in another process, and is a guide of its own."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_realnvp import MLP, AutoRealNVP, NeuTra, importance_sample, realnvp_transforms

small = partial(realnvp_transforms, couplings=2, net=partial(MLP, hidden=(8,)))
quick = partial(AutoRealNVP, transforms=small, init_scale=0.1)  # fits nothing beforehand


def model() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(a, b + 0.1), obs=torch.tensor([0.5, 1.0, 1.5]))


def other_model() -> None:
    pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def train(guide: Any, steps: int = 2, trained: Callable[[], None] = model) -> None:
    svi = SVI(trained, guide, ClippedAdam({"lr": 1e-2}), Trace_ELBO(4, vectorize_particles=True))
    for _ in range(steps):
        svi.step()


def draws(guide: Any) -> dict[str, Tensor]:
    pyro.set_rng_seed(3)
    values: dict[str, Tensor] = guide()
    return {name: value.detach() for name, value in values.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def names(guide: AutoRealNVP) -> set[str]:
    """The entries of the store that hold the very parameters of this guide."""
    own = {id(value) for value in guide.parameters()}
    return {name for name, value in pyro.get_param_store()._params.items() if id(value) in own}


def written(guide: Any) -> bytes:
    file = io.BytesIO()
    torch.save(guide, file)
    return file.getvalue()


def read(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


@pytest.mark.parametrize("back", [lambda guide: read(written(guide)), lambda guide: pickle.loads(pickle.dumps(guide))])
def test_a_loaded_guide_draws_what_the_first_draws(back: Callable[[AutoRealNVP], AutoRealNVP]) -> None:
    guide = quick(model)
    train(guide)
    loaded = back(guide)
    expected = draws(guide)
    assert same(draws(loaded), expected)
    for parallel in (False, True):
        found = []
        for each in (guide, loaded):
            pyro.set_rng_seed(3)
            found.append(Predictive(model, guide=each, num_samples=4, parallel=parallel)())
        assert same(*found)


def test_a_loaded_guide_and_the_first_learn_apart() -> None:
    guide = quick(model)
    train(guide)
    loaded = read(written(guide))
    expected = draws(guide)
    train(loaded)
    assert not same(draws(loaded), expected)
    assert same(draws(guide), expected), "training of the loaded guide has moved the first"
    of_loaded = draws(loaded)
    train(guide)
    assert not same(draws(guide), expected)
    assert same(draws(loaded), of_loaded), "training of the first has moved the loaded guide"
    assert {name.split(".")[0] for name in names(guide)} == {"AutoRealNVP"}
    assert {name.split(".")[0] for name in names(loaded)} == {"AutoRealNVP_2"}
    assert len(names(guide)) == len(names(loaded)) == len(list(guide.parameters()))


def test_several_are_loaded_from_one_file() -> None:
    guide = quick(model)
    train(guide)
    data = written(guide)
    guides = [guide, *(read(data) for _ in range(3))]
    expected = draws(guide)
    for each in guides:
        assert same(draws(each), expected)
        train(each, 1)
    assert [each._pyro_name for each in guides] == ["AutoRealNVP", "AutoRealNVP_2", "AutoRealNVP_3", "AutoRealNVP_4"]


@pytest.mark.parametrize("cleared", [False, True])
def test_the_loaded_guide_is_called_before_the_first(cleared: bool) -> None:
    guide = quick(model)
    if cleared:
        train(guide)
        pyro.clear_param_store()
    else:
        guide.initialize()  # its parameters are not in the store yet
    loaded = read(written(guide))
    expected = draws(loaded)
    assert same(draws(guide), expected)
    train(loaded)
    assert same(draws(guide), expected)
    train(guide)
    assert loaded._pyro_name == "AutoRealNVP"


def test_a_loaded_guide_keeps_its_name_where_it_is_free() -> None:
    guide = quick(model)
    train(guide)
    data = written(guide)
    expected = draws(guide)
    pyro.clear_param_store()
    loaded = read(data)
    assert same(draws(loaded), expected)
    assert loaded._pyro_name == "AutoRealNVP"


def test_a_loaded_guide_meets_another_of_its_name() -> None:
    """As in a new process that has made a guide of its own before it loads the old one."""
    guide = quick(model)
    train(guide)
    expected = draws(guide)
    data = written(guide)
    pyro.clear_param_store()
    train(quick(other_model), trained=other_model)
    assert same(draws(read(data)), expected)


def test_a_new_guide_of_the_same_name_is_refused_as_before() -> None:
    guide = quick(model)
    train(guide)
    loaded = read(written(guide))
    train(loaded)
    with pytest.raises(ValueError, match=r"another guide named 'AutoRealNVP'.*name="):
        quick(model)()


def test_a_loaded_guide_is_saved_and_copied_again() -> None:
    guide = quick(model)
    train(guide)
    loaded = read(written(guide))
    train(loaded)
    expected = draws(loaded)
    for again in (read(written(loaded)), copy.deepcopy(loaded)):
        assert same(draws(again), expected)
        train(again)
        assert not same(draws(again), expected)
        assert same(draws(loaded), expected)


def test_a_copy_is_saved_and_loaded() -> None:
    guide = quick(model)
    train(guide)
    copied = copy.deepcopy(guide)
    train(copied)
    expected = draws(copied)
    loaded = read(written(copied))
    assert same(draws(loaded), expected)
    train(loaded)
    assert same(draws(copied), expected)
    train(guide)


def test_the_store_takes_both_to_a_file_and_back(tmp_path: Path) -> None:
    guide = quick(model)
    train(guide)
    loaded = read(written(guide))
    train(loaded)
    expected = [draws(guide), draws(loaded)]
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    train(guide)
    train(loaded)
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    assert same(draws(guide), expected[0])
    assert same(draws(loaded), expected[1])
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    fresh = [quick(model), quick(model, name="AutoRealNVP_2")]
    for each, values in zip(fresh, expected, strict=True):
        each()  # it sees the model, which takes draws
        assert same(draws(each), values)


def test_a_store_from_a_file_reaches_a_loaded_guide(tmp_path: Path) -> None:
    guide = quick(model)
    train(guide)
    data = written(guide)
    train(guide)
    expected = draws(guide)
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    assert same(draws(read(data)), expected)


def test_a_loaded_guide_corrects_and_is_corrected() -> None:
    guide = quick(model)
    train(guide)
    loaded = read(written(guide))
    draws(guide)
    assert importance_sample(model, loaded, num_samples=20, parallel=True).log_weights.shape == (20,)
    trace = pyro.poutine.trace(NeuTra(model, loaded)).get_trace()
    assert trace.log_prob_sum().isfinite()


def test_a_list_of_guides_is_loaded() -> None:
    guide = AutoGuideList(model)
    guide.append(AutoDelta(pyro.poutine.block(model, expose=["a"])))
    guide.append(quick(pyro.poutine.block(model, hide=["a"])))
    guide()
    loaded = read(written(guide))
    expected = draws(guide)
    assert same(draws(loaded), expected)
    train(loaded)
    assert torch.equal(draws(guide)["b"], expected["b"])


def test_a_guide_saved_before_it_has_seen_its_model_says_so() -> None:
    loaded = read(written(quick(model)))
    with pytest.raises(ValueError, match=r"AutoRealNVP was saved whole before.*initialize"):
        loaded()


def test_local_parameters_need_no_name() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = quick(model)
        guide.initialize()
        expected = draws(guide)
        loaded = read(written(guide))
        assert same(draws(loaded), expected)
        assert loaded._pyro_name == "AutoRealNVP"


IN_ANOTHER_PROCESS = """
import sys, pyro, torch
sys.path[:0] = {path!r}
from test_saved_guides import model, draws, names, train
loaded = torch.load({guide!r}, weights_only=False)
values = draws(loaded)
assert loaded._pyro_name == "AutoRealNVP", loaded._pyro_name
assert {{name.split(".")[0] for name in names(loaded)}} == {{"AutoRealNVP"}}
torch.save(values, {values!r})
train(loaded)
pyro.get_param_store().save({store!r})
torch.save(draws(loaded), {trained!r})
"""


def test_in_another_process_it_keeps_its_name(tmp_path: Path) -> None:
    guide = quick(model)
    train(guide)
    expected = draws(guide)
    files = {key: str(tmp_path / f"{key}.pt") for key in ("guide", "values", "store", "trained")}
    Path(files["guide"]).write_bytes(written(guide))
    here = str(Path(__file__).parent)
    script = IN_ANOTHER_PROCESS.format(path=[here, *sys.path], **files)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert same(torch.load(files["values"]), expected)
    pyro.get_param_store().load(files["store"])  # what was trained there is found here, under the one name
    assert same(draws(guide), torch.load(files["trained"]))
