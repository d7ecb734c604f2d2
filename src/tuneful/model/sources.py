"""Is the code of transformers that `decoder.py` stands in for the code that its tests compared it with?

A release of transformers may change what a family computes, and nothing in a model's configuration would tell. So the source of
each family of `decoder.FAMILIES` is hashed as tested versions have it, in `sources.json`; a family whose source is another, or
cannot be read, is unknown, and the self-check (`train/layout.py`) proves it on more records. `python -m tuneful.model.sources`
puts the installed version into the file, which says that the tests of tests/model and tests/train have passed with it.

What is hashed is the text of the causal model's class and of all that stands in its module and that it needs: layer, attention,
MLP, norm, rotary embedding, functions. A tenth of a second a family, once in a process.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import transformers

from tuneful.files import write_json
from tuneful.model.decoder import FAMILIES

KNOWN = Path(__file__).with_suffix(".json")
"""{version of transformers: {family: sha256 of its source}}"""

CLASSES = {family: f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM" for family in FAMILIES}
"""How transformers calls the causal model of a family."""

Definition = ast.ClassDef | ast.FunctionDef | ast.Assign


@dataclass(frozen=True, slots=True)
class Source:
    """What a class needs of its module, as the module's file has it: `definitions` by name, and the sha256 of their text."""

    definitions: dict[str, Definition]
    sha256: str


def why_unknown(model: Any) -> str | None:
    """In words, that the code of `model`, of a family that `decoder.py` serves, is not what was tested; None where it is."""
    family, known = next(name for name, kind in CLASSES.items() if kind == type(model).__name__), _known()
    if source_hash(type(model)) in {hashes.get(family) for hashes in known.values()}:
        return None
    versions = ", ".join(known)
    return f"the code of {family} in transformers {transformers.__version__} is none of those tested ({versions})"


def source_hash(kind: type[Any]) -> str:
    """sha256 of the source of `kind` and of what it needs in its module; empty where it cannot be read, or is not what runs."""
    module = sys.modules[kind.__module__]
    try:
        source = _source_of(module.__name__, kind.__name__)
    except (OSError, TypeError, SyntaxError, LookupError):
        return ""
    return source.sha256 if all(_is_live(module, name, node) for name, node in source.definitions.items()) else ""


@functools.cache
def _source_of(module: str, start: str) -> Source:
    return read_source(inspect.getsource(sys.modules[module]), start)


def read_source(text: str, start: str) -> Source:
    """The definition `start` of a module's `text` and, over and over, those that it names. KeyError where there is none."""
    top = dict(_definitions(ast.parse(text)))
    found, waiting = {start: top[start]}, [start]
    while waiting:
        names = {node.id for node in ast.walk(found[waiting.pop()]) if isinstance(node, ast.Name)}
        new = sorted(name for name in names if name in top and name not in found)
        found |= {name: top[name] for name in new}
        waiting += new
    lines, digest = text.split("\n"), hashlib.sha256()
    for node in sorted(found.values(), key=_first_line):
        digest.update("\n".join([*lines[_first_line(node) - 1 : node.end_lineno], ""]).encode())
    return Source(found, digest.hexdigest())


def _definitions(module: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((name.id, node) for name in node.targets if isinstance(name, ast.Name))


def _first_line(node: Definition) -> int:
    """The line on which a definition begins, its decorators counted."""
    decorators = [] if isinstance(node, ast.Assign) else node.decorator_list
    return min([node.lineno, *(one.lineno for one in decorators)])


def _is_live(module: ModuleType, name: str, node: ast.AST) -> bool:
    """Whether what `module` calls `name` runs what `node` says: not where a program has put other code into its place."""
    live = getattr(module, name, None)
    if isinstance(node, ast.FunctionDef):
        return _is_code_of(live, node, module)
    if not isinstance(node, ast.ClassDef):
        return True
    own = vars(live) if isinstance(live, type) else {}
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    added = {"forward", "__call__"} & own.keys() - methods.keys()
    return bool(own) and not added and all(_is_code_of(own.get(key), one, module) for key, one in methods.items())


def _is_code_of(live: Any, node: ast.FunctionDef, module: ModuleType) -> bool:
    """Whether a function, under whatever transformers wraps around it, was compiled from `node` in the file of `module`."""
    if isinstance(live, property):
        live = live.fget
    code = getattr(inspect.unwrap(getattr(live, "__func__", live)), "__code__", None)
    here = (module.__file__, node.name, _first_line(node))
    return isinstance(code, CodeType) and (code.co_filename, code.co_name, code.co_firstlineno) == here


@functools.cache
def _known() -> dict[str, dict[str, str]]:
    known: dict[str, dict[str, str]] = json.loads(KNOWN.read_text(encoding="utf-8"))
    return known


def installed_hashes() -> dict[str, str]:
    """The hash of each family in the transformers that is installed."""
    found = {}
    for family, name in CLASSES.items():
        home = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
        found[family] = source_hash(getattr(home, name))
    return found


def _add_installed() -> None:
    known = _known() | {transformers.__version__: installed_hashes()}
    write_json(KNOWN, {version: known[version] for version in sorted(known, key=_numbers)})


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


if __name__ == "__main__":
    _add_installed()
