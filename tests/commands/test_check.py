"""`tuneful check` as a person and a program meet it: exit codes, the page, the document, the fixed file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.planted import AGAINST, clean_records, record, write_planted, write_rows
from tests.doubles.tool_templates import DROPS_THOUGHTS

import tuneful
from tuneful.cli import main
from tuneful.commands import check as checking
from tuneful.config import load_config
from tuneful.data.read import read_data
from tuneful.model.load import load_tokenizer
from tuneful.model.tokenizer_file import find_locally, read_tokenizer_file
from tuneful.types import Example


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Check = Callable[..., Ended]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs `tuneful check ARGUMENTS` in `tmp_path`, 80 columns wide, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tuneful", "check", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        read = capsys.readouterr()
        return Ended(int(ended.value.code or 0), read.out, read.err)

    return run


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    write_planted(tmp_path / "planted.jsonl")
    write_rows(tmp_path / "benchmark.jsonl", AGAINST)
    return tmp_path


def test_how_rows_were_read_is_on_the_page_and_in_the_document(check: Check, tmp_path: Path) -> None:
    notes = [{"instruction": "Translate.", "input": f"Note {n} here.", "response": f"Zettel {n}.", "remark": f"see page {n}"}
             for n in range(48)]  # fmt: skip
    write_rows(tmp_path / "notes.jsonl", notes)
    page = " ".join(check("notes.jsonl", "data.test_share=0", "data.validation_share=0").out.split())
    remark = "`remark` holds text in 48 records and is not used; data.columns=context=remark puts it into the prompt"
    renamed = "`input` is read as `context` in 48 records"
    assert f"{remark} (first: notes.jsonl:1)" in page
    assert f"{renamed} (first: notes.jsonl:1)" in page
    assert "contradict" not in page.partition("Looked for")[0]
    document = json.loads(check("notes.jsonl", "--json").out)
    assert [(note["kind"], note["name"], note["num_records"]) for note in document["reading"]] == [
        ("unused_text", "remark", 48),
        ("renamed", "input", 48),
    ]
    assert document["reading"][0]["text"] == remark


def test_the_page_fits_a_terminal_and_ends_with_0_or_under_strict_with_3(
    planted: Path, tiny_llama: Path, check: Check
) -> None:
    model = ("--model", str(tiny_llama))
    done = check("planted.jsonl", *model)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "planted.jsonl: 167 rows read = 163 used + 4 refused"
    assert max(map(len, lines)) <= 80
    assert "Answers that are a missing value written out  5 records" in lines
    assert "  planted.jsonl:8   None" in [line.rstrip() for line in lines]
    assert check("planted.jsonl", "--strict", *model).code == 3


def test_a_check_with_the_tokenizer_imports_neither_torch_nor_transformers(planted: Path, tiny_llama: Path) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['tuneful', 'check', 'planted.jsonl', '--json', '--model', {str(tiny_llama)!r}]\n"
        "from tuneful.cli import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tuneful.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=planted, env=environment, check=True
    )
    assert done.stderr.splitlines()[-1] == "set()"
    assert json.loads(done.stdout)["unit"] == "tokens"


def test_a_clean_file_passes_strict(tmp_path: Path, tiny_llama: Path, check: Check) -> None:
    write_rows(tmp_path / "clean.jsonl", clean_records(30))
    done = check("clean.jsonl", "--strict", "--model", str(tiny_llama))
    assert done.code == 0
    assert "Nothing was found" in done.out


@pytest.mark.parametrize("content", ["", "not JSON\n", None, '{"question": 1}\n'])
def test_what_cannot_be_read_ends_with_2(tmp_path: Path, content: str | None, check: Check) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    done = check("rows.jsonl")
    assert done.code == 2
    assert done.err.splitlines()[0].startswith("error: rows.jsonl")
    assert done.out == ""


def test_without_the_tokenizer_lengths_are_words_and_nothing_is_fetched(planted: Path, check: Check) -> None:
    done = check("planted.jsonl", "--json")
    document = json.loads(done.out)
    assert document["unit"] == "words"
    assert "is not on this machine" in document["without_tokens"]
    assert not (planted / "cache").exists()
    page = check("planted.jsonl").out
    assert "Lengths are in words" in page
    assert "unwritable characters" not in page


def test_the_document_names_every_place_and_counts_every_row(planted: Path, tiny_llama: Path, check: Check) -> None:
    done = check(
        "planted.jsonl",
        "--json",
        "--against",
        "benchmark.jsonl",
        "--fix",
        "fixed.jsonl",
        "--model",
        str(tiny_llama),
    )
    document = json.loads(done.out)
    assert document["rows_read"] == document["rows_used"] + document["rows_refused"] == 167
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert findings["null_answers"]["sources"] == [f"planted.jsonl:{line}" for line in (8, 10, 12, 14, 16)]
    assert findings["overlap"]["count"] == 1
    assert {"why", "fix", "cases", "severity"} <= findings["overlap"].keys()
    fixes = document["fix"]
    assert fixes["num_read"] == fixes["num_kept"] + fixes["num_changed"] + sum(fixes["dropped"].values())
    assert len((planted / "fixed.jsonl").read_text(encoding="utf-8").splitlines()) == 161


def test_fix_overwrites_nothing_and_needs_a_file(planted: Path, check: Check) -> None:
    for arguments, said in (
        (["planted.jsonl", "--fix", "benchmark.jsonl"], "exists already"),
        (["-", "--fix", "out.jsonl"], "standard input can be read once"),
        (["planted.jsonl", "--fix", "no/such/out.jsonl"], "cannot be written"),
    ):
        done = check(*arguments)
        assert done.code == 2
        assert said in done.err


def test_a_tokenizer_read_from_its_file_gives_the_tokens_of_training(
    builtin: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [
        *clean_records(30),
        record("Schreibe <|im_end|> é 字 \U0001f600", "\u2028 x\n\n  y<|endoftext|>", "### Input:"),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    conversations = [one.conversation for one in read_data(str(tmp_path / "rows.jsonl")).records]
    for folder, name in ((builtin, "alpaca"), (tiny_llama, "chatml")):
        config = load_config(None, [f"template.name={name}", f"model.name_or_path={json.dumps(str(folder))}"])
        light, _ = checking.find_encoder(config)
        whole = encoder_of(load_tokenizer(folder), config)
        assert light is not None
        for one, other in zip(light.examples(conversations), whole.examples(conversations), strict=True):
            assert isinstance(one, Example)
            assert isinstance(other, Example)
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.weights.tolist() == other.weights.tolist()


def encoder_of(tokenizer: Any, config: Any) -> Any:
    from tuneful.encoding.prepare import make_encoder
    from tuneful.encoding.template import find_template
    from tuneful.encoding.tokens import TextEncoder

    return make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)


def test_a_folder_whose_tokenizer_may_be_more_than_its_file_is_left_to_transformers(
    tiny_llama: Path, tmp_path: Path
) -> None:
    settings = json.loads((tiny_llama / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    for changed in ({"tokenizer_class": "LlamaTokenizer"}, {"add_bos_token": True}, {"eos_token": "<none>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **changed}), encoding="utf-8")
        assert read_tokenizer_file(tmp_path) is None
    assert find_locally(str(tmp_path)) == tmp_path
    assert find_locally("no/such-model-anywhere") is None


def test_a_chat_template_is_checked_too(tmp_path: Path, tiny_llama: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", clean_records(20))
    (tmp_path / "my.jinja").write_text(
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        encoding="utf-8",
    )
    config = load_config(
        None, [f"template.file={tmp_path / 'my.jinja'}", f"model.name_or_path={json.dumps(str(tiny_llama))}"]
    )
    checked = checking.check(str(tmp_path / "rows.jsonl"), config=config)
    assert checked.audit.unit == "tokens"
    assert checked.audit.prompt.endswith("<|end|><|assistant|>")


PAIRS = [{"q": f"Which number is {n}?", "good": f"It is {n}.", "bad": f"It is {-n}."} for n in range(1, 21)]
DPO = ["train.objective=dpo", "data.columns=prompt=q,chosen=good,rejected=bad", "model.name_or_path=nowhere"]


@pytest.mark.parametrize("row", [PAIRS[4], {"q": PAIRS[4]["q"], "completion": "Five."}], ids=["pairs", "plain records"])
def test_a_file_given_with_against_is_read_under_the_columns_of_pairs(tmp_path: Path, row: dict[str, str]) -> None:
    write_rows(tmp_path / "rows.jsonl", PAIRS)
    write_rows(tmp_path / "benchmark.jsonl", [row])
    found = checking.check(
        str(tmp_path / "rows.jsonl"), config=load_config(None, DPO), against=[str(tmp_path / "benchmark.jsonl")]
    )
    assert [one.sources for one in found.audit.findings] == [(f"{tmp_path / 'rows.jsonl'}:5",)]
    assert [one.kind.name for one in found.audit.findings] == ["overlap"]


@pytest.mark.parametrize(
    "setting", ["weights=rows.jsonl=2", "formats=rows.jsonl=auto", "interleave_probs=rows.jsonl=1"]
)
def test_what_goes_by_file_says_nothing_of_a_file_given_with_against(tmp_path: Path, setting: str) -> None:
    write_rows(tmp_path / "rows.jsonl", clean_records(10))
    write_rows(tmp_path / "benchmark.jsonl", AGAINST)
    config = load_config(None, [f"data.{setting}", "model.name_or_path=nowhere"])
    found = checking.check(str(tmp_path / "rows.jsonl"), config=config, against=[str(tmp_path / "benchmark.jsonl")])
    assert found.audit.num_read == 10


def thinking(number: int, **more: str) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": f"It is {number}.", "reasoning_content": "Hm."} for _ in range(2)]
    asked = [{"role": "user", "content": f"Number {number + at}?"} for at in range(2)]
    return {"messages": [asked[0], answers[0], asked[1], answers[1]], **more}


def test_what_a_template_leaves_out_is_said_of_every_file(tmp_path: Path, tiny_llama: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [thinking(n) for n in range(2)])
    write_rows(tmp_path / "given.jsonl", [{**thinking(n + 10), "Remark": "More of it to read."} for n in range(3)])
    (tmp_path / "my.jinja").write_text(DROPS_THOUGHTS, encoding="utf-8")
    settings = [f"template.file={tmp_path / 'my.jinja'}", f"data.test_file={tmp_path / 'given.jsonl'}"]
    config = load_config(
        None, [*settings, "data.validation_share=0", f"model.name_or_path={json.dumps(str(tiny_llama))}"]
    )
    checked = checking.check(str(tmp_path / "rows.jsonl"), config=config)
    counts = [(note.kind, note.num_records) for note in checked.reading]
    assert [one for one in counts if one[0] == "thought_left_out"] == [("thought_left_out", 2), ("thought_left_out", 3)]
    assert ("unused_text", 3) in counts
