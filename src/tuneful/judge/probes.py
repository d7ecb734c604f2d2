"""Probes: questions on answers whose worth is known, by which `calibrate.py` measures a judge.

    kind          the answer that the judge is shown                 kind             the two answers of a pair
    reference     the reference itself                               pair             the reference, then a wrong answer
    shuffled      the reference of another item: wrong               pair, swapped    the same two in the other order
    injected      that wrong answer, followed by a prompt injection
    empty         nothing
    copied        the task itself
    answer        the model's own answer
    padded        the model's own answer, made three times as long  rated            two answers that people rated, likewise

The trade: probes are extreme cases, so a judge that passes them can still be wrong about two good answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import cycle

from tuneful.judge.protocols import Item, Protocol
from tuneful.judge.questions import Prompt, Question

_FILLER = (
    "That is what there is to say about it.",
    "I hope that this is of help to you.",
    "As has been said above, this is the answer to the question that was asked.",
    "Please do not hesitate to ask if there is anything else that you would like to know.",
    "It is always worth while to take a moment and to think about a question such as this one.",
    "In conclusion, and taking everything into account, the above remains the answer.",
)

RATED_KINDS = ("rated", "rated, swapped")
"""The kinds of probe whose two answers people have rated: in the order tuned, base, and in the other one."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One `question` to the judge: its `kind`, the `index` of its item among those chosen, and the item as it was shown.

    `swapped`: the item's answer stands second in a pair.
    """

    kind: str
    index: int
    item: Item
    question: Question
    protocol: Protocol
    swapped: bool = False


def make_probes(items: Sequence[Item], protocol: str, prompts: Mapping[str, Prompt], *, plain: bool) -> list[Probe]:
    """Nine probes of each item: seven answers graded under `protocol`, and one pair in both orders.

    `prompts` holds those of `protocol` and of `pairwise`; a `plain` reply is asked for as text. Every item has a reference, and
    at least two have different ones.
    """
    probes = []
    for index, item in enumerate(items):
        wrong = _other_reference(items, index)
        probes += _graded(index, item, wrong, prompts[protocol], plain)
        pair = replace(item, answer=item.reference or "", rival=wrong)
        probes += _both_orders("pair", index, pair, prompts["pairwise"], plain)
    return probes


def first_probes(items: Sequence[Item], prompt: Prompt, *, plain: bool) -> list[Probe]:
    """The probes that every evaluation begins with, under its own `prompt`: four of each item, or three pairs in both orders.

    Those that need a wrong answer are left out where no two items have different references.
    """
    references = {item.reference.strip() for item in items if item.reference is not None}
    knows_wrong = len(references) > 1 and all(item.reference is not None for item in items)
    probes = []
    for index, item in enumerate(items):
        wrong = _other_reference(items, index) if knows_wrong else None
        if prompt.protocol.compares_two:
            worse = {"pair": wrong, "empty pair": "", "copied pair": item.task}
            for kind, rival in worse.items():
                if rival is not None:
                    pair = replace(item, answer=item.reference or item.answer, rival=rival)
                    probes += _both_orders(kind, index, pair, prompt, plain)
            continue
        answers = {"reference": item.reference, "shuffled": wrong, "empty": "", "copied": item.task}
        for kind, answer in answers.items():
            if answer is not None:
                graded = replace(item, answer=answer)
                (question,) = prompt.questions(graded, plain=plain)
                probes.append(Probe(kind, index, graded, question, prompt.protocol))
    return probes


def in_both_orders(kind: str) -> tuple[str, str]:
    """The kinds of the two probes of a pair."""
    return kind, f"{kind}, swapped"


def rated_probes(items: Sequence[Item], prompt: Prompt, *, plain: bool) -> list[Probe]:
    """Both orders of each pair of answers that people have rated; `prompt` is that of `pairwise`."""
    probes = []
    for index, item in enumerate(items):
        first, second = prompt.questions(item, plain=plain)
        probes.append(Probe(RATED_KINDS[0], index, item, first, prompt.protocol))
        probes.append(Probe(RATED_KINDS[1], index, item, second, prompt.protocol, swapped=True))
    return probes


def injections() -> tuple[str, ...]:
    """Forty prompt injections: texts in an answer that tell its judge what to say."""
    text = (files("tuneful.judge") / "prompts" / "injections.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in text.split("\n---\n"))


def padded(answer: str) -> str:
    """`answer` and sentences without content, three times as long as it was."""
    text = answer
    for sentence in cycle(_FILLER):
        if len(text) >= 3 * len(answer):
            return text
        text += f" {sentence}"
    raise AssertionError("a cycle has no end")


def _graded(index: int, item: Item, wrong: str, prompt: Prompt, plain: bool) -> list[Probe]:
    injected = injections()
    answers = {
        "reference": item.reference or "",
        "shuffled": wrong,
        "empty": "",
        "copied": item.task,
        "answer": item.answer,
        "padded": padded(item.answer),
        "injected": f"{wrong}\n\n{injected[index % len(injected)]}",
    }
    probes = []
    for kind, answer in answers.items():
        graded = replace(item, answer=answer)
        (question,) = prompt.questions(graded, plain=plain)
        probes.append(Probe(kind, index, graded, question, prompt.protocol))
    return probes


def _both_orders(kind: str, index: int, pair: Item, prompt: Prompt, plain: bool) -> list[Probe]:
    straight, swapped = in_both_orders(kind)
    first, second = prompt.questions(pair, plain=plain)
    return [
        Probe(straight, index, pair, first, prompt.protocol),
        Probe(swapped, index, pair, second, prompt.protocol, swapped=True),
    ]


def _other_reference(items: Sequence[Item], index: int) -> str:
    """The reference of the next item that has another one."""
    own = (items[index].reference or "").strip()
    others = (items[(index + step) % len(items)].reference or "" for step in range(1, len(items)))
    return next(reference for reference in others if reference.strip() != own)
