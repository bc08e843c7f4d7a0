"""Docstrings of the package as Markdown: roles become links to the API pages, indented code becomes fenced.

An extension of griffe, which mkdocstrings loads by its path in ``mkdocs.yml``. Griffe knows the section ``Example:`` by
the name ``Examples:`` alone, and shows its doctests as code with output.
"""

import ast
import re
import textwrap
from typing import Any

import griffe

PACKAGE = "pyro_realnvp"
ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", re.M)
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields|Example):$", re.M)
EXAMPLE = re.compile(r"^Example:$", re.M)


def markdown(text: str, resolve: Any) -> str:
    """Translates a docstring.

    Args:
        text: of the docstring, without its indentation.
        resolve: returns the path of a documented object for the name in a role, or None if it has no page.
    """

    def link(found: re.Match[str]) -> str:
        short, name = found.groups()
        path = resolve(name)
        shown = name.rpartition(".")[2] if short else name.removeprefix(f"{PACKAGE}.")
        return f"[`{shown}`][{path}]" if path else f"`{shown}`"

    text = ROLE.sub(link, text)
    first = SECTION.search(text)  # in a section, an indentation is that of an item
    end = first.start() if first else len(text)
    body = text[:end] if text[:end].endswith("\n") else text[:end] + "\n"
    return INDENTED.sub(_fenced, body) + EXAMPLE.sub("Examples: Example:", text[end:])  # the second is the heading


def _fenced(found: re.Match[str]) -> str:
    """Returns an indented block between fences: as Python if it is, else as text, which formulas are."""
    code = textwrap.dedent(found[0]).strip("\n")
    try:
        ast.parse(code)
        language = "python"
    except SyntaxError:
        language = "text"
    return f"```{language}\n{code}\n```\n"


class Docstrings(griffe.Extension):
    """Translates all docstrings of the package, once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        public = {name.strip("'\"") for name in map(str, pkg.exports or ())}
        self._visit(pkg, pkg, public)

    def _visit(self, of: griffe.Object, package: griffe.Module, public: set[str]) -> None:
        for member in of.members.values():
            if not member.is_alias:
                self._visit(member, package, public)
        if of.docstring:
            of.docstring.value = markdown(of.docstring.value, lambda name: path_of(name, of, package, public))


def path_of(name: str, of: griffe.Object, package: griffe.Module, public: set[str]) -> str | None:
    """Returns under which path the API pages have what a docstring of ``of`` names, or None if they do not.

    They have the names in ``public`` and their documented members, also those that a class inherits.
    """
    name = name.removeprefix(f"{PACKAGE}.")
    first, _, member = name.partition(".")
    if first in public:
        return f"{PACKAGE}.{name}" if not member else _member(package[first], member, package, public)
    cls: Any = of if of.is_class else of.parent
    return _member(cls, name, package, public) if cls is not None and cls.is_class and not member else None


def _member(cls: Any, name: str, package: griffe.Module, public: set[str]) -> str | None:
    """Returns the path of a member at the first public class, from ``cls`` upwards, that documents it."""
    cls = cls.final_target if cls.is_alias else cls
    if cls.name in public and name in cls.members and cls.members[name].docstring:
        return f"{PACKAGE}.{cls.name}.{name}"
    for base in getattr(cls, "bases", ()):
        path = getattr(base, "canonical_path", "")  # of torch or Pyro, it is not loaded
        ours = path.startswith(f"{PACKAGE}.")
        if ours and (found := _member(package.modules_collection[path], name, package, public)):
            return found
    return None
