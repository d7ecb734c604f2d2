"""Marks on a message that say whether, or how much, an answer counts in the loss, in the spellings of those who write them.

    loss (AgentInstruct, ms-swift, xtuner), loss_scale (ms-swift), train, training (axolotl), weight (OpenAI, Mistral, OpenChat)
    masked (torchtune), output_with_loss (xtuner): true, false, 0, 1, "true", "False", 0.5, null

A mark becomes a weight: 0 is an answer that is context, 1 one that is trained as without a mark, and null, NaN and an empty cell
are no mark. What means something else in two programs (`mask`) is not read, and said; parts of an answer that count on their own
(`train_detail`) are refused.
"""

from __future__ import annotations

import math
from typing import Any

from tuneful.data.notes import Noted, quoted
from tuneful.data.rows import shown
from tuneful.data.values import Fields, is_blank, kind_of, unfit

_LOSSES = ("loss", "loss_weight", "loss_scale", "loss_mask", "compute_loss", "output_with_loss")
WEIGHING = frozenset((*_LOSSES, "weight", "train", "trained", "training", "trainable", "train_on_turn"))
"""Keys whose value is the weight: 0 or false is context."""
MASKING = frozenset(("masked", "ignore_loss", "no_loss"))
"""Keys whose value says the contrary: true is context."""
UNCLEAR = frozenset(("mask", "ignore"))
"""Keys that mean one thing in one program and its contrary in another."""
IN_PARTS = frozenset(("train_detail", "training_detail"))
"""Keys under which parts of an answer have a mark of their own."""
MARKS = WEIGHING | MASKING | UNCLEAR | IN_PARTS
"""Every key that is a mark."""
MAX_WEIGHT = 1e3
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def answer_weight(entry: Fields, where: str, noted: Noted) -> float:
    """The weight in the loss of the answer `entry`, 1 where nothing marks it; UnfitError for marks that are none, or differ."""
    found: dict[str, float] = {}
    for key in entry.keys() & MARKS:
        if is_blank(entry[key]):
            continue
        if key in IN_PARTS:
            unfit(f"{where} has `{key}`: that parts of an answer count is not read; mark whole messages (`train`)")
        if key in UNCLEAR:
            noted.add("mark_not_read", quoted(key))
            continue
        weight = _weight(entry[key], key, where)
        found[key] = float(not weight) if key in MASKING else weight
    if len(set(found.values())) > 1:
        unfit(f"{where} has marks that contradict one another: {', '.join(f'`{key}`' for key in sorted(found))}")
    for key, weight in found.items():
        kinds = {0.0: "marked_context", 1.0: "marked_trained"}
        noted.add(kinds.get(weight, "marked_weight"), quoted(key))
    return next(iter(found.values()), 1.0)


def note_idle_marks(entry: Fields, where: str, noted: Noted) -> None:
    """Count the marks by which what was asked should be trained: that is what data.train_on says, for all messages."""
    for key in entry.keys() & (WEIGHING | MASKING):
        if not is_blank(entry[key]) and bool(_weight(entry[key], key, where)) != (key in MASKING):
            noted.add("mark_on_prompt", quoted(key))


def _weight(value: Any, key: str, where: str) -> float:
    """A mark as a number: true is 1."""
    try:
        word = value.strip().lower() if isinstance(value, str) else value
        weight = _WORDS[word] if word in _WORDS else float(word)
    except (ValueError, TypeError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        found = shown(str(value)) if isinstance(value, (int, float, str)) else kind_of(value)
        unfit(f"{where} has `{key}` {found}, expected true, false or a number from 0 to {MAX_WEIGHT:g}")
    return weight
