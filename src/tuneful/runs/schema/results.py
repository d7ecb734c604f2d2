"""JSON documents that say what a run found: comparison.json, evaluation.json and calibration.json.

Every field says what it holds and in which unit; `docs/run-folder.md` is made from that. Promises between fields are kept by
who makes these: a report reads them as far as they can be read, promises or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tuneful.runs.schema.checks import CheckedSides, CheckOutcome
from tuneful.runs.schema.rows import ABSENT

MetricVerdict = Literal["better", "worse", "changed", "cannot tell"]
Standing = Literal["good", "doubtful", "bad"]


# comparison.json


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of both models on the same items: `wins + losses + ties = num_items`."""

    name: Annotated[str, "the metric"]
    label: Annotated[str, "the metric in words"]
    unit: Annotated[str, "unit of all its figures"]
    higher_is_better: Annotated[bool | None, "its good direction; null where there is none"]
    num_items: Annotated[int, "items measured for both models"]
    base: Annotated[float, "over the base model's answers"]
    tuned: Annotated[float, "over the tuned model's answers"]
    difference: Annotated[float, "tuned - base"]
    low: Annotated[float | None, "lower end of the difference's interval; null where it is not known"]
    high: Annotated[float | None, "upper end of the difference's interval"]
    wins: Annotated[int, "items on which the tuned model is better (a metric without a direction: higher)"]
    losses: Annotated[int, "items on which it is worse"]
    ties: Annotated[int, "items on which both are equal"]
    p_value: Annotated[float | None, "of the permutation test; null where the models do not compare item by item"]
    p_is_exact: Annotated[bool, "whether all permutations were counted"]
    detectable: Annotated[float | None, "the true difference that these items show in 4 of 5 cases"]
    verdict: Annotated[MetricVerdict, "needs both an interval without 0 and a permutation test that agrees"]


@dataclass(frozen=True, slots=True)
class KindComparison:
    """One kind of task by the metric that `headline` names."""

    kind: Annotated[str, "the kind, as the records name it; `other` where they do not"]
    num_items: Annotated[int, "items of this kind"]
    base: Annotated[float, "over the base model's answers"]
    tuned: Annotated[float, "over the tuned model's answers"]
    difference: Annotated[float, "tuned - base"]
    low: Annotated[float | None, "lower end of the difference's interval; null where it is not known"]
    high: Annotated[float | None, "upper end of the difference's interval"]
    wins: Annotated[int, "items on which the tuned model is better"]
    losses: Annotated[int, "items on which it is worse"]
    ties: Annotated[int, "items on which both are equal"]
    p_value: Annotated[float, "of the permutation test, corrected for the number of kinds (Holm)"]
    verdict: Annotated[MetricVerdict, "as for a metric"]


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """One answer in numbers, beside its reference. `reference_nll` and `reference_tokens` are there together or not at all."""

    exact_match: Annotated[bool, "whether the answer is the reference, but for case and outer marks"]
    token_f1: Annotated[float, "words shared with the reference in any order, 0 to 1"]
    rouge_l: Annotated[float, "words shared with the reference in the same order, 0 to 1"]
    chrf: Annotated[float, "runs of characters shared with the reference, 0 to 1"]
    ended: Annotated[bool | None, "whether the model ended the answer; null where nobody wrote it down"]
    num_words: Annotated[int, "words of the answer"]
    reference_nll: Annotated[
        float | None,
        "negative log-likelihood of the reference, summed over its tokens, in nats; null where not measured",
    ]
    reference_tokens: Annotated[int | None, "tokens of the reference; null where not measured"]
    reference_words: Annotated[int, "words of the reference"]
    judge_score: Annotated[float | None, "what a judge gave, 0 to 100; null where none scored it"] = None
    people_preference: Annotated[
        float | None,
        "how far people preferred it to the other model's answer, 0 to 1, a tie being 0.5, the mean over those who rated; "
        "null where nobody did",
    ] = None
    checks: Annotated[
        Mapping[str, CheckOutcome] | None, "what checks of one's own found of it, by their names", ABSENT
    ] = None


@dataclass(frozen=True, slots=True)
class ComparisonItem:
    """One test item: what both answers scored."""

    source: Annotated[str, "`file:line` of the record"]
    reference: Annotated[str, "the answer that the record itself gives"]
    kind: Annotated[str | None, "the kind of task, where the record names one"]
    gain: Annotated[float | None, "how much better the tuned answer is by the headline metric; null where not measured"]
    base: Annotated[AnswerScores, "the base model's answer"]
    tuned: Annotated[AnswerScores, "the tuned model's answer"]


@dataclass(frozen=True, slots=True)
class ComparedSides:
    """What `tuneful compare` was asked to compare."""

    base: Annotated[str, "A, as it was named"]
    tuned: Annotated[str, "B, as it was named"]


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """What became of one condition of the gate."""

    condition: Annotated[str, "the condition, such as `rouge_l>=0`"]
    found: Annotated[float | None, "the figure that it speaks of; null where it is not known, and nothing is met"]
    met: Annotated[bool, "whether it is met"]

    def __str__(self) -> str:
        return f"{self.condition}: {self.found_in_words}, {'met' if self.met else 'NOT met'}"

    @property
    def found_in_words(self) -> str:
        """`+0.0213`; without a sign where the condition is on a value of one model (`.base`, `.tuned`); or `not known`."""
        if self.found is None:
            return "not known"
        is_value = any(figure in self.condition for figure in (".base", ".tuned"))
        return f"{self.found:.4f}" if is_value else f"{self.found:+.4f}"


@dataclass(frozen=True, slots=True)
class JudgeFinding:
    """What is known of a judge, in the words that stand beside its scores."""

    judge: Annotated[str, "the judge, as it was named"]
    verdict: Annotated[
        Literal["usable", "usable with care", "not usable", "not probed"],
        "what probes of known worth found out; scores of a judge that is not usable, or was not probed, are never the headline",
    ]
    num_questions: Annotated[int, "questions that it was probed with"]
    sentence: Annotated[str, "the same in words"]


@dataclass(frozen=True, slots=True)
class RaterAgreement:
    """How far those who rated the same items agree, beyond chance. Figures are null where there is nothing to tell:
    everything rated alike; the interval also on few items, and where all agree on everything."""

    statistic: Annotated[Literal["Cohen's kappa", "Fleiss' kappa"], "Cohen's for two raters, Fleiss' for more"]
    num_items: Annotated[int, "items that two raters or more have rated"]
    share: Annotated[float | None, "share of the pairs of ratings of one item that are equal"]
    kappa: Annotated[float | None, "1 for full agreement, 0 for what chance gives"]
    low: Annotated[float | None, "lower end of its bootstrap interval over items"]
    high: Annotated[float | None, "upper end of its interval"]


@dataclass(frozen=True, slots=True)
class PeopleSummary:
    """What people said of the two answers, blind: `base_preferred + tuned_preferred + ties + both_bad = num_ratings`.

    Wins with interval and test are the metric `people_preference`, over items.
    """

    num_raters: Annotated[int, "people who rated"]
    num_ratings: Annotated[int, "their ratings of these answers"]
    num_items: Annotated[int, "items that somebody rated"]
    num_left_out: Annotated[int, "ratings of other answers than these, which count nowhere"]
    base_preferred: Annotated[int, "ratings that preferred the base model's answer"]
    tuned_preferred: Annotated[int, "ratings that preferred the tuned model's"]
    ties: Annotated[int, "ratings that found both as good"]
    both_bad: Annotated[int, "ratings that found neither good"]
    first_preferred: Annotated[float | None, "share of the ratings with a preference that preferred what stood first"]
    agreement: Annotated[RaterAgreement | None, "between raters", ABSENT] = None
    judge: Annotated[RaterAgreement | None, "between the judge's scores and the majority of the people", ABSENT] = None


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What was asked in one test of one model."""

    file: Annotated[str, "the file, as it was named"]
    sha256: Annotated[str, "over the file's bytes and all that decides how it is asked"]


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One file of tests: what was asked of both models. Its results are metrics whose names begin with `name`.

    `num_items = num_fewshot + num_scored + num_unscored`.
    """

    name: Annotated[str, "what its metrics are called by"]
    file: Annotated[str, "the file, as it was named"]
    sha256: Annotated[str, "of its bytes"]
    kind: Annotated[Literal["choices", "instructions"], "multiple choice, or instructions that are verified"]
    prompt: Annotated[Literal["template", "raw"], "`evaluation.tests_prompt`"]
    num_items: Annotated[int, "items of the file"]
    num_fewshot: Annotated[int, "those that stand before every question and are not scored"]
    num_scored: Annotated[int, "items that both models have a score of"]
    num_unscored: Annotated[int, "items that one of them has none of"]
    unscored: Annotated[Mapping[str, int], "these by reason"]
    metrics: Annotated[tuple[str, ...], "names of its metrics"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Base against tuned on the same test items. The parts that are None until they are known stand in the file when it is
    written; `names` only where the two are not a model before and after its training."""

    num_items: Annotated[int, "paired test items"]
    confidence: Annotated[float, "of the intervals, 0 to 1"]
    num_resamples: Annotated[int, "resamples of the bootstrap"]
    seed: Annotated[int, "of the bootstrap"]
    headline: Annotated[str, "the metric that the verdict in words speaks of"]
    reference_words: Annotated[float, "mean length of the references, in words"]
    caution: Annotated[str | None, "what weakens the intervals, in words; null for nothing"]
    metrics: Annotated[tuple[MetricComparison, ...], "every metric that was measured"]
    kinds: Annotated[tuple[KindComparison, ...], "every kind of task; empty where there are fewer than two"] = ()
    forgetting: Annotated[tuple[MetricComparison, ...], "what general text cost; empty where not measured"] = ()
    names: Annotated[ComparedSides | None, "what was compared", ABSENT] = None
    sentence: Annotated[str | None, "the result in words", ABSENT] = None
    items: Annotated[tuple[ComparisonItem, ...] | None, "every test item, in the order of the test set", ABSENT] = (
        field(default=None, repr=False)
    )
    gate: Annotated[tuple[GateOutcome, ...] | None, "every condition of the gate", ABSENT] = None
    people: Annotated[PeopleSummary | None, "what people rated", ABSENT] = None
    judge: Annotated[JudgeFinding | None, "what is known of the judge, where one scored; of two the worse", ABSENT] = (
        None
    )
    tests: Annotated[tuple[TaskSummary, ...], "every file of `evaluation.tests`"] = ()
    checks: Annotated[CheckedSides | None, "checks of one's own, of each side", ABSENT] = None

    def measured(self, name: str) -> MetricComparison | None:
        """The metric or the measure of forgetting called `name`; None where it was not measured."""
        return next((metric for metric in (*self.metrics, *self.forgetting) if metric.name == name), None)

    def test_of(self, metric: MetricComparison) -> TaskSummary | None:
        """The standard test that a metric is of; None for none."""
        return next((test for test in self.tests if metric.name in test.metrics), None)

    @property
    def main(self) -> MetricComparison:
        """The metric that the verdict in words speaks of."""
        return next(metric for metric in self.metrics if metric.name == self.headline)


# tests.json


@dataclass(frozen=True, slots=True)
class TaskFigure:
    """One metric of one model in one test."""

    name: Annotated[str, "the metric"]
    label: Annotated[str, "the metric in words"]
    value: Annotated[float, "over the scored items"]
    low: Annotated[float, "lower end of its interval: Wilson's of a share of items, else the bootstrap's"]
    high: Annotated[float, "upper end"]
    num_items: Annotated[int, "scored items"]


@dataclass(frozen=True, slots=True)
class TakenTasks:
    """One model in all tests."""

    model: Annotated[str, "the model, as it was named"]
    tests: Annotated[tuple[TaskSummary, ...], "every test, as it counts for this model alone"]
    figures: Annotated[tuple[TaskFigure, ...], "every metric of every test"]


@dataclass(frozen=True, slots=True)
class TasksDocument:
    """What `tuneful evaluate --tests` found of each model by itself."""

    confidence: Annotated[float, "of the intervals, 0 to 1"]
    models: Annotated[Mapping[str, TakenTasks], "`model`, or `base` and `tuned` of a run"]


# evaluation.json


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What a judge gave one set of answers: `num_scored + num_unscored = num_items`."""

    judge: Annotated[str, "the judge, as it was named"]
    protocol: Annotated[str, "what it was asked for: `score`, `rubric` or `pairwise`"]
    num_items: Annotated[int, "items that were put to it"]
    num_scored: Annotated[int, "items that it scored"]
    num_unscored: Annotated[int, "items without a score"]
    mean: Annotated[float | None, "mean score of the scored items, 0 to 100; null where nothing was scored"]
    low: Annotated[float | None, "lower end of its interval; null where it is not known"]
    high: Annotated[float | None, "upper end of its interval"]
    mean_if_worst: Annotated[float, "what the mean would be if every unscored item had got 0"]
    mean_if_best: Annotated[float, "what the mean would be if every unscored item had got 100"]
    confidence: Annotated[float, "of the interval, 0 to 1"]
    unscored: Annotated[Mapping[str, int], "unscored items by reason"]
    criteria: Annotated[Mapping[str, float], "means of a rubric's criteria; empty under other protocols"]

    def __post_init__(self) -> None:
        assert self.num_scored + self.num_unscored == self.num_items, self
        assert sum(self.unscored.values()) == self.num_unscored, self


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against a person on the answers that both graded. A figure is null where one of the two gave everything the
    same grade, which leaves nothing to agree on."""

    num_items: Annotated[int, "answers that both graded"]
    num_unmatched: Annotated[int, "ratings that found no score"]
    kappa: Annotated[float | None, "quadratic weighted kappa over five bands, -1 to 1"]
    spearman: Annotated[float | None, "rank correlation, -1 to 1"]
    low: Annotated[float | None, "lower end of its interval"]
    high: Annotated[float | None, "upper end of its interval"]


@dataclass(frozen=True, slots=True)
class EvaluationDocument:
    """What a judge gave, in numbers."""

    judge: Annotated[str, "the judge, as it was named"]
    protocol: Annotated[str, "what it was asked for: `score`, `rubric` or `pairwise`"]
    answers: Annotated[Mapping[str, ScoreSummary], "each set of answers, by its name"]
    agreement: Annotated[Agreement | None, "the judge against people, where ratings were given", ABSENT] = None
    finding: Annotated[JudgeFinding | None, "what is known of the judge", ABSENT] = None
    remarks: Annotated[tuple[str, ...], "what is odd about the scale that it uses, in words"] = ()
    num_left_out: Annotated[int | None, "answers of all sets that `--limit` left out", ABSENT] = None
    people: Annotated[
        RaterAgreement | None, "the judge against the majority of those who rated the run's answers blind", ABSENT
    ] = None
    probes: Annotated[
        Calibration | None, "the probes behind `finding`; of `--calibrate` see calibration.json", ABSENT
    ] = None


# calibration.json


@dataclass(frozen=True, slots=True)
class CalibrationFigure:
    """One thing that was found out about a judge."""

    name: Annotated[str, "the figure"]
    label: Annotated[str, "the figure in words"]
    value: Annotated[float | None, "null where nothing could be counted"]
    low: Annotated[float | None, "lower end of its interval"]
    high: Annotated[float | None, "upper end of its interval"]
    num_items: Annotated[int, "items that it is over"]
    unit: Annotated[Literal["share", "points"], "a share of items, or points of the scale of 100"]
    wanted: Annotated[str, "what a good judge reaches, in words"]
    standing: Annotated[Standing, "where this one stands"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of a judge: `num_read + num_unread = num_questions`."""

    judge: Annotated[str, "the judge, as it was named"]
    protocol: Annotated[str, "what it was asked for"]
    num_items: Annotated[int, "items that were probed with"]
    num_questions: Annotated[int, "questions put to it"]
    num_read: Annotated[int, "replies that held a verdict"]
    num_unread: Annotated[int, "questions without a verdict"]
    unread: Annotated[Mapping[str, int], "those by reason"]
    mean_scores: Annotated[Mapping[str, float | None], "mean score of each kind of probe; null where it has none"]
    figures: Annotated[tuple[CalibrationFigure, ...], "what was found out"]
    verdict: Annotated[Literal["usable", "usable with care", "not usable"], "whether it can judge these answers"]
    sentence: Annotated[str, "the verdict in words"]
