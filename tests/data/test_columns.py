"""Columns: a field is read under every name that it has, two that compete are refused, text that is not used is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.columns import ANSWERS, ASKS, INPUTS, SYSTEMS
from tuneful.data.formats import FormatReader, ReadRow, record_texts
from tuneful.data.messages import is_prose
from tuneful.data.read import read_data
from tuneful.types import Turn

ASKED, GIVEN, SAID, BE = "Translate to German.", "The boat is green.", "Das Boot ist grün.", "You speak in verse."
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
PLAIN = {"instruction": ASKED, "output": SAID}


def read(row: dict[str, Any], **columns: str) -> ReadRow:
    found = FormatReader("auto", columns or None).read(row, "a.jsonl:1")
    assert isinstance(found, ReadRow), found
    return found


def refusal(row: dict[str, Any], **columns: str) -> str:
    found = FormatReader("auto", columns or None).read(row, "a.jsonl:1")
    assert isinstance(found, str)
    return found


def noted(row: dict[str, Any], **columns: str) -> set[tuple[str, str]]:
    return {(key.kind, key.name.strip("`")) for key in read(row, **columns).noted.counts}


def spelled(name: str, how: str) -> str:
    return {"plain": name, "capital": name.capitalize(), "blank": name.replace("_", " ").title(), "loud": name.upper()}[
        how
    ]


@given(
    st.sampled_from(ASKS),
    st.sampled_from(ANSWERS),
    st.sampled_from(INPUTS),
    st.sampled_from(SYSTEMS),
    st.lists(st.sampled_from(["plain", "capital", "blank", "loud"]), min_size=4, max_size=4),
)
def test_a_field_is_read_under_every_name_that_any_format_has_for_it(
    ask: str, answer: str, context: str, system: str, how: list[str]
) -> None:
    names = [spelled(name, one) for name, one in zip((ask, answer, context, system), how, strict=True)]
    row = dict(zip(names, (ASKED, SAID, GIVEN, BE), strict=True))
    found = read(row)
    assert found.conversation.system == BE
    assert found.conversation.turns == (Turn(ASKED, GIVEN, SAID),)
    assert {key.kind for key in found.noted.counts} <= {"renamed"}
    texts = record_texts(row)
    assert (texts.asked, texts.input, texts.reference) == (ASKED, GIVEN, SAID)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_text_beside_messages_is_read_under_every_name(system: str, key: str) -> None:
    assert read({key: CHAT, system: BE}).conversation.system == BE
    assert read({"talk": CHAT, system: BE}, messages="talk").conversation.system == BE


def test_a_name_that_is_not_the_formats_own_is_said() -> None:
    assert noted({"instruction": ASKED, "input": GIVEN, "response": SAID}) == {("renamed", "input")}
    assert noted({"instruction": ASKED, "input": "", "response": SAID}) == set()


COMPETING: dict[str, tuple[dict[str, Any], str]] = {
    "two answers": ({**PLAIN, "response": "Grün."}, "`output` and `response` both hold an answer; name the one"),
    "an answer inside another": ({**PLAIN, "answer": "Boot"}, "`output` and `answer` both hold an answer"),
    "two questions": ({**PLAIN, "question": "What is it?"}, "`instruction` and `question` both hold what is asked"),
    "two inputs": ({**PLAIN, "input": GIVEN, "context": "Another."}, "`input` and `context` both hold an input"),
    "two systems": (
        {**PLAIN, "system": BE, "system_prompt": "Be brief."},
        "`system` and `system_prompt` both hold a system",
    ),
    "two lists of messages": (
        {"messages": CHAT, "conversations": [*CHAT, *CHAT]},
        "`messages` and `conversations` both hold messages",
    ),
    "two unknown lists of messages": (
        {"a": CHAT, "b": [*CHAT]},
        "`a` and `b` both hold messages; name those that are meant",
    ),
}


@pytest.mark.parametrize("what", COMPETING)
def test_two_columns_that_compete_are_refused_by_name(what: str) -> None:
    row, reason = COMPETING[what]
    assert refusal(row).startswith(reason)
    assert "data.columns=" in refusal(row)


def test_of_two_columns_the_one_that_is_named_is_read_and_one_that_is_empty_does_not_compete() -> None:
    row = {**PLAIN, "response": "Grün."}
    assert read(row, output="output").conversation.turns == (Turn(ASKED, "", SAID),)
    assert read(row, output="response").conversation.turns == (Turn(ASKED, "", "Grün."),)
    for empty in ("", " ", None):
        assert read({**PLAIN, "response": empty, "context": GIVEN, "input": empty}).conversation.turns == (
            Turn(ASKED, GIVEN, SAID),
        )
    assert read({**PLAIN, "response": SAID}).conversation.turns == (Turn(ASKED, "", SAID),)


UNUSED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a passage": ({**PLAIN, "passage": "It lies at pier 4."}, {"passage"}),
    "texts in a list": ({**PLAIN, "documents": ["one", "It lies at pier 4."]}, {"documents"}),
    "texts in an object": ({**PLAIN, "meta": {"title": "The green boat"}}, {"meta"}),
    "a text without spaces": ({**PLAIN, "passage": "船は四番の桟橋にあります"}, {"passage"}),
    "a text beside messages": ({"messages": CHAT, "context": "It lies at pier 4."}, {"context"}),
    "a text in messages": ({"messages": [{**CHAT[0], "thought": "I wonder why."}, CHAT[1]]}, {"thought` of messages"}),
    "ids, numbers, dates, paths, names": (
        {
            **PLAIN,
            "id": "a1-b2",
            "n": 5,
            "day": "2024-01-01 10:00",
            "file": "a/b c",
            "lang": "German",
            "tags": ["a", "b"],
        },
        set(),
    ),
    "the record, rendered": ({**PLAIN, "text": f"Below ... {ASKED} ### Response: {SAID}"}, set()),
    "the first message again": ({"messages": CHAT, "prompt": ASKED}, set()),
}


@pytest.mark.parametrize("what", UNUSED)
def test_text_that_is_used_for_nothing_is_named_and_nothing_else_is(what: str) -> None:
    row, names = UNUSED[what]
    assert {name for kind, name in noted(row) if kind == "unused_text"} == names


def test_the_setting_that_a_note_names_puts_the_text_into_the_prompt(tmp_path: Path) -> None:
    for row, field in (
        ({**PLAIN, "note": GIVEN}, "input"),
        ({"question": ASKED, "answer": SAID, "note": GIVEN}, "context"),
    ):
        (key,) = read(row).noted.counts
        assert key.hint == f"; data.columns={field}=note puts it into the prompt"
        assert read(row, **{field: "note"}).conversation.turns == (Turn(ASKED, GIVEN, SAID),)
    (key,) = read({"messages": CHAT, "note": GIVEN}).noted.counts
    assert key.hint == "; data.columns=system=note makes it the system text"
    assert read({"messages": CHAT, "note": GIVEN}, system="note").conversation.system == GIVEN


def test_a_column_is_named_where_a_record_in_twenty_holds_text(tmp_path: Path) -> None:
    rows = ["instruction,output,passage"] + [f"Ask {n}.,Answer {n}.,{'two words' if n < 2 else ''}" for n in range(41)]
    (tmp_path / "a.csv").write_text("\n".join(rows[:41]))
    (note,) = read_data(str(tmp_path / "a.csv")).notes
    assert (note.kind, note.name, note.num_records, note.source) == ("unused_text", "passage", 2, f"{tmp_path}/a.csv:2")
    assert (
        note.text
        == "`passage` holds text in 2 records and is not used; data.columns=input=passage puts it into the prompt"
    )
    (tmp_path / "a.csv").write_text("\n".join(rows))
    assert read_data(str(tmp_path / "a.csv")).notes == ()


@pytest.mark.parametrize("key", ["rejected", "rejected_response"])
@pytest.mark.parametrize("row", [PLAIN, {"messages": CHAT}, {"prompt": ASKED, "completion": SAID}])
def test_a_pair_is_never_trained_as_a_plain_answer_unless_its_answer_is_named(row: dict[str, Any], key: str) -> None:
    assert refusal({**row, key: "No."}).startswith(f"a preference pair: `{key}` is an answer that is not wanted")
    answer = {"instruction": "output", "messages": "messages", "prompt": "completion"}[next(iter(row))]
    assert read({**row, key: "No."}, **{answer: answer}).conversation.turns == (Turn(ASKED, "", SAID),)


def test_the_setting_that_the_refusal_of_a_pair_names_reads_its_chosen_answer() -> None:
    row = {"prompt": ASKED, "chosen": SAID, "rejected": "No."}
    assert "data.columns=completion=chosen" in refusal(row)
    assert read(row, completion="chosen").conversation.turns == (Turn(ASKED, "", SAID),)
    chats = {"chosen": CHAT, "rejected": [CHAT[0]]}
    assert "data.columns=messages=chosen" in refusal(chats)
    assert read(chats, messages="chosen").conversation.turns == (Turn(ASKED, "", SAID),)
    assert "data.columns=messages=chosen" in refusal({"prompt": ASKED, **chats})


@pytest.mark.parametrize("value", [False, "false", "False"])
def test_an_answer_that_is_labelled_as_not_wanted_is_refused(value: Any) -> None:
    row = {"prompt": ASKED, "completion": SAID}
    for label in ("label", "kto_tag"):
        assert f"`{label}` is false: an answer that is not wanted" in refusal({**row, label: value})
        assert noted({**row, label: True}) == {("label", label)}
    assert "is 0: an answer that is not wanted" in refusal({**row, "label": 0})
    assert noted({**PLAIN, "label": 0}) == set()  # the number of a class


@pytest.mark.parametrize(
    "image",
    [{"bytes": "<1,234 bytes>", "path": None}, "coco/000000033471.jpg", ["a.png"], "data:image/png;base64,AAAA"],
)
def test_a_record_with_an_image_is_refused_and_its_placeholder_alone_is_said(image: Any) -> None:
    for column in ("image", "images"):
        assert refusal({**PLAIN, column: image}).startswith(f"`{column}` holds an image or sound")
        assert noted({**PLAIN, column: None}) == noted({**PLAIN, column: []}) == set()
    assert noted({**PLAIN, "image": "nginx"}) == set()
    assert noted({"instruction": "<image>\nWhat is it?", "output": SAID}) == {("placeholder", "<image>")}


def test_a_mark_on_a_whole_record_is_not_read_and_said() -> None:
    for mark in ({"train": False}, {"loss": "false"}, {"masked": True}):
        assert noted({**PLAIN, **mark}) == {("mark_on_record", next(iter(mark)))}
    assert noted({**PLAIN, "train": True}) == set()


def test_nan_is_an_empty_cell_also_where_python_gives_it() -> None:
    assert read({**PLAIN, "input": float("nan"), "context": GIVEN}).conversation.turns == (Turn(ASKED, GIVEN, SAID),)
    assert refusal({"instruction": ASKED, "output": float("nan")}) == "`output` is null, expected text"


def test_a_reason_names_the_column_that_the_user_has() -> None:
    assert refusal({"instruction": ASKED, "answer": ["x"]}) == "`answer` (our `output`) is a list, expected text"
    assert refusal({"talk": [CHAT[0]]}).startswith("the last message is the user's")


def test_messages_under_prompt_and_another_name_of_the_completion_are_read_together() -> None:
    assert read({"prompt": CHAT[:1], "response": CHAT[1:]}).conversation.turns == (Turn(ASKED, "", SAID),)
    pair = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}
    assert "data.columns=completion=chosen" in refusal(pair)
    assert read(pair, completion="chosen").conversation.turns == (Turn(ASKED, "", SAID),)


def test_numbers_and_truth_values_are_the_texts_that_csv_gives_for_them() -> None:
    for value, text in ((1, "1"), (0, "0"), (3.5, "3.5"), (True, "true"), (-2, "-2"), (10**20, "1" + "0" * 20)):
        row = {"instruction": ASKED, "input": value, "output": value}
        assert read(row).conversation.turns == (Turn(ASKED, text, text),)
        assert noted(row) == {("numbers", "input"), ("numbers", "output")}
    assert noted({"q": ASKED, "a": 5}, instruction="q", output="a") == {("numbers", "a")}


@given(st.text(max_size=40))
def test_whether_a_value_is_text_never_raises_and_one_word_is_none(text: str) -> None:
    assert is_prose(text) in (True, False)
    assert not is_prose("".join(character for character in text if character.isascii() and character.isalnum()))


@given(st.text(alphabet=st.sampled_from("aeÄж1_-. \n\t\x1c\u00a0\u3000中あ한"), max_size=40))
def test_two_words_are_what_one_pattern_for_both_finds(text: str) -> None:
    both = r"[^\W\d_]{2}\S*\s+\S*[^\W\d_]{2}|[\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7af]{8}"
    assert is_prose(text) == (re.search(both, text) is not None)


def test_how_a_record_was_made_is_no_text_that_was_forgotten() -> None:
    made = {"kind": "instructions", "model": "ollama/x", "original": {"output": "a text of several words"}}
    row = {
        "instruction": "Name a river.",
        "output": "The Nile.",
        "tuneful_metadata": made,
        "remark": "of several words",
    }
    found = FormatReader("auto", None).read(row, "a.jsonl:1")
    assert not isinstance(found, str)
    assert [key.name for key in found.noted.counts] == ["`remark`"]
