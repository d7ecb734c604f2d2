"""Preference pairs in the shapes in which people write them, and records with a label: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneful.config import DataConfig
from tuneful.data.formats import FormatReader
from tuneful.data.pairs import open_reader, record_texts
from tuneful.data.read import DataFile, read_data
from tuneful.errors import ConfigError, DataError
from tuneful.types import Conversation, Turn

ASK, GOOD, BAD = "Why is the sky blue?", "It scatters light.", "It is painted."
OBJECTIVES = ("dpo", "orpo", "simpo", "cpo")


def user(text: str = ASK) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str = GOOD) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def human(text: str = ASK) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str = GOOD) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def read(row: Any, objective: str = "dpo", columns: dict[str, str] | None = None, format: str = "auto") -> Any:
    return open_reader(format, columns, objective).read(row, "a:1")


def refusal(row: Any, objective: str = "dpo", columns: dict[str, str] | None = None) -> str:
    found = read(row, objective, columns)
    assert isinstance(found, str), found
    return found


def sides(row: Any, **options: Any) -> tuple[Conversation, Conversation]:
    found = read(row, **options)
    assert not isinstance(found, str), found
    assert found.conversation.rejected is not None
    return found.conversation, found.conversation.rejected


CHAT = [{"role": "system", "content": "Be brief."}, user("Hi"), bot("Hello"), user()]
TRANSCRIPT = f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {ASK}\n\nAssistant:"
SINGLE: dict[str, Any] = {
    "texts": {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    "question": {"question": ASK, "chosen": GOOD, "rejected": BAD},
    "the book's": {"instruction": ASK, "input": "", "output": "Another.", "chosen": GOOD, "rejected": BAD},
    "the book's, output chosen": {"instruction": ASK, "input": "", "output": GOOD, "rejected": BAD},
    "answers as messages": {"prompt": ASK, "chosen": [bot()], "rejected": [bot(BAD)]},
    "messages": {"prompt": [user()], "chosen": [bot()], "rejected": [bot(BAD)]},
    "messages and texts": {"prompt": [user()], "chosen": GOOD, "rejected": BAD},
    "whole conversations": {"chosen": [user(), bot()], "rejected": [user(), bot(BAD)]},
    "UltraFeedback's": {
        "prompt": ASK,
        "prompt_id": "x",
        "messages": [user(), bot()],
        "chosen": [user(), bot()],
        "rejected": [user(), bot(BAD)],
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    },
    "LLaMA-Factory's": {"conversations": [human()], "chosen": gpt(), "rejected": gpt(BAD)},
    "ms-swift's": {"messages": [user(), bot()], "rejected_response": BAD},
    "ms-swift's of messages": {"messages": [user(), bot()], "rejected_messages": [user(), bot(BAD)]},
    "OpenAI's": {
        "input": {"messages": [user()], "tools": []},
        "preferred_output": [bot()],
        "non_preferred_output": [bot(BAD)],
    },
    "JSON texts of a table": {
        "prompt": json.dumps([user()]),
        "chosen": json.dumps([bot()]),
        "rejected": json.dumps([bot(BAD)]),
    },
    "columns of a table": {
        "chosen": {"role": ["user", "assistant"], "content": [ASK, GOOD]},
        "rejected": {"role": ["user", "assistant"], "content": [ASK, BAD]},
    },
}
SEVERAL: dict[str, Any] = {
    "messages": {"prompt": CHAT, "chosen": [bot()], "rejected": [bot(BAD)]},
    "whole conversations": {"chosen": [*CHAT, bot()], "rejected": [*CHAT, bot(BAD)]},
    "prompt and whole conversations": {"prompt": CHAT, "chosen": [*CHAT, bot()], "rejected": [*CHAT, bot(BAD)]},
    "transcripts": {"system": "Be brief.", "chosen": f"{TRANSCRIPT} {GOOD}", "rejected": f"{TRANSCRIPT} {BAD}"},
    "transcript and answers": {
        "system": "Be brief.",
        "prompt": TRANSCRIPT,
        "chosen": f" {GOOD}",
        "rejected": f" {BAD}",
    },
    "ShareGPT's": {
        "system": "Be brief.",
        "conversations": [human("Hi"), gpt("Hello"), human()],
        "chosen": gpt(),
        "rejected": gpt(BAD),
    },
    "one side whole": {"chosen": [*CHAT, bot()], "rejected": BAD},
}


@pytest.mark.parametrize("shape", SINGLE)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_shape_of_one_question_is_the_same_pair(shape: str, objective: str) -> None:
    chosen, rejected = sides(SINGLE[shape], objective=objective)
    assert chosen.system == rejected.system == ""
    assert chosen.turns == (Turn(ASK, "", GOOD),)
    assert rejected.turns == (Turn(ASK, "", BAD),)
    assert chosen.source == rejected.source == "a:1"


@pytest.mark.parametrize("shape", SEVERAL)
def test_every_shape_of_several_turns_is_the_same_pair_whose_earlier_answers_are_context(shape: str) -> None:
    chosen, rejected = sides(SEVERAL[shape])
    assert chosen.system == rejected.system == "Be brief."
    assert [(turn.instruction, turn.response.strip(), turn.weight) for turn in chosen.turns] == [
        ("Hi", "Hello", 0),
        (ASK, GOOD, 1),
    ]
    assert [turn.response.strip() for turn in rejected.turns] == ["Hello", BAD]


@pytest.mark.parametrize("shape", SINGLE)
def test_the_chosen_side_is_what_the_same_record_means_without_its_rejected_one(shape: str) -> None:
    chosen, _ = sides(SINGLE[shape])
    plain = FormatReader("auto", None).read({"instruction": ASK, "output": GOOD}, "a:1")
    assert not isinstance(plain, str)
    assert (chosen.system, chosen.turns, chosen.weight) == ("", plain.conversation.turns, plain.conversation.weight)


@pytest.mark.parametrize("shape", [*SINGLE, *SEVERAL])
def test_sft_refuses_a_pair_and_names_the_objective_and_the_columns(shape: str) -> None:
    row = {**SEVERAL, **SINGLE}[shape]
    found = refusal(row, "sft")
    assert "train.objective=dpo" in found
    assert "data.columns=" in found
    assert "preference pair" in found


@pytest.mark.parametrize("key", ["prompt", "instruction", "question"])
def test_system_input_and_weight_go_with_both_sides(key: str) -> None:
    row = {key: ASK, "input": "Noon.", "system": "Be brief.", "chosen": GOOD, "rejected": BAD, "w": "2.5"}
    chosen, rejected = sides(row, columns={"weight": "w"})
    for side, answer in ((chosen, GOOD), (rejected, BAD)):
        assert (side.system, side.turns, side.weight) == ("Be brief.", (Turn(ASK, "Noon.", answer),), 2.5)


def test_columns_name_the_fields_of_a_pair() -> None:
    row = {"q": ASK, "good": GOOD, "bad": BAD, "chosen": "not this"}
    columns = {"instruction": "q", "chosen": "good", "rejected": "bad"}
    chosen, rejected = sides(row, columns=columns)
    assert (chosen.turns[0].response, rejected.turns[0].response) == (GOOD, BAD)
    chosen, rejected = sides(
        {"q": ASK, "good": GOOD, "bad": BAD}, columns={"prompt": "q", "completion": "good", "rejected": "bad"}
    )
    assert (chosen.turns[0].response, rejected.turns[0].response) == (GOOD, BAD)
    chosen, rejected = sides({"talk": [user()], "chosen": GOOD, "rejected": BAD}, columns={"messages": "talk"})
    assert chosen.turns == (Turn(ASK, "", GOOD),)


@pytest.mark.parametrize("format", ["alpaca", "messages", "sharegpt", "prompt-completion", "question-answer"])
def test_a_format_that_is_named_reads_its_pairs(format: str) -> None:
    rows = {
        "alpaca": SINGLE["the book's"],
        "messages": SINGLE["whole conversations"],
        "sharegpt": SINGLE["LLaMA-Factory's"],
        "prompt-completion": SINGLE["messages"],
        "question-answer": SINGLE["question"],
    }
    chosen, rejected = sides(rows[format], format=format)
    assert (chosen.turns, rejected.turns) == ((Turn(ASK, "", GOOD),), (Turn(ASK, "", BAD),))


def test_sides_that_part_at_an_earlier_answer_are_trained_from_there() -> None:
    chosen, rejected = sides(
        {
            "chosen": [user("1"), bot("a"), user("2"), bot("b"), user("3"), bot("c")],
            "rejected": [user("1"), bot("a"), user("2"), bot("x"), user("4"), bot("y")],
        }
    )
    assert [turn.weight for turn in chosen.turns] == [0, 1, 1]
    assert [turn.weight for turn in rejected.turns] == [0, 1, 1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ASK, "chosen": GOOD, "rejected": " "}, "`rejected` is empty: a pair needs two answers"),
        ({"prompt": ASK, "chosen": None, "rejected": BAD}, "`chosen` is empty"),
        ({"prompt": ASK, "chosen": [user(), bot("")], "rejected": [user(), bot()]}, "`chosen` is empty"),
        ({"prompt": ASK, "chosen": GOOD}, "no `rejected` beside `chosen`"),
        ({"prompt": ASK, "rejected": GOOD}, "no `chosen` beside `rejected`"),
        ({"prompt": "", "chosen": GOOD, "rejected": BAD}, "nothing is asked"),
        ({"chosen": GOOD, "rejected": BAD}, "nothing says what is asked"),
        ({"chosen": [user("1"), bot()], "rejected": [user("2"), bot()]}, "differ in what is asked, at question 1"),
        ({"chosen": [CHAT[0], user(), bot()], "rejected": [user(), bot(BAD)]}, "differ in their system text"),
        (
            {"messages": [user("x"), bot("y")], "chosen": [user(), bot()], "rejected": [user(), bot(BAD)]},
            "`messages` and `chosen` are two conversations",
        ),
        (
            {"messages": [user(), bot("x")], "chosen": GOOD, "rejected": BAD},
            "`messages` ends with an answer of its own",
        ),
        ({"prompt": ASK, "chosen": GOOD, "rejected": "a\ud800"}, "`rejected` holds a lone surrogate"),
        ({"instruction": ASK, "output": GOOD}, "no pair of `chosen` and `rejected`, which train.objective=dpo"),
        ({"prompt": ASK, "completion": GOOD, "label": True}, "train.objective=kto"),
        ({"chosen": [user(), bot(), user()], "rejected": [user(), {"role": "tool", "content": "x"}]}, "`rejected`: "),
        (["a"], "expected a record such as"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_reason(row: Any, said: str) -> None:
    assert said in refusal(row)


def calls(city: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"name": "look", "arguments": {"city": city}}]}


def function_call(city: str) -> dict[str, str]:
    return {"from": "function_call", "value": json.dumps({"name": "look", "arguments": {"city": city}})}


CALLING: dict[str, Any] = {
    "answers": {"prompt": [user()], "chosen": [calls("Rome")], "rejected": [calls("Oslo")]},
    "single messages": {"prompt": [user()], "chosen": calls("Rome"), "rejected": calls("Oslo")},
    "one of them a text": {"prompt": [user()], "chosen": [calls("Rome")], "rejected": BAD},
    "whole conversations": {"chosen": [user(), calls("Rome")], "rejected": [user(), calls("Oslo")]},
    "OpenAI's": {
        "input": {"messages": [user()]},
        "preferred_output": [calls("Rome")],
        "non_preferred_output": [calls("Oslo")],
    },
    "ms-swift's": {"messages": [user(), calls("Rome")], "rejected_messages": [user(), calls("Oslo")]},
    "the chosen one told twice": {"messages": [user(), calls("Rome")], "chosen": [calls("Rome")], "rejected": BAD},
    "ShareGPT's": {"conversations": [human()], "chosen": function_call("Rome"), "rejected": function_call("Oslo")},
    "ShareGPT's, whole": {
        "chosen": [human(), function_call("Rome")],
        "rejected": [human(), function_call("Oslo")],
    },
}


@pytest.mark.parametrize("shape", CALLING)
def test_an_answer_that_is_a_call_of_a_tool_is_no_empty_one(shape: str) -> None:
    chosen, rejected = sides(CALLING[shape])
    assert [turn.instruction for turn in chosen.turns] == [turn.instruction for turn in rejected.turns] == [ASK]
    assert [call.arguments for call in chosen.turns[-1].calls] == ['{"city": "Rome"}']
    assert not chosen.turns[-1].response
    other = rejected.turns[-1]
    assert (other.response, *(call.arguments for call in other.calls)) in ((BAD,), ("", '{"city": "Oslo"}'))


@pytest.mark.parametrize("calling", [[], None, ""])
def test_an_answer_without_text_and_calls_is_empty(calling: Any) -> None:
    nothing = {"role": "assistant", "content": None, "tool_calls": calling}
    assert "`rejected` is empty" in refusal({"prompt": [user()], "chosen": GOOD, "rejected": [nothing]})


def test_columns_of_messages_of_unlike_lengths_are_refused_and_no_message_is_lost() -> None:
    columns = {"role": ["user", "assistant", "user"], "content": [ASK, GOOD]}
    assert "unlike lengths" in refusal({"chosen": columns, "rejected": [user(), bot(BAD)]})
    assert "unlike lengths" in refusal({"messages": columns, "chosen": GOOD, "rejected": BAD})


@pytest.mark.parametrize(("role", "text"), [("role", "text"), ("speaker", "text"), ("author", "message")])
def test_messages_of_a_pair_may_have_any_keys_that_those_of_a_record_may(role: str, text: str) -> None:
    asked, good, bad = ({role: who, text: said} for who, said in (("user", ASK), ("assistant", GOOD), ("bot", BAD)))
    rows: list[Any] = [
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"messages": [asked], "chosen": good, "rejected": bad},
        {"chosen": [asked, good], "rejected": [asked, bad]},
    ]
    for row in rows:
        chosen, rejected = sides(row)
        assert (chosen.turns, rejected.turns) == ((Turn(ASK, "", GOOD),), (Turn(ASK, "", BAD),))


def test_equal_sides_are_a_pair_that_the_audit_names() -> None:
    chosen, rejected = sides({"prompt": ASK, "chosen": GOOD, "rejected": GOOD})
    assert chosen.turns == rejected.turns


def test_an_answer_that_is_not_used_is_said() -> None:
    found = read(SINGLE["the book's"] | {"output": "One more answer of many words."})
    assert [(key.kind, key.name) for key in found.noted.counts] == [("unused_text", "`output`")]
    assert not read(SINGLE["the book's, output chosen"]).noted.counts
    assert not read(SINGLE["UltraFeedback's"]).noted.counts


def test_an_answer_in_json_stays_a_text() -> None:
    chosen, rejected = sides({"prompt": ASK, "chosen": '{"a": 1}', "rejected": "[1, 2]"})
    assert (chosen.turns[0].response, rejected.turns[0].response) == ('{"a": 1}', "[1, 2]")


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("1", True),
        ("0.0", False),
        (1.0, True),
        ("FALSE", False),
        ("yes", True),
    ],
)
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_label_says_whether_the_answer_is_wanted(label: Any, wanted: bool, key: str) -> None:
    found = read({"prompt": ASK, "completion": GOOD, key: label}, "kto")
    assert found.conversation == Conversation("", (Turn(ASK, "", GOOD),), "a:1", label=wanted)


def test_labels_go_with_every_format_and_only_the_last_answer_is_meant() -> None:
    found = read({"messages": [*CHAT, bot()], "good": "0"}, "kto", {"label": "good"})
    assert found.conversation.label is False
    assert [turn.weight for turn in found.conversation.turns] == [0, 1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ASK, "completion": GOOD}, "no `label`"),
        ({"prompt": ASK, "completion": GOOD, "label": 2}, "`label` is `2`, expected true or false"),
        ({"prompt": ASK, "completion": GOOD, "label": None}, "`label` is null"),
        ({"prompt": ASK, "completion": "", "label": 1}, "`completion` is empty"),
    ],
)
def test_what_has_no_label_is_refused_under_kto(row: Any, said: str) -> None:
    assert said in refusal(row, "kto")


def written(folder: Path, rows: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_file(path: str, objective: str) -> DataFile:
    return read_data(path, DataConfig(on_error="skip"), objective=objective)


@pytest.mark.parametrize("shape", [*SINGLE, *SEVERAL])
def test_kto_takes_a_pair_as_a_wanted_and_an_unwanted_record(tmp_path: Path, shape: str) -> None:
    row = {**SEVERAL, **SINGLE}[shape]
    pair = sides(row)
    file = read_file(written(tmp_path, [row]), "kto")
    assert [record.conversation.label for record in file.records] == [True, False]
    for record, side in zip(file.records, pair, strict=True):
        assert record.conversation.turns == side.turns
        assert record.conversation.system == side.system
        assert read(record.raw, "kto").conversation.turns == side.turns  # as a run writes it down and reads it again
    assert [record.source.rpartition(" ")[2] for record in file.records] == ["(chosen)", "(rejected)"]


def test_rows_read_are_rows_used_and_refused(tmp_path: Path) -> None:
    rows = [
        SINGLE["texts"],
        {"prompt": ASK, "completion": GOOD, "label": 1},
        {"prompt": ASK, "chosen": GOOD, "rejected": ""},
    ]
    path = written(tmp_path, rows)
    for objective, used, refused in (("dpo", 1, 2), ("kto", 3, 1), ("sft", 1, 2)):
        file = read_file(path, objective)
        assert (len(file.records), len(file.refused)) == (used, refused), objective
    assert read_file(path, "dpo").format == "prompt-completion pairs"


def test_pairs_of_csv_and_parquet_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\n{ASK},{GOOD},{BAD}\n")
    pq.write_table(pa.Table.from_pylist([SINGLE["UltraFeedback's"]]), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(SINGLE["whole conversations"], indent=1))
    for name in ("a.csv", "a.parquet", "a.json"):
        (record,) = read_data(str(tmp_path / name), objective="dpo").records
        assert record.conversation.rejected is not None, name
        assert record.conversation.rejected.turns == (Turn(ASK, "", BAD),)


def test_fields_of_a_pair_are_refused_as_columns_under_sft() -> None:
    with pytest.raises(ConfigError, match=r"`chosen` and `rejected` are fields of preferences: train\.objective=dpo"):
        open_reader("auto", {"chosen": "a", "rejected": "b"}, "sft")


def test_a_pair_stops_a_run_of_sft_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*train\.objective=dpo"):
        read_data(written(tmp_path, [SINGLE["texts"]]))


@pytest.mark.parametrize("shape", [*SINGLE, *SEVERAL])
def test_a_report_shows_the_chosen_answer_as_the_reference(shape: str) -> None:
    texts = record_texts({**SEVERAL, **SINGLE}[shape])
    assert texts.asked == ASK
    assert texts.reference.strip() == GOOD


def test_questions_are_read_under_the_columns_of_pairs_which_are_no_answers_of_theirs() -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    reader = open_reader("auto", columns, "dpo", asks=True)
    for row in ({"q": ASK, "good": GOOD, "bad": BAD}, {"q": ASK}):
        found = reader.read(row, "a:1")
        assert not isinstance(found, str), found
        assert found.conversation.turns[0].instruction == ASK
        assert not found.noted.counts
