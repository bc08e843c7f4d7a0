"""MNIST as vectors: the densities are those of the spaces that the tables name, and a run ends with their figures."""

import gzip
import json
import math
import struct
from pathlib import Path

import pytest
import torch

import mnist_vectors
from pyro_realnvp import BatchNorm, load

from shared.image_data import load_images, load_labels, training_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes files like those of MNIST: 120 training and 40 test images, whose pixels depend on the digit."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 120), ("t10k", 40)):
        labels = torch.arange(count) % 10
        pixels = torch.randint(0, 26, (count, 28, 28), generator=generator) + 25 * labels[:, None, None]
        values = {"images-idx3": (pixels, (2051, count, 28, 28)), "labels-idx1": (labels, (2049, count))}
        for name, (data, head) in values.items():
            content = struct.pack(f">{len(head)}i", *head) + data.to(torch.uint8).numpy().tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(content)
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.mark.parametrize("name", list(mnist_vectors.RECIPES))
def test_shapes_and_widths_are_the_published_ones(name: str) -> None:
    flow = mnist_vectors.build(name)
    widths = [part.out_features for part in flow.modules() if isinstance(part, torch.nn.Linear)]
    if name == "nice":
        assert widths == [*(1000,) * 5, 392] * 4
    else:
        assert widths == [1024, 1024, 392] * 2 * 5
    assert sum(isinstance(part, BatchNorm) for part in flow.modules()) == {"nice": 0, "realnvp": 5}[name]


@pytest.mark.parametrize("classes", [0, 10])
def test_log_det_of_scale_and_shift(classes: int) -> None:
    """Of a coupling with two networks, against autodiff, with weights that are not those of the start."""
    torch.manual_seed(0)
    net = mnist_vectors.ScaleAndShift(3, 6, hidden=(5, 5), context_dim=classes).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    coupling = mnist_vectors.SplitCoupling((6,), net, mnist_vectors.Affine()).double()
    x, context = torch.randn(6, dtype=torch.float64), torch.eye(10, dtype=torch.float64)[3] if classes else None
    _, log_det = coupling.forward_and_log_det(x[None], None if context is None else context[None])
    jacobian = torch.autograd.functional.jacobian(
        lambda x: coupling.forward_and_log_det(x[None], None if context is None else context[None])[0][0], x
    )
    torch.testing.assert_close(log_det[0], jacobian.slogdet().logabsdet)


def test_spaces() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (5, 784))
    y = mnist_vectors.dequantize("realnvp", pixels)
    back = mnist_vectors.LEVELS * (y.double().sigmoid() - mnist_vectors.ALPHA) / (1 - 2 * mnist_vectors.ALPHA)
    assert torch.equal(back.floor().long(), pixels)
    unit = mnist_vectors.dequantize("nice", pixels)
    assert torch.equal((256 * unit).floor().long(), pixels)
    assert (unit != mnist_vectors.dequantize("nice", pixels)).any()  # the noise is drawn anew


def test_all_labels_are_equally_likely() -> None:
    torch.manual_seed(0)
    flow = mnist_vectors.build("realnvp", hidden=4, classes=10).eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(3, 784)
    each = torch.stack([flow(x, label.expand(3, 10)) for label in torch.eye(10)])
    assert (each[0] - each[1]).abs().min() > 1e-3
    expected = each.logsumexp(0) - math.log(10)
    torch.testing.assert_close(mnist_vectors.log_density(flow, x, 10), expected)
    assert (expected < each.amax(0)).all()


def test_nice_starts_with_the_deviation_of_its_prior() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 784) * torch.rand(784)
    flow = mnist_vectors.build("nice", hidden=4)
    mnist_vectors.initialize(flow, x)
    torch.testing.assert_close(flow.transforms.inv(x).std(0), torch.full((784,), math.pi / math.sqrt(3)))


@pytest.mark.parametrize("flow", [["nice"], ["realnvp"], ["realnvp", "--conditional"], ["realnvp", "--bf16"]])
def test_a_run(flow: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_vectors, "TRAINING", 100)
    options = ["--hidden", "8", "--batch-size", "50", "--epochs", "3", "--learning-rate", "1e-3"]
    mnist_vectors.main([*flow, *options, "--root", str(root), "--out", str(tmp_path), "--device", "cpu"])
    *intervals, last = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in intervals] == [2, 4, 6]
    best = max(row["validation_nats"] for row in intervals)
    assert last["validation_nats"] == best
    assert 0 < last["test_nats_error"] < abs(last["test_nats"])
    saved = load(tmp_path / "checkpoint.safetensors", build=lambda config: mnist_vectors.build(**config, hidden=8))
    test = load_images("mnist", root, download=False)[2].flatten(1)
    classes = 10 if "--conditional" in flow else 0
    assert mnist_vectors.score(saved, flow[0], test, classes)[0] == pytest.approx(last["test_nats"], rel=1e-5)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["torch"] == torch.__version__.split("+")[0]


def test_statistics_are_those_of_the_whole_training_set(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_vectors, "TRAINING", 100)
    options = ["--hidden", "8", "--batch-size", "50", "--epochs", "1", "--ema", "0"]
    mnist_vectors.main(["realnvp", *options, "--root", str(root), "--out", str(tmp_path), "--device", "cpu"])
    flow = load(tmp_path / "checkpoint.safetensors", build=lambda config: mnist_vectors.build(**config, hidden=8))
    images = torch.cat(load_images("mnist", root, download=False)[:2])[:100].flatten(1)
    latents = flow.transforms.inv(mnist_vectors.dequantize("realnvp", images))
    assert latents.mean(0).abs().max() < 0.3  # the noise of the pixels is another
    assert (latents.var(0, correction=0) - 1).abs().max() < 0.6


def test_labels(root: Path) -> None:
    parts = load_labels("mnist", root)
    images = load_images("mnist", root, download=False)
    assert [len(part) for part in parts] == [len(part) for part in images] == [100, 20, 40]
    assert torch.cat(parts[:2]).tolist() == [index % 10 for index in range(120)]


def test_rows_that_are_held_out() -> None:
    assert training_rows("mnist", 60_000) == training_rows("fashion-mnist", 60_000) == 50_000
    assert training_rows("cifar10", 50_000) == 45_000
    assert training_rows("folder:x", 5) == 4


def test_the_state_of_the_best_validation_is_tested(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_vectors, "TRAINING", 100)
    values, seen = iter([1.0, 3.0, 2.0, 0.0]), []

    def score(flow: torch.nn.Module, *rest: object) -> tuple[float, float]:
        seen.append(torch.cat([p.detach().flatten() for p in flow.parameters()]).clone())
        return next(values), 0.1

    monkeypatch.setattr(mnist_vectors, "score", score)
    options = ["--hidden", "8", "--batch-size", "50", "--epochs", "3"]
    mnist_vectors.main(["nice", *options, "--root", str(root), "--out", str(tmp_path), "--device", "cpu"])
    assert torch.equal(seen[3], seen[1])
    assert not torch.equal(seen[3], seen[2])


def test_nice_knows_no_classes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mnist_vectors.main(["nice", "--conditional"])
    assert "--conditional: does not apply to nice" in capsys.readouterr().err
