"""A whole sweep on a tiny model: halving, the choice, the verdict on the test set for one run alone, and going on after a
kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.doubles import killed_sweeps, processes
from tests.doubles.killed_sweeps import SETTINGS

import tuneful
from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, DataError, DivergedError, ModelError, TunefulError
from tuneful.runs import job as run_job
from tuneful.runs.schema import SweepDocument, ValidationLoss, load_document, load_rows
from tuneful.sweep import job, legs
from tuneful.sweep.grid import make_grid, read_settings
from tuneful.sweep.job import SweepResult, sweep_job
from tuneful.sweep.legs import Leg, as_answer, as_request, worker_environment

FAST = [setting for setting in SETTINGS if "learning_rate" not in setting]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("swept") / "rows.json"
    file.write_text(json.dumps(killed_sweeps.rows()), encoding="utf-8")
    return file


Sweep = Callable[..., SweepResult]


@pytest.fixture(scope="module")
def sweep(data: Path, tiny_llama: Path) -> Sweep:
    def work(output: Path, *settings: str, **options: Any) -> SweepResult:
        swept, others = read_settings([*FAST, f"model.name_or_path={tiny_llama}", *settings])
        grid = make_grid(swept, lambda own: load_config(None, [*others, *own]), sample=None, seed=None)
        return sweep_job((str(data),), grid, output=output, **options)

    return work


@pytest.fixture(scope="module")
def finished(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Four learning rates, of which two are stopped after half of the steps."""
    return sweep(tmp_path_factory.mktemp("sweep") / "out", "train.learning_rate=1e-4,1e-3,3e-3,1e-2")


def document_of(path: Path) -> SweepDocument:
    document = load_document(SweepDocument, path / "sweep.json")
    assert document is not None
    return document


def test_the_worse_half_is_stopped_and_the_lowest_validation_loss_is_chosen(finished: SweepResult) -> None:
    document = document_of(finished.path)
    assert document == finished.document
    assert document.rungs == (0.5,)
    assert sorted(run.state for run in document.runs) == ["stopped", "stopped", "trained", "trained"]
    at_the_rung = {run.name: run.rungs[0].validation_loss or 0.0 for run in document.runs}
    assert {run.rungs[0].step for run in document.runs} == {6}
    worst = sorted(at_the_rung, key=lambda name: at_the_rung[name])[2:]
    assert {run.name for run in document.runs if run.state == "stopped"} == set(worst)
    trained = {run.name: run.validation_loss or 0.0 for run in document.runs if run.state == "trained"}
    assert document.chosen == min(trained, key=lambda name: trained[name])
    assert sum(run.chosen_share or 0 for run in document.runs) == pytest.approx(1)
    assert document.optimism is not None
    assert 0 <= document.optimism < 1


def test_the_test_set_is_answered_for_the_chosen_run_alone(finished: SweepResult) -> None:
    assert finished.chosen is not None
    assert finished.comparison is not None
    assert finished.document.verdict == finished.comparison.sentence
    for run in (finished.path / "runs").iterdir():
        assert (run / "comparison.json").exists() == (run == finished.chosen)
        assert (run / "answers" / "base.jsonl").exists() == (run == finished.chosen)
    assert (finished.chosen / "report.html").exists()


def test_a_stopped_run_keeps_its_figures_and_loses_its_checkpoints(finished: SweepResult) -> None:
    stopped = [run for run in finished.document.runs if run.state == "stopped"]
    for run in stopped:
        folder = finished.path / "runs" / run.name
        assert not (folder / "checkpoints").exists()
        assert (folder / "metrics.jsonl").exists()
        assert run.reason == "in the worse half after 0.5 of the steps"


def test_a_run_that_was_paused_is_the_run_that_it_would_have_been_alone(
    finished: SweepResult, data: Path, tmp_path: Path
) -> None:
    assert finished.chosen is not None
    config = load_config(finished.chosen / "config.yaml")
    alone = tuneful.run(str(data), config=config, output=tmp_path / "alone")
    weights = "model/model.safetensors"
    assert (alone.path / weights).read_bytes() == (finished.chosen / weights).read_bytes()
    assert alone.comparison == finished.comparison


def test_the_losses_of_the_validation_records_are_the_validation_loss(finished: SweepResult) -> None:
    for run in finished.document.runs:
        rows = load_rows(ValidationLoss, finished.path / "runs" / run.name / "validation.jsonl")
        assert (rows is not None) == (run.state == "trained")
        if rows is not None:
            mean = sum(row.loss for row in rows) / sum(row.weight for row in rows)
            assert mean == pytest.approx(run.validation_loss, rel=1e-5)


def test_the_page_names_every_run_and_what_was_found(finished: SweepResult) -> None:
    page = finished.page.read_text(encoding="utf-8")
    for run in finished.document.runs:
        assert run.name in page
    assert "has the lowest validation loss" in page
    assert "look lower than it is by about" in page
    assert "Response to each setting" in page
    assert page.count('<svg class="chart"') == 2, "for wide screens and for narrow ones"
    assert "<script" not in page


def test_a_finished_sweep_is_shown_again_and_nothing_is_trained(
    finished: SweepResult, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "run_legs", None)
    monkeypatch.setattr(job, "run_job", None)
    again = sweep(finished.path, "train.learning_rate=1e-4,1e-3,3e-3,1e-2", terminal=Terminal())
    assert again.document == finished.document
    said = capsys.readouterr().err
    assert "this sweep was finished" in said
    assert str(finished.document.chosen) in said


def test_another_sweep_does_not_go_on_in_its_folder_nor_anything_in_a_folder_of_something_else(
    finished: SweepResult, sweep: Sweep, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep(finished.path, "train.learning_rate=1e-4,1e-3")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no sweep"):
        sweep(tmp_path, "train.learning_rate=1e-4,1e-3")


def test_a_damaged_state_is_one_message(finished: SweepResult, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text((finished.path / "sweep.json").read_text(encoding="utf-8")[:500])
    with pytest.raises(DataError, match=r"sweep\.json: damaged: .* Restore it, or begin anew"):
        sweep(tmp_path, "train.learning_rate=1e-4,1e-3,3e-3,1e-2")


def test_a_run_that_diverges_is_a_result_and_the_others_go_on(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_part = run_job.train_part

    def diverging(*arguments: Any) -> Any:
        if arguments[1].train.max_grad_norm == 2:
            raise DivergedError("step 3: the loss is nan")
        return train_part(*arguments)

    monkeypatch.setattr(legs, "train_part", diverging)
    result = sweep(tmp_path / "out", "train.max_grad_norm=2,4", "data.test_share=0")
    assert [run.state for run in result.document.runs] == ["failed", "trained"]
    assert result.document.runs[0].reason == "step 3: the loss is nan"
    assert result.document.chosen == "run-02"
    assert result.document.optimism == 0
    assert result.document.rungs_reason == "there are fewer than 4 runs"
    assert (result.comparison, result.document.verdict) == (None, None)
    page = result.page.read_text(encoding="utf-8")
    assert "There is no test set" in page
    assert "the loss is nan" in page


def test_where_every_run_diverges_the_sweep_fails_with_the_first_reason(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*arguments: Any) -> Any:
        raise DivergedError("step 3: the loss is nan")

    monkeypatch.setattr(legs, "train_part", diverging)
    with pytest.raises(TunefulError, match="no run of the sweep could be trained to its end; the first: step 3"):
        sweep(tmp_path / "out", "train.max_grad_norm=2,4")


def test_a_request_that_is_refused_leaves_no_folder(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        sweep(tmp_path / "out", "train.max_grad_norm=2,4", f"model.name_or_path={tmp_path / 'none'}")
    assert not (tmp_path / "out").exists()


def test_runs_whose_validation_losses_do_not_compare_are_refused_by_name(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"run-02 \(data\.train_on=all\) has other validation records, tokens or weights"
    ):
        sweep(tmp_path / "out", "data.train_on=response,all", "train.max_steps=1")


def test_without_a_validation_set_nothing_is_chosen_or_measured(sweep: Sweep, tmp_path: Path) -> None:
    result = sweep(
        tmp_path / "out", "train.learning_rate=1e-4,1e-3,2e-3,3e-3", "data.validation_share=0", "train.max_steps=1"
    )
    assert {run.state for run in result.document.runs} == {"trained"}
    assert result.document.rungs_reason == "there is no validation set"
    assert (result.document.chosen, result.document.verdict) == (None, None)
    assert "There is no validation loss, so no run was chosen or measured." in result.document.notes


def test_a_learning_curve_trains_every_share_to_its_end_and_says_what_more_would_bring(
    sweep: Sweep, tmp_path: Path
) -> None:
    keys = ("data.train_share=0.25,0.5,1", "train.seed=1,2")
    result = sweep(tmp_path / "out", *keys, "train.learning_rate=3e-3", "data.test_share=0")
    document = result.document
    assert {run.state for run in document.runs} == {"trained"}
    assert document.rungs_reason == "a learning curve takes every run to its end"
    assert len({run.validation_sha256 for run in document.runs}) == 1, "all hold out the same records"
    (curve,) = document.curves
    assert curve.settings == {}
    largest = max(curve.sizes)
    assert [size / largest for size in curve.sizes] == pytest.approx([0.25] * 2 + [0.5] * 2 + [1] * 2, abs=0.05)
    assert [gain.factor for gain in curve.gains] == [2, 4]
    assert all(gain.low <= gain.gain <= gain.high for gain in curve.gains)
    assert any("train.max_steps gives every share as many steps" in note for note in document.notes)
    page = result.page.read_text(encoding="utf-8")
    assert "Learning curve" in page
    assert curve.sentence.split(".")[0] in page
    seeds = [load_rows_of(result.path / "runs" / run.name) for run in document.runs[:2]]
    assert seeds[0] != seeds[1], "each seed draws a share of its own"


def load_rows_of(run: Path) -> list[str]:
    return (run / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_sweep_killed_again_and_again_ends_in_the_same_table(tiny_llama: Path, tmp_path: Path) -> None:
    tally = killed_sweeps.campaign(killed_sweeps.Swept.tiny(tmp_path, tiny_llama), num_kills=4, seed=0)
    assert len(tally.kills) == 4
    assert tally.different == []
    assert {"sweep.json", "run-01 metrics"} < set(tally.compared)


def test_runs_in_processes_come_to_the_same_and_end_with_the_sweep_that_is_killed(
    sweep: Sweep, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    swept = "train.learning_rate=1e-3,3e-3"
    arguments = [str(data), "--output", str(tmp_path / "out"), "--jobs", "2", "--quiet"]
    settings = [*FAST, f"model.name_or_path={tiny_llama}", swept, "data.test_share=0"]
    process = processes.tuneful("sweep", *arguments, *settings)
    wait_until(lambda: len(list(tmp_path.glob("out/runs/*/run.json"))) == 2 or process.poll() is not None)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2, "a worker may have a compiler of its own below it"
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    done = processes.tuneful("sweep", *arguments, *settings)
    assert done.wait() == 0, done.error_so_far
    sweep(tmp_path / "here", swept, "data.test_share=0")
    assert killed_sweeps.outcome(tmp_path / "out") == killed_sweeps.outcome(tmp_path / "here")


def wait_until(seen: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_error_of_a_worker_is_the_error_of_the_sweep_and_a_divergence_a_result() -> None:
    leg = Leg(("a.json",), Path("runs/run-01"), load_config(None, []), 1.0)
    assert as_request(leg)["path"] == "runs/run-01"
    failed = legs._read_answer(leg, as_answer(DivergedError("step 3")) + "\n", 1, "")
    assert failed == legs.Failed("step 3")
    with pytest.raises(TunefulError, match="no such file") as caught:
        legs._read_answer(leg, "noise\n" + as_answer(DataError("no such file")), 2, "")
    assert caught.value.exit_code == 2
    with pytest.raises(TunefulError, match=r"run-01: its process was ended: Killed\. The same command goes on"):
        legs._read_answer(leg, "", -9, "warning\nKilled\n")


def test_workers_share_the_cores_unless_the_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert worker_environment(2, 0)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert int(worker_environment(10_000, 0)["OMP_NUM_THREADS"]) == 1


def test_several_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [worker_environment(3, place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [worker_environment(2, place)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["0", "1"]


def test_a_sweep_by_torchrun_or_of_standard_input_is_refused(
    sweep: Sweep, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="standard input can be read once"):
        tuneful.sweep("-", {"train.batch_size": [2, 4]}, output=tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="not started by torchrun"):
        sweep(tmp_path / "out", "train.max_grad_norm=2,4")


def test_the_default_folder_is_that_of_the_same_request(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(legs, "train_part", stopping)
    for rates in ([1e-4, 1e-3], [1e-4, 1e-3], [1e-4, 2e-3]):
        with pytest.raises(KeyboardInterrupt):
            tuneful.sweep(str(data), {"train.learning_rate": rates}, model=str(tiny_llama))
    assert len(list((tmp_path / "runs").glob("sweep-rows-*"))) == 2


def stopping(*arguments: Any) -> Any:
    raise KeyboardInterrupt


def test_the_reference_of_preferences_is_computed_once_for_runs_whose_steps_have_the_same_records(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneful.runs import preference
    from tuneful.train import reference

    computed: list[int] = []
    reference_logps = reference.reference_logps

    def counting(*arguments: Any, **options: Any) -> Any:
        before = len(arguments[4])
        yield from reference_logps(*arguments, **options)
        computed.append(len(arguments[4]) - before)

    monkeypatch.setattr(preference, "reference_logps", counting)
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{**row, "rejected": f"No {row['output']}."} for row in killed_sweeps.rows()]))
    settings = [*FAST, f"model.name_or_path={tiny_llama}", "train.objective=dpo", "train.max_steps=2"]
    result = tuneful.sweep(
        str(file),
        {"train.batch_size": [4, 5], "train.learning_rate": [1e-5, 1e-4]},
        config=load_config(None, [*settings, "data.test_share=0"]),
        output=tmp_path / "out",
        halving=False,
    )
    by_run = [sum(pair) for pair in zip(computed[::2], computed[1::2], strict=True)]  # steps, and what is held out
    assert [bool(number) for number in by_run] == [True, False, True, False], "each batch size once"
    assert result.document.chosen is not None
    assert result.document.optimism is None
    assert "How much choosing flatters it cannot be measured here." in result.page.read_text(encoding="utf-8")
    one, other = ((result.path / "runs" / name / "reference.json").read_bytes() for name in ("run-01", "run-02"))
    assert one == other


def test_runs_that_begin_alike_check_themselves_once_and_are_evaluated_once_before_the_first_step(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneful.train.loop import Training

    evaluated: list[int] = []
    evaluate = Training.evaluate

    def counting(training: Training) -> Any:
        evaluated.append(training.state.step)
        return evaluate(training)

    monkeypatch.setattr(Training, "evaluate", counting)
    swept = ("train.seed=1,2", "train.learning_rate=1e-4,1e-3")
    result = sweep(tmp_path / "out", *swept, "train.max_steps=1", "data.test_share=0", halving=False)
    runs = [result.path / "runs" / run.name for run in result.document.runs]
    seconds = [json.loads((run / "environment.json").read_bytes())["phase_seconds"] for run in runs]
    assert ["self_check" in one for one in seconds] == [True, False, True, False], "each seed once"
    assert sorted(evaluated) == [0, 0, 1, 1, 1, 1]
    first = [(run / "metrics.jsonl").read_bytes().splitlines()[0] for run in runs]
    assert first[0] == first[1]
    choices = [json.loads((run / "run.json").read_bytes())["choices"] for run in runs]
    assert choices[0] == choices[1]


def test_shares_of_the_choice_are_of_the_records_of_all_runs(finished: SweepResult) -> None:
    rows = [
        load_rows(ValidationLoss, finished.path / "runs" / run.name / "validation.jsonl")
        for run in finished.document.runs
        if run.state == "trained"
    ]
    sources = [[row.source for row in own] for own in rows if own is not None]
    assert sources[0] == sources[1]
    assert np.all([len(own) > 3 for own in sources])
