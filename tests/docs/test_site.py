"""The site has every public name once, in the order of its pages, and nothing that its navigation leaves out."""

import re
from pathlib import Path

import pyro_realnvp
from pyro_realnvp import testing
from pyro_realnvp._deprecated import DEPRECATED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENTRY = re.compile(r"^::: pyro_realnvp\.([\w.]+)$", re.M)
LINK = re.compile(r"\]\(([^)#\s]+\.(?:md|png))(?:#[^)]*)?\)")


def entries() -> list[str]:
    return [name for page in sorted((DOCS / "api").glob("*.md")) for name in ENTRY.findall(page.read_text())]


def test_every_public_name_has_its_entry_once() -> None:
    public = [name for name in entries() if "." not in name]
    assert sorted(public) == sorted(pyro_realnvp.__all__)
    others = [name.removeprefix("testing.") for name in entries() if "." in name]
    assert others == ["check_bijection", "randomize", "draw"]
    assert all(hasattr(testing, name) for name in others)


def test_the_table_of_groups_has_every_name_on_the_page_that_it_links() -> None:
    for row in (DOCS / "api" / "index.md").read_text().splitlines():
        if found := re.match(r"\| \[\w+\]\((\w+\.md)\) \| (.*) \|$", row):
            named = re.findall(r"\]\[pyro_realnvp\.([\w.]+)\]", found[2])
            assert named == ENTRY.findall((DOCS / "api" / found[1]).read_text()), found[1]


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    for name in pyro_realnvp.__all__:
        assert vars(getattr(pyro_realnvp, name)).get("__doc__") or getattr(pyro_realnvp, name).__doc__, name


def test_the_navigation_has_every_page_once() -> None:
    lines = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/]+\.md", lines)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
    for page in pages:
        for target in LINK.findall(page.read_text()):
            assert target.startswith("https://") or (page.parent / target).is_file(), f"{page} links to {target}"


def test_the_home_page_begins_as_the_readme() -> None:
    def first_screen(path: Path) -> str:
        return path.read_text().partition("```sh")[0].replace("docs/digits.png", "digits.png")

    assert first_screen(DOCS / "index.md") == first_screen(ROOT / "README.md")


def test_the_changelog_has_every_name_that_goes_and_what_takes_its_place() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert dict(rows) == {name: new for name, (_, new) in DEPRECATED.items()}


def test_what_is_cited_is_this_version() -> None:
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert version == pyro_realnvp.__version__
    assert f"## {version.partition('.dev')[0]} - " in (ROOT / "CHANGELOG.md").read_text()
