"""Names that files of earlier versions hold, each with the name that holds now.

The one place that knows them; whoever reads a row or document through `read.py` has them translated. Settings are translated
by `config.load`, which stands on the same ground.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneful.config.names import RENAMED_KEYS, RENAMED_METRICS, RENAMED_VALUES
from tuneful.runs.schema.documents import (
    CheckpointDocument,
    Choices,
    DataDocument,
    Environment,
    FindingSummary,
    RunRecord,
)
from tuneful.runs.schema.results import Comparison, GateOutcome, MetricComparison
from tuneful.runs.schema.rows import AnswerRow, RecordLoss

FIELDS: Mapping[type, Mapping[str, str]] = {
    AnswerRow: {"ended_by": "finish_reason"},
    RecordLoss: {"suspicion": "outlier_score"},
    DataDocument: {"marker_texts": "special_token_texts"},
    FindingSummary: {"mend": "advice"},
}
"""Fields that had another name."""

FINDINGS = {
    "doubled_begin_tokens": "double_bos",
    "marker_texts": "special_token_texts",
    "prompts_off_training": "prompt_mismatch",
    "seam_merges": "boundary_tokenization",
}
LABELS = {"Drift": "KL to base", "Ending by itself": "Stopped at end token"}
PHASES = {"proof": "self_check"}
KERNELS = {"compiled (products too)": "compiled (matrix products too)"}


def _one_of(renamed: Mapping[str, str]) -> Callable[[Any], Any]:
    """For a field that holds one of the names."""
    return lambda value: renamed.get(value, value) if isinstance(value, str) else value


def _keys(renamed: Mapping[str, str]) -> Callable[[Any], Any]:
    """For a mapping whose keys are such names."""

    def translate(value: Any) -> Any:
        return {renamed.get(key, key): one for key, one in value.items()} if isinstance(value, Mapping) else value

    return translate


def _words(renamed: Mapping[str, str]) -> Callable[[Any], Any]:
    """For a text in which the names occur, with a capital or without."""

    def translate(value: Any) -> Any:
        for old, new in renamed.items() if isinstance(value, str) else ():
            value = value.replace(old, new).replace(old[0].lower() + old[1:], new[0].lower() + new[1:])
        return value

    return translate


def _settings(value: Any) -> Any:
    """For what a training is made of: settings by `section.key`."""
    if not isinstance(value, Mapping):
        return value
    renamed = {RENAMED_KEYS.get(key, key): one for key, one in value.items()}
    return {key: _one_of(RENAMED_VALUES.get(key, {}))(one) for key, one in renamed.items()}


VALUES: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    MetricComparison: {"name": _one_of(RENAMED_METRICS), "label": _one_of(LABELS)},
    GateOutcome: {"condition": _words(RENAMED_METRICS)},
    Comparison: {"sentence": _words({"Ending by itself": LABELS["Ending by itself"]})},
    FindingSummary: {"name": _one_of(FINDINGS)},
    DataDocument: {"template": _one_of(RENAMED_VALUES["template.name"])},
    Environment: {"phase_seconds": _keys(PHASES), "kernels": _one_of(KERNELS)},
    Choices: {"kernels": _one_of(KERNELS)},
    RunRecord: {"training": _settings},
    CheckpointDocument: {"training": _settings},
}
"""Values in which names occur that had another name: how each field's are translated."""


def translated(kind: type, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row`, which holds a `kind`, under the names that hold now; where it has both names of a field, the new one counts."""
    fields, values = FIELDS.get(kind, {}), VALUES.get(kind, {})
    if not fields and not values:
        return row
    named = {
        fields.get(key, key): value
        for key, value in row.items()
        if fields.get(key, key) == key or fields[key] not in row
    }
    return {key: values[key](value) if key in values else value for key, value in named.items()}
