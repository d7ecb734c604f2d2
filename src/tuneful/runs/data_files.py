"""The data of a run: whether its sides hold what the settings need, and the files of it in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneful.audit.audit import audit_sides
from tuneful.batch.order import Mixture
from tuneful.config import Config
from tuneful.data.read import Record
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset, Subset, describe
from tuneful.errors import ConfigError
from tuneful.evaluation.gate import Condition, check_without_answers
from tuneful.runs.folder import RunDir
from tuneful.runs.mixing import with_shares
from tuneful.runs.schema import DataDocument


def check_sides(
    verb: str,
    config: Config,
    conditions: tuple[Condition, ...],
    validation: Subset,
    asked: Subset,
    documents: Subset,
    tests: Sequence[str],
) -> None:
    """ConfigError where a setting needs records of a side that has none; `asked` and `documents` are of the test set, `tests` the
    metrics of `evaluation.tests`."""
    if config.train.early_stopping_patience and not len(validation):
        raise ConfigError("`train.early_stopping_patience` needs validation records: raise data.validation_share")
    of_answers = _given_of_answers(config)
    needed = [] if tests else ["report.gate"] if conditions else of_answers
    if needed and verb == "run" and not len(asked) and not len(documents):
        wanted = " with label true" if config.train.objective == "kto" else ""
        raise ConfigError(f"`{needed[0]}` needs test records{wanted}: raise data.test_share")
    if verb == "run" and (len(documents) or tests) and not len(asked):
        if config.judge.model is not None:
            what = "documents have" if len(documents) else "the test set has"
            raise ConfigError(f"`judge.model` judges answers, and {what} none; give prompts as data.test_file")
        check_without_answers(conditions, has_documents=len(documents) > 0, others=tests)
        if of_answers:
            raise ConfigError(
                f"`{of_answers[0]}` is of answers, and the test set has none; give prompts as data.test_file"
            )


def _given_of_answers(config: Config) -> list[str]:
    """The settings that are given and speak of answers to test records."""
    given = {"evaluation.checks": bool(config.evaluation.checks), "report.headline": config.report.headline is not None}
    given["judge.model"] = config.judge.model is not None
    return [name for name, is_given in given.items() if is_given]


def write_data(
    folder: RunDir, dataset: Dataset, mixture: Mixture | None, encoder: Encoder, config: Config
) -> DataDocument:
    """data/*.jsonl, and data.json, which is returned."""
    for name in ("train", "validation", "test"):
        folder.write_records(f"data/{name}.jsonl", map(_data_row, getattr(dataset, name).records))
    folder.write_rows("data/refused.jsonl", dataset.refused)
    sides = [(side.records, side.examples) for side in (dataset.train, dataset.validation, dataset.test)]
    found = audit_sides(sides, dataset.refused, config, encoder)
    audit = with_shares(found.added_to(describe(dataset, encoder, config)), dataset, mixture)
    folder.write_document("data.json", audit)
    return audit


def _data_row(record: Record) -> dict[str, Any]:
    """A row of data/*.jsonl: the record as it was read, its own `source` under another name, and where it was read."""
    own = {"record_source": record.raw["source"]} if "source" in record.raw else {}
    return {**record.raw, **own, "source": record.source}
