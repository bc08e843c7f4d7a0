"""Tutorials run at reduced size, and their pages have been written from the scripts as they are."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from matplotlib import image

from snippets import blocks_of, shortened

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = sorted((DOCS / "tutorials").glob("*.py"))
every = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def render():
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def few_steps(code: str) -> str:
    """Lets trainings that end by themselves end after 20 steps, and others after a tenth of theirs."""
    return shortened(re.sub(r"\bfit\((?![^()\n]*steps=)([^()\n]*)\)", r"fit(\1, steps=200)", code))


def test_few_steps() -> None:
    assert few_steps("fit(flow, x, seed=0)") == "fit(flow, x, seed=0, steps=20)"
    assert few_steps("fit(flow, x, steps=500, seed=0)") == "fit(flow, x, steps=50, seed=0)"


@every
def test_a_tutorial_runs_and_its_pictures_show_something(render, script, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setitem(sys.modules, script.stem, None)  # taken back afterwards
    page, _ = render.run(script, tmp_path, change=few_steps)
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert pictures
    for picture in pictures:
        assert image.imread(tmp_path / picture)[..., :3].std() > 0.02, picture


@every
def test_a_page_has_the_cells_and_the_pictures_of_its_script(render, script) -> None:
    page = script.with_suffix(".md")
    cells = render.cells_of(script)
    assert [block.strip() for block in blocks_of(page)] == [text for is_code, text in cells if is_code]
    assert all(text in page.read_text() for is_code, text in cells if not is_code)
    pictures = set(re.findall(r"!\[.+\]\((.+)\)", page.read_text()))
    assert pictures == {path.name for path in page.parent.glob(f"{page.stem}-*.png")}


def test_pages_and_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in (DOCS / "tutorials").iterdir()) < 3_000_000
    assert {path.stem for path in SCRIPTS} == {path.stem for path in (DOCS / "tutorials").glob("*.md")}
