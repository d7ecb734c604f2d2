"""Instructions that can be verified: what an answer must hold, be as long as, look like, each a rule of its text alone.

The names and arguments are those of IFEval (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"), so
that its JSONL form is read as it is; the rules are written here from their descriptions. `task_files.py` reads the items,
`tasks.py` asks a model for the answers.

An answer is held against each rule as it stands (strict), and again without its first line, its last, both, and the same without
asterisks (loose): what a model says around an answer is no fault then. An empty text follows nothing.

Words are runs of letters, digits and underscores. A sentence ends at `.`, `!`, `?` or `…` before white space, but for common
abbreviations, and at `。！？` anywhere. Keywords are texts, not patterns, in any letter case. That an answer is English is not
looked at: `response_language` is no rule here, and an item with it, or with any other name that is not below, is not scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]

RELATIONS = ("less than", "at least")

_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "vs", "e.g", "i.e", "cf", "jr", "sr"))
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|[。！？]+["'”’」』）]*""")
_WORD = re.compile(r"\w+")
_EDGE = re.compile(r"^\W+|\W+$")
_FENCE = re.compile(r"^```[ \t]*(?:json)?[ \t]*\n?(.*?)```$", re.S | re.I)


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of instruction: whether a text follows it, and the arguments that it needs, each with the type it must have."""

    holds: Callable[[str, Arguments], bool]
    needs: Mapping[str, str]
    """Name to `text`, `texts`, `letter`, `count` (0 or more), `number` (1 or more) or `relation`."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One instruction of an item: its name among `RULES`, and its arguments, which were checked."""

    name: str
    arguments: Arguments

    def followed_by(self, text: str) -> bool:
        """Whether `text` as it stands follows it."""
        return bool(text.strip()) and RULES[self.name].holds(text, self.arguments)

    def followed_loosely_by(self, text: str) -> bool:
        """Whether `text`, or what is left of it without its outer lines or its asterisks, follows it."""
        return any(map(self.followed_by, loose_forms(text)))


def loose_forms(text: str) -> list[str]:
    """`text`; without its first line, its last, and both; and each of these without asterisks."""
    lines = text.split("\n")
    forms = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*forms, *(form.replace("*", "") for form in forms)]


def fault_of(name: str, arguments: Arguments) -> str | None:
    """What is wrong with the arguments of the rule `name`; None for nothing. Those that it does not know are left aside."""
    for key, kind in RULES[name].needs.items():
        if not _KINDS[kind][1](arguments.get(key)):
            return f"{name} needs `{key}`, {_KINDS[kind][0]}"
    return None


def num_sentences(text: str) -> int:
    """The sentences of `text`, an unfinished last one included."""
    count = start = 0
    for end in _SENTENCE_END.finditer(text):
        said = text[start : end.start()]
        before = said.split()[-1].lower().lstrip("(\"'") if said.split() else ""
        if end.group() == "." and end.end() < len(text) and before in _ABBREVIATIONS:
            continue
        count += bool(said.strip())
        start = end.end()
    return count + bool(_WORD.search(text[start:]))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a text", _is_text),
    "texts": ("a list of texts", lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value))),
    "letter": ("one letter or sign", lambda value: isinstance(value, str) and len(value.strip()) == 1),
    "count": ("a whole number, 0 or more", _is_count),
    "number": ("a whole number, 1 or more", lambda value: _is_count(value) and value > 0),
    "relation": (f"one of {', '.join(RELATIONS)}", lambda value: value in RELATIONS),
}


def _stands(found: int, arguments: Arguments, limit: str, relation: str = "relation") -> bool:
    """Whether the number `found` is to the limit as the relation says."""
    return bool(found < arguments[limit] if arguments[relation] == "less than" else found >= arguments[limit])


def _count(text: str, keyword: str) -> int:
    return text.lower().count(keyword.strip().lower())


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.I) is not None


def _has_paragraphs(text: str, arguments: Arguments) -> bool:
    """Exactly so many, divided by ***, which may also stand before the first and behind the last."""
    parts = [part.strip() for part in text.split("***")]
    parts = parts[1 if not parts[0] else 0 :]
    parts = parts[: -1 if parts and not parts[-1] else None]
    return all(parts) and len(parts) == arguments["num_paragraphs"]


def _begins_paragraph(text: str, arguments: Arguments) -> bool:
    """Exactly so many, divided by empty lines, and the n-th of the parts begins with the word."""
    parts = [part.strip() for part in text.split("\n\n")]
    number = arguments["nth_paragraph"]
    if len([part for part in parts if part]) != arguments["num_paragraphs"] or number > arguments["num_paragraphs"]:
        return False
    first = re.split(r"""[.,?!'"]""", parts[number - 1].split()[0].lstrip("\"'"))[0] if parts[number - 1] else ""
    return bool(first.lower() == arguments["first_word"].strip().lower())


def _num_highlights(text: str) -> int:
    found = re.findall(r"\*[^\n*]*\*", text) + re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(one.strip("*").strip()) for one in found)


def _num_bullets(text: str) -> int:
    return len(re.findall(r"^\s*\*[^*\n].*$", text, re.M)) + len(re.findall(r"^\s*-.*$", text, re.M))


def _has_postscript(text: str, arguments: Arguments) -> bool:
    marker = arguments["postscript_marker"].strip()
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(spaced.get(marker, re.escape(marker)), text, re.I) is not None


def _is_json(text: str, arguments: Arguments) -> bool:
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _are_two(text: str, arguments: Arguments) -> bool:
    """Two answers that differ, divided by ******, which may also stand before the first and behind the last."""
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def _num_in_capitals(text: str) -> int:
    return sum(_EDGE.sub("", word).isupper() for word in text.split())


def _num_sections(text: str, splitter: str) -> int:
    return len(re.findall(rf"{re.escape(splitter.strip())}\s?\d+", text))


def _ends_with(text: str, arguments: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def _is_quoted(text: str, arguments: Arguments) -> bool:
    said = text.strip()
    return len(said) > 1 and said[0] == said[-1] == '"'


def _has_title(text: str, arguments: Arguments) -> bool:
    return any(found.strip("<> \t") for found in re.findall(r"<<([^\n]+)>>", text))


_CHOSEN = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""The three answers that IFEval's constrained_response allows."""

RULES: Mapping[str, Rule] = {
    "keywords:existence": Rule(
        lambda text, its: all(_count(text, one) for one in its["keywords"]), {"keywords": "texts"}
    ),
    "keywords:frequency": Rule(
        lambda text, its: _stands(_count(text, its["keyword"]), its, "frequency"),
        {"keyword": "text", "frequency": "count", "relation": "relation"},
    ),
    "keywords:forbidden_words": Rule(
        lambda text, its: not any(_has_word(text, one) for one in its["forbidden_words"]), {"forbidden_words": "texts"}
    ),
    "keywords:letter_frequency": Rule(
        lambda text, its: _stands(_count(text, its["letter"]), its, "let_frequency", "let_relation"),
        {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
    ),
    "length_constraints:number_sentences": Rule(
        lambda text, its: _stands(num_sentences(text), its, "num_sentences"),
        {"num_sentences": "count", "relation": "relation"},
    ),
    "length_constraints:number_paragraphs": Rule(_has_paragraphs, {"num_paragraphs": "number"}),
    "length_constraints:number_words": Rule(
        lambda text, its: _stands(len(_WORD.findall(text)), its, "num_words"),
        {"num_words": "count", "relation": "relation"},
    ),
    "length_constraints:nth_paragraph_first_word": Rule(
        _begins_paragraph, {"num_paragraphs": "number", "nth_paragraph": "number", "first_word": "text"}
    ),
    "detectable_content:number_placeholders": Rule(
        lambda text, its: len(re.findall(r"\[.*?\]", text)) >= its["num_placeholders"], {"num_placeholders": "count"}
    ),
    "detectable_content:postscript": Rule(_has_postscript, {"postscript_marker": "text"}),
    "detectable_format:number_bullet_lists": Rule(
        lambda text, its: bool(_num_bullets(text) == its["num_bullets"]), {"num_bullets": "count"}
    ),
    "detectable_format:constrained_response": Rule(lambda text, its: any(one in text for one in _CHOSEN), {}),
    "detectable_format:number_highlighted_sections": Rule(
        lambda text, its: bool(_num_highlights(text) >= its["num_highlights"]), {"num_highlights": "count"}
    ),
    "detectable_format:multiple_sections": Rule(
        lambda text, its: bool(_num_sections(text, its["section_spliter"]) >= its["num_sections"]),
        {"section_spliter": "text", "num_sections": "count"},
    ),
    "detectable_format:json_format": Rule(_is_json, {}),
    "detectable_format:title": Rule(_has_title, {}),
    "combination:two_responses": Rule(_are_two, {}),
    "combination:repeat_prompt": Rule(
        lambda text, its: text.strip().lower().startswith(its["prompt_to_repeat"].strip().lower()),
        {"prompt_to_repeat": "text"},
    ),
    "startend:end_checker": Rule(_ends_with, {"end_phrase": "text"}),
    "startend:quotation": Rule(_is_quoted, {}),
    "change_case:capital_word_frequency": Rule(
        lambda text, its: _stands(_num_in_capitals(text), its, "capital_frequency", "capital_relation"),
        {"capital_frequency": "count", "capital_relation": "relation"},
    ),
    "change_case:english_capital": Rule(lambda text, its: text.isupper(), {}),
    "change_case:english_lowercase": Rule(lambda text, its: text.islower(), {}),
    "punctuation:no_comma": Rule(lambda text, its: "," not in text, {}),
}
"""Every kind of instruction that is verified, by its name in IFEval."""


def followed(constraints: Sequence[Constraint], text: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether `text` follows each of `constraints`, strictly and loosely."""
    return (
        tuple(one.followed_by(text) for one in constraints),
        tuple(one.followed_loosely_by(text) for one in constraints),
    )
