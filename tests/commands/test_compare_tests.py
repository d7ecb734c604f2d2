"""`tuneful compare` of runs that took standard tests, and that were configured with checks of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.commands.test_compare import compared, metrics, run_cli, write_run
from tests.evaluation.test_task_comparison import choice, rule

from tuneful.commands.compare import compare
from tuneful.config import load_config
from tuneful.errors import DataError
from tuneful.runs.schema import Comparison, TakenTasks, TasksDocument, TaskSummary, as_row

QUIZ = TaskSummary("quiz", "quiz.jsonl", "0" * 64, "choices", "template", 21, 1, 20, 0, {}, ("quiz_acc",))
RULES = replace(QUIZ, name="rules", kind="instructions", num_items=4, num_fewshot=0, sha256="1" * 64)


def took(run: Path, right: int, *tests: TaskSummary, file: str = "quiz.jsonl", unscored: int = 0) -> Path:
    """The run with `tests` taken, whose tuned model has the first `right` choices right, and none of `unscored` at the end."""
    (run / "tests").mkdir(parents=True)
    for side, num in (("base", 2), ("tuned", right)):
        choices = [
            replace(
                choice(n, n < num) if n < 20 - unscored else choice(n, None, reason="too long"),
                source=f"{file}:{n + 2}",
            )
            for n in range(20)
        ]
        rules = [rule(n, (n < num / 5, True), (True, True)) for n in range(4)]
        for test in tests:
            rows = choices if test.kind == "choices" else rules
            text = "".join(json.dumps(as_row(row)) + "\n" for row in rows)
            (run / "tests" / f"{test.name}-{side}.jsonl").write_text(text)
    comparison = Comparison(20, 0.95, 100, 0, "rouge_l", 3.0, None, (), tests=tests)
    (run / "comparison.json").write_text(json.dumps(as_row(comparison)))
    (run / "run.json").write_text("{}")
    return run


def test_tests_that_both_runs_took_are_compared_paired_gated_and_written(tmp_path: Path) -> None:
    a = took(write_run(tmp_path / "a", right=4, scored=False), 5, QUIZ, RULES)
    b = took(write_run(tmp_path / "b", right=14, scored=False), 18, QUIZ, RULES, file="/elsewhere/quiz.jsonl")
    out = tmp_path / "out"
    document = compared(a, b, "report.gate='quiz_acc>=0.5, quiz_acc.low>0'", output=out)
    found = metrics(document)
    acc = found["quiz_acc"]
    assert (acc["base"], acc["tuned"], acc["wins"], acc["losses"], acc["num_items"]) == (0.25, 0.9, 13, 0, 20)
    assert (acc["verdict"], acc["p_is_exact"], acc["p_value"]) == ("better", True, pytest.approx(2 * 0.5**13))
    assert {"rules_prompt_level_strict_acc", "rules_inst_level_loose_acc", "rouge_l"} <= found.keys()
    assert [test["name"] for test in document["tests"]] == ["quiz", "rules"]
    assert [one["met"] for one in document["gate"]] == [True, True]
    assert "quiz acc" in (out / "report.html").read_text()
    again = metrics(compared(out / "answers" / "base.jsonl", out))
    assert (again["quiz_acc"]["base"], again["quiz_acc"]["tuned"]) == (0.25, 0.9)
    of_a_run = metrics(compared(b / "answers" / "base.jsonl", b))
    assert of_a_run["quiz_acc"]["base"] == 0.1, "of a file of a run it is that model's"


def test_tests_asked_otherwise_or_of_one_side_are_named_and_left_out(tmp_path: Path) -> None:
    a = took(write_run(tmp_path / "a", right=4), 5, QUIZ, RULES)
    others = {
        "b": ([replace(QUIZ, sha256="2" * 64), RULES], "quiz is not compared: the files of that name differ"),
        "c": ([replace(QUIZ, prompt="raw"), RULES], "quiz is not compared: it was asked in other ways"),
        "d": ([RULES], "quiz is not compared: not every side took it"),
    }
    for name, (tests, said) in others.items():
        done = run_cli(str(a), str(took(write_run(tmp_path / name, right=6), 6, *tests)), "report.num_resamples=100")
        assert done.exit_code == 0, done.exception
        assert said in " ".join(done.stderr.split())
        assert "quiz acc" not in done.stderr
        assert "rules prompts, strict" in done.stderr
    (tmp_path / "a" / "comparison.json").unlink()
    done = run_cli(str(a), str(tmp_path / "b"), "report.num_resamples=100")
    assert "has no comparison.json yet" in " ".join(done.stderr.split())


def test_tests_that_a_finished_run_took_later_are_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, right=right, scored=False) for name, right in (("a", 4), ("b", 14))]
    for run, right in zip(runs, (5, 18), strict=True):
        took(run / "later", right, QUIZ)
        (run / "tests").mkdir()
        (run / "later" / "tests").rename(run / "tests" / "evaluated")
        document = TasksDocument(0.95, {"tuned": TakenTasks(str(run), (QUIZ,), ())})
        (run / "tests" / "evaluated" / "tests.json").write_text(json.dumps(as_row(document)))
    assert metrics(compared(runs[0], runs[1]))["quiz_acc"]["tuned"] == 0.9


def test_runs_that_took_tests_alone_are_compared_by_them(tmp_path: Path) -> None:
    a, b = took(tmp_path / "a", 5, QUIZ), took(tmp_path / "b", 18, QUIZ)
    document = compared(a, b, output=tmp_path / "out")
    assert (document["headline"], document["items"]) == ("quiz_acc", [])
    other = took(tmp_path / "c", 5, replace(QUIZ, sha256="3" * 64))
    with pytest.raises(DataError, match="no test in common"):
        compared(a, other)


def test_of_three_runs_an_item_that_one_has_no_score_of_counts_for_none(tmp_path: Path) -> None:
    runs = [
        took(write_run(tmp_path / name, right=right, scored=False), right, QUIZ, unscored=unscored)
        for name, right, unscored in (("a", 2, 0), ("b", 3, 4), ("c", 16, 0))
    ]
    document = compare(*runs, config=load_config(None, ["report.num_resamples=200"])).document
    (acc,) = [metric for metric in document["metrics"] if metric["name"] == "quiz_acc"]
    assert [pair["num_items"] for pair in acc["pairs"]] == [16, 16, 16]
    assert acc["values"] == [2 / 16, 3 / 16, 1.0]
    a_c = next(pair for pair in acc["pairs"] if (pair["base"], pair["tuned"]) == ("A", "C"))
    assert a_c["p_corrected"] == pytest.approx(3 * a_c["p_value"]), "corrected for three pairs"


CHECKS = "evaluation:\n  checks:\n  - contains: color\n    name: says_color\n"


def test_checks_that_both_runs_were_configured_with_are_run_and_functions_are_not(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", right=4), write_run(tmp_path / "b", right=14)
    for run in (a, b):
        (run / "config.yaml").write_text(CHECKS + f"  - python: {tmp_path}/gone.py:f\n")
    done = run_cli(str(a), str(b), "report.num_resamples=100", "--gate", "says_color>=0.4", "--json")
    assert done.exit_code == 0, done.exception
    document = json.loads(done.stdout)
    found = metrics(document)["says_color"]
    assert (found["base"], found["tuned"]) == (0.2, 0.7)
    shown = " ".join(done.stderr.split())
    assert "says_color, from the runs' own configuration" in shown
    assert "not checked: python, a function of one's own" in shown
    own = tmp_path / "own.yaml"
    own.write_text("- contains: red\n")
    named = json.loads(run_cli(str(a), str(b), "report.num_resamples=100", "--checks", str(own), "--json").stdout)
    assert "contains" in metrics(named)
    assert "says_color" not in metrics(named), "what is named goes before"


def test_runs_with_other_checks_are_compared_without_and_told_so(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", right=4), write_run(tmp_path / "b", right=14)
    (a / "config.yaml").write_text(CHECKS)
    done = run_cli(str(a), str(b), "report.num_resamples=100")
    assert done.exit_code == 0
    assert "not configured with the same evaluation.checks; name a file: --checks FILE" in " ".join(done.stderr.split())
    gone = CHECKS + "  - json:\n    schema: gone.json\n"
    for run in (a, b):
        (run / "config.yaml").write_text(gone)
    done = run_cli(str(a), str(b), "report.num_resamples=100")
    assert done.exit_code == 0
    assert "not checked as the runs were: evaluation.checks: json: gone.json: cannot be read" in " ".join(
        done.stderr.split()
    )
