"""A run folder that was written before names were changed: `report`, `compare` and `evaluate` read it as one of today.

`tests/runs/run_before_renaming` was made by the version before, on a tiny model and 40 rows, with the tokenizer's template
under its old name; `tests/runs/test_schema.py` says what is old in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import tuneful
from tuneful.config import load_config
from tuneful.config.load import read_yaml, translated
from tuneful.judge.client import OnResult, Reply
from tuneful.judge.questions import Question
from tuneful.runs.schema import Comparison, MetricComparison, as_row, read_strictly

OLD = Path(__file__).parents[1] / "runs" / "run_before_renaming"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the old folder, to be written into."""
    return shutil.copytree(OLD, tmp_path / "run")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<body")[2]).split())


def test_its_report_has_every_figure_under_the_name_of_now(run: Path) -> None:
    html = tuneful.report(run).read_text(encoding="utf-8")
    page = words(html)
    for old in ("Drift", "drift ", "Ending by itself", "ending by itself", "Proof"):
        assert old not in page, old
    assert "<bdi>own</bdi>" not in html
    for new in ("KL to base", "Stopped at end token", "stopped at end token", "kl_to_base&lt;=10", "Self check"):
        assert new in page, new
    assert "bits per token of the base model’s own writing" in page
    assert "and samples that the base model itself wrote, read by the model before and after" in page
    advice = json.loads((OLD / "data.json").read_text())["findings"][0]["mend"]
    assert advice in page
    assert "Template tokenizer" in page
    assert "What this page lacks" not in page


def test_its_answers_are_compared_as_it_compared_them_itself(run: Path) -> None:
    config = load_config(begun_with=read_yaml(run / "config.yaml")).model_copy(update={"report": _report_of(run)})
    found = tuneful.compare(run / "answers" / "base.jsonl", run, config=config).comparison
    itself = read_strictly(Comparison, json.loads((run / "comparison.json").read_text()), "comparison.json")
    assert [but_interval(one) for one in found.metrics] == [but_interval(one) for one in itself.metrics]
    for one, other in zip(found.forgetting, itself.forgetting, strict=True):  # of three passages little is known now
        assert (one.name, one.base, one.tuned, one.p_value) == (other.name, other.base, other.tuned, other.p_value)
    assert [replace(one, low=None, high=None) for one in found.kinds] == [
        replace(one, low=None, high=None) for one in itself.kinds
    ]
    assert found.items == itself.items


def but_interval(metric: MetricComparison) -> dict[str, Any]:
    """A metric without the ends of its interval: where nothing or little changed they are drawn otherwise now."""
    return as_row(replace(metric, low=None, high=None))


def _report_of(run: Path) -> Any:
    """The settings of the comparison, without the gate: it names a metric by its old name, which no command line may."""
    return load_config(begun_with=read_yaml(run / "config.yaml")).report.model_copy(update={"gate": ""})


@dataclass
class Scripted:
    """A judge that gives everything 40 points."""

    name: str = "ollama/scripted"
    identity: Mapping[str, Any] = field(default_factory=lambda: {"wire": "scripted"})

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        for index, question in enumerate(questions):
            on_result(index, Reply(json.dumps({"id": question.nonce, "score": 40})))


def test_a_judge_grades_its_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneful.judge.local.open_judge", lambda *_: Scripted())
    result = tuneful.evaluate(run, config=load_config(None, ["judge.model=ollama/scripted"]))
    assert {name: len(verdicts) for name, verdicts in result.verdicts.items()} == {"base": 11, "tuned": 11}
    assert result.summary is not None
    assert {one.mean for one in result.summary.answers.values()} == {40.0}


def test_its_settings_are_translated_in_their_places_and_nothing_else_is_touched() -> None:
    old = read_yaml(OLD / "config.yaml")
    new = translated(old)
    assert old["data"]["shape"] == "alpaca", "what was read stays as it was"
    assert [key.replace("shape", "format") for key in old["data"]] == list(new["data"])
    assert (new["data"]["format"], new["template"]["name"]) == ("alpaca", "tokenizer")
    assert new["report"]["gate"] == "kl_to_base<=10, rouge_l>=-1"
    changed = {"data": ("shape", "format"), "template": ("name",), "report": ("gate",)}
    for section, keys in old.items():
        own = changed.get(section, ())
        assert {key: value for key, value in keys.items() if key not in own} == {
            key: value for key, value in new[section].items() if key not in own
        }
    assert translated({"data": 3, "template": {"name": ["own"]}}) == {"data": 3, "template": {"name": ["own"]}}
