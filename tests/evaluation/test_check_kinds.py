"""Each kind of check on answers that a person can judge by eye; what cannot be scored says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneful.config import load_config
from tuneful.config.checks import KINDS, given_checks
from tuneful.errors import ConfigError
from tuneful.evaluation.check_kinds import calls_in, in_words, normalised, numbers_in
from tuneful.evaluation.checks import check_item, need_references, read_checks, run_checks
from tuneful.evaluation.languages import LANGUAGES, language_of
from tuneful.runs.schema import CheckOutcome


def checked(check: dict[str, Any], answer: str, reference: str | None = "reference") -> CheckOutcome:
    """What one check finds of one answer."""
    checks = read_checks(load_config(None).model_copy(update={"evaluation": given(check)}))
    (found,) = run_checks(checks, [check_item("my.json:1", "asked", reference, answer)])
    (outcome,) = found.values()
    return outcome


def given(*checks: dict[str, Any]) -> Any:
    evaluation = load_config(None).evaluation
    return evaluation.model_copy(update={"checks": given_checks(list(checks))})


PRODUCT = {
    "type": "object",
    "required": ["name", "price"],
    "properties": {"name": {"type": "string", "minLength": 1}, "price": {"type": "number", "minimum": 0}},
    "additionalProperties": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'


@pytest.mark.parametrize(
    ("check", "answer", "reference", "score", "why"),
    [
        ({"json": None}, ' {"a": 1}\n', None, 1, None),
        ({"json": None}, "{'a': 1}", None, 0, "no JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        ({"json": None}, "[NaN]", None, 0, "no JSON: JSON knows no NaN"),
        ({"json": None}, '{"a": 1, "a": 2}', None, 0, 'no JSON: the key "a" stands twice'),
        ({"json": None}, "[" * 100_000, None, 0, "no JSON: is nested too deeply"),
        ({"json": None}, "", None, 0, "no JSON: Expecting value: line 1 column 1"),
        ({"json": None}, "Here:\n```json\n[1]\n```", None, 0, "no JSON: Expecting value: line 1 column 1"),
        ({"json": "fenced"}, "Here:\n```json\n[1]\n```\nThere.", None, 1, None),
        ({"json": "fenced"}, "[1]", None, 1, None),
        ({"json": "fenced"}, "```\n1\n```\n```\n2\n```", None, 0, "holds 2 blocks of code"),
        ({"json": None, "required": ["a", "b"]}, '{"b": null}', None, 0, "without the key a"),
        ({"json": None, "required": "a"}, "[]", None, 0, "is no object"),
        ({"json": None, "schema": PRODUCT}, '{"name": "tea", "price": 2}', None, 1, None),
        ({"json": None, "schema": PRODUCT}, '{"name": "tea", "price": "2"}', None, 0, "price: is string, expected number"),
        ({"json": None, "schema": PRODUCT}, '{"name": "tea", "price": 2, "x": 1}', None, 0, "x: must not be there"),
        ({"regex": r"^\d{4}$"}, "2026", None, 1, None),
        ({"regex": r"\d{4}"}, "in 2026", None, 1, None),
        ({"regex": r"\d{4}", "whole": True}, "in 2026", None, 0, "does not match"),
        ({"regex": "yes", "ignore_case": True}, "YES", None, 1, None),
        ({"contains": ["Dear", "Regards"]}, "Dear Ada. Regards", None, 1, None),
        ({"contains": ["Dear", "Regards"]}, "dear Ada", None, 0, "without Dear, Regards"),
        ({"contains": "dear", "ignore_case": True}, "DEAR", None, 1, None),
        ({"not_contains": "As an AI"}, "Rome.", None, 1, None),
        ({"not_contains": "As an AI"}, "As an AI, I", None, 0, "with As an AI"),
        ({"one_of": ["yes", "no"]}, " Yes. ", None, 1, None),
        ({"one_of": ["yes", "no"]}, "Yes, it is", None, 0, "none of the choices"),
        ({"one_of": ["C", "C#"]}, "c#", None, 1, None),
        ({"number": None}, "3 apples and 4 make 7.", "7", 1, None),
        ({"number": None}, "7, not 8", "7", 0, "another number"),
        ({"number": "only"}, "3 and 4 make 7", "7", 0, "holds 3 numbers"),
        ({"number": "only"}, "7, that is 7.0", "7", 1, None),
        ({"number": None, "tolerance": 0.01}, "3.14", "3.1459", 1, None),
        ({"number": None, "relative_tolerance": 0.01}, "1,009", "1000", 1, None),
        ({"number": None}, "0.30000000000000004", "0.3", 1, None),
        ({"number": None}, "many", "7", 0, "holds no number"),
        ({"number": None}, "7", "seven", None, "the reference holds no number"),
        ({"number": "only"}, "7", "3 or 4", None, "the reference holds 2 numbers"),
        ({"tool_call": None}, CALL, CALL, 1, None),
        ({"tool_call": None}, '{"arguments": {"days": 3.0, "city": "Rome"}, "name": "weather"}', CALL, 1, None),
        ({"tool_call": None}, CALL.replace("Rome", "Oslo"), CALL, 0, "other arguments"),
        ({"tool_call": "name"}, CALL.replace("Rome", "Oslo"), CALL, 1, None),
        ({"tool_call": "name"}, CALL.replace("weather", "clock"), CALL, 0, "another tool"),
        ({"tool_call": None}, CALL.replace("3", "true"), CALL.replace("3", "1"), 0, "other arguments"),
        ({"tool_call": None}, "It rains.", CALL, 0, "no calls, wanted 1"),
        ({"tool_call": None}, CALL, "It rains.", 0, "1 call, wanted none"),
        ({"tool_call": None}, "It rains.", "It snows.", 1, None),
        ({"tool_call": None}, "<tool_call>{</tool_call>", CALL, 0, "a call that cannot be read"),
        ({"tool_call": None}, CALL[:40], CALL, 0, "a call that cannot be read: <tool_call> is not closed"),
        ({"tool_call": None}, CALL, CALL[:40], None, "the call of the reference cannot be read: <tool_call> is not closed"),
        ({"length": "words", "max": 2}, "one two", None, 1, None),
        ({"length": None, "max": 2}, "one two three", None, 0, "longer than 2 words"),
        ({"length": "characters", "min": 3}, "ab", None, 0, "shorter than 3 characters"),
        ({"length": "lines", "min": 2, "max": 2}, "a\n\nb\n", None, 1, None),
        ({"same_as": None}, "Rome", "Rome", 1, None),
        ({"same_as": None}, "Rome ", "Rome", 0, "is not the reference"),
        ({"same_as": ["space", "case"]}, " ROME\n", "rome", 1, None),
        ({"same_as": ["punctuation", "articles", "case", "space"]}, "The cat, a dog!", "cat dog", 1, None),
        ({"language": "de"}, "Das ist die Antwort auf die Frage, und sie ist nicht lang.", None, 1, None),
        ({"language": "de"}, "This is the answer to the question, and it is not long.", None, 0, "looks like en"),
        ({"language": "de"}, "Berlin", None, None, "too few words that tell a language"),
    ],
)  # fmt: skip
def test_a_check_scores_an_answer_as_a_person_would(check, answer, reference, score, why):
    outcome = checked(check, answer, reference)
    assert outcome.score == score
    assert (outcome.why or outcome.unscored_reason or None) == why or (why or "?") in (outcome.why or "")
    assert (outcome.unscored_reason is not None) == (score is None)


@pytest.mark.parametrize("check", [{"label": None}, {"number": None}, {"tool_call": None}, {"same_as": "case"}])
def test_without_a_reference_what_needs_one_is_unscored(check):
    outcome = checked(check, "7", None)
    assert (outcome.score, outcome.unscored_reason) == (None, "the record has no reference answer")


def test_what_was_thought_before_the_answer_is_not_checked():
    assert checked({"json": None}, "<think>{</think>\n[1]").score == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234.5 and 1.234,5 and 1,234 and 1.234", [1234.5, 1234.5, 1234, 1.234]),
        ("3,14 and .5 and 1e-3 and 2E6", [3.14, 0.5, 0.001, 2e6]),
        ("-5, −6, 7-8, (9)-10", [-5, -6, 7, 8, 9, 10]),
        ("x2 3rd 1.2.3 10k v1.0", []),
        ("5kg, 10ms, 20 %, $30, 40°C, 5m.", [5, 10, 20, 30, 40, 5]),
        ("It is 7.", [7]),
        ("1,234,567.89; 1.234.567,89", [1234567.89, 1234567.89]),
        ("", []),
    ],
)
def test_numbers_are_read_as_people_write_them(text, found):
    assert numbers_in(text) == found


def test_normalisations_are_done_in_their_own_order():
    assert normalised("Ｔhe  ﬁsh, A.\tcat", ("space", "articles", "punctuation", "case", "unicode")) == "fish cat"
    assert normalised("a b", ("all_space",)) == "ab"


def test_calls_are_read_as_openai_and_as_plain_json_write_them():
    assert calls_in('[{"function": {"name": "f", "arguments": "{\\"a\\": 1}"}}]') == [("f", {"a": 1})]
    assert calls_in('{"name": "f"}') == [("f", {})]
    assert calls_in('{"title": "f"}') == calls_in("[]") == calls_in("7") == []


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The river is long and it flows to the sea."),
        ("de", "Der Fluss ist lang und er fließt in das Meer."),
        ("fr", "Le fleuve est long et il coule dans la mer avec les autres."),
        ("es", "El río es largo y no se seca en los meses de verano."),
        ("it", "Il fiume è lungo e non si ferma, ma anche questo è il suo corso nella valle."),
        ("pt", "O rio é longo e não seca, mas também não é muito fundo para uma ponte."),
        ("nl", "De rivier is lang en het water is niet diep, maar ook niet warm."),
        ("sv", "Floden är lång och den är inte djup, men det finns också en bro."),
        ("ja", "この川はとても長いです。"),
        ("zh", "这条河很长。"),
        ("ru", "Эта река очень длинная, и мы её любим."),
        ("uk", "Ця річка дуже довга, і її всі люблять."),
        ("ko", "이 강은 매우 깁니다."),
        ("el", "Ο ποταμός είναι μακρύς."),
        ("he", "הנהר ארוך מאוד."),
        ("th", "แม่น้ำยาวมาก"),
        (None, "Nehir uzundur ve denize akar."),
        (None, "Die"),
        (None, "42"),
        (None, ""),
    ],
)  # fmt: skip
def test_a_language_is_told_by_script_and_commonest_words_or_not_at_all(language, text):
    assert language_of(text) == language
    assert language is None or language in LANGUAGES


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([{"jsn": None}], "check 1: names no kind (found jsn): did you mean `json`?"),
        ([{"regex": "a", "contains": "b"}], "check 1: is of two kinds, regex and contains: make two checks of it"),
        ([{"regex": "("}], "check 1 (regex): no regular expression: missing ), unterminated subpattern"),
        ([{"regex": "a"}, {"regex": "b"}], "two checks are called `regex`: give each a name of its own"),
        (
            [{"regex": "a", "max": 3}],
            "check 1 (regex): `max` is no option of it; there are `name`, `whole`, `ignore_case`",
        ),
        ([{"contains": True}], "check 1 (contains): expected a text or a list of texts; quote what YAML takes"),
        ([{"length": "words"}], "check 1 (length): give min, max or both"),
        ([{"length": "words", "min": 3, "max": 2}], "min 3 is above max 2"),
        ([{"number": None, "tolerance": -1}], "tolerance: expected a number of 0 or more (found -1)"),
        ([{"json": None, "name": "Valid JSON"}], "name: expected small letters, digits and _"),
        ([{"same_as": ["cas"]}], "no normalisation is called cas; there are unicode, case, punctuation"),
        ([{"python": "a.py"}], "check 1 (python): expected file.py:function (found 'a.py')"),
        ([{"json": None, "schema": {"a": {1, 2}}}], "schema: holds what JSON cannot"),
        (3, "expected a list of checks, or a file that holds one"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused_with_its_place(checks, message):
    with pytest.raises(ValueError, match=r".") as refused:
        given_checks(checks)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([{"regex": "a", "name": "rouge_l"}], "`rouge_l` is another metric; give the check another name"),
        ([{"label": None, "name": "a"}, {"regex": "a", "name": "a_macro_f1"}], "`a_macro_f1` is another metric"),
        ([{"language": "da"}], "da is told from no other language; there are en, de,"),
        ([{"label": ["A", "a."]}], "label: A and a. are one label, but for case and outer marks"),
        (
            [{"json": None, "schema": {"typ": "object"}}],
            "json: schema: typ: not among the keywords that are obeyed: type,",
        ),
        ([{"json": None, "schema": "no.json"}], "json: no.json: cannot be read: No such file or directory"),
        ([{"python": "no.py:f"}], "python: no.py: cannot be read: No such file or directory"),
    ],
)
def test_what_takes_the_files_and_the_other_metrics_is_refused_before_anything_is_trained(checks, message):
    config = load_config(None).model_copy(update={"evaluation": given(*checks)})
    with pytest.raises(ConfigError) as refused:
        read_checks(config)
    assert message in str(refused.value)


def test_a_file_of_checks_is_the_list_itself_and_its_files_are_meant_from_its_folder(tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "checks.yaml").write_text(
        "- json:\n  schema: schema.json\n- python: polite.py:polite\n- number: last\n  tolerance: 1e-4\n- label\n"
    )
    config = load_config(None, [f"evaluation.checks={tmp_path / 'own' / 'checks.yaml'}"])
    assert config.evaluation.checks == (
        {"json": None, "schema": str(tmp_path / "own" / "schema.json")},
        {"python": str(tmp_path / "own" / "polite.py:polite")},
        {"number": "last", "tolerance": 1e-4},
        {"label": None},
    )
    for text, message in {
        "": "holds no list of checks, such as `- regex: ^yes`",
        "- regex: a\n  regex: b\n": "the key `regex` stands twice in one section",
        "- {": "not valid YAML",
    }.items():
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError) as refused:
            load_config(None, [f"evaluation.checks={tmp_path / 'bad.yaml'}"])
        assert message in str(refused.value)


def test_checks_survive_the_configuration_that_a_run_writes_down(tmp_path: Path):
    from tuneful.config import dump_config

    settings = 'evaluation.checks=[{json: , schema: {type: object}}, {same_as: [case]}, {label: ["yes", "no"]}]'
    config = load_config(None, [settings])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert read_checks(load_config(tmp_path / "config.yaml")) == read_checks(config)


def test_every_kind_says_in_words_what_it_asks():
    examples: list[dict[str, Any]] = [
        {"json": "fenced", "required": ["a"]},
        {"regex": "a"},
        {"contains": "a"},
        {"not_contains": "a"},
        {"one_of": ["a", "b"]},
        {"label": None},
        {"number": None, "tolerance": 1},
        {"tool_call": None},
        {"length": None, "max": 3},
        {"language": "en"},
        {"same_as": "case"},
        {"python": f"{__file__}:checked"},
    ]
    checks = read_checks(load_config(None).model_copy(update={"evaluation": given(*examples)}))
    assert [check.spec.kind for check in checks] == list(KINDS)
    assert len({in_words(check.spec) for check in checks}) == len(KINDS)
    assert in_words(checks[0].spec) == "is JSON or holds one block of it with a"
    assert [need_references([check]) for check in checks].count(True) == 4
