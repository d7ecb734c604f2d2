"""What somebody meets who uses the command line, the chat and the functions for the first time."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

import tuneful
from tuneful.cli import COMMANDS, _usage_error, app
from tuneful.commands.chat import HELP, ChatSession, converse
from tuneful.commands.check import find_encoder
from tuneful.commands.doctor import EXTRAS, show_findings
from tuneful.commands.examples import EXAMPLES
from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.data.notes import KINDS, Noted, ReadingNotes
from tuneful.data.read import read_data
from tuneful.infer.session import LoadedModel
from tuneful.model.given import as_name
from tuneful.model.load import load_model
from tuneful.sweep.grid import read_settings

ROWS = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(20)]
QUICK = ["train.max_steps=2", "train.batch_size=4", "generate.max_new_tokens=4", "report.general=none"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(model: object, *settings: str) -> Any:
    return load_config(overrides=[f"model.name_or_path={model}", "model.dtype=float32", *QUICK, *settings])


# The command line


def parsers() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        yield name, group.get_command(None, name)


def test_every_command_has_examples_that_it_understands() -> None:
    assert list(EXAMPLES) == list(COMMANDS)
    for name, command in parsers():
        for line in EXAMPLES[name]:
            program, verb, *arguments = shlex.split(line)
            assert (program, verb) == ("tuneful", name)
            context = command.make_context(name, list(arguments), resilient_parsing=True)
            assert not context.args, line
            own = [one for before, one in zip(["", *arguments], arguments, strict=False) if before != "--gate"]
            settings = [one for one in own if "=" in one and "." in one.partition("=")[0]]
            if "--tests" in arguments:
                settings.append(f"evaluation.tests=[{arguments[arguments.index('--tests') + 1]}]")
            if name == "sweep":
                grid, settings = read_settings(settings)
                settings += [f"{key}={value}" for key, values in grid.items() for value in values]
            load_config(overrides=settings)
            assert line in (command.epilog or "")


def test_model_and_output_have_short_names() -> None:
    options = {name: {flag for one in command.params for flag in one.opts} for name, command in parsers()}
    for name in ("run", "train", "generate"):
        assert {"-m", "-o"} <= options[name]
    for name in ("check", "show", "chat"):
        assert "-m" in options[name]


def test_a_shell_completes_commands() -> None:
    environment = {**os.environ, "_TUNEFUL_COMPLETE": "complete_bash", "COMP_WORDS": "tuneful che", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tuneful"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["check"]


def test_doctor_says_which_extras_are_there_and_how_large_the_cache_is(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    (cache / "file").write_bytes(bytes(1000))
    findings = tuneful.doctor()
    assert set(findings["extras"]) == set(EXTRAS)
    assert findings["cache_bytes"] >= 1000
    show_findings({**findings, "extras": {"judge": True, "qlora": False}}, Terminal(stderr=False))
    said = capsys.readouterr().out
    assert "judge installed, qlora not installed" in said
    assert "which may be deleted" in said


def test_one_validation_record_is_worth_a_word(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuneful.train(ROWS, config=config(tiny_llama), output=tmp_path / "run", terminal=Terminal())
    said = capsys.readouterr().err
    assert "one record is the whole validation set" in said
    assert f"tuneful chat --model {tmp_path / 'run'}" in said, "the next command"
    more = config(tiny_llama, "data.validation_share=0.4", "data.split=random")
    tuneful.train(ROWS, config=more, output=tmp_path / "two", terminal=Terminal())
    assert "one record is the whole" not in capsys.readouterr().err


# The chat


@pytest.fixture(scope="module")
def session(tiny_llama: Path) -> ChatSession:
    return ChatSession(LoadedModel.load(config(tiny_llama, "template.name=chatml")), Terminal(quiet=True))


def lines_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_message_may_have_several_lines(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quotes = '"""'
    lines_in(monkeypatch, f"one\n{quotes}two\nthree{quotes}\n{quotes}\n/four\n\nfive\n{quotes}\n/reset\n{quotes}six")
    asked: list[str] = []
    monkeypatch.setattr(session, "say", asked.append)
    converse(session, Terminal(quiet=True))
    assert asked == ["one", "two\nthree", "/four\n\nfive", "six"]


def test_the_help_of_the_chat_fits_a_terminal() -> None:
    assert max(map(len, HELP.splitlines())) <= 80


def test_an_answer_that_was_stopped_is_no_record_to_train_on(session: ChatSession, tmp_path: Path) -> None:
    session.run_command("/reset")
    pieces: Any = session.stream("Say red.")
    said = next(pieces)
    pieces.close()
    if said.strip():
        session.run_command(f"/save {tmp_path / 'half.jsonl'}")
        assert not (tmp_path / "half.jsonl").exists()
    session.answer("Say blue.")
    session.run_command(f"/save {tmp_path / 'chat.jsonl'}")
    (record,) = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [message["content"] for message in record["messages"] if message["role"] == "user"] == ["Say blue."]
    session.run_command("/reset")
    session.answer("Say green.")
    session.run_command(f"/save {tmp_path / 'again.jsonl'}")
    assert "Say green." in (tmp_path / "again.jsonl").read_text()


# The functions


def test_a_loaded_model_is_trained_as_its_folder_would_be(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    settings = load_config(overrides=["model.dtype=float32", *QUICK])
    given = tuneful.train(ROWS, model=(model, tokenizer), config=settings, output=tmp_path / "given")
    named = tuneful.train(ROWS, model=tiny_llama, config=settings, output=tmp_path / "named")
    weights = [(result.model / "model.safetensors").read_bytes() for result in (given, named)]
    assert weights[0] == weights[1]
    assert as_name((model, tokenizer)) == as_name((model, tokenizer))
    answers = [
        tuneful.generate("Say red.", model=one, config=config("x"))[0].text for one in (given.path, (model, tokenizer))
    ]
    assert len(answers) == 2


def test_what_is_no_model_is_told(tiny_llama: Path) -> None:
    with pytest.raises(tuneful.InputError, match=r"model is a int: give the name of a model"):
        tuneful.generate("Say red.", model=7)
    with pytest.raises(tuneful.InputError, match="give the name of a model, its folder, or"):
        tuneful.chat(model=AutoModelForCausalLM.from_pretrained(tiny_llama))


def test_nothing_fills_the_screen_of_whoever_tries_a_function(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    file = read_data(str(tmp_path / "rows.json"))
    result = tuneful.run(ROWS, config=config(tiny_llama), output=tmp_path / "run")
    compared = tuneful.compare(result.path, result.path)
    for one in (
        file,
        file.records[0],
        load_model(str(tiny_llama)),
        result,
        tuneful.check(ROWS, config=config(tiny_llama)),
        compared,
    ):
        assert len(repr(one)) < 600, type(one)


# What does not go as meant


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--learning-rate", "train.learning_rate"),
        ("--max_length", "data.max_length"),
        ("--epochs", "train.num_train_epochs"),
        ("--batch-size", "train.batch_size"),
        ("--columns", "data.columns"),
        ("--nonsense", None),
        ("-z", None),
    ],
)
def test_an_option_that_is_a_setting_is_refused_with_how_it_is_given(option: str, setting: str | None) -> None:
    with pytest.raises(Exception, match=f"No such option: {option}") as refused:
        app(["run", "my.json", option, "1"], prog_name="tuneful", standalone_mode=False)
    message = str(_usage_error(refused.value))
    assert message.startswith(f"No such option: {option}")
    assert message.endswith("; see tuneful run --help")
    assert ("a setting has no dashes" in message) is (setting is not None)
    assert setting is None or f"; a setting has no dashes: {setting}=VALUE, after the data; see" in message


def test_rows_that_are_not_listed_are_counted(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults: list[dict[str, Any]] = [
        {"output": ""},
        {"output": ""},
        {"output": None},
        {"output": "\ud800"},
        {"input": [1], "output": "It is."},
    ]
    rows = [*ROWS, *({"instruction": f"Say {number}.", "input": "", **fault} for number, fault in enumerate(faults))]
    settings = config(tiny_llama, "data.on_error=skip")
    tuneful.train(rows, config=settings, output=tmp_path / "run", terminal=Terminal())
    said = " ".join(capsys.readouterr().err.split())
    assert "+ 5 refused" in said
    joined = said.replace(" ", "")  # a long path is broken where the terminal ends, between any two signs
    assert ":21and1more:`output`isempty" in joined
    assert ":23:`output`isnull" in joined
    assert "refused 1 more for other reasons; `tuneful check` shows them, and the report of a run" in said


def test_few_test_records_are_worth_a_word_before_they_are_answered(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = config(tiny_llama, "data.split=ordered", "data.test_share=0.1")
    tuneful.run(ROWS, config=few, output=tmp_path / "run", terminal=Terminal())
    said = " ".join(capsys.readouterr().err.split())
    assert "2 test records: on fewer than 6 no difference can be told from chance; raise data.test_share" in said
    tuneful.train(ROWS, config=few, output=tmp_path / "train", terminal=Terminal())
    more = config(tiny_llama, "data.split=ordered", "data.test_share=0.3")
    tuneful.run(ROWS, config=more, output=tmp_path / "more", terminal=Terminal())
    assert "test records:" not in capsys.readouterr().err


def test_the_first_reason_of_a_row_that_cannot_be_used_is_told_whole(tmp_path: Path) -> None:
    file = tmp_path / "Kunden FAQ.csv"
    file.write_bytes("instruction,output\nWie?,So.\nWörter?,Größe.\nÜber?,Unter.\n".encode("cp1252"))
    (finding,) = [one for one in tuneful.check(str(file)).audit.findings if one.kind.name == "unusable_rows"]
    assert 'In Excel save it as "CSV UTF-8", or convert the file: iconv -f WINDOWS-1252' in finding.cases[0].text
    assert finding.cases[0].text.endswith("-utf8.csv'")
    assert finding.cases[1].text.endswith("...")
    assert len(finding.cases[1].text) == 79


def test_notes_are_written_in_the_number_of_what_they_count() -> None:
    one, two = ReadingNotes(), ReadingNotes()
    noted = Noted()
    for kind in KINDS:
        noted.add(kind, "`a`", "x")
    for notes, sources in ((one, "a"), (two, "ab")):
        for source in sources:
            notes.add(noted, source)
    singular, plural = ({note.kind: note.text for note in notes.notes(1)} for notes in (one, two))
    assert singular["greeting"].startswith("1 record begins with")
    assert plural["greeting"].startswith("2 records begin with")
    assert singular["calls"].startswith("1 answer calls tools")
    assert plural["unanswered_end"].startswith("2 records end with")
    assert "1 message of tools' is no text" in singular["result_as_json"]


def test_doctor_knows_every_extra_that_a_page_names() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(EXTRAS) == set(re.findall(r"^(\w+) = ", extras, re.MULTILINE)) - {"docs", "test", "dev"}


def test_a_model_that_is_not_there_yet_is_fetched_by_a_command_that_asks_nothing_back() -> None:
    encoder, why = find_encoder(load_config())
    assert encoder is None
    assert "`tuneful generate --model smollm2-135m-instruct --prompt Hello` fetches it" in why
