"""When a training is evaluated, and with which evaluations a sample answer is shown: as often as their shares of its time allow.

A pure function of the configuration and the records, so that a run which goes on keeps to it. Time is counted in tokens: a
validation token costs a third of a trained one (a forward, and no backward), and a token that is generated alone costs about
as much as `TOKENS_A_GENERATED_TOKEN` trained ones, because it reads every weight for one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tuneful.config import TrainConfig
from tuneful.types import Example

VALIDATIONS = 10
"""Validations of a run whose records and settings say nothing else, besides that of the first step."""
TOKENS_A_GENERATED_TOKEN = 16
_TRAINED_TOKENS_A_VALIDATED = 3
_MEASURED_RECORDS = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """Evaluations every `interval` steps of `num_steps`, before the first and after the last; `samples_a_step` may be shown.

    `tokens_a_step` are those of the records of a step, about, and `sample_cost` what a sample costs, in the same tokens.
    """

    num_steps: int
    interval: int
    samples_a_step: float
    tokens_a_step: float
    sample_cost: int

    def steps(self) -> list[int]:
        """After how many steps it is evaluated, in order."""
        return sorted({*range(0, self.num_steps + 1, self.interval), self.num_steps})

    def has_sample(self, step: int) -> bool:
        """Whether the evaluation after `step` steps shows one: where another has become affordable since the one before."""
        if self.samples_a_step == 0:
            return False
        before = (step - 1) // self.interval * self.interval
        return step == self.num_steps or self._affordable(step) > self._affordable(before)

    def _affordable(self, step: int) -> int:
        return math.floor(step * self.samples_a_step) if step > 0 else 0


def schedule_of(
    config: TrainConfig,
    num_steps: int,
    train: Sequence[Example],
    validation: Sequence[Example],
    sample_tokens: int,
) -> Schedule:
    """The schedule of a training of `num_steps` steps whose sample answers have at most `sample_tokens` tokens."""
    tokens_a_step = config.batch_size * _mean_length(train)
    validated = len(validation) * _mean_length(validation) / _TRAINED_TOKENS_A_VALIDATED
    by_share = math.ceil(validated / (config.eval_share * tokens_a_step))
    interval = config.eval_steps or max(1, num_steps // VALIDATIONS, min(by_share, num_steps))
    sample_cost = TOKENS_A_GENERATED_TOKEN * sample_tokens
    samples_a_step = config.sample_share * tokens_a_step / sample_cost
    return Schedule(num_steps, interval, samples_a_step, tokens_a_step, sample_cost)


def _mean_length(examples: Sequence[Example]) -> float:
    """Tokens of a record, of the first few."""
    lengths = [len(example) for example in islice(examples, _MEASURED_RECORDS)]
    return sum(lengths) / max(1, len(lengths))
