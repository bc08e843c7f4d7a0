"""Runs the tutorials and writes their pages: python docs/render.py [NAME ...]

A tutorial is a script docs/tutorials/NAME.py in cells: "# %% [markdown]" begins one of text in comments, "# %%" one of
code. Its page NAME.md has the cells, what they print, and their pictures, NAME-1.png and so on.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import types
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parent / "tutorials"
_CELL = re.compile(r"^# %%(.*)\n", re.M)


def cells_of(script: Path) -> list[tuple[bool, str]]:
    """Returns the cells of a script: whether each is code, and its text."""
    _, *parts = _CELL.split(script.read_text())
    return [
        (True, text.strip()) if "markdown" not in kind else (False, re.sub(r"^# ?", "", text, flags=re.M).strip())
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def run(script: Path, into: Path, *, change: Callable[[str], str] = lambda code: code) -> tuple[str, dict[str, Any]]:
    """Runs a script cell by cell.

    Args:
        script: of the tutorial.
        into: folder of the pictures.
        change: changes the code that is run, but not the one that is shown.

    Returns:
        The page, and the names that the script has defined.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    module = types.ModuleType(script.stem)
    sys.modules[script.stem] = module  # where pickle looks for the classes of a tutorial
    page: list[str] = []
    names, pictures = vars(module), 0
    for is_code, text in cells_of(script):
        if not is_code:
            page.append(text)
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(change(text), str(script), "exec"), names)
        page.append(f"```python\n{text}\n```")
        if output := printed.getvalue().rstrip():
            page.append(f"```text\n{output}\n```")
        for number in plt.get_fignums():
            pictures += 1
            name = f"{script.stem}-{pictures}.png"
            plt.figure(number).savefig(into / name, dpi=80)
            page.append(f"![{plt.figure(number).axes[0].get_title() or script.stem}]({name})")
        plt.close("all")
    page.append(f"<!-- Written by docs/render.py from {script.name}. -->")  # before the title it would hide it
    return "\n\n".join(page) + "\n", names


if __name__ == "__main__":
    for chosen in sys.argv[1:] or sorted(path.stem for path in TUTORIALS.glob("*.py")):
        with tempfile.TemporaryDirectory() as elsewhere, chdir(elsewhere):  # some write files of their own
            written, _ = run(TUTORIALS / f"{chosen}.py", TUTORIALS)
        (TUTORIALS / f"{chosen}.md").write_text(written)
