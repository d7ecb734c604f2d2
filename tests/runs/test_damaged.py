"""A run folder in which something was damaged: what is made again, what is refused and by which words, and the way out."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.damaged_runs import (
    CutOffError,
    cutting_off,
    leave,
    run_command,
)

import tuneful
from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.errors import ConfigError, CorruptCheckpointError, DataError
from tuneful.runs import schema
from tuneful.runs.schema.read import as_row, fields_of, read_loosely, read_strictly

ROWS = [
    {"instruction": f"Say {word} {num}.", "output": f"{word} {num}"} for word in ("red", "blue") for num in range(6)
]
SETTINGS = [
    "train.batch_size=3",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=2",
    "train.learning_rate=1e-2",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "data.split=random",
    "data.test_share=0.4",
    "model.dtype=float32",
]


class Heard(Terminal):
    """A terminal that remembers."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.text = ""

    def say(self, line: Any = "", style: str | None = None, *, wrap: bool = True) -> None:
        self.text += f"{line}\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("damaged") / "data.json"
    file.write_text(json.dumps(ROWS))
    return file


@pytest.fixture(scope="module")
def config(tiny_llama: Path, data: Path) -> Config:
    general = data.with_name("general.txt")
    general.write_text("The river is wide.\n\nBread rises.\n")
    model = f"model.name_or_path={json.dumps(str(tiny_llama))}"
    return load_config(None, [*SETTINGS, model, f"report.general={json.dumps(str(general))}"])


@pytest.fixture(scope="module")
def straight(data: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    tuneful.run(str(data), config=config, output=folder)
    return folder


def _cut_off(data: Path, config: Config, folder: Path, target: str, call: int) -> Path:
    with cutting_off(target, call), pytest.raises(CutOffError):
        tuneful.run(str(data), config=config, output=folder)
    return folder


@pytest.fixture(scope="module")
def training(data: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off in its training."""
    folder = tmp_path_factory.mktemp("training") / "run"
    return _cut_off(data, config, folder, "tuneful.train.loop.learning_rate", 6)


@pytest.fixture(scope="module")
def trained(data: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off before it compared."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return _cut_off(data, config, folder, "tuneful.runs.measure.compare_models", 1)


GoOn = Callable[..., str]


@pytest.fixture
def go_on(data: Path, config: Config, straight: Path, tmp_path: Path) -> GoOn:
    """Goes on with a copy of a run, once `damage` was done to it, to the bits of the straight one; what was said."""

    def go_on(folder: Path, damage: Callable[[Path], object], run: Path = tmp_path / "run") -> str:
        if not run.exists():
            shutil.copytree(folder, run, symlinks=True)
        damage(run)
        heard = Heard()
        tuneful.run(str(data), config=config, output=run, terminal=heard)
        for name in ("model/model.safetensors", "answers/base.jsonl", "answers/tuned.jsonl", "comparison.json"):
            assert (run / name).read_bytes() == (straight / name).read_bytes(), name
        return heard.text

    return go_on


def _edited(name: str, edit: Callable[[Any], object]) -> Callable[[Path], object]:
    """Damage: the JSON of a file, or of its first line, is another."""

    def damage(run: Path) -> None:
        first, *rest = (run / name).read_text().splitlines() if name.endswith("l") else [(run / name).read_text()]
        value = json.loads(first)
        edit(value)
        (run / name).write_text("\n".join([json.dumps(value), *rest]) + "\n")

    return damage


def _written(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


AGAIN = {
    "an empty file": (_written("answers/base.jsonl", ""), "answers/base.jsonl: damaged: it holds no row"),
    "a key missing": (_edited("answers/base.jsonl", lambda row: row.pop("text")), "base.jsonl:1: damaged: `text`: is"),
    "another answer": (
        _edited("answers/tuned.jsonl", lambda row: row.update(text="red")),
        "answers/tuned.jsonl: damaged: it is not what the run wrote there (its sha256 differs)",
    ),
    "a loss that is null": (
        _edited("answers/base-references.jsonl", lambda row: row.update(nll=None)),
        "answers/base-references.jsonl:1: damaged: `nll`: expected a number, found None",
    ),
    "a loss that is huge": (
        _edited("general/base.jsonl", lambda row: row.update(nll=10**400)),
        "base.jsonl:1: damaged",
    ),
    "no JSON": (_written("general/tuned.jsonl", "\0\0"), "general/tuned.jsonl:1: damaged: not a JSON object"),
}


@pytest.mark.parametrize("what", AGAIN)
def test_answers_and_general_scores_that_are_damaged_are_made_again_which_is_said(
    what: str, trained: Path, go_on: GoOn
) -> None:
    damage, said = AGAIN[what]
    heard = go_on(trained, damage)
    assert said in heard
    assert "It is made again" in heard


def test_answers_of_an_older_version_without_sums_are_told_from_those_of_another_set_by_their_records(
    trained: Path, go_on: GoOn
) -> None:
    def damage(run: Path) -> None:
        _edited("run.json", lambda record: [record.pop(key) for key in ("files", "sha256")])(run)
        lines = (run / "answers" / "base.jsonl").read_text().splitlines(keepends=True)
        (run / "answers" / "base.jsonl").write_text("".join(reversed(lines)))

    assert "answers/base.jsonl:1: damaged: is of" in go_on(trained, damage)


def test_a_damaged_environment_costs_the_times_alone(trained: Path, go_on: GoOn) -> None:
    assert "environment.json: damaged: " in go_on(trained, _written("environment.json", "[]"))


REFUSED = {
    "run.json: a key missing": (
        _edited("run.json", lambda row: row.pop("training")),
        "run.json: damaged: `training`: is",
    ),
    "run.json: another dtype": (
        _edited("run.json", lambda row: row["choices"].update(dtype="bfloat16")),
        "run.json: damaged: it is not what the run wrote",
    ),
    "run.json: no time": (
        _edited("run.json", lambda row: (row.pop("sha256"), row.update(started="soon"))),
        "run.json: damaged: `started`: expected a time, found 'soon'",
    ),
    "run.json: nested": (_written("run.json", "[" * 100_000), "run.json: damaged: it is nested too deeply"),
    "training.json: missing": (lambda run: (run / "training.json").unlink(), "training.json: is missing; remove"),
    "training.json: a text": (_written("training.json", '"x"'), "training.json: damaged: expected a JSON object"),
    "model: another weight": (
        lambda run: _flip(run / "model" / "model.safetensors"),
        "model.safetensors: damaged: it is not what the run wrote there (its sha256 differs); remove",
    ),
    "model: a file missing": (
        lambda run: (run / "model" / "config.json").unlink(),
        "model/config.json: cannot be read",
    ),
    "metrics.jsonl: another loss": (
        _edited("metrics.jsonl", lambda row: row.update(validation_loss=0.0)),
        "metrics.jsonl: damaged: it is not what the run wrote there (its sha256 differs); restore it, or remove it",
    ),
    "answers: a file": (
        lambda run: (shutil.rmtree(run / "answers"), (run / "answers").write_text("")),
        "answers: is a file, and the run keeps a folder there",
    ),
    "data.json: a folder": (
        lambda run: ((run / "data.json").unlink(), (run / "data.json").mkdir()),
        "data.json: is a folder, and the run keeps a file there",
    ),
    "checkpoints: a link to nothing": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").symlink_to("nowhere")),
        "checkpoints: is a link to nothing, and the run keeps a folder there",
    ),
}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_made_again_is_refused_by_the_name_of_its_file(what: str, trained: Path, go_on: GoOn) -> None:
    damage, message = REFUSED[what]
    with pytest.raises((ConfigError, DataError)) as refusal:
        go_on(trained, damage)
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("what", ["training.json: missing", "model: another weight"])
def test_the_model_is_saved_again_once_it_is_removed_as_the_message_says(
    what: str, trained: Path, go_on: GoOn, tmp_path: Path
) -> None:
    damage, _ = REFUSED[what]
    with pytest.raises(DataError) as refusal:
        go_on(trained, damage)
    assert f"remove {tmp_path / 'run' / 'model'}: the training goes on from its newest checkpoint" in str(refusal.value)
    heard = go_on(trained, lambda run: shutil.rmtree(run / "model"))
    assert "going on after step" in heard


def test_metrics_are_held_against_the_checkpoint_and_their_loss_is_said(
    training: Path, go_on: GoOn, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl: damaged: its first [\d,]+ bytes are not .* or remove it"):
        go_on(training, _written("metrics.jsonl", '{"step": 1}\n'))
    heard = go_on(training, lambda run: (run / "metrics.jsonl").unlink())
    assert "metrics.jsonl is missing: its lines up to step 4 are lost" in heard
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 5


def test_whatever_a_killed_writer_left_is_cleared_be_it_a_file_a_folder_or_a_link(training: Path, go_on: GoOn) -> None:
    places = (".run.json.1-aa.part", ".part-model", ".old-model", "checkpoints/.part-step-000006", "checkpoints/.old-x")

    def damage(run: Path) -> None:
        for place in places:
            leave(run / place, random.Random(len(place)))

        (run / "checkpoints" / ".part-step-000004").write_text("half")

    go_on(training, damage)


def test_of_a_checkpoint_that_is_a_link_the_link_is_removed_and_not_what_it_names(
    training: Path, go_on: GoOn, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def damage(run: Path) -> None:
        shutil.move(run / "checkpoints" / "step-000002", kept)
        (run / "checkpoints" / "step-000002").symlink_to(kept)

    shutil.copytree(training, tmp_path / "run")
    before = {file.name: file.stat().st_size for file in (tmp_path / "run" / "checkpoints" / "step-000002").iterdir()}
    go_on(training, damage)
    assert not (tmp_path / "run" / "checkpoints" / "step-000002").exists()
    assert {file.name: file.stat().st_size for file in kept.iterdir()} == before


def test_damaged_checkpoints_are_a_refusal_of_the_request(training: Path, go_on: GoOn) -> None:
    def damage(run: Path) -> None:
        for manifest in (run / "checkpoints").glob("*/manifest.json"):
            manifest.write_text("null")

    with pytest.raises(CorruptCheckpointError, match=r"step-000004: manifest.json: cannot be read") as refusal:
        go_on(training, damage)
    assert refusal.value.exit_code == 2


# A finished run


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("answers/tuned.jsonl", lambda row: row.update(text="other"), "answers/tuned.jsonl: damaged: it is not what"),
        ("answers/tuned.jsonl", lambda row: row.update(num_tokens="x"), "answers/tuned.jsonl:1: damaged: `num_tokens`"),
        ("answers/tuned-references.jsonl", lambda row: row.pop("nll"), "tuned-references.jsonl:1: damaged: `nll`"),
        ("general/tuned.jsonl", lambda row: row.update(kind="x"), "general/tuned.jsonl:1: damaged: `kind`"),
        ("data/test.jsonl", lambda row: row.update(output="x"), "data/test.jsonl: damaged: it is not what"),
    ],
)
def test_a_comparison_names_a_result_that_is_damaged(
    name: str, edit: Any, message: str, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    _edited(name, edit)(run)
    code, out, err = run_command(["compare", str(straight), str(run)])
    assert (code, out) == (2, "")
    assert message in err


def test_a_report_says_which_file_is_not_what_the_run_wrote(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    assert "sha256 differs" not in tuneful.report(run).read_text(encoding="utf-8")
    _edited("comparison.json", lambda row: row.update(num_items=77))(run)
    page = tuneful.report(run).read_text(encoding="utf-8")
    assert "comparison.json: damaged: it is not what the run wrote there (its sha256 differs)." in page


def test_run_json_names_the_sha256_of_every_finished_file(straight: Path) -> None:
    record = json.loads((straight / "run.json").read_text())
    written = {
        file.relative_to(straight).as_posix()
        for file in straight.rglob("*")
        if file.is_file() and file.name not in ("README.md", "report.html", "run.json", ".lock")
    }
    assert set(record["files"]) == {name for name in written if not name.startswith("checkpoints/")}
    for name, sha256 in record["files"].items():
        assert hashlib.sha256((straight / name).read_bytes()).hexdigest() == sha256


# The schema


KINDS = [
    getattr(schema, name)
    for name in schema.__all__
    if isinstance(getattr(schema, name), type) and hasattr(getattr(schema, name), "__dataclass_fields__")
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["", "run", "trie", "stop", "float32", "passage", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_any_json_is_a_row_or_named_as_none(kind: Any, data: st.DataObject) -> None:
    names = [field.name for field in fields_of(kind)]
    row = data.draw(VALUES | st.dictionaries(st.sampled_from(names), VALUES))
    try:
        found = read_strictly(kind, row, "here")
    except DataError as error:
        assert str(error).startswith("here: ")  # noqa: PT017
    else:
        assert read_strictly(kind, json.loads(json.dumps(as_row(found))), "there") == found
    if isinstance(row, dict) and kind.__name__ not in ("GeneralScore", "ScoreSummary"):  # which promise more
        read_loosely(kind, row)
