"""What each kind of check asks of one answer: a score of 1 or 0, or the reason why there is none.

Stands under `checks.py`, which runs them over a set of answers; labels, which need the whole set, are in `labels.py`,
functions of one's own in `python_check.py`. Every rule here is one that a person can apply by hand to the answer, and gets the
same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tuneful.config.checks import NORMALISATIONS, CheckSpec
from tuneful.evaluation.bounded_search import NotSearchedError, Search
from tuneful.evaluation.json_schema import json_equal, read_json, violation
from tuneful.evaluation.languages import language_of
from tuneful.evaluation.metrics import without_outer_marks, word_tokens
from tuneful.runs.schema import CheckOutcome

MET = CheckOutcome(1.0)
NO_REFERENCE = "the record has no reference answer"
_MAX_WHY = 200
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)

# A number: digits with groups and a fraction, and an exponent; a sign belongs to it where no letter, digit or bracket precedes.
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-+−])?(?<![\w.,])(?:\d+(?:[.,]\d+)*|\.\d+)(?:[eE][-+]?\d+(?!\w))?", re.ASCII)
_GROUPED = re.compile(r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?)|(\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})")


@dataclass(frozen=True, slots=True)
class CheckItem:
    """An answer to check: its record's `source`, what was asked, the reference (None where there is none), and the `text`."""

    source: str
    prompt: str
    reference: str | None
    text: str


Rule = Callable[[CheckItem], CheckOutcome]


def unmet(why: str) -> CheckOutcome:
    """A check that is not met, and `why` in words."""
    return CheckOutcome(0.0, why=why if len(why) <= _MAX_WHY else why[:_MAX_WHY] + "...")


def unscored(reason: str) -> CheckOutcome:
    """An answer that has no score."""
    return CheckOutcome(None, reason if len(reason) <= _MAX_WHY else reason[:_MAX_WHY] + "...")


def _outcome(is_met: bool, why: str) -> CheckOutcome:
    return MET if is_met else unmet(why)


def normalised(text: str, names: Sequence[str]) -> str:
    """`text` under the normalisations `names` of `config.checks.NORMALISATIONS`, in the order of that list."""
    steps: Mapping[str, Callable[[str], str]] = {
        "unicode": lambda one: unicodedata.normalize("NFKC", one),
        "case": str.casefold,
        "punctuation": lambda one: "".join(sign for sign in one if sign.isspace() or _is_letter(sign)),
        "articles": lambda one: _ARTICLE.sub("", one),
        "space": lambda one: " ".join(one.split()),
        "all_space": lambda one: "".join(one.split()),
    }
    assert list(steps) == list(NORMALISATIONS)
    for name in NORMALISATIONS:
        if name in names:
            text = steps[name](text)
    return text


def numbers_in(text: str) -> list[float]:
    """The numbers that `text` names, in order.

    `1,234.5` and `1.234,5` are grouped, `3,14` has a decimal comma and `1,234` none: three digits after one comma are a
    group, after one point a fraction. What has more points and is not grouped (a version) is no number, nor is what sticks to a
    letter (`x2`, `3rd`), but for units of measure.
    """
    found = []
    for match in _NUMBER.finditer(text):
        letters = _LETTERS.match(text, match.end())
        if letters and not _UNITS.fullmatch(letters[0]):
            continue
        value = _number(match[0].replace("−", "-"))
        if value is not None:
            found.append(value)
    return found


_LETTERS = re.compile(r"[^\W\d_]+")
_UNITS = re.compile(
    "[kmn]?g|lbs?|oz|[kcm]?m|mi|ft|in|[cm]?l|s|sec|m?s|min|hr?s?|kwh?|w|v|[kmg]?hz|[kmgt]b|c|f|usd|eur|gbp|px",
    re.IGNORECASE,
)
"""Units that may stick to a number; `k` is not among them, because it is often a thousand."""


def _number(text: str) -> float | None:
    digits = text.lstrip("+-")
    mantissa, _, exponent = digits.lower().partition("e")
    grouped = _GROUPED.fullmatch(mantissa)
    if grouped and grouped[1]:
        mantissa = mantissa.replace(",", "")
    elif grouped:
        mantissa = mantissa.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d+,\d+", mantissa):
        mantissa = mantissa.replace(",", ".")
    try:
        value = float(f"{mantissa}e{exponent}" if exponent else mantissa)
    except ValueError:
        return None
    return -value if text.startswith("-") else value


def _is_letter(sign: str) -> bool:
    return unicodedata.category(sign)[0] in "LNM"


# Rules, one a kind


def _json(spec: CheckSpec, search: Search) -> Rule:
    schema, required = spec.options["schema"], spec.options["required"]

    def rule(item: CheckItem) -> CheckOutcome:
        fenced = _FENCE.findall(item.text) if spec.value == "fenced" else []
        if len(fenced) > 1:
            return unmet(f"holds {len(fenced)} blocks of code")
        try:
            value = read_json(fenced[0] if fenced else item.text)
        except ValueError as error:
            return unmet(f"no JSON: {error}")
        if required and not isinstance(value, dict):
            return unmet("is no object")
        missing = [key for key in required if key not in value]
        if missing:
            return unmet(f"without the key{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
        try:
            said = None if schema is None else violation(value, schema, search)
        except NotSearchedError as why:
            return unscored(f"a pattern of the schema: {why}")
        return MET if said is None else unmet(said)

    return rule


def _regex(spec: CheckSpec, search: Search) -> Rule:
    how = "i" * spec.options["ignore_case"] + "w" * spec.options["whole"]

    def rule(item: CheckItem) -> CheckOutcome:
        try:
            return _outcome(search(spec.value, item.text, how), "does not match")
        except NotSearchedError as why:
            return unscored(str(why))

    return rule


def _contains(spec: CheckSpec) -> Rule:
    return _search(spec, wanted=True)


def _not_contains(spec: CheckSpec) -> Rule:
    return _search(spec, wanted=False)


def _search(spec: CheckSpec, *, wanted: bool) -> Rule:
    def folded(text: str) -> str:
        return text.casefold() if spec.options["ignore_case"] else text

    def rule(item: CheckItem) -> CheckOutcome:
        text = folded(item.text)
        wrong = [part for part in spec.value if (folded(part) in text) is not wanted]
        return _outcome(not wrong, f"{'without' if wanted else 'with'} {', '.join(wrong)}")

    return rule


def _one_of(spec: CheckSpec) -> Rule:
    choices = {without_outer_marks(choice) for choice in spec.value}
    return lambda item: _outcome(without_outer_marks(item.text) in choices, "none of the choices")


def _numeric(spec: CheckSpec) -> Rule:
    absolute, relative = spec.options["tolerance"], spec.options["relative_tolerance"]

    def named(text: str) -> float | str:
        found = numbers_in(text)
        if not found:
            return "no number"
        return found[-1] if spec.value == "last" or len(set(found)) == 1 else f"{len(set(found))} numbers"

    def rule(item: CheckItem) -> CheckOutcome:
        wanted, found = named(item.reference or ""), named(item.text)
        if isinstance(wanted, str):
            return unscored(f"the reference holds {wanted}")
        if isinstance(found, str):
            return unmet(f"holds {found}")
        allowed = max(absolute, relative * abs(wanted)) + 1e-12 * abs(wanted)  # 0.1 + 0.2 is 0.3
        return _outcome(abs(found - wanted) <= allowed, "another number")

    return rule


def _tool_call(spec: CheckSpec) -> Rule:
    def rule(item: CheckItem) -> CheckOutcome:
        try:
            wanted = calls_in(item.reference or "")
        except ValueError as error:
            return unscored(f"the call of the reference cannot be read: {error}")
        try:
            found = calls_in(item.text)
        except ValueError as error:
            return unmet(f"a call that cannot be read: {error}")
        if len(found) != len(wanted):
            return unmet(f"{len(found) or 'no'} call{'' if len(found) == 1 else 's'}, wanted {len(wanted) or 'none'}")
        for (name, arguments), (wanted_name, wanted_arguments) in zip(found, wanted, strict=True):
            if name != wanted_name:
                return unmet("another tool")
            if spec.value == "arguments" and not json_equal(arguments, wanted_arguments):
                return unmet("other arguments")
        return MET

    return rule


def calls_in(text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of each call of a tool in `text`: JSON between <tool_call> tags, or else the whole text, where that is an
    object (or a list of them) with a `name` and `arguments`. ValueError where tags hold anything else."""
    tagged = _CALL.findall(text)
    if tagged or "<tool_call>" in text:
        if not tagged:
            raise ValueError("<tool_call> is not closed")
        return [_call(read_json(one.strip())) for one in tagged]
    try:
        value = read_json(text.strip())
        return [_call(one) for one in (value if isinstance(value, list) else [value])]
    except ValueError:
        return []


def _call(value: Any) -> tuple[str, Any]:
    called = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(called, dict) or not isinstance(called.get("name"), str):
        raise ValueError("no object with a name")
    arguments = called.get("arguments", called.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("arguments are no object")
    return called["name"], arguments


def _length(spec: CheckSpec) -> Rule:
    low, high = spec.options["min"], spec.options["max"]

    def counted(text: str) -> int:
        counts: Mapping[str, Callable[[], int]] = {
            "words": lambda: len(word_tokens(text)),
            "characters": lambda: len(text),
            "lines": lambda: sum(bool(line.strip()) for line in text.splitlines()),
        }
        return counts[spec.value]()

    def rule(item: CheckItem) -> CheckOutcome:
        number = counted(item.text)
        if low is not None and number < low:
            return unmet(f"shorter than {low} {spec.value}")
        return _outcome(high is None or number <= high, f"longer than {high} {spec.value}")

    return rule


def _language(spec: CheckSpec) -> Rule:
    def rule(item: CheckItem) -> CheckOutcome:
        found = language_of(item.text)
        if found is None:
            return unscored("too few words that tell a language")
        return _outcome(found == spec.value, f"looks like {found}")

    return rule


def _same_as(spec: CheckSpec) -> Rule:
    def rule(item: CheckItem) -> CheckOutcome:
        same = normalised(item.text, spec.value) == normalised(item.reference or "", spec.value)
        return _outcome(same, "is not the reference")

    return rule


SEARCHING: Mapping[str, Callable[[CheckSpec, Search], Rule]] = MappingProxyType({"json": _json, "regex": _regex})
"""Rules of kinds that take regular expressions."""
RULES: Mapping[str, Callable[[CheckSpec], Rule]] = MappingProxyType(
    {
        "contains": _contains,
        "not_contains": _not_contains,
        "one_of": _one_of,
        "number": _numeric,
        "tool_call": _tool_call,
        "length": _length,
        "language": _language,
        "same_as": _same_as,
    }
)
NEED_REFERENCE = frozenset(("label", "number", "tool_call", "same_as"))
"""Kinds that hold the answer against the reference."""


def in_words(spec: CheckSpec) -> str:
    """What a check asks, as a line for people."""
    value, options = spec.value, spec.options
    quoted = ", ".join(f"“{one}”" for one in value) if isinstance(value, tuple) else str(value)
    bounds = [f"at least {options['min']}"] if options.get("min") is not None else []
    bounds += [f"at most {options['max']}"] if options.get("max") is not None else []
    tolerance = max((options.get("tolerance", 0.0), options.get("relative_tolerance", 0.0)))
    within = f", within {options['tolerance']:g} or {100 * options['relative_tolerance']:g} %" if tolerance else ""
    asked: Mapping[str, str] = {
        "json": "is JSON"
        + (" or holds one block of it" if value == "fenced" else "")
        + (f" with {', '.join(options.get('required', ()))}" if options.get("required") else "")
        + (" that the schema allows" if options.get("schema") is not None else ""),
        "regex": f"{'is' if options.get('whole') else 'holds'} what {value} matches",
        "contains": f"contains {quoted}",
        "not_contains": f"does not contain {quoted}",
        "one_of": f"is one of {quoted}",
        "label": f"names the label of the reference, of {quoted or 'those that references name'}",
        "number": f"its {value} number is the reference's{within}",
        "tool_call": "calls the reference's tools" + (" with the same arguments" if value == "arguments" else ""),
        "length": f"has {' and '.join(bounds)} {value}",
        "language": f"is in the language {value}, by its script and commonest words",
        "same_as": f"is the reference{f' but for {quoted}' if value else ', character by character'}",
        "python": f"is what {value} asks for",
    }
    return asked[spec.kind]
