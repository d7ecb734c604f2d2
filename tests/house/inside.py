"""What docs/inside.md lists, read and counted: `python tests/house/inside.py` prints the way from a row to a loss, file by file.

The document names files and what to read in them; this program finds each name in the code and counts its lines: those of a
function, decorators and docstring included; of a class those of all of it where its name stands alone, and where single methods
are named those up to its first method once, and theirs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tuneful"
PAGE = ROOT / "docs" / "inside.md"
MAX_FILES, MAX_LINES = 12, 1450
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Stop(NamedTuple):
    """A file on the way, below src/tuneful, and the names to read in it, in order."""

    file: str
    names: tuple[str, ...]


class Change(NamedTuple):
    """An ordinary change, and the files that it touches, below src/tuneful or below the repository."""

    what: str
    files: tuple[str, ...]


def section(title: str) -> str:
    """The text of the page's section `title`."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2]
    assert text, f"{PAGE.name} has no section {title!r}"
    return text.partition("\n## ")[0]


def rows(title: str) -> Iterator[list[str]]:
    """The cells of each row of the first table in the section `title`, without its head."""
    table = section(title).partition("\n|")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def walk(title: str) -> list[Stop]:
    """The files of a table `| file | read | ... |` and what to read in them."""
    return [Stop(quoted(cells[0])[0], tuple(quoted(cells[1]))) for cells in rows(title)]


def changes(title: str) -> list[Change]:
    """The rows of a table `| change | files | ... |`."""
    return [Change(cells[0], tuple(quoted(cells[1]))) for cells in rows(title)]


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def num_lines(stop: Stop) -> int:
    """The lines of what is named; KeyError for a name that the file does not define."""
    tree = ast.parse((SOURCE / stop.file).read_text(encoding="utf-8"))
    top, total, opened = definitions(tree), 0, set()
    for name in stop.names:
        owner, _, method = name.partition(".")
        node = top[owner]
        if not method:
            total += _length(node)
            continue
        methods = definitions(node)
        if owner not in opened:
            opened.add(owner)
            total += min(map(_start, _functions(methods))) - _start(node)
        total += _length(methods[method])
    return total


def definitions(owner: ast.AST) -> dict[str, Definition]:
    """Functions, classes and named values that stand in a module or a class itself."""
    found: dict[str, Definition] = {}
    for node in owner.body if isinstance(owner, (ast.Module, ast.ClassDef)) else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: node for target in targets if isinstance(target, ast.Name)})
    return found


def _functions(found: dict[str, Definition]) -> list[Definition]:
    return [node for node in found.values() if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _start(node: Definition) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _length(node: Definition) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - _start(node) + 1


def main() -> None:
    """Print both lists of files with their lines."""
    for title in ("From a file to a row", "From a row to a loss"):
        stops = walk(title)
        print(title)
        for stop in stops:
            print(f"{num_lines(stop):>6}  {stop.file}")
        print(f"{sum(map(num_lines, stops)):>6}  in {len(stops)} files\n")


if __name__ == "__main__":
    main()
