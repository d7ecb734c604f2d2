"""`tuneful evaluate --gate`: of a run as at its end, of a file by figures of its own, and the exit code says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.commands.test_checks import answers, checks_of
from tests.commands.test_checks import folder as folder  # the fixture
from tests.commands.test_compare import write_run
from typer.testing import CliRunner

from tuneful import cli
from tuneful.commands.evaluate import evaluate
from tuneful.errors import ConfigError, GateError


def run_cli(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["evaluate", *arguments], env={"COLUMNS": "100"})


def test_a_file_of_answers_passes_or_fails_by_its_own_figures(folder: Path) -> None:
    settings = ["report.num_resamples=200", "--checks", "checks.yaml"]
    gate = "label.value>=0.75, label.value_low>0.5, label_macro_f1.tuned>0.7, rouge_l.value>0.5, json.value<=0"
    done = run_cli("after.jsonl", *settings, "--gate", gate, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    outcomes = json.loads(done.stdout)["gate"]
    assert [one["met"] for one in outcomes] == [True] * 5
    assert outcomes[0]["found"] == pytest.approx(0.8)
    assert "gate  label.value>=0.75: 0.8000, met" in done.stderr
    failed = run_cli("before.jsonl", *settings, "--gate", "label.value>=0.75")
    assert isinstance(failed.exception, GateError)
    assert failed.exception.exit_code == 3
    assert "label.value>=0.75 (found 0.2000)" in str(failed.exception)
    assert "Checked" in failed.output, "what was found is shown before"


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("label>=0", r"a bare name, which is the difference, is for the two models of a run; .* say label.value>=0"),
        ("label.low>0", r"`.low` is for the two models of a run"),
        ("label.worth>0", r"no figure `.worth`; there are .value, .value_low, .value_high, .tuned"),
        ("judge_score.value>0", "judge_score needs a judge"),
        ("labels.value>0", "unknown metric `labels`: did you mean `label`"),
        ("forgetting.value<1", "`forgetting` was not measured of these answers; measured are label"),
    ],
)
def test_what_one_set_of_answers_cannot_have_is_refused(folder: Path, gate: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate("after.jsonl", config=checks_of(f"report.gate={json.dumps(gate)}"))


def test_a_gate_on_nearness_to_references_needs_neither_judge_nor_checks(folder: Path) -> None:
    done = run_cli("after.jsonl", "--gate", "exact_match.value>=0.8", "report.num_resamples=100")
    assert done.exit_code == 0, done.exception
    (folder / "one.jsonl").write_text('{"instruction": "Ask.", "output": "two words", "text": "two"}\n')
    assert isinstance(run_cli("one.jsonl", "--gate", "rouge_l.value_low>0").exception, GateError), "of one item unknown"


def test_of_several_sets_in_one_file_one_has_to_be_named(folder: Path) -> None:
    rows = [{"instruction": "Ask.", "output": "a", "model 1 response": "a", "model 2 response": "b"}]
    (folder / "two.json").write_text(json.dumps(rows))
    arguments = ["two.json", "--checks", "checks.yaml", "--gate", "one_word.value>=1"]
    assert "name one: --answer-key KEY" in str(run_cli(*arguments).exception)
    assert run_cli(*arguments, "--answer-key", "model 2 response").exit_code == 0


def test_the_gate_of_a_run_speaks_of_base_and_tuned_as_at_its_end(folder: Path) -> None:
    run = write_run(folder / "run", right=14)
    settings = ["report.num_resamples=200"]
    passed = run_cli(str(run), *settings, "--gate", "rouge_l>=0.1, forgetting<=20")
    assert passed.exit_code == 0, (passed.output, passed.exception)
    assert "Base against tuned, 20 test records" in passed.output
    failed = run_cli(str(run), *settings, "--gate", "rouge_l>=0.9", "--checks", "checks.yaml")
    assert failed.exit_code == 1 or isinstance(failed.exception, GateError)
    assert isinstance(failed.exception, GateError)
    limited = evaluate(run, config=checks_of("report.gate=one_word.base>=-1"), limit=6)
    assert limited.checks is not None
    assert limited.checks.answers["tuned"][0].num_items == 6
    assert not (run / "comparison.json").exists(), "the comparison of the run is its own"
    with pytest.raises(ConfigError, match="is no run folder with answers"):
        evaluate(folder, config=checks_of("report.gate=one_word>=0"))


def test_without_a_gate_nothing_is_said_of_one(folder: Path) -> None:
    answers(folder, "few.jsonl", 2, num_items=4)
    assert "gate" not in evaluate("few.jsonl", config=checks_of()).as_dict()
