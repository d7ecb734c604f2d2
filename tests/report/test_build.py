"""The page of a run: whole, partial, killed, hostile; always one well-formed file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tuneful.errors import DataError
from tuneful.numbers import THIN
from tuneful.report import answers
from tuneful.report.build import build_report, make_visible
from tuneful.report.folder import read_run
from tuneful.report.judged import view_judged

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Reader(HTMLParser):
    """Checks that elements close in order, and gathers text, ids and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read_page(path: Path) -> tuple[str, str]:
    """(html, text) of a page that is well formed, names every id once and refers to nothing outside itself."""
    html = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    own = re.sub(r">[^<]*<", "><", html.replace("<style>", "<").replace("<script>", "<"))  # tags alone, not texts
    assert not re.search(r"https?:|\ssrc=|@import|url\(", own)
    targets = [value for name, value in reader.attributes if name in ("href", "aria-labelledby", "for")]
    assert all(part.removeprefix("#") in reader.ids for value in targets for part in value.split())
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "style"]
    return html, re.sub(r"\s+", " ", "".join(reader.text).replace(THIN, " "))


def test_a_whole_run_shows_its_numbers(run_folder: Any) -> None:
    path = build_report(run_folder.write_all().path)
    assert path == run_folder.path / "report.html"
    html, text = read_page(path)
    for said in (
        "smollm2-135m-instruct tuned on starter",
        "The tuned model's answers are better on ROUGE-L",
        "95 % interval +0.220 to +0.320",
        "3 min 21 s",
        "22 November 2026, 06:00 UTC",
        "1,300 rows read = 1,298 used + 2 refused.",
        "15,000 (23.8 %) carry loss",
        "Of the 126,960 tokens in the records of 276 steps, the engine computed 76,176 (60.0 %)",
        "29,808",  # trained: 276 * 108
        "starter.json:912",
        "60 tokens, 11 trained",
        "cannot tell",
        "−0.89",
        "134,515,008",
        "All 130 test answers",
    ):
        assert said in text, said
    assert "Missing data" not in text
    assert html.count('<article class="item"') == 130 + 6 + 20
    assert len(html) < 600_000
    assert [entry.name for entry in run_folder.path.iterdir() if entry.name.startswith(".")] == []


def test_how_rows_were_read_stands_beside_what_became_of_them(run_folder: Any) -> None:
    sentence = "`passage` holds text in 40 records and is not used"
    note = {"kind": "unused_text", "name": "passage", "num_records": 40, "count": 40, "source": "a:1", "text": sentence}
    split = {"method": "grouped", "train": 30, "validation": 4, "test": 6}
    document = {"rows_read": 40, "rows_used": 40, "split": split, "reading": [note]}
    (run_folder.path / "data.json").write_text(json.dumps(document))
    _, text = read_page(build_report(run_folder.path))
    assert f"{sentence}." in text


def test_the_lowest_validation_loss_is_named(run_folder: Any) -> None:
    losses = [(0, 2.3), (10, 1.4), (20, 1.6)]
    run_folder.write_lines("metrics.jsonl", [{"step": step, "validation_loss": loss} for step, loss in losses])
    _, text = read_page(build_report(run_folder.path))
    assert "Validation loss was lowest at step 10 (1.40). It rose to 1.60 by step 20" in text


def test_only_the_config_is_needed(run_folder: Any) -> None:
    _, text = read_page(build_report(run_folder.path))
    assert "Nothing has been trained in this run yet." in text
    for missing in (
        "Missing data",
        "environment.json is missing",
        "data.json is missing",
        "no training step",
        "no test answers",
    ):
        assert missing in text
    assert "learning_rate" in text


def test_a_training_without_test_answers_says_so(run_folder: Any) -> None:
    run_folder.write_environment().write_audit().write_metrics(40)
    _, text = read_page(build_report(run_folder.path))
    assert "whether it answers better was not measured" in text
    assert "There are no test answers" in text
    assert "Before and after" not in text


def test_a_killed_run_keeps_what_it_wrote(run_folder: Any) -> None:
    run_folder.write_environment(finished=None).write_metrics(40, 10).write_answers(12, which=("base",))
    metrics = run_folder.path / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 41, "loss": 1.\xc3')
    _, text = read_page(build_report(run_folder.path))
    assert "The run has not finished: the last recorded step is 40." in text
    assert "The last line of metrics.jsonl is only half written" in text
    assert "The answers after training (answers/tuned.jsonl) are missing." in text
    assert "All 12 test answers" in text


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"metrics": 3, "items": [1, null], "sentence": null}'])
def test_a_broken_or_empty_document_is_no_failure(run_folder: Any, content: str) -> None:
    for name in ("environment.json", "data.json", "comparison.json", "metrics.jsonl"):
        (run_folder.path / name).write_text(content, encoding="utf-8")
    read_page(build_report(run_folder.path))


def test_values_that_are_not_finite_are_counted_not_drawn(run_folder: Any) -> None:
    rows = [{"step": step, "loss": loss} for step, loss in enumerate([2.0, float("nan"), 1.0, float("inf"), None], 1)]
    html, text = read_page(build_report(run_folder.write_lines("metrics.jsonl", rows).path))
    assert "3 steps had no finite loss and are not drawn." in text
    assert not re.search(r'[ ",LM]nan|[",LM]inf\b', html)


def test_a_step_written_twice_by_a_resumed_run_counts_once(run_folder: Any) -> None:
    rows = [{"step": 1, "loss": 3.0, "record_tokens": 10}, {"step": 1, "loss": 2.0, "record_tokens": 12}]
    run = read_run(run_folder.write_lines("metrics.jsonl", rows).path)
    assert [(step.loss, step.record_tokens) for step in run.steps] == [(2.0, 12)]


def test_counts_that_disagree_are_contradicted(run_folder: Any) -> None:
    audit = {"rows_read": 10, "rows_used": 8, "rows_refused": 1, "split": {"train": 5, "validation": 1, "test": 1}}
    _, text = read_page(build_report(run_folder.write_json("data.json", audit).path))
    assert "10 rows read, but 8 used and 1 refused." in text
    assert "8 rows used, but 7 in the split." in text


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"Give the folder that `tuneful run`"):
        build_report(tmp_path / name)


@pytest.mark.parametrize("config", ["a: [", "- 1", "\x00"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(DataError, match=r"config\.yaml"):
        build_report(tmp_path)


HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style><img src=https://evil.example/x onerror=alert(1)>",
    '"\' onmouseover="alert(1)" &amp; {{ 7 * 7 }} {% raw %}',
    "<!-- <![CDATA[ -->",
    "مرحبا \u202egnp.exe שלום",
    "x" * 5000,
    "👩‍👩‍👧‍👦 é ﷽ Ž̷̢̛",
    "\x00\x01\x1b[31m\x7f\x85\ud800\ufffe\r\n\rend",
]


def test_hostile_text_is_shown_not_obeyed(run_folder: Any) -> None:
    records, given, said = [], [], []
    for index, hostile in enumerate(HOSTILE):
        source = f"{hostile}:{index}"
        records.append({"instruction": hostile, "input": hostile, "output": hostile, "source": source})
        given.append({"source": source, "prompt": hostile, "text": hostile, "finish_reason": hostile, "num_tokens": 1})
        said.append({"step": index, "validation_loss": 1.0, "sample": {"prompt": hostile, "text": hostile}})
    token = [{"text": text, "weight": 1.0, "special": True} for text in HOSTILE]
    nasty = HOSTILE[1]
    run_folder.write_lines("data/test.jsonl", records).write_lines("metrics.jsonl", said)
    run_folder.write_lines("answers/base.jsonl", given).write_lines("answers/tuned.jsonl", given)
    run_folder.write_json(
        "data.json", {"source": nasty, "shown": [{"source": nasty, "tokens": token}], "train_on": nasty}
    )
    run_folder.write_json("environment.json", {"tuneful": nasty, "model": {"name": nasty}, "packages": {nasty: nasty}})
    metric = {
        "name": "rouge_l",
        "label": nasty,
        "unit": nasty,
        "verdict": nasty,
        "difference": 0.1,
        "low": 0,
        "high": 1,
    }
    run_folder.write_json("comparison.json", {"sentence": nasty, "caution": nasty, "metrics": [metric]})
    html, text = read_page(build_report(run_folder.path))
    assert html.count("<script>") == 1
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in text
    assert "alert(1)" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe]", html)
    assert "␀␁␛[31m␡" in text


def test_controls_become_their_pictures() -> None:
    assert make_visible("a\x00b\tc\nd\r\ne\rf\x7f\ud800") == "a␀b\tc\nd\ne␍f␡\ufffd"


def test_the_policy_allows_this_script_and_style_and_nothing_else(run_folder: Any) -> None:
    html, _ = read_page(build_report(run_folder.path))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")  # type: ignore[index]
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        inline = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]  # type: ignore[index]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_of_a_long_run_stays_small(run_folder: Any) -> None:
    run_folder.write_metrics(20_000, 20)
    path = build_report(run_folder.write_audit().path)
    read_page(path)
    assert path.stat().st_size < 400_000


def test_the_handful_comes_from_both_ends(run_folder: Any) -> None:
    run_folder.write_answers(4)
    items = [
        {"source": f"starter.json:{index + 1}", "base": {"rouge_l": before}, "tuned": {"rouge_l": after}}
        for index, (before, after) in enumerate([(0.1, 0.9), (0.5, 0.2), (0.3, 0.3), (0.2, 0.3)])
    ]
    metrics = [{"name": "rouge_l", "label": "ROUGE-L", "higher_is_better": True}]
    run_folder.write_json("comparison.json", {"metrics": metrics, "items": items[::-1]})
    seen = answers.view_answers(read_run(run_folder.path))
    assert [item.position for item in seen.gains] == [1, 4]
    assert [item.position for item in seen.losses] == [2]
    assert (seen.num_improved, seen.num_worse, seen.num_same) == (2, 1, 1)
    assert [item.source for item in seen.items] == [f"starter.json:{index}" for index in (1, 2, 3, 4)]


def test_records_of_any_shape_show_their_question_and_reference() -> None:
    messages = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    turns = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    for record in (messages, turns, {"prompt": "Why?", "completion": "So."}, {"instruction": "Why?", "output": "So."}):
        assert answers.question(record) == ("Why?", "")
        assert answers.reference(record) == "So."
    assert answers.question({"instruction": "Why?", "input": "sky"}) == ("Why?", "sky")
    assert answers.question({}) == ("", "")


def test_words_in_which_two_answers_differ_are_marked_by_whether_the_reference_has_them() -> None:
    before, after = answers.mark_changes("It was <b> here, now.", "It is <b> here now", "It is <b> here.")
    assert before == 'It <mark class="miss">was</mark> &lt;b&gt; here, now.'
    assert after == 'It <mark class="hit">is</mark> &lt;b&gt; here now'
    same = "A word that both have."
    assert answers.mark_changes(same, same, "Another.") == (same, same)
    assert answers.mark_changes("", "all new", "new") == ("", 'all <mark class="hit">new</mark>')


def test_of_answers_that_have_little_in_common_only_the_right_words_are_marked() -> None:
    before, after = answers.mark_changes("Nothing alike at all", "The sum is four", "It is four")
    assert "<mark" not in before
    assert after == 'The sum <mark class="hit">is</mark> <mark class="hit">four</mark>'


def test_very_long_answers_are_marked_without_aligning_them() -> None:
    long = "word " * 5000
    before, after = answers.mark_changes(long + "old", long + "new", "new")
    assert before.endswith('<mark class="miss">old</mark>')
    assert after.endswith('<mark class="hit">new</mark>')


def test_the_worst_answers_come_by_their_score_and_then_by_what_they_lost(run_folder: Any) -> None:
    run_folder.write_answers(30)
    items = [
        {"source": f"starter.json:{index + 1}", "base": {"rouge_l": index % 2}, "tuned": {"rouge_l": (index // 4) / 10}}
        for index in range(30)
    ]
    metrics = [{"name": "rouge_l", "label": "ROUGE-L", "higher_is_better": True}]
    run_folder.write_json("comparison.json", {"metrics": metrics, "items": items})
    worst = answers.view_answers(read_run(run_folder.path)).worst
    assert len(worst) == 20
    assert [item.position for item in worst[:5]] == [2, 4, 1, 3, 6]
    html, _ = read_page(build_report(run_folder.path))
    assert "The 20 worst answers after training" in html


def test_kinds_of_task_are_a_table_with_the_losers_first(run_folder: Any) -> None:
    kinds = [
        {"kind": kind, "num_items": 9, "base": 0.4, "tuned": 0.4 + gain, "difference": gain, "low": gain - 0.1,
         "high": gain + 0.1, "wins": 5, "losses": 2, "ties": 2, "p_value": 0.2, "verdict": "cannot tell"}
        for kind, gain in (("sorting", -0.2), ("<b>summary</b>", 0.3))
    ]  # fmt: skip
    metrics = [{"name": "rouge_l", "label": "ROUGE-L", "unit": "0 to 1", "higher_is_better": True}]
    run_folder.write_json("comparison.json", {"headline": "rouge_l", "metrics": metrics, "kinds": kinds})
    html, _ = read_page(build_report(run_folder.path))
    assert html.index("<bdi>sorting</bdi>") < html.index("&lt;b&gt;summary&lt;/b&gt;")
    assert "9 test items" in html
    assert "ROUGE-L for each kind of task that the records name" in html


def test_what_was_forgotten_stands_beside_the_gain(run_folder: Any) -> None:
    forgetting = [
        {"name": "forgetting", "label": "General text", "unit": "bits per byte", "higher_is_better": False,
         "num_items": 60, "base": 1.2, "tuned": 1.25, "difference": 0.05, "low": 0.04, "high": 0.06, "wins": 5,
         "losses": 55, "ties": 0, "p_value": 0.0001, "verdict": "worse"},
    ]  # fmt: skip
    metrics = [{"name": "rouge_l", "label": "ROUGE-L", "unit": "0 to 1", "higher_is_better": True}]
    gate = [{"condition": "forgetting<=0.01", "found": 0.05, "met": False}]
    run_folder.write_json("comparison.json", {"metrics": metrics, "forgetting": forgetting, "gate": gate})
    html, _ = read_page(build_report(run_folder.path))
    assert "What was forgotten?" in html
    assert "60 passages of text that the training never showed" in html
    assert "<dt>Forgotten</dt>" in html
    assert "<b>forgetting&lt;=0.01</b> not met, found +0.0500" in html


def test_the_judges_scores_are_a_distribution_with_nothing_left_out(run_folder: Any) -> None:
    rows = [
        {
            "source": f"s{index}",
            "judge": "ollama/<llama>",
            "protocol": "score",
            "score": score,
            "unscored_reason": reason,
        }
        for index, (score, reason) in enumerate([(5, None), (95, None), (100, None), (None, "timed out"), (None, None)])
    ]
    (run_folder.path / "scores").mkdir()
    run_folder.write_lines("scores/base.jsonl", rows[:1])
    run_folder.write_lines("scores/tuned.jsonl", rows)
    figure = {"label": "Injection", "value": 0.2, "low": 0.1, "high": 0.35, "unit": "share", "wanted": "none",
              "standing": "bad"}  # fmt: skip
    run_folder.write_json("calibration.json", {"sentence": "Better not.", "figures": [figure]})
    judged = view_judged(read_run(run_folder.path))
    assert judged is not None
    assert [one.sentence for one in judged.distributions] == [
        "1 item = 1 scored + 0 unscored, mean 5.0",
        "5 items = 3 scored + 2 unscored, mean 66.7",
    ]
    assert judged.distributions[1].unscored == (("timed out", "1"), ("no reason given", "1"))
    assert [row[2] for row in judged.table] == ["1", "0", "0", "0", "0", "0", "0", "0", "0", "2"]
    assert judged.calibration[0].value == f"20.0{THIN}%"
    html, _ = read_page(build_report(run_folder.path))
    assert "ollama/&lt;llama&gt;" in html
    assert "Better not." in html


def test_a_page_that_compares_two_sets_of_answers_calls_them_a_and_b(run_folder: Any) -> None:
    run_folder.write_answers(6)
    metrics = [{"name": "rouge_l", "label": "ROUGE-L", "higher_is_better": True}]
    names = {"base": "runs/one", "tuned": "runs/two"}
    run_folder.write_json(
        "comparison.json", {"metrics": metrics, "items": [], "names": names, "sentence": "B is better."}
    )
    html, _ = read_page(build_report(run_folder.path))
    assert "<bdi>runs/two</bdi> <span>(B) compared with (A)</span> <bdi>runs/one</bdi>" in html
    assert "<h4>A<" in html
    assert "Before" not in html.partition("<main")[2].partition("<footer")[0]
    assert "Missing data" not in html


def test_an_interrupted_writing_leaves_the_old_page(run_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_report(run_folder.path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tuneful.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        build_report(run_folder.write_all(num_steps=20).path)
    assert path.read_bytes() == before
    assert not list(run_folder.path.glob(".report*"))


def test_numbers_too_large_for_a_float_are_unknown(run_folder: Any) -> None:
    (run_folder.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 10**400}) + "\n")
    assert math.isnan(read_run(run_folder.path).steps[0].loss)


def test_the_verdict_opens_the_page_and_the_caution_stands_once(run_folder: Any) -> None:
    sentence = "Better on ROUGE-L: 0.2 to 0.5. Worse on length. Caution: only 7 items."
    document = {"sentence": sentence, "caution": "only 7 items", "metrics": []}
    html, text = read_page(build_report(run_folder.write_json("comparison.json", document).path))
    assert '<p class="lede" dir="auto">Better on ROUGE-L: 0.2 to 0.5.</p>' in html
    assert "Worse on length. Caution. Only 7 items." in text


@pytest.mark.parametrize(
    ("layout", "computed", "said"),
    [
        ("trie", 60, "is computed once"),
        ("unshared", 98, "nothing was shared"),
        ("padded", 140, "padding is computed too"),
    ],
)
def test_the_work_is_explained_as_it_was_laid_out(run_folder: Any, layout: str, computed: int, said: str) -> None:
    run_folder.write_json("environment.json", {"layout": layout})
    row = {"step": 1, "loss": 1.0, "record_tokens": 100, "computed_tokens": computed, "target_tokens": 25}
    _, text = read_page(build_report(run_folder.write_lines("metrics.jsonl", [row]).path))
    assert f"the engine computed {computed} ({computed}" in text
    assert said in text


def test_a_perplexity_beyond_reading_is_written_with_its_power(run_folder: Any) -> None:
    metric = {"name": "perplexity", "label": "Perplexity", "higher_is_better": False, "verdict": "better"}
    figures = {"base": 1e304, "tuned": 12.5, "difference": -1e304, "low": -1.1e304, "high": -9e303}
    run_folder.write_json("comparison.json", {"metrics": [metric | figures]})
    _, text = read_page(build_report(run_folder.path))
    assert "1.00 × 10³⁰⁴" in text
    assert "−1.10 × 10³⁰⁴ to −9.00 × 10³⁰³" in text
