"""What only some systems have stands behind one helper each, where it is tested without: Linux is not all there is.

Names are those that typeshed, which comes with mypy, defines under a condition of `sys.platform`. A name in a text
(`hasattr(os, "pread")`) asks and is allowed; a use is an attribute.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.house import arrows

import tuneful

FILES = arrows.modules(Path(tuneful.__file__).parent)
MODULES = sorted(FILES)
STUBS = ("os", "signal", "subprocess", "time", "mmap", "select")
NOT_EVERYWHERE = frozenset(
    {
        "fcntl",
        "grp",
        "msvcrt",
        "nt",
        "posix",
        "pty",
        "pwd",
        "readline",
        "resource",
        "syslog",
        "termios",
        "tty",
        "winreg",
    }
)
"""Modules that only some systems have."""
ALLOWED = {
    "import readline": {"commands.chat"},
    "import resource": {"evaluation.check_worker", "model.memory", "runs.environment"},
    "os.pread": {"files"},
    "os.killpg": {"signals"},
    "signal.SIGKILL": {"signals"},
    "mmap.MADV_DONTNEED": {"model.memory"},
    "ctypes.CDLL(None)": {"evaluation.check_worker", "model.memory"},
    "torch.ops.mkldnn": {"model.onednn"},
    "start_new_session": set[str](),
    "os.getuid": {"model.native"},
    "a process read without encoding": {"model.native"},  # what a compiler says, in the encoding of the system
    "read_text without encoding": {"model.native"},  # sources, in ASCII
    "os.open without O_BINARY": {"console", "evaluation.check_worker"},  # of the null device
}
"""Who may use what, and asks before, or stands aside where it is missing."""


@cache
def names_of_some_systems() -> frozenset[str]:
    spec = importlib.util.find_spec("mypy")
    assert spec is not None
    assert spec.origin is not None
    stubs = Path(spec.origin).parent / "typeshed" / "stdlib"
    found = set()
    for module in STUBS:
        file = stubs / f"{module}.pyi" if (stubs / f"{module}.pyi").exists() else stubs / module / "__init__.pyi"
        defined = list(_defined(ast.parse(file.read_text(encoding="utf-8")).body, False))
        everywhere = {name for name, some in defined if not some}
        found |= {f"{module}.{name}" for name, some in defined if some and name not in everywhere}
    return frozenset(found)


def _defined(body: list[ast.stmt], some: bool) -> Iterator[tuple[str, bool]]:
    """Each name that statements of a stub define, and whether on some systems only."""
    for one in body:
        if isinstance(one, ast.If):
            conditional = some or "sys.platform" in ast.unparse(one.test)
            yield from _defined(one.body, conditional)
            yield from _defined(one.orelse, conditional)
        elif isinstance(one, ast.FunctionDef | ast.ClassDef):
            yield one.name, some
        elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id, some


def uses(tree: ast.Module) -> Iterator[str]:
    """Whatever in a module is not the same on every system, in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name in NOT_EVERYWHERE)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"import {node.module}" for _ in [0] if node.module in NOT_EVERYWHERE)
            yield from (name for one in node.names if (name := f"{node.module}.{one.name}") in names_of_some_systems())
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in names_of_some_systems() or name == "torch.ops.mkldnn":
                yield name
        elif isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.FormattedValue) and _is_relative(node.value):
            yield "a relative path as text: .as_posix()"


def _of_call(call: ast.Call) -> Iterator[str]:
    called, given = ast.unparse(call.func), {one.arg for one in call.keywords if one.arg}
    arguments = [ast.unparse(one) for one in call.args]
    modes = [*call.args[:2], *(one.value for one in call.keywords if one.arg == "mode")]
    mode = next((ast.literal_eval(one) for one in modes if _is_mode(one)), "r")
    if called == "os.open" and not any("O_BINARY" in one for one in arguments):
        yield "os.open without O_BINARY"
    if called == "ctypes.CDLL" and arguments[:1] == ["None"]:
        yield "ctypes.CDLL(None)"
    yield from given & {"start_new_session", "preexec_fn", "process_group"}
    if called == "str" and call.args and _is_relative(call.args[0]):
        yield "a relative path as text: .as_posix()"
    if called.endswith((".read_text", ".write_text")) and "encoding" not in given:
        yield f"{called.rpartition('.')[2]} without encoding"
    if called.endswith(".write_text") and "newline" not in given:
        yield "a text file written without newline: files.write_text"
    if (called == "open" or called.endswith((".open", "os.fdopen"))) and called != "os.open" and _is_text(call, mode):
        if "encoding" not in given:
            yield "a text file opened without encoding"
        if set("wax+") & set(mode) and "newline" not in given and called != "os.fdopen":
            yield "a text file written without newline"
    if called.startswith("subprocess.") and given & {"text", "universal_newlines"} and "encoding" not in given:
        yield "a process read without encoding"
    if called.endswith(".strftime") and any("%-" in one for one in arguments):
        yield "a format of dates that only some systems have"


def _is_mode(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and 0 < len(node.value) <= 3
        and set(node.value) <= set("rwaxbt+")
    )


def _is_text(call: ast.Call, mode: str) -> bool:
    """Whether the call opens a text file: `open(...)`, or `path.open(...)` where a mode or an encoding is given."""
    explicit = any(_is_mode(one) for one in [*call.args, *(k.value for k in call.keywords)])
    return "b" not in mode and (
        explicit or ast.unparse(call.func) == "open" or any(k.arg == "encoding" for k in call.keywords)
    )


def _is_relative(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "relative_to"


@cache
def found_in(module: str) -> frozenset[str]:
    return frozenset(uses(ast.parse(FILES[module].read_text(encoding="utf-8"))))


@pytest.mark.parametrize("module", MODULES)
def test_what_only_some_systems_have_stands_behind_its_helper(module: str) -> None:
    assert not {one for one in found_in(module) if _place(module) not in ALLOWED.get(one, set())}


def _place(module: str) -> str:
    """A module as `ALLOWED` names it; of the kernels' room, the room."""
    name = module.removeprefix("tuneful.")
    return "model.native" if name.startswith("model.native") else name


def test_nothing_is_allowed_that_nobody_uses() -> None:
    found = {(one, _place(module)) for module in MODULES for one in found_in(module)}
    allowed = {(one, module) for one, modules in ALLOWED.items() for module in modules - {"model.native"}}
    assert allowed <= found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("os.pread(file, 1, 2)", "os.pread"),
        ("from os import fork", "os.fork"),
        ("signal.setitimer(signal.ITIMER_REAL, 1)", "signal.setitimer"),
        ("os.sched_getaffinity(0)", "os.sched_getaffinity"),
        ("import fcntl", "import fcntl"),
        ("os.open(path, os.O_RDONLY)", "os.open without O_BINARY"),
        ("ctypes.CDLL(None)", "ctypes.CDLL(None)"),
        ("torch.ops.mkldnn._reorder_linear_weight(w)", "torch.ops.mkldnn"),
        ("subprocess.Popen(command, start_new_session=True)", "start_new_session"),
        ("subprocess.run(command, text=True)", "a process read without encoding"),
        ("path.read_text()", "read_text without encoding"),
        ("path.write_text(text, encoding='utf-8')", "a text file written without newline: files.write_text"),
        ("open(path)", "a text file opened without encoding"),
        ("path.open('a', encoding='utf-8')", "a text file written without newline"),
        ("str(path.relative_to(folder))", "a relative path as text: .as_posix()"),
        ("f'{path.relative_to(folder)}'", "a relative path as text: .as_posix()"),
        ("now.strftime('%-d')", "a format of dates that only some systems have"),
    ],
)
def test_a_use_is_found(line: str, found: str) -> None:
    assert found in set(uses(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "os.replace(a, b)",
        "hasattr(os, 'pread')",
        "path.open('rb')",
        "store.open(file)",
        "os.open(path, os.O_RDWR | O_BINARY)",
    ],
)
def test_what_every_system_has_is_not(line: str) -> None:
    assert not set(uses(ast.parse(line)))
