"""`tuneful compare`: two sides found, paired, compared, shown, written; and every way in which they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tuneful import cli
from tuneful.commands import run as api
from tuneful.commands.compare import compare
from tuneful.config import DataConfig, load_config
from tuneful.console import Terminal
from tuneful.errors import DataError, GateError, InputError
from tuneful.evaluation.answered import kind_of, pair, read_answered
from tuneful.evaluation.documents import document_score
from tuneful.evaluation.ratings import text_sha256
from tuneful.runs import measure as measuring
from tuneful.runs.schema import GeneralScore, RatingRow, as_row

MEASURE = measuring._measure_general
WORDS = ["red", "green", "blue", "pink", "grey", "gold", "teal", "white", "black", "brown"]


def record(index: int) -> dict[str, Any]:
    return {
        "instruction": f"Name color {index}.",
        "input": "",
        "output": f"The color is {WORDS[index % 10]}.",
        "category": "odd" if index % 2 else "even",
        "source": f"my.json:{index}",
    }


def write_run(path: Path, right: int, num_items: int = 20, *, scored: bool = True) -> Path:
    """A run folder whose tuned model gets the first `right` items right and whose base model gets none."""
    rows = [record(index) for index in range(num_items)]
    for folder in ("answers", "data", "scores", "general"):
        (path / folder).mkdir(parents=True)
    (path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, num_right in (("base", 0), ("tuned", right)):
        answers = [
            {
                "source": row["source"],
                "prompt": "rendered",
                "text": row["output"] if index < num_right else "No idea.",
                "finish_reason": "stop",
                "num_tokens": 5,
            }
            for index, row in enumerate(rows)
        ]
        (path / "answers" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        scores = [
            {"source": row["source"], "score": 90 if index < num_right else None} for index, row in enumerate(rows)
        ]
        if scored:
            finding = {"judge": "j", "verdict": "usable", "num_questions": 40, "sentence": "j passed every probe."}
            evaluation = {"judge": "j", "protocol": "score", "answers": {}, "finding": finding}
            (path / "evaluation.json").write_text(json.dumps(evaluation))
            (path / "scores" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
        general = {"kind": "passage", "source": "news.txt#1", "nll": 100.0 + right, "num_tokens": 50, "num_bytes": 200}
        (path / "general" / f"{name}.jsonl").write_text(json.dumps(general) + "\n")
        costs = [
            {"source": row["source"], "nll": 10.0 - (index < num_right), "num_tokens": 6}
            for index, row in enumerate(rows)
        ]
        (path / "answers" / f"{name}-references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in costs))
    return path


def compared(a: Path, b: Path, *settings: str, output: Path | None = None) -> dict[str, Any]:
    config = load_config(None, ["report.num_resamples=500", *settings])
    return compare(a, b, config=config, output=output).document


def metrics(document: dict[str, Any]) -> dict[str, Any]:
    return {metric["name"]: metric for metric in (*document["metrics"], *document["forgetting"])}


def run_cli(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["compare", *arguments], env={"COLUMNS": "80"})


def test_the_records_of_a_run_are_read_as_the_run_read_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=12, scored=False)
    rows = [json.loads(line) for line in (run / "data" / "test.jsonl").read_text().splitlines()]
    named = [{"frage": row["instruction"], "antwort": row["output"], "source": row["source"]} for row in rows]
    (run / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    (run / "config.yaml").write_text("data:\n  columns: {instruction: frage, output: antwort}\n")
    assert len(read_answered(str(run), DataConfig()).items) == 20
    done = run_cli(str(run / "answers" / "base.jsonl"), str(run))
    assert done.exit_code == 0, done.output


def test_the_answer_key_says_which_of_two_answers_is_compared(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {i}.", "output": "yes", "text": "no", "theirs": "yes"} for i in range(8)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    assert {item.text for item in read_answered(str(file), DataConfig()).items} == {"no"}
    assert {item.text for item in read_answered(str(file), DataConfig(), "theirs").items} == {"yes"}
    assert run_cli(str(file), str(file), "--answer-key", "theirs").exit_code == 0


def test_a_folder_called_answers_beside_another_programs_config_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "config.yaml").write_text("colour: red\n")
    (tmp_path / "answers" / "mine-references.jsonl").write_text('{"title": "not ours"}\n')
    file = tmp_path / "answers" / "mine.jsonl"
    file.write_text('{"instruction": "Ask.", "output": "yes", "text": "yes"}\n')
    assert [item.text for item in read_answered(str(file), DataConfig()).items] == ["yes"]


def test_two_run_folders_are_compared_with_all_that_lies_in_them(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", right=4), write_run(tmp_path / "b", right=14)
    document = compared(a, b)
    found = metrics(document)
    assert document["num_items"] == 20
    assert (found["exact_match"]["base"], found["exact_match"]["tuned"]) == (0.2, 0.7)
    assert (found["exact_match"]["wins"], found["exact_match"]["ties"], found["exact_match"]["verdict"]) == (
        10,
        10,
        "better",
    )
    assert found["reference_loss"]["difference"] == pytest.approx(-10 / 120)
    assert found["forgetting"]["difference"] > 0
    assert found["judge_score"]["num_items"] == 4  # those that were scored in both runs
    assert {kind["kind"]: kind["num_items"] for kind in document["kinds"]} == {"even": 2, "odd": 2}  # by the judge
    assert document["names"] == {"base": str(a), "tuned": str(b)}
    assert document["items"][10]["gain"] is None  # by the judge, who did not score it in A


def test_the_answers_of_a_run_before_and_after_are_compared_by_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=12, scored=False)
    document = compared(run / "answers" / "base.jsonl", run / "answers" / "tuned.jsonl")
    assert document["sentence"].startswith("B's answers are better on ROUGE-L: 0.00 -> 0.60 (+0.60, 95 % interval +")
    assert [item["gain"] for item in document["items"]] == [1.0] * 12 + [0.0] * 8


def test_files_of_other_programs_are_compared_by_task_and_reference(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {index}.", "output": "yes", "model_response": "yes"} for index in range(8)]
    one, other = tmp_path / "one.json", tmp_path / "other.jsonl"
    one.write_text(json.dumps([{**row, "model_response": "no"} for row in rows]))
    other.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows[1:])))
    pairing = pair(read_answered(str(one), DataConfig()), read_answered(str(other), DataConfig()))
    assert [(a.prompt, a.text, b.text) for a, b in zip(pairing.base, pairing.tuned, strict=True)] == [
        (f"Ask {index}.", "no", "yes") for index in range(1, 8)
    ]
    assert (pairing.num_only_base, pairing.num_only_tuned) == (1, 0)
    assert metrics(compared(one, other))["exact_match"]["verdict"] == "better"


def test_an_item_that_stands_twice_is_paired_twice(tmp_path: Path) -> None:
    rows = [{"instruction": "Ask.", "output": "yes", "text": text} for text in ("one", "two", "three")]
    file, fewer = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text(json.dumps(rows))
    fewer.write_text(json.dumps(rows[:2]))
    pairing = pair(read_answered(str(file), DataConfig()), read_answered(str(fewer), DataConfig()))
    assert [(a.text, b.text) for a, b in zip(pairing.base, pairing.tuned, strict=True)] == [
        ("one", "one"),
        ("two", "two"),
    ]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ({"category": " summary "}, "summary"),
        ({"kind": "", "type": "qa"}, "qa"),
        ({"task": "Write a long text about whatever comes to your mind, at least 100 words."}, None),
        ({"kind": 3}, None),
    ],
)
def test_the_kind_is_the_first_short_text_under_a_known_key(raw: dict[str, Any], kind: str | None) -> None:
    assert kind_of(raw) == kind


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.mkdir(), "holds no answers/tuned.jsonl"),
        (lambda path: path.write_text('{"source": "x:1", "prompt": "", "text": "a"}\n'), "no such file"),
        (
            lambda path: path.write_text('[{"instruction": "a", "output": "b"}]'),
            "no answer under `text` or `model_response`",
        ),
        (
            lambda path: path.write_text('[{"instruction": "x", "output": "b", "text": "c"}]'),
            "no item in common (of 1 and 20)",
        ),
        (lambda path: None, "no such file"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "bad.jsonl")
    good = write_run(tmp_path / "good", right=3)
    with pytest.raises(DataError) as refused:
        compared(tmp_path / "bad.jsonl", good)
    assert message in str(refused.value)


def test_an_answer_without_its_record_is_named_with_its_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=3)
    with (run / "answers" / "tuned.jsonl").open("a") as file:
        file.write('{"source": "my.json:99", "prompt": "", "text": "a", "finish_reason": "stop", "num_tokens": 1}\n')
    with pytest.raises(
        DataError, match=r"tuned.jsonl:21: the record my.json:99 that it answers is nowhere to be found"
    ):
        read_answered(str(run), DataConfig())


def test_the_command_shows_the_verdict_in_eighty_columns_and_the_answers_that_changed(
    tmp_path: Path, capfd: Any
) -> None:
    run = write_run(tmp_path / "run", right=12, scored=False)
    done = run_cli(str(run / "answers" / "base.jsonl"), str(run / "answers" / "tuned.jsonl"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_items"] == 20
    shown = done.stderr
    assert max(map(len, shown.splitlines())) <= 80
    assert "B's answers are better on ROUGE-L" in " ".join(shown.split())
    assert "ROUGE-L by item: 12 better, 0 worse, 8 the same; p < 0.001 (exact permutation test)" in " ".join(
        shown.split()
    )
    assert "The color is red." in shown
    assert "20 answers = 20 compared + 0 left out" in " ".join(shown.split())


def test_the_gate_decides_the_exit_after_everything_is_written(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", right=2, scored=False), write_run(tmp_path / "b", right=12, scored=False)
    met = run_cli(str(a), str(b), "--gate", "rouge_l>=0.3, forgetting<=1", "--quiet")
    assert met.exit_code == 0, met.output
    unmet = run_cli(str(a), str(b), "--gate", "rouge_l>=0.3, forgetting<=0.05", "--output", str(tmp_path / "out"))
    assert isinstance(unmet.exception, GateError)
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(one["condition"], one["met"]) for one in written["gate"]] == [
        ("rouge_l>=0.3", True),
        ("forgetting<=0.05", False),
    ]
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_a_comparison_wrote_can_be_compared_again(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", right=2, scored=False), write_run(tmp_path / "b", right=12, scored=False)
    first = compared(a, b, output=tmp_path / "out")
    again = compared(a, tmp_path / "out")
    assert metrics(again)["rouge_l"] == metrics(first)["rouge_l"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"Say {number}.", "output": f"It is {number}.", "kind": "even" if number % 2 == 0 else "odd"}
        for number in range(40)
    ]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    return file


def tiny_settings(tiny_llama: Path, *more: str) -> list[str]:
    return [
        f"model.name_or_path={tiny_llama}", "model.dtype=float32", "train.max_steps=3", "generate.max_new_tokens=3",
        "data.test_share=0.3", "report.num_resamples=200", *more,
    ]  # fmt: skip


def test_a_run_measures_forgetting_and_kinds_and_its_gate_decides_the_exit(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    general, run = tmp_path / "general.txt", tmp_path / "run"
    general.write_text("The capital of France is Paris.\n\nThat is what it was.\n")
    options = ["--gate", "forgetting<=9, rouge_l>=2", "--general", str(general), "--output", str(run), "--json"]
    done = CliRunner().invoke(cli.app, ["run", str(data), *tiny_settings(tiny_llama), *options])
    assert isinstance(done.exception, GateError), done.output
    assert "rouge_l>=2 (found " in str(done.exception)
    assert json.loads(done.stdout)["comparison"]["forgetting"][0]["num_items"] == 2
    written = json.loads((run / "comparison.json").read_text())
    assert [(one["condition"], one["met"]) for one in written["gate"]] == [
        ("forgetting<=9", True),
        ("rouge_l>=2", False),
    ]
    assert [metric["name"] for metric in written["forgetting"]] == ["forgetting", "kl_to_base"]
    assert {kind["kind"] for kind in written["kinds"]} == {"even", "odd"}
    assert (run / "report.html").is_file()
    costs = metrics(compared(run / "answers" / "base.jsonl", run))
    assert costs["forgetting"]["difference"] == pytest.approx(written["forgetting"][0]["difference"])
    assert costs["reference_loss"]["difference"] == pytest.approx(metrics(written)["reference_loss"]["difference"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["report.gate='rogue_l>=0'"], "unknown metric `rogue_l`: did you mean `rouge_l`"),
        (["report.gate='forgetting<=0'", "report.general=none"], "needs general text, and report.general is none"),
        (["report.gate='judge_score>=0'"], "'judge_score>=0' needs a judge, and judge.model names none"),
        (["report.gate='rouge_l>=0'", "data.test_share=0"], "`report.gate` needs test records"),
        (["report.general=nowhere.txt"], "nowhere.txt: general text cannot be read"),
    ],
)
def test_a_gate_that_could_not_be_checked_is_refused_before_anything_is_trained(
    data: Path, tiny_llama: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    done = CliRunner().invoke(
        cli.app, ["run", str(data), *tiny_settings(tiny_llama, *settings), "--output", str(tmp_path / "run")]
    )
    assert message in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_what_a_run_measured_before_it_was_cut_off_is_taken_as_it_is_unless_the_text_is_another(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    general, run = tmp_path / "general.txt", tmp_path / "run"
    general.write_text("The capital of France is Paris.\n")
    measured: list[str] = []

    def measure(run: Any, engine: Any, name: str) -> Any:
        had = run.folder.read_rows(GeneralScore, f"general/{name}.jsonl")
        found = MEASURE(run, engine, name)
        is_same = had == run.folder.read_rows(GeneralScore, f"general/{name}.jsonl")
        measured.append(f"{name}: {'again' if is_same else 'anew'}")
        if len(measured) in (1, 2):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(measuring, "_measure_general", measure)
    for attempt in range(3):
        if attempt == 2:
            general.write_text("Another text.\n")
        config = load_config(None, tiny_settings(tiny_llama, f"report.general={general}"))
        if attempt < 2:
            with pytest.raises(KeyboardInterrupt):
                api.run(str(data), config=config, output=run)
        else:
            api.run(str(data), config=config, output=run)
    assert measured == ["base: anew", "base: again", "base: anew", "tuned: anew"]


def rate(run: Path, preferences: dict[str, str], a: str = "No idea.") -> None:
    """Ratings of base (`a`) against tuned answers: a letter an item for each rater, t tuned, b base, 0 tie, x both bad."""
    rows = []
    for rater, letters in preferences.items():
        for index, letter in enumerate(letters):
            rows.append(
                RatingRow(
                    f"my.json:{index}",
                    rater,
                    "base",
                    "tuned",
                    {"t": "b", "b": "a", "0": "tie", "x": "both_bad"}[letter],  # type: ignore[arg-type]
                    "a",
                    "",
                    "2026-11-30T00:00:00+00:00",
                    text_sha256(a),
                    text_sha256(record(index)["output"]),
                )
            )
    (run / "ratings.jsonl").write_text("".join(json.dumps(as_row(row)) + "\n" for row in rows))


def test_what_people_preferred_is_a_metric_with_counts_and_kappa(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=20)
    rate(run, {"ada": "tttttttttttt", "bob": "ttttttttttb0"})
    found = compared(run / "answers" / "base.jsonl", run, "report.gate=people_preference>=0.5")
    metric = next(one for one in found["metrics"] if one["name"] == "people_preference")
    assert (metric["num_items"], metric["wins"], metric["ties"], metric["losses"]) == (12, 11, 1, 0)
    assert metric["tuned"] == pytest.approx((10 + 0.5 + 0.75) / 12)
    assert metric["verdict"] == "better"
    people = found["people"]
    assert (people["num_raters"], people["num_ratings"], people["num_items"], people["num_left_out"]) == (2, 24, 12, 0)
    assert (people["tuned_preferred"], people["base_preferred"], people["ties"], people["both_bad"]) == (22, 1, 1, 0)
    assert (people["agreement"]["statistic"], people["agreement"]["num_items"]) == ("Cohen's kappa", 12)
    assert found["gate"][0]["met"]
    assert found["items"][11]["tuned"]["people_preference"] == 0.75
    assert found["items"][12]["tuned"]["people_preference"] is None
    turned = compared(run, run / "answers" / "base.jsonl")
    assert turned["people"]["base_preferred"] == 22
    assert next(one for one in turned["metrics"] if one["name"] == "people_preference")["verdict"] == "worse"


def test_ratings_of_other_answers_count_nowhere_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", right=20)
    rate(run, {"ada": "ttt"}, a="Another answer.")
    found = compare(run / "answers" / "base.jsonl", run, terminal=Terminal()).document
    assert "people" not in found
    assert "3 ratings in ratings.jsonl are of other answers" in "".join(capsys.readouterr())


def test_damaged_ratings_are_named_with_their_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=20)
    rate(run, {"ada": "ttt"})
    text = (run / "ratings.jsonl").read_text().replace('"preference": "b"', '"preference": "c"', 1)
    (run / "ratings.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"ratings.jsonl:1: damaged"):
        compared(run / "answers" / "base.jsonl", run)


def test_the_report_of_a_comparison_has_a_section_on_people(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", right=20)
    rate(run, {"ada": "tttttttttttt", "bob": "ttttttttttb0", "cem": "tttttttttttt"})
    compared(run / "answers" / "base.jsonl", run, output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 people gave 36 ratings of 12 items: 1 for A, 34 for B, 1 as good, 0 both bad." in page
    assert "Fleiss&#39; kappa" in page


# Documents


def with_documents(run: Path, texts: list[str], nll: float) -> Path:
    """What the documents of the test set cost the trained model of `run`, a folder of a run that read them."""
    (run / "documents").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    rows = [document_score(f"{run.name}.txt:{at}", text, nll, 8) for at, text in enumerate(texts)]
    lines = "".join(json.dumps(as_row(row)) + "\n" for row in rows)
    for name in ("base", "tuned"):
        (run / "documents" / f"{name}.jsonl").write_text(lines)
    return run


def test_two_runs_that_read_documents_are_compared_by_what_these_cost(tmp_path: Path) -> None:
    one = with_documents(tmp_path / "one", ["the tide", "the sand", "the sea"], 12.0)
    other = with_documents(tmp_path / "other", ["the sand", "the tide", "a stone"], 9.0)
    result = run_cli(str(one), str(other), "--output", str(tmp_path / "compared"))
    assert result.exit_code == 0, result.output
    assert "3 documents = 2 compared, 1 only here and left out" in " ".join(result.output.split())
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert [metric["name"] for metric in found["metrics"]] == ["document_perplexity", "document_bits"]
    assert metrics(found)["document_perplexity"]["num_items"] == 2
    assert found["names"] == {"base": str(one), "tuned": str(other)}
    assert compared(one / "documents" / "base.jsonl", other)["metrics"] == compared(one, other)["metrics"]


def test_documents_are_compared_beside_answers(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, right) for name, right in (("one", 5), ("other", 15)))
    found = metrics(compared(with_documents(one, ["the tide"], 12.0), with_documents(other, ["the tide"], 9.0)))
    assert {"exact_match", "document_perplexity", "document_bits"} <= found.keys()
    alone = with_documents(tmp_path / "alone", ["the tide"], 9.0)
    assert metrics(compared(one, alone)).keys() >= {"document_bits"}


def test_runs_that_read_other_documents_are_told_so(tmp_path: Path) -> None:
    one = with_documents(tmp_path / "one", ["the tide"], 12.0)
    other = with_documents(tmp_path / "other", ["the sand"], 9.0)
    with pytest.raises(DataError, match=r"no document in common \(of 1 and 1\)"):
        compared(one, other)


# Three and more


def test_three_runs_are_compared_every_two_corrected_for_their_number(tmp_path: Path) -> None:
    names = [
        str(write_run(tmp_path / name, right=right, scored=False)) for name, right in (("a", 3), ("b", 4), ("c", 18))
    ]
    done = run_cli(*names, "report.num_resamples=500", "--json", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "pairwise.json").read_text())
    assert [(side["letter"], side["name"], side["num_items"]) for side in document["sides"]] == [
        (letter, name, 20) for letter, name in zip("ABC", names, strict=True)
    ]
    assert document["pair_confidence"] == pytest.approx(1 - 0.05 / 3)
    assert document["num_resamples"] == 1200, "ten beyond either end"
    assert document["sentence"].startswith(
        "By ROUGE-L on 20 test items, C is better than all others; A and B cannot be told apart."
    )
    main = next(metric for metric in document["metrics"] if metric["name"] == "rouge_l")
    alone = metrics(compared(Path(names[0]), Path(names[2])))["rouge_l"]
    of_pair = next(pair for pair in main["pairs"] if (pair["base"], pair["tuned"]) == ("A", "C"))
    assert of_pair["difference"] == pytest.approx(alone["difference"])
    assert of_pair["p_value"] == pytest.approx(alone["p_value"])
    assert of_pair["p_corrected"] == pytest.approx(3 * alone["p_value"])
    assert of_pair["low"] < alone["low"] < alone["high"] <= of_pair["high"]
    assert {"forgetting", "reference_loss"} <= {metric["name"] for metric in document["metrics"]}
    shown = done.stderr
    assert max(map(len, shown.splitlines())) <= 80, shown
    assert "20 answers = 20 compared + 0 left out" in " ".join(shown.split())
    page = (tmp_path / "out" / "pairwise.html").read_text()
    assert "C is better than all others" in page
    known = [pair for one in document["metrics"] for pair in one["pairs"] if pair.get("low") is not None]
    assert page.count("<svg") == len(known) > 0
    assert "<script" not in page


def test_items_that_one_of_three_lacks_are_left_out_of_all(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {index}.", "output": "yes", "text": "yes <b>"} for index in range(9)]
    files = []
    for name, kept in (("a", rows), ("b", rows[1:]), ("c", rows[:-2])):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(kept))
    result = compare(*files)
    assert [(side.num_items, side.num_left_out) for side in result.comparison.sides] == [(6, 3), (6, 2), (6, 1)]
    assert "these three cannot be told apart: A, B and C" in repr(result)


def test_nine_sides_fit_eighty_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": f"Ask {i}.", "output": "yes", "text": "yes"} for i in range(8)]))
    done = run_cli(*[str(file)] * 9, "report.num_resamples=100")
    assert done.exit_code == 0, (done.output, done.exception)
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert "these nine cannot be told apart" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'A'; see tuneful compare --help"),
        (("a.json",), "Missing argument 'B'; see tuneful compare --help"),
        (("a.json", "a.json", "a.json", "--gate", "rouge_l>=0"), "a gate is for two sides, and there are 3"),
        (("a.json", "a.json", "nowhere.json"), "nowhere.json"),
        (("a.json",) * 27, "at most 26 sides are compared at once, not 27"),
        (("a.json", "a.json", "report.num_resample=3"), "report.num_resample"),
    ],
)
def test_what_cannot_be_asked_of_several_sides_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(
        json.dumps([{"instruction": f"Ask {i}.", "output": "yes", "text": "yes"} for i in range(8)])
    )
    done = run_cli(*arguments)
    assert isinstance(done.exception, InputError), done.output
    assert message in str(done.exception)


def test_three_runs_that_held_out_documents_are_compared_by_them(tmp_path: Path) -> None:
    for name, nll in (("a", 60.0), ("b", 60.5), ("c", 30.0)):
        folder = tmp_path / name / "documents"
        folder.mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
        costs = [document_score(f"d:{i}", f"Document number {i}.", nll + i, 20) for i in range(12)]
        (folder / "tuned.jsonl").write_text("".join(json.dumps(as_row(one)) + "\n" for one in costs))
    result = compare(*(tmp_path / name for name in "abc"), config=load_config(None, ["report.num_resamples=500"]))
    assert result.comparison.headline == "document_perplexity"
    assert result.comparison.main.sentence.startswith("C is better than all others")
