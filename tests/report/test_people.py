"""The people section of a run's report: counted from ratings.jsonl, whenever people rated."""

from __future__ import annotations

from typing import Any

from tuneful.evaluation.ratings import text_sha256
from tuneful.report.build import build_report
from tuneful.report.folder import read_run


def rating(folder: Any, index: int, rater: str, preference: str, remark: str = "") -> dict[str, Any]:
    run = read_run(folder.path)
    return {
        "source": run.tuned[index].source,
        "rater": rater,
        "a": "base",
        "b": "tuned",
        "preference": preference,
        "shown_first": "b",
        "remark": remark,
        "rated": "2026-11-30T00:00:00+00:00",
        "a_sha256": text_sha256(run.base[index].text),
        "b_sha256": text_sha256(run.tuned[index].text),
    }


def test_a_run_that_was_rated_later_has_a_section_with_wins_kappa_and_remarks(run_folder: Any) -> None:
    run_folder.write_all(num_items=12)
    rows = [rating(run_folder, index, rater, "b") for index in range(10) for rater in ("Ada", "Bob", "Cem")]
    rows += [rating(run_folder, 10, "Ada", "a", "<b>wrong</b> river"), rating(run_folder, 10, "Bob", "both_bad")]
    rows += [{**rating(run_folder, 11, "Ada", "b"), "b_sha256": "0" * 16}]
    run_folder.write_lines("ratings.jsonl", rows)
    page = build_report(run_folder.path).read_text()
    assert '<section id="people"' in page
    assert "3 people gave 32 ratings of 11 items: 1 for Before, 30 for After, 0 as good, 1 both bad." in page
    assert "Left out: 1 rating of other answers than these." in page
    assert "What stood first was preferred in 97% of the ratings with a preference." in page
    assert "&lt;b&gt;wrong&lt;/b&gt; river" in page
    assert "<b>wrong</b>" not in page


def test_a_run_that_nobody_rated_has_no_such_section(run_folder: Any) -> None:
    page = build_report(run_folder.write_all(num_items=12).path).read_text()
    assert 'id="people"' not in page


def test_half_a_line_and_a_rating_of_another_version_are_left_out_with_a_remark(run_folder: Any) -> None:
    run_folder.write_all(num_items=12)
    run_folder.write_lines("ratings.jsonl", [rating(run_folder, 0, "Ada", "b")])
    with (run_folder.path / "ratings.jsonl").open("a") as file:
        file.write('{"source": "starter.json:2", "rater"')
    page = build_report(run_folder.path).read_text()
    assert "1 person gave 1 rating of 1 item" in page
    assert "ratings.jsonl is only half written" in page
