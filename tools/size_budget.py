"""Hold files to 600 lines and functions to 80: past that, a concept is missing. The aim is 400 and 50."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80


def over_budget(path: Path) -> list[str]:
    """What in one file is too long."""
    source = path.read_text(encoding="utf-8")
    found = []
    num_lines = source.count("\n")
    if num_lines > MAX_FILE_LINES:
        found.append(f"{path}: {num_lines} lines; {MAX_FILE_LINES} at most")
    for name, line, length in python_functions(source) if path.suffix == ".py" else cpp_functions(source):
        if length > MAX_FUNCTION_LINES:
            found.append(f"{path}:{line}: {name} has {length} lines; {MAX_FUNCTION_LINES} at most")
    return found


def python_functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of each function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def cpp_functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Likewise of C++ that is laid out as ours is: what has parameters begins and ends in the first column."""
    name, first = "", 0
    for number, line in enumerate(source.splitlines(), 1):
        begins = re.match(r"(?!struct|class|enum|namespace|#|//)\w[^;=]*?(\w+)\(", line)
        if begins:
            name, first = begins[1], number
        if line == "}" and first:
            yield name, first, number - first + 1
            first = 0


def main() -> int:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.cpp", "*.hpp", "*.h"],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [path for path in map(Path, listing.stdout.split()) if path.exists()]
    found = [line for path in paths for line in over_budget(path)]
    print("\n".join(found) or f"size budget: {len(paths)} files within it")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
