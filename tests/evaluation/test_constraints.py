"""Instructions that can be verified: a text that follows each kind, and one that just does not."""

from __future__ import annotations

from typing import Any

import pytest

from tuneful.evaluation.constraints import RULES, Constraint, fault_of, followed, loose_forms, num_sentences

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "keywords:existence": ({"keywords": ["river", "C++"]}, ["Rivers and c++."], ["A river.", "C+ river"]),
    "keywords:frequency": (
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        ["Tea, more tea."],
        ["Tea."],
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["rain"]}, ["The train raining."], ["Rain!", "No rain."]),
    "keywords:letter_frequency": (
        {"letter": "Z", "let_frequency": 2, "let_relation": "less than"},
        ["Zoo"],
        ["Zz"],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "One! and then"],
        ["One.", "Dr. Who came"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a", "a***\n***b", "a***b***c"],
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "less than"},
        ["two words!"],
        ["three words here"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ['a\n\n"then," b'],
        ["a\n\nb", "then", "then\n\nthen\n\nthen"],
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[name] at [place]"], ["[name]"]),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, ["Bye. P. S. More"], ["Bye. PS"]),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* a\n  - b", "- a\n- b"],
        ["* a", "** a **\n* b", "- a\n- b\n- c"],
    ),
    "detectable_format:constrained_response": ({}, ["Well: My answer is no."], ["No."]),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, ["a *b* c"], ["a * c", "**"]),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a\nSection 2 b"],
        ["Section 1 a\nsection 2 b"],
    ),
    "detectable_format:json_format": ({}, ['{"a": 1}', "```json\n[1]\n```"], ["{a: 1}", 'Here: {"a": 1}']),
    "detectable_format:title": ({}, ["<<A poem>>\nx"], ["<< >>", "<A poem>"]),
    "combination:two_responses": ({}, ["a\n******\nb"], ["a", "a******a", "a******b******c"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it. "}, ["say it. It."], ["It. Say it."]),
    "startend:end_checker": ({"end_phrase": "The end."}, ['... the END."', "the end."], ["The end. Really."]),
    "startend:quotation": ({}, [' "quoted" '], ['"', '"a" b']),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NO (WAY)!"],
        ["NO Way"],
    ),
    "change_case:english_capital": ({}, ["ALL OF IT, 1"], ["ALL Of IT", "1"]),
    "change_case:english_lowercase": ({}, ["all of it"], ["All of it"]),
    "punctuation:no_comma": ({}, ["none at all"], ["one, two"]),
}


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_knows_what_follows_it_from_what_does_not(name: str) -> None:
    arguments, good, bad = CASES[name]
    assert fault_of(name, arguments) is None
    constraint = Constraint(name, arguments)
    assert [text for text in good if not constraint.followed_by(text)] == []
    assert [text for text in bad if constraint.followed_by(text)] == []
    assert not constraint.followed_by(" \n")


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].needs])
def test_an_argument_that_is_missing_or_of_another_kind_is_named(name: str) -> None:
    arguments = CASES[name][0]
    for key in RULES[name].needs:
        for wrong in ({}, {key: None}, {key: -1}, {key: True}, {key: [1]}):
            fault = fault_of(name, {**{other: value for other, value in arguments.items() if other != key}, **wrong})
            assert fault is not None, (key, wrong)
            assert f"`{key}`" in fault


def test_loosely_outer_lines_and_asterisks_are_overlooked() -> None:
    ends = Constraint("startend:end_checker", {"end_phrase": "done"})
    assert followed([ends], "It is done\nHope that helps!") == ((False,), (True,))
    assert followed([ends], "**done**") == ((False,), (True,))
    assert followed([ends], "Sure!\nno") == ((False,), (False,))
    assert loose_forms("a\nb\nc")[:4] == ["a\nb\nc", "b\nc", "a\nb", "b"]


def test_a_list_loses_its_asterisks_only_where_that_is_overlooked() -> None:
    bullets = Constraint("detectable_format:number_bullet_lists", {"num_bullets": 2})
    assert followed([bullets], "Here:\n* a\n* b\nThat is all.") == ((True,), (True,))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two? Three!", 3),
        ("Wait... what?", 2),
        ('He said "no." Then he left.', 2),
        ("Mr. Smith and Dr. Who met, e.g. at 3.14 today.", 1),
        ("第一。第二！", 2),
        ("Version 1.2.3 is out.", 1),
        ("!!!", 0),
    ],
)
def test_sentences_are_counted(text: str, number: int) -> None:
    assert num_sentences(text) == number
