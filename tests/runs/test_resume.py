"""A run that is killed, stopped or told to go on under other settings: whole commands on a tiny model."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles import killed_runs, processes
from tests.doubles.processes import Process

from tuneful.cli import main
from tuneful.commands import run as api
from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.errors import CheckpointError, ConfigError, TunefulError
from tuneful.runs import measure
from tuneful.runs.folder import RunDir
from tuneful.signals import Interrupted
from tuneful.train import checkpoint, loop
from tuneful.train.loop import Training
from tuneful.train.optimizer import learning_rate

WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal"]
ROWS = [
    {"instruction": f"Say {word} {num}.", "input": "", "output": f"{word} {num}"} for word in WORDS for num in (1, 2)
]
SETTINGS = [
    "train.batch_size=3",
    "train.max_steps=12",
    "train.eval_steps=4",
    "train.sample_share=1",
    "train.save_steps=2",
    "train.learning_rate=1e-2",
    "train.micro_batch_tokens=60",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "report.general=none",
    "model.dtype=float32",
]


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("resume") / "colours.json"
    file.write_text(json.dumps(ROWS))
    return file


@pytest.fixture(scope="session")
def settings(tiny_llama: Path) -> list[str]:
    return [f"model.name_or_path={json.dumps(str(tiny_llama))}", *SETTINGS]


@pytest.fixture(scope="session")
def straight(data: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    api.run(str(data), config=load_config(None, settings), output=folder)
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """What a run comes to: weights by their hash, every line of metrics but its seconds, answers, and the comparison."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": [{key: value for key, value in row.items() if key != "step_seconds"} for row in metrics],
        "answers": [(folder / "answers" / f"{name}.jsonl").read_text() for name in ("base", "tuned")],
        "comparison": json.loads((folder / "comparison.json").read_text()),
    }


def cut_off_after(num_events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training ends, without a word to anybody, when it has handed out so many events."""
    run = Training.run

    def shorter(training: Training) -> Any:
        for number, event in enumerate(run(training), start=1):
            if number > num_events:
                raise CutOffError
            yield event

    monkeypatch.setattr(Training, "run", shorter)


def begin(data: Path, config: Config, folder: Path, num_events: int) -> None:
    """A run that is cut off in its training."""
    with pytest.MonkeyPatch.context() as patch:
        cut_off_after(num_events, patch)
        with pytest.raises(CutOffError):
            api.run(str(data), config=config, output=folder)


class Heard(Terminal):
    """A terminal that remembers."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: Any = "", style: str | None = None, *, wrap: bool = True) -> None:
        self.lines.append(str(line))

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.mark.parametrize("num_events", [0, 1, 3, 7, 8, 15])
def test_a_run_cut_off_in_its_training_ends_as_if_nothing_had_happened(
    num_events: int, straight: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    config = load_config(None, settings)
    begin(data, config, tmp_path / "run", num_events)
    heard = Heard()
    api.run(str(data), config=config, output=tmp_path / "run", terminal=heard)
    assert outcome(tmp_path / "run") == outcome(straight)
    assert ("going on after step" in heard) == (num_events >= 3)


def test_two_threads_go_on_to_the_bits_of_two_threads(data: Path, settings: list[str], tmp_path: Path) -> None:
    """The other tests take one thread each."""
    config, before = load_config(None, settings), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        api.run(str(data), config=config, output=tmp_path / "straight")
        begin(data, config, tmp_path / "run", 7)
        api.run(str(data), config=config, output=tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_what_is_finished_is_not_done_again(
    straight: Path, data: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []
    answer = measure._answer_test_set

    def cut_off(run: Any, engine: Any, name: str) -> object:
        answered.append(name)
        if name == "tuned" and answered.count("tuned") == 1:
            raise CutOffError
        return answer(run, engine, name)

    monkeypatch.setattr(measure, "_answer_test_set", cut_off)
    config = load_config(None, settings)
    with pytest.raises(CutOffError):
        api.run(str(data), config=config, output=tmp_path / "run")
    seen = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("answers/base.jsonl", "metrics.jsonl")}
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("trained again"))
    api.run(str(data), config=config, output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(straight)
    assert seen == {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in seen}


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_gone_on_from(
    straight: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    config = load_config(None, settings)
    begin(data, config, tmp_path / "run", 8)
    newest = tmp_path / "run" / "checkpoints" / "step-000006"
    content = bytearray((newest / "weights.safetensors").read_bytes())
    content[-5] ^= 4
    (newest / "weights.safetensors").write_bytes(content)
    heard = Heard()
    api.run(str(data), config=config, output=tmp_path / "run", terminal=heard)
    assert "step-000006 is damaged (weights.safetensors: its checksum differs) and not used" in heard
    assert "going on after step 4" in heard
    assert outcome(tmp_path / "run") == outcome(straight)
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-000006").is_dir()


# Changed


CHANGES = {
    "train.learning_rate": (["train.learning_rate=2e-2"], "`train.learning_rate` was 0.01, is 0.02"),
    "train.seed": (["train.seed=1"], "`train.seed` was 0, is 1"),
    "train.max_steps": (["train.max_steps=13"], "`train.max_steps` was 12, is 13"),
    "template.name": (["template.name=chatml"], "`template.name` was alpaca, is chatml"),
    "data.train_on": (["data.train_on=all"], "`data.train_on` was response, is all"),
    "generate.max_new_tokens": (["generate.max_new_tokens=5"], "`generate.max_new_tokens` was 4, is 5"),
}


@pytest.fixture(scope="session")
def stopped(data: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off after its fifth step."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    begin(data, load_config(None, settings), folder, 7)
    return folder


@pytest.mark.parametrize("key", CHANGES)
def test_a_run_does_not_go_on_under_other_settings_unless_they_are_allowed_by_name(
    key: str, stopped: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    more, message = CHANGES[key]
    config = load_config(None, [*settings, *more])
    with pytest.raises(ConfigError) as refusal:
        api.run(str(data), config=config, output=tmp_path / "run")
    assert message in str(refusal.value)
    assert f"--allow-changed {key}" in str(refusal.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    keys = [part.split()[0] for part in str(refusal.value).split("--allow-changed ")[1:]]
    allowed = sorted({*keys, "tokens"})
    heard = Heard()
    api.run(str(data), config=config, output=tmp_path / "run", terminal=heard, allow_changed=allowed)
    assert f"changed: {key} was" in heard


def test_a_change_that_was_allowed_once_stays_allowed(
    stopped: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    config = load_config(None, [*settings, "train.learning_rate=2e-2", "train.save_steps=100"])
    with pytest.MonkeyPatch.context() as patch:
        cut_off_after(1, patch)
        with pytest.raises(CutOffError):
            api.run(str(data), config=config, output=tmp_path / "run", allow_changed=["train.learning_rate"])
    api.run(str(data), config=config, output=tmp_path / "run")  # from the same checkpoint, made at the old rate


def test_settings_that_change_no_weight_may_change(
    straight: Path, stopped: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    config = load_config(None, [*settings, "train.save_steps=5", "train.save_total_limit=3", "model.device=cpu"])
    api.run(str(data), config=config, output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(straight)


def test_a_machine_that_computes_otherwise_is_said(
    stopped: Path, data: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    begun = json.loads((tmp_path / "run" / "run.json").read_text())["choices"]
    monkeypatch.setattr("tuneful.runs.setup.kernels_in_use", lambda device: "borrowed")
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    heard = Heard()
    api.run(str(data), config=load_config(None, settings), output=tmp_path / "run", terminal=heard)
    for before, now in (
        (f"{begun['kernels']} kernels", "borrowed kernels"),
        (f"{begun['num_threads']} threads", "77 threads"),
    ):
        assert f"begun with {before}, going on with {now}: the same training, but not bit for bit" in heard


def test_a_run_begun_before_there_were_compiled_kernels_goes_on_and_says_so(
    stopped: Path, data: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["choices"]["kernels"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("tuneful.runs.setup.kernels_in_use", lambda device: "compiled")
    heard = Heard()
    api.run(str(data), config=load_config(None, settings), output=tmp_path / "run", terminal=heard)
    assert "begun with torch's kernels, going on with compiled kernels" in heard


def test_one_byte_of_data_is_another_training(stopped: Path, data: Path, settings: list[str], tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    changed = tmp_path / data.name
    changed.write_text(data.read_text().replace("teal 2", "teal 3"))
    with pytest.raises(ConfigError, match=r"`data` was sha256 [0-9a-f]{64}, is sha256 [0-9a-f]{64}"):
        api.run(str(changed), config=load_config(None, settings), output=tmp_path / "run")


def test_another_model_is_another_training_and_the_same_one_elsewhere_is_not(
    straight: Path, stopped: Path, data: Path, settings: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(tiny_llama, tmp_path / "moved")
    moved = [f"model.name_or_path={json.dumps(str(tmp_path / 'moved'))}", *SETTINGS]
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="`model` was sha256"):
        api.run(str(data), config=load_config(None, moved), output=tmp_path / "run")
    content[-2] ^= 1
    weights.write_bytes(content)
    api.run(str(data), config=load_config(None, moved), output=tmp_path / "run")
    assert outcome(tmp_path / "run")["weights"] == outcome(straight)["weights"]


def test_where_every_checkpoint_is_damaged_the_run_says_so(
    stopped: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    for manifest in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        api.run(str(data), config=load_config(None, settings), output=tmp_path / "run")


# Processes


def command(*arguments: str) -> Process:
    return processes.tuneful(*arguments, env={"COLUMNS": "1000"})  # no path is broken at the end of a line


def wait_for(seen: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def num_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_sigterm_saves_a_checkpoint_that_the_command_it_names_goes_on_from(
    data: Path, settings: list[str], tmp_path: Path
) -> None:
    endless = ["train.max_steps=100000", "train.eval_steps=50000", "train.save_steps=90000"]
    folder = tmp_path / "out"
    process = command("train", str(data), "--output", str(folder), *settings, *endless)
    wait_for(lambda: num_lines(folder) > 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted: saving a checkpoint of step" in err
    assert f"go on with: tuneful train --resume {folder}" in err
    [saved] = (folder / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert num_lines(folder) == 1 + step  # an evaluation and the steps
    assert (folder / "report.html").is_file()

    config = load_config(None, [*settings, *endless, f"train.max_steps={step + 2}"])
    heard = Heard()
    api.train(str(data), config=config, output=folder, terminal=heard, allow_changed=["train.max_steps"])
    assert f"going on after step {step}" in heard
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, *range(1, step + 3), step + 2]


def test_one_run_folder_one_process_and_a_killed_owner_holds_it_no_longer(
    data: Path, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    arguments = ["train", str(data), "--output", str(folder), *settings]
    owner = command(*arguments, "train.max_steps=100000", "train.eval_steps=50000")
    wait_for(lambda: num_lines(folder) > 2, owner)
    with pytest.raises(ConfigError, match=rf"out: is in use by process {owner.pid} on .* since 20.*"):
        api.train(str(data), config=load_config(None, settings), output=folder)
    owner.kill()
    owner.communicate()
    allowed = ["train.max_steps", "train.eval_steps"]
    heard = Heard()
    config = load_config(None, [*settings, "train.max_steps=100"])
    api.train(str(data), config=config, output=folder, terminal=heard, allow_changed=allowed)
    with pytest.raises(ConfigError, match="already exists and holds a finished run"):
        api.train(str(data), config=config, output=folder)


# The command


Tuneful = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tuneful(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tuneful:
    """Runs the command in this process, in an empty folder; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuneful", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        read = capsys.readouterr()
        return int(end.value.code or 0), read.out, read.err

    return run


def test_resume_takes_the_newest_unfinished_run_and_means_its_paths_as_they_were_then(
    straight: Path, data: Path, settings: list[str], tmp_path: Path, tuneful: Tuneful, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(data, data.name)
    begin(Path(data.name), load_config(None, settings), Path("runs") / "older", 1)
    time.sleep(1.1)  # a run is as old as its second
    begin(Path(data.name), load_config(None, settings), Path("runs") / "newer", 7)
    code, out, err = tuneful("run", "--resume", "--json")
    assert code == 0, err
    assert Path(json.loads(out)["path"]) == tmp_path / "runs" / "newer"
    assert "going on after step 4" in err
    monkeypatch.chdir("/")
    code, _, err = tuneful("run", "--resume", str(tmp_path / "runs" / "older"), "train.save_steps=5")
    assert code == 0, err
    weights = [outcome(folder)["weights"] for folder in (straight, *(tmp_path / "runs").iterdir())]
    assert len(set(weights)) == 1
    code, _, err = tuneful("run", "--resume")
    assert (code, err) == (2, "error: runs: no unfinished run to resume; name its folder: --resume RUN\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--resume", "nowhere"], "nowhere: there is no run to resume"),
        (["train", "DATA", "--resume", "--output", "nowhere"], "nowhere: there is no run to resume; drop --resume"),
        (["train", "--resume", "STOPPED"], "was begun by `tuneful run`; go on with: tuneful run --resume"),
        (["run", "--resume", "STOPPED", "--config", "x.yaml"], "--resume brings its own configuration"),
        (["run", "--resume", "STOPPED", "train.seed=5"], "`train.seed` was 0, is 5"),
    ],
)
def test_a_resume_that_cannot_be_is_one_message(
    arguments: list[str], message: str, data: Path, stopped: Path, tmp_path: Path, tuneful: Tuneful
) -> None:
    shutil.copytree(stopped, "stopped")
    named = {"DATA": str(data), "STOPPED": "stopped"}
    code, out, err = tuneful(*[named.get(argument, argument) for argument in arguments])
    assert (code, out) == (2, "")
    assert message in err


def test_a_dry_run_foretells_what_the_run_then_takes_and_leaves_nothing(
    straight: Path, data: Path, settings: list[str], tmp_path: Path, tuneful: Tuneful
) -> None:
    code, out, err = tuneful("run", str(data), *settings, "--dry-run", "--json")
    assert code == 0, err
    assert list(tmp_path.iterdir()) == []
    foretold = json.loads(out)
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert foretold["num_steps"] == len(steps)
    assert foretold["num_evaluations"] == len(rows) - len(steps)
    assert foretold["record_tokens"] == sum(row["record_tokens"] for row in steps)
    assert foretold["trained_tokens"] == sum(row["target_tokens"] for row in steps)
    assert foretold["measured_tokens"][0] == max(row["record_tokens"] for row in steps)
    assert foretold["num_checkpoints"] == 3
    size = (straight / "model" / "model.safetensors").stat().st_size
    assert foretold["model_bytes"] == pytest.approx(size, rel=0.05)
    newest = straight / "checkpoints" / "step-000012"
    written = sum(file.stat().st_size for file in newest.iterdir())
    assert foretold["checkpoint_bytes"] in (pytest.approx(written, rel=0.15), pytest.approx(written * 4 / 3, rel=0.15))
    assert foretold["peak_memory_bytes"] > 1e8
    assert min(foretold["training_seconds"], foretold["evaluation_seconds"], foretold["answer_seconds"]) > 0
    taken = json.loads((straight / "environment.json").read_text())["phase_seconds"]
    assert set(foretold["phase_seconds"]) == set(taken) - {"checkpoints"}
    assert sum(foretold["phase_seconds"].values()) > foretold["training_seconds"] + foretold["answer_seconds"]
    code, out, err = tuneful("train", str(data), *settings, "--dry-run")
    assert (code, out) == (0, "")
    assert "12 and 4 evaluations" in err
    code, out, err = tuneful("train", str(data), *settings, "--dry-run", "--quiet")
    assert (code, err) == (0, "")
    assert "12 and 4 evaluations" in out


def test_a_disk_without_room_for_what_is_asked_is_refused_before_the_first_step(
    data: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ConfigError, match=r"GB of disk are free.*train.save_steps=2 writes up to 3: .* GB are needed"):
        api.train(str(data), config=load_config(None, settings), output=tmp_path / "run")


def test_a_disk_that_is_full_in_the_middle_is_one_message_and_the_run_goes_on_later(
    straight: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    append = RunDir.append_metrics

    def refuse(run: RunDir, row: Any) -> None:
        if row["step"] == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(run, row)

    config = load_config(None, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "append_metrics", refuse)
        with pytest.raises(TunefulError, match=r"the disk is full .* make room, then: tuneful run --resume"):
            api.run(str(data), config=config, output=tmp_path / "run")
    api.run(str(data), config=config, output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(straight)


def kill_runs() -> None:
    """What `benchmarks/kill.py --kills 6 --modes accumulated` does; its ending says what came of it."""
    (tally,) = killed_runs.campaign(6, ["accumulated"], signal.SIGKILL, 0, print).values()
    assert (tally.kills.total(), tally.different) == (6, []), tally


def test_runs_killed_at_any_moment_end_in_the_same_bits() -> None:
    """A short one of the benchmark: real processes, SIGKILL. They are forked, so by a process without threads."""
    killing = Process(kill_runs)
    out, err = killing.communicate(timeout=300)
    assert killing.returncode == 0, out + err
    assert "6 kills in" in out


# Stopped in every phase


PHASES = {
    "reading the data": ("tuneful.runs.setup.prepare_data", 1),
    "the self-check": ("tuneful.runs.setup.choose_layout", 1),
    "the answers before": ("tuneful.runs.sides.answer_rows", 1),
    "the references before": ("tuneful.runs.measure.record_nll", 1),
    "the first evaluation": ("tuneful.train.loop.mean_costs", 1),
    "the first sample": ("tuneful.runs.training.answer", 1),
    "a step": ("tuneful.train.loop.learning_rate", 5),
    "another evaluation": ("tuneful.train.loop.mean_costs", 3),
    "another sample": ("tuneful.runs.training.answer", 3),
    "saving a checkpoint": ("tuneful.train.checkpoint._write", 4),
    "saving the model": ("tuneful.runs.training.save_model", 1),
    "comparing the saved model": ("tuneful.runs.training.verify_export", 1),
    "the answers after": ("tuneful.runs.sides.answer_rows", 2),
    "the references after": ("tuneful.runs.measure.record_nll", 2),
    "the comparison": ("tuneful.runs.measure.compare_models", 1),
}
"""A function that each phase calls, and which of its calls that is."""


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_any_phase_ends_the_run_where_it_goes_on_from(
    phase: str, straight: Path, data: Path, settings: list[str], tmp_path: Path
) -> None:
    target, wanted = PHASES[phase]
    module, _, name = target.rpartition(".")
    real, calls = getattr(sys.modules[module], name), []

    def terminated(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **named)

    config = load_config(None, settings)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, terminated)
        with pytest.raises(Interrupted) as interruption:
            api.run(str(data), config=config, output=tmp_path / "run")
    assert interruption.value.exit_code == 143
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not list((tmp_path / "run").rglob(".part-*"))
    api.run(str(data), config=config, output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(straight)


def test_a_second_signal_leaves_at_once_and_saves_nothing(data: Path, settings: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*settings, "train.save_steps=100"])
    real = checkpoint._write

    def insist(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    def terminated(config: Any, step: int, num_steps: int) -> float:
        if step == 2:  # the first has something to be saved
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(config, step, num_steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", terminated)
        patch.setattr(checkpoint, "_write", insist)
        with pytest.raises(Interrupted) as interruption:
            api.run(str(data), config=config, output=tmp_path / "run")
    assert interruption.value.exit_code == 130
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
