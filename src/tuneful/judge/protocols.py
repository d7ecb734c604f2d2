"""The judge's protocols, an entry each: what is asked about an item, the form of the reply, and what readings are worth.

Stands over `grammar.py`, which reads replies, and under everything else that judges, which knows no protocol but by its entry. A
new protocol is an entry of PROTOCOLS, its prompt in prompts/, and its name in `JudgeConfig.protocol`.

    one answer     one question, whose reading is a score or a rubric
    two answers    two questions, one in each order; an answer that does not win in both has drawn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tuneful.judge.grammar import CRITERIA, Rubric, Unreadable, Winner, read_rubric, read_score, read_winner

Preference = Literal["won", "lost", "tie"]
"""Whether an item's answer won against its rival."""

Reading = float | Rubric | Preference
"""What a reply says: a score from 0 to 100, a rubric, or which answer won."""

_SCORE_OF: Mapping[Preference, float] = {"won": 100.0, "lost": 0.0, "tie": 50.0}
_NUMBER = MappingProxyType({"type": "integer", "minimum": 0, "maximum": 100})


@dataclass(frozen=True, slots=True)
class Item:
    """An `answer` to be judged: the `task` it was given (instruction and input), the `reference`, and its `source`.

    `reference` is None where there is none of its own. `rival` is the answer it is held against where two are compared, None
    elsewhere.
    """

    source: str
    task: str
    reference: str | None
    answer: str
    rival: str | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to judge.

    `compares_two`: a question shows the answer and its rival. A reply is an object of `properties` (JSON schema; `id` goes
    without saying), told to the judge as `fields` and what they are (`meaning`). `plain_reply` asks for the same as plain text,
    and `plain_reasoned` with a reason before it; both are None where it needs an object. `read` is given the reply, the code
    it has to carry (None: a plain reply) and its item. `in_words` says in the report what was asked for.
    """

    name: str
    compares_two: bool
    properties: Mapping[str, Any]
    fields: str
    meaning: str
    plain_reply: str | None
    plain_reasoned: str | None
    read: Callable[[str, str | None, Item], float | Rubric | Winner | Unreadable]
    in_words: str

    @property
    def judged(self) -> tuple[str, ...]:
        """The placeholders of the answers that are judged, without which a prompt asks nothing."""
        return ("answer_a", "answer_b") if self.compares_two else ("answer",)

    @property
    def num_questions(self) -> int:
        """How many questions one item takes."""
        return 2 if self.compares_two else 1

    def texts(self, item: Item, *, use_reference: bool = True) -> list[dict[str, str]]:
        """The text of each placeholder, for every question on `item`."""
        shown = {"task": item.task}
        if use_reference:
            assert item.reference is not None, f"{item.source}: no reference to judge by"
            shown["reference"] = item.reference
        if not self.compares_two:
            return [{**shown, "answer": item.answer}]
        assert item.rival is not None, f"{item.source}: nothing to compare with"
        return [
            {**shown, "answer_a": first, "answer_b": second}
            for first, second in ((item.answer, item.rival), (item.rival, item.answer))
        ]

    def object_reply(self, nonce: str, *, reason: bool = False) -> str:
        """How the judge is told to reply with an object that carries `nonce`, with its `reason` before the verdict."""
        fields, meaning = self.fields, self.meaning
        if reason and "reason" not in self.properties:
            fields, meaning = f'"reason": "...", {fields}', f"the reason being one short sentence, {meaning}"
        return f'Reply with one JSON object and nothing else: {{"id": "{nonce}", {fields}}}, {meaning}.'

    def schema(self, nonce: str, *, reason: bool = False) -> dict[str, Any]:
        """The JSON schema of a reply. The code is the only text allowed as `id`: a judge held to it cannot miscopy it."""
        first = {"reason": {"type": "string"}} if reason else {}
        properties = {"id": {"type": "string", "enum": [nonce]}, **first, **self.properties}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def reading(self, item: Item, reply: str, nonce: str | None, *, swapped: bool = False) -> Reading | Unreadable:
        """What `reply` says about `item`; `swapped`: the item's answer stood second."""
        found = self.read(reply, nonce, item)
        if found == "A" or found == "B":
            return "won" if (found == "A") != swapped else "lost"
        return found

    @staticmethod
    def worth(readings: Sequence[Reading]) -> tuple[float, tuple[float, ...]]:
        """The score of an item whose questions were read so, 0 to 100, and those of single criteria, where it has any."""
        first = readings[0]
        if isinstance(first, Rubric):
            return first.mean, tuple(first.scores.values())
        if isinstance(first, float):
            return first, ()
        return _SCORE_OF[first if all(other == first for other in readings) else "tie"], ()


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                "score",
                compares_two=False,
                properties={"score": dict(_NUMBER)},
                fields='"score": N',
                meaning="N being a whole number from 0 to 100",
                plain_reply="Reply with the whole number alone.",
                plain_reasoned="Give the reason in one short sentence, and then a last line: Score: N, a whole number.",
                read=lambda reply, nonce, item: read_score(reply, nonce=nonce, answer=item.answer),
                in_words="one score from 0 to 100 for each answer, beside its reference",
            ),
            Protocol(
                "rubric",
                compares_two=False,
                properties={"reason": {"type": "string"}, **{name: dict(_NUMBER) for name in CRITERIA}},
                fields='"reason": "...", ' + ", ".join(f'"{name}": N' for name in CRITERIA),
                meaning="each N a whole number from 0 to 100",
                plain_reply=None,
                plain_reasoned=None,
                read=lambda reply, nonce, item: read_rubric(reply, nonce=nonce),
                in_words="correctness, relevance, completeness and clarity of each answer, here their mean",
            ),
            Protocol(
                "pairwise",
                compares_two=True,
                properties={"winner": {"type": "string", "enum": ["A", "B", "tie"]}},
                fields='"winner": W',
                meaning='W being "A", "B" or "tie"',
                plain_reply="Reply with A, B or tie alone.",
                plain_reasoned="Give the reason in one short sentence, and then a last line: Winner: W, W being A, B or tie.",
                read=lambda reply, nonce, item: read_winner(
                    reply, nonce=nonce, answers=(item.answer, item.rival or "")
                ),
                in_words="which of the two answers is better, in both orders: 100 where the tuned one won, 50 for a tie",
            ),
        )
    }
)
"""All protocols, by name."""
