"""A check that is a function of one's own, `file.py:function`, called in a process of its own, within limits of time and memory.

    def polite(answer, reference, prompt): return "please" in answer        # it may take fewer: (answer), (answer, reference)

True and false, and finite numbers, are scores. Whatever else happens leaves the answer unscored with its reason: an exception,
sys.exit, no end, too much memory, a process that dies (`check_process.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from tuneful.config.checks import CheckSpec
from tuneful.errors import ConfigError
from tuneful.evaluation.check_kinds import CheckItem, unmet, unscored
from tuneful.evaluation.check_process import CheckProcess
from tuneful.runs.schema import CheckOutcome


def check_function(spec: CheckSpec) -> None:
    """ConfigError where the file of the check is not there, is no Python, or defines no such function; it is not run."""
    file, _, function = spec.value.rpartition(":")
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except OSError as error:
        raise ConfigError(
            f"evaluation.checks: {spec.name}: {file}: cannot be read: {error.strerror or error}"
        ) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"evaluation.checks: {spec.name}: {file}: not valid Python: {error}") from None
    if function not in {name for node in tree.body for name in _names(node)}:
        raise ConfigError(f"evaluation.checks: {spec.name}: {file} defines no {function}")


def _names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file may define; those inside `if` and `try` too."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    inner = [one for one in ast.walk(node) if isinstance(one, (ast.FunctionDef, ast.ClassDef, ast.alias, ast.Name))]
    return [
        one.id if isinstance(one, ast.Name) else one.asname or one.name if isinstance(one, ast.alias) else one.name
        for one in inner
    ]


def function_outcomes(spec: CheckSpec, items: Sequence[CheckItem]) -> list[CheckOutcome]:
    """What the function of `spec` says of every item."""
    file, _, function = spec.value.rpartition(":")
    limits = (float(spec.options["timeout_seconds"]), float(spec.options["max_memory_mb"]))
    with CheckProcess(file, function, *limits) as process:
        return [_outcome(process.ask(item.text, item.reference, item.prompt)) for item in items]


def _outcome(found: float | str) -> CheckOutcome:
    if isinstance(found, str):
        return unscored(found)
    return unmet("says no") if found == 0 else CheckOutcome(found)
