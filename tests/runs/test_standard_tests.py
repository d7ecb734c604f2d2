"""Whole runs that take tests before and after, with a tiny model; and models that take them by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tuneful
from tuneful.cli import app
from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, InputError
from tuneful.evaluation import tasks
from tuneful.runs import job, measure, standard_tests

SETTINGS = [
    "train.max_steps=3",
    "train.batch_size=4",
    "train.learning_rate=1e-2",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "report.general=none",
    "model.dtype=float32",
]


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tests")
    rows: dict[str, list[Any]] = {
        "data": [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(20)],
        "quiz": [
            {"question": f"Say {number}.", "choices": [f"It is {number}.", "No, never, not at all"], "answer": 0}
            for number in range(8)
        ],
        "rules": [
            {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            {"prompt": "Say that.", "instruction_id_list": ["language:response_language"], "kwargs": [{}]},
        ],
    }
    found = {}
    for name, own in rows.items():
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in own))
    return found


def config_of(model: Path, files: dict[str, Path], *settings: str) -> Any:
    tests = json.dumps([str(files["quiz"]), str(files["rules"])])
    own = [f"model.name_or_path={json.dumps(str(model))}", f"evaluation.tests={tests}", "evaluation.num_fewshot=1"]
    return load_config(None, [*SETTINGS, *own, *settings])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(tiny_llama: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    config = config_of(tiny_llama, files, "report.gate=quiz_acc.tuned>=0")
    tuneful.run(str(files["data"]), config=config, output=folder)
    return folder


def test_a_run_takes_its_tests_before_and_after_and_compares_them(done: Path, files: dict[str, Path]) -> None:
    comparison = json.loads((done / "comparison.json").read_text())
    quiz, rules = comparison["tests"]
    assert (quiz["name"], quiz["kind"], quiz["num_items"], quiz["num_fewshot"], quiz["num_scored"]) == (
        "quiz",
        "choices",
        8,
        1,
        7,
    )
    assert (rules["num_scored"], rules["unscored"]) == (1, {"cannot verify language:response_language": 1})
    metrics = {metric["name"]: metric for metric in comparison["metrics"]}
    assert comparison["headline"] == "rouge_l"
    for name in (*quiz["metrics"], *rules["metrics"]):
        assert name in metrics
    for side in ("base", "tuned"):
        rows = lines(done / "tests" / f"quiz-{side}.jsonl")
        assert [row["source"] for row in rows] == [f"{files['quiz']}:{number}" for number in range(2, 9)]
        assert metrics["quiz_acc"][side] == pytest.approx(sum(row["acc"] for row in rows) / 7)
        first, second = lines(done / "tests" / f"rules-{side}.jsonl")
        assert first["text"] is not None
        assert len(first["strict"]) == 1
        assert second["unscored_reason"] == "cannot verify language:response_language"
    assert [one["met"] for one in comparison["gate"]] == [True]
    assert not list((done / "tests").glob("*.partial"))
    page = (done / "report.html").read_text()
    assert 'id="tests"' in page
    assert "cannot verify language:response_language" in page
    phases = json.loads((done / "environment.json").read_text())["phase_seconds"]
    assert {"tests_base", "tests_tuned"} <= phases.keys()


def test_the_same_is_found_of_a_finished_run_and_written_beside_it(done: Path, files: dict[str, Path]) -> None:
    config = load_config(None, [*SETTINGS, "evaluation.num_fewshot=1", f"evaluation.tests={files['quiz']}"])
    result = tuneful.evaluate_tests(done, [str(files["quiz"])], config=config)
    assert result.comparison is not None
    assert result.folder == done / "tests" / "evaluated"
    for side in ("base", "tuned"):
        in_run, by_itself = lines(done / "tests" / f"quiz-{side}.jsonl"), lines(result.folder / f"quiz-{side}.jsonl")
        for one, other in zip(in_run, by_itself, strict=True):
            assert one["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-4)
    own = json.loads((done / "comparison.json").read_text())
    [acc] = [metric for metric in own["metrics"] if metric["name"] == "quiz_acc"]
    assert result.comparison.main.name == "quiz_acc"
    assert (result.comparison.main.base, result.comparison.main.tuned) == (acc["base"], acc["tuned"])
    assert json.loads((result.folder / "comparison.json").read_text())["headline"] == "quiz_acc"


def test_a_model_by_itself_gets_figures_with_intervals(tiny_llama: Path, files: dict[str, Path]) -> None:
    arguments = ["evaluate", str(tiny_llama), "--tests", str(files["quiz"]), "--tests", str(files["rules"])]
    said = CliRunner().invoke(app, [*arguments, "--json", "generate.max_new_tokens=4", "model.dtype=float32"])
    assert said.exit_code == 0, said.output
    document = json.loads(said.stdout)
    assert [one["name"] for one in document["models"]["model"]["figures"]][:2] == ["quiz_acc", "quiz_acc_norm"]
    assert [one["num_scored"] for one in document["models"]["model"]["tests"]] == [8, 1]
    assert "comparison" not in document


def test_options_of_judges_are_refused_beside_tests(tiny_llama: Path, files: dict[str, Path]) -> None:
    said = CliRunner().invoke(app, ["evaluate", str(tiny_llama), "--tests", str(files["quiz"]), "--judge", "ollama/a"])
    assert isinstance(said.exception, ConfigError) or said.exit_code == 2
    with pytest.raises(ConfigError, match="no test was named"):
        tuneful.evaluate_tests(tiny_llama)
    with pytest.raises(ConfigError, match="for the two models of a run"):
        tuneful.evaluate_tests(tiny_llama, [str(files["quiz"])], config=load_config(None, ["report.gate=quiz_acc>=0"]))


def test_a_run_without_test_records_is_compared_by_its_tests(
    tiny_llama: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(tiny_llama, files, "data.test_share=0", "report.gate=quiz_acc>=-1")
    comparison = tuneful.run(str(files["data"]), config=config, output=tmp_path / "run").comparison
    assert comparison is not None
    assert comparison.headline == "quiz_acc"
    assert "There are no test answers" not in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ConfigError, match="needs answers, and the test set has none"):
        tuneful.run(
            str(files["data"]),
            config=config_of(tiny_llama, files, "data.test_share=0", "report.gate=rouge_l>=0"),
            output=tmp_path / "other",
        )
    assert not (tmp_path / "other").exists()


def test_what_is_wrong_with_tests_is_told_before_anything_is_loaded(files: dict[str, Path], tmp_path: Path) -> None:
    for setting, said in (
        ("evaluation.num_fewshot=8", "none is left to score"),
        (f"evaluation.tests={json.dumps([str(files['rules'])])}", "num_fewshot` is for multiple choice"),
        ("report.gate=quiz_bcc>=0", "did you mean `quiz_acc`"),
    ):
        config = config_of(tmp_path / "no-model", files, setting)
        with pytest.raises(ConfigError, match=said):
            tuneful.run(str(files["data"]), config=config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_will_be_evaluated_and_foretells_what_it_costs(
    tiny_llama: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checks = json.dumps([{"contains": "It is"}, {"regex": "^(a+)+$", "name": "endless", "timeout_seconds": 0.05}])
    config = config_of(tiny_llama, files, f"evaluation.checks={checks}")
    estimate = tuneful.dry_run("run", str(files["data"]), config=config, terminal=Terminal())
    assert estimate.evaluated == (
        "1 answer",
        "quiz: 7 questions of 2 choices after 1 item",
        "rules: 2 prompts to answer, instructions verified",
        "2 checks of each answer (contains, endless: regex)",
    )
    assert min(estimate.phase_seconds[name] for name in ("tests_base", "tests_tuned", "checks")) > 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "base and tuned: 1 answer; quiz: 7 questions" in shown
    assert tuneful.dry_run("train", str(files["data"]), config=config).evaluated == ()


def test_a_dry_run_refuses_what_cannot_be_evaluated_before_a_model_is_looked_for(
    files: dict[str, Path], tmp_path: Path
) -> None:
    for setting, said in (
        ("evaluation.tests=gone.jsonl", "gone.jsonl"),
        ("evaluation.checks=[{python: 'gone.py:f'}]", "gone.py: cannot be read"),
        ("evaluation.checks=[{json: null, schema: gone.json}]", "gone.json: cannot be read"),
    ):
        config = load_config(None, [*SETTINGS, "model.name_or_path=/no/such/model", setting])
        with pytest.raises(InputError, match=said):
            tuneful.dry_run("run", str(files["data"]), config=config)
    for wrong in ("evaluation.checks=gone.yaml", "evaluation.checks=[{regexp: a}]"):
        with pytest.raises(ConfigError, match=r"evaluation\.checks"):
            load_config(None, [*SETTINGS, wrong])


def test_a_run_that_goes_on_takes_the_scores_it_finds_and_asks_anew_where_it_asks_otherwise(
    tiny_llama: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, score = measure.compare, tasks.score_choices
    calls: list[int] = []
    monkeypatch.setattr(standard_tests, "score_choices", lambda *given: calls.append(1) or score(*given))

    def cut_off(*given: Any) -> None:
        raise CutOffError

    data, folder = str(files["data"]), tmp_path / "run"
    monkeypatch.setattr(job, "compare", cut_off)
    with pytest.raises(CutOffError):
        tuneful.run(data, config=config_of(tiny_llama, files), output=folder)
    with pytest.raises(CutOffError):
        tuneful.run(data, config=config_of(tiny_llama, files), output=folder)
    assert len(calls) == 2
    monkeypatch.setattr(job, "compare", compare)
    (folder / "tests" / "quiz-base.jsonl").write_text("damaged\n")
    found = tuneful.run(data, config=config_of(tiny_llama, files, "evaluation.tests_prompt=raw"), output=folder)
    assert len(calls) == 4
    assert found.comparison is not None
    assert {test.prompt for test in found.comparison.tests} == {"raw"}
