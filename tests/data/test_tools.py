"""Tools, calls and thoughts: every spelling gives the same record, and what cannot be read is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneful.data.formats import FormatReader, ReadRow, record_texts
from tuneful.types import ToolCall, ToolResult, Turn

WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
NESTED = [{"type": "function", "function": WEATHER}]
ARGUMENTS = {"city": "Zürich", "days": 2}
NAMED, TEXT = {"name": "get_weather"}, json.dumps(ARGUMENTS)
CALL = ToolCall("get_weather", '{"city": "Zürich", "days": 2}', "c1")


def read(row: dict[str, Any], *, asks: bool = False) -> ReadRow:
    found = FormatReader("auto", None, asks=asks).read(row, "a.jsonl:1")
    assert isinstance(found, ReadRow), found
    return found


def refusal(*messages: dict[str, Any], **more: Any) -> str:
    found = FormatReader("auto", None).read({"messages": list(messages), **more}, "a.jsonl:1")
    assert isinstance(found, str), found
    return found


def user(text: str = "Weather?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any = "Rain.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def turns(*messages: dict[str, Any]) -> tuple[Turn, ...]:
    return read({"messages": list(messages)}).conversation.turns


TOOLS: dict[str, Any] = {
    "nested": NESTED,
    "flat": [WEATHER],
    "flat with a type": [{"type": "function", **WEATHER}],
    "one": WEATHER,
    "Anthropic's": [{**{k: v for k, v in WEATHER.items() if k != "parameters"}, "input_schema": WEATHER["parameters"]}],
    "parameters as text": [{**WEATHER, "parameters": json.dumps(WEATHER["parameters"])}],
    "tools as texts": [json.dumps(WEATHER)],
}


@pytest.mark.parametrize("what", TOOLS)
@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize("packed", [lambda value: value, json.dumps])
def test_tools_in_every_spelling_are_openais(what: str, key: str, packed: Any) -> None:
    row = {"messages": [user(), bot()], key: packed(TOOLS[what])}
    assert json.loads(read(row).conversation.tools) == NESTED


@pytest.mark.parametrize("nothing", [None, "", [], "[]", {}])
def test_a_record_whose_tools_are_none_has_none(nothing: Any) -> None:
    assert read({"messages": [user(), bot()], "tools": nothing}).conversation.tools == ""


CALLS: dict[str, dict[str, Any]] = {
    "OpenAI's": bot(None, tool_calls=[{"id": "c1", "type": "function", "function": {**NAMED, "arguments": TEXT}}]),
    "with an object": bot("", tool_calls=[{"id": "c1", "function": {"name": "get_weather", "arguments": ARGUMENTS}}]),
    "flat": {"role": "assistant", "tool_calls": [{"id": "c1", "name": "get_weather", "arguments": ARGUMENTS}]},
    "as text": bot(None, tool_calls=json.dumps([{"id": "c1", "name": "get_weather", "arguments": ARGUMENTS}])),
    "the old function_call": bot(None, function_call={"id": "c1", "name": "get_weather", "arguments": json.dumps(ARGUMENTS)}),
    "ShareGPT's": {"from": "function_call", "value": json.dumps({"id": "c1", "name": "get_weather", "arguments": ARGUMENTS})},
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython"])
def test_calls_and_their_results_in_every_spelling_are_the_same_turns(what: str, role: str) -> None:
    result = {"role": role, "content": "Rain", "tool_call_id": "c1"}
    assert turns(user(), CALLS[what], result, bot()) == (
        Turn("Weather?", "", "", calls=(CALL,)),
        Turn("", "", "Rain.", results=(ToolResult("Rain", "get_weather", "c1"),)),
    )


def test_several_calls_of_a_message_and_their_results_keep_their_order_names_and_ids() -> None:
    calls = [{"id": f"c{n}", "name": name, "arguments": {}} for n, name in enumerate(("a", "b", "a"))]
    results = [{"role": "tool", "content": str(n), "tool_call_id": f"c{n}"} for n in (2, 0, 1)]
    found = turns(user(), bot("I look.", tool_calls=calls), *results, bot())
    assert [call.name for call in found[0].calls] == ["a", "b", "a"]
    assert found[0].response == "I look."
    assert found[1].results == (ToolResult("2", "a", "c2"), ToolResult("0", "a", "c0"), ToolResult("1", "b", "c1"))
    apart = [{"from": "function_call", "value": json.dumps(call)} for call in calls]
    nameless = [{"from": "observation", "value": str(n)} for n in range(3)]
    shared = read(
        {"conversations": [{"from": "human", "value": "Q"}, *apart, *nameless, {"from": "gpt", "value": "A"}]}
    )
    assert [one.name for one in shared.conversation.turns[1].results] == ["a", "b", "a"]


def test_a_result_that_is_no_text_is_its_json_and_is_counted() -> None:
    row = {"messages": [user(), CALLS["flat"], {"role": "tool", "content": {"t": [1, "ü"]}}, bot()]}
    assert read(row).conversation.turns[1].results[0].text == '{"t": [1, "ü"]}'
    assert "result_as_json" in {key.kind for key in read(row).noted.counts}
    parts = {"role": "tool", "content": [{"type": "text", "text": "Rain"}]}
    assert turns(user(), CALLS["flat"], parts, bot())[1].results[0].text == "Rain"


THOUGHTS: dict[str, dict[str, Any]] = {
    "reasoning_content": bot(reasoning_content="Hm."),
    "thinking": bot(thinking=" Hm.\n"),
    "reasoning": bot(reasoning="Hm."),
    "two that agree": bot(reasoning="Hm.", reasoning_content="Hm."),
    "in the text": bot("<think>\nHm.\n</think>\n\nRain."),
    "in the text, close": bot("<think>Hm.</think>Rain."),
}


@pytest.mark.parametrize("what", THOUGHTS)
def test_a_thought_in_every_spelling_is_one_field_and_counted(what: str) -> None:
    row = {"messages": [user(), THOUGHTS[what]]}
    assert read(row).conversation.turns == (Turn("Weather?", "", "Rain.", thought="Hm."),)
    assert [count for key, count in read(row).noted.counts.items() if key.kind == "thought"] == [1]


def test_a_thought_in_the_answer_of_a_flat_record_is_one_too() -> None:
    found = read({"instruction": "Q", "output": "<think>\nHm.\n</think>\n\nA", "history": [["P", "<think>B</think>C"]]})
    assert found.conversation.turns == (Turn("P", "", "C", thought="B"), Turn("Q", "", "A", thought="Hm."))


@pytest.mark.parametrize(
    "text", ["<think>\n\n</think>\n\nA", "<think>Hm.</think>", "A </think> B", "A <think>B</think> C"]
)
def test_what_is_no_thought_before_an_answer_stays_text(text: str) -> None:
    assert turns(user(), bot(text)) == (Turn("Weather?", "", text),)


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "arguments that are no JSON": (
        [user(), bot(None, tool_calls=[{"name": "f", "arguments": "{city: Bern}"}])],
        "`arguments` of `tool_calls` of message 2 is a text that begins as JSON and is none",
    ),
    "arguments that are a list": (
        [user(), bot(None, tool_calls=[{"name": "f", "arguments": [1]}])],
        "`arguments` of `tool_calls` of message 2 is a list, expected an object",
    ),
    "a call without a name": ([user(), bot(None, tool_calls=[{"arguments": {}}])], "`tool_calls` of message 2 has no `name`"),
    "a result of nothing": ([{"role": "tool", "content": "x"}, user(), bot()], "message 1 is what a tool answered"),
    "a result after a question": ([user(), {"role": "tool", "content": "x"}, bot()], "message 2 is what a tool answered"),
    "text after a call": (
        [user(), bot(None, tool_calls=[{"name": "f"}]), bot("And?")],
        "message 3 speaks after the call of message 2",
    ),
    "two thoughts": ([user(), bot(thinking="a", reasoning="b")], "message 2 has two different thoughts"),
    "a thought beside another": ([user(), bot("<think>a</think>b", thinking="c")], "message 2 has two different thoughts"),
    "a user who calls": ([{**user(), "tool_calls": [{"name": "f"}]}, bot()], "message 1 calls a tool or thinks"),
    "tools in a message": ([{**user(), "tools": NESTED}, bot()], "message 1 has `tools`, put it beside the messages"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(what: str) -> None:
    messages, reason = REFUSED[what]
    assert refusal(*messages).startswith(reason)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("a hammer", "`tools` is text, expected a list of tools"),
        ([{"type": "code_interpreter"}], "`tools` 1 is of type `code_interpreter`"),
        ([{"description": "x"}], "`tools` 1 has no `name`"),
        ([1], "`tools` 1 is a number, expected an object"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_name(tools: Any, reason: str) -> None:
    assert refusal(user(), bot(), tools=tools).startswith(reason)


def test_marks_weigh_a_call_as_they_weigh_an_answer() -> None:
    found = turns(user(), {**CALLS["flat"], "weight": 0}, {"role": "tool", "content": "x"}, bot(train=True))
    assert [turn.weight for turn in found] == [0.0, 1.0]
    assert turns(user(), bot(), user(), {**CALLS["flat"], "train": False}) == (Turn("Weather?", "", "Rain."),)


def test_where_an_answer_is_wanted_the_results_of_tools_may_be_what_asks() -> None:
    found = read({"messages": [user(), CALLS["flat"], {"role": "tool", "content": "Rain"}]}, asks=True).conversation
    assert found.answered_turns == found.turns
    assert found.turns[-1].results[0].text == "Rain"
    last = read({"messages": [user(), CALLS["flat"]]}, asks=True).conversation
    assert last.turns[-1].calls == (CALL,)


def test_a_reader_sees_calls_and_results() -> None:
    texts = record_texts({"messages": [user(), CALLS["flat"], {"role": "tool", "content": "Rain"}, bot()]})
    assert [role for role, _ in texts.turns] == ["user", "assistant", "tool"]
    assert "get_weather" in texts.turns[1][1]
    assert (texts.asked, texts.reference) == ("Rain", "Rain.")
