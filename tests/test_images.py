"""The image example, run with tiny arguments."""

import json
import math
import re
from pathlib import Path
from types import ModuleType

import pyro
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

TINY = ["--hidden", "4", "--blocks", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def images() -> ModuleType:
    return pytest.importorskip("images")


@pytest.fixture(scope="module")
def run(images: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    images.main([*TINY, "--steps", "30", "--out", str(out)])
    return out


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_files_and_metrics(run: Path) -> None:
    *intervals, last = rows(run)
    assert [row["step"] for row in intervals] == [20, 30]
    assert intervals[-1]["loss"] < 4.5
    assert 2.3 < last["histogram_bits_per_dim"] < 2.5
    assert 0 < last["test_bits_per_dim_error"] < 0.1
    assert 2 < last["test_bits_per_dim"] < 8
    for name in ("samples.png", "interpolation.png", "checkpoint.json"):
        assert (run / name).stat().st_size > 100


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_svi_takes_the_same_steps(images: ModuleType) -> None:
    config = images.configuration(images.parse(TINY))
    data = torch.randint(0, 17, (80, 1, 1, 1)).expand(80, 1, 8, 8)
    losses = {}
    for objective in ("mle", "svi"):
        pyro.set_rng_seed(0)
        model = images.build(config)
        ema = images.ema_of(model, 0.99)
        batches = images.Batches(data, 8)
        if objective == "mle":
            optimizer = images.optimizer_of(model, 5e-3, 0.0)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            update = images.mle_update(model, batches.__next__, optimizer, scheduler, ema)
        else:
            update = images.svi_update(model, batches.__next__, 5e-3, lambda step: 1.0, ema)
        losses[objective] = [float(update()) for _ in range(50)]
    nats = torch.tensor(list(losses.values()), dtype=torch.float64)
    assert nats[0, -1] < nats[0, 0] - 10
    assert (nats[0] - nats[1]).abs().max() < 1e-5 * 64 * math.log(2)  # 1e-5 bits a dimension


def test_sample_reproduces(images: ModuleType, run: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        images.main(["--sample", str(run / "checkpoint.safetensors"), "--out", str(tmp_path / folder)])
    assert (tmp_path / "a/samples.png").read_bytes() == (tmp_path / "b/samples.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--data", "cifar10"], 19_609_545),
        (["--data", "cifar10", "--scales", "4", "--hidden", "32", "--blocks", "4"], 46_220_359),
    ],
)
def test_describe_counts_without_data(
    images: ModuleType, arguments: list[str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images.main(["--describe", *arguments, "--root", "no such folder"])
    printed = capsys.readouterr().out
    assert f"trainable parameters: {count}" in printed.splitlines()
    assert re.search(r"SplitCoupling +\(12, 16, 16\)", printed)


def test_padding_is_undone(images: ModuleType) -> None:
    digits = torch.arange(2 * 28 * 28).reshape(2, 1, 28, 28)
    config = images.configuration(images.parse(["--data", "mnist", "--scales", "4"]))
    assert config["event_shape"] == [1, 32, 32]
    padded = images.pad(digits, config["event_shape"])
    assert padded.shape == (2, 1, 32, 32)
    assert padded[..., 28:, :].eq(0).all()
    assert torch.equal(images.crop(padded, config["image_shape"]), digits)


def test_a_folder_of_images(images: ModuleType, tmp_path: Path) -> None:
    for index in range(30):
        picture = torch.randint(0, 256, (10, 13, 3), dtype=torch.uint8)
        Image.frombytes("RGB", (13, 10), bytes(picture.flatten().tolist())).save(tmp_path / f"{index:02}.png")
    out = tmp_path / "out"
    options = [*TINY, "--steps", "2", "--scales", "2", "--batch-size", "8", "--out", str(out)]
    images.main(["--data", f"folder:{tmp_path}", "--size", "8", *options])
    assert rows(out)[-1]["test_bits_per_dim"] > 0
    with pytest.raises(SystemExit, match="at least 4 images, but 0"):
        images.main(["--data", f"folder:{tmp_path / 'none'}", *options])
    with pytest.raises(SystemExit, match=r"--data is one of digits.*got moons"):
        images.main(["--data", "moons", *options])


@pytest.mark.parametrize("flow", [["nice"], ["glow"], ["flowpp"], ["realnvp", "--packed"]])
def test_the_other_flows(images: ModuleType, flow: list[str], tmp_path: Path) -> None:
    small = ["--hidden", "8", "--steps", "4", "--device", "cpu", "--out", str(tmp_path)]
    images.main(["--flow", *flow, *small])
    last = rows(tmp_path)[-1]
    assert 1 < last["test_bits_per_dim"] < 6
    images.main(["--sample", str(tmp_path / "checkpoint.safetensors"), "--out", str(tmp_path / "again")])


def test_class_conditional(tmp_path: Path) -> None:
    conditional = pytest.importorskip("conditional")
    conditional.main(["--flow", "glow", "--hidden", "8", "--steps", "25", "--draws", "1", "--out", str(tmp_path)])
    last = rows(tmp_path)[-1]
    assert last["test_accuracy"] > 0.15
    with pytest.raises(ValueError, match="one of 0 to 9, but got 12"):
        conditional.one_hot(torch.tensor([3, 12]))
    assert (tmp_path / "samples.png").stat().st_size > 100


def test_missing_data_is_one_sentence(images: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"mnist is not in --root .*--download"):
        images.main(["--data", "mnist", "--root", str(tmp_path / "nothing"), "--out", str(tmp_path)])


def test_missing_checkpoint_is_one_sentence(images: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="There is no checkpoint"):
        images.main(["--sample", str(tmp_path / "none.safetensors")])


def test_truncated_checkpoint_is_one_sentence(images: ModuleType, run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "checkpoint.safetensors"
    damaged.write_bytes((run / "checkpoint.safetensors").read_bytes()[:-100])
    damaged.with_suffix(".json").write_text((run / "checkpoint.json").read_text())
    with pytest.raises(SystemExit, match="truncated"):
        images.main(["--sample", str(damaged), "--out", str(tmp_path)])


def test_checkpoint_of_another_architecture_is_one_sentence(images: ModuleType, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "checkpoint.safetensors"
    state = load_file(run / "checkpoint.safetensors")
    state.popitem()
    save_file(state, other)
    other.with_suffix(".json").write_text((run / "checkpoint.json").read_text())
    with pytest.raises(SystemExit, match="another architecture"):
        images.main(["--sample", str(other), "--out", str(tmp_path)])


def test_option_that_does_not_apply_is_refused(images: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--couplings does not apply to --flow realnvp"):
        images.main(["--describe", "--couplings", "3"])
    with pytest.raises(SystemExit, match="--packed does not apply to --flow glow"):
        images.main(["--describe", "--flow", "glow", "--packed"])
