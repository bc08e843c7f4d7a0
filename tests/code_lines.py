"""Counts lines of code: those that hold a token which is no comment and belongs to no docstring.

python tests/code_lines.py [FOLDER]                     every module of the package, and the sum
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyro_realnvp"
# Modules with what the package has beyond version 0.1 (3,630 lines), and with names of then that will go. At equal
# function there were 3,398 lines; checks and corrections that came afterwards into the other modules count here.
NEW = ("average", "checkpoint", "construction", "data", "description", "fit", "history", "loop")
NEW += ("image_flow", "summary", "arguments", "batches", "checks", "state")
DEPRECATED = ("_deprecated", "deprecation")
_NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)


def docstring_lines(source: str) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            found |= {*range(first.lineno, first.value.end_lineno + 1)}
    return found


def code_lines(path: Path) -> int:
    source = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    return len(lines - docstring_lines(source))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    counts = {path.relative_to(folder): code_lines(path) for path in sorted(folder.rglob("*.py"))}
    for path, count in counts.items():
        print(f"{count:6,}  {path}")
    print(f"{sum(counts.values()):6,}  in all")
    marks = 0  # by which save knows a class, and the old name of an argument
    for path in counts:
        lines = (folder / path).read_text().splitlines()
        if path.stem not in NEW + DEPRECATED:
            marks += sum(line == "@recorded" or "import recorded" in line or "renamed" in line for line in lines)
    old = sum(count for path, count in counts.items() if path.stem not in NEW + DEPRECATED) - marks
    print(f"{old:6,}  without new modules")


if __name__ == "__main__":
    main()
