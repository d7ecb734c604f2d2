"""The records worth a second look: those with the highest outlier scores first, with their texts, and those memorised."""

from __future__ import annotations

import re
from typing import Any

from tuneful.report.build import build_report
from tuneful.report.folder import read_run
from tuneful.report.records import MAX_LISTED, MIN_OUTLIER_SCORE, view_records


def row(number: int, **figures: Any) -> dict[str, Any]:
    return {
        "source": f"a.json:{number}",
        "num_targets": 10,
        "loss_before": None,
        "loss_first": 2.0,
        "first_step": 1,
        "loss_last": 1.0,
        "last_step": 9,
        "loss_after": None,
        "outlier_score": 0.0,
        "memorised": False,
        **figures,
    }


def written(run_folder: Any, rows: list[dict[str, Any]]) -> Any:
    texts = [
        {
            "instruction": f"Ask {one['source']}",
            "input": "<b>",
            "output": f"Say {one['source']}",
            "source": one["source"],
        }
        for one in rows
    ]
    run_folder.write_lines("records.jsonl", rows).write_lines("data/train.jsonl", texts)
    return run_folder


def test_outliers_come_by_their_score_and_memorised_records_by_their_first_loss(run_folder: Any) -> None:
    rows = [row(1), row(2, outlier_score=4.0), row(3, outlier_score=9.5), row(4, outlier_score=MIN_OUTLIER_SCORE - 0.1)]
    rows += [row(5, memorised=True, loss_first=1.0), row(6, memorised=True, loss_first=3.0), row(7, outlier_score=None)]
    view = view_records(read_run(written(run_folder, rows).path))
    assert [one.source for one in view.outliers] == ["a.json:3", "a.json:2"]
    assert [one.source for one in view.memorised] == ["a.json:6", "a.json:5"]
    assert view.sentence.startswith("Of 7 training records, 2 stayed far harder")
    assert view.outliers[0].figures == "outlier score 9.5 · first visit 2.00 → last visit 1.00"
    assert (view.outliers[0].instruction, view.outliers[0].answer) == ("Ask a.json:3", "Say a.json:3")


def test_the_lists_are_short_however_many_there_are(run_folder: Any) -> None:
    rows = [row(number, outlier_score=5 + number / 100, memorised=True) for number in range(1, 60)]
    view = view_records(read_run(written(run_folder, rows).path))
    assert (len(view.outliers), len(view.memorised)) == (MAX_LISTED, MAX_LISTED)
    assert view.outliers[0].source == "a.json:59"


def test_the_page_shows_them_escaped_and_has_no_such_section_without_them(run_folder: Any) -> None:
    html = build_report(run_folder.path).read_text(encoding="utf-8")
    assert 'id="records"' not in html
    html = build_report(written(run_folder, [row(1, outlier_score=8.0)]).path).read_text(encoding="utf-8")
    section = re.search(r'<section id="records".*?</section>', html, re.S)
    assert section is not None
    assert "Ask a.json:1" in section.group()
    assert "&lt;b&gt;" in section.group()
    assert "Memorised" not in section.group()


def test_the_loss_of_what_was_replayed_is_a_curve_of_its_own(run_folder: Any) -> None:
    steps = [{"step": step, "loss": 2.0, "replay_loss": 3.0 if step % 2 else None} for step in range(1, 9)]
    html = build_report(run_folder.write_lines("metrics.jsonl", steps).path).read_text(encoding="utf-8")
    assert "replayed records</li>" in html
    assert 'class="line replay"' in html
    html = build_report(run_folder.write_lines("metrics.jsonl", [{"step": 1, "loss": 2.0}]).path).read_text("utf-8")
    assert "replayed records</li>" not in html


def test_records_seen_once_are_not_listed_and_the_page_says_what_cannot_be_told(run_folder: Any) -> None:
    once = {"first_step": 1, "last_step": 1, "outlier_score": 230.7}  # as runs of earlier versions have it
    view = view_records(read_run(written(run_folder, [row(number, **once) for number in range(1, 5)]).path))
    assert view.outliers == ()
    assert "cannot be told: none was seen twice" in view.sentence
    assert "train.num_train_epochs=2" in view.sentence
    rows = [row(1, **once), row(2, outlier_score=9.0), row(3)]
    view = view_records(read_run(written(run_folder, rows).path))
    assert [one.source for one in view.outliers] == ["a.json:2"]
    assert view.sentence.startswith("Of 2 of 3 training records, those seen twice, 1 stayed far harder")
    after = [row(number, **{**once, "loss_after": 1.0}) for number in (1, 2)]
    assert len(view_records(read_run(written(run_folder, after).path)).outliers) == 2
