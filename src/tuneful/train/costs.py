"""What the records of one step, or of an evaluation, cost: what each rank has written down, and what all have together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneful.train.loss import MicroBatchLoss
from tuneful.train.objective import Row, total_weight
from tuneful.types import Example


@dataclass(slots=True, eq=False)
class Costs:
    """What the records of one step cost: its mean `loss`, and by the identity of each record its row under the objective."""

    loss: float = 0.0
    num_computed_tokens: int = 0
    rows: dict[int, Row] = field(default_factory=dict)

    def add(self, batch: Sequence[Example], found: MicroBatchLoss, rows: Sequence[Row]) -> None:
        """Write down what the records of one micro-batch cost."""
        self.num_computed_tokens += found.num_computed_tokens
        self.rows.update(zip(map(id, batch), rows, strict=True))

    def numbers(self, examples: Sequence[Example], num_columns: int) -> list[float]:
        """What this rank has written down of `examples`, those of the whole step: numbers to be summed over all ranks."""
        rows = (self.rows.get(key) for key in dict.fromkeys(map(id, examples)))
        nothing = (0.0,) * (num_columns + 1)
        own = [x for row in rows for x in (nothing if row is None else (*row, 1.0))]
        return [self.loss, self.num_computed_tokens, *own]

    @staticmethod
    def of_sums(sums: Sequence[float], examples: Sequence[Example], num_columns: int) -> Costs:
        """What all ranks have written down together: the sums of their `numbers`."""
        loss, num_computed, *rest = sums
        whole = [rest[start : start + num_columns + 1] for start in range(0, len(rest), num_columns + 1)]
        keys = dict.fromkeys(map(id, examples))
        # a record that stands in a step twice may have two ranks
        rows = {
            key: tuple(value / max(1.0, count) for value in row) for key, (*row, count) in zip(keys, whole, strict=True)
        }
        return Costs(loss, int(num_computed), rows)

    def of(self, examples: Sequence[Example]) -> list[Row]:
        """The rows of some of them."""
        return [self.rows[id(example)] for example in examples]

    def mean(self, examples: Sequence[Example]) -> float:
        """The weighted mean loss of some of them, records of responses."""
        return sum(row[1] for row in self.of(examples)) / total_weight(examples)
