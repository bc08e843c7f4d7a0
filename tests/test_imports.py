"""Imports run one way, and the package knows torch, Pyro and the standard library alone."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pyro_realnvp


def test_imports_run_one_way():
    graph, outside = {}, {}
    for path in Path(pyro_realnvp.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        relative = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        graph[path.stem], outside[path.stem] = relative, {name.split(".")[0] for name in names}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set.union(*outside.values()) - sys.stdlib_module_names == {"torch", "pyro"}
    below = ["masks", "transformers", "conditioners"]  # and what these import: they know torch alone
    for name in below:
        below += graph[name] - set(below)
        assert "pyro" not in outside[name]


def test_names_are_public():
    assert len(set(pyro_realnvp.__all__)) == len(pyro_realnvp.__all__)
    assert all(hasattr(pyro_realnvp, name) for name in pyro_realnvp.__all__)
