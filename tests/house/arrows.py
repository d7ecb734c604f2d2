"""The structure of the package in figures: `python tests/house/arrows.py [SOURCE]` prints rooms, arrows, circles, long files.

An arrow goes from a room to another room that it imports from; the files of the ground (`errors`, `types`, `config`, ...) are
each a room of their own, as whatever stands at the top of the package is. A circle is a set of files that import each other,
along whatever way. Imports for type checking alone count nowhere.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def modules(source: Path) -> dict[str, Path]:
    """Every module below `source`, the package's folder, by its dotted name."""
    return {_name(file, source): file for file in sorted(source.rglob("*.py"))}


def _name(file: Path, source: Path) -> str:
    parts = [source.name, *file.relative_to(source).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def imports(name: str, found: Mapping[str, Path]) -> Iterator[tuple[str, bool]]:
    """(module, whether it is for type checking only) of every import of the module `name`, wherever it stands."""
    tree = ast.parse(found[name].read_text(encoding="utf-8"))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    is_package = found[name].name == "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in typing_only
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = ".".join(parts[: len(parts) - node.level + is_package]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                dotted = f"{origin}.{alias.name}"
                yield (dotted if dotted in found else origin), node in typing_only


def graph(source: Path) -> dict[str, set[str]]:
    """The modules of the package that each of them imports."""
    found = modules(source)
    return {
        name: {other for other, typing_only in imports(name, found) if other in found and not typing_only} - {name}
        for name in found
    }


SCHEMA = "tuneful.runs.schema"
"""What the files of a run folder hold: inside `runs/`, yet of the ground, for every room writes or reads some of them."""


def room(module: str) -> str:
    """The room of a module: the folder below the package, or the file itself at the top; the schema is a room of its own."""
    if module == SCHEMA or module.startswith(f"{SCHEMA}."):
        return "schema"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for other in sorted(arrows[module]):
            if other not in numbers:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], numbers[other])
        if lowest[module] == numbers[module]:
            together = stack[stack.index(module) :]
            del stack[-len(together) :]
            if len(together) > 1:
                found.append(sorted(together))

    for module in sorted(arrows):
        if module not in numbers:
            visit(module)
    return found


def main() -> None:
    """Print the figures."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src" / "tuneful"
    arrows, files = graph(source), modules(source)
    rooms = {(room(one), room(other)) for one, others in arrows.items() for other in others if room(one) != room(other)}
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in files.items()}
    widest = max(arrows, key=lambda name: len(arrows[name]))
    print(f"files               {len(files)}, {sum(lengths.values()):,} lines")
    print(f"at the top          {sum(file.parent == source for file in files.values())}")
    print(f"rooms               {len({room(name) for name in files})}")
    print(f"arrows of rooms     {len(rooms)}")
    print(f"arrows of files     {sum(map(len, arrows.values()))}")
    print(f"circles of files    {len(circles(arrows))}")
    for circle in circles(arrows):
        print(f"    {' <-> '.join(circle)}")
    print(f"widest importer     {widest}, {len(arrows[widest])} modules")
    longest = sorted(lengths, key=lambda name: -lengths[name])[:5]
    print(f"longest             {', '.join(f'{name} {lengths[name]}' for name in longest)}")


if __name__ == "__main__":
    main()
