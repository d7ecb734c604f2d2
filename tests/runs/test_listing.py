"""Run folders as `tuneful runs` reads them: states, figures, differences, what else lies about; and what of them could go."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.doubles.damaged_runs import BYTES, JSON, _a_folder, _dangling, _json_bytes, _json_line_bytes, _loop
from tests.doubles.listed_runs import comparison, of_headline, write_listed_run
from typer.testing import CliRunner

import tuneful
from tuneful import cli
from tuneful.console import Terminal
from tuneful.errors import InputError, TunefulError
from tuneful.runs import leftovers as leftovers_of
from tuneful.runs.leftovers import find_leftovers, remove_leftover
from tuneful.runs.listing import ListedRun, find_runs, read_run_folder
from tuneful.runs.schema import as_row
from tuneful.runs.table import KEYS, in_order, matching

OLD = Path(__file__).parent / "run_before_renaming"


def summary(path: Path) -> ListedRun:
    return read_run_folder(path, path.parent)


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["runs", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file, folder and link below `folder`, locks aside."""
    found: dict[str, bytes | str] = {}
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.name != ".lock":
            found[name] = (
                os.readlink(place) if place.is_symlink() else "folder" if place.is_dir() else place.read_bytes()
            )
    return found


# The table


def test_a_finished_run_is_told_by_its_files(tmp_path: Path) -> None:
    run = write_listed_run(
        tmp_path / "first", headline=comparison(0.2, 0.3), settings={"train": {"learning_rate": 1e-4}}
    )
    found = summary(run)
    assert (found.name, found.state, found.note) == ("first", "finished", "")
    assert (found.data, found.model, found.method, found.objective) == (("my.json",), "some-model", "full", "sft")
    assert (found.validation_loss, found.base_validation_loss, found.steps) == (1.5, 2.5, 8)
    assert found.seconds == 12  # checkpoints are written while it trains
    assert found.headline is not None
    assert found.headline.name == "rouge_l"
    assert found.headline.difference == pytest.approx(0.1)
    assert found.settings["train.learning_rate"] == 1e-4
    assert found.disk_bytes == sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert 0 < found.checkpoint_bytes < found.disk_bytes


def test_a_run_of_an_earlier_version_is_told_under_the_names_that_hold_now() -> None:
    found = summary(OLD)
    assert (found.state, found.settings["data.format"], found.settings["template.name"]) == (
        "finished",
        "alpaca",
        "tokenizer",
    )
    assert found.kl_to_base is not None
    assert "lora.merge" in found.settings, "what came later is at its default"


def test_an_unfinished_run_says_where_it_goes_on_and_one_that_is_held_that_it_is_running(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run", finished=False, checkpoint=6)
    found = summary(run)
    assert (found.state, found.note) == ("interrupted", "can be resumed after step 6")
    assert (found.steps, found.validation_loss) == (7, 1.75), "from metrics.jsonl"
    with FileLock(run / ".lock"):
        assert summary(run).state == "running"
    shutil.rmtree(run / "checkpoints")
    assert summary(run).note == "can be resumed, from the first step"
    (run / "model").mkdir()
    (run / "model" / "tuneful.json").write_text("{}")
    assert summary(run).note == "can be resumed: the model is trained and saved"


def break_json(file: Path) -> None:
    file.write_text(file.read_text()[:-9])


def change(file: Path) -> None:
    file.write_text(file.read_text().replace("1.5", "1.4"))


@pytest.mark.parametrize(
    ("harm", "name", "reason"),
    [
        (break_json, "run.json", "run.json: "),
        (lambda file: file.write_text("[]"), "run.json", "run.json: expected a JSON object, found list"),
        (Path.unlink, "run.json", "run.json: is missing"),
        (change, "training.json", "training.json: it is not what the run wrote there"),
        (break_json, "comparison.json", "comparison.json: "),
        (Path.unlink, "comparison.json", "comparison.json: is missing"),
        (Path.unlink, "model/model.safetensors", "model/model.safetensors: is missing"),
        (Path.unlink, "model/tuneful.json", "model/tuneful.json: is missing"),
        (lambda file: file.write_bytes(b"\0" * 100), "environment.json", "environment.json: "),
    ],
)
def test_a_damaged_run_is_named_with_its_reason_and_the_rest_is_told(
    harm: Callable[[Path], Any], name: str, reason: str, tmp_path: Path
) -> None:
    for number in (1, 2):
        write_listed_run(tmp_path / f"run-{number}", headline=comparison(0.2, 0.3))
    harm(tmp_path / "run-1" / name)
    one, other = (read_run_folder(path, tmp_path) for path in find_runs(tmp_path))
    assert one.state == "damaged"
    assert reason in one.note
    assert str(tmp_path) not in one.note
    assert other.state == "finished"
    assert reason in " ".join(shown(str(tmp_path)).split())


DOCUMENTS = ("run.json", "comparison.json", "training.json", "environment.json", "metrics.jsonl", "config.yaml")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_damage_to_a_file_ends_the_table(name: str, tmp_path: Path) -> None:
    """Of a run without sha256, so that nothing but the reading itself stands in between; once finished, once not."""
    rng = random.Random(name)
    run = shutil.copytree(OLD, tmp_path / "run")
    file = run / name
    record = json.loads((run / "run.json").read_text())
    whole = [file.read_bytes()]
    if name == "run.json":
        whole.append(json.dumps({**record, "finished": None}).encode())
    else:
        (run / "run.json").write_text(json.dumps({**record, "finished": None}))
    if name == "metrics.jsonl":
        (run / "training.json").unlink()
    harmed = [mutate(content, rng) for content in whole for mutate in BYTES.values()]
    if name.endswith(".json"):
        harmed += [_json_bytes(content, rng, what) for content in whole for what in JSON for _ in range(4)]
    if name.endswith(".jsonl"):
        harmed += [_json_line_bytes(whole[0], rng, what) for what in JSON for _ in range(4)]
    for content in harmed:
        file.write_bytes(content)
        listed = tuneful.runs(tmp_path, terminal=Terminal())
        json.dumps(listed.document)
        for key in KEYS:
            in_order(listed.runs, key)
        find_leftovers(tmp_path, listed.runs)


@pytest.mark.parametrize("change", [_a_folder, _dangling, _loop])
def test_no_place_that_holds_something_else_ends_the_table(change: Callable[[Path], None], tmp_path: Path) -> None:
    for number, name in enumerate((*DOCUMENTS, ".lock", "checkpoints", "model", "model/tuneful.json")):
        run = write_listed_run(tmp_path / f"run-{number}", headline=comparison(0.2, 0.3), finished=name != ".lock")
        change(run / name)
    assert len(tuneful.runs(tmp_path, terminal=Terminal()).runs) >= len(DOCUMENTS)
    tuneful.clean_runs(tmp_path)


def test_a_run_of_an_earlier_version_whose_model_is_gone_is_damaged(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "model")
    assert (summary(tmp_path / "old").state, summary(tmp_path / "old").note) == (
        "damaged",
        "its trained model is missing",
    )


def test_what_is_no_run_is_passed_over_wherever_it_lies(tmp_path: Path) -> None:
    write_listed_run(tmp_path / "deep" / "inside" / "run")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text('{"title": "of another program"}')
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "run.json").write_bytes(b"\xff\0[")
    (tmp_path / ".hidden").mkdir()
    shutil.copytree(tmp_path / "deep" / "inside" / "run", tmp_path / ".hidden" / "run")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("of somebody's")
    assert find_runs(tmp_path) == [tmp_path / "deep" / "inside" / "run"]
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "inside" / "run")
    assert [run.name for run in tuneful.runs(tmp_path).runs] == ["deep/inside/run", "link"]


def test_a_folder_that_is_a_run_is_its_own_table_and_one_without_runs_an_empty_one(tmp_path: Path) -> None:
    assert [run.name for run in tuneful.runs(OLD).runs] == ["run_before_renaming"]
    assert tuneful.runs(tmp_path).runs == ()
    assert "0 runs in" in shown(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        tuneful.runs(tmp_path / "nowhere")


def test_only_the_settings_that_differ_are_told(tmp_path: Path) -> None:
    for rate in (1e-4, 5e-5):
        write_listed_run(tmp_path / f"run-{rate:g}", settings={"train": {"learning_rate": rate}})
    listed = tuneful.runs(tmp_path)
    assert listed.differing == ("train.learning_rate",)
    text = " ".join(shown(str(tmp_path)).split())
    assert "all: data my.json, model some-model, method full" in text
    assert "finished; train.learning_rate=0.0001" in text
    assert "train.learning_rate=5e-05" in text
    assert text.count("train.") == 2
    assert tuneful.runs(tmp_path, filters=["train.learning_rate=1e-4"]).differing == ()


def test_a_run_names_few_of_many_settings_those_first_that_it_does_not_leave_alone(tmp_path: Path) -> None:
    write_listed_run(tmp_path / "plain")
    train = {
        "learning_rate": 1e-3,
        "batch_size": 3,
        "seed": 4,
        "max_steps": 5,
        "weight_decay": 0.0,
        "max_grad_norm": 2.0,
    }
    write_listed_run(
        tmp_path / "other", settings={"train": train, "data": {"test_share": 0.3, "max_length": 64, "split": "random"}}
    )
    text = " ".join(shown(str(tmp_path)).split())
    assert text.count("and 1 more") == 2
    assert "data.max_length=64" in text


def test_runs_are_sorted_best_first_and_those_without_the_figure_last(tmp_path: Path) -> None:
    for name, after, loss in (("a", 0.3, 1.5), ("b", 0.5, 1.2), ("c", 0.4, 1.9)):
        write_listed_run(tmp_path / name, headline=comparison(0.2, after), loss=loss)
    write_listed_run(tmp_path / "d", verb="train", loss=1.0)

    listed = tuneful.runs(tmp_path, sort="headline").runs

    def names(sort: str, *, reverse: bool = False) -> str:
        return "".join(run.name for run in in_order(listed, sort, reverse=reverse))

    assert [run.name for run in listed] == list(names("headline")) == list("bcad")
    assert names("headline", reverse=True) == "acbd"
    assert names("validation_loss") == "dbac"
    for key in KEYS:
        assert sorted(names(key)) == ["a", "b", "c", "d"]
    assert sorted(names("train.learning_rate")) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="did you mean `validation_loss`"):
        names("validation-loss")


def test_a_metric_that_should_fall_is_sorted_by_how_far_it_fell(tmp_path: Path) -> None:
    less = replace(comparison(3.0, 2.0), higher_is_better=False)
    more = replace(comparison(2.0, 3.0), higher_is_better=False)
    runs = [ListedRun(name, name, "finished", headline=metric) for name, metric in (("more", more), ("less", less))]
    assert [run.name for run in in_order(runs, "headline")] == ["less", "more"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["train.learning_rate=1e-4"], ["slow"]),
        (["train.learning_rate=0.0001"], ["slow"]),
        (["state=finished", "data=MY"], ["fast", "slow"]),
        (["train.max_steps=none"], ["fast", "slow"]),
        (["slo"], ["slow"]),
        (["train.learning_rate=1"], []),
        (["method=lora"], []),
    ],
)
def test_filters_take_keys_settings_and_texts(wanted: list[str], names: list[str], tmp_path: Path) -> None:
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        write_listed_run(tmp_path / name, settings={"train": {"learning_rate": rate}})
    runs = [read_run_folder(path, tmp_path) for path in find_runs(tmp_path)]
    assert sorted(run.name for run in matching(runs, wanted)) == names


def test_a_filter_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    write_listed_run(tmp_path / "run")
    for wanted, guess in (("metod=lora", "method"), ("train.learning_rat=1", "train.learning_rate")):
        with pytest.raises(InputError, match=f"did you mean `{guess}`"):
            tuneful.runs(tmp_path, filters=[wanted])


def test_the_table_fits_eighty_columns_and_json_holds_all_of_it(tmp_path: Path) -> None:
    write_listed_run(tmp_path / "starter-20261130-142101", headline=comparison(0.2, 0.3), loss=123.456)
    write_listed_run(tmp_path / ("long-" * 12 + "name"), headline=replace(comparison(20.1, 38.5), low=9.1, high=27.1))
    write_listed_run(tmp_path / "huge", headline=replace(comparison(9e4, 1.0), low=-99_999.0), finished=False)
    lines = shown(str(tmp_path)).splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert any(line.startswith("starter-20261130-142101  123.5  +0.100 [+0.050,+0.150]") for line in lines), lines
    document = json.loads(shown(str(tmp_path), "--json"))
    assert set(document) == {"folder", "num_left_out", "differing", "runs"}
    assert {run["name"]: run["state"] for run in document["runs"]}["huge"] == "interrupted"
    starter = document["runs"][-1]
    assert (starter["name"], starter["headline"]["verdict"]) == ("starter-20261130-142101", "better")
    assert starter["settings"]["train.method"] == "full"


def test_the_distance_from_the_base_is_a_column_where_any_run_has_one(tmp_path: Path) -> None:
    moved = replace(comparison(0.0, 0.25), name="kl_to_base", label="KL to base", higher_is_better=None)
    write_listed_run(tmp_path / "one", headline=comparison(0.2, 0.3))
    assert " KL" not in shown(str(tmp_path))
    far = write_listed_run(tmp_path / ("a-name-of-30-signs-" + 11 * "x"), finished=False)
    whole = replace(of_headline(comparison(0.2, 0.3)), forgetting=(moved,))
    (far / "comparison.json").write_text(json.dumps(as_row(whole)))
    lines = shown(str(tmp_path)).splitlines()
    assert max(map(len, lines)) <= 80, lines
    (head,) = [line for line in lines if line.startswith("run ")]
    (of_far,) = [line for line in lines if "0.250" in line]
    (of_one,) = [line for line in lines if line.startswith("one ")]
    end = head.index("KL") + 2
    assert (of_far[end - 5 : end], of_one[end - 5 : end]) == ("0.250", " " * 5)
    assert "KL: to base, bits per token of the base's own text" in " ".join(" ".join(lines).split())


# What could go


def test_checkpoints_of_finished_runs_go_and_nothing_else_of_them(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run", headline=comparison(0.2, 0.3))
    (run / "judge").mkdir()
    (run / "judge" / "replies.jsonl").write_text("cost money")
    before = snapshot(tmp_path)
    result = tuneful.clean_runs(tmp_path)
    assert snapshot(tmp_path) == before, "nothing goes unless it is confirmed"
    assert [(one.kind, one.path) for one in result.leftovers] == [("checkpoints", str(run / "checkpoints"))]
    assert result.leftovers[0].num_bytes == summary(run).checkpoint_bytes
    result = tuneful.clean_runs(tmp_path, confirmed=True)
    assert result.document["removed_bytes"] == result.document["num_bytes"] > 0
    assert snapshot(tmp_path) == {name: what for name, what in before.items() if "checkpoints" not in name}
    assert summary(run).state == "finished"
    assert tuneful.clean_runs(tmp_path, confirmed=True).leftovers == ()


def test_the_run_that_is_named_itself_is_cleaned_too(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run")
    other = write_listed_run(tmp_path / "other")
    assert [one.path for one in tuneful.clean_runs(run, confirmed=True).removed] == [str(run / "checkpoints")]
    assert (other / "checkpoints").exists()
    assert not (run / "checkpoints").exists()


def test_an_interrupted_run_keeps_all_that_it_goes_on_with(tmp_path: Path) -> None:
    for name, file in (
        ("checkpoint", "checkpoints/step-000006/manifest.json"),
        ("half a checkpoint", "checkpoints/step-000006/weights.safetensors"),
        ("answers", "answers/base.jsonl"),
        ("general", "general/base.jsonl"),
        ("reference", "reference.json"),
        ("model", "model/model.safetensors"),
        ("replies", "judge/replies.jsonl"),
        ("notes", "notes.txt"),
        ("ratings", "ratings.jsonl"),
    ):
        place = write_listed_run(tmp_path / name, finished=False) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
    link = write_listed_run(tmp_path / "link", finished=False) / "kept"
    link.symlink_to(tmp_path)
    before = snapshot(tmp_path)
    assert tuneful.clean_runs(tmp_path, confirmed=True).leftovers == ()
    assert snapshot(tmp_path) == before


def test_a_run_that_was_broken_off_with_nothing_to_go_on_with_goes_as_a_whole(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run", finished=False)
    with FileLock(run / ".lock"):
        assert tuneful.clean_runs(tmp_path, confirmed=True).leftovers == (), "it is at work"
    assert tuneful.clean_runs(run, confirmed=True).leftovers == (), "the folder that was named stays"
    result = tuneful.clean_runs(tmp_path, confirmed=True)
    assert [(one.kind, one.path) for one in result.removed] == [("nothing", str(run))]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_and_one_that_lies_elsewhere_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_listed_run(folder / "damaged")
    (folder / "damaged" / "model" / "model.safetensors").unlink()
    elsewhere = write_listed_run(tmp_path / "elsewhere")
    (folder / "link").symlink_to(elsewhere)
    linked = write_listed_run(folder / "linked")
    shutil.move(linked / "checkpoints", tmp_path / "checkpoints")
    (linked / "checkpoints").symlink_to(tmp_path / "checkpoints")
    before = snapshot(tmp_path)
    assert tuneful.clean_runs(folder, confirmed=True).leftovers == ()
    assert snapshot(tmp_path) == before


def make_old(*places: Path) -> None:
    for place in places:
        for one in (*place.rglob("*"), place):
            os.utime(one, (time.time() - 90_000,) * 2)


def test_what_killed_writers_left_goes_once_it_is_a_day_old_but_never_the_only_copy(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run", finished=False, checkpoint=6)
    halves = [run / name for name in (".part-model", "checkpoints/.part-step-000009", "checkpoints/.old-step-000003")]
    for folder in halves:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(1000))
    halves.append(run / ".data.json.12345-abcd.part")
    halves[-1].write_text("half")
    only_copy = run / ".old-adapter"
    only_copy.mkdir()
    assert tuneful.clean_runs(tmp_path).leftovers == (), "somebody may be writing them"
    make_old(*halves, only_copy)
    result = tuneful.clean_runs(tmp_path, confirmed=True)
    assert {one.path for one in result.removed} == {str(one) for one in halves}
    assert only_copy.is_dir()
    assert summary(run).note == "can be resumed after step 6"


def test_a_run_that_went_on_after_it_was_found_keeps_everything(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run", finished=False)
    [found] = find_leftovers(tmp_path, [read_run_folder(run, tmp_path)])
    with FileLock(run / ".lock"):
        assert not remove_leftover(found, tmp_path)
    (run / "answers").mkdir()
    (run / "answers" / "base.jsonl").write_text("{}")
    assert not remove_leftover(found, tmp_path)
    assert (run / "answers" / "base.jsonl").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_removal_that_is_killed_leaves_no_half_of_anything_in_its_place_and_is_finished_later(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_listed_run(tmp_path / "run", finished=finished)

    def refuse(*places: Path) -> None:
        raise OSError(5, "Input/output error", str(places[0]))

    with monkeypatch.context() as patch:
        patch.setattr(leftovers_of, "remove", refuse)
        with pytest.raises(TunefulError, match="cannot be removed: Input/output error"):
            tuneful.clean_runs(tmp_path, confirmed=True)
    assert not (run / "checkpoints").exists()
    assert run.exists() is finished
    assert [run.state for run in tuneful.runs(tmp_path).runs] == ["finished"] * finished
    assert [one.kind for one in tuneful.clean_runs(tmp_path, confirmed=True).removed] == ["unfinished"]
    assert [name for name in snapshot(tmp_path) if ".removed-" in name] == []


def test_the_command_asks_and_without_a_terminal_removes_nothing_unless_told_to(tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run")
    said = shown("clean", str(tmp_path))
    assert "Checkpoints of finished runs" in said
    assert "`tuneful explain` reads them; without, it has the gradients at the final weights alone" in " ".join(
        said.split()
    )
    assert "nothing was removed: there is nobody to ask; --yes removes it" in said
    assert (run / "checkpoints").exists()
    assert shown("clean", str(tmp_path), "--filter", "state=interrupted", "--yes").startswith("nothing in")
    document = json.loads(shown("clean", str(tmp_path), "--yes", "--json"))
    assert [one["removed"] for one in document["leftovers"]] == [True]
    assert not (run / "checkpoints").exists()
    assert shown("clean", str(tmp_path)).startswith("nothing in")


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked_once_everything_was_shown(answer: bool, tmp_path: Path) -> None:
    run = write_listed_run(tmp_path / "run")
    asked: list[bool] = []

    def ask() -> bool:
        asked.append((run / "checkpoints").exists())
        return answer

    tuneful.clean_runs(tmp_path, confirmed=ask, terminal=Terminal(quiet=True))
    assert asked == [True]
    assert (run / "checkpoints").exists() is not answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b"), "one folder of runs, not 2: a, b"),
        (("clean", "a", "b"), "one folder of runs, not 2"),
        (("--yes",), "--yes is for `tuneful runs clean`"),
        (("clean", "--reverse"), "are for the table"),
        (("nowhere",), "nowhere: no such folder"),
    ],
)
def test_what_makes_no_sense_together_is_refused(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["runs", *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
