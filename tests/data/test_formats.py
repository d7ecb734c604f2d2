"""Formats: every way to write a conversation gives the same turns, and what cannot be trained as meant is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from tuneful.config import DataConfig, load_config
from tuneful.config.names import COLUMN_FIELDS
from tuneful.data.columns import LABELS, WEIGHT
from tuneful.data.formats import FORMATS, TEXT_REASON, FormatReader, record_texts
from tuneful.errors import ConfigError
from tuneful.types import Turn


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


def read(row: Any, format: str = "auto", columns: dict[str, str] | None = None) -> Any:
    found = FormatReader(format, columns).read(row, "a.jsonl:1")
    if isinstance(found, str):
        return found
    return found.format, found.conversation.system, found.conversation.turns


def notes(row: Any, columns: dict[str, str] | None = None) -> dict[tuple[str, str], int]:
    """How often each kind of note was taken of what, by its kind and name."""
    found = FormatReader("auto", columns).read(row, "a.jsonl:1")
    assert not isinstance(found, str), found
    return {(key.kind, key.name.strip("`")): count for key, count in found.noted.counts.items()}


ONE = Turn("Ask.", "", "Answer.")
CHAT = [message("user", "Ask."), message("assistant", "Answer.")]
GIVEN = Turn("Ask.", "This.", "Answer.")

SAME: dict[str, tuple[dict[str, Any], str, str, tuple[Turn, ...]]] = {
    "alpaca": ({"instruction": "Ask.", "output": "Answer."}, "alpaca", "", (ONE,)),
    "alpaca, whole": (
        {
            "instruction": "Ask.",
            "input": "This.",
            "output": "Answer.",
            "system": "Be.",
            "history": [["1?", "1."], ["2?", "2."]],
            "id": 7,
        },
        "alpaca",
        "Be.",
        (Turn("1?", "", "1."), Turn("2?", "", "2."), GIVEN),
    ),
    "alpaca with nulls": (
        {"instruction": "Ask.", "input": None, "output": "Answer.", "system": None, "history": None},
        "alpaca",
        "",
        (ONE,),
    ),
    "alpaca with its rendered text": (
        {"instruction": "Ask.", "output": "Answer.", "text": "..."},
        "alpaca",
        "",
        (ONE,),
    ),
    "dolly": ({"instruction": "Ask.", "context": "This.", "response": "Answer."}, "dolly", "", (GIVEN,)),
    "question and answer": ({"question": "Ask.", "answer": "Answer."}, "question-answer", "", (ONE,)),
    "question, context and answer": (
        {"question": "Ask.", "context": "This.", "answer": "Answer."},
        "question-answer",
        "",
        (GIVEN,),
    ),
    "prompt and completion": ({"prompt": "Ask.", "completion": "Answer."}, "prompt-completion", "", (ONE,)),
    "prompt and completion of messages": (
        {"prompt": [message("system", "Be."), CHAT[0]], "completion": [CHAT[1]]},
        "prompt-completion",
        "Be.",
        (ONE,),
    ),
    "messages": ({"messages": CHAT, "prompt": "x", "tools": []}, "messages", "", (ONE,)),
    "messages of several turns": (
        {"messages": [message("developer", "Be."), *CHAT, message("user", "?", name="Ann"), message("assistant", "!")]},
        "messages",
        "Be.",
        (ONE, Turn("?", "", "!")),
    ),
    "messages with unused keys": (
        {"messages": [CHAT[0], message("assistant", "Answer.", tool_calls=None, refusal=None, weight=1)]},
        "messages",
        "",
        (ONE,),
    ),
    "messages of one part": (
        {"messages": [message("user", [{"type": "text", "text": "Ask."}]), CHAT[1]]},
        "messages",
        "",
        (ONE,),
    ),
    "messages in columns": (
        {"messages": {"role": ["user", "assistant"], "content": ["Ask.", "Answer."]}},
        "messages",
        "",
        (ONE,),
    ),
    "sharegpt": (
        {"conversations": [said("human", "Ask."), said("gpt", "Answer.")], "system": "Be."},
        "sharegpt",
        "Be.",
        (ONE,),
    ),
    "sharegpt with a system": (
        {"conversations": [said("system", "Be."), said("human", "Ask."), said("gpt", "Answer.")]},
        "sharegpt",
        "Be.",
        (ONE,),
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_every_format_is_told_by_its_keys_and_gives_its_turns(what: str) -> None:
    row, format, system, turns = SAME[what]
    assert read(row) == (format, system, turns)
    assert read(row, format) == (format, system, turns)


def test_every_format_has_an_example() -> None:
    assert {format for _, format, _, _ in SAME.values()} == {format.name for format in FORMATS}


def test_every_format_is_a_choice_of_the_configuration_and_a_row_of_the_page() -> None:
    choices = get_args(DataConfig.model_fields["format"].annotation)
    assert set(choices) == {"auto", "text", *(format.name for format in FORMATS)}
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert "| `text` | `text`: a document" in page
    for format in FORMATS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{format.name}` |"))
        assert all(f"`{need}`" in row for need in format.needs), row


@pytest.mark.parametrize("what", SAME)
def test_a_record_of_any_format_is_shown_as_it_is_read(what: str) -> None:
    row, _, system, turns = SAME[what]
    texts = record_texts(row)
    assert (texts.asked, texts.input, texts.reference) == (turns[-1].instruction, turns[-1].input, turns[-1].response)
    if texts.turns:
        assert texts.turns[-1] == ("user", texts.asked)
        assert len(texts.turns) in (2 * len(turns) - 1, 2 * len(turns) - 1 + bool(system))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, ("", "", "", ())),
        ({"instruction": "Ask.", "input": "This."}, ("Ask.", "This.", "", ())),
        ({"question": None, "answer": 5}, ("", "", "5", ())),
        ({"messages": None}, ("", "", "", ())),
        ({"messages": [CHAT[0], 5, {"content": "?"}]}, ("?", "", "", (("user", "Ask."), ("", "?")))),
        ({"conversations": [said("gpt", "Answer.")]}, ("", "", "Answer.", ())),
        ({"prompt": "Ask.", "chosen": "a", "rejected": "b"}, ("Ask.", "", "", ())),
    ],
)
def test_of_a_record_that_cannot_be_used_what_is_there_is_shown(row: dict[str, Any], expected: Any) -> None:
    texts = record_texts(row)
    assert (texts.asked, texts.input, texts.reference, texts.turns) == expected


def test_rows_of_different_formats_are_told_one_by_one() -> None:
    reader = FormatReader("auto", None)
    found = [reader.read(row, "x") for row, *_ in SAME.values()]
    assert [one.format for one in found if not isinstance(one, str)] == [format for _, format, *_ in SAME.values()]


def with_message(entry: Any) -> dict[str, Any]:
    return {"messages": [CHAT[0], entry]}


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "a finished text": ({"text": "a"}, TEXT_REASON),
    "two columns of a spreadsheet": (
        {"Frage": "a", "Antwort": "b"},
        "no instruction and answer known by name; keys are `Frage`, `Antwort`. Name yours: "
        "data.columns=instruction=Frage,output=Antwort",
    ),
    "a text with its label": (
        {"text": "a", "Label": "b"},
        f"{TEXT_REASON}. To learn the label: data.columns=instruction=text,output=Label",
    ),
    "a preference pair": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference pair (`chosen`, `rejected`)"),
    "a bare preference pair": ({"chosen": "b", "rejected": "c"}, "a preference pair (`chosen`, `rejected`)"),
    "other names": (
        {"Query": "a", "target": "b"},
        "no instruction and answer known by name; keys are `Query`, `target`. Name yours: "
        "data.columns=instruction=Query,output=target",
    ),
    "half of other names": (
        {"query": "a", "response": "b"},
        "no `instruction`; found `query`: data.columns=instruction=query",
    ),
    "a tool call": (
        with_message(message("assistant", "", tool_calls=[{}])),
        "`tool_calls` of message 2 has no `name`",
    ),
    "a tool": (with_message(message("tool", "4")), "message 2 is what a tool answered, and nothing of the assistant's"),
    "an observation": ({"conversations": [said("observation", "4")]}, "message 1 is what a tool answered"),
    "offered tools": ({"messages": CHAT, "tools": "a hammer"}, "`tools` is text, expected a list of tools"),
    "an image": (
        with_message(message("assistant", [{"type": "text", "text": "a"}, {"type": "image_url"}])),
        "message 2 has a part of type `image_url`; only one text is trained",
    ),
    "two parts": (with_message(message("assistant", [{"type": "text", "text": "a"}] * 2)), "message 2 has 2 parts"),
    "thinking": (
        with_message(message("assistant", "a", reasoning_content="b", thinking="c")),
        "message 2 has two different thoughts: `reasoning_content` and `thinking`",
    ),
    "an empty message": (with_message(message("assistant", " ")), "message 2, the assistant's, is empty"),
    "no content": (with_message({"role": "assistant"}), "message 2 has no `content`; keys are `role`"),
    "no role": (with_message({"content": "a"}), "message 2 has no `role`; keys are `content`"),
    "a role that is no text": (with_message(message(5, "a")), "message 2 is by a number"),  # type: ignore[arg-type]
    "a message that is text": (with_message("a"), "message 2 is text, expected {'role'"),
    "null content": (with_message(message("assistant", None)), "`content` of message 2 is null, expected text"),
    "a lone surrogate": (with_message(message("assistant", "\ud800")), "`content` of message 2 holds a lone surrogate"),
    "a late system": ({"messages": [*CHAT, message("system", "x")]}, "message 3 is a `system` message"),
    "two systems": ({"system": "a", "messages": [message("system", "b"), *CHAT]}, "`system` and the first message"),
    "a greeting alone": (
        {"messages": CHAT[1:]},
        "there is no message of the assistant's that answers one of the user's",
    ),
    "no answer": ({"messages": [CHAT[0], CHAT[0]]}, "the last message is the user's: there is no answer to learn"),
    "a system alone": ({"messages": [message("system", "a")]}, "there is no message of the assistant's"),
    "no messages": ({"messages": []}, "there is no message of the assistant's"),
    "messages as text": ({"messages": "Hi."}, "`messages` is text, expected a list of messages"),
    "a history of texts": ({"instruction": "a", "output": "b", "history": ["c"]}, "`history` 1 is no pair"),
    "a half empty history": (
        {"instruction": "a", "output": "b", "history": [["c", ""]]},
        "`history` 1 has an empty half",
    ),
    "a history of numbers": (
        {"instruction": "a", "output": "b", "history": [["c", {}]]},
        "`history` 1 is an object, expected text",
    ),
    "a history that is text": (
        {"instruction": "a", "output": "b", "history": "c"},
        "`history` is text, expected a list",
    ),
    "a prompt of two kinds": ({"prompt": "a", "completion": CHAT}, "`prompt` and `completion` are a text and a list"),
    "an empty prompt": ({"prompt": " ", "completion": "a"}, "`prompt` and `input` are both empty: nothing is asked"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_cannot_be_trained_as_it_was_meant_is_refused_by_name(what: str) -> None:
    row, reason = UNFIT[what]
    assert read(row).startswith(reason), read(row)


def test_a_format_that_is_named_is_the_only_one() -> None:
    row = {"instruction": "a", "output": "b", "messages": CHAT}
    assert read(row)[0] == "messages"
    assert read(row, "alpaca")[0] == "alpaca"
    assert (
        read({"query": "a", "completion": "b"}, "alpaca")
        == "no `instruction`; found `query`: data.columns=instruction=query"
    )


def test_columns_read_a_field_from_another_name() -> None:
    columns = {"instruction": "input", "output": "target"}
    assert read({"input": "Ask.", "target": "Answer."}, columns=columns) == ("alpaca", "", (ONE,))
    swapped = {"instruction": "output", "output": "instruction"}
    assert read({"instruction": "Answer.", "output": "Ask."}, columns=swapped) == ("alpaca", "", (ONE,))
    assert read({"chat": CHAT, "instruction": "x", "output": "y"}, columns={"messages": "chat"}) == (
        "messages",
        "",
        (ONE,),
    )


def test_reasons_speak_of_the_columns_that_were_mapped() -> None:
    columns = {"instruction": "q", "output": "a"}
    assert (
        read({"q": "x", "b": "y"}, columns=columns)
        == "no `a`, which data.columns names for `output`; keys are `q`, `b`"
    )
    assert read({"q": "x", "a": ["y"]}, columns=columns) == "`a` (our `output`) is a list, expected text"


@pytest.mark.parametrize(
    "given", ["{instruction: q, output: 0}", "instruction=q,output=0", "instruction = q , output = 0"]
)
def test_columns_are_given_as_yaml_or_as_pairs(given: str) -> None:
    assert load_config(None, [f"data.columns={given}"]).data.columns == {"instruction": "q", "output": "0"}


def test_columns_that_are_divided_by_spaces_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="expected commas between the pairs, as in instruction=question,output=answer"
    ):
        load_config(None, ["data.columns=instruction=text output=label"])
    named = load_config(None, ["data.columns=instruction=a b,output=1 + x=2"]).data.columns
    assert named == {"instruction": "a b", "output": "1 + x=2"}


@pytest.mark.parametrize("given", ["q", "5", "[a]", "{a: null}", "{a: [b]}", "a=b,a=c", "a=", "true"])
def test_columns_that_are_no_pairs_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"data.columns"):
        load_config(None, [f"data.columns={given}"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"instruction": "q", "answer": "a"}, "instruction=q,output=a"),
        ({"question": "q", "output": "a", "weight": "w"}, "instruction=q,output=a,weight=w"),
        ({"question": "q", "response": "a", "input": "i"}, "instruction=q,output=a,input=i"),
    ],
)
def test_columns_named_after_two_formats_are_refused_with_the_names_of_one(given: dict[str, str], meant: str) -> None:
    with pytest.raises(
        ConfigError, match=f"are not fields of one format. With the names of one: data.columns={meant}$"
    ):
        FormatReader("auto", given)
    assert load_config(None, [f"data.columns={meant}"]).data.columns is not None
    FormatReader("auto", dict(one.split("=") for one in meant.split(",")))


def test_every_field_of_a_record_is_known_to_the_settings_as_one() -> None:
    fields = {name for one in FORMATS for name in one.fields}
    assert fields | {WEIGHT, LABELS[0], "chosen", "rejected"} <= COLUMN_FIELDS


def test_columns_of_no_format_and_the_format_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`answer`, `output` are not fields of one format"):
        FormatReader("auto", {"answer": "a", "output": "b"})
    with pytest.raises(ConfigError, match=r"does not say which part of it is the response"):
        load_config(None, ["data.format=text"])


@pytest.mark.parametrize(("given", "weight"), [(2, 2.0), (0.5, 0.5), ("0.25", 0.25), (None, 1.0), ("", 1.0)])
def test_a_record_of_any_format_may_have_a_weight(given: Any, weight: float) -> None:
    for fields in ({"instruction": "Ask.", "output": "Answer."}, {"messages": CHAT}):
        for column in ("weight", "times"):
            row = {**fields, "weight": 7, column: given}
            found = FormatReader("auto", {"weight": column}).read(row, "a.jsonl:1")
            assert not isinstance(found, str)
            assert found.conversation.weight == weight


def test_a_column_called_weight_does_not_weigh_the_loss_unless_it_is_asked_for() -> None:
    row = {"instruction": "Describe the anchor.", "output": "It weighs 12 kg.", "weight": "12"}
    found = FormatReader("auto", None).read(row, "a.csv:2")
    assert not isinstance(found, str)
    assert found.conversation.weight == 1
    assert notes(row) == {("weight_not_asked", "weight"): 1}
    assert notes(row, {"weight": "weight"}) == {}
    assert notes({**row, "weight": "heavy"}) == notes({**row, "weight": ""}) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "`weight` is 0: nothing of the record would count"),
        (-1, "`weight` is -1, expected a number from 0.001 to 1000"),
        (10**400, "expected a number"),
        ("nan", "`weight` is nan, expected a number"),
        ("much", "`weight` is much, expected a number"),
        (True, "`weight` is true or false, expected a number"),
        ([1], "`weight` is a list, expected a number"),
    ],
)
def test_a_weight_that_is_none_is_refused(given: Any, said: str) -> None:
    row = {"instruction": "Ask.", "output": "Answer.", "weight": given}
    found = FormatReader("auto", {"weight": "weight"}).read(row, "a.jsonl:1")
    assert isinstance(found, str)
    assert said in found
