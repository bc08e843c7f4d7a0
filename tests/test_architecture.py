"""The storeys of the package: who may import whom, and how long a module may be."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pyro_realnvp

PACKAGE = Path(pyro_realnvp.__file__).parent
# From the ground up: a module imports from its own folder and from those below.
STOREYS = (
    {"_runtime"},
    {"networks"},
    {"bijections"},
    {"families"},
    {
        "bases",
        "flow",
        "auxiliary",
        "dequantization",
        "augmentation",
        "image_flow",
        "augmented_flow",
        "summary",
        "description",
    },
    {"training"},
    {"inference"},
    {"testing"},
    {"_deprecated"},
    {""},
)


def modules():
    """Name of every module, as a tuple of its parts, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        *folders, name = path.relative_to(PACKAGE).with_suffix("").parts
        yield (*folders, name) if name != "__init__" else (*folders,), path


def imports(name, path):
    """The modules of the package that a module imports, and the top-level names of all others."""
    inside, outside = set(), set()
    package = name if path.stem == "__init__" else name[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = package[: len(package) - node.level + 1]
            inside.add((*start, *(node.module.split(".") if node.module else ())))
        elif isinstance(node, ast.ImportFrom):
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
    return inside, outside - sys.stdlib_module_names


def storey(name):
    first = name[0] if name else ""
    (index,) = [index for index, rooms in enumerate(STOREYS) if first in rooms]
    return index


def test_a_module_imports_from_its_own_storey_and_from_those_below():
    for name, path in modules():
        for imported in imports(name, path)[0]:
            assert storey(imported) <= storey(name), f"{path} imports {'.'.join(imported)}"


def test_imports_run_one_way():
    graph = {name: imports(name, path)[0] for name, path in modules()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_package_needs_torch_and_pyro_alone():
    extras = {"training": {"tqdm", "safetensors", "matplotlib", "filelock"}, "inference": {"arviz_base"}}
    for name, path in modules():
        allowed = {"torch"} | ({"pyro"} if storey(name) > 1 else set()) | extras.get(name[0] if name else "", set())
        assert imports(name, path)[1] <= allowed, path
        for node in ast.parse(path.read_text()).body:  # on importing the package: not those of the extras
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                top = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert top.split(".")[0] not in set().union(*extras.values()), path


def test_the_diagram_has_every_module_of_the_first_level_from_the_top_down():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    (diagram,) = re.findall(r"```\npyro_realnvp/\n(.*?)```", page, re.S)
    named = set(re.findall(r"\b(\w+)(?:\.py|/)", diagram))
    assert {(*name, "__init__")[0] for name, _ in modules()} <= named
    assert named - {"pyro_realnvp"} <= {part for name, _ in modules() for part in (*name, "__init__")}
    rows = re.findall(r"^  (\w+)(?:\.py|/)", diagram, re.M)
    order = [storey(("" if row == "__init__" else row,)) for row in rows]
    assert order == sorted(order, reverse=True), rows


def test_every_folder_says_what_lives_there():
    folders = {path.parent for _, path in modules()} - {PACKAGE}
    assert {folder.name for folder in folders} == {
        "_runtime",
        "networks",
        "bijections",
        "families",
        "bases",
        "training",
        "inference",
    }
    for folder in folders:
        paragraph = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert "import" in paragraph, folder
        assert "new" in paragraph, folder


def test_no_module_is_long():
    lengths = {str(path): len(path.read_text().splitlines()) for _, path in modules()}
    assert max(lengths.values()) <= 350, {path: length for path, length in lengths.items() if length > 350}


def test_the_door():
    assert len(set(pyro_realnvp.__all__)) == len(pyro_realnvp.__all__)
    assert all(hasattr(pyro_realnvp, name) for name in pyro_realnvp.__all__)
    assert sorted(dir(pyro_realnvp)) == sorted(pyro_realnvp.__all__)
