"""The grammar of replies: a judge's reply becomes a score, a rubric or a preference, or `Unreadable` with the reason.

Stands between the client, which gives whole replies, and `verdicts.py`. Each form has one reading, and nothing is guessed:

    object   {"id": "3f9a0c1d5e7b2468", "score": 85}     one JSON object, alone or in one code fence, that carries the
                                                        code of its item: text copied out of an answer cannot
    plain    85   85.   85/100   **85**   ８５   Score: 85   one line; or prose whose last line is such a labelled score

The trade: a reply that a person could read but that has none of these forms stays unscored. It is counted, shown with its
reason, and bounds the mean; a wrong reading would do none of that. docs/judges.md lists every form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Winner = Literal["A", "B", "tie"]
CRITERIA = ("correctness", "relevance", "completeness", "clarity")
"""What the rubric grades, each from 0 to 100."""

_MAX_DEPTH_TEXT = 64 * 1024  # a verdict is a line; json's own recursion ends long before this is reached
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.S)
_THINKING = ("<think>", "</think>")
_MARKS = r"[*_`\[\]]*"  # emphasis and brackets around a number, never inside it
_SCORE_LINE = re.compile(
    rf"{_MARKS}(?P<label>(?:(?:final|overall|total)\s+)?(?:score|rating|grade){_MARKS}\s*[:=]?\s*{_MARKS}\s*)?"
    rf"(?P<number>[-−]?(?:0|[1-9][0-9]{{0,8}})(?:\.[0-9]{{1,6}})?){_MARKS}"
    rf"(?:\s*(?:/\s*100|out\s+of\s+100|%|percent|points?))?{_MARKS}[.!]?{_MARKS}",
    re.I,
)
_WINNER = re.compile(
    rf"{_MARKS}(?P<label>(?:(?:final\s+)?(?:winner|verdict){_MARKS}\s*[:=]\s*{_MARKS}\s*)?)(?:answer\s+)?"
    rf"(?P<winner>[AB]|tie){_MARKS}[.!]?{_MARKS}",
    re.I,
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A reply without a verdict, and the reason."""

    reason: str


_COPIED = Unreadable("the reply stands word for word in an answer")


@dataclass(frozen=True, slots=True)
class Rubric:
    """The four `scores` of a rubric, each 0 to 100 under its name in CRITERIA, and the judge's `reason`."""

    scores: Mapping[str, float]
    reason: str

    @property
    def mean(self) -> float:
        """The mean of the four."""
        return sum(self.scores.values()) / len(self.scores)


def read_score(reply: str, *, nonce: str | None, answer: str) -> float | Unreadable:
    """The score of a reply, 0 to 100.

    With a `nonce` the reply is an object that carries it as `id`; without, a plain score or an object with `score` alone.
    A plain reply that occurs in the judged `answer` may have been copied from it, and is unreadable.
    """
    text = unwrapped(reply)
    if isinstance(text, Unreadable):
        return text
    if nonce is not None or text.startswith("{"):
        found = json_object_in(text, nonce)
        if isinstance(found, Unreadable):
            return found if isinstance(_plain_score(text, answer), Unreadable) else _said_plainly("score")
        if nonce is None and text in answer:
            return _COPIED
        return _number(found, "score")
    if _has_thinking(reply) and reply.strip() in answer:
        return _COPIED
    return _plain_score(text, answer)


def read_rubric(reply: str, *, nonce: str | None) -> Rubric | Unreadable:
    """The four criteria and the reason of a reply; it is an object, which carries `nonce` where there is one."""
    text = unwrapped(reply)
    found = text if isinstance(text, Unreadable) else json_object_in(text, nonce)
    if isinstance(found, Unreadable):
        return found
    scores: dict[str, float] = {}
    for name in CRITERIA:
        score = _number(found, name)
        if isinstance(score, Unreadable):
            return score
        scores[name] = score
    reason = found.get("reason", "")
    return Rubric(scores, reason) if isinstance(reason, str) else Unreadable("`reason` is no text")


def read_winner(reply: str, *, nonce: str | None, answers: tuple[str, str]) -> Winner | Unreadable:
    """Which of two `answers`, A and B, a reply prefers; forms as for `read_score`, with `winner` for `score`."""
    text = unwrapped(reply)
    if isinstance(text, Unreadable):
        return text
    if nonce is not None or text.startswith("{"):
        found = json_object_in(text, nonce)
        if isinstance(found, Unreadable):
            return found if isinstance(_plain_winner(text, answers), Unreadable) else _said_plainly("winner")
        if nonce is None and any(text in answer for answer in answers):
            return _COPIED
        winner = found.get("winner")
        if winner in ("A", "B", "tie"):
            return winner  # type: ignore[no-any-return]
        return Unreadable(f"`winner` is {_shown(winner)}, none of A, B and tie" if "winner" in found else "no `winner`")
    if any(_has_thinking(reply) and reply.strip() in answer for answer in answers):
        return _COPIED
    return _plain_winner(text, answers)


def reason_in(reply: str) -> str | None:
    """The reason that a reply gives beside its verdict: an object's `reason`, or the lines before the last of a plain reply."""
    text = unwrapped(reply)
    if isinstance(text, Unreadable):
        return None
    if not text.startswith("{"):
        return text.rpartition("\n")[0].strip() or None
    found = json_object_in(text, None)
    reason = None if isinstance(found, Unreadable) else found.get("reason")
    return reason.strip() or None if isinstance(reason, str) else None


def unwrapped(reply: str) -> str | Unreadable:
    """The reply without the thinking block in front of it, and without the code fence and the white space around it."""
    text = without_thought(reply)
    if isinstance(text, Unreadable):
        return text
    if fence := _FENCE.fullmatch(text):
        text = fence[1].strip()
    return text or Unreadable("an empty reply")


def without_thought(reply: str) -> str | Unreadable:
    """The reply without the thinking block in front of it and the white space around it."""
    text = reply.strip()
    if not _has_thinking(text):
        return text
    _, closed, text = text.partition(_THINKING[1])
    return text.strip() if closed else Unreadable("the judge was still thinking when its reply ended")


def _has_thinking(reply: str) -> bool:
    return reply.strip().startswith(_THINKING[0])


def json_object_in(text: str, nonce: str | None) -> dict[str, Any] | Unreadable:
    """The one JSON object that `text` is, with the `id` that it has to carry; no key stands twice in it."""
    if not text.startswith("{"):
        return Unreadable("not the JSON object that was asked for")
    if len(text) > _MAX_DEPTH_TEXT:
        return Unreadable(f"an object of {len(text):,} characters")
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not one valid JSON object: {str(error)[:80]}")
    if nonce is not None and found.get("id") != nonce:
        return Unreadable("the object does not carry the code of its item: it may come from the answer")
    return found  # type: ignore[no-any-return]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _number(found: Mapping[str, Any], name: str) -> float | Unreadable:
    if name not in found:
        return Unreadable(f"no `{name}`")
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Unreadable(f"`{name}` is {_shown(value)}, no number")
    return _in_range(value, _shown(value))


def _in_range(value: float, shown: str) -> float | Unreadable:
    if 0 <= value <= 100:
        return float(value)
    return Unreadable(f"{shown} is outside 0 to 100")


def _plain_score(text: str, answer: str) -> float | Unreadable:
    """The score on the one line of `text`, or on the last one where that is the only labelled score."""
    lines = [line.strip() for line in text.translate(_FULL_WIDTH).splitlines() if line.strip()]
    scores = [_SCORE_LINE.fullmatch(line) for line in lines]
    last = scores[-1]
    if last is None:
        return Unreadable("no score of a known form")
    if len(lines) > 1 and (last["label"] is None or sum(match is not None for match in scores) > 1):
        return Unreadable("more than a score, and no single labelled one at the end")
    answer = answer.translate(_FULL_WIDTH)
    if lines[-1] in answer if last["label"] else _is_a_line_of(lines[-1], answer):
        return _COPIED
    return _in_range(float(last["number"].replace("−", "-")), last["number"])


def _plain_winner(text: str, answers: tuple[str, str]) -> Winner | Unreadable:
    """The winner on the one line of `text`, or on the last one where that is the only labelled one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [_WINNER.fullmatch(line) for line in lines]
    last = found[-1]
    if last is None or (len(lines) > 1 and (not last["label"] or sum(match is not None for match in found) > 1)):
        return Unreadable("neither A nor B nor tie")
    if any(lines[-1] in answer if last["label"] else _is_a_line_of(lines[-1], answer) for answer in answers):
        return _COPIED
    return {"A": "A", "B": "B", "TIE": "tie"}[last["winner"].upper()]  # type: ignore[return-value]


def _said_plainly(what: str) -> Unreadable:
    """A reply that would be read if plain ones were asked for. It has no code, so as it stands it does not count."""
    return Unreadable(
        f"a plain {what} and not the JSON object that was asked for, to which the server has not held its model: with "
        "judge.reply_format=text plain replies are asked for and read"
    )


def _is_a_line_of(text: str, answer: str) -> bool:
    return any(line.strip() == text for line in answer.splitlines())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
