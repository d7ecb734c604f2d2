"""The records of a step become shares, one a rank, that take about as long to compute: sorted once, cut once.

What a record costs beside its neighbours in token order is what it adds to their trie: its nodes behind the common prefix with
the record before it, and its targets, of which each costs the output head. The first record of a share has no neighbour, and
costs all its nodes: a prefix that two shares have in common is computed in both. Where the cuts fall is searched for, so that
the most expensive share costs as little as shares of neighbours can.

    records in token order        a b c d x     a b c d y     a b c d z     e f g       tokens 5 5 5 3
    nodes behind the one before   4             0             0             2           alone  4 4 4 2
    two shares by nodes           a b c d x     a b c d y     a b c d z  |  e f g       4 and 2 nodes
    by tokens                     a b c d x     a b c d y  |  a b c d z     e f g       4 and 6
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tuneful.batch.trie import common_prefix, token_order
from tuneful.types import Example, sides_of

_UNITS = 256
"""Units that a node costs: costs are whole numbers, alike on every machine, and a target costs its part of a node in them."""


@dataclass(frozen=True, slots=True)
class ShareCosts:
    """What each record of a sequence adds to a share that has the one before it (`added`), and to one that begins with it
    (`alone`), in units of 1/256 node."""

    added: list[int]
    alone: list[int]


def longest_side(example: Example) -> int:
    """Tokens of a record; of a pair those of its longer side."""
    return max(map(len, sides_of(example)))


def costs_of(ordered: Sequence[Example], layout: str, target_cost: float) -> ShareCosts:
    """What records cost in the order given; a target costs `target_cost` nodes."""
    costs, previous = ShareCosts([], []), None
    for example in ordered:
        added, alone = (_cost(before, example, layout, target_cost) for before in (previous, None))
        costs.added.append(added)
        costs.alone.append(alone)
        previous = example
    return costs


def cut_shares(costs: ShareCosts, count: int) -> list[slice]:
    """At most `count` stretches that hold every record once, in order; the dearest is as cheap as it can be."""
    ends = list(accumulate(costs.added, initial=0))

    def stretches(limit: int) -> list[slice]:
        """The fewest that cost at most `limit`, which is at least what the dearest record costs alone."""
        found, start = [], 0
        while start < len(costs.added):
            room = limit - costs.alone[start] + ends[start + 1]
            stop = bisect_right(ends, room, lo=start + 1) - 1
            found.append(slice(start, stop))
            start = stop
        return found

    low, high = max(costs.alone, default=0), sum(costs.alone)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(stretches(middle)) <= count else (middle + 1, high)
    return stretches(low)


def share_examples(examples: Sequence[Example], count: int, layout: str, target_cost: float) -> list[list[Example]]:
    """`examples` in `count` shares of neighbours by token ids (padded: by length), as a target costs `target_cost` nodes; a share
    may be empty, and a pair is never divided."""
    ordered = sorted(examples, key=longest_side if layout == "padded" else token_order)
    shares = [ordered[part] for part in cut_shares(costs_of(ordered, layout, target_cost), count)]
    return shares + [[] for _ in range(count - len(shares))]


def _cost(before: Example | None, example: Example, layout: str, target_cost: float) -> int:
    nodes = targets = 0
    for side in sides_of(example):
        shared = common_prefix(before, side) if before is not None and layout == "trie" else 0
        nodes += len(side) - 1 - shared
        targets += int(np.count_nonzero(side.weights[shared:]))
        before = example
    return nodes * _UNITS + round(targets * target_cost * _UNITS)
