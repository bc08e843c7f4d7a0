"""benchmarks/benchmark.py: a tiny run writes everything it promises, and the contestants are correct and comparable."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import benchmark

PACKAGES = {"zuko": "zuko", "normflows": "normflows", "nflows": "nflows", "freia": "FrEIA"}
KINDS = ["forward + backward", "training step", "log_prob", "sample", "rsample, log_prob"]
VECTORS = ["bare-loop", "ours", "ours-list", "ours-rebuild", "pyro", *PACKAGES]
IMAGES = ["ours", "ours-channels-last", "ours-bfloat16"]
STEPS = ["ours", "elbo-module", "svi-step-fused", "svi-step"]
TINY = ["--tiny", "--rounds", "1", "--warmup", "0", "--device", "cpu"]

pytestmark = [  # other libraries call what torch has deprecated
    pytest.mark.filterwarnings("ignore:torch.lu is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


def installed(name: str) -> bool:
    return name not in PACKAGES or find_spec(PACKAGES[name]) is not None


@pytest.fixture
def make() -> Callable[[str, str], tuple[Any, Tensor]]:
    """A contestant of a tiny workload with its data, or a skipped test."""

    def built(workload: str, name: str) -> tuple[Any, Tensor]:
        if not installed(name):
            pytest.skip(f"{PACKAGES[name]} is not installed")
        task = benchmark.workloads("tiny")[workload]
        data = torch.randn(task.shape)
        return task.builds[name](data), data

    return built


def randomized(contestant: Any) -> Any:
    """Networks that end in zeros make every flow the same."""
    with torch.no_grad():
        for parameter in contestant.module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return contestant


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The table of a tiny run of all that is installed, but for what compiles."""
    out = tmp_path_factory.mktemp("benchmark")
    benchmark.main([*TINY, "--out", str(out), "--only", *{*VECTORS, *IMAGES, *STEPS}])
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    with (out / "benchmark.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("workload", "names", "kinds"),
    [
        ("vector-2", VECTORS, KINDS),
        ("vector-64", VECTORS, KINDS),
        ("spline-64", ["ours", "zuko", "normflows", "nflows"], KINDS),
        ("realnvp", IMAGES, KINDS),
        ("glow", [*IMAGES, "normflows", "nflows"], KINDS),
        ("svi", ["bare-loop", *STEPS], ["training step"]),
        ("svi-guide", ["bare-loop", *STEPS], ["training step"]),
    ],
)
def test_a_run_writes_all_numbers(
    rows: list[dict[str, str]], workload: str, names: list[str], kinds: list[str]
) -> None:
    inside = {(row["contestant"], row["measure"]): row for row in rows if row["workload"] == workload}
    names = ["networks", *filter(installed, names)]
    names += [f"{name}-networks" for name in names if workload == "glow" and name in PACKAGES]
    measures = [*kinds, "parameters"] + (["saved"] if kinds == KINDS else [])
    assert inside.keys() == {(name, measure) for name in names for measure in measures}
    for row in inside.values():
        assert float(row["value"]) > 0
        assert float(row["over_networks"]) > 0
        assert (row["over_bare_loop"] != "") == ("bare-loop" in names)
    for measure in measures:
        assert float(inside["networks", measure]["over_networks"]) == 1


def test_vector_contestants_have_the_same_number_of_parameters(rows: list[dict[str, str]]) -> None:
    for workload in ("vector-2", "vector-64", "svi", "svi-guide"):
        counts = {row["value"] for row in rows if row["workload"] == workload and row["measure"] == "parameters"}
        assert len(counts) == 1


@pytest.mark.parametrize("name", VECTORS)
def test_densities_integrate_to_one(make: Callable[..., Any], name: str) -> None:
    contestant = randomized(make("vector-2", name)[0])
    axis = torch.linspace(-12, 12, 241)
    with torch.no_grad():
        log_p = contestant.work["log_prob"](torch.cartesian_prod(axis, axis))
    assert log_p.exp().sum() * 0.1**2 == pytest.approx(1, abs=1e-3)


PAIRS = [("vector-64", name) for name in VECTORS]
PAIRS += [("realnvp", name) for name in (*IMAGES[:2], "ours-packed", "ours-recompute")]
PAIRS += [("glow", name) for name in (*IMAGES[:2], "normflows", "nflows")]


@pytest.mark.parametrize(("workload", "name"), PAIRS)
def test_samples_come_with_their_own_density(make: Callable[..., Any], workload: str, name: str) -> None:
    contestant, data = make(workload, name)
    contestant.work["training step"](data)  # initialises what awaits data
    contestant.module.eval()
    x, log_p = contestant.work["rsample, log_prob"](data)
    assert x.shape == contestant.work["sample"](data).shape == data.shape
    assert x.requires_grad
    assert not contestant.work["sample"](data).requires_grad
    torch.testing.assert_close(contestant.work["log_prob"](x.detach().clone()), log_p.detach(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("workload", "name"), [("vector-64", "bare-loop"), ("realnvp", "ours"), ("glow", "ours")])
def test_the_floor_has_the_networks_and_their_inputs(make: Callable[..., Any], workload: str, name: str) -> None:
    contestant, data = make(workload, name)
    made: list[Tensor] = []
    for network in contestant.networks:
        network.register_forward_hook(lambda network, inputs, output: made.append(output))
    floor = benchmark.networks_alone(contestant, data)
    expected = list(made)  # before the floor's networks, copies with the same hook, add theirs
    outputs = floor.work["rsample, log_prob"](data)
    assert len(outputs) == len(contestant.networks)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    before = [parameter.clone() for parameter in contestant.module.parameters()]
    floor.work["training step"](data)
    assert all(torch.equal(*pair) for pair in zip(before, contestant.module.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_contestants_equal_eager_ones(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    contestant, data = make("vector-64", "ours-compiled")
    randomized(contestant)
    torch.testing.assert_close(
        contestant.work["log_prob"](data), contestant.module(data).detach(), rtol=1e-4, atol=1e-4
    )
    x, log_p = contestant.work["rsample, log_prob"](data)
    torch.testing.assert_close(log_p, contestant.module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("workload", ["svi", "svi-guide"])
@pytest.mark.parametrize("name", ["elbo-module", "svi-step-fused", "svi-step"])
def test_steps_through_pyro_equal_those_by_hand(make: Callable[..., Any], workload: str, name: str) -> None:
    """Adam moves every parameter by the same, whether the loss is a sum or a mean."""
    results = []
    for each in ("ours", name):
        torch.manual_seed(0)
        contestant, _ = make(workload, each)
        data = torch.ones(4, 4)
        torch.manual_seed(1)
        for _ in range(3):
            contestant.work["training step"](data.clone())
        results.append([parameter.detach().clone() for parameter in contestant.module.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_saved_for_backward() -> None:
    linear = nn.Linear(50, 30, bias=False)
    x = torch.randn(20, 50)
    with benchmark.SavedForBackward(linear) as saved:
        hidden = linear(x)
        assert saved.now == 4 * 20 * 50  # the input, and not the weight
        hidden.exp().square().sum().backward()  # exp and square both save what exp returned
    assert saved.peak == 4 * (20 * 50 + 20 * 30)
    assert saved.now == 0


def test_contestants_take_turns() -> None:
    calls: list[str] = []

    def contestant(name: str) -> Any:
        def work(x: Tensor) -> None:
            calls.append(name + ("!" if module.training else ""))

        module = nn.Linear(1, 1)
        return benchmark.Contestant(module, {"log_prob": work, "training step": work})

    field = {"a": contestant("a"), "b": contestant("b")}
    times = benchmark.time_kind(field, "log_prob", torch.zeros(1), rounds=3, warmup=1)
    assert "".join(calls) == "ba" + "abbaab"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}
    calls.clear()
    benchmark.time_kind(field, "training step", torch.zeros(1), rounds=1, warmup=0)
    assert calls == ["a!", "b!"]


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    """A machine that slows down by 10 between two rounds changes medians, and no ratio."""
    values = {"networks": [1.0, 10.0, 10.0], "bare-loop": [2.0, 20.0, 30.0], "ours": [3.0, 30.0, 30.0]}
    rows = {row.contestant: row for row in benchmark.rows_of("vector-2", "log_prob", values, {})}
    assert rows["ours"].over_networks == 3
    assert rows["ours"].over_bare_loop == 1.5
    assert rows["ours"].value == 30
    rows = {row.contestant: row for row in benchmark.rows_of("glow", "log_prob", values, {"ours": "bare-loop"})}
    assert rows["ours"].over_networks == 1.5
    assert rows["bare-loop"].over_networks == 2


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_library_is_left_out(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in [PACKAGES[name], *(key for key in sys.modules if key.split(".")[0] == PACKAGES[name])]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(benchmark, "draw", lambda *_: None)
    benchmark.main([*TINY, "--out", str(tmp_path), "--only", "vector-2", "ours", name])
    printed = capsys.readouterr().out
    assert f"{name} is left out" in printed
    assert f"pip install {PACKAGES[name]}" in printed
    assert (tmp_path / "benchmark.csv").read_text().count(name) == 0


def test_only_a_workload_has_all_its_contestants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "draw", lambda *_: None)
    benchmark.main([*TINY, "--out", str(tmp_path), "--only", "svi"])
    with (tmp_path / "benchmark.csv").open() as file:
        assert {row["contestant"] for row in csv.DictReader(file)} == {"networks", "bare-loop", *STEPS}


def test_zuko_leaves_validation_as_it_was(make: Callable[..., Any]) -> None:
    make("vector-64", "zuko")
    with pytest.raises(ValueError, match="Expected parameter scale"):
        torch.distributions.Normal(0.0, -1.0)
    assert Distribution._validate_args


@pytest.mark.parametrize("size", ["default", "full"])
def test_the_sizes(size: str) -> None:
    """8 couplings, MLP of 4 x 256 for two dimensions and of 2 x 256 for 64; 32 feature maps at both scales."""
    tasks = benchmark.workloads(size)
    for name, shape, parameters in (("vector-2", (256, 2), 1_587_216), ("vector-64", (256, 64), 725_504)):
        assert tasks[name].shape == shape
        module = tasks[name].builds["ours"](torch.randn(shape)).module
        assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    if size == "full":
        module = tasks["realnvp"].builds["ours"](torch.randn(2, 3, 32, 32)).module
        assert sum(parameter.numel() for parameter in module.parameters()) == 832_361
        assert tasks["realnvp"].shape == tasks["glow"].shape == (32, 3, 32, 32)
    else:
        assert tasks["realnvp"].shape == tasks["glow"].shape == (16, 3, 16, 16)
    for name in ("realnvp", "glow"):
        assert ("ours-compiled" in tasks[name].builds) == (size == "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "warp"], r"--only knows vector-2, .* but got warp"),
        (["--device", "warp"], "--device warp cannot be used here"),
        (["--full"], "not allowed with argument --tiny"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, *options, "--out", str(tmp_path)])
    assert re.search(message, capsys.readouterr().err)
