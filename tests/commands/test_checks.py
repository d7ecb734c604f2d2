"""Checks of one's own by command: `evaluate` on answers from anywhere, `compare`, the gate and the headline, a run's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tuneful
from tuneful import cli
from tuneful.commands.compare import compare
from tuneful.commands.evaluate import evaluate
from tuneful.config import load_config
from tuneful.errors import ConfigError
from tuneful.runs.schema import CheckRow, ChecksDocument, Comparison, load_document, load_rows

LABELS = ("positive", "negative", "neutral")
CHECKS = """
- label:
- regex: ^\\w+\\.?$
  name: one_word
- json:
- python: own.py:long
  name: mean_length
"""
OWN = "def long(answer, reference):\n    return len(answer) if reference != 'neutral' else None\n"
OWN += "def size(answer):\n    return len(answer)\n"


def answers(folder: Path, name: str, num_right: int, num_items: int = 30) -> Path:
    """A file of answers of which the first `num_right` name their label."""
    rows = [
        {
            "instruction": f"Of which mood is text {index}?",
            "output": LABELS[index % 3],
            "text": LABELS[index % 3] if index < num_right else f"I think it is {LABELS[(index + 1) % 3]}",
            "category": "odd" if index % 2 else "even",
        }
        for index in range(num_items)
    ]
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "checks.yaml").write_text(CHECKS)
    (tmp_path / "own.py").write_text(OWN)
    answers(tmp_path, "before.jsonl", 6)
    answers(tmp_path, "after.jsonl", 24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checks_of(*settings: str) -> Any:
    return load_config(None, ["evaluation.checks=checks.yaml", "report.num_resamples=200", *settings])


def test_answers_from_anywhere_are_checked_without_a_judge_and_without_a_folder(folder: Path) -> None:
    result = evaluate("after.jsonl", config=checks_of())
    assert result.folder is None
    assert result.summary is None
    assert result.checks is not None
    label, one_word, is_json, length = result.checks.answers["after"]
    assert (label.value, label.num_scored, label.num_unscored) == (0.8, 30, 0)
    assert label.macro_f1 == pytest.approx(0.8)
    assert label.low is not None
    assert label.high is not None
    assert label.low < 0.8 < label.high
    assert [one.label for one in label.classes or ()] == sorted(LABELS)
    assert sum(map(sum, label.confusion or ())) == 30
    assert label.failed == {"another label": 6}
    assert (one_word.value, is_json.value) == (0.8, 0.0)
    assert length.unscored == {"returned None": 10}
    assert length.value is not None
    assert length.value > 1
    assert not (folder / "checks.json").exists()
    assert repr(result) == "EvaluationResult('None', after=30)"


def test_what_was_found_is_written_where_a_folder_is_named(folder: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["evaluate", "after.jsonl", "--checks", "checks.yaml", "--output", "out", "--json", "-q"]
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)["checks"]
    assert json.loads((folder / "out" / "checks.json").read_text()) == printed
    assert isinstance(load_document(ChecksDocument, folder / "out" / "checks.json"), ChecksDocument)
    rows = load_rows(CheckRow, folder / "out" / "checks" / "after.jsonl") or []
    assert [row.source for row in rows[:2]] == ["after.jsonl:1", "after.jsonl:2"]
    assert rows[2].checks["mean_length"].unscored_reason == "returned None"
    assert rows[0].checks["label"].found == "positive"


def test_a_table_says_what_each_check_found_and_why_answers_have_no_score(folder: Path) -> None:
    result = CliRunner().invoke(cli.app, ["evaluate", "after.jsonl", "--checks", "checks.yaml"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for part in (
        "30 + 0 = 30",
        "20 + 10 = 30",
        "label_macro_f1",
        "10 unscored: returned None",
        "not met: another label",
    ):
        assert part in said
    assert "precision" in said


def test_answers_without_references_are_checked_for_what_needs_none(folder: Path) -> None:
    (folder / "free.jsonl").write_text('{"instruction": "Say JSON.", "text": "[1]"}\n')
    config = load_config(None, ["evaluation.checks=[json]"])
    (found,) = evaluate("free.jsonl", config=config).checks.answers["free"]  # type: ignore[union-attr]
    assert found.value == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate"], "--calibrate is ignored where no judge is named"),
        (["--against", "before.jsonl"], "--against is ignored where no judge is named"),
        (["--protocol", "rubric"], "the section judge is ignored where no judge is named"),
    ],
)
def test_what_only_a_judge_would_obey_is_refused(folder: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["evaluate", "after.jsonl", "--checks", "checks.yaml", *options])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output


def test_checks_are_compared_like_any_metric_and_gated_and_head_the_verdict(folder: Path) -> None:
    config = checks_of(
        "report.headline=label_macro_f1", "report.gate='label>=0.5, label_macro_f1.low>0, one_word.tuned>0.9'"
    )
    result = compare("before.jsonl", "after.jsonl", config=config, output=folder / "out")
    found = result.comparison
    names = [metric.name for metric in found.metrics]
    assert names[-5:] == ["label", "label_macro_f1", "one_word", "json", "mean_length"]
    label, f1, length = (found.measured(name) for name in ("label", "label_macro_f1", "mean_length"))
    assert label is not None
    assert f1 is not None
    assert length is not None
    assert (label.base, label.tuned, label.wins, label.losses, label.ties) == (0.2, 0.8, 18, 0, 12)
    assert f1.difference == pytest.approx(0.6)
    assert (f1.verdict, f1.p_is_exact) == ("better", False)
    assert (length.num_items, length.unit) == (20, "as the function scores")
    assert found.headline == "label_macro_f1"
    assert (found.sentence or "").startswith("B's answers are better on label, macro F1: 0.20 -> 0.80 (+0.60")
    assert [outcome.met for outcome in result.gate] == [True, True, False]
    assert [item.gain for item in (found.items or ())[5:7]] == [0, 1]
    assert found.kinds == ()
    assert found.checks is not None
    assert found.checks.tuned[0].macro_f1 == pytest.approx(0.8)
    assert load_document(Comparison, folder / "out" / "comparison.json") == found
    page = (folder / "out" / "report.html").read_text()
    assert '<section id="checks"' in page
    assert "Label, macro F1, change" in page
    assert "returned None" in page


def test_kinds_of_task_follow_the_headline_in_its_good_direction(folder: Path) -> None:
    found = compare("before.jsonl", "after.jsonl", config=checks_of("report.headline=label")).comparison
    assert [(kind.kind, kind.num_items, kind.verdict) for kind in found.kinds] == [
        ("even", 15, "better"),
        ("odd", 15, "better"),
    ]
    lengths = "evaluation.checks=[{python: 'own.py:size', name: size, higher_is_better: false}]"
    config = load_config(None, [lengths, "report.headline=size", "report.num_resamples=200"])
    found = compare("before.jsonl", "after.jsonl", config=config).comparison
    assert found.main.verdict == "better"
    assert found.main.difference < 0
    assert {kind.verdict for kind in found.kinds} == {"better"}


def test_a_headline_that_nothing_measured_gives_way_and_says_why(folder: Path) -> None:
    config = checks_of("evaluation.checks=[{number: }]", "report.headline=number")
    found = compare("before.jsonl", "after.jsonl", config=config).comparison
    assert found.headline == "rouge_l"
    assert found.caution == (
        "number, the headline that was asked for, was measured on no item (the reference holds no number)"
    )
    assert found.measured("number") is None
    assert found.checks is not None
    assert found.checks.base[0].num_unscored == 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["report.headline=lable"], "report.headline: unknown metric `lable`: did you mean `label`?"),
        (["report.headline=forgetting"], "report.headline: unknown metric `forgetting`"),
        (["report.gate='one_wrd>=0'"], "report.gate: unknown metric `one_wrd`: did you mean `one_word`?"),
    ],
)
def test_an_unknown_headline_or_condition_is_refused_in_one_message(
    folder: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        compare("before.jsonl", "after.jsonl", config=checks_of(*settings))
    assert message in str(refused.value)


def test_equal_answers_and_a_single_one_cannot_be_told_apart(folder: Path) -> None:
    found = compare("after.jsonl", "after.jsonl", config=checks_of()).comparison
    assert {metric.verdict for metric in found.metrics} == {"cannot tell"}
    one = answers(folder, "one.jsonl", 0, num_items=1), answers(folder, "other.jsonl", 1, num_items=1)
    found = compare(*one, config=checks_of()).comparison
    assert {metric.verdict for metric in found.metrics} == {"cannot tell"}


def test_without_checks_a_comparison_is_as_it_was(folder: Path) -> None:
    document = compare("before.jsonl", "after.jsonl", config=load_config(None, ["report.num_resamples=200"])).document
    assert "checks" not in document
    assert "checks" not in document["items"][0]["base"]


def test_a_run_checks_both_answers_and_names_its_headline(folder: Path, tiny_llama: Path) -> None:
    rows = [{"instruction": f"Mood {index}?", "output": LABELS[index % 3]} for index in range(40)]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.name_or_path={json.dumps(str(tiny_llama))}",
        "train.max_steps=2",
        "generate.max_new_tokens=4",
        "data.test_share=0.3",
        "report.general=none",
        "report.headline=label",
        "report.num_resamples=200",
        "evaluation.checks=checks.yaml",
    ]
    result = tuneful.run("my.jsonl", config=load_config(None, settings), output=folder / "run")
    found = result.comparison
    assert found is not None
    assert found.headline == "label"
    assert found.checks is not None
    assert [one.name for one in found.checks.tuned] == ["label", "one_word", "json", "mean_length"]
    assert all(set(item.base.checks or {}) == set(item.tuned.checks or {}) for item in found.items or ())
    assert load_config(folder / "run" / "config.yaml").evaluation == load_config(None, settings).evaluation
    assert '<section id="checks"' in result.report.read_text()
    again = evaluate(folder / "run", config=checks_of())
    assert again.checks is not None
    assert again.checks.answers["tuned"][0].value == found.checks.tuned[0].value
    assert (folder / "run" / "checks" / "base.jsonl").is_file()


def test_a_run_refuses_a_misspelt_headline_before_anything_is_made(folder: Path, tiny_llama: Path) -> None:
    settings = [
        f"model.name_or_path={json.dumps(str(tiny_llama))}",
        "report.headline=lable",
        "evaluation.checks=checks.yaml",
    ]
    with pytest.raises(ConfigError, match=r"report.headline: unknown metric `lable`: did you mean `label`"):
        tuneful.run("after.jsonl", config=load_config(None, settings), output=folder / "run")
    assert not (folder / "run").exists()
