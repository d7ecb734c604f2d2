"""Go's text/template, as much of it as our Modelfiles use: what Ollama makes of a TEMPLATE, without Ollama.

    {{ "text" }}   {{ .System }}   {{ $last }}   {{ if PIPE }} {{ else if PIPE }} {{ else }} {{ end }}
    {{ range $index, $_ := .Messages }} ... {{ end }}   {{ $name := PIPE }}   {{- and -}}
    eq A B, not A, len A, slice A I, parentheses, strings, numbers, .Field, $.Field, $name

After https://pkg.go.dev/text/template. Whatever else a template holds is an error: a renderer that guesses proves nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tuneful.errors import ExportError

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.S)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|\$?\.?[A-Za-z_][\w.]*|\$\.[A-Za-z_]\w*|\$|\d+)')
_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "eq": lambda first, second: first == second,
        "not": lambda value: not value,
        "len": len,
        "slice": lambda values, start: values[start:],
    }
)


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Write:
    pipe: str


@dataclass(frozen=True, slots=True)
class _Set:
    name: str
    pipe: str


@dataclass(frozen=True, slots=True)
class _If:
    cases: tuple[tuple[str | None, tuple[Any, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Range:
    index: str
    item: str
    pipe: str
    body: tuple[Any, ...]


def render_go(template: str, data: Mapping[str, Any]) -> str:
    """What `template` makes of `data`; ExportError for what is not of the subset."""
    nodes, rest, _ = _parsed(_parts(template))
    if rest:
        raise ExportError(f"the TEMPLATE has {{{{ {rest[0][1]} }}}} without its beginning")
    return _written(nodes, data, {"$": data})


def quoted(text: str) -> str:
    """`text` as an action that writes it: for what the template would otherwise mean."""
    escaped = json.dumps(text, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d")
    return "{{ " + escaped + " }}"


_Part = tuple[str, str]
"""("text" | "action", what it holds)."""


def _parts(template: str) -> list[_Part]:
    """Text and actions in turn, white space trimmed where an action says so."""
    parts: list[_Part] = []
    at, trims = 0, False
    for found in _ACTION.finditer(template):
        text = template[at : found.start()]
        text = text.lstrip() if trims else text
        parts += [("text", text.rstrip() if found[1] else text), ("action", found[2].strip())]
        at, trims = found.end(), bool(found[3])
    return [*parts, ("text", template[at:].lstrip() if trims else template[at:])]


def _parsed(parts: Sequence[_Part]) -> tuple[tuple[Any, ...], list[_Part], str]:
    """The nodes up to an `end` or `else` that closes them, what is left (from that on), and how they were closed."""
    nodes: list[Any] = []
    rest = list(parts)
    while rest:
        kind, held = rest.pop(0)
        if kind == "text":
            nodes.append(_Text(held))
            continue
        word, _, pipe = held.partition(" ")
        if word in ("end", "else"):
            return tuple(nodes), [(kind, held), *rest], word
        if word == "if":
            node, rest = _parsed_if(pipe, rest)
            nodes.append(node)
        elif word == "range":
            nodes_of, rest, _ = _parsed(rest)
            rest = _after_end(rest)
            variables, _, over = pipe.partition(":=")
            index, _, item = variables.partition(",")
            nodes.append(_Range(index.strip(), item.strip(), over.strip(), nodes_of))
        elif match := re.fullmatch(r"(\$\w+)\s*:=\s*(.+)", held, re.S):
            nodes.append(_Set(match[1], match[2]))
        else:
            nodes.append(_Write(held))
    return tuple(nodes), [], ""


def _parsed_if(pipe: str, rest: list[_Part]) -> tuple[_If, list[_Part]]:
    cases: list[tuple[str | None, tuple[Any, ...]]] = []
    condition: str | None = pipe
    while True:
        body, rest, closed = _parsed(rest)
        cases.append((condition, body))
        if closed != "else":
            return _If(tuple(cases)), _after_end(rest)
        _, _, more = rest.pop(0)[1].partition(" ")
        condition = more.strip().removeprefix("if ") if more.strip() else None


def _after_end(rest: list[_Part]) -> list[_Part]:
    if not rest or rest[0][1] != "end":
        raise ExportError("the TEMPLATE has a block without its {{ end }}")
    return rest[1:]


def _written(nodes: Sequence[Any], dot: Any, variables: dict[str, Any]) -> str:
    """`nodes` with `dot` as the value of `.`; variables that are set inside stay inside."""
    variables = dict(variables)
    out = []
    for node in nodes:
        if isinstance(node, _Text):
            out.append(node.text)
        elif isinstance(node, _Write):
            out.append(str(_value(node.pipe, dot, variables)))
        elif isinstance(node, _Set):
            variables[node.name] = _value(node.pipe, dot, variables)
        elif isinstance(node, _If):
            chosen = (body for pipe, body in node.cases if pipe is None or _value(pipe, dot, variables))
            out.append(_written(next(chosen, ()), dot, variables))
        else:
            for index, item in enumerate(_value(node.pipe, dot, variables)):
                out.append(_written(node.body, item, {**variables, node.index: index, node.item: item}))
    return "".join(out)


def _value(pipe: str, dot: Any, variables: Mapping[str, Any]) -> Any:
    tokens = _tokens(pipe)
    value, rest = _command(tokens, dot, variables)
    if rest:
        raise ExportError(f"the TEMPLATE has {pipe!r}, which is not known here")
    return value


def _tokens(pipe: str) -> list[str]:
    tokens, at = [], 0
    while at < len(pipe.rstrip()):
        found = _TOKEN.match(pipe, at)
        if found is None:
            raise ExportError(f"the TEMPLATE has {pipe!r}, which is not known here")
        tokens.append(found[1])
        at = found.end()
    return tokens


def _command(tokens: Sequence[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    """The value of a function with its arguments, or of one operand; and the tokens after it."""
    if tokens and tokens[0] in _FUNCTIONS:
        arguments, rest = [], tokens[1:]
        while rest and rest[0] != ")":
            argument, rest = _operand(rest, dot, variables)
            arguments.append(argument)
        return _FUNCTIONS[tokens[0]](*arguments), rest
    return _operand(tokens, dot, variables)


def _operand(tokens: Sequence[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    if not tokens:
        raise ExportError("the TEMPLATE has an empty action")
    token, rest = tokens[0], tokens[1:]
    if token == "(":
        value, rest = _command(rest, dot, variables)
        if not rest or rest[0] != ")":
            raise ExportError("the TEMPLATE has a parenthesis that is not closed")
        return value, rest[1:]
    if token.startswith('"'):
        return json.loads(token), rest
    if token.isdecimal():
        return int(token), rest
    if token.startswith("."):
        return dot.get(token[1:], ""), rest
    name, _, key = token.partition(".")
    if name not in variables:
        raise ExportError(f"the TEMPLATE has {token!r}, which is not known here")
    return (variables[name].get(key, "") if key else variables[name]), rest
