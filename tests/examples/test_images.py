"""The image example, run with tiny arguments."""

import json
import math
import re
from pathlib import Path

import pyro
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import conditional
import images
from pyro_realnvp import ImageFlow, load
from pyro_realnvp.training.average import exponential_average
from pyro_realnvp.training.loop import Batches

from shared import image_figures
from shared.image_data import crop, describe_data, load_images, pad
from shared.image_models import build, configuration
from shared.image_options import parse
from shared.image_training import mle_step, optimizer_of, svi_step

TINY = ["--hidden", "4", "--blocks", "1", "--device", "cpu"]
OLD = Path(__file__).parents[1] / "checkpoints"  # written by version 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    assert -0.3 < last["test_bits_per_dim_of_8_draws"] - last["test_bits_per_dim"] < 0  # a tighter bound
    assert 0 < last["test_bits_per_dim_of_8_draws_error"] < 1.5 * last["test_bits_per_dim_error"]
    for name in ("samples.png", "interpolation.png", "checkpoint.json"):
        assert (run / name).stat().st_size > 100


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_svi_takes_the_steps_of_maximum_likelihood() -> None:
    config = configuration(parse([*TINY, "--scales", "1"]))
    data = torch.randint(0, 17, (80, 1, 1, 1)).expand(80, 1, 8, 8)
    losses = {}
    for objective in ("mle", "svi"):
        pyro.set_rng_seed(0)
        model = build(config)
        average = exponential_average(model, 0.99)
        batches = Batches(data, 8)
        if objective == "mle":
            optimizer = optimizer_of(model, 1e-2, 0.0)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            step = mle_step(model, batches.__next__, optimizer, scheduler, average)
        else:
            step, _ = svi_step(model, batches.__next__, 1e-2, lambda step: 1.0, average)
        losses[objective] = [float(step()) for _ in range(12)]
    nats = torch.tensor(list(losses.values()), dtype=torch.float64)
    assert nats[0, -1] < nats[0, 0] - 10
    assert (nats[0] - nats[1]).abs().max() < 1e-5 * 64 * math.log(2)  # 1e-5 bits a dimension


def test_a_loss_that_is_nan_ends_with_a_diagnosis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: ImageFlow, *options: float) -> torch.optim.Optimizer:
        optimizer = optimizer_of(model, *options)
        with torch.no_grad():
            next(iter(model.flow.transforms.parameters())).fill_(math.nan)
        return optimizer

    monkeypatch.setattr(images, "optimizer_of", broken)
    with pytest.raises(SystemExit, match=r"loss became nan at about step 1.* first layer with .* is flow\.transforms"):
        images.main([*TINY, "--steps", "20", "--out", str(tmp_path)])
    assert "* The first layer with something not finite is flow.transforms" in capsys.readouterr().err


def test_sample_reproduces(run: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        images.main(["--sample", str(run / "checkpoint.safetensors"), "--out", str(tmp_path / folder)])
    assert (tmp_path / "a/sample-of-checkpoint.png").read_bytes() == (
        tmp_path / "b/sample-of-checkpoint.png"
    ).read_bytes()


def test_sampling_leaves_what_training_has_written(run: Path) -> None:
    before = {file: file.read_bytes() for file in run.iterdir()}
    assert {"metrics.jsonl", "training.safetensors"} <= {file.name for file in before}
    with pytest.raises(SystemExit, match=r"^2$"):
        images.main(["--sample", str(run / "chekpoint.safetensors"), "--out", str(run)])
    images.main(["--sample", str(run / "checkpoint.safetensors"), "--out", str(run)])
    (run / "sample-of-checkpoint.png").unlink()
    assert {file: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--data", "cifar10"], 19_609_545),
        (["--data", "cifar10", "--scales", "4", "--hidden", "32", "--blocks", "4"], 46_220_359),
    ],
)
def test_describe_counts_without_data(arguments: list[str], count: int, capsys: pytest.CaptureFixture[str]) -> None:
    images.main(["--describe", *arguments, "--root", "no such folder"])
    printed = capsys.readouterr().out
    assert f"trainable parameters: {count}" in printed.splitlines()
    assert re.search(r"SplitCoupling +\(12, 16, 16\)", printed)


def test_padding_is_undone() -> None:
    digits = torch.arange(2 * 28 * 28).reshape(2, 1, 28, 28)
    config = configuration(parse(["--data", "mnist", "--scales", "4"]))
    assert config["event_shape"] == [1, 32, 32]
    padded = pad(digits, config["event_shape"])
    assert padded.shape == (2, 1, 32, 32)
    assert padded[..., 28:, :].eq(0).all()
    assert torch.equal(crop(padded, config["image_shape"]), digits)


def save_pictures(folder: Path, *sizes: tuple[int, int]) -> str:
    """Saves noise of these heights and widths, and returns the argument of --data."""
    folder.mkdir()
    for index, (height, width) in enumerate(sizes):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        Image.frombytes("RGB", (width, height), pixels.numpy().tobytes()).save(folder / f"{index:02}.png")
    return f"folder:{folder}"


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = save_pictures(tmp_path / "data", *[(10, 13)] * 30)
    out = tmp_path / "out"
    images.main(["--data", data, *TINY, "--steps", "2", "--scales", "2", "--batch-size", "8", "--out", str(out)])
    assert rows(out)[-1]["test_bits_per_dim"] > 0
    config = json.loads((out / "checkpoint.json").read_text())
    assert config["image_shape"] == [3, 10, 13]  # as the files are
    assert config["event_shape"] == [3, 10, 14]
    train, validation, test = load_images(data, tmp_path, download=False)
    assert [len(train), len(validation), len(test)] == [25, 2, 3]
    with Image.open(tmp_path / "data/00.png") as picture:
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    assert torch.equal(train[0], pixels.view(10, 13, 3).permute(2, 0, 1))


def test_sizes_of_the_images_of_a_folder(tmp_path: Path) -> None:
    mixed = save_pictures(tmp_path / "mixed", (10, 13), (10, 13), (12, 13), (10, 13))
    assert describe_data(mixed, 8).image_shape == (3, 8, 8)
    assert load_images(mixed, tmp_path, download=False, size=8)[0].shape == (2, 3, 8, 8)
    sentence = r"10 x 13 \(00.png\) and 12 x 13 \(02.png\); pass --size"
    for command in ([], ["--describe"]):
        with pytest.raises(SystemExit, match=sentence):
            images.main(["--data", mixed, *TINY, *command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least 4 images, but 0"):
        images.main(["--data", f"folder:{tmp_path / 'none'}", *TINY, "--out", str(tmp_path)])


@pytest.mark.parametrize("name", ["realnvp", "realnvp-packed", "nice", "glow"])
def test_sample_from_a_checkpoint_of_version_01(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    save_grids = image_figures.save_grids

    def watched(path: Path, panels: dict[str, torch.Tensor], columns: int) -> None:
        drawn.extend(panels.values())
        save_grids(path, panels, columns)

    monkeypatch.setattr(image_figures, "save_grids", watched)
    images.main(["--sample", str(OLD / f"{name}.safetensors"), "--out", str(tmp_path)])
    (samples,) = drawn
    assert samples.shape == (64, 1, 8, 8)
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert samples.std(0).min() > 0.01  # all pixels vary
    assert (tmp_path / f"sample-of-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_flowpp_of_version_01_is_refused_for_its_dequantizer(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"written by version 0\.1, whose Flow.. drew the noise"):
        images.main(["--sample", str(OLD / "flowpp.safetensors"), "--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("flow", [["nice"], ["glow"], ["flowpp"], ["realnvp", "--packed"]])
def test_the_other_flows(flow: list[str], tmp_path: Path) -> None:
    small = ["--hidden", "8", "--steps", "4", "--device", "cpu", "--out", str(tmp_path)]
    images.main(["--flow", *flow, *small])
    last = rows(tmp_path)[-1]
    assert 1 < last["test_bits_per_dim"] < 6
    path = tmp_path / "checkpoint.safetensors"
    images.main(["--sample", str(path), "--out", str(tmp_path / "again")])
    model = load(path)
    assert isinstance(model, ImageFlow)
    assert model.sample((3,)).shape == (3, 1, 8, 8)


def test_class_conditional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, *others = conditional.load_labelled_digits()
    few = [(pictures[:100], labels[:100]) for pictures, labels in others]
    monkeypatch.setattr(conditional, "load_labelled_digits", lambda: (train, *few))
    conditional.main(["--flow", "glow", "--hidden", "8", "--steps", "25", "--draws", "1", "--out", str(tmp_path)])
    last = rows(tmp_path)[-1]
    assert last["test_accuracy"] > 0.15
    model = load(tmp_path / "checkpoint.safetensors")
    assert model.sample(context=torch.eye(10)).shape == (10, 1, 8, 8)
    with pytest.raises(ValueError, match="one of 0 to 9, but got 12"):
        conditional.one_hot(torch.tensor([3, 12]))
    assert (tmp_path / "samples.png").stat().st_size > 100


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"mnist is not in --root .*--download"):
        images.main(["--data", "mnist", "--root", str(tmp_path / "nothing"), "--out", str(tmp_path)])


def test_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        images.main(["--sample", str(tmp_path / "none.safetensors")])


def test_truncated_checkpoint_is_one_sentence(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "checkpoint.safetensors"
    damaged.write_bytes((run / "checkpoint.safetensors").read_bytes()[:-100])
    damaged.with_suffix(".json").write_text((run / "checkpoint.json").read_text())
    with pytest.raises(SystemExit, match="truncated"):
        images.main(["--sample", str(damaged), "--out", str(tmp_path)])


def test_checkpoint_of_another_architecture_is_one_sentence(tmp_path: Path) -> None:
    """The last tensor of an old pair is missing."""
    path = tmp_path / "checkpoint.safetensors"
    state = load_file(OLD / "realnvp.safetensors")
    state.popitem()
    save_file(state, path)
    path.with_suffix(".json").write_text((OLD / "realnvp.json").read_text())
    with pytest.raises(SystemExit, match="another architecture"):
        images.main(["--sample", str(path), "--out", str(tmp_path)])


def test_checkpoint_without_the_shape_of_its_images_is_one_sentence(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes((run / "checkpoint.safetensors").read_bytes())
    with pytest.raises(SystemExit, match=r"There is no file .*checkpoint.json"):
        images.main(["--sample", str(path), "--out", str(tmp_path)])
