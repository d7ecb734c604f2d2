"""The first screen says what to do and why, by the gate that was given or else by the headline, and what got worse first."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_build import read_page

from tuneful.report.build import build_report
from tuneful.report.decision import view_decision
from tuneful.report.forgotten import forgetting_scale, forgotten_in_words, how_much
from tuneful.report.paths import without_folders
from tuneful.report.sections import moment_in_words
from tuneful.runs.schema import ComparedSides, Comparison, GateOutcome, JudgeFinding, KindComparison, MetricComparison


def metric(name: str, verdict: str, low: float | None, high: float | None, base: float = 0.4) -> MetricComparison:
    difference = 0.1 if verdict == "better" else -0.1
    return MetricComparison(
        name=name,
        label=name.capitalize(),
        unit="0 to 1",
        higher_is_better=True,
        num_items=50,
        base=base,
        tuned=base + difference,
        difference=difference,
        low=low,
        high=high,
        wins=10,
        losses=7,
        ties=33,
        p_value=0.01,
        p_is_exact=False,
        detectable=None,
        verdict=verdict,  # type: ignore[arg-type]
    )


BETTER, WORSE, UNCLEAR = (
    metric("rouge_l", "better", 0.05, 0.15),
    metric("rouge_l", "worse", -0.15, -0.05),
    metric("rouge_l", "cannot tell", None, None),
)


def comparison(main: MetricComparison, *gate: GateOutcome, **more: Any) -> Comparison:
    return Comparison(50, 0.95, 1000, 0, "rouge_l", 9.0, None, (main,), gate=gate or None, **more)


@pytest.mark.parametrize(
    ("main", "word", "tone"),
    [(BETTER, "Ship", "better"), (WORSE, "Do not ship", "worse"), (UNCLEAR, "Cannot tell", "unclear")],
)
def test_without_a_gate_the_headline_decides_and_the_page_says_so(main: MetricComparison, word: str, tone: str) -> None:
    found = view_decision(comparison(main))
    assert found is not None
    assert (found.word, found.tone) == (word, tone)
    assert found.reason.startswith("No gate was given (--gate, report.gate). By ROUGE-L the tuned model ")
    assert ("interval not known" in found.reason) is (main is UNCLEAR)
    assert view_decision(None) is None


MET, UNMET, UNKNOWN = (
    GateOutcome("rouge_l>=0", 0.1, True),
    GateOutcome("forgetting<=0.02", 0.05, False),
    GateOutcome("rouge_l.low>0", None, False),
)


@pytest.mark.parametrize(
    ("gate", "word", "reason"),
    [
        ((MET,), "Ship", "The gate is met."),
        ((MET, MET), "Ship", "All 2 conditions of the gate are met."),
        (
            (MET, UNMET, UNKNOWN),
            "Do not ship",
            "The gate is not met: 1 of 3 conditions fails.",
        ),
        ((MET, UNKNOWN), "Cannot tell", "The gate is not met, because the figure is not known: rouge_l.low>0."),
    ],
)
def test_a_gate_decides_whatever_the_headline_says(gate: Any, word: str, reason: str) -> None:
    found = view_decision(comparison(BETTER, *gate))
    assert found is not None
    assert (found.word, found.reason) == (word, reason)
    assert [one.state for one in found.gate] == [
        "met" if one.met else "not met" if one.found is not None else "not known" for one in gate
    ]
    unsure = view_decision(comparison(UNCLEAR, *gate))
    assert unsure is not None
    assert unsure.word == word
    assert ("On ROUGE-L alone: cannot tell." in unsure.reason) is (word == "Ship")


def test_what_got_worse_is_listed_and_what_repeats_it_is_not() -> None:
    kind = KindComparison("summary", 12, 0.5, 0.3, -0.2, -0.3, -0.1, 1, 9, 2, 0.01, "worse")
    finding = JudgeFinding("j", "not usable", 40, "j is not fit to judge these answers.")
    whole = replace(
        comparison(BETTER, kinds=(kind,), judge=finding, forgetting=(FORGOTTEN,)),
        metrics=(BETTER, metric("exact_match", "worse", -0.2, -0.05), metric("perplexity", "worse", -0.2, -0.05)),
    )
    found = view_decision(whole)
    assert found is not None
    said = "\n".join(found.worse)
    assert [sentence.split(":")[0] for sentence in found.worse] == [
        "Exact_match",
        "General text",
        "Tasks of the kind “summary”",
        "7 of 50 answers got worse by ROUGE-L.",
        "The judge’s scores say nothing",
    ]
    assert "which is some: as if about 32" in said
    calm = view_decision(comparison(replace(BETTER, losses=0), names=ComparedSides("a", "b")))
    assert calm is not None
    assert (calm.word, calm.worse) == ("Ship B", ())
    assert calm.nothing_worse == "Nothing that was measured is surely worse than in A."


FORGOTTEN = replace(
    metric("forgetting", "worse", 0.01, 0.05),
    label="General text",
    unit="bits per byte",
    higher_is_better=False,
    base=1.0,
    tuned=1.03,
    difference=0.03,
)


@pytest.mark.parametrize(
    ("difference", "verdict", "word"),
    [
        (0.004, "worse", "hardly any"),
        (0.03, "worse", "some"),
        (0.06, "worse", "much"),
        (0.06, "cannot tell", "cannot be told from none"),
        (-0.02, "better", "none"),
    ],
)
def test_forgetting_is_told_in_words(difference: float, verdict: Any, word: str) -> None:
    one = replace(FORGOTTEN, difference=difference, verdict=verdict, tuned=1 + difference)
    assert forgotten_in_words(one) == word
    drawing, sentence = forgetting_scale(one)
    assert sentence.startswith(f"Forgotten: {word}. General text costs ")
    assert 'class="zone zone-2"' in drawing
    far = forgetting_scale(replace(one, difference=5.0, low=None, high=None))[0]
    assert all(0 <= float(x) <= 340 for x in re.findall(r'cx="([^"]+)"', far)), "what lies beyond is drawn at the end"


def test_more_loss_is_put_as_a_smaller_model() -> None:
    """1.054 times the loss is that of half the parameters, by the exponent of 0.076."""
    assert "as if about 50" in how_much(replace(FORGOTTEN, difference=2**0.076 - 1))
    assert how_much(BETTER) == how_much(replace(FORGOTTEN, difference=-0.1)) == ""
    assert forgetting_scale(replace(FORGOTTEN, base=0.0)) == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tuneful run /home/ada/my.json --output '/home/ada/runs/one'", "tuneful run …/my.json --output '…/one'"),
        ("/home/ada/my.json: no such file", "…/my.json: no such file"),
        (r"C:\Users\ada\my.json and D:/data/x", "…/my.json and …/x"),
        ("~/data/my.json", "…/my.json"),
        (r"\\server\share\x.json", "…/x.json"),
        ("answers/base.jsonl 1/2 and/or https://example.org/a/b text/x-python", None),
        ("runs/one", None),
    ],
)
def test_absolute_paths_lose_their_folders_and_nothing_else_does(text: str, shown: str | None) -> None:
    assert without_folders(text) == (text if shown is None else shown)


def test_the_page_begins_with_the_decision_and_names_no_folder_of_ours(run_folder: Any) -> None:
    run_folder.write_all()
    (run_folder.path / "model").mkdir()
    document = json.loads((run_folder.path / "comparison.json").read_text())
    document["gate"] = [{"condition": "forgetting<=0.02", "found": 0.041, "met": False}]
    document["headline"] = "rouge_l"
    run_folder.write_json("comparison.json", document)
    environment = json.loads((run_folder.path / "environment.json").read_text())
    environment |= {"command": "tuneful run /home/ada/my.json", "peak_memory_bytes": 3 * 2**30}
    environment["phase_seconds"]["answers_tuned"] = 39.0
    environment["model"]["name"] = "/home/ada/models/tiny"
    run_folder.write_json("environment.json", environment)
    html, text = read_page(build_report(run_folder.path))
    assert "/home/ada" not in html
    assert str(run_folder.path) not in html
    assert "…/tiny tuned on starter" in text
    first = text.index("Do not ship")
    gate = text.index("The gate is not met: 1 of 1 condition fails.")
    worse = text.index("What changed for the worse")
    assert first < gate < text.index("not met, found +0.0410") < worse < text.index("The tuned model's answers")
    assert "General text loss: 3.120 → 3.160 (+0.040, 95 % interval +0.011 to +0.071)." in text
    assert "3.00 GiB of 15.6 GiB" in text
    assert "0.30 s on average, 40.0 tokens a second, answered in batches" in text
    assert "tuneful chat --model run" in text
    assert "full finetuning" not in text or "learning rate" in text
    assert text.index("Largest losses") < text.index("Largest gains")
    assert '<details class="panel fold" open><summary><h3>Possible' not in html


def test_the_commands_of_the_page_work_where_the_run_was_made(
    run_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder.write_all()
    (run_folder.path / "model").mkdir()
    (tmp_path / "my runs").mkdir()
    run = run_folder.path.rename(tmp_path / "my runs" / "first")
    monkeypatch.chdir(tmp_path)
    html, text = read_page(build_report(run))
    assert "tuneful chat --model 'my runs/first'" in text
    assert "tuneful export 'my runs/first' --to gguf" in text
    assert str(tmp_path) not in html


def test_a_moment_is_written_as_people_write_it() -> None:
    assert moment_in_words("2026-11-30T21:44:26+00:00") == "30 November 2026, 21:44 UTC"
    assert moment_in_words("2026-11-30T21:44:26Z") == "30 November 2026, 21:44 UTC"
    assert moment_in_words("2026-11-30T21:44:26+02:00") == "30 November 2026, 21:44"
    assert moment_in_words("yesterday") == "yesterday"
