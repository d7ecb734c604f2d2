"""Rows of the JSONL files of a run folder, one class a kind of line.

Every field says what it holds and in which unit; `docs/run-folder.md` is made from that. Losses are in nats. A field marked
ABSENT is left out of the line where it is None; every other one is always there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

ABSENT = "left out where there is none"
"""Marks a field that a file does not hold where it is None."""


# metrics.jsonl


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step; tokens are counted over all its records, those that were replayed with it included."""

    step: Annotated[int, "number of the optimizer step, from 1"]
    epoch: Annotated[float, "passes over the training records, this step included"]
    loss: Annotated[float, "weighted mean over the targets of the step's training records, in nats a token"]
    learning_rate: Annotated[float, "of this step"]
    grad_norm: Annotated[float, "of the whole gradient, before it is clipped"]
    target_tokens: Annotated[int, "tokens with a weight in the loss"]
    record_tokens: Annotated[int, "tokens of the records as given"]
    computed_tokens: Annotated[int, "tokens as laid out: what records share is computed once, padding is computed too"]
    step_seconds: Annotated[float, "wall time of the step"]
    replay_loss: Annotated[float | None, "as `loss`, of the replayed records that joined the step", ABSENT] = None
    rewards_chosen: Annotated[
        float | None,
        "under preferences: beta times how much more log-probability the chosen responses have than under the reference, a mean "
        "over the step's records (without a reference: than none); for kto of the wanted ones",
        ABSENT,
    ] = None
    rewards_rejected: Annotated[float | None, "the same of the rejected, or unwanted, ones", ABSENT] = None
    rewards_margins: Annotated[float | None, "`rewards_chosen` less `rewards_rejected`", ABSENT] = None
    rewards_accuracies: Annotated[
        float | None,
        "share of pairs whose chosen response has the larger reward, a tie being none; for kto of records whose reward has the "
        "sign of their label",
        ABSENT,
    ] = None
    logps_chosen: Annotated[
        float | None,
        "mean summed log-probability of the chosen responses, in nats; where the loss is of means, a mean a token",
        ABSENT,
    ] = None
    logps_rejected: Annotated[float | None, "the same of the rejected ones", ABSENT] = None
    chosen_logratio: Annotated[
        float | None, "mean log(model / reference) of the chosen responses, in nats a token", ABSENT
    ] = None
    chosen_below_reference: Annotated[
        float | None, "share of the chosen responses that are less probable than under the reference", ABSENT
    ] = None
    kl: Annotated[
        float | None,
        "kto: how far the model is from the reference, the mean log(model / reference) of responses to other prompts, at least 0",
        ABSENT,
    ] = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The model's answer to one record, written at an evaluation so that a person sees it change."""

    source: Annotated[str, "`file:line` of the record"]
    prompt: Annotated[str, "the prompt, rendered"]
    text: Annotated[str, "the answer"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation loss after `step` optimizer steps."""

    step: Annotated[int, "optimizer steps taken before it; 0 is the model as it came"]
    validation_loss: Annotated[
        float | None, "weighted mean over the whole validation set, in nats a token; null without one"
    ]
    sample: Annotated[Sample | None, "a sample answer", ABSENT] = None
    validation_accuracy: Annotated[
        float | None, "under preferences: as `rewards_accuracies`, over the whole validation set", ABSENT
    ] = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened at a step and that a person should hear of."""

    step: Annotated[int, "the optimizer step"]
    notice: Annotated[
        Literal["spike", "memory", "unused", "zero_gradient", "chosen_falls", "margins_explode", "loss_scale"],
        "the loss jumped; memory ran out and smaller micro-batches were taken; parameters have had no gradient; the gradient was "
        "exactly 0; chosen responses have become less probable than under the reference; every pair is far apart already; or a "
        "gradient was too large for float16 and the step was computed again",
    ]
    sentence: Annotated[str, "the same in words"]


Event = Step | Evaluation | Notice
"""A line of metrics.jsonl. A step has a `loss`, an evaluation a `validation_loss`, a notice a `notice`."""


# records.jsonl, validation.jsonl and data/refused.jsonl


@dataclass(frozen=True, slots=True)
class RecordLoss:
    """What one training record cost, from before training to after it; losses are in nats a target token."""

    source: Annotated[
        str, "`file:line` of the record; of a document's later chunks, with their number: `book.txt:1 chunk 2`"
    ]
    num_targets: Annotated[int, "tokens of the record with a weight"]
    loss_before: Annotated[float | None, "before the first step; null but under `report.record_losses: all`"]
    loss_first: Annotated[float | None, "when it was first trained on, before the weights changed"]
    first_step: Annotated[int, "the optimizer step of that; 0 for never"]
    loss_last: Annotated[float | None, "when it was last trained on, before the weights changed"]
    last_step: Annotated[int, "the optimizer step of that; 0 for never"]
    loss_after: Annotated[float | None, "after the last step; null but under `report.record_losses: all`"]
    outlier_score: Annotated[
        float | None,
        "how far its loss lies above that of the records that begin like it, in spreads of those: a possible label error; "
        "null where training was not over it before its loss was last computed",
    ]
    memorised: Annotated[
        bool, "whether the whole answer has a probability of 0.5 or more now, and once had less than 0.01"
    ]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row of the data that was not used."""

    source: Annotated[str, "`file:line` of the row"]
    reason: Annotated[str, "why it cannot be used"]
    raw: Annotated[Any, "as much of it as could be read"]


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    """What one validation record costs the weights that a training kept: the validation loss is the sum of `loss` over that of
    `weight`."""

    source: Annotated[str, "`file:line` of the record"]
    loss: Annotated[float, "weighted negative log-likelihood, summed over the record's targets, in nats"]
    weight: Annotated[float, "summed weight of those targets"]


# answers/*.jsonl, general/*.jsonl, scores/*.jsonl

FinishReason = Literal["stop", "length", ""]


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """A model's answer to one record, in the order of the test set."""

    source: Annotated[str, "`file:line` of the record that it answers"]
    prompt: Annotated[
        str,
        "the prompt, rendered; without the token that begins every text where there is one (`<bos>`), which servers add",
    ]
    text: Annotated[str, "the answer: no stop token, no text of the template"]
    finish_reason: Annotated[
        FinishReason,
        "stop where the model ended the answer, length where it was cut off; empty where nobody wrote it down",
    ]
    num_tokens: Annotated[int | None, "tokens generated, the stop token included; null where nobody wrote it down"]


@dataclass(frozen=True, slots=True)
class ReferenceLoss:
    """How surprised a model is by the reference answer of one test record."""

    source: Annotated[str, "`file:line` of the record"]
    nll: Annotated[float, "negative log-likelihood, summed over the reference's tokens, in nats"]
    num_tokens: Annotated[int, "tokens of the reference, the end token included"]


@dataclass(frozen=True, slots=True)
class GeneralScore:
    """What one stretch of text costs a model: a passage of general text, a sample that the base model itself wrote, or a document
    of the test set."""

    kind: Annotated[
        Literal["passage", "sample", "document"],
        "a passage of general text, a sample of the base model's own, or a document of the test set",
    ]
    source: Annotated[str, "the file and passage that it is, or whose first words the sample goes on from"]
    nll: Annotated[float, "negative log-likelihood, summed over its tokens, in nats"]
    num_tokens: Annotated[int, "tokens that are counted"]
    num_bytes: Annotated[int, "bytes of text that these tokens are"]
    sha256: Annotated[str, "of a passage's text, its first 16 digits; empty for a sample"] = ""
    token_ids: Annotated[tuple[int, ...], "of a sample, its prompt included; empty for a passage"] = ()
    num_prompt_tokens: Annotated[int, "how many of `token_ids` were given"] = 0

    def __post_init__(self) -> None:
        assert math.isfinite(self.nll), self
        assert self.num_tokens > 0, self


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """What a model made of one item of multiple choice: scored, or the reason why not."""

    source: Annotated[str, "`file:line` of the item"]
    gold: Annotated[tuple[int, ...], "the choices that are right, from 0"]
    loglikelihoods: Annotated[
        tuple[float, ...], "log-probability of each choice after the prompt, summed over its tokens, in nats"
    ]
    num_tokens: Annotated[tuple[int, ...], "tokens of each choice"]
    num_characters: Annotated[tuple[int, ...], "characters of each choice"]
    num_bytes: Annotated[tuple[int, ...], "its bytes in UTF-8"]
    acc: Annotated[bool | None, "whether the likeliest choice is right; null where the item is not scored"]
    acc_norm: Annotated[bool | None, "the same of the choice that is likeliest by the character"]
    acc_bytes: Annotated[bool | None, "the same of the one that is likeliest by the byte"]
    unscored_reason: Annotated[str | None, "why it is not scored; null where it is"] = None


@dataclass(frozen=True, slots=True)
class InstructionScore:
    """Whether a model's answer follows the instructions of one item that can be verified: scored, or the reason why not."""

    source: Annotated[str, "`file:line` of the item"]
    prompt: Annotated[str, "the prompt, rendered; empty where it was not asked"]
    text: Annotated[str, "the answer"]
    finish_reason: Annotated[FinishReason, "as of an answer; empty where none was asked for"]
    num_tokens: Annotated[int | None, "tokens generated; null where it was not asked"]
    instructions: Annotated[tuple[str, ...], "the kinds of instruction, in the item's order"]
    strict: Annotated[tuple[bool, ...], "whether the answer follows each; empty where the item is not scored"]
    loose: Annotated[tuple[bool, ...], "the same, outer lines and asterisks being overlooked"]
    unscored_reason: Annotated[str | None, "why it is not scored; null where it is"] = None


@dataclass(frozen=True, slots=True)
class JudgeScore:
    """What a judge made of one answer: a score, or the reason why there is none; never both."""

    source: Annotated[str, "`file:line` of the record"]
    judge: Annotated[str, "the judge, as it was named"]
    protocol: Annotated[str, "what it was asked for: `score`, `rubric` or `pairwise`"]
    score: Annotated[
        float | None,
        "0 to 100; under `pairwise` 100 where the answer beats its rival, 50 for a tie; null where unscored",
    ]
    unscored_reason: Annotated[str | None, "why there is no score; null where there is one"]
    raw: Annotated[str, "what the judge said, word for word"]
    reason: Annotated[str | None, "the reason that the judge gave, where it was asked for one", ABSENT] = None


# ratings.jsonl

PreferredAnswer = Literal["a", "b", "tie", "both_bad"]


@dataclass(frozen=True, slots=True)
class RatingRow:
    """What one person made of two answers to one record, without knowing which was whose."""

    source: Annotated[str, "`file:line` of the record"]
    rater: Annotated[str, "who rated, as they named themselves"]
    a: Annotated[str, "one set of answers: the name of its file in answers/, without its ending"]
    b: Annotated[str, "the other one"]
    preference: Annotated[
        PreferredAnswer, "the better answer; `tie` where both are as good, `both_bad` where neither will do"
    ]
    shown_first: Annotated[Literal["a", "b"], "which of the two stood first"]
    remark: Annotated[str, "what the rater had to say; often empty"]
    rated: Annotated[str, "when, UTC"]
    a_sha256: Annotated[str, "of the text of the answer of `a`, its first 16 digits: a rating is of two texts"]
    b_sha256: Annotated[str, "of that of `b`"]
