"""Chat templates with tools and thoughts: what is the model's to write, what is context, and what is refused or said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.tool_templates import CONTROL, DEEPSEEK, ENDS, HARMONY, HERMES, LLAMA, MISTRAL, QWEN3, TEMPLATES
from tests.doubles.written_tools import tokenizer_of

from tuneful.config import TemplateConfig, load_config
from tuneful.data.read import read_data, stream_data
from tuneful.encoding import prepare
from tuneful.encoding.chat_template import ChatTemplate, load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.left_out import LeftOut
from tuneful.encoding.outline import Dialect
from tuneful.encoding.show import ShownRecord, bracketed, described, shown_tokens
from tuneful.encoding.template import TEMPLATES as BUILT_IN
from tuneful.encoding.template import Origin, Piece, find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, ToolCall, ToolResult, Turn

TOOLS = (
    '[{"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}}}}]'
)
CALL = ToolCall("get_weather", '{"city": "Bern", "days": 2}', "call_abc123def")
RESULT = ToolResult('{"rain": true}', "get_weather", "call_abc123def")
ASKED = Turn("Rain in Bern?", "", "", calls=(CALL,))
ANSWERED = Turn("", "", "It rains.", results=(RESULT,))
RECORD = Conversation("", (ASKED, ANSWERED), "here:1", tools=TOOLS)


def template(name: str, source: str | None = None) -> ChatTemplate:
    control = dict.fromkeys(CONTROL[name], True) | {"<tool_call>": False, "</tool_call>": False}
    return ChatTemplate(source or TEMPLATES[name], f"{name}.jinja", added_tokens=control, eos_token=ENDS[name])


def encoder(name: str, source: str | None = None, **settings: Any) -> Encoder:
    tokenizer = tokenizer_of(CONTROL[name], source or TEMPLATES[name], ENDS[name])
    return Encoder(TextEncoder(tokenizer, load_template(TemplateConfig(name="tokenizer"), tokenizer)), 4096, **settings)


def trained(pieces: list[Piece]) -> list[str]:
    """The stretches that are trained, each as one text."""
    stretches, was = [], False
    for piece in pieces:
        if piece.is_trained:
            stretches += [] if was else [""]
            stretches[-1] += piece.text
        was = piece.is_trained
    return stretches


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern", "days": 2}}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern", "days": 2}}\n</tool_call><|im_end|>',
    "llama": '{"name": "get_weather", "parameters": {"city": "Bern", "days": 2}}<|eot|>',
    "deepseek": '<|calls|><|call|>get_weather<|sep|>{"city": "Bern", "days": 2}<|end|>',
    "harmony": ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Bern", "days": 2}<|call|>',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Bern", "days": 2}}]<|end_of_text|>',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_is_what_the_model_writes_and_what_a_tool_answers_is_not(name: str) -> None:
    made = template(name)
    only_call = replace(RECORD, turns=(ASKED,))
    assert (
        trained(made.example(only_call))[0].removeprefix("\n</think>\n\n").removeprefix("<think>\n\n</think>\n\n")
        == WRITTEN[name]
    )
    pieces = made.example(RECORD)
    if name != "deepseek":  # its prompt opens a thought, so that earlier answers are context
        assert trained(pieces)[0] == WRITTEN[name]
    assert trained(pieces)[-1].endswith("It rains." + ENDS[name])
    assert "get_weather" in text(made.prompt(RECORD))
    assert [piece.text for piece in pieces if piece.origin is Origin.TOOL] in ([RESULT.text], ['{\\"rain\\": true}'])


def test_the_tools_of_a_record_are_in_its_prompt_and_change_with_it() -> None:
    made = template("hermes")
    assert '"description": "The weather."' in text(made.prompt(RECORD))
    other = replace(RECORD, tools=TOOLS.replace("The weather.", "Another."))
    assert '"description": "Another."' in text(made.prompt(other))
    assert "# Tools" not in text(made.prompt(Conversation("", (Turn("a", "", "b"),), "here:1")))


def test_how_a_template_takes_calls_and_thoughts_is_found_by_trying() -> None:
    found = {name: template(name).dialect for name in TEMPLATES}
    assert found == {
        "hermes": Dialect("content"),
        "qwen3": Dialect("reasoning_content"),
        "llama": Dialect("content"),
        "mistral": Dialect("content", short_ids=True),
        "deepseek": Dialect("", arguments_as_text=True, null_content=True),
        "harmony": Dialect("thinking"),
        "granite": Dialect("content"),
    }
    ends = {name: template(name).call_end for name in TEMPLATES}
    assert ends == {**ENDS, "harmony": "<|call|>"}


def test_ids_that_a_template_does_not_take_become_such_that_it_takes_the_same_for_call_and_result() -> None:
    for call, result in ((CALL, RESULT), (replace(CALL, call_id=""), replace(RESULT, call_id=""))):
        record = replace(RECORD, turns=(replace(ASKED, calls=(call,)), replace(ANSWERED, results=(result,))))
        said = text(template("mistral").example(record))
        first, second = (said.partition(key)[2][:9] for key in ('"id": "', '"call_id": "'))
        assert first == second
        assert first.isalnum()
    kept = replace(CALL, call_id="abcDEF123")
    assert "abcDEF123" in text(template("mistral").example(replace(RECORD, turns=(replace(ASKED, calls=(kept,)),))))


# What is not rendered


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_refuses_tools_in_one_message_that_names_it_and_the_fields(name: str) -> None:
    for verb in (find_template(name).example, find_template(name).prompt):
        with pytest.raises(
            TemplateError, match=f"template.name={name}: the template has no tools, no tool_calls, no tool results"
        ):
            verb(RECORD)
    with pytest.raises(TemplateError, match=r"the template has no tools, which"):
        find_template(name).prompt(replace(RECORD, turns=(Turn("a", "", "b"),)))


DROPPING = {
    "tools": (HERMES.replace("{%- if tools %}", "{%- if false %}"), "no tools, which"),
    "a description": (HERMES.replace("{{ tool | tojson }}", "{{ tool.function.name }}"), "no tools, which"),
    "calls": (HERMES.replace("m.tool_calls or []", "[]"), "no tool_calls, which"),
    "arguments": (HERMES.replace("{{ call.function.arguments | tojson }}", "{{ '{}' }}"), "no tool_calls, which"),
    "results": (HERMES.replace("m.role == 'tool'", "m.role == 'x'"), "no tool results, which"),
    "all": (
        "{%- for m in messages if m.content %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}",
        "no tools, no tool_calls, which",
    ),
}


@pytest.mark.parametrize("what", DROPPING)
def test_a_template_that_drops_something_in_silence_is_found_out_and_named(what: str) -> None:
    source, reason = DROPPING[what]
    with pytest.raises(TemplateError, match=f"hermes.jinja: the template has {reason}"):
        template("hermes", source).example(RECORD)


def test_a_second_call_that_a_template_drops_is_missed_though_the_tools_name_it() -> None:
    twice = replace(
        RECORD, turns=(replace(ASKED, calls=(ToolCall("get_weather", "{}"), ToolCall("get_weather", "{}"))),)
    )
    with pytest.raises(TemplateError, match="no tool_calls"):
        template("harmony").example(twice)
    assert trained(template("hermes").example(twice))[0].count("get_weather") == 2


def test_what_a_template_refuses_itself_is_refused_in_its_words() -> None:
    twice = replace(RECORD, turns=(replace(ASKED, calls=(CALL, CALL)),))
    with pytest.raises(TemplateError, match="one call at a time"):
        template("llama").example(twice)


def test_control_tokens_in_arguments_and_results_stay_text_and_in_names_are_refused() -> None:
    call = replace(CALL, arguments='{"city": "<|im_end|>\\n\\"B\\""}')
    record = replace(
        RECORD, turns=(replace(ASKED, calls=(call,)), replace(ANSWERED, results=(replace(RESULT, text="<|im_end|>"),)))
    )
    maker = encoder("hermes")
    example = maker.example(record)
    assert isinstance(example, Example), example
    (end,) = (one for one, content in maker.text.control_token_ids.items() if content == "<|im_end|>")
    assert (example.token_ids == end).sum() == 5  # system, user, call, results, answer
    for bad in (replace(CALL, name="<|im_end|>"), replace(CALL, arguments='{"<|im_end|>": 1}')):
        reason = maker.example(replace(RECORD, turns=(replace(ASKED, calls=(bad,)),)))
        assert "holds a control token" in str(reason)


# Thoughts

TWO = Conversation("", (Turn("Add", "", "3", thought="One."), Turn("Again", "", "4", thought="Two.")), "here:1")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_writes_a_thought_before_the_answer_and_trains_both(name: str) -> None:
    pieces = find_template(name).example(TWO)
    assert trained(pieces) == ["<think>\nOne.\n</think>\n\n3", "<think>\nTwo.\n</think>\n\n4"]


def test_a_template_that_drops_the_thoughts_of_earlier_answers_trains_the_last_and_says_so() -> None:
    made = template("qwen3")
    pieces = made.example(TWO)
    assert trained(pieces) == ["<think>\nTwo.\n</think>\n\n4<|im_end|>"]
    assert "One." not in text(pieces)
    assert made.left_out(TWO) == (1, 1)
    left_out = LeftOut(encoder("qwen3"))
    left_out.add([TWO, TWO, Conversation("", (Turn("a", "", "b"),), "here:2")])
    assert [(note.kind, note.count, note.num_records) for note in left_out.notes] == [
        ("thought_left_out", 2, 2),
        ("answer_as_context", 2, 2),
    ]
    assert (
        left_out.notes[0].text
        == "`template.name=tokenizer` leaves out the thoughts of 2 answers, as it does when the model answers"
    )


def test_what_is_left_out_of_the_rejected_side_of_a_pair_counts_and_what_both_share_counts_once() -> None:
    first, last = (replace(turn, weight=weight) for turn, weight in zip(TWO.turns, (0.0, 1.0), strict=True))
    more = Turn("And now?", "", "5", thought="Three.")
    pairs = {
        (1, 1): (first, replace(last, thought="Four.")),
        (2, 2): (first, last, more),
        (0, 0): (replace(first, thought=""), last),
    }
    for wanted, rejected in pairs.items():
        left_out = LeftOut(encoder("qwen3"))
        chosen = replace(TWO, turns=(rejected[0], last))
        left_out.add([replace(chosen, rejected=replace(TWO, turns=rejected))])
        counts = {note.kind: note.count for note in left_out.notes}
        assert (counts.get("thought_left_out", 0), counts.get("answer_as_context", 0)) == wanted


def test_a_thought_between_calls_is_kept_where_the_template_keeps_it() -> None:
    record = replace(RECORD, turns=(replace(ASKED, thought="Look."), replace(ANSWERED, thought="So.")))
    made = template("qwen3")
    assert [one[:17] for one in trained(made.example(record))] == [
        "<think>\nLook.\n</th"[:17],
        "<think>\nSo.\n</thi"[:17],
    ]
    assert made.left_out(record) == (0, 0)


def test_a_thought_is_written_where_the_prompt_opens_one() -> None:
    pieces = template("deepseek").example(TWO)
    assert text(pieces).endswith("<|Assistant|><think>\nTwo.\n</think>\n\n4<|end|>")
    assert trained(pieces) == ["Two.\n</think>\n\n4<|end|>"]
    assert template("deepseek").left_out(TWO) == (1, 1)


@pytest.mark.parametrize("name", ["qwen3", "deepseek"])
def test_an_empty_thought_of_a_record_is_the_one_that_the_template_writes(name: str) -> None:
    written = "<think>\n\n</think>\n\n"
    with_it, without = (
        replace(TWO, turns=(Turn("Add", "", lead + "3"), Turn("Again", "", lead + "4"))) for lead in (written, "")
    )
    assert template(name).example(with_it) == template(name).example(without)
    assert f"{written}4" in text(template(name).example(with_it))
    assert f"{written}3" in text(template("hermes").example(with_it)), "where it writes none, it is text"


def test_thoughts_may_be_messages_of_their_own() -> None:
    pieces = template("harmony").example(TWO)
    assert trained(pieces) == [
        "<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    ]
    only_last = replace(TWO, turns=(replace(TWO.turns[0], thought=""), TWO.turns[1]))
    assert trained(template("harmony").example(only_last))[0] == "<|channel|>final<|message|>3<|end|>"


def test_a_template_that_renders_no_thought_anywhere_trains_without_and_says_how_many() -> None:
    source = DEEPSEEK.replace("<think>\\n", "")
    made = template("deepseek", source)
    assert trained(made.example(TWO)) == ["3<|end|>", "4<|end|>"]
    assert made.left_out(TWO) == (2, 0)


@pytest.mark.parametrize("name", [*TEMPLATES, *BUILT_IN])
@pytest.mark.parametrize("prompt_weight", [0.0, 1.0])
def test_without_train_reasoning_a_thought_weighs_nothing_and_the_tokens_are_the_same(
    name: str, prompt_weight: float
) -> None:
    if name in BUILT_IN:
        text_encoder = TextEncoder(tokenizer_of(CONTROL["hermes"], HERMES, ENDS["hermes"]), find_template(name))
        makers = [
            Encoder(text_encoder, 4096, prompt_weight=prompt_weight, train_reasoning=one) for one in (True, False)
        ]
    else:
        makers = [encoder(name, prompt_weight=prompt_weight, train_reasoning=one) for one in (True, False)]
    record = replace(TWO, turns=TWO.turns[1:])
    with_thought, without = (maker.example(record) for maker in makers)
    assert isinstance(with_thought, Example)
    assert isinstance(without, Example)
    assert with_thought.token_ids.tolist() == without.token_ids.tolist()
    shown = "".join(map(chr, without.token_ids[without.weights != with_thought.weights] % 256))
    assert len(shown) >= len("Two.")
    assert without.weights[-2:].tolist() == [1, 1], "the answer and its end are trained"


# What is shown, and what comes back


def test_show_says_which_tokens_are_what() -> None:
    maker = encoder("hermes")
    record = replace(RECORD, turns=(replace(ASKED, thought="Look."), ANSWERED))
    example = maker.example(record)
    assert isinstance(example, Example)
    tokens = tuple(shown_tokens(example, maker.text, record))
    said: dict[str, str] = {}
    for token in tokens:
        said[token.origin] = said.get(token.origin, "") + token.text
    assert said["thought"] == "Look."
    assert said["argument"] == "Bern"
    assert said["tool"] == RESULT.text
    assert said["response"] == "It rains."
    assert '"name": "get_weather"' in said["call"]
    assert set(said) == {
        "template",
        "user",
        "tool",
        "generation_prefix",
        "thought",
        "response",
        "call",
        "argument",
        "end",
    }
    in_words = described(ShownRecord("here:1", tokens))
    assert "trained: " in in_words
    assert f"{len(RESULT.text)} tool" in in_words
    assert "⟦<think>\nLook." in bracketed(tokens)
    plain = maker.example(Conversation("", (Turn("a", "", "b"),), "here:1"))
    assert isinstance(plain, Example)
    assert "context:" not in described(ShownRecord("here:1", tuple(shown_tokens(plain, maker.text))))


def test_a_generated_call_ends_at_its_end_token_and_keeps_the_tokens_that_it_is_written_with() -> None:
    for name, kept in (("granite", "<|tool_call|>[{"), ("harmony", "commentary json<|message|>{")):
        maker = encoder(name)
        example = maker.example(replace(RECORD, turns=(ASKED,)))
        assert isinstance(example, Example)
        written = example.token_ids[example.num_prompt_tokens :].tolist()
        assert written[-1] in maker.text.stop_token_ids
        assert kept in maker.text.decode(written)
        assert not maker.text.decode(written).endswith(maker.text.template.call_end)


def test_text_between_control_tokens_is_encoded_as_the_tokenizer_does() -> None:
    for name, source in (("qwen3", QWEN3), ("llama", LLAMA), ("mistral", MISTRAL), ("harmony", HARMONY)):
        maker = encoder(name)
        prompt = maker.prompt_ids(RECORD)
        assert prompt == maker.text.rendered_ids(text(maker.text.template.prompt(RECORD))), source[:40]


@pytest.mark.parametrize("in_memory", [True, False])
def test_tools_and_what_a_template_leaves_out_come_back_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 8192 if in_memory else 0)
    asked = {"role": "user", "content": "Rain?"}
    call = {"id": "abcDEF123", "name": "get_weather", "arguments": {"city": "Bern"}}
    thought = [asked, {"role": "assistant", "content": "No.", "thinking": "Dry."}]
    called = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "none", "tool_call_id": "abcDEF123"},
    ]
    rows: list[dict[str, Any]] = [
        {"messages": [asked, *called, thought[1]], "tools": [{"name": "get_weather"}]},
        *({"messages": thought * number} for number in (2, 3)),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(None, ["data.test_share=0", "data.validation_share=0"])
    wanted = [one.conversation for one in read_data(str(tmp_path / "a.jsonl")).records]
    assert wanted[0].turns[0].calls
    for _ in range(2):
        stream = stream_data(str(tmp_path / "a.jsonl"), config.data)
        dataset = prepare.prepare_data(stream, encoder("qwen3"), config, tmp_path / "cache")
        assert list(dataset.train.conversations) == wanted
        kinds = {note.kind: (note.count, note.num_records) for note in dataset.file.notes}
        assert kinds["thought_left_out"] == kinds["answer_as_context"] == (3, 2)
        assert kinds["calls"] == (1, 1)
