"""The document explain.json: which training records pushed the model towards its answers, and away from them.

Every field says what it holds and in which unit; `docs/run-folder.md` is made from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

ExplainedText = Literal["answer", "reference"]
Ranking = Literal["score", "cosine"]


@dataclass(frozen=True, slots=True)
class ComparedWeights:
    """The weights at which gradients were compared."""

    step: Annotated[int, "after how many steps"]
    learning_rate: Annotated[float, "learning rate of the steps that they stand for, summed"]
    is_preconditioned: Annotated[bool, "whether gradients were scaled as AdamW scales them, by the second moment there"]


@dataclass(frozen=True, slots=True)
class RaisedToken:
    """A token of an answer that training made likelier."""

    text: Annotated[str, "the token"]
    nats: Annotated[float, "by how much training raised its log-probability"]


@dataclass(frozen=True, slots=True)
class InfluentialRecord:
    """A training record that stands out for an item."""

    source: Annotated[str, "where the record was read"]
    text: Annotated[str, "how what was asked begins"]
    response: Annotated[str, "how its response begins"]
    score: Annotated[
        float,
        "what training on it did to the item, without a unit: above 0 it made it likelier, below less likely; to be compared "
        "within an item",
    ]
    cosine: Annotated[float, "how alike the gradients of record and item are, -1 to 1"]


@dataclass(frozen=True, slots=True)
class ExplainedItem:
    """A test item, and the records that stand out for it."""

    number: Annotated[int, "its place in the test set, from 1"]
    source: Annotated[str, "`file:line` of the record"]
    asked: Annotated[str, "what was asked"]
    text: Annotated[str, "what is explained: the tuned model's answer, or the reference"]
    num_tokens: Annotated[int, "its tokens"]
    raised: Annotated[
        tuple[RaisedToken, ...],
        "the tokens that training raised the most, which count the most, the first three; empty where all count alike",
    ]
    towards: Annotated[tuple[InfluentialRecord, ...], "the records that made it likelier, the strongest first"]
    away: Annotated[tuple[InfluentialRecord, ...], "those that made it less likely, the strongest first"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How gradients were compared, and what was found for each item that was asked about."""

    of: Annotated[ExplainedText, "what is explained of an item: the tuned model's answer, or the reference"]
    counted_by_change: Annotated[
        bool, "whether each token of an item counts by how much training raised it; all count alike otherwise"
    ]
    ranked_by: Annotated[Ranking, "by what records are ranked"]
    num_records: Annotated[int, "training records that were compared"]
    num_trained: Annotated[int, "of these, records that a step was taken on"]
    parameters: Annotated[str, "by which parameters, in words"]
    num_parameters: Annotated[int, "how many numbers these are"]
    projection_dim: Annotated[int, "numbers that a gradient is projected to"]
    seed: Annotated[int, "of the projection"]
    damping: Annotated[float, "what is added to the records' second moment, as a share of its mean eigenvalue"]
    weights: Annotated[
        tuple[ComparedWeights, ...],
        "at which weights: those before the first step and of the checkpoints, else the final ones",
    ]
    notes: Annotated[tuple[str, ...], "what is approximated, in words"]
    items: Annotated[tuple[ExplainedItem, ...], "the items, in the order of the test set"]
