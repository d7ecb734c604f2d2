"""Answers to a file: on disk as they are known, and after any kill the same file; one prompt for whoever renders it."""

import io
import json
import sys

import pytest
import torch
from tests.doubles import killed_answering
from tests.doubles.processes import Process
from tests.doubles.tool_templates import HERMES

from tuneful.commands.chat import ChatSession, converse
from tuneful.commands.generate import generate_file
from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.encoding.encode import Encoder
from tuneful.errors import ConfigError
from tuneful.infer.file import Journal, answer_all
from tuneful.infer.generate import answer
from tuneful.infer.session import LoadedModel, question
from tuneful.judge.local import ModelJudge
from tuneful.judge.questions import Question
from tuneful.runs.schema import as_row
from tuneful.types import Conversation, Example, Turn

CONVERSATIONS = [
    Conversation("", (Turn(f"Say {word}.", "", "x"),), f"rows.json:{line}")
    for line, word in enumerate(("red", "green", "blue", "pink", "grey", "gold"), 1)
]


@pytest.fixture(scope="module")
def speaker(tiny_llama):
    settings = ["generate.max_new_tokens=6", "generate.batch_size=4", "generate.temperature=1", "model.dtype=float32"]
    return LoadedModel.load(load_config(None, [f"model.name_or_path={tiny_llama}", *settings]))


def answer_all_of(speaker):
    """Answers to conversations, as a judge that is a model gives them."""
    return lambda asked: answer(speaker.model, speaker.encoder, asked, speaker.config.generate)


def answered(speaker, output, conversations=CONVERSATIONS, *, advance=lambda num_answers: None, **changes):
    config = speaker.config.generate.model_copy(update=changes)
    return answer_all(speaker.model, speaker.encoder, conversations, config, output, seed=1, advance=advance)


def whole_journal(speaker, output):
    """The bytes of the journal just before the whole file is written, and of the whole file."""
    seen = []

    def look(num_answers):
        seen.append(output.with_name(f"{output.name}.partial").read_bytes())

    answered(speaker, output, advance=look)
    return seen[-1], output.read_bytes()


def test_the_prompt_of_a_record_with_tools_has_its_tools_and_what_they_answered(tiny_llama, tmp_path):
    (tmp_path / "tools.jinja").write_text(HERMES.replace("<|im_end|>", tiny_llama_end(tiny_llama)))
    row = {
        "tools": [{"name": "get_weather", "description": "The weather."}],
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Bern"}}]},
            {"role": "tool", "content": "rain"},
        ],
    }
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    settings = ["generate.max_new_tokens=4", f"template.file={tmp_path / 'tools.jinja'}", "template.name=tokenizer"]
    config = load_config(None, [f"model.name_or_path={tiny_llama}", *settings])
    (answer_row,) = generate_file(str(tmp_path / "asked.jsonl"), tmp_path / "answers.jsonl", config=config)
    for said in (
        '"description": "The weather."',
        '"arguments": {"city": "Bern"}',
        "<tool_response>\nrain\n</tool_response>",
    ):
        assert said in answer_row.prompt
    assert answer_row.prompt.endswith("<|im_start|>assistant\n")


def tiny_llama_end(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]


def test_records_without_an_answer_are_answered(tiny_llama, tmp_path):
    asked = [
        {"instruction": "Say red."},
        {"messages": [{"role": "user", "content": "Say red."}]},
        {"question": "Say red.", "answer": None},
        {"instruction": "Say red.", "output": "red"},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    config = load_config(None, [f"model.name_or_path={tiny_llama}", "generate.max_new_tokens=4"])
    rows = generate_file(str(tmp_path / "asked.jsonl"), tmp_path / "answers.jsonl", config=config)
    assert len({row.prompt for row in rows}) == len({row.text for row in rows}) == 1
    assert [row.source.rpartition(":")[2] for row in rows] == ["1", "2", "3", "4"]


def test_answers_are_written_in_order_and_the_journal_is_gone(speaker, tmp_path):
    output = tmp_path / "answers.jsonl"
    rows = answered(speaker, output)
    assert [json.loads(line) for line in output.read_text().splitlines()] == [as_row(row) for row in rows]
    assert [row.source for row in rows] == [conversation.source for conversation in CONVERSATIONS]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_whatever_a_killed_process_leaves_the_file_is_the_same(speaker, tmp_path):
    """Cut after every 17th byte, at both ends of every line, and with a line that is none."""
    journal, whole = whole_journal(speaker, tmp_path / "whole.jsonl")
    ends = [at for at, byte in enumerate(journal, 1) if byte == ord("\n")]
    assert len(ends) == len(CONVERSATIONS) + 1
    cuts = {*range(0, len(journal), 17 * 7), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    for cut in sorted(cuts):
        output = tmp_path / "cut.jsonl"
        output.with_name("cut.jsonl.partial").write_bytes(journal[:cut])
        told: list[int] = []
        answered(speaker, output, advance=told.append)
        assert output.read_bytes() == whole
        assert told[0] == max(0, sum(end <= cut for end in ends) - 1), "what was known was asked again"
        output.unlink()
    output.with_name("cut.jsonl.partial").write_bytes(journal[: ends[2]] + b"\0\0\0\n" + journal[ends[2] :])
    answered(speaker, output)
    assert output.read_bytes() == whole


def test_what_another_request_left_is_refused_or_replaced_and_never_mixed_in(speaker, tmp_path):
    output = tmp_path / "answers.jsonl"
    journal, whole = whole_journal(speaker, output)
    partial = output.with_name("answers.jsonl.partial")
    partial.write_bytes(journal[: len(journal) // 2])
    before = partial.read_bytes()
    for other in ({"top_k": 5}, {"conversations": CONVERSATIONS[:3]}):
        with pytest.raises(ConfigError, match=r"answers\.jsonl\.partial: holds answers to another request"):
            answered(speaker, output, **other)
        assert partial.read_bytes() == before
        assert not output.with_name(".answers.jsonl.lock").exists()
    answered(speaker, output, batch_size=1)  # changes no answer, so it is the same request
    assert output.read_bytes() == whole
    partial.write_bytes(before)
    with Journal(output, "another", replace=True) as journal:
        assert journal.rows == {}


def test_other_weights_are_another_request(speaker, tmp_path):
    output = tmp_path / "answers.jsonl"
    journal, _ = whole_journal(speaker, output)
    output.with_name("answers.jsonl.partial").write_bytes(journal)
    bias = next(iter(speaker.model.parameters()))
    with torch.no_grad():
        bias[0, 0] += 1
        with pytest.raises(ConfigError, match="another request"):
            answered(speaker, output)
        bias[0, 0] -= 1


def test_one_process_writes_a_file_at_a_time(tmp_path):
    output = tmp_path / "answers.jsonl"
    with Journal(output, "request"), pytest.raises(ConfigError, match="another process is writing it"):
        Journal(output, "request")
    Journal(output, "request").close()


def kill_answering():
    found = killed_answering.campaign(3, 30, 0)
    assert found.kills >= 3, found
    assert found.files >= 1, found


def test_kill_9_at_random_changes_nothing():
    """A short run of `benchmarks/kill_generate.py`, which kills 50 times."""
    killing = Process(kill_answering)
    out, err = killing.communicate(timeout=300)
    assert killing.returncode == 0, out + err


# ---------------------------------------------------------------------------------------------------------------- chat


def talked(speaker, monkeypatch, capsys, lines, **others):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    terminal = Terminal()
    converse(ChatSession(speaker, terminal, **others), terminal)
    return capsys.readouterr()


def test_a_pipe_gets_an_answer_a_line_and_the_model_sees_the_whole_conversation(speaker, monkeypatch, capsys):
    said = talked(speaker, monkeypatch, capsys, ["Say red.", "", "Say it again."])
    first = "".join(speaker.stream(question("", (), "Say red.")))
    second = "".join(speaker.stream(question("", (Turn("Say red.", "", first),), "Say it again.")))
    assert said.out == f"{first}\n{second}\n"


def test_reset_forgets_and_system_stays(speaker, monkeypatch, capsys):
    said = talked(speaker, monkeypatch, capsys, ["Say red.", "/reset", "Say blue."], system="Be brief.")
    assert said.out == "".join(
        f"{''.join(speaker.stream(question('Be brief.', (), f'Say {word}.')))}\n" for word in ("red", "blue")
    )
    assert "forgotten" in said.err
    said = talked(speaker, monkeypatch, capsys, ["/system Be kind.", "Say red.", "/system", "Say red."])
    assert said.out == "".join(
        f"{''.join(speaker.stream(question(system, (), 'Say red.')))}\n" for system in ("Be kind.", "")
    )


def test_a_saved_conversation_is_a_record(speaker, monkeypatch, capsys, tmp_path):
    file = tmp_path / "chats.jsonl"
    lines = ["/save " + str(file), "Say red.", f"/save {file}", "//slash", f"/save {file}", "/save", "/nonsense"]
    said = talked(speaker, monkeypatch, capsys, lines, system="Be brief.")
    records = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert [[message["role"] for message in record] for record in records] == [
        ["system", "user", "assistant"],
        ["system", "user", "assistant", "user", "assistant"],
    ]
    assert records[1][3]["content"] == "/slash"
    assert records[1][2]["content"] == said.out.splitlines()[0]
    for words in (
        "nothing was said yet",
        "1 turn added to",
        "2 turns added to",
        "/save needs a file",
        "no command /non",
    ):
        assert words in said.err


def test_quit_ends_and_help_lists(speaker, monkeypatch, capsys):
    said = talked(speaker, monkeypatch, capsys, ["/help", "/quit", "Say red."])
    assert not said.out
    assert "/system TEXT" in said.err


def test_turns_that_no_longer_fit_are_left_out_from_the_front(speaker, monkeypatch, capsys):
    context = speaker.model.config.max_position_embeddings
    long = "word " * (context // 12)
    said = talked(speaker, monkeypatch, capsys, [long, "Say red.", "Say blue. " + long, "word " * context])
    assert "the first 1 of 2 turns no longer fit the context" in said.err
    assert f"the model's context holds {context}" in said.err
    assert len(said.out.splitlines()) == 4


# ------------------------------------------------------------------------------------------------------- one rendering


@pytest.mark.parametrize("template", ["alpaca", "alpaca-paired", "chatml", "phi-3"])
def test_train_generate_chat_and_a_judge_render_a_prompt_byte_for_byte_alike(
    tiny_llama, template, monkeypatch, capsys, tmp_path
):
    """What reaches the model, token for token, in each of the four."""
    settings = [f"model.name_or_path={tiny_llama}", f"template.name={template}", "generate.max_new_tokens=2"]
    speaker = LoadedModel.load(load_config(None, [*settings, "model.dtype=float32"]))
    given = []
    hook = speaker.model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )

    def asked(ask):
        given.clear()
        ask()
        return max(given, key=len)

    for system, message in (("", "Say <|im_end|> red."), ("Be brief.", "Sag röt! 你好 ")):
        conversation = question(system, (), message)
        example = Encoder(speaker.encoder.text, 1024).example(conversation)
        assert isinstance(example, Example)
        trained_on = example.token_ids[: example.num_prompt_tokens].tolist()
        streamed = asked(lambda: list(speaker.stream(question(system, (), message))))  # noqa: B023
        in_a_file = asked(lambda: answered(speaker, tmp_path / f"{len(message)}.jsonl", [conversation]))  # noqa: B023
        in_a_chat = asked(lambda: talked(speaker, monkeypatch, capsys, [message], system=system))  # noqa: B023
        judge = ModelJudge("model:it", {}, answer_all_of(speaker))
        questioned = [Question(system, message, "nonce", None)]
        as_a_judge = asked(lambda: judge.ask_all(questioned, lambda at, outcome: None))  # noqa: B023
        assert trained_on == streamed == in_a_file == in_a_chat == as_a_judge
        assert speaker.encoder.text.token_text(trained_on) == speaker.encoder.prompt_text(conversation)
    hook.remove()
