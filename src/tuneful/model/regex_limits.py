"""How long the regular expressions of a tokenizer can take: one that can take forever is refused before a text is split by it.

Oniguruma tries one way after the other. `(\\w+\\s?)+!` has 2^n ways through n letters, `\\w*\\w*\\w*!` n^3, and there is no
match only when all have failed; it gives up after ten million, at each place of a text. Here the ways are counted without a
text. The expression becomes an automaton without empty steps (Glushkov 1961), a state for each character of it. Two ways around
one loop under the same text are exponentially many; loops one after the other that take the same text are a power of its length
(Weber and Seidl, "On the degree of ambiguity of finite automata", 1991). Loops after which nothing can fail cost nothing: the
first way is the match.

Allowed is what all tokenizers that are in use have: from each place of a text at most as many ways as it is long.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuneful.model import regex_syntax as syntax

_MAX_COPIES = 8
"""A part that is repeated more often than this counts as repeated without end."""
_MAX_STATES, _MAX_EDGES, _MAX_IN_LOOP, _MAX_PRODUCT = 1_000, 100_000, 100, 50_000
_MAX_WAYS = 10_000
"""Ways besides those of loops: `a?` has two, `(a|b)(a|b)` four."""
_MAX_SIZE = 20_000
"""Characters of the expression with everything written as often as it is repeated."""
_MAX_ATOMS = 300
_CODES = re.compile(r"\\x\{([0-9A-Fa-f]{1,8})\}|\\u([0-9A-Fa-f]{4})|\\o\{([0-7]{1,11})\}")
_PROPERTIES = re.compile(r"\\[pP]\{([^}]*)\}")
_CATEGORY = re.compile(r"\^?[A-Z][a-z]?")
_SURROGATES = range(0xD800, 0xE000)
_NUM_ALIKE = 4
"""Characters of each kind (category, what it counts as) in the sample of those that stand for all."""


@functools.lru_cache(maxsize=256)
def why_slow(pattern: str) -> str | None:
    """Why splitting a text by `pattern` can take longer than its length squared, in words; None where it cannot."""
    try:
        tree = syntax.parse(pattern)
        if _size(tree) > _MAX_SIZE or _ways(tree) > _MAX_WAYS:
            return "it repeats too often"
        atoms = sorted({one.pattern for one in _characters(tree)})
        if len(atoms) > _MAX_ATOMS:
            return "it is too large"
        return _why_slow(tree, dict(zip(atoms, _alike(atoms, pattern), strict=True)), within=False)
    except syntax.UnreadError as error:
        return str(error)


def _characters(node: syntax.Node) -> Iterator[syntax.Character]:
    if isinstance(node, syntax.Character):
        yield node
    for inner in _inner(node):
        yield from _characters(inner)


def _inner(node: syntax.Node) -> tuple[syntax.Node, ...]:
    if isinstance(node, (syntax.Sequence, syntax.Choice)):
        return node.parts
    if isinstance(node, (syntax.Repeat, syntax.Condition)) and node.body is not None:
        return (node.body,)
    return ()


def _size(node: syntax.Node) -> int:
    if isinstance(node, syntax.Repeat):
        return _size(node.body) * max(node.least, node.most or 1, 1)
    return 1 + sum(map(_size, _inner(node)))


def _ways(node: syntax.Node) -> int:
    """At most how many ways there are through `node`, once around each loop."""
    if isinstance(node, syntax.Choice):
        return min(sum(map(_ways, node.parts)), _MAX_WAYS + 1)
    if isinstance(node, syntax.Sequence):
        ways = 1
        for part in node.parts:
            ways = min(ways * _ways(part), _MAX_WAYS + 1)
        return ways
    if isinstance(node, syntax.Repeat):
        if node.most is None or node.most > _MAX_COPIES:
            return 1
        return min(int(_ways(node.body) ** node.most) * (node.most - node.least + 1), _MAX_WAYS + 1)
    return 1


def _alike(atoms: Sequence[str], pattern: str) -> list[int]:
    """For each regular expression of one character the set of those it stands for, as the bits of a number: a bit for all
    characters that no one of them tells apart, of those in `_codes`."""
    from tokenizers import Regex, pre_tokenizers

    text, rows = "".join(map(chr, _codes(pattern))), []
    for atom in atoms:
        row = np.ones(len(text), dtype=bool)
        try:
            others = pre_tokenizers.Split(Regex(atom), "removed").pre_tokenize_str(text)
        except Exception as error:  # the library raises no narrower one
            raise syntax.UnreadError(f"it holds {atom[:40]!r}") from error
        for _, (start, stop) in others:
            row[start:stop] = False
        rows.append(row)
    if not rows:
        return []
    kinds = np.unique(np.stack(rows), axis=1)
    return [sum(1 << int(bit) for bit in np.flatnonzero(row)) for row in kinds]


def _codes(pattern: str) -> list[int]:
    """Codes of characters that tell apart what `pattern` tells apart: those it names, with their neighbours (where a range
    ends), and a few of each kind. Where it can name few in another way (a script, a block; a range cuts some out of a
    kind), all of the first two planes."""
    named = {int(one[1] or one[2], 16) if one[3] is None else int(one[3], 8) for one in _CODES.finditer(pattern)}
    named |= set(map(ord, pattern))
    of_kinds = all(_CATEGORY.fullmatch(name) for name in _PROPERTIES.findall(pattern))
    codes = {code + step for code in named for step in (-1, 0, 1)}
    codes.update(_kinds() if of_kinds and max(named, default=0) < 0x80 else range(0x20000))
    codes.update(range(0x250), range(0x20000, 0x110000, 0x1000))
    return sorted(code for code in codes if 0 <= code < 0x110000 and code not in _SURROGATES)


@functools.cache
def _kinds() -> frozenset[int]:
    """The first and the last few characters of each kind that a category, a class, `\\w`, `\\d` or `\\s` can tell apart."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for code in range(0x20000):
        one = chr(code)
        kind = (unicodedata.category(one), one.isspace(), one.isalnum(), one.isdecimal(), one.islower(), one.isupper())
        alike.setdefault(kind, []).append(code)
    return frozenset(code for codes in alike.values() for code in (*codes[:_NUM_ALIKE], *codes[-_NUM_ALIKE:]))


@dataclass(slots=True)
class _Automaton:
    """`takes` is the set of characters of each state, `edges` how many ways lead from one to the next without a character."""

    takes: list[int] = field(default_factory=list)
    edges: Counter[tuple[int, int]] = field(default_factory=Counter)
    looks: list[tuple[syntax.Node, bool]] = field(default_factory=list)

    def connect(self, lasts: Sequence[int], firsts: Sequence[int]) -> None:
        if len(self.edges) + len(lasts) * len(firsts) > _MAX_EDGES:
            raise syntax.UnreadError("it is too large")
        self.edges.update(itertools.product(lasts, firsts))


@dataclass(frozen=True, slots=True)
class _Part:
    """States that begin and end a part; `ends` those after which nothing of it can fail. `skips`: it matches the empty text;
    `skips_freely`: at every place."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    skips: bool = True
    skips_freely: bool = True


def _part(node: syntax.Node, sets: dict[str, int], made: _Automaton, in_loop: bool) -> _Part:
    if isinstance(node, syntax.Character):
        state = len(made.takes)
        if state >= _MAX_STATES:
            raise syntax.UnreadError("it is too large")
        made.takes.append(sets[node.pattern])
        return _Part((state,), (state,), frozenset((state,)), skips=False, skips_freely=False)
    if isinstance(node, syntax.Condition):
        if node.body is not None:
            made.looks.append((node.body, in_loop))
        return _Part(skips_freely=False)
    if isinstance(node, syntax.Sequence):
        return functools.reduce(
            functools.partial(_after, made), (_part(one, sets, made, in_loop) for one in node.parts), _Part()
        )
    if isinstance(node, syntax.Choice):
        return _either([_part(one, sets, made, in_loop) for one in node.parts])
    return _repeated(node, sets, made, in_loop)


def _after(made: _Automaton, first: _Part, second: _Part) -> _Part:
    made.connect(first.lasts, second.firsts)
    return _Part(
        first.firsts + (second.firsts if first.skips else ()),
        second.lasts + (first.lasts if second.skips else ()),
        second.ends | (first.ends if second.skips_freely else frozenset()),
        first.skips and second.skips,
        first.skips_freely and second.skips_freely,
    )


def _either(parts: Sequence[_Part]) -> _Part:
    return _Part(
        tuple(state for one in parts for state in one.firsts),
        tuple(state for one in parts for state in one.lasts),
        frozenset(state for one in parts for state in one.ends),
        any(one.skips for one in parts),
        any(one.skips_freely for one in parts),
    )


def _repeated(node: syntax.Repeat, sets: dict[str, int], made: _Automaton, in_loop: bool) -> _Part:
    is_loop = node.most is None or node.most > _MAX_COPIES
    is_counted = node.least > _MAX_COPIES or (is_loop and node.most is not None)

    def again(body: syntax.Node) -> _Part:
        return _part(body, sets, made, in_loop or node.most != 1)

    if not is_loop:
        rest: syntax.Node = syntax.Sequence(())
        for _ in range((node.most or 0) - node.least):
            rest = syntax.Choice((syntax.Sequence((node.body, rest)), syntax.Sequence(())))
        parts = [*(again(node.body) for _ in range(node.least)), again(rest)]
        return functools.reduce(functools.partial(_after, made), parts, _Part())
    before = [again(node.body) for _ in range(min(node.least, _MAX_COPIES) - 1)]
    body = again(node.body)
    made.connect(body.lasts, body.firsts)
    if node.least == 0:
        body = _either([body, _Part()])
    found = functools.reduce(functools.partial(_after, made), [*before, body], _Part())
    if not is_counted:
        return found
    return _Part(found.firsts, found.lasts, frozenset(), found.skips, found.skips_freely)


def _why_slow(tree: syntax.Node, sets: dict[str, int], *, within: bool) -> str | None:
    made = _Automaton()
    whole = _part(tree, sets, made, in_loop=False)
    follows: list[list[int]] = [[] for _ in made.takes]
    for state, after in made.edges:
        follows[state].append(after)
    loops = [loop for loop in _components(follows) if len(loop) > 1 or loop[0] in follows[loop[0]]]
    failing = [loop for loop in loops if not whole.ends.issuperset(loop)]
    if any(_goes_twice(loop, made, follows) for loop in failing):
        return "the ways to match it double with every character"
    for first, second in itertools.permutations(loops, 2):
        if second in failing and _take_the_same(first, second, made, follows):
            return "the ways to match it are the square of a text's length, or a higher power"
    for body, in_loop in made.looks:
        if (within or in_loop) and _has_loop(body):
            return "it looks around for repeated text from within what it repeats or looks at"
        if reason := _why_slow(body, sets, within=True):
            return reason
    return None


def _has_loop(node: syntax.Node) -> bool:
    is_loop = isinstance(node, syntax.Repeat) and (node.most is None or node.most > _MAX_COPIES)
    return is_loop or any(map(_has_loop, _inner(node)))


def _components(follows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The states that lead to each other, together (Tarjan 1972, without recursion)."""
    index, low, held, order, found = dict[int, int](), dict[int, int](), set[int](), list[int](), list[list[int]]()
    for root in range(len(follows)):
        if root in index:
            continue
        work = [(root, iter(follows[root]))]
        index[root] = low[root] = len(index)
        order.append(root)
        held.add(root)
        while work:
            state, rest = work[-1]
            for after in rest:
                if after not in index:
                    index[after] = low[after] = len(index)
                    order.append(after)
                    held.add(after)
                    work.append((after, iter(follows[after])))
                    break
                if after in held:
                    low[state] = min(low[state], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[state])
                if low[state] == index[state]:
                    component = [order.pop()]
                    while component[-1] != state:
                        component.append(order.pop())
                    held.difference_update(component)
                    found.append(component)
    return found


def _goes_twice(loop: Sequence[int], made: _Automaton, follows: Sequence[Sequence[int]]) -> bool:
    """Whether two ways lead around `loop` under one text, from a state back to it."""
    inside = set(loop)
    if any(made.edges[first, second] > 1 for first in loop for second in follows[first] if second in inside):
        return True
    if len(loop) == 1:
        return False
    if len(loop) > _MAX_IN_LOOP:
        raise syntax.UnreadError("it repeats too much at once")
    pairs = {pair: number for number, pair in enumerate(itertools.product(loop, loop))}
    both = [
        [
            pairs[one, other]
            for one, other in itertools.product(follows[first], follows[second])
            if one in inside and other in inside and made.takes[one] & made.takes[other]
        ]
        for first, second in pairs
    ]
    same = {pairs[state, state] for state in loop}
    return any(same.intersection(one) and not same.issuperset(one) for one in _components(both) if len(one) > 1)


def _take_the_same(
    first: Sequence[int], second: Sequence[int], made: _Automaton, follows: Sequence[Sequence[int]]
) -> bool:
    """Whether one text leads around `first`, around `second`, and from the one to the other."""
    if len(first) * len(second) * len(follows) > _MAX_PRODUCT:
        raise syntax.UnreadError("it repeats too much at once")
    inside, beyond, takes = set(first), set(second), made.takes
    for begin, end in itertools.product(first, second):
        start, goal = (begin, begin, end), (begin, end, end)
        seen, ahead = {start}, [start]
        while ahead:
            around, across, behind = ahead.pop()
            for after in itertools.product(follows[around], follows[across], follows[behind]):
                fits = after[0] in inside and after[2] in beyond and takes[after[0]] & takes[after[1]] & takes[after[2]]
                if not fits or after in seen:
                    continue
                if after == goal:
                    return True
                seen.add(after)
                ahead.append(after)
    return False
