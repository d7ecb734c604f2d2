"""The reference pages that are made from the code: `python tools/reference.py` writes them into docs/.

    docs/commands.md     every command with its arguments, options and examples, as `--help` has them
    docs/python.md       every public name of the package with its signature and its docstring
    docs/errors.md       exit codes, and every exception that is raised on purpose
    docs/other-trainers.md   keys of other trainers, each with ours

docs/configuration.md and docs/run-folder.md are made by the package itself (`tuneful.config.reference`,
`tuneful.runs.schema.reference`). tests/house/test_docs.py holds the pages to the code.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tuneful
from tuneful import cli, errors
from tuneful.commands.examples import EXAMPLES
from tuneful.config.names import PEERS

DOCS = Path(__file__).resolve().parents[1] / "docs"

_EXIT_CODES = (
    (0, "done"),
    (1, "the work failed: a judge that cannot be reached, memory that ran out, an export that is not what was trained"),
    (2, "the request or its input is wrong; one message says what, where and how to fix it, and nothing was done"),
    (3, "the work is done and written, and a gate or `check --strict` is not met"),
    (130, "interrupted by Ctrl-C (SIGINT), after saving; `tuneful run --resume` goes on"),
    (143, "the same, by SIGTERM"),
)


def commands_page() -> str:
    """Every command of the command line, as the Markdown of docs/commands.md."""
    lines = [
        "# Commands",
        "",
        "Every command with its arguments and options. `tuneful COMMAND --help` shows the same. Settings are",
        "`section.key=value` arguments, after the data: [configuration.md](configuration.md). What a command ends with:",
        "[errors.md](errors.md). This page is made from the code: `python tools/reference.py`.",
    ]
    group = None
    for name, (_, its_group) in cli.COMMANDS.items():
        if its_group != group:
            group = its_group
            lines += ["", f"## {group}"]
        lines += ["", *_command(name)]
    return "\n".join(lines) + "\n"


def _command(name: str) -> Iterator[str]:
    command = cli.LazyGroup(name="tuneful").get_command(None, name)
    yield f"### `tuneful {name}`"
    yield ""
    yield from inspect.cleandoc(command.help or "").splitlines()
    yield ""
    yield "| | | |"
    yield "|---|---|---|"
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        yield f"| {_names(parameter)} | {_values(parameter)} | {_cell(getattr(parameter, 'help', None) or '')} |"
    yield ""
    yield "```text"
    yield from EXAMPLES[name]
    yield "```"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])


def _values(parameter: Any) -> str:
    """What an option takes, and what it is without being given."""
    if parameter.param_type_name == "argument":
        return ""
    kind = "" if parameter.is_flag else _cell(parameter.metavar or _type_name(parameter.type_descriptor.annotation))
    default = parameter.default
    if default in (None, False, "", (), []) or callable(default):
        return kind
    return _cell(f"{kind}, default `{default}`".removeprefix(", "))


def _type_name(annotation: Any) -> str:
    """A type as the usage of a command writes it: of a list that of its items."""
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, inner))
    return _type_name(inner[0]) if inner else {"str": "TEXT"}.get(annotation.__name__, annotation.__name__.upper())


def python_page() -> str:
    """Every public name of the package, as the Markdown of docs/python.md."""
    lines = [
        "# Python",
        "",
        "`import tuneful` gives every command as a function that returns a typed result, the nouns that those results are made",
        "of, and the errors. A function prints nothing unless it is given a terminal (`terminal=tuneful.Terminal()`). Nothing",
        "heavy is imported before it is used. [book.md](book.md) walks the book's chapter 7 through it. This page is made from",
        "the code: `python tools/reference.py`.",
    ]
    named = {name: getattr(tuneful, name) for name in tuneful.__all__ if not name.startswith("__")}
    functions = {name: value for name, value in named.items() if inspect.isfunction(value)}
    classes = {name: value for name, value in named.items() if inspect.isclass(value)}
    lines += ["", "## Functions"]
    for name, function in functions.items():
        lines += ["", f"### `tuneful.{name}`", "", *_signature(name, function), "", *_doc(function)]
    lines += ["", "## Classes"]
    for name, kind in classes.items():
        lines += ["", f"### `tuneful.{name}`", "", *_class(kind)]
    assert len(functions) + len(classes) == len(named), "a public name that is neither a function nor a class"
    return "\n".join(lines) + "\n"


def _signature(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """The signature, a parameter a line where it is long."""
    signature = inspect.signature(function)
    parts = list(_parameters(signature))
    returned = f" -> {signature.return_annotation}"
    yield "```python"
    if len(whole := f"{name}({', '.join(parts)}){returned}") <= 100:
        yield whole
    else:
        yield f"{name}("
        yield from (f"    {part}," for part in parts)
        yield f"){returned}"
    yield "```"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """Each parameter as the code writes it: annotations are texts, for no module evaluates its own."""
    named_only = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not named_only:
            named_only = True
            yield "*"
        star = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"{star}{parameter.name}{kind}{default}"


def _doc(thing: Any) -> list[str]:
    return inspect.cleandoc(thing.__doc__ or "").splitlines()


def _class(kind: type) -> Iterator[str]:
    yield from _doc(kind)
    if issubclass(kind, BaseException):
        return
    if dataclasses.is_dataclass(kind):
        yield ""
        yield "| field | type |"
        yield "|---|---|"
        for field in dataclasses.fields(kind):
            yield f"| `{field.name}` | `{_cell(str(field.type))}` |"
    for name, member in vars(kind).items():
        if (
            name.startswith("_")
            or not (inspect.isfunction(member) or isinstance(member, property))
            or not member.__doc__
        ):
            continue
        arguments = "" if isinstance(member, property) else f"({', '.join(_parameters(inspect.signature(member)))})"
        yield ""
        yield f"`{name}{arguments}`"
        yield ""
        yield from _doc(member)


def errors_page() -> str:
    """Exit codes and exceptions, as the Markdown of docs/errors.md."""
    lines = [
        "# Exit codes and errors",
        "",
        "The command line prints one message and no traceback; `--debug` shows one. In Python the same message is the text of an",
        "exception. What to do about the messages that are met most: [troubleshooting.md](troubleshooting.md). This page is made",
        "from the code: `python tools/reference.py`.",
        "",
        "| exit code | |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _EXIT_CODES),
        "",
        "## Exceptions",
        "",
        "All are of `tuneful.errors`; `tuneful.InputError` and `tuneful.TunefulError` are public, and enough to tell what the",
        "user got wrong from what failed.",
        "",
        "| exception | is a | exit code | |",
        "|---|---|---:|---|",
    ]
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.TunefulError)]
    for kind in kinds:
        base = kind.__bases__[0].__name__
        lines.append(f"| `{kind.__name__}` | `{base}` | {kind.exit_code} | {_cell(_doc(kind)[0])} |")
    return "\n".join(lines) + "\n"


def other_trainers_page() -> str:
    """Keys of other trainers with ours, as the Markdown of docs/other-trainers.md."""
    lines = [
        "# Keys of other trainers",
        "",
        "A key of another trainer in a configuration of ours is answered with the name that it has here. These are all that",
        "are known; a key that two trainers share stands once. [migration.md](migration.md) says what else differs. This page",
        "is made from the code: `python tools/reference.py`.",
    ]
    for trainer, keys in PEERS.items():
        lines += ["", f"## {trainer}", "", "| theirs | ours |", "|---|---|"]
        lines += [f"| `{theirs}` | `{ours}` |" for theirs, ours in keys.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text as a cell of a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "python.md": python_page,
    "errors.md": errors_page,
    "other-trainers.md": other_trainers_page,
}
"""Every page that is made here, with what makes it."""


if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
