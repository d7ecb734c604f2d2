"""JSON documents that say what a run is, what it ran on and what it was trained on: run.json, environment.json, data.json,
training.json, reference.json, preferences.json, and the document inside a checkpoint's manifest.

What became of it is in `results.py`. Every field says what it holds and in which unit; `docs/run-folder.md` is made from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tuneful.runs.schema.rows import ABSENT

TORCH_KERNELS = "torch's"
"""What `kernels` says where torch's own operations compute."""

LayoutName = Literal["trie", "unshared", "padded"]

UNKNOWN_SOURCE = (
    "that transformers' code of the model's family is none that was tested, so that two more batches were compared"
)
"""What a note about the layout says."""


# run.json


@dataclass(frozen=True, slots=True)
class Process:
    """Which process works on the run, or did last."""

    pid: Annotated[int, "its id"]
    host: Annotated[str, "the machine's name"]
    since: Annotated[str, "when it began, local time"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How micro-batches are laid out, how many tokens each may compute, and why it is not the trie where it is not."""

    name: Annotated[LayoutName, "trie: shared prefixes are computed once; unshared; or the padded batch"]
    max_tokens: Annotated[int, "tokens that one micro-batch may compute"]
    reason: Annotated[str | None, "why it is not the trie; null where nothing speaks against it"] = None
    note: Annotated[str | None, UNKNOWN_SOURCE, ABSENT] = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What the machine decided when the run began: it goes on as it began, wherever it goes on."""

    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "number format of the matrix products"]
    layout: Annotated[Layout, "how micro-batches are laid out"]
    num_threads: Annotated[int, "threads that compute"]
    kernels: Annotated[str, "who computes: compiled kernels, or torch's operations"] = TORCH_KERNELS
    """A run that was begun before there were compiled kernels says nothing of them."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What was asked for and what is being trained: what `--resume` compares before it goes on."""

    verb: Annotated[str, "the command, `run` or `train`"]
    data: Annotated[tuple[str, ...], "the data, as it was named"]
    folder: Annotated[str, "the working directory, from which paths are meant"]
    allowed: Annotated[tuple[str, ...], "settings that were allowed to change (`--allow-changed`)"]
    finished: Annotated[str | None, "when the run was finished, UTC; null until then"]
    started: Annotated[str, "when the run was begun, UTC"]
    config: Annotated[Mapping[str, Mapping[str, Any]], "every setting, by section and key"]
    training: Annotated[
        Mapping[str, Any],
        "what the training is made of: each setting that changes a weight, and sha256 of model, data, tokens",
    ]
    process: Annotated[Process, "who works on it"]
    choices: Annotated[Choices | None, "what the machine decided", ABSENT] = None
    files: Annotated[
        Mapping[str, str],
        "sha256 of each finished file that the run goes on with, by its place; of an older version, none",
    ] = field(default_factory=dict)
    sha256: Annotated[
        str | None,
        "over the fields that decide what the run becomes: all but `process`, and of `choices` `dtype` and `layout`; in a run "
        "of an older version",
        ABSENT,
    ] = None


# environment.json


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The model that is trained."""

    name: Annotated[str, "as it was named"]
    num_parameters: Annotated[int, "parameters, an adapter's not counted"]
    num_trainable: Annotated[int, "parameters that are trained"]
    sha256: Annotated[str, "over its configuration and weights, as they lay on disk"]


@dataclass(frozen=True, slots=True)
class Environment:
    """What the run ran on and with, and how long each phase took."""

    tuneful: Annotated[str, "version of Tuneful"]
    python: Annotated[str, "version of Python"]
    platform: Annotated[str, "operating system"]
    processor: Annotated[str, "name of the processor"]
    cores: Annotated[int | None, "cores that the process may use; null where unknown"]
    memory_bytes: Annotated[int, "memory of the machine"]
    packages: Annotated[Mapping[str, str], "version of each package that computes"]
    command: Annotated[str, "the command line"]
    device: Annotated[str, "where it was trained, such as `cpu` or `cuda:0`"]
    dtype: Annotated[str, "number format of the matrix products"]
    kernels: Annotated[str, "who computes: compiled kernels, or torch's operations"]
    layout: Annotated[str, "how micro-batches are laid out: `trie`, `unshared` or `padded`"]
    layout_reason: Annotated[str | None, "why it is not the trie; null where nothing speaks against it"]
    model: Annotated[TrainedModel, "the model that is trained"]
    started: Annotated[str, "when the run was begun, UTC"]
    finished: Annotated[str | None, "when it was finished, UTC; null until then"]
    phase_seconds: Annotated[Mapping[str, float], "wall time of each phase, all processes of the run together"]
    estimated_seconds: Annotated[
        Mapping[str, float] | None, "what each phase was to take, estimated after the first steps", ABSENT
    ] = None
    layout_note: Annotated[str | None, UNKNOWN_SOURCE, ABSENT] = None
    peak_memory_bytes: Annotated[
        int | None,
        "most memory that the last process of the run held: resident, or on the GPU where that trained",
        ABSENT,
    ] = None


# data.json


@dataclass(frozen=True, slots=True)
class SkippedPlace:
    """A row that was not used, without its content."""

    source: Annotated[str, "`file:line` of the row"]
    reason: Annotated[str, "why it cannot be used"]


@dataclass(frozen=True, slots=True)
class ReadingNote:
    """Something to know of how the rows were read: text that is not used, marks that were obeyed, cells read as text."""

    kind: Annotated[str, "what it is"]
    name: Annotated[str, "the column, or the key of a message; empty where it is about neither"]
    num_records: Annotated[int, "records that it is true of"]
    count: Annotated[int, "how often in all, such as messages"]
    source: Annotated[str, "`file:line` of the first record"]
    text: Annotated[str, "the sentence that `check` prints"]


@dataclass(frozen=True, slots=True)
class Split:
    """How the records were divided."""

    method: Annotated[str, "`data.split`"]
    train: Annotated[int, "training records"]
    validation: Annotated[int, "validation records"]
    test: Annotated[int, "test records"]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of the training records."""

    record: Annotated[int, "all of them"]
    trained: Annotated[int, "those with a weight in the loss"]


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """How long something is, in tokens, over all used records."""

    mean: Annotated[float, "mean"]
    p50: Annotated[float, "median"]
    p95: Annotated[float, "95th percentile"]
    max: Annotated[float, "the longest"]
    p99: Annotated[float | None, "99th percentile; in a run of an older version", ABSENT] = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Records by length."""

    edges: Annotated[tuple[float, ...], "borders of the bins, in tokens; one more than there are bins"]
    counts: Annotated[tuple[int, ...], "records in each bin"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a person reads it."""

    text: Annotated[str, "its text; empty where a character ends only with a later token"]
    weight: Annotated[float, "its weight in the loss"]
    special: Annotated[bool, "whether it is a control token"]
    id: Annotated[int | None, "its id in the vocabulary; in a run of an older version", ABSENT] = None
    origin: Annotated[
        str | None,
        "who wrote it: `template`, `system`, `user`, `tool`, `generation_prefix`, `thought`, `response`, `call`, `argument` or "
        "`end`; in a run of an older version, or a record of which something was cut",
        ABSENT,
    ] = None


@dataclass(frozen=True, slots=True)
class ShownExample:
    """A record as the model sees it."""

    source: Annotated[str, "`file:line` of the record"]
    tokens: Annotated[tuple[Token, ...], "all its tokens; of a pair those of the chosen side"]
    rejected: Annotated[tuple[Token, ...] | None, "of a pair, those of the rejected side", ABSENT] = None
    label: Annotated[bool | None, "whether the answer is wanted, where the record says so", ABSENT] = None


@dataclass(frozen=True, slots=True)
class Case:
    """One place where a finding was made."""

    source: Annotated[str, "`file:line` of the record"]
    text: Annotated[str, "a line of what stands there"]


@dataclass(frozen=True, slots=True)
class FindingSummary:
    """A kind of defect that the check of the data found, with its first places; `docs/check.md` lists the kinds."""

    name: Annotated[str, "the kind"]
    severity: Annotated[Literal["finding", "note"], "worth stopping for, or worth knowing"]
    title: Annotated[str, "the kind in words"]
    count: Annotated[int, "records that have it"]
    cases: Annotated[tuple[Case, ...], "the first places"]
    why: Annotated[str, "the harm that it does"]
    advice: Annotated[str, "what to do about it"]
    fix: Annotated[str, "what `tuneful check --fix` does about it; empty for nothing"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Records whose prompts nearly agree."""

    sources: Annotated[tuple[str, ...], "`file:line` of each, in file order"]
    similarity: Annotated[float, "the least with which one joined, 0 to 1"]


@dataclass(frozen=True, slots=True)
class PreferenceSummary:
    """Preference pairs and records with a label, over all used records."""

    num_pairs: Annotated[int, "pairs of a chosen and a rejected answer"]
    num_wanted: Annotated[int, "records whose answer is labelled as wanted"]
    num_unwanted: Annotated[int, "records whose answer is labelled as not wanted"]
    unit: Annotated[str, "what lengths are in, `tokens` or `words`"]
    chosen_longer: Annotated[
        float | None, "share of the pairs in which the chosen answer is the longer one, of those that differ in length"
    ]
    longer_low: Annotated[float | None, "lower end of its 95 % interval"]
    longer_high: Annotated[float | None, "upper end of its 95 % interval"]
    chosen_median: Annotated[float | None, "median length of the chosen answers"]
    rejected_median: Annotated[float | None, "median length of the rejected answers"]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """One of few short answers that a set for classification has."""

    label: Annotated[str, "the answer, as it is written most often"]
    count: Annotated[int, "used records that have it, letter case and outer marks aside"]
    train: Annotated[int, "those that are trained on"]
    validation: Annotated[int, "those of the validation set"]
    test: Annotated[int, "those of the test set"]


@dataclass(frozen=True, slots=True)
class FileCounts:
    """A file of the data: its records on each side, and how they count."""

    name: Annotated[str, "the file, as its records name it"]
    format: Annotated[str, "`data.format` that it was read under"]
    train: Annotated[int, "its training records"]
    validation: Annotated[int, "its validation records; 0 where those have a file of their own"]
    test: Annotated[int, "its test records; 0 where those have a file of their own"]
    weight: Annotated[float, "what its records weigh in the loss (`data.weights`)"]
    examples_an_epoch: Annotated[
        int | None, "what it gives to an epoch under `data.interleave_probs`, in records or chunks of documents", ABSENT
    ] = None
    times_an_epoch: Annotated[float | None, "how often each of those comes in an epoch, on average", ABSENT] = None


@dataclass(frozen=True, slots=True)
class DataDocument:
    """What was trained on: `rows_read = rows_used + rows_left_out + rows_refused`; a row used is on one side of the split."""

    source: Annotated[str, "the data, as it was named"]
    sha256: Annotated[str, "of its bytes"]
    rows_read: Annotated[int, "rows of the data"]
    rows_used: Annotated[int, "rows that are on a side of the split"]
    rows_refused: Annotated[int, "rows that were skipped"]
    refused: Annotated[tuple[SkippedPlace, ...], "the skipped rows, the first 1,000"]
    split: Annotated[Split, "records on each side"]
    template: Annotated[str, "`template.name`"]
    train_on: Annotated[str, "`data.train_on`"]
    prompt_weight: Annotated[float, "weight of a prompt token in the loss"]
    max_length: Annotated[int, "tokens that a record may have"]
    num_cut: Annotated[int, "training records whose response was cut to that"]
    num_input_cut: Annotated[int, "training records of whose prompt something was left out"]
    cut: Annotated[tuple[str, ...], "`file:line` of both, the first 1,000"]
    special_token_texts: Annotated[
        Mapping[str, int], "texts in the records that look like control tokens, and how often"
    ]
    train_turns: Annotated[str, "`data.train_turns`"]
    train_tokens: Annotated[TokenCounts, "tokens of the training records"]
    shown: Annotated[tuple[ShownExample, ...], "the first training records, token by token"]
    num_chunks: Annotated[
        int | None, "where documents are trained: what steps take, documents in chunks of `max_length` tokens", ABSENT
    ] = None
    rows_left_out: Annotated[int, "training records that `data.train_share` leaves out"] = 0
    labels: Annotated[
        tuple[LabelCounts, ...], "where all answers are few short labels: each of them, the commonest first"
    ] = ()
    files: Annotated[tuple[FileCounts, ...], "the files of the data, where they are several or weighed"] = ()
    reading: Annotated[tuple[ReadingNote, ...], "what there is to know of how the rows were read"] = ()
    lengths: Annotated[
        Mapping[str, LengthSummary], "of `prompt`, `response` (of pairs `chosen` and `rejected`) and whole `record`"
    ] = field(default_factory=dict)
    length_histogram: Annotated[Histogram, "used records by length"] = Histogram((), ())
    findings: Annotated[
        tuple[FindingSummary, ...] | None, "what the check found; in a run of an older version", ABSENT
    ] = None
    num_findings: Annotated[int, "findings that are no mere notes"] = 0
    preferences: Annotated[PreferenceSummary | None, "pairs and labels, where there are any", ABSENT] = None
    clusters: Annotated[tuple[Cluster, ...], "records that nearly repeat each other, the largest clusters"] = ()
    turns: Annotated[Mapping[str, int], "records by number of turns"] = field(default_factory=dict)
    languages: Annotated[Mapping[str, int], "records by language"] = field(default_factory=dict)
    scripts: Annotated[Mapping[str, int], "records by script"] = field(default_factory=dict)
    first_words: Annotated[Mapping[str, int], "records by the first words of the instruction, the commonest"] = field(
        default_factory=dict
    )


# reference.json and preferences.json


@dataclass(frozen=True, slots=True)
class ReferenceDocument:
    """What the reference gives the responses: the model as training starts from it, before the first step."""

    made_with: Annotated[str, "sha256 over the model, the tokens of the data, the compute dtype and the layout"]
    logps: Annotated[
        Mapping[str, float],
        "summed log-probability of a response, in nats, by a hash of its record's tokens and of which of them count",
    ]


@dataclass(frozen=True, slots=True)
class PreferenceOutcome:
    """What the trained model makes of pairs, or labelled records, that it was not trained on."""

    subset: Annotated[Literal["test", "validation"], "which records: those of the test set, where there are such"]
    num_records: Annotated[int, "how many"]
    loss: Annotated[float, "the loss that was trained, over all of them"]
    accuracy: Annotated[
        float | None, "share that is on the right side, as `rewards_accuracies` of a step; null where it is not defined"
    ]
    accuracy_low: Annotated[float | None, "lower end of its interval (Wilson), at `report.confidence`"]
    accuracy_high: Annotated[float | None, "upper end"]
    figures: Annotated[Mapping[str, float], "every figure of a step that is known of them, by its name there"]
    confidence: Annotated[float | None, "of the interval; null where there is none"] = None


# training.json, and a checkpoint's document


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """How the training ended, and which weights the model has."""

    steps: Annotated[int, "optimizer steps taken"]
    planned_steps: Annotated[int, "optimizer steps planned; more than were taken where it stopped early"]
    best_step: Annotated[
        int | None, "the evaluated step with the lowest validation loss; null without a validation set"
    ]
    best_validation_loss: Annotated[float | None, "that loss, in nats a token"]
    kept_step: Annotated[int, "the step whose weights the model has"]
    base_validation_loss: Annotated[float | None, "validation loss before the first step", ABSENT] = None
    kept_validation_loss: Annotated[float | None, "validation loss of the weights that were kept", ABSENT] = None


@dataclass(slots=True)
class TrainingState:
    """Where a training stands between two events: all that is needed to go on, but the optimizer's tensors.

    Not frozen: the training loop moves it along.
    """

    step: Annotated[int, "optimizer steps taken"] = 0
    evaluated: Annotated[bool, "whether the evaluation due after `step` was made"] = False
    best_step: Annotated[int | None, "the evaluation with the lowest validation loss after the first step"] = None
    best_loss: Annotated[float | None, "that loss, in nats a token"] = None
    base_loss: Annotated[float | None, "validation loss before the first step"] = None
    last_loss: Annotated[float | None, "validation loss of the last evaluation"] = None
    num_worse: Annotated[int, "evaluations since `best_step`"] = 0
    max_tokens: Annotated[int | None, "tokens of a micro-batch that fit, where the layout's did not"] = None
    recent_losses: Annotated[list[float], "losses of the last 64 steps, to tell a spike by"] = field(
        default_factory=list
    )
    recent_preferences: Annotated[
        list[list[float]],
        "of the last 16 steps under preferences: `chosen_logratio`, `chosen_below_reference`, `rewards_accuracies`, "
        "`rewards_margins`",
    ] = field(default_factory=list)
    noticed: Annotated[list[str], "notices that are given once and were"] = field(default_factory=list)
    loss_scale: Annotated[float | None, "under float16: what the loss is multiplied by for its gradients", ABSENT] = (
        None
    )
    steps_at_scale: Annotated[int, "steps since that was changed"] = 0


@dataclass(frozen=True, slots=True)
class CheckpointDocument:
    """What a checkpoint's manifest.json holds under `document`, beside the size and sha256 of each of its files."""

    state: Annotated[TrainingState, "where the training stands"]
    training: Annotated[Mapping[str, Any], "as in run.json"]
    metrics_bytes: Annotated[int, "length of metrics.jsonl at that moment, which it is cut back to"]
    metrics_sha256: Annotated[str | None, "of those bytes; in a checkpoint of an older version", ABSENT] = None
