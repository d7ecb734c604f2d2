"""Blind ratings: nothing tells whose answer is whose, nothing acknowledged is lost, nothing is kept twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.killed_rating import campaign
from tests.doubles.rated_runs import plain_items, write_run
from tests.machine import needs

from tuneful.errors import DataError
from tuneful.serve.folder import RunsFolder
from tuneful.serve.items import items_for
from tuneful.serve.rating import Choice, RatingDesk, RatingView, StaleItemError, clean_rater
from tuneful.serve.ratings import DATABASE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six items, two of them with equal answers."""
    items = plain_items(6)
    items[1] = (*items[1][:2], "same", "same")
    items[4] = (*items[4][:2], "same", "same")
    return write_run(tmp_path / "run", items)


def rate(desk: RatingDesk, run: Path, rater: str, better: str, remark: str = "") -> str:
    """Rate the next item of `rater` by the name that stands in its texts, or by a choice; the item's source."""
    shown = desk.view(run, rater, "base", "tuned").item
    assert shown is not None
    choice: Any = {0: "first", 1: "second"}.get(
        next((place for place, text in enumerate(shown.texts) if text.startswith(better)), 2), better
    )
    desk.rate(run, rater, "base", "tuned", shown.digest, choice, remark)
    return shown.item.source


def exported(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ratings.jsonl").read_text().splitlines()]


def test_a_choice_by_place_becomes_the_name_that_stood_there(run: Path) -> None:
    desk = RatingDesk()
    sources = [rate(desk, run, "Ada", better) for better in ("tuned", "base", "tie", "both_bad")]
    assert desk.view(run, "Ada", "base", "tuned") == RatingView(None, 4, 4, 2)
    desk.export(run)
    rows = {row["source"]: row for row in exported(run)}
    assert [rows[source]["preference"] for source in sources] == ["b", "a", "tie", "both_bad"]
    assert {(row["a"], row["b"], row["rater"]) for row in rows.values()} == {("base", "tuned", "Ada")}


def test_orders_differ_between_raters_and_items_and_stay_after_a_restart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", plain_items(200))

    items = RatingDesk().items(run, ("base", "tuned"))

    def orders(rater: str, seed: int = 0) -> list[tuple[str, str]]:
        return [(one.item.source, one.first) for one in items_for(items, rater, "base", "tuned", seed)]

    ada, bob = orders("Ada"), orders("Bob")
    assert ada == orders("Ada") != orders("Ada", seed=1)
    assert [source for source, _ in ada] != [source for source, _ in bob]
    assert sorted(source for source, _ in ada) == sorted(source for source, _ in bob)
    # 200 fair coins stay within 70 and 130, but for one case in a hundred thousand; and two raters' coins are not the same.
    assert 70 < sum(first == "a" for _, first in ada) < 130
    assert 70 < sum(dict(ada)[source] == first for source, first in bob) < 130


def test_undo_takes_back_the_last_rating_and_shows_its_item_with_its_remark(run: Path) -> None:
    desk = RatingDesk()
    first, second = rate(desk, run, "Ada", "tuned"), rate(desk, run, "Ada", "base", remark="  too short ")
    rate(desk, run, "Bob", "base")
    view = desk.undo(run, "Ada", "tuned", "base")
    assert view.item is not None
    assert (view.item.item.source, view.remark, view.num_rated) == (second, "too short", 1)
    view = desk.undo(run, "Ada", "base", "tuned")
    assert view.item is not None
    assert (view.item.item.source, view.num_rated) == (first, 0)
    assert desk.undo(run, "Ada", "base", "tuned").num_rated == 0
    desk.export(run)
    assert [row["rater"] for row in exported(run)] == ["Bob"]


def test_a_rating_sent_twice_is_kept_once_and_the_later_one_counts(run: Path) -> None:
    desk = RatingDesk()
    shown = desk.view(run, "Ada", "base", "tuned").item
    assert shown is not None
    choices: tuple[Choice, ...] = ("first", "first", "second")
    for choice in choices:
        desk.rate(run, "Ada", "base", "tuned", shown.digest, choice, "")
    (row,) = desk.store(run).rows()
    assert row.preference != row.shown_first


def test_a_rating_of_answers_that_have_changed_is_refused_and_the_old_one_counts_no_more(run: Path) -> None:
    desk = RatingDesk()
    source = rate(desk, run, "Ada", "tuned")
    shown = desk.view(run, "Ada", "base", "tuned").item
    assert shown is not None
    file = run / "answers" / "tuned.jsonl"
    file.write_text(file.read_text().replace('"tuned ', '"tuned anew '))
    with pytest.raises(StaleItemError, match="have changed"):
        desk.rate(run, "Ada", "base", "tuned", shown.digest, "first", "")
    view = desk.view(run, "Ada", "base", "tuned")
    assert (view.num_rated, view.num_items) == (0, 4)
    summary, _, raters = desk.results(run, "base", "tuned")
    assert summary is not None
    assert (summary.num_ratings, summary.num_left_out, raters) == (0, 1, {})
    while rate(desk, run, "Ada", "base") != source:
        pass
    assert len({row.source for row in desk.store(run).rows()}) == len(desk.store(run).rows())


def test_results_count_items_once_and_say_how_far_raters_agree(run: Path) -> None:
    desk = RatingDesk()
    for rater, better in (("Ada", "tuned"), ("Bob", "tuned"), ("Cem", "base")):
        for _ in range(4):
            rate(desk, run, rater, better)
    summary, preference, raters = desk.results(run, "base", "tuned")
    assert summary is not None
    assert preference is not None
    assert (summary.num_raters, summary.num_ratings, summary.num_items) == (3, 12, 4)
    assert (summary.base_preferred, summary.tuned_preferred, summary.ties, summary.both_bad) == (4, 8, 0, 0)
    assert preference.tuned == pytest.approx(2 / 3)
    assert (preference.wins, preference.losses, preference.verdict) == (4, 0, "cannot tell")
    assert raters == {"Ada": 4, "Bob": 4, "Cem": 4}


def test_results_say_how_far_the_judge_agrees_with_most_of_the_people(run: Path) -> None:
    desk = RatingDesk()
    better = {}
    for number in range(4):
        better[rate(desk, run, "Ada", "tuned" if number % 2 else "base")] = "tuned" if number % 2 else "base"
    summary, _, _ = desk.results(run, "base", "tuned")
    assert summary is not None
    assert summary.judge is None
    (run / "scores").mkdir()
    for name in ("base", "tuned"):
        rows = [
            {"source": source, "judge": "j", "protocol": "score", "score": 90.0 if won == name else 10.0}
            | {"unscored_reason": None, "raw": ""}
            for source, won in better.items()
        ]
        (run / "scores" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, _, _ = desk.results(run, "base", "tuned")
    assert summary is not None
    assert summary.judge is not None
    assert (summary.judge.kappa, summary.judge.share, summary.judge.num_items) == (1.0, 1.0, 4)
    turned, _, _ = desk.results(run, "tuned", "base")
    assert turned is not None
    assert turned.judge == summary.judge


def test_a_run_folder_copied_without_its_database_keeps_its_ratings(run: Path, tmp_path: Path) -> None:
    desk = RatingDesk()
    rate(desk, run, "Ada", "tuned")
    desk.export(run)
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    (copied / DATABASE).unlink()
    assert RatingDesk().view(copied, "Ada", "base", "tuned").num_rated == 1
    rate(RatingDesk(), copied, "Bob", "base")
    RatingDesk().export(copied)
    assert [row["rater"] for row in exported(copied)] == ["Ada", "Bob"]


def test_texts_that_utf_8_cannot_hold_are_kept_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [("Task.", "r", "base \udfff", "tuned \0")])
    for file in run.rglob("*.jsonl"):
        file.write_text(file.read_text().replace("my.json:1", "my\\udce9.json:1"))
    desk = RatingDesk()
    assert rate(desk, run, "Ada", "tuned", remark="\udc00") == "my\udce9.json:1"
    desk.export(run)
    (row,) = exported(run)
    assert (row["source"], row["remark"], row["preference"]) == ("my\udce9.json:1", "\udc00", "b")
    assert desk.view(run, "Ada", "base", "tuned").num_rated == 1


def test_a_damaged_database_is_said_and_not_written_over(run: Path) -> None:
    (run / DATABASE).write_bytes(b"no database at all" * 100)
    before = (run / DATABASE).read_bytes()
    with pytest.raises(sqlite3.DatabaseError):
        RatingDesk().view(run, "Ada", "base", "tuned")
    assert (run / DATABASE).read_bytes() == before


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\0b", "a\u202eb"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="printable"):
        clean_rater(name)


def test_a_name_is_the_same_however_it_is_typed() -> None:
    assert clean_rater(" Zoe\u0308  Quint ") == clean_rater("Zo\u00eb Quint") == "Zo\u00eb Quint"


@pytest.mark.parametrize(
    "name", ["..", "../run", "/etc", "run/../..", "", "run\0", "\ud800", "x" * 5000, "nothing", "run/answers"]
)
def test_no_name_leads_out_of_the_folder_of_runs(run: Path, name: str) -> None:
    folder = RunsFolder(run.parent)
    assert [one.name for one in folder.runs()] == ["run"]
    with pytest.raises(DataError, match="no run of this name"):
        folder.path(name)


@needs("posix")
def test_a_link_out_of_the_folder_of_runs_is_not_followed(run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "elsewhere"
    runs.mkdir()
    (runs / "link").symlink_to(run)
    assert RunsFolder(runs).runs() == []
    with pytest.raises(DataError, match="no run of this name"):
        RunsFolder(runs).path("link")


@needs("posix")
def test_whatever_was_acknowledged_survives_kill_9_while_twenty_people_rate() -> None:
    found = campaign(num_raters=20, num_kills=2, num_clicks=60)
    assert found["wrong"] == []
    assert found["num_kept"] > 20
