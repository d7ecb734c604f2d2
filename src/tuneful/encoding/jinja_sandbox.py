"""Runs a chat template, which is a program of unknown origin, within limits: a second, a million characters, no way out.

Stands below `chat_template.py`, which knows what is rendered. Jinja's own sandbox keeps a template from the interpreter; what
it leaves open is closed here: text that is multiplied, padded or formatted to any length, and loops without end. The trade:
the limit of time needs a signal, so it holds on the main thread only, and not on Windows.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneful.errors import TemplateError

_MAX_SECONDS = 1.0
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
            self._compiled = _sandbox().from_string(source)
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
            with _at_most(_MAX_SECONDS):
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
    """Jinja's sandbox, in which one operation makes no text beyond reason."""

    intercepted_binops = frozenset(["*", "**", "%"])

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


def _sandbox() -> ImmutableSandboxedEnvironment:
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


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, where the platform can and no other timer runs."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return

    def stop(number: int, frame: Any) -> NoReturn:
        raise TimeoutError(f"the template runs for more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
