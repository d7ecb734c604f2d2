"""The schema of a run folder: what is written is read back, what is not whole is named, and old names are the new ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneful.errors import DataError
from tuneful.runs import schema
from tuneful.runs.schema import (
    AnswerRow,
    CheckpointDocument,
    Comparison,
    DataDocument,
    Environment,
    Evaluation,
    GeneralScore,
    MetricComparison,
    RecordLoss,
    RunRecord,
    ScoreSummary,
    Step,
    as_row,
    read_loosely,
    read_rows,
    read_strictly,
)
from tuneful.runs.schema.read import fields_of
from tuneful.runs.schema.reference import FILES

BEFORE_RENAMING = Path(__file__).parent / "run_before_renaming"
CLASSES = sorted({value for value in vars(schema).values() if isinstance(value, type)}, key=lambda kind: kind.__name__)
STEP = Step(3, 0.5, 1.25, 5e-5, 0.75, 10, 40, 30, 0.125)
PROMISES: Mapping[type, dict[str, Any]] = {
    ScoreSummary: {"num_items": 3, "num_scored": 2, "num_unscored": 1, "unscored": {"timed out": 1}},
    GeneralScore: {"num_tokens": 7},
}
"""Fields that depend on each other."""


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field of this type."""
    if kind in CLASSES:
        fixed = {name: st.just(value) for name, value in PROMISES.get(kind, {}).items()}
        return st.builds(kind, **{field.name: fixed.get(field.name, values(field.type)) for field in fields_of(kind)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return st.one_of(*(st.none() if one is NoneType else values(one) for one in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (tuple, list):
        return st.lists(values(arguments[0]), max_size=2).map(origin)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=3), values(arguments[1]), max_size=2)
    leaves: Mapping[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(10**9), 10**9),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=5) | st.sampled_from(["\ud800 alone", "a\nb", "日本"]),
        bool: st.booleans(),
        Any: st.sampled_from([None, 1, "x", {"a": [1]}]),
    }
    return leaves[kind]


def from_disk(row: object) -> Any:
    """What a reader of the file gets of a row."""
    return json.loads(json.dumps(as_row(row), allow_nan=False))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back_strictly_and_loosely(kind: type, data: st.DataObject) -> None:
    row = data.draw(values(kind))
    assert read_strictly(kind, from_disk(row), "here") == row
    assert read_loosely(kind, from_disk(row)) == row


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_holds(kind: type) -> None:
    described = (kind.__doc__ or "").strip()
    assert described
    assert not described.startswith(f"{kind.__name__}("), "a docstring that dataclass made"
    for field in fields_of(kind):
        assert field.meaning.strip(), field.name
        assert not field.may_be_absent or (field.has_default and NoneType in get_args(field.type)), field.name


def test_the_page_lists_every_class_once() -> None:
    from tuneful.runs.schema.reference import reference

    page = reference()
    for kind in CLASSES:
        assert page.count(f"### {kind.__name__}\n") == 1, kind.__name__


def test_what_there_is_none_of_is_left_out_where_that_is_said_and_null_elsewhere() -> None:
    assert "replay_loss" not in as_row(STEP)
    assert as_row(Evaluation(2, None)) == {"step": 2, "validation_loss": None}
    assert as_row(AnswerRow("a:1", "p", "t", "", None))["num_tokens"] is None


def test_a_flat_row_is_what_asdict_makes_of_it() -> None:
    row = GeneralScore("sample", "a.txt#1", 2.5, 3, 4, "", (5, 6, 7), 1)
    assert as_row(row) == {**asdict(row), "token_ids": [5, 6, 7]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": None}, "`loss`: expected a number, found None"),
        ({"loss": math.nan}, "`loss`: expected a number, found nan"),
        ({"loss": True}, "`loss`: expected a number, found True"),
        ({"step": 1.5}, "`step`: expected a whole number, found 1.5"),
        ({"step": "x" * 99}, f"`step`: expected a whole number, found '{'x' * 59}..."),
        ({"loss": ...}, "`loss`: is missing"),
    ],
)
def test_a_row_that_is_not_whole_is_named_with_file_line_and_field(change: dict[str, Any], message: str) -> None:
    row = {key: value for key, value in {**as_row(STEP), **change}.items() if value is not ...}
    with pytest.raises(DataError) as caught:
        read_rows(Step, [as_row(STEP), row], Path("run/metrics.jsonl"))
    assert str(caught.value) == f"run/metrics.jsonl:2: {message}"


def test_a_fault_inside_a_document_is_named_by_the_way_to_it() -> None:
    document = json.loads((BEFORE_RENAMING / "comparison.json").read_text())
    del document["items"][2]["tuned"]["rouge_l"]
    with pytest.raises(DataError, match=r"^c\.json: `items\[2\]\.tuned\.rouge_l`: is missing$"):
        read_strictly(Comparison, document, "c.json")
    document["items"][2] = None
    with pytest.raises(DataError, match=r"`items\[2\]`: expected an object, found None"):
        read_strictly(Comparison, document, "c.json")
    document["items"] = "many"
    with pytest.raises(DataError, match=r"`items`: expected a list, found 'many'"):
        read_strictly(Comparison, document, "c.json")
    environment = json.loads((BEFORE_RENAMING / "environment.json").read_text())
    with pytest.raises(DataError, match=r"`phase_seconds\.saving`: expected a number, found 'long'"):
        read_strictly(Environment, {**environment, "phase_seconds": {"saving": "long"}}, "e.json")
    with pytest.raises(DataError, match=r"`kind`: expected one of 'passage', 'sample', 'document', found 'text'"):
        read_strictly(GeneralScore, {"kind": "text"}, "g.jsonl:1")
    with pytest.raises(DataError, match=r"^g\.jsonl:1: expected an object, found \[\]$"):
        read_strictly(GeneralScore, [], "g.jsonl:1")


def test_figures_that_cannot_be_together_are_no_row() -> None:
    row = {"kind": "passage", "source": "a", "nll": 1.0, "num_tokens": 0, "num_bytes": 0}
    with pytest.raises(DataError, match=r"^g\.jsonl:1: holds figures that cannot be together$"):
        read_strictly(GeneralScore, row, "g.jsonl:1")


def test_loosely_what_cannot_be_read_is_unknown_and_the_rest_is_there() -> None:
    step = read_loosely(Step, {"step": "?", "loss": math.inf, "grad_norm": None, "record_tokens": 12.0, "more": 1})
    assert (step.step, step.record_tokens, step.replay_loss) == (0, 12, None)
    assert all(math.isnan(value) for value in (step.epoch, step.loss, step.grad_norm))
    metric = read_loosely(MetricComparison, {"name": 3, "higher_is_better": 1, "p_is_exact": "yes", "verdict": "odd"})
    assert (metric.name, metric.higher_is_better, metric.p_is_exact, metric.verdict) == ("3", True, False, "odd")
    data = read_loosely(
        DataDocument,
        {
            "refused": [1, {"source": "a:1"}, None],
            "length_histogram": {"edges": [0, "x"], "counts": [1, 2]},
            "first_words": {"a": 1, "b": "x"},
            "lengths": {"prompt": {"mean": 2}, "record": 5},
        },
    )
    assert [(one.source, one.reason) for one in data.refused] == [("a:1", "")]
    assert (data.length_histogram.edges, data.length_histogram.counts) == ((), (1, 2))
    assert (data.first_words, list(data.lengths), data.findings) == ({"a": 1}, ["prompt"], None)
    assert read_loosely(Comparison, {"metrics": 3}).metrics == ()


# A run folder that was written before names were changed


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (BEFORE_RENAMING / name).read_text(encoding="utf-8").splitlines()]


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BEFORE_RENAMING / name).read_text(encoding="utf-8"))
    return found


def test_the_folder_is_of_the_old_kind() -> None:
    assert "ended_by" in rows("answers/tuned.jsonl")[0]
    assert "suspicion" in rows("records.jsonl")[0]
    assert {"drift", "forgetting"} == {metric["name"] for metric in document("comparison.json")["forgetting"]}
    assert "Ending by itself" in [metric["label"] for metric in document("comparison.json")["metrics"]]
    assert "ending by itself" in document("comparison.json")["sentence"]
    assert "marker_texts" in document("data.json")
    assert all("mend" in finding for finding in document("data.json")["findings"])
    assert "proof" in document("environment.json")["phase_seconds"]
    assert document("run.json")["choices"]["kernels"] == "compiled (products too)"


def test_every_row_and_document_of_an_old_run_is_read_whole() -> None:
    found = 0
    for place, (_, kinds) in FILES.items():
        for name in place.replace("NNNNNN", "000006").split(", "):
            if not (BEFORE_RENAMING / name).is_file():
                assert name in (
                    *(
                        "scores/NAME.jsonl",
                        "pairwise.json",
                        "evaluation.json",
                        "checks/NAME.jsonl",
                        "checks.json",
                        "calibration.json",
                        "export/NAME/proof.json",
                        "reference.json",
                        "preferences.json",
                        "explain.json",
                        "ratings.jsonl",
                        "documents/base.jsonl",
                        "documents/tuned.jsonl",
                        "tests/NAME-base.jsonl",
                        "tests/NAME-tuned.jsonl",
                        "tests/NAME-base.json",
                        "tests/NAME-tuned.json",
                        "tests/evaluated/tests.json",
                        "validation.jsonl",
                        "sweep.json",
                    ),
                ), name
            elif name.endswith(".jsonl"):
                for row in rows(name):
                    kind = kinds[0] if len(kinds) == 1 else Step if "loss" in row else Evaluation
                    read_strictly(kind, row, name)
                    found += 1
            else:
                whole = document(name)
                read_strictly(kinds[0], whole.get("document", whole), name)
                found += 1
    assert found > 80


def test_old_names_are_read_as_the_new_ones() -> None:
    answers = read_rows(AnswerRow, rows("answers/tuned.jsonl"), Path("tuned.jsonl"))
    assert {answer.finish_reason for answer in answers} == {"stop"}
    records = read_rows(RecordLoss, rows("records.jsonl"), Path("records.jsonl"))
    assert [record.outlier_score for record in records] == [row["suspicion"] for row in rows("records.jsonl")]
    comparison = read_strictly(Comparison, document("comparison.json"), "comparison.json")
    kl, ended = comparison.measured("kl_to_base"), comparison.measured("ended")
    assert kl is not None
    assert ended is not None
    assert (kl.label, ended.label) == ("KL to base", "Stopped at end token")
    assert [outcome.condition for outcome in comparison.gate or ()] == ["kl_to_base<=10", "rouge_l>=-1"]
    assert "reference loss and stopped at end token." in (comparison.sentence or "")
    data = read_strictly(DataDocument, document("data.json"), "data.json")
    assert (data.template, data.special_token_texts) == ("tokenizer", document("data.json")["marker_texts"])
    assert [(finding.name, finding.advice) for finding in data.findings or ()] == [
        (row["name"].replace("marker_texts", "special_token_texts"), row["mend"])
        for row in document("data.json")["findings"]
    ]
    environment = read_strictly(Environment, document("environment.json"), "environment.json")
    assert next(iter(environment.phase_seconds)) == "self_check"
    begun = read_strictly(RunRecord, document("run.json"), "run.json")
    assert begun.choices is not None
    assert environment.kernels == begun.choices.kernels == "compiled (matrix products too)"


def test_the_settings_that_an_old_training_is_made_of_have_the_names_of_now() -> None:
    record = read_strictly(RunRecord, document("run.json"), "run.json")
    manifest = document("checkpoints/step-000006/manifest.json")
    checkpoint = read_strictly(CheckpointDocument, manifest["document"], "manifest.json")
    assert dict(record.training) == dict(checkpoint.training)
    assert (record.training["data.format"], record.training["template.name"]) == ("alpaca", "tokenizer")
    assert "data.shape" not in record.training


def test_where_a_row_has_both_names_the_new_one_counts() -> None:
    row = {"source": "a:1", "prompt": "p", "text": "t", "ended_by": "length", "finish_reason": "stop", "num_tokens": 3}
    assert read_strictly(AnswerRow, row, "a").finish_reason == "stop"
    assert read_strictly(AnswerRow, dict(reversed(row.items())), "a").finish_reason == "stop"
