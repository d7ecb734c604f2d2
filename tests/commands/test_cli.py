"""The command line, on a tiny model: whole runs, every refusal one message, and what goes to which stream."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tuneful.cli import main
from tuneful.config import Config, load_config
from tuneful.runs.schema import Evaluation, Step, as_row, read_strictly
from tuneful.runs.schema.reference import FILES

WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal"]
ROWS = [
    {
        "instruction": f"Say {word} {num} times.",
        "input": word if num % 2 else "",
        "output": " ".join([word] * num),
        "id": num,
    }
    for word in WORDS
    for num in range(1, 5)
]
SHORT = ["train.max_steps=3", "train.batch_size=4", "generate.max_new_tokens=6", "report.num_resamples=200"]
QUICK = [*SHORT, "model.dtype=float32"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Tuneful = Callable[..., Ended]


def run_main(arguments: tuple[str, ...], patch: pytest.MonkeyPatch, capture: Any) -> Ended:
    patch.setattr(sys, "argv", ["tuneful", *arguments])
    capture.readouterr()
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    else:
        code = 0
    read = capture.readouterr()
    return Ended(code, read.out, read.err)


@pytest.fixture
def tuneful(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tuneful:
    """Runs the command in this process, in an empty folder, offline."""
    monkeypatch.chdir(tmp_path)
    for name in ("THP_MEM_ALLOC_ENABLE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments: run_main(arguments, monkeypatch, capsys)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "colours.json"
    file.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Run:
    """A finished `tuneful run`: its folder and how the command ended."""

    folder: Path
    ended: Ended

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def document(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def finished(data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole run on a file of 40 records with --json, whose folder many tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    command = ["run", str(data), "--model", str(tiny_llama), "--output", str(folder), "--json", *QUICK]
    done = subprocess.run([sys.executable, "-m", "tuneful.cli", *command], capture_output=True, text=True, check=False)
    return Run(folder, Ended(done.returncode, done.stdout, done.stderr))


# A whole run


def test_a_run_ends_well_and_prints_one_document(finished: Run) -> None:
    assert finished.ended.code == 0, finished.ended.err
    document = json.loads(finished.ended.out)
    assert set(document) == {"path", "report", "model", "comparison"}
    assert Path(document["report"]) == finished.folder / "report.html"
    assert document["comparison"]["num_items"] == 4


def test_the_run_folder_is_the_one_of_the_design(finished: Run) -> None:
    files = {str(file.relative_to(finished.folder)) for file in finished.folder.rglob("*") if file.is_file()}
    assert {file for file in files if not file.startswith("model/")} == {
        ".lock",
        "config.yaml",
        "run.json",
        "environment.json",
        "data.json",
        "data/train.jsonl",
        "data/validation.jsonl",
        "data/test.jsonl",
        "data/refused.jsonl",
        "metrics.jsonl",
        "records.jsonl",
        "training.json",
        "answers/base.jsonl",
        "answers/base-references.jsonl",
        "answers/tuned.jsonl",
        "answers/tuned-references.jsonl",
        "general/base.jsonl",
        "general/tuned.jsonl",
        "comparison.json",
        "report.html",
    }
    assert {file.removeprefix("model/") for file in files if file.startswith("model/")} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
        "tuneful.json",
    }


def test_every_file_of_a_run_holds_what_the_schema_says_to_the_last_field(finished: Run) -> None:
    seen = set()
    for place, (_, kinds) in FILES.items():
        for name in place.split(", "):
            if not (finished.folder / name).is_file():
                continue
            seen.add(name)
            is_rows = name.endswith(".jsonl")
            for row in finished.rows(name) if is_rows else [finished.document(name)]:
                kind = Step if "loss" in row and Step in kinds else Evaluation if Evaluation in kinds else kinds[0]
                again = as_row(read_strictly(kind, row, name))
                assert json.dumps(again) == json.dumps(row), name
    files = {str(file.relative_to(finished.folder)) for file in finished.folder.rglob("*.json*")}
    records = {f"data/{name}.jsonl" for name in ("train", "validation", "test")}
    assert {name for name in files if not name.startswith("model/")} - records == seen


def test_the_card_of_the_model_tells_the_comparison_and_no_path_of_this_machine(finished: Run, data: Path) -> None:
    card = ModelCard.load(finished.folder / "model" / "README.md")
    comparison = finished.document("comparison.json")
    measured = [*comparison["metrics"], *comparison["forgetting"]]
    assert [(one.metric_name, one.metric_value) for one in card.data.eval_results] == [
        (metric["label"], round(metric["tuned"], 6)) for metric in measured
    ]
    for metric, one in zip(measured, card.data.eval_results, strict=True):
        low = metric.get("low")  # of few items it is not known
        assert one.metric_args.get("low") == (None if low is None else round(low, 6))
        assert f"| {metric['label']} | {metric['base']:.3f} | {metric['tuned']:.3f} |" in card.text
    assert comparison["sentence"] in card.text
    assert f"| data | {data.name} |" in card.text
    assert finished.document("data.json")["sha256"] in card.text
    assert f"| weights of step | {finished.document('training.json')['kept_step']} |" in card.text
    for place in (finished.folder.parent, data.parent, Path(sys.prefix), Path.home()):
        assert str(place) not in str(card)
    assert not re.search(r"(?<![\w<])[/~][\w.-]+/", str(card)), "an absolute path"


def test_the_configuration_written_is_the_one_that_ran(finished: Run, data: Path, tiny_llama: Path) -> None:
    named = [f"model.name_or_path={tiny_llama}", f"data.train_file={data}"]
    expected = load_config(None, [*QUICK, *named, "data.max_length=512"])
    written = load_config(finished.folder / "config.yaml")
    assert written == expected  # 512: the model's context
    assert "data.max_length is lowered to 512" in finished.ended.err


def test_data_rows_are_as_they_were_read_with_their_source(finished: Run, data: Path) -> None:
    rows = [row for name in ("train", "validation", "test") for row in finished.rows(f"data/{name}.jsonl")]
    assert [len(finished.rows(f"data/{name}.jsonl")) for name in ("train", "validation", "test", "refused")] == [
        35,
        1,
        4,
        0,
    ]
    assert all(row["source"].startswith(f"{data}:") for row in rows)
    assert len({row["source"] for row in rows}) == len(ROWS)
    bare = [{key: value for key, value in row.items() if key != "source"} for row in rows]
    assert sorted(map(json.dumps, bare)) == sorted(map(json.dumps, ROWS))
    audit = finished.document("data.json")
    assert (audit["rows_read"], audit["rows_used"], audit["rows_refused"]) == (40, 40, 0)
    assert audit["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()


def test_metrics_have_a_line_a_step_and_a_line_an_evaluation(finished: Run) -> None:
    rows = finished.rows("metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "validation_loss" in row]
    assert len(steps) + len(evaluations) == len(rows)
    assert all(
        list(row)
        == [
            "step",
            "epoch",
            "loss",
            "learning_rate",
            "grad_norm",
            "target_tokens",
            "record_tokens",
            "computed_tokens",
            "step_seconds",
        ]
        for row in steps
    )
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["step"] for row in evaluations] == [0, 1, 2, 3]
    assert all(list(row)[:2] == ["step", "validation_loss"] for row in evaluations)
    assert ["sample" in row for row in evaluations] == [False] * (len(evaluations) - 1) + [True]


def test_answers_are_in_the_order_of_the_test_set_and_base_and_tuned_were_asked_alike(finished: Run) -> None:
    sources = [row["source"] for row in finished.rows("data/test.jsonl")]
    base, tuned = finished.rows("answers/base.jsonl"), finished.rows("answers/tuned.jsonl")
    for rows in (base, tuned):
        assert [row["source"] for row in rows] == sources
        assert all(list(row) == ["source", "prompt", "text", "finish_reason", "num_tokens"] for row in rows)
        assert all(row["finish_reason"] in ("stop", "length") and 1 <= row["num_tokens"] <= 6 for row in rows)
    assert [row["prompt"] for row in base] == [row["prompt"] for row in tuned]
    comparison = finished.document("comparison.json")
    assert [item["source"] for item in comparison["items"]] == sources


def test_the_environment_names_the_model_by_its_hash_and_the_time_of_every_phase(finished: Run) -> None:
    environment = finished.document("environment.json")
    assert len(environment["model"]["sha256"]) == 64
    assert environment["finished"] >= environment["started"]
    both = {f"{name}_{side}" for name in ("answers", "references", "general") for side in ("base", "tuned")}
    assert set(environment["phase_seconds"]) == {"setup", "self_check", "training", "saving", *both}
    tuned = {f"{name}_tuned" for name in ("answers", "references", "general")}
    assert set(environment["estimated_seconds"]) == {"training", "saving", *tuned}


def test_what_a_run_says_in_a_pipe_has_no_control_codes_and_no_broken_paths(finished: Run) -> None:
    err = finished.ended.err
    assert "\x1b" not in err
    assert "\r" not in err
    assert "40 rows = 40 used + 0 refused" in err
    assert "35 train, 1 validation, 4 test (grouped)" in err
    assert str(finished.folder / "report.html") in err
    assert "Below is an instruction" in err
    assert "⟦" in err


def test_a_model_remembers_the_template_it_was_trained_with(finished: Run) -> None:
    assert finished.document("model/tuneful.json") == {"template": "alpaca"}


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def what_counts(folder: Path) -> list[Any]:
    """Everything of a run that its seed decides: the numbers of metrics.jsonl but times, answers, scores, weights."""
    run = Run(folder, Ended(0, "", ""))
    metrics = [{key: value for key, value in row.items() if key != "step_seconds"} for row in run.rows("metrics.jsonl")]
    return [metrics, run.rows("answers/base.jsonl"), run.rows("answers/tuned.jsonl"), weights(folder)]


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(
    finished: Run, data: Path, tiny_llama: Path, tuneful: Tuneful, tmp_path: Path
) -> None:
    for name, more in (("again", []), ("other", ["train.seed=1"])):
        done = tuneful("run", str(data), "--model", str(tiny_llama), "--output", name, "--quiet", *QUICK, *more)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert what_counts(tmp_path / "again") == what_counts(finished.folder)
    assert weights(tmp_path / "other") != weights(finished.folder)


def test_answers_before_are_the_base_models(finished: Run, data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    test = Path("test.jsonl")
    test.write_text((finished.folder / "data" / "test.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    for name, model in (("base", tiny_llama), ("tuned", finished.folder / "model")):
        out = f"{name}.jsonl"
        done = tuneful("generate", "--data", "test.jsonl", "--model", str(model), "--output", out, *QUICK)
        assert done.code == 0, done.err
        own = [json.loads(line) for line in Path(out).read_text(encoding="utf-8").splitlines()]
        texts = [row["text"] for row in finished.rows(f"answers/{name}.jsonl")]
        assert [row["text"] for row in own] == texts


def test_a_run_without_a_test_set_trains_and_compares_nothing(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    shares = ["data.test_share=0", "data.validation_share=0"]
    done = tuneful("run", str(data), "--model", str(tiny_llama), "--output", "out", "--json", *QUICK, *shares)
    assert done.code == 0, done.err
    assert json.loads(done.out)["comparison"] is None
    assert not Path("out/answers").exists()
    assert Path("out/report.html").is_file()


def test_train_saves_a_model_and_answers_nothing(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    done = tuneful("train", str(data), "--model", str(tiny_llama), "template.name=chatml", *QUICK)
    assert (done.code, done.out) == (0, "")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("colours-")
    assert (folder / "model" / "model.safetensors").is_file()
    assert not (folder / "answers").exists()
    assert not (folder / "comparison.json").exists()
    asked = tuneful("generate", "--model", str(folder / "model"), "--prompt", "Say red.", "--json", *QUICK)
    assert json.loads(asked.out)["prompt"].startswith("<|im_start|>user\nSay red.")  # its own template


def test_a_refused_row_is_counted_shown_and_kept(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    bad = [{"instruction": "a"}, {"instruction": "b", "output": "\ud800"}, {"instruction": "c " * 600, "output": "d"}]
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, *bad])), encoding="utf-8")
    arguments = ["--model", str(tiny_llama), "--output", "out", "data.on_error=skip", *QUICK]
    done = tuneful("train", "mixed.jsonl", *arguments)
    assert done.code == 0, done.err
    assert "43 rows = 40 used + 3 refused" in done.err
    refused = Run(Path("out"), done).rows("data/refused.jsonl")
    assert [(row["source"], row["raw"]) for row in refused] == [
        (f"mixed.jsonl:{line}", raw) for line, raw in enumerate(bad, start=41)
    ]
    assert refused[2]["reason"].endswith(
        "over data.max_length=512 (data.on_long=cut_response or cut_input would cut it)"
    )


def test_a_gpt2_with_its_own_dropout_and_a_short_context_trains(data: Path, tiny_gpt2: Path, tuneful: Tuneful) -> None:
    done = tuneful("run", str(data), "--model", str(tiny_gpt2), "--output", "out", *QUICK)
    assert done.code == 0, done.err
    assert "lowered to 256" in done.err
    assert Run(Path("out"), done).document("environment.json")["layout"] == "padded"


# Generate, show, report, doctor


def test_generate_answers_one_prompt_on_standard_output_alone(tiny_llama: Path, tuneful: Tuneful) -> None:
    done = tuneful("generate", "--model", str(tiny_llama), "--prompt", "Say hi.", "--input", "hi", "--quiet", *QUICK)
    assert (done.code, done.err) == (0, "")
    document = json.loads(
        tuneful("generate", "--model", str(tiny_llama), "--prompt", "Say hi.", "--input", "hi", "--json", *QUICK).out
    )
    assert list(document) == ["source", "prompt", "text", "finish_reason", "num_tokens"]
    assert document["text"] + "\n" == done.out
    assert "### Input:\nhi\n\n### Response:\n" in document["prompt"]


def test_generate_reads_its_instruction_from_a_pipe(
    tiny_llama: Path, tuneful: Tuneful, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Say hi.\n"))
    done = tuneful("generate", "--model", str(tiny_llama), "--json", *QUICK)
    assert "### Instruction:\nSay hi.\n\n" in json.loads(done.out)["prompt"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert_refused(tuneful("generate", "--model", str(tiny_llama)), "nothing was asked: give --prompt TEXT")


def test_generate_answers_a_file_once_and_overwrites_nothing(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    arguments = ["generate", "--model", str(tiny_llama), "--data", str(data), "--output", "a.jsonl", "--json", *QUICK]
    done = tuneful(*arguments)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"answers": "a.jsonl", "num_answers": 40}
    assert "40 rows = 40 answered + 0 refused" in done.err
    before = Path("a.jsonl").read_bytes()
    assert len(before.splitlines()) == 40
    assert_refused(tuneful(*arguments), "a.jsonl: already exists; give another --output, or remove it")
    assert Path("a.jsonl").read_bytes() == before


def test_show_brackets_what_is_trained(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    done = tuneful("show", str(data), "--model", str(tiny_llama), "--rows", "2", "--start", "3")
    assert done.code == 0, done.err
    assert f"{data}:14  " in done.out
    assert "\n\n### Response:\n⟦red red red<|endoftext|>⟧\n" in done.out
    assert "\n\n### Response:\n⟦red red red red<|endoftext|>⟧\n" in done.out
    assert done.out.count("⟦") == 2


def test_show_writes_a_page(data: Path, tiny_llama: Path, tuneful: Tuneful, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = tuneful("show", str(data), "--model", str(tiny_llama), "--rows", "2", "--html", str(page))
    assert done.out.strip() == str(page)
    assert page.read_text(encoding="utf-8").count("<section>") == 2
    assert_refused(tuneful("show", str(data), "--html", str(page), "--json"), "--html shows tokens on a page")


def test_show_as_json_and_as_text(data: Path, tiny_llama: Path, tuneful: Tuneful) -> None:
    (record,) = json.loads(tuneful("show", str(data), "--model", str(tiny_llama), "--rows", "1", "--json").out)
    assert set(record) == {"source", "num_tokens", "num_trained", "seams_apart", "tokens"}
    assert sum(token["weight"] > 0 for token in record["tokens"]) == record["num_trained"]
    assert "".join(token["text"] for token in record["tokens"]).endswith("### Response:\nred<|endoftext|>")
    text = tuneful("show", str(data), "--text", "--rows", "1")
    assert text.out.endswith("\n\n### Instruction:\nSay red 1 times.\n\n### Input:\nred\n\n### Response:\n⟦red⟧\n")
    (document,) = json.loads(tuneful("show", str(data), "--text", "--rows", "1", "--json").out)
    assert document["text"] in text.out
    assert_refused(tuneful("show", str(data), "--start", "41"), f"{data}: has 40 records; there is none at 41")


def test_a_reader_that_leaves_early_is_no_error(data: Path) -> None:
    program = f"{sys.executable} -m tuneful.cli show {data} --text --rows 40 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_is_built_anew(finished: Run, tuneful: Tuneful) -> None:
    report = finished.folder / "report.html"
    before = report.read_bytes()
    report.unlink()
    done = tuneful("report", str(finished.folder))
    assert (done.code, done.out) == (0, f"{report}\n")
    assert report.read_bytes() == before


def test_doctor_examines_the_machine(tuneful: Tuneful) -> None:
    done = tuneful("doctor", "--json")
    assert done.code == 0, done.err
    assert {"tuneful", "python", "processor", "device", "dtype", "cache", "packages"} <= set(json.loads(done.out))
    spoken = tuneful("doctor")
    assert spoken.code == 0
    assert "processor" in spoken.out


# Refusals


def assert_refused(ended: Ended, *parts: str, code: int = 2) -> None:
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (tmp_path / "empty.json").touch()
    (tmp_path / "syntax.json").write_text('[\n{"instruction": "a",\n "output" "b"}\n]', encoding="utf-8")
    (tmp_path / "row.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', encoding="utf-8")
    (tmp_path / "good.json").write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").touch()
    (tmp_path / "bad.yaml").write_text("train:\n  batch_sise: 1\n", encoding="utf-8")
    return tmp_path


REFUSALS: dict[str, tuple[list[str], list[str]]] = {
    "a missing file": (["run", "nowhere.json"], ["nowhere.json: no such file"]),
    "a syntax error": (["run", "syntax.json"], ["syntax.json:3: not valid JSON"]),
    "a row without output": (["run", "row.jsonl"], ["row.jsonl:2: no `output`"]),
    "an empty file": (["run", "empty.json"], ["empty.json: the file is empty"]),
    "an unknown model folder": (["run", "good.json", "--model", "./nowhere"], ["there is no model folder ./nowhere"]),
    "an unknown model": (["run", "good.json", "--model", "no/body", "-q"], ["no/body is not", "in the Hub cache"]),
    "an unknown key": (
        ["run", "good.json", "train.batch_sise=1"],
        ["`train.batch_sise`: did you mean `train.batch_size`?"],
    ),
    "an unknown key in a file": (
        ["run", "good.json", "--config", "bad.yaml"],
        ["bad.yaml: unknown key `train.batch_sise`"],
    ),
    "a missing configuration": (["run", "good.json", "--config", "no.yaml"], ["no.yaml: no such configuration file"]),
    "a bad value": (["run", "good.json", "train.batch_size=0"], ["`train.batch_size`", "greater than or equal to 1"]),
    "a folder that is in use": (["run", "good.json", "--output", "full"], ["full: already exists and is not empty"]),
    "an output below a file": (["run", "good.json", "--output", "good.json/run"], ["good.json/run"]),
    "an unknown option": (["run", "--nonsense"], ["No such option: --nonsense", "see tuneful run --help"]),
    "an unknown command": (["tune"], ["No such command 'tune'"]),
    "a missing argument": (["train"], ["Missing argument 'DATA'"]),
    "an option without a value": (["run", "--model"], ["--model"]),
    "a number that is none": (["show", "--rows", "x"], ["--rows"]),
    "two ways of asking": (["generate", "--data", "good.json", "--prompt", "a"], ["two ways of asking"]),
    "an input for a file": (
        ["generate", "--data", "good.json", "--output", "a", "--input", "b"],
        ["--input goes with --prompt"],
    ),
    "an output for a prompt": (
        ["generate", "--prompt", "a", "--output", "b"],
        ["--output is for the answers of --data"],
    ),
    "no output for a file": (["generate", "--data", "good.json"], ["--data needs --output"]),
    "a folder that is no run": (["report", "full"], ["full"]),
    "a record too few": (["run", "good.json", "--output", "new"], ["too few for a train, a validation and a test set"]),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_wrong_request_is_one_message_and_exit_code_2(
    what: str, bad: Path, tiny_llama: Path, tuneful: Tuneful
) -> None:
    arguments, parts = REFUSALS[what]
    if what == "a record too few":
        arguments = [*arguments, "--quiet", "--model", str(tiny_llama)]
    before = sorted(str(file) for file in bad.rglob("*"))
    assert_refused(tuneful(*arguments), *parts)
    after = sorted(str(file) for file in bad.rglob("*") if file.name != "runs")
    assert after == before, "a refused request left something behind"


def test_debug_shows_where_it_happened() -> None:
    command = [sys.executable, "-m", "tuneful.cli", "show", "nowhere.json", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "DataError: nowhere.json: no such file" in done.stderr
    assert done.returncode not in (0, 120)


def test_a_defect_is_said_to_be_one(tuneful: Tuneful, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr("tuneful.commands.show._chosen", broken)
    ended = tuneful("show")
    assert ended.code == 1
    assert ended.err.startswith("error: ZeroDivisionError: by hand\n(this looks like a defect of Tuneful")


def test_a_tokenizer_that_stops_at_a_text_is_one_message(tuneful: Tuneful, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})

    def broken(*_: Any, **__: Any) -> None:
        raise panic("index out of bounds")

    monkeypatch.setattr("tuneful.commands.show._chosen", broken)
    ended = tuneful("show")
    assert ended.code == 2
    assert ended.err.startswith("error: the library of tokenizers stopped")
    assert ended.err.endswith("of the model: index out of bounds\n")


@pytest.mark.parametrize("arguments", [("--help",), ("run", "-h"), ("--version",), ()])
def test_asking_for_help_is_no_error(tuneful: Tuneful, arguments: tuple[str, ...]) -> None:
    ended = tuneful(*arguments)
    assert "error" not in ended.err
    assert "tuneful" in (ended.out + ended.err).lower()


def test_the_configuration_given_to_python_is_the_same_as_on_the_command_line() -> None:
    assert Config() == load_config()


@pytest.mark.parametrize("command", ["run", "train", "check", "show"])
def test_a_configuration_names_its_data_or_the_command_does(
    command: str, data: Path, tiny_llama: Path, tuneful: Tuneful, tmp_path: Path
) -> None:
    (tmp_path / "bare.yaml").write_text(f"model:\n  name_or_path: {tiny_llama}\n", encoding="utf-8")
    assert_refused(tuneful(command, "--config", "bare.yaml"), "bare.yaml: names no data (data.train_file)", "starter")


def test_the_configuration_of_a_run_begins_the_same_run_again(finished: Run, tuneful: Tuneful, tmp_path: Path) -> None:
    ended = tuneful("run", "--config", str(finished.folder / "config.yaml"), "--output", "again", "--quiet")
    assert ended.code == 0, ended.err
    for name in ("data/train.jsonl", "data/test.jsonl", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (finished.folder / name).read_bytes()
    shown = tuneful("show", "--config", "again/config.yaml", "--text", "--rows", "1")
    assert "colours.json:2" in shown.out
    assert "starter" not in shown.out


def test_a_function_without_data_takes_that_of_its_configuration_and_never_the_built_in_one(
    data: Path, tiny_llama: Path
) -> None:
    import tuneful as package

    named = load_config(overrides=[f"data.train_file={data}", f"model.name_or_path={tiny_llama}"])
    assert package.show(config=named, rows=1)[0].source.startswith(str(data))
    with pytest.raises(ValueError, match="no data was named: pass a file, or `starter`"):
        package.run(config=Config())
