"""The page of a run folder: `python -m tuneful.runs.schema.reference > docs/run-folder.md`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from tuneful.runs.schema.checks import CheckRow, ChecksDocument
from tuneful.runs.schema.documents import (
    CheckpointDocument,
    DataDocument,
    Environment,
    PreferenceOutcome,
    ReferenceDocument,
    RunRecord,
    TrainingSummary,
)
from tuneful.runs.schema.explained import Explanation
from tuneful.runs.schema.exports import ExportProof
from tuneful.runs.schema.pairwise import PairwiseComparison
from tuneful.runs.schema.read import fields_of
from tuneful.runs.schema.results import Calibration, Comparison, EvaluationDocument, TaskRequest, TasksDocument
from tuneful.runs.schema.rows import (
    ABSENT,
    AnswerRow,
    ChoiceScore,
    Evaluation,
    GeneralScore,
    InstructionScore,
    JudgeScore,
    Notice,
    RatingRow,
    RecordLoss,
    ReferenceLoss,
    SkippedRow,
    Step,
    ValidationLoss,
)
from tuneful.runs.schema.sweeps import SweepDocument

FILES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "run.json": ("Written before the first phase, and again when the run is finished.", (RunRecord,)),
    "environment.json": ("Written before the training, and again at the end.", (Environment,)),
    "data.json": ("Written once the data is read.", (DataDocument,)),
    "data/refused.jsonl": ("A line a row of the data that was not used.", (SkippedRow,)),
    "metrics.jsonl": (
        "Grows while the model is trained: a line a step, an evaluation and a notice. A line with `loss` is a step, one with "
        "`validation_loss` an evaluation, one with `notice` a notice. After an interruption it is cut back to the checkpoint "
        "that is gone on from.",
        (Step, Evaluation, Notice),
    ),
    "checkpoints/step-NNNNNN/manifest.json": (
        "The last thing of a checkpoint that is written: `format`, `step`, and size and sha256 of each of its `files`; its own "
        "`sha256`; where several ranks wrote it, by group and name, the `shape` of each of its `tensors` and which file holds "
        "which of their `rows` (file, first, end); and a `document`, which is described here.",
        (CheckpointDocument,),
    ),
    "training.json": ("Written when the last step is taken.", (TrainingSummary,)),
    "reference.json": (
        "Written before the first step where preferences are learned against a reference, and read where the run goes on.",
        (ReferenceDocument,),
    ),
    "preferences.json": ("Written when the last step is taken, where preferences were learned.", (PreferenceOutcome,)),
    "records.jsonl": ("A line a training record, in their order, when the last step is taken.", (RecordLoss,)),
    "validation.jsonl": (
        "A line a validation record, in their order, in the runs of a sweep that were trained to the end; not under preferences.",
        (ValidationLoss,),
    ),
    "answers/base.jsonl, answers/tuned.jsonl": (
        "A line a test record, in the order of data/test.jsonl. What `tuneful generate --data` writes is of the same kind.",
        (AnswerRow,),
    ),
    "answers/base-references.jsonl, answers/tuned-references.jsonl": (
        "A line a test record, in the same order.",
        (ReferenceLoss,),
    ),
    "general/base.jsonl, general/tuned.jsonl": ("A line a stretch of general text.", (GeneralScore,)),
    "documents/base.jsonl, documents/tuned.jsonl": (
        "A line a document of the test set, where documents are trained.",
        (GeneralScore,),
    ),
    "tests/NAME-base.jsonl, tests/NAME-tuned.jsonl": (
        "A line an item of the test NAME, in the order of its file, few-shot items left out: of multiple choice, or of "
        "instructions. `tuneful evaluate --tests` writes the same.",
        (ChoiceScore, InstructionScore),
    ),
    "tests/evaluated/tests.json": (
        "Written by `tuneful evaluate RUN --tests`, with the items beside it, and a comparison.json of the two models.",
        (TasksDocument,),
    ),
    "tests/NAME-base.json, tests/NAME-tuned.json": ("What was asked, so that nothing is asked twice.", (TaskRequest,)),
    "scores/NAME.jsonl": ("A line an answer of the set NAME, in its order, where a judge was asked.", (JudgeScore,)),
    "ratings.jsonl": (
        "A line a rating that people gave on the page of `tuneful serve`, rater by rater, in the order in which they rated. Made "
        "from ratings.sqlite3, where each rating is kept as it comes, and made again after each of them.",
        (RatingRow,),
    ),
    "comparison.json": (
        "Base against tuned. `tuneful compare --output` writes the same, and `tuneful run --json` prints it without "
        "`sentence`, `items` and `gate`.",
        (Comparison,),
    ),
    "pairwise.json": (
        "Written by `tuneful compare A B C ... --output`, into a folder of its own.",
        (PairwiseComparison,),
    ),
    "evaluation.json": ("What a judge gave, in numbers.", (EvaluationDocument,)),
    "checks/NAME.jsonl": (
        "A line an answer of the set NAME, in its order, by `tuneful evaluate --checks`.",
        (CheckRow,),
    ),
    "checks.json": ("The same in numbers.", (ChecksDocument,)),
    "calibration.json": ("Written by `tuneful evaluate --calibrate`.", (Calibration,)),
    "explain.json": (
        "Written by `tuneful explain`, which adds items to it while the rest stays as it is.",
        (Explanation,),
    ),
    "export/NAME/proof.json": ("Written by `tuneful export`, beside what it exported.", (ExportProof,)),
    "sweep.json": (
        "In the folder of a sweep, whose runs/ holds the run folders: written by `tuneful sweep` after every leg of a run.",
        (SweepDocument,),
    ),
}
"""Every file that the schema describes, by its place in the folder: what it is, and its rows or its document."""

_HEAD = """# A run folder

What `tuneful run` and `tuneful train` leave behind, field by field. This page is made from the code:
`python -m tuneful.runs.schema.reference > docs/run-folder.md`.

A JSON document is written whole, aside, and renamed: one that is there is finished. JSONL holds one object a line. Text is
UTF-8. Lengths are in tokens, losses in nats a token and times in seconds unless a field says otherwise. A field is always
there, null where it has no value, but for those that are marked as left out. New fields may come with any version; a name
changes only with an entry in the changelog, and `tuneful report`, `compare` and `evaluate` go on reading the old one.

Besides the files below there are `config.yaml` (every setting, [configuration.md](configuration.md)),
`data/{train,validation,test}.jsonl` (the records as they were read, with their `source`), `model/` (the trained model in
Hugging Face's format), `adapter/` (in PEFT's, where one was trained), `checkpoints/` ([checkpoints.md](checkpoints.md)),
`judge/replies.jsonl` (what a judge said, so that nothing is asked twice), `explain/` (what `tuneful explain` made of the training
records, [explain.md](explain.md)) and `report.html`.
"""


def reference() -> str:
    """Every file with its fields, as the Markdown of docs/run-folder.md."""
    lines = [_HEAD]
    seen: set[type] = set()
    for place, (about, kinds) in FILES.items():
        lines += [f"## {', '.join(f'`{name}`' for name in place.split(', '))}", "", about, ""]
        for kind in kinds:
            lines += _tables(kind, seen)
    return "\n".join(lines).rstrip("\n") + "\n"


def _tables(kind: type, seen: set[type]) -> Iterator[str]:
    """The table of a class, and of those that its fields hold, each the first time that it is met."""
    if kind in seen:
        return
    seen.add(kind)
    yield f"### {kind.__name__}"
    yield ""
    yield " ".join((kind.__doc__ or "").split())
    yield ""
    yield "| field | holds | meaning |"
    yield "|---|---|---|"
    for field in fields_of(kind):
        holds, meaning = _in_words(field.type), field.meaning
        if field.may_be_absent:
            holds, meaning = holds.removesuffix(" or null"), f"{meaning}; {ABSENT}"
        yield f"| `{field.name}` | {holds} | {meaning} |"
    yield ""
    for field in fields_of(kind):
        for inner in _classes(field.type):
            yield from _tables(inner, seen)


def _classes(kind: Any) -> list[type]:
    """The classes of the schema that a type is made of."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return [kind]
    return [inner for argument in get_args(kind) for inner in _classes(argument)]


def _in_words(kind: Any) -> str:
    """A type as a reader of JSON knows it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if one is NoneType else _in_words(one) for one in arguments)
    if origin is Literal:
        return " or ".join(f'`"{one}"`' for one in arguments)
    if origin in (tuple, list):
        return f"list of {_in_words(arguments[0])}"
    if origin is Mapping:
        return f"mapping of {_in_words(arguments[1])}"
    names: Mapping[Any, str] = {int: "integer", float: "number", str: "text", bool: "boolean", Any: "any value"}
    return names[kind]


if __name__ == "__main__":
    print(reference(), end="")
