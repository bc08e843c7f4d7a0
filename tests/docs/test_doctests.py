"""Every public name has an example in its docstring, and all examples print what they say."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyro
import pytest

import pyro_realnvp
from pyro_realnvp import testing

ROOT = Path(pyro_realnvp.__file__).parents[1]
INDEX = ROOT / "docs" / "api" / "index.md"
EXAMPLE = re.compile(r"^Example:$", re.M)
WITH_EXAMPLES = [path for path in sorted(ROOT.glob("pyro_realnvp/**/*.py")) if ">>> " in path.read_text()]
PUBLIC = [*pyro_realnvp.__all__, "testing.check_bijection", "testing.randomize", "testing.draw"]
EXEMPT: dict[str, str] = {}  # name: why it has no example
parser = doctest.DocTestParser()


def names_before() -> dict:
    """What is known where an example begins: the lines that the page of the API shows."""
    (lines,) = re.findall(r"```python\n(.*?)```", INDEX.read_text(), re.S)
    names: dict = {"__name__": "__main__"}
    exec(lines, names)
    return names


def docstrings(path: Path) -> Iterator[tuple[str, str, int]]:
    """Every docstring of a module, under decorators too, with the name of what it describes, and its line."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", path.stem), text, node.body[0].lineno - 1


def failures(path: Path, names: dict) -> str:
    """Runs the examples of a module, each docstring with names of its own and from the same random numbers."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for name, text, line in docstrings(path):
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            runner.run(parser.get_doctest(text, dict(names), name, str(path), line), out=report.append)
    return "".join(report)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # some write files
    state = pyro.util.get_rng_state()
    yield
    pyro.util.set_rng_state(state)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: ".".join(path.relative_to(ROOT).with_suffix("").parts))
def test_examples_print_what_they_say(path: Path) -> None:
    if path.stem == "for_arviz":
        pytest.importorskip("arviz_base")
    report = failures(path, names_before())
    assert not report, report


def test_an_example_that_prints_something_else_or_warns_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('''def double(x):
    """Doubles.

    Example:
        >>> torch.ones(2).sum().item()
        2.0
        >>> 1 + 1
        3
        >>> import warnings; warnings.warn("soon")
    """
''')
    report = failures(module, names_before())
    assert report.count("Failed example") == 2
    assert "line 7, in double" in report
    assert "UserWarning: soon" in report


def test_the_package_says_as_the_page_does_what_is_known_before_an_example() -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", INDEX.read_text(), re.S)
    said = " ".join((pyro_realnvp.__doc__ or "").split())
    assert all(f"``{line}``" in said for line in lines.splitlines())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_can_fail(name: str) -> None:
    owner: ModuleType = testing if name.startswith("testing.") else pyro_realnvp
    found = getattr(owner, name.removeprefix("testing."))
    text = inspect.cleandoc(found.__doc__ or "")
    examples = parser.get_examples(text)
    if name in EXEMPT:
        assert not examples, f"{name} has an example, and stands among those without"
        return
    assert len(EXAMPLE.findall(text)) == 1, f"{name} has no section Example"
    assert ">>> " not in EXAMPLE.split(text)[0], f"{name} has an example outside of its section"
    assert any(example.want for example in examples), f"the example of {name} prints nothing"
    assert all("..." not in example.want and not example.options for example in examples), name
    assert inspect.getsourcefile(inspect.unwrap(found)) in map(str, WITH_EXAMPLES), f"the example of {name} is not run"


def test_exemptions_are_of_public_names() -> None:
    assert EXEMPT.keys() <= set(PUBLIC)
