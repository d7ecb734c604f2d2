"""What a chat template may use up: processor time, and the size of what it makes. Counted while it runs, on any thread.

Stands below `jinja_sandbox.py`. A template can make text of any length out of a few characters: by joining text to itself, by
replacing, padding or formatting it, by printing a list that holds itself many times over. So every operation of the template
that makes something asks `Budget.spend` first where its result can be longer than what it is given, and afterwards otherwise;
the time is looked at on the same occasions. Sizes are in characters; an element of a list or mapping counts as 64, about what
it takes in memory.

`Metered` rewrites the syntax tree of a template so that what Jinja would compute by itself (`~`, slices, lists, loops, the
template's own text) is counted too. No single operation then takes long, which is why a time limit needs no signal.
"""

# ruff: noqa: N802, N815, the names of methods that Jinja looks up

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SIZE = 4_000_000
"""The largest that one value may be."""
MAX_TOTAL = 16 * MAX_SIZE
"""What one rendering may make in all: at four bytes a character a quarter of a gigabyte."""
_ELEMENT = 64
_MAX_BITS = 4096  # of a whole number
_MAX_WIDTH = 1000  # of an indentation, a number of digits, a padded field
_WITH_WIDTH = frozenset(["indent", "round", "tojson"])
REMOVED_FILTERS = ("batch", "center", "pprint", "random", "slice", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters of Jinja that pad, lay out or choose at random: no prompt is made with them."""


class Budget(threading.local):
    """What the rendering on this thread may still use; without limits of the whole where none is going on."""

    def __init__(self) -> None:
        self._seconds, self._until, self._left = 0.0, float("inf"), float("inf")

    @contextlib.contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Within the block this thread may use `seconds` of processor time, and make `MAX_TOTAL`."""
        self._seconds, self._until, self._left = seconds, time.thread_time() + seconds, MAX_TOTAL
        try:
            yield
        finally:
            self._until, self._left = float("inf"), float("inf")

    def spend(self, size: int) -> bool:
        """True; SecurityError where `size` is too much for one value or for what is left, TimeoutError after the time."""
        self._left -= size
        if size > MAX_SIZE or self._left < 0:
            raise SecurityError("the template makes text that is too long")
        if time.thread_time() > self._until:
            raise TimeoutError(f"the template runs for more than {self._seconds:g} s of processor time")
        return True


def size_of(value: Any) -> int:
    """The size of `value` as text, more or less, all that it holds included; counting stops beyond `MAX_SIZE`."""
    size, pending = 0, [value]
    while pending and size <= MAX_SIZE:
        one = pending.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, Mapping):
            size += _ELEMENT * len(one)
            pending += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            size += _ELEMENT * len(one)
            pending += one
        elif isinstance(one, Namespace):
            pending.append(object.__getattribute__(one, "_Namespace__attrs"))
        else:
            size += 1
    return size


def shallow_size_of(value: Any) -> int:
    """The size of `value` by itself: what it took to make it from parts that there were already."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _ELEMENT * len(value) if isinstance(value, (list, tuple, dict, set)) else 1


def size_of_result(value: Any) -> int:
    """The size of what a call gave: a mapping is looked into, for it may hold one thing many times."""
    return size_of(value) if isinstance(value, (dict, Namespace)) else shallow_size_of(value)


def size_of_operation(operator: str, left: Any, right: Any) -> int:
    """How large the result of `+`, `*`, `**` or `%` will be; SecurityError where it must not be made."""
    if isinstance(left, int) and isinstance(right, int):
        bits: int = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}.get(
            operator, 0
        )
        if bits > _MAX_BITS:
            raise SecurityError("a number that is too large")
        return 1
    if operator == "%" and isinstance(left, str):
        raise SecurityError("text formatted with %")
    if operator == "*" and not isinstance(left, float) and not isinstance(right, float):
        repeated, times = (right, left) if isinstance(left, int) else (left, right)
        return shallow_size_of(repeated) * (int(times) if isinstance(times, int) else 1)
    return shallow_size_of(left) + shallow_size_of(right) if operator == "+" else 1


def size_of_replacing(text: Any, old: Any, new: Any) -> int:
    """How long `text` is once `new` stands in it for every `old`."""
    before, gone, put = str(text), str(old), str(new)
    return len(before) + before.count(gone) * max(0, len(put) - len(gone))


def size_of_joining(separator: Any, values: Iterable[Any]) -> int:
    """How long the texts of `values` are with `separator` between them."""
    size = 0
    for value in values:
        size += size_of(value) + len(str(separator))
        if size > MAX_SIZE:
            break
    return size


def size_of_format(text: str, values: Iterable[Any]) -> int:
    """At most how long `text`, a format of Python's, is once it is filled; SecurityError where a field says its width."""
    if re.search(r"\d{4}|\*|\{[^{}]*\{", text):
        raise SecurityError("a format with a width")
    fields = text.count("%") + text.count("{")
    return len(text) + fields * (_MAX_WIDTH + sum(map(size_of, values)))


def metered_filter(name: str, function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    """A filter of Jinja that spends what its result takes; before it is made where that can be more than it is given."""

    @wraps(function)
    def metered(*args: Any, **options: Any) -> Any:
        given = args[_num_passed(function) :]
        if name in _WITH_WIDTH and any(_is_wide(one) for one in (*given[1:], *options.values())):
            raise SecurityError(f"{name} by more than {_MAX_WIDTH}")
        if name == "replace":
            budget.spend(size_of_replacing(*_named(given, options, "s", "old", "new")))
        elif name == "join":
            values, separator = _named(given, options, "value", "d")
            args = (*args[: _num_passed(function)], values := _listed(values, budget), *given[1:])
            budget.spend(size_of_joining(separator, values))
        elif name == "format":
            budget.spend(size_of_format(str(given[0]), (*given[1:], *options.values())))
        elif name in ("string", "tojson", "escape", "e", "forceescape", "safe"):
            budget.spend(size_of(given[0]))
        elif name == "sum" and not isinstance(_named(given, options, "iterable", "attribute", "start")[2], (int, str)):
            raise SecurityError("a sum of what are no numbers")
        result = function(*args, **options)
        budget.spend(shallow_size_of(result))
        return result

    return metered


def _num_passed(function: Callable[..., Any]) -> int:
    """How many arguments Jinja itself puts before those of the template."""
    return 1 if hasattr(function, "jinja_pass_arg") else 0


def _named(given: tuple[Any, ...], options: Mapping[str, Any], *names: str) -> list[Any]:
    """The arguments by position or name; "" where one is left out."""
    return [given[place] if place < len(given) else options.get(name, "") for place, name in enumerate(names)]


def _listed(values: Iterable[Any], budget: Budget) -> list[Any]:
    """What an iterable gives, counted as it comes."""
    listed = []
    for value in values:
        budget.spend(_ELEMENT)
        listed.append(value)
    return listed


def _is_wide(value: Any) -> bool:
    return (isinstance(value, int) and abs(value) > _MAX_WIDTH) or (isinstance(value, str) and len(value) > _MAX_WIDTH)


class Metered(NodeTransformer):
    """The syntax tree of a template in which what Jinja does by itself is done by methods of the environment, which count it:
    `joined` for `~`, `sliced`, `kept` for lists and the like, and `spend` in the body of everything that runs more than once."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """a ~ b"""
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """a[from:to:step]; other places are looked up as before."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [one or nodes.Const(None) for one in (node.arg.start, node.arg.stop, node.arg.step)]
        return _call("sliced", [node.node, *bounds], node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """[a, b], which may hold what holds much already."""
        self.generic_visit(node)
        is_plain = all(isinstance(one, nodes.Const) for one in node.iter_child_nodes())
        return node if is_plain or getattr(node, "ctx", "load") != "load" else _call("kept", [node], node.lineno)

    visit_Tuple = visit_Dict = visit_List

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A loop, in its condition too."""
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_spending(0, node.lineno), node.test).set_lineno(node.lineno)
        return self.visit_Macro(node, is_visited=True)

    def visit_Macro(self, node: Any, *, is_visited: bool = False) -> nodes.Node:
        """A body that runs as often as it is called, with the text of the template that stands in it."""
        if not is_visited:
            self.generic_visit(node)
        size = sum(len(one.data) for one in node.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(_spending(size, node.lineno)).set_lineno(node.lineno))
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Macro


def _spending(size: int, line: int) -> nodes.Expr:
    return _call("spend", [nodes.Const(size)], line)


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(line)
    return call
