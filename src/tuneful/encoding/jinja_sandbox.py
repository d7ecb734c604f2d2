"""Runs a chat template, which is a program of unknown origin, within limits: a second, a few million characters, no way out.

Stands below `chat_template.py`, which knows what is rendered. Jinja's own sandbox keeps a template from the interpreter; what
it leaves open is closed here and in `jinja_limits.py`: text that is multiplied, padded or formatted to any length, lists that
hold themselves many times over, and loops without end. The second is one of processor time that this thread has used, so a
busy machine refuses nothing. It holds on any thread and system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneful.encoding.fixed_date import fixed_dates
from tuneful.encoding.jinja_limits import (
    REMOVED_FILTERS,
    Budget,
    Metered,
    metered_filter,
    shallow_size_of,
    size_of,
    size_of_format,
    size_of_joining,
    size_of_operation,
    size_of_replacing,
    size_of_result,
)
from tuneful.errors import TemplateError

_MAX_SECONDS = 1.0  # of processor time, for one rendering
_MAX_CHARACTERS = 100_000  # of the source; the longest that are known have 30,000
_MAX_SHOWN = 300  # characters of what a template says when it fails
_NO_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "encode")


class SandboxedTemplate:
    """A Jinja chat template, compiled; `where` it is from opens every message.

    `marks_generation` says that it marks what the assistant says ({% generation %}). Raises TemplateError for what is no
    template.
    """

    def __init__(self, source: str, where: str) -> None:
        if len(source) > _MAX_CHARACTERS:
            raise TemplateError(
                f"{where}: {len(source):,} characters, over {_MAX_CHARACTERS:,}: this is no chat template"
            )
        self._where = where
        self.marks_generation = re.search(r"\{%[-+]?\s*generation\b", source) is not None
        try:
            sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
            if dates := fixed_dates(source):
                sandbox.globals["strftime_now"] = _fixed(dates)
            self._sandbox = sandbox
            self._compiled = sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{where}:{error.lineno}: not a Jinja template: {error.message}") from None
        except Exception as error:  # the program may fail in any way
            raise TemplateError(f"{where}: not a Jinja template: {type(error).__name__}: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, str],
        *,
        is_prompt: bool,
        marks: tuple[str, str] = ("", ""),
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The text of `messages` and `tools`, with `marks` around what {% generation %} marks.

        Raises TemplateError for whatever goes wrong.
        """
        try:
            with self._sandbox.budget.of(_MAX_SECONDS):
                return self._compiled.render(
                    **special_tokens,
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=is_prompt,
                    generation_opens=marks[0],
                    generation_closes=marks[1],
                )
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(
                f"{self._where}: cannot render a conversation with the roles {roles}: {str(error)[:_MAX_SHOWN]}"
            ) from None


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: its content, between the two marks that the rendering was given."""

    tags = {"generation"}  # noqa: RUF012, the name that Jinja reads

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of `_marked` with the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[nodes.Expr] = [nodes.Name("generation_opens", "load"), nodes.Name("generation_closes", "load")]
        return nodes.CallBlock(self.call_method("_marked", marks), [], [], body).set_lineno(line)

    def _marked(self, opens: str, closes: str, caller: Any) -> str:
        return f"{opens}{caller()}{closes}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which whatever a template makes is counted (`jinja_limits.py`)."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.budget = Budget()
        self.finalize = self._printed
        self.filters["tojson"] = _as_json
        for name in REMOVED_FILTERS:
            self.filters.pop(name)
        self.filters = {name: metered_filter(name, one, self.budget) for name, one in self.filters.items()}
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Metered().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[no-any-return]

    def call(self, context: Any, called: Any, /, *args: Any, **options: Any) -> Any:
        """What a template calls; of the methods of text those that make it longer are counted before."""
        method = getattr(called, "__wrapped__", called)  # as the sandbox wraps `format`
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if owner is self:
            return called(*args)
        if isinstance(owner, str):
            if name == "replace":
                self.spend(size_of_replacing(owner, *args[:2]))
            elif name == "join" and args:
                args = (list(map(str, args[0])),)
                self.spend(size_of_joining(owner, args[0]))
            elif name in ("format", "format_map"):
                self.spend(size_of_format(owner, (*args, *options.values())))
        result = super().call(context, called, *args, **options)
        self.spend(size_of_result(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operation, unless its result could be huge; SecurityError then."""
        self.spend(size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox allows, but for the methods of text that pad it to any length or rewrite it by a table."""
        return attr not in _NO_METHODS and super().is_safe_attribute(obj, attr, value)

    # What the rewritten syntax tree calls

    def spend(self, size: int) -> bool:
        """True, while there is time and room for `size` characters."""
        return self.budget.spend(size)

    def joined(self, *values: Any) -> str:
        """a ~ b"""
        self.spend(sum(map(size_of, values)))
        return "".join(map(str, values))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """value[start:stop:step]"""
        part = value[start:stop:step]
        self.spend(shallow_size_of(part))
        return part

    def kept(self, value: Any) -> Any:
        """A list or mapping that was just made."""
        self.spend(size_of(value))
        return value

    def _printed(self, value: Any) -> Any:
        """What stands in {{ }}, on its way to the text."""
        self.spend(size_of(value))
        return value


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _fixed(dates: Mapping[str, str]) -> Callable[[str], str]:
    """`strftime_now` on a fixed day; it knows the formats that stand in the template."""

    def strftime_now(format: str) -> str:
        if format not in dates:
            raise jinja2.TemplateError(
                f"strftime_now({format!r}): the format of the date has to stand in the template as text"
            )
        return dates[format]

    return strftime_now
