"""Messages: every shape gives the same turns, marks are obeyed in every spelling, and what is not trained is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.formats import FormatReader, ReadRow, record_texts
from tuneful.data.turns import UNANSWERED
from tuneful.types import Turn

A, B, C, D = "Where may I moor?", "At pier 4.", "And at night?", "At pier 5."
TWO = (Turn(A, "", B), Turn(C, "", D))


def user(text: Any = A, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def bot(text: Any = B, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def read(row: dict[str, Any], *, asks: bool = False, **columns: str) -> ReadRow:
    found = FormatReader("auto", columns or None, asks=asks).read(row, "a.jsonl:1")
    assert isinstance(found, ReadRow), found
    return found


def refusal(row: dict[str, Any], *, asks: bool = False) -> str:
    found = FormatReader("auto", None, asks=asks).read(row, "a.jsonl:1")
    assert isinstance(found, str), found
    return found


def noted(row: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(key.kind, key.name.strip("`")): count for key, count in read(row).noted.counts.items()}


def turns(*messages: Any) -> tuple[Turn, ...]:
    return read({"messages": list(messages)}).conversation.turns


SHAPES: dict[str, Any] = {
    "roles and contents": [user(), bot(), user(C), bot(D)],
    "from and value": [
        {"from": role, "value": text} for role, text in zip(["human", "gpt", "Human", "GPT"], [A, B, C, D], strict=True)
    ],
    "speakers and texts": [
        {"speaker": role, "text": text} for role, text in zip(["user", "bot"] * 2, [A, B, C, D], strict=True)
    ],
    "texts in turn": [A, B, C, D],
    "pairs": [[A, B], [C, D]],
    "inputs and outputs": [{"input": A, "output": B}, {"input": C, "output": D}],
    "columns": {"role": ["user", "assistant"] * 2, "content": [A, B, C, D]},
    "parts": [user([{"type": "text", "text": A}]), bot(), user(C), bot(D)],
}


@pytest.mark.parametrize("what", SHAPES)
@pytest.mark.parametrize("key", ["messages", "conversations", "conversation", "dialogue", "chat"])
@pytest.mark.parametrize("packed", [lambda value: value, json.dumps, lambda value: json.dumps(json.dumps(value))])
def test_every_shape_is_read_under_every_key_also_as_json_text(what: str, key: str, packed: Any) -> None:
    row = {key: packed(SHAPES[what])}
    assert read(row).conversation.turns == TWO
    texts = record_texts(row)
    assert (texts.asked, texts.reference) == (C, D)


@pytest.mark.parametrize("key", ["items", "trajectory", "x"])
def test_messages_with_roles_are_read_under_any_key_and_the_key_is_said(key: str) -> None:
    assert read({"id": 1, key: SHAPES["from and value"]}).conversation.turns == TWO
    assert noted({key: SHAPES["roles and contents"]}) == {("renamed", key): 1}
    assert refusal({key: ["a", "b"]}).startswith("no instruction and answer known by name")


@pytest.mark.parametrize(
    "text",
    [str([user(), bot()]), "[{'role': 'user',\n 'content': array(['a'], dtype=object)}]", "array([{'from': 'human'}])"],
)
def test_the_repr_of_a_python_object_is_refused_by_its_name(text: str) -> None:
    reason = refusal({"messages": text})
    assert "repr" in reason or "is text, expected a list of messages" in reason
    if text.startswith("["):
        assert reason.startswith("`messages` is the text of a Python object (its repr)")
        assert refusal({"prompt": text, "completion": "x"}).startswith("`prompt` is the text of a Python object")


MARKED: dict[str, list[Any]] = {
    "trained": [True, 1, 1.0, "true", "True", "1", "yes"],
    "context": [False, 0, 0.0, "false", "False", "0", "no"],
    "nothing": [None, "", " ", float("nan")],
}


@pytest.mark.parametrize(
    "key", ["loss", "train", "training", "trainable", "weight", "loss_weight", "loss_scale", "loss_mask"]
)
def test_a_mark_is_obeyed_in_every_spelling_and_counted(key: str) -> None:
    for value in MARKED["context"]:
        row = {"messages": [user(), bot(**{key: value}), user(C), bot(D)]}
        assert read(row).conversation.turns == (Turn(A, "", B, 0.0), TWO[1]), value
        assert noted(row) == {("marked_context", key): 1}
    for value in MARKED["trained"]:
        row = {"messages": [user(), bot(**{key: value}), user(C), bot(D, **{key: False}), user(), bot()]}
        assert read(row).conversation.turns == (TWO[0], Turn(C, "", D, 0.0), TWO[0]), value
        assert noted(row) == {("marked_trained", key): 1, ("marked_context", key): 1}
    for value in MARKED["nothing"]:
        assert noted({"messages": [user(), bot(**{key: value})]}) == {}


def test_masked_says_the_contrary() -> None:
    for value in MARKED["trained"]:
        assert turns(user(), bot(masked=value), user(C), bot(D)) == (Turn(A, "", B, 0.0), TWO[1])
    for value in MARKED["context"] + MARKED["nothing"]:
        assert turns(user(), bot(masked=value)) == TWO[:1]


def test_a_mark_that_is_a_number_between_is_the_weight_of_the_answer() -> None:
    assert turns(user(), bot(loss_scale=0.5), user(C), bot(D, weight="2")) == (Turn(A, "", B, 0.5), Turn(C, "", D, 2.0))


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": None}, {"loss": False}, {"loss": None}, {"masked": True}])
def test_a_mark_on_what_is_not_trained_anyway_changes_nothing(mark: dict[str, Any]) -> None:
    row = {"messages": [{"role": "system", "content": "Be.", **mark}, user(**mark), bot(weight=1)]}
    assert read(row).conversation.turns == TWO[:1]
    assert noted(row) == {("marked_trained", "weight"): 1}
    for asked in ({"weight": 1}, {"train": "true"}, {"masked": False}):
        assert noted({"messages": [user(**asked), bot()]}) == {("mark_on_prompt", next(iter(asked))): 1}


REFUSED: dict[str, tuple[list[Any], str]] = {
    "all masked": ([user(), bot(loss=False)], "every answer is marked as not trained"),
    "marks that differ": (
        [user(), bot(loss=False, weight=1)],
        "message 2 has marks that contradict one another: `loss`, `weight`",
    ),
    "no mark": ([user(), bot(loss="maybe")], "message 2 has `loss` maybe, expected true, false or a number"),
    "a list for a mark": ([user(), bot(weight=[1])], "message 2 has `weight` a list, expected true"),
    "a negative weight": ([user(), bot(weight=-1)], "message 2 has `weight` -1, expected"),
    "parts": ([user(), bot(train_detail=[{"train": False}])], "message 2 has `train_detail`"),
    "answers in a row that count differently": (
        [user(), bot(), bot(D, loss=False)],
        "messages 2 and 3 are both the assistant's",
    ),
    "a greeting alone": ([bot()], "there is no message of the assistant's that answers one of the user's"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_answer_to_learn_or_no_clear_mark_is_refused_by_name(what: str) -> None:
    messages, reason = REFUSED[what]
    assert refusal({"messages": messages}).startswith(reason)


def test_columns_of_unlike_lengths_are_refused() -> None:
    row = {"messages": {"role": ["user", "assistant"], "content": ["hi"]}}
    assert refusal(row).startswith("the columns of the messages are of unlike lengths")


def test_a_mark_that_may_mean_either_is_said() -> None:
    assert noted({"messages": [user(), bot(mask=1)]}) == {("mark_not_read", "mask"): 1}


def test_a_greeting_is_context_and_counted() -> None:
    row = {"messages": [{"role": "developer", "content": "Be."}, bot("Welcome!"), user(), bot()]}
    found = read(row).conversation
    assert (found.system, found.turns) == ("Be.", (Turn("", "", "Welcome!", 0.0), TWO[0]))
    assert noted(row) == {("greeting", ""): 1}


def test_neighbours_of_one_role_are_joined_and_counted() -> None:
    row = {"messages": [user("A."), user("B."), bot("C."), bot("D.")]}
    assert read(row).conversation.turns == (Turn("A.\n\nB.", "", "C.\n\nD."),)
    assert noted(row) == {("joined", ""): 2}
    systems = [{"role": "system", "content": "Be."}, {"role": "developer", "content": "Rhyme."}]
    assert read({"messages": [*systems, user(), bot()]}).conversation.system == "Be.\n\nRhyme."


def test_what_follows_the_last_trained_answer_is_left_out_and_counted() -> None:
    assert turns(user(), bot(), user(C)) == TWO[:1]
    assert noted({"messages": [user(), bot(), user(C)]}) == {("unanswered_end", ""): 1}
    row = {"messages": [user(), bot(), user(C), bot(D, loss=False)]}
    assert read(row).conversation.turns == TWO[:1]
    assert noted(row) == {("marked_context", "loss"): 1, ("untrained_end", ""): 1}
    assert record_texts(row).reference == B


def missing_answers(answer: str) -> list[dict[str, Any]]:
    nothing: tuple[Any, ...] = (None, "", " ", [])
    return [{}, *({answer: value} for value in nothing)]


UNANSWERED_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{ask} and no {answer}": ({ask: A, **missing}, A)
        for ask, answer in (
            ("instruction", "output"),
            ("instruction", "response"),
            ("prompt", "completion"),
            ("question", "answer"),
        )
        for missing in missing_answers(answer)
    },
    "an answer that is there": ({"instruction": A, "output": B}, A),
    "Alpaca's error rows keep their answer": ({"instruction": A, "input": "", "output": None, "text": None}, A),
    "a last message of the user's": ({"messages": [user(), bot(), user(C)]}, C),
    "one message": ({"messages": [user()]}, A),
    "a last answer that is empty": ({"messages": [user(), bot("")]}, A),
    "a last answer that is null": ({"conversations": [user(), bot(None)]}, A),
    "a last answer that is there": ({"messages": [user(), bot(), user(C), bot(D)]}, C),
    "an answer that is masked": ({"messages": [user(), bot(loss=False)]}, A),
    "a prompt of messages": ({"prompt": [user()]}, A),
    "a prompt of messages and an empty completion": ({"prompt": [user()], "completion": []}, A),
    "texts in turn": ({"conversations": [A, B, C]}, C),
    "an answer that is NaN": ({"question": A, "answer": float("nan")}, A),
    "a last pair without an answer": ({"conversations": [[A, B], [C, None]]}, C),
    "a pair": ({"prompt": A, "chosen": B, "rejected": D}, A),
}


@pytest.mark.parametrize("what", UNANSWERED_ROWS)
def test_where_an_answer_is_wanted_none_is_needed(what: str) -> None:
    row, asked = UNANSWERED_ROWS[what]
    conversation = read(row, asks=True).conversation
    assert conversation.answered_turns == conversation.turns
    assert conversation.turns[-1].instruction == asked
    assert conversation.turns[-1].response in (UNANSWERED, B, D)


def test_where_nothing_is_asked_there_is_nothing_to_answer() -> None:
    assert refusal({"messages": [bot()]}, asks=True).startswith("there is no message of the user's")
    assert "data.columns=instruction=text" in refusal({"text": A}, asks=True)
    assert refusal({"instruction": " "}, asks=True).startswith("`instruction` and `input` are both empty")


roles = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.booleans()), min_size=1, max_size=8)


@given(roles)
def test_no_text_of_a_conversation_is_lost_before_its_last_trained_answer(said: list[tuple[str, bool]]) -> None:
    """By the messages themselves: all texts up to the last trained answer are in the turns, in order, and no other."""
    messages = [{"role": role, "content": f"text {n}", "loss": loss} for n, (role, loss) in enumerate(said)]
    found = FormatReader("auto", None).read({"messages": messages}, "a.jsonl:1")
    if isinstance(found, str):
        assert "learn" in found or "both the assistant's" in found
        return
    texts = [text for turn in found.conversation.turns for text in (turn.instruction, turn.response) if text]
    kept = "\n\n".join(texts).split("\n\n")
    assert kept == [f"text {n}" for n in range(len(kept))]
    assert all(not loss for role, loss in said[len(kept) :] if role == "assistant")
    trained = [turn for turn in found.conversation.turns if turn.weight and turn.instruction]
    assert trained[-1] == found.conversation.turns[-1]
