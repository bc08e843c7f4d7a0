"""Image trainings that are paused and go on, and the recipes made of them."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

import images

from shared.image_models import build, configuration, training_of
from shared.image_options import parse
from shared.image_training import flipped, optimizer_of
from shared.metrics import Metrics

TINY = ["--hidden", "4", "--batch", "32", "--device", "cpu", "--patience", "100"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run puts what is compiled into its folder, unless it is told where."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which only the numbers matter: the pictures take much of the time."""
    for name in ("draw_samples", "draw_interpolation"):
        monkeypatch.setattr(images, name, lambda *_: None)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


FLOWS = [
    ["realnvp", "--blocks", "1", "--scales", "1", "--weight-decay", "1e-3", "--clip", "10"],  # statistics, dropout
    ["flowpp", "--hidden", "8", "--couplings", "1"],  # two flows, data-dependent start
]


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = images.load_images("digits", Path(), download=False)
    few = tuple(part[:count] for part, count in zip(splits, (100, 10, 10), strict=True))
    monkeypatch.setattr(images, "load_images", lambda *_, **__: few)


@pytest.mark.usefixtures("no_pictures", "few_images")
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow[0])
def test_paused_and_resumed_is_the_same_run(
    flow: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--flow", *flow, "--flips", "--steps", "6", "--interval", "2", "--warmup", "2"]
    command += ["--batch", "8"]
    images.main([*command, "--out", str(tmp_path / "one")])
    command += ["--minutes", "1e-6", "--out", str(tmp_path / "chain")]  # so that every run takes one step
    for _ in range(6):
        with pytest.raises(SystemExit) as ended:
            images.main(command)
        assert not ended.value.code
        assert "the same call goes on" in capsys.readouterr().out
        assert not (tmp_path / "chain/checkpoint.safetensors").exists()
        torch.manual_seed(20)  # nothing of the process before is left
    images.main(command)
    one, chain = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "chain"))
    assert all(one[name].equal(chain[name]) for name in one)
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "chain"), strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    seconds = [row["seconds"] for row in rows(tmp_path / "chain")]
    assert seconds == sorted(seconds)
    before = (tmp_path / "chain/metrics.jsonl").read_text()
    capsys.readouterr()
    images.main(command)
    assert "holds a finished run: test: " in capsys.readouterr().out
    assert (tmp_path / "chain/metrics.jsonl").read_text() == before


@pytest.mark.usefixtures("no_pictures", "few_images")
def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    command = [*TINY, "--scales", "1", "--blocks", "1", "--batch", "8", "--steps", "4", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        images.main([*command, "--minutes", "1e-6"])
    for option, message in ((["--seed", "1"], "seed = 0, but this one has seed = 1"), (["--hidden", "8"], "hidden")):
        with pytest.raises(SystemExit, match=f"{message}.*--fresh"):
            images.main([*command, *option])
    path = tmp_path / "training.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(SystemExit, match="truncated"):
        images.main(command)
    flipped_bit = bytearray(whole)
    flipped_bit[-1000] ^= 1
    path.write_bytes(flipped_bit)
    with pytest.raises(SystemExit, match="is damaged"):
        images.main(command)
    images.main([*command, "--fresh", "--seed", "1"])
    assert (tmp_path / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize("torn", ['{"step": 4', "\n", "\0\0\0\0"])
def test_metrics_go_on_with_the_rows_of_the_checkpoint(torn: str, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in (10, 20):
        metrics.write({"step": step})
    state = {**metrics.state_dict(), "seconds": 100.0}
    metrics.write({"step": 30})
    with metrics.path.open("a") as file:
        file.write(torn)  # the machine went down here
    later = Metrics(tmp_path)
    later.load_state_dict(state)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    later.write({"step": 30})
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]
    assert later.seconds >= 100


PAPERS = {
    "realnvp": {"batch_size": 64, "learning_rate": 1e-3, "clip": 100.0, "weight_decay": 5e-5, "flips": True},
    "glow": {"batch_size": 512, "learning_rate": 1e-3, "clip": math.inf, "flips": False},
    "flowpp": {"batch_size": 64, "learning_rate": 3e-4, "clip": 1.0, "warmup": 2000, "ema": 0.999, "flips": False},
}
MODELS = {
    "realnvp": {"scales": 2, "hidden": 64, "blocks": 8, "alpha": 0.05},
    "glow": {"levels": 3, "steps": 32, "hidden": 512},
    "flowpp": {"couplings": [4, 2, 3], "components": 32, "hidden": 96, "blocks": 10, "dropout": 0.2},
}


@pytest.mark.parametrize("flow", PAPERS)
def test_a_recipe_is_the_papers(flow: str) -> None:
    args = parse(["--recipe", "cifar10", "--flow", flow])
    assert args.data == "cifar10"
    assert args.compile
    assert args.bf16
    assert args.channels_last
    assert 0 < args.minutes < 10
    training = training_of(flow, "cifar10")
    for name, value in PAPERS[flow].items():
        got = getattr(args, name)
        assert (training[name] if got is None else got) == value
    config = configuration(args)
    assert MODELS[flow].items() <= config.items()
    assert args.steps // args.interval >= 5


def test_options_come_before_the_recipe() -> None:
    given = ["--batch", "8", "--learning-rate", "0.1", "--no-compile", "--no-bf16", "--no-flips", "--steps", "7"]
    args = parse(["--recipe", "cifar10", *given, "--data", "digits", "--minutes", "3", "--hidden", "4"])
    assert (args.batch_size, args.learning_rate, args.steps, args.data) == (8, 0.1, 7, "digits")
    assert (args.compile, args.bf16, args.flips, args.minutes) == (False, False, False, 3.0)
    assert args.clip == 100.0
    assert configuration(args)["hidden"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of Dynamo
@pytest.mark.parametrize("flow", ["realnvp", "glow", "flowpp"])
def test_a_recipe_runs_anywhere(flow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    small = [*TINY, "--data", "digits", "--hidden", "8", "--steps", "6", "--interval", "3", "--out", str(tmp_path)]
    small += {
        "realnvp": ["--blocks", "1", "--scales", "1"],
        "glow": ["--level-steps", "1"],
        "flowpp": ["--couplings", "1", "--uniform"],
    }[flow]
    images.main(["--recipe", "cifar10", "--flow", flow, *small])
    torch._dynamo.reset()
    assert counter.frame_count == 1
    *intervals, last = rows(tmp_path)
    assert [row["step"] for row in intervals] == [3, 6]
    assert 1 < last["test_bits_per_dim"] < 9
    assert (tmp_path / "samples.png").is_file()


def test_half_of_the_images_are_mirrored() -> None:
    given = torch.arange(400 * 12, dtype=torch.int16).reshape(400, 1, 3, 4)
    got = flipped(given)
    mirrored = (got == given.flip(-1)).flatten(1).all(1)
    assert ((got == given).flatten(1).all(1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_what_is_decayed() -> None:
    config = configuration(parse(["--hidden", "4", "--blocks", "1"]))
    model = build(config)
    rest, decayed = optimizer_of(model, 1e-3, 5e-5).param_groups
    assert (rest["weight_decay"], decayed["weight_decay"]) == (0, 1e-4)
    assert len(rest["params"]) + len(decayed["params"]) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)].rpartition(".")[2] for p in decayed["params"]}
    assert kinds == {"norm", "alpha"}
    assert "alpha" in {names[id(p)].rpartition(".")[2] for p in rest["params"]}  # of channel couplings: not decayed
