"""examples/vae.py: a tiny run of all four writes what it promises, and its bounds are those of the Pyro model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import vae
from pyro_realnvp import load

SMALL = ["--latent", "3", "--hidden", "8", "--decoder", "5", "--couplings", "2", "--width", "4"]
SMALL += ["--batch", "16", "--draws", "5"]
TINY = [*SMALL, "--steps", "4", "--interval", "2", "--device", "cpu"]
FOUR = [(prior, posterior) for prior in ("normal", "flow") for posterior in ("normal", "flow")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("vae")
    vae.main([*TINY, "--out", str(out)])
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config(prior: str, posterior: str) -> dict[str, Any]:
    sizes = {"pixels": 6, "levels": 5, "latent": 3, "hidden": 8, "decoder": [5], "couplings": 2, "width": [4]}
    return {**sizes, "dropout": 0.0, "prior": prior, "posterior": posterior}


def test_a_run_writes_metrics_models_and_picture(run: Path) -> None:
    rows = rows_of(run)
    models = [row for row in rows if "model" in row]
    assert [row["model"] for row in models] == [f"{prior} prior, {posterior} posterior" for prior, posterior in FOUR]
    assert [row["step"] for row in rows if "step" in row] == 4 * [2, 4]
    assert all(row["test_bound"] >= row["test_elbo"] for row in models)
    assert all(math.isfinite(row["gain"]) and row["gain_error"] >= 0 for row in models)
    assert models[0]["gain"] == models[0]["gain_error"] == 0
    assert (run / "vae.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_restore_the_models(run: Path) -> None:
    for prior, posterior in FOUR:
        model = load(run / f"{prior}-{posterior}.safetensors", build=vae.VAE)
        assert model.log_weights(torch.zeros(2, 64), 1).isfinite().all()
        assert any("prior.transforms" in name for name in model.state_dict()) == (prior == "flow")
        assert any("posterior.transforms" in name for name in model.state_dict()) == (posterior == "flow")


def test_one_of_the_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(vae, "draw", lambda models, *_: drawn.extend(models))
    vae.main([*TINY, "--lr", "0", "--steps", "9", "--patience", "2", "--prior", "flow", "--out", str(tmp_path)])
    rows = rows_of(tmp_path)
    assert drawn == ["flow prior, normal posterior", "flow prior, flow posterior"]
    assert not any("gain" in row for row in rows)  # over what has not been trained


@pytest.mark.parametrize(("prior", "posterior"), FOUR)
def test_the_bound_is_that_of_the_model_and_the_guide(prior: str, posterior: str) -> None:
    model = vae.VAE(config(prior, posterior)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randint(5, (7, 6)).float()
    pyro.set_rng_seed(3)
    loss = Trace_ELBO().loss(model.model, model.guide, x)
    pyro.set_rng_seed(3)
    assert -model.log_weights(x, 1).mean().item() == pytest.approx(loss, rel=1e-5)
    row, elbo = vae.test(model, x, 50)
    assert row["test_elbo"] == pytest.approx(elbo.mean().item())
    assert row["test_bound"] > row["test_elbo"]


def test_the_importance_weighted_bound_reaches_the_likelihood() -> None:
    """Of one image, against a mean of the likelihood over the prior."""
    model = vae.VAE(config("flow", "flow")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randint(5, (1, 6)).float()
        log_likelihood = model.p_of_x(model.p_of_z().sample((100_000,))).log_prob(x)
        truth = (log_likelihood.logsumexp(0) - math.log(100_000)).item()
    row, _ = vae.test(model, x.expand(20, 6), 300)
    assert row["test_bound"] == pytest.approx(truth, abs=0.05)
    assert row["test_elbo"] < truth - 0.1


@pytest.mark.parametrize(("prior", "posterior"), FOUR[1:])
def test_every_model_starts_as_the_one_without_flows(prior: str, posterior: str) -> None:
    plain, model = vae.VAE(config("normal", "normal")).eval(), vae.VAE(config(prior, posterior)).eval()
    state = {
        name.replace("posterior.", "posterior.base.") if posterior == "flow" else name: value
        for name, value in plain.state_dict().items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("transforms" in name for name in missing)
    x = torch.randint(5, (7, 6)).float()
    pyro.set_rng_seed(0)
    expected = plain.log_weights(x, 2)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(model.log_weights(x, 2), expected)


def test_grey_images_are_binarised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grey = torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8)
    monkeypatch.setattr(vae, "load_images", lambda *_, **__: (grey, grey[:20], grey[:10]))
    monkeypatch.setattr(vae, "draw", lambda *_: None)
    vae.main([*TINY, "--data", "mnist", "--prior", "flow", "--posterior", "normal", "--out", str(tmp_path)])
    assert math.isfinite(rows_of(tmp_path)[-1]["test_elbo"])
    options = vae.argparse.Namespace(data="mnist", root=tmp_path, download=False)
    images, levels, binarise = vae.load(options, torch.device("cpu"))
    assert (levels, binarise) == (2, True)
    torch.testing.assert_close(images.training, grey.flatten(1) / 255)
    assert set(images.test.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images.test, vae.load(options, torch.device("cpu"))[0].test)
    assert images.validation.mean() == pytest.approx(grey[:20].float().mean().item() / 255, abs=0.02)
