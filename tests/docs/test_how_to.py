"""The Python blocks of home, concepts, guides and the how-to pages run, and do what the text says of them."""

from pathlib import Path

import pytest
import torch

from snippets import blocks_of, run

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "howto").glob("*.md"))


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files


def test_home() -> None:
    names = run(DOCS / "index.md")
    assert names["log_density"].shape == (3000,)
    assert {name: value.shape for name, value in names["posterior"].items()} == {"scale": (1000,), "x": (1000, 3)}


def test_concepts() -> None:
    names = run(DOCS / "concepts.md")
    before = names["image"](names["pictures"])
    names["image"].train()
    assert not torch.allclose(names["image"](names["pictures"]), before, atol=1e-2)  # as the text says of training


def test_guides(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(DOCS / "guides.md")
    assert names["posterior"]["z"].shape == (1000, 8)
    assert {"theta"} == set(names["model"].centered)
    assert names["theta"].shape == (1000, 8)
    assert "k-hat" in capsys.readouterr().out


def test_choose() -> None:
    names = run(DOCS / "howto" / "choose.md")
    assert names["history"].unit == "nats"
    assert int(names["history"].step[-1]) == 20


def test_condition() -> None:
    names = run(DOCS / "howto" / "condition.md")
    assert names["log_density"].shape == (500,)
    assert names["draws"].shape == (1000, 2)
    assert names["interval"].shape == (2, 1)
    assert any(parameter is names["network"][1].weight for parameter in names["embedded"].parameters())


def test_hierarchy() -> None:
    names = run(DOCS / "howto" / "hierarchy.md")
    posterior, level = names["posterior"], names["level"]
    off = (posterior["intercept"].mean(0) - level) / posterior["intercept"].std(0)
    assert posterior["intercept"].shape == (500, 12)
    assert off.abs().max() < 4
    assert names["report"].pareto_k < 0.7
    assert names["predicted"].shape == (500, 240)
    assert names["unseen"].shape == (500,)
    assert names["report_of_nested"].samples.resample(10)["of_town"].shape == (10, 3)


def test_nan(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(DOCS / "howto" / "nan.md")
    assert names["diagnosis"].first_row == 7
    assert "Column 1 of x is not standardised" in capsys.readouterr().out
    assert torch.isfinite(names["flow"](names["table"])).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.export itself
def test_files(tmp_path: Path) -> None:
    names = run(DOCS / "howto" / "files.md")
    assert names["own"](names["x"]).shape == (100,)
    assert {path.name for path in tmp_path.iterdir()} == {
        "flow.safetensors",
        "own.safetensors",
        "guide.safetensors",
        "guide.pt",
    }


def test_devices() -> None:
    names = run(DOCS / "howto" / "devices.md")
    assert torch.isfinite(names["loss"])
    assert names["deep"].transforms.rebuilds


def test_reproducible() -> None:
    names = run(DOCS / "howto" / "reproducible.md")
    assert names["first"] is not names["second"]


def test_migrate() -> None:
    names = run(DOCS / "howto" / "migrate.md")
    moved = names["pyro_flow"]
    moved.clear_cache()
    assert not torch.allclose(moved.log_prob(names["x"]), names["log_density"])  # the flow trains Pyro's own layers


def test_cite(capsys: pytest.CaptureFixture[str]) -> None:
    run(DOCS / "howto" / "cite.md")
    assert "Durkan" in capsys.readouterr().out


def test_every_page_is_run_here_and_has_something_to_run() -> None:
    assert all(f"test_{page.stem}" in globals() for page in PAGES)
    assert all(blocks_of(page) for page in PAGES)
