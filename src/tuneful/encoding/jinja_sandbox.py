"""Runs a chat template, which is a program of unknown origin, within limits: a second, a million characters, no way out.

Stands below `chat_template.py`, which knows what is rendered. Jinja's own sandbox keeps a template from the interpreter; what
it leaves open is closed here: text that is multiplied, padded or formatted to any length, and loops without end. The second is
one of processor time that this thread has used, so a busy machine refuses nothing. It is looked at in every pass of a loop and
in every macro, on any thread and system, and on the main thread of Unix by a signal too. The trade: off the main thread a single
operation is not interrupted, which takes a second at most on the sizes that are allowed.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneful.encoding.fixed_date import fixed_dates
from tuneful.errors import TemplateError

_MAX_SECONDS = 1.0  # of processor time, for one rendering
_MAX_CHARACTERS = 1_000_000  # of the source, and of what one operation in it may make


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
            sandbox = _sandbox()
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
        messages: Sequence[Mapping[str, str]],
        special_tokens: Mapping[str, str],
        *,
        is_prompt: bool,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """The text of `messages`, with `marks` around what {% generation %} marks; TemplateError for whatever goes wrong."""
        try:
            with self._sandbox.budget.of(_MAX_SECONDS):
                return self._compiled.render(
                    **special_tokens,
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=is_prompt,
                    generation_opens=marks[0],
                    generation_closes=marks[1],
                )
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(
                f"{self._where}: cannot render a conversation with the roles {roles}: {error}"
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
    """Jinja's sandbox, in which one operation makes no text beyond reason, and every pass of a loop looks at the time."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.budget = _Budget()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The template's syntax tree, with a look at the time in each loop, in its condition, and in each macro."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            if loop.test is not None:
                loop.test = nodes.And(_look_at_the_time(loop.lineno), loop.test).set_lineno(loop.lineno)
        for body in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            look = nodes.ExprStmt(_look_at_the_time(body.lineno)).set_lineno(body.lineno)
            body.body.insert(0, look)  # type: ignore[attr-defined]  # each of the three has one
        return tree.set_environment(self)  # type: ignore[return-value]

    def within_time(self) -> bool:
        """True; TimeoutError once this thread's rendering has used up its time."""
        return self.budget.check()

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operation, unless its result could be huge; SecurityError then."""
        sizes = [len(value) if isinstance(value, (str, list, tuple)) else value for value in (left, right)]
        if operator == "*" and not all(map(_is_number, (left, right))) and sizes[0] * sizes[1] > _MAX_CHARACTERS:
            raise SecurityError("a product of text that is too long")
        if operator == "**" and right > 64:
            raise SecurityError("a power that is too large")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text formatted with %")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox allows, but for the methods of text that pad it to any length."""
        return attr not in ("center", "ljust", "rjust", "zfill", "expandtabs") and super().is_safe_attribute(
            obj, attr, value
        )


def _look_at_the_time(line: int) -> nodes.Expr:
    call = nodes.Call(nodes.EnvironmentAttribute("within_time"), [], [], None, None)
    call.set_lineno(line)
    return call


def _sandbox() -> _Sandbox:
    """What chat templates are written for: the names that transformers gives them, today's date aside."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters["tojson"] = _as_json
    sandbox.filters.pop("center")
    sandbox.globals["raise_exception"] = _raise
    return sandbox


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _fixed(dates: Mapping[str, str]) -> Callable[[str], str]:
    """`strftime_now` on a fixed day; it knows the formats that stand in the template."""

    def strftime_now(format: str) -> str:
        if format not in dates:
            raise jinja2.TemplateError(
                f"strftime_now({format!r}): the format of the date has to stand in the template as text"
            )
        return dates[format]

    return strftime_now


class _Budget(threading.local):
    """The processor time that a rendering on this thread may still use."""

    def __init__(self) -> None:
        self._seconds, self._until = 0.0, float("inf")

    def check(self) -> bool:
        """True; TimeoutError where the time is used up."""
        if time.thread_time() > self._until:
            raise TimeoutError(f"the template runs for more than {self._seconds:g} s of processor time")
        return True

    @contextlib.contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Within the block `check` raises once this thread has used `seconds`; on the main thread of Unix a signal checks too."""
        self._seconds, self._until = seconds, time.thread_time() + seconds
        try:
            with _interrupting(self.check, seconds):
                yield
        finally:
            self._until = float("inf")


@contextlib.contextmanager
def _interrupting(check: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Call `check` every `seconds` of this process's processor time, where signals reach and no other such timer runs."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_PROF)[0]
    ):
        yield
        return
    before = signal.signal(signal.SIGPROF, lambda number, frame: check())
    # Other threads of the process use up the timer too, so it goes on until the block is left.
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
