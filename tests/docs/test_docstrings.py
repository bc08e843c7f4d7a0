"""Docstrings become Markdown, and what they name in roles leads to the API pages."""

import importlib.util
import inspect
import re
from pathlib import Path

import griffe
import pytest

import pyro_realnvp

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "docstrings.py"


def module():
    spec = importlib.util.spec_from_file_location("docstrings", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    extensions = griffe.load_extensions(str(SOURCE))
    package = griffe.load("pyro_realnvp", search_paths=[ROOT], extensions=extensions, allow_inspection=False)
    assert isinstance(package, griffe.Module)
    return package


def documented(package: griffe.Module):
    """Name and object of everything public that a page shows with its docstring."""
    for name in pyro_realnvp.__all__:
        found = package[name].final_target
        yield name, found
        if found.is_class:
            for member, value in found.members.items():
                if not member.startswith("_") and not value.is_alias:
                    yield f"{name}.{member}", value


def test_roles_become_links_and_those_without_a_page_become_code() -> None:
    pages = {"fit": "pyro_realnvp.fit", "pyro_realnvp.Flow": "pyro_realnvp.Flow"}
    translated = module().markdown(
        "Trains a :class:`~pyro_realnvp.Flow` by :func:`fit`, see :mod:`pyro_realnvp.description`.", pages.get
    )
    assert translated.strip() == (
        "Trains a [`Flow`][pyro_realnvp.Flow] by [`fit`][pyro_realnvp.fit], see `description`."
    )


def test_indented_blocks_are_fenced_outside_of_sections_alone() -> None:
    text = "Does it.\n\n    f(x)\n\n    g(x)\n\nOr\n\n    y = |dx/dz|\n\nArgs:\n    x: a number.\n\n    y: another.\n"
    assert module().markdown(text, lambda name: None) == (
        "Does it.\n\n```python\nf(x)\n\ng(x)\n```\n\nOr\n\n```text\ny = |dx/dz|\n```\n\n"
        "Args:\n    x: a number.\n\n    y: another.\n"
    )


def test_an_example_is_a_section_of_code_with_output_under_its_own_heading() -> None:
    text = module().markdown("Does it.\n\nExample:\n    >>> 1 + 1\n    2\n", lambda name: None)
    said, example = griffe.Docstring(text).parse("google")
    assert said.value == "Does it."
    assert example.title == "Example:"
    assert example.value == [(griffe.DocstringSectionKind.examples, ">>> 1 + 1\n2")]


def test_all_public_docstrings_are_translated_whole(package: griffe.Module) -> None:
    for name, found in documented(package):
        text = found.docstring.value if found.docstring else ""
        assert not re.search(r":\w+:`", text), f"{name} keeps a role"
        before = text.partition("\nArgs:")[0].partition("\nAttributes:")[0].partition("\nRaises:")[0]
        outside = "".join(before.split("```")[::2])
        assert not re.search(r"\n\n {4}", outside), f"{name} has an indented block without a fence"


def test_links_name_what_the_pages_have(package: griffe.Module) -> None:
    links = 0
    for name, found in documented(package):
        for path in re.findall(r"\]\[(pyro_realnvp\.[\w.]+)\]", found.docstring.value if found.docstring else ""):
            public, _, member = path.removeprefix("pyro_realnvp.").partition(".")
            target = getattr(pyro_realnvp, public)
            assert public in pyro_realnvp.__all__, f"{name} links to {path}"
            assert not member or inspect.getdoc(getattr(target, member)), f"{name} links to {path}"
            links += 1
    assert links > 50


def test_a_member_that_a_class_inherits_is_linked_where_it_is_written(package: griffe.Module) -> None:
    names = set(pyro_realnvp.__all__)
    path_of = module().path_of
    chain = package["Chain"].final_target
    assert path_of("forward_and_log_det", chain, package, names) == "pyro_realnvp.Bijection.forward_and_log_det"
    assert path_of("Lift.condition", chain, package, names) == "pyro_realnvp.Bijection.condition"
    assert path_of("nothing_such", chain, package, names) is None
    assert path_of("torch.Tensor", chain, package, names) is None
