"""Reads a run folder as it lies there: whole, without test answers, or broken off in the middle.

First stage of the report. Only `config.yaml` must be there, because it is what makes a folder a run; what else is
missing or unreadable is left out, and the unreadable is named in `Run.remarks`. JSON's looseness ends here: what the
page computes with becomes a typed row, what it only prints stays a mapping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuneful.errors import DataError

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of `metrics.jsonl`; a figure that is missing or not finite is None."""

    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    target_tokens: int
    record_tokens: int
    computed_tokens: int
    step_seconds: float | None
    replay_loss: float | None = None


@dataclass(frozen=True, slots=True)
class RecordLoss:
    """One row of `records.jsonl`: what a training record cost, in nats a target token."""

    source: str
    num_targets: int
    loss_before: float | None
    loss_first: float | None
    loss_last: float | None
    loss_after: float | None
    outlier_score: float | None
    memorised: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of `metrics.jsonl`, with the sample answer written beside it, where there was one."""

    step: int
    validation_loss: float | None
    sample_prompt: str
    sample_text: str | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened at a step and that a person should hear of, as a sentence of `metrics.jsonl`."""

    step: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One row of `answers/*.jsonl`."""

    source: str
    prompt: str
    text: str
    finish_reason: str
    num_tokens: int | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure over all test items: both means, their difference and its interval."""

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    base: float | None
    tuned: float | None
    difference: float | None
    low: float | None
    high: float | None
    wins: int | None
    losses: int | None
    ties: int | None
    verdict: str
    num_items: int | None = None
    p_value: float | None = None
    p_is_exact: bool = False
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """The scores of one test item, by metric name, and the kind of task that it is."""

    source: str
    reference: str | None
    kind: str
    base: Mapping[str, float]
    tuned: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `comparison.json` says.

    `kinds` has a row a kind of task by the metric `headline`; `forgetting` is what general text cost; `names` says which
    answers were compared where it was not a model before and after its training; `gate` has a row a condition.
    """

    num_items: int | None
    confidence: float | None
    num_resamples: int | None
    seed: int | None
    caution: str
    sentence: str
    metrics: tuple[Metric, ...]
    items: tuple[Item, ...]
    headline: str = "rouge_l"
    kinds: tuple[Metric, ...] = ()
    forgetting: tuple[Metric, ...] = ()
    names: Json = field(default_factory=dict)
    gate: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeScore:
    """One row of `scores/*.jsonl`: a score from 0 to 100, or why there is none."""

    source: str
    judge: str
    protocol: str
    score: float | None
    unscored_reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read. `remarks` are sentences about files that are there but could not be read whole."""

    path: Path
    config: Json
    environment: Json
    audit: Json
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    notices: tuple[Notice, ...]
    training: Json
    base: tuple[Reply, ...]
    tuned: tuple[Reply, ...]
    test: tuple[Json, ...]
    comparison: Comparison | None
    scores: Mapping[str, tuple[JudgeScore, ...]] = field(default_factory=dict)
    calibration: Json = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=())
    records: tuple[RecordLoss, ...] = field(default=())

    def trained(self) -> list[Json]:
        """The rows of data/train.jsonl, read when they are asked for."""
        return _read_lines(self.path / "data" / "train.jsonl", [])


def read_run(path: Path) -> Run:
    """Read the run folder at `path`; `DataError` where it is none."""
    config = _read_config(path)
    remarks: list[str] = []
    metrics = _read_lines(path / "metrics.jsonl", remarks)
    comparison = _read_document(path / "comparison.json", remarks)
    return Run(
        path=path,
        config=config,
        environment=_read_document(path / "environment.json", remarks),
        audit=_read_document(path / "data.json", remarks),
        steps=_in_order(_step(row) for row in metrics if "loss" in row and whole(row, "step") is not None),
        evaluations=_in_order(
            _evaluation(row) for row in metrics if "validation_loss" in row and whole(row, "step") is not None
        ),
        notices=tuple(Notice(whole(row, "step") or 0, text(row, "sentence")) for row in metrics if "notice" in row),
        training=_read_document(path / "training.json", remarks),
        base=tuple(_reply(row) for row in _read_lines(path / "answers" / "base.jsonl", remarks)),
        tuned=tuple(_reply(row) for row in _read_lines(path / "answers" / "tuned.jsonl", remarks)),
        test=tuple(_read_lines(path / "data" / "test.jsonl", remarks)),
        comparison=_comparison(comparison) if comparison else None,
        scores={
            name: tuple(_judge_score(row) for row in _read_lines(path / "scores" / f"{name}.jsonl", remarks))
            for name in ("base", "tuned")
        },
        calibration=_read_document(path / "calibration.json", remarks),
        records=tuple(_record_loss(row) for row in _read_lines(path / "records.jsonl", remarks)),
        remarks=tuple(remarks),
    )


# Loose JSON, read with care -----------------------------------------------------------------------------------


def number(row: Json, key: str) -> float | None:
    """The finite number at `key`, else None."""
    value = row.get(key)
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def whole(row: Json, key: str) -> int | None:
    """The number at `key` as an integer, else None."""
    value = number(row, key)
    return None if value is None else round(value)


def text(row: Json, key: str) -> str:
    """What stands at `key`, as text; empty where there is nothing."""
    value = row.get(key)
    return "" if value is None else str(value)


def mapping(row: Json, key: str) -> Json:
    """The mapping at `key`, else an empty one."""
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def rows(row: Json, key: str) -> list[Json]:
    """The mappings in the list at `key`."""
    value = row.get(key)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, Sequence) else []


def numbers(row: Json, key: str) -> list[float]:
    """The list of finite numbers at `key`; empty unless all of it is."""
    value = row.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    found = [number({"_": entry}, "_") for entry in value]
    finite = [entry for entry in found if entry is not None]
    return finite if len(finite) == len(found) else []


# Files --------------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> Json:
    where = path / "config.yaml"
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that `tuneful run` or `tuneful train` wrote.")
    if not where.is_file():
        raise DataError(
            f"{path}: not a run folder, it has no config.yaml. "
            "Give the folder that `tuneful run` or `tuneful train` wrote."
        )
    try:
        config = yaml.safe_load(where.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not readable as YAML ({' '.join(str(error).split())}). Restore the file.") from error
    if not isinstance(config, Mapping):
        raise DataError(f"{where}: expected sections with settings in them. Restore the file that the run wrote.")
    return config


def _read_document(path: Path, remarks: list[str]) -> Json:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, Mapping):
        remarks.append(f"{path.name} cannot be read as JSON; what it would say is left out.")
        return {}
    return document


def _read_lines(path: Path, remarks: list[str]) -> list[Json]:
    """Rows of a JSONL file; lines that are none are left out with a remark (a killed run leaves half a last line)."""
    if not path.is_file():
        return []
    found: list[Json] = []
    num_bad, last_is_bad = 0, False
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            row = _row(line)
            last_is_bad = row is None
            if row is None:
                num_bad += 1
            else:
                found.append(row)
    name = f"{path.parent.name}/{path.name}" if path.parent.name in ("answers", "data", "scores") else path.name
    if num_bad == 1 and last_is_bad:
        remarks.append(
            f"The last line of {name} is only half written, as a run leaves it when it is stopped; it is left out."
        )
    elif num_bad:
        remarks.append(f"{num_bad:,} {'line' if num_bad == 1 else 'lines'} of {name} cannot be read and are left out.")
    return found


def _row(line: bytes) -> Json | None:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, Mapping) else None


# Rows ---------------------------------------------------------------------------------------------------------


def _in_order(found: Iterator[Any]) -> tuple[Any, ...]:
    """By step; where a resumed run wrote a step again, the later writing counts."""
    by_step = {entry.step: entry for entry in found}
    return tuple(by_step[step] for step in sorted(by_step))


def _step(row: Json) -> Step:
    return Step(
        step=whole(row, "step") or 0,
        epoch=number(row, "epoch"),
        loss=number(row, "loss"),
        learning_rate=number(row, "learning_rate"),
        grad_norm=number(row, "grad_norm"),
        target_tokens=whole(row, "target_tokens") or 0,
        record_tokens=whole(row, "record_tokens") or 0,
        computed_tokens=whole(row, "computed_tokens") or 0,
        step_seconds=number(row, "step_seconds"),
        replay_loss=number(row, "replay_loss"),
    )


def _record_loss(row: Json) -> RecordLoss:
    return RecordLoss(
        source=text(row, "source"),
        num_targets=whole(row, "num_targets") or 0,
        loss_before=number(row, "loss_before"),
        loss_first=number(row, "loss_first"),
        loss_last=number(row, "loss_last"),
        loss_after=number(row, "loss_after"),
        outlier_score=number(row, "outlier_score"),
        memorised=row.get("memorised") is True,
    )


def _evaluation(row: Json) -> Evaluation:
    sample = mapping(row, "sample")
    return Evaluation(
        step=whole(row, "step") or 0,
        validation_loss=number(row, "validation_loss"),
        sample_prompt=text(sample, "prompt"),
        sample_text=text(sample, "text") if sample else None,
    )


def _reply(row: Json) -> Reply:
    return Reply(
        source=text(row, "source"),
        prompt=text(row, "prompt"),
        text=text(row, "text"),
        finish_reason=text(row, "finish_reason"),
        num_tokens=whole(row, "num_tokens"),
    )


def _comparison(document: Json) -> Comparison:
    return Comparison(
        num_items=whole(document, "num_items"),
        confidence=number(document, "confidence"),
        num_resamples=whole(document, "num_resamples"),
        seed=whole(document, "seed"),
        caution=text(document, "caution"),
        sentence=text(document, "sentence"),
        metrics=tuple(_metric(row) for row in rows(document, "metrics")),
        items=tuple(_item(row) for row in rows(document, "items")),
        headline=text(document, "headline") or "rouge_l",
        kinds=tuple(
            _metric({"name": text(row, "kind"), "higher_is_better": True, **row}) for row in rows(document, "kinds")
        ),
        forgetting=tuple(_metric(row) for row in rows(document, "forgetting")),
        names=mapping(document, "names"),
        gate=tuple(rows(document, "gate")),
    )


def _judge_score(row: Json) -> JudgeScore:
    return JudgeScore(
        source=text(row, "source"),
        judge=text(row, "judge"),
        protocol=text(row, "protocol"),
        score=number(row, "score"),
        unscored_reason=text(row, "unscored_reason"),
    )


def _metric(row: Json) -> Metric:
    higher = row.get("higher_is_better")
    return Metric(
        name=text(row, "name"),
        label=text(row, "label") or text(row, "name"),
        unit=text(row, "unit"),
        higher_is_better=higher if isinstance(higher, bool) else None,
        base=number(row, "base"),
        tuned=number(row, "tuned"),
        difference=number(row, "difference"),
        low=number(row, "low"),
        high=number(row, "high"),
        wins=whole(row, "wins"),
        losses=whole(row, "losses"),
        ties=whole(row, "ties"),
        verdict=text(row, "verdict"),
        num_items=whole(row, "num_items"),
        p_value=number(row, "p_value"),
        p_is_exact=row.get("p_is_exact") is True,
        detectable=number(row, "detectable"),
    )


def _item(row: Json) -> Item:
    reference = row.get("reference")
    return Item(
        source=text(row, "source"),
        reference=None if reference is None else str(reference),
        kind=text(row, "kind"),
        base=_scores(mapping(row, "base")),
        tuned=_scores(mapping(row, "tuned")),
    )


def _scores(row: Json) -> dict[str, float]:
    found = {name: number(row, name) for name in row}
    return {name: value for name, value in found.items() if value is not None}
