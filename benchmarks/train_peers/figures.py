"""From seconds to figures: rates, paired ratios with their spread, and the table.

Systems are compared step by step on the same batches. A round's ratio is the median over its steps of the log of
the paired times; the ratio is the exponential of the mean over rounds, and its 95 % interval comes from drawing the
rounds again, 10,000 times.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import fmean, median, quantiles

NUM_RESAMPLES = 10_000
GIB = 2**30

Rounds = list[list[float]]  # seconds by round and step


@dataclass(frozen=True)
class Ratio:
    """How many times the reference's time a system takes, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One system on one work: its figures, or the reason why there are none."""

    label: str
    void: str | None = None
    tokens_per_second: float = 0.0
    step_seconds: float = 0.0
    step_quartiles: tuple[float, float] = (0.0, 0.0)
    epoch_seconds: float = 0.0
    peak_bytes: int = 0
    fraction_of_roofline: float = 0.0
    first_loss: float = math.nan
    first_loss_off: float = math.nan
    ratio: Ratio | None = None


def paired_ratio(system: Rounds, reference: Rounds) -> Ratio:
    """The system's time over the reference's."""
    logs = [
        median(math.log(ours / theirs) for ours, theirs in zip(steps, reference_steps, strict=True))
        for steps, reference_steps in zip(system, reference, strict=True)
    ]
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(logs, k=len(logs))) for _ in range(NUM_RESAMPLES))
    low, high = (means[round(share * (NUM_RESAMPLES - 1))] for share in (0.025, 0.975))
    return Ratio(math.exp(fmean(logs)), math.exp(low), math.exp(high))


def measured_row(
    label: str,
    rounds: Rounds,
    *,
    tokens: Rounds,
    rooflines: Rounds,
    steps_per_epoch: float,
    peak_bytes: int,
    first_loss: float,
    first_loss_off: float,
    reference: Rounds | None,
) -> Row:
    """The figures of a system from its step times; `tokens` and `rooflines` hold those of the same steps."""
    round_seconds = [sum(steps) for steps in rounds]
    low, _, high = quantiles([seconds for steps in rounds for seconds in steps], n=4)
    mean_step = median(fmean(steps) for steps in rounds)
    return Row(
        label=label,
        tokens_per_second=median(sum(t) / s for t, s in zip(tokens, round_seconds, strict=True)),
        step_seconds=median(seconds for steps in rounds for seconds in steps),
        step_quartiles=(low, high),
        epoch_seconds=mean_step * steps_per_epoch,
        peak_bytes=peak_bytes,
        fraction_of_roofline=median(sum(f) / s for f, s in zip(rooflines, round_seconds, strict=True)),
        first_loss=first_loss,
        first_loss_off=first_loss_off,
        ratio=paired_ratio(rounds, reference) if reference is not None else None,
    )


def table(rows: list[Row], reference: str) -> str:
    """A Markdown table; void rows stand below it."""
    head = (
        "system",
        "tokens/s",
        "s/step [quartiles]",
        "s/epoch",
        "peak GiB",
        f"time / {reference} [95 %]",
        "of roofline",
        "loss of step 1 (off)",
    )
    cells = [_cells(row) for row in rows if row.void is None]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    align = [str.ljust] + [str.rjust] * (len(head) - 1)

    def line(values: tuple[str, ...]) -> str:
        return "| " + " | ".join(a(v, w) for a, v, w in zip(align, values, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    voids = [f"- {row.label}: void, {row.void}" for row in rows if row.void is not None]
    return "\n".join([line(head), rule, *map(line, cells)] + (["", *voids] if voids else []))


def _cells(row: Row) -> tuple[str, ...]:
    ratio = f"{row.ratio.value:.2f} [{row.ratio.low:.2f}, {row.ratio.high:.2f}]" if row.ratio else "-"
    return (
        row.label,
        f"{row.tokens_per_second:,.0f}",
        "{:.3f} [{:.3f}, {:.3f}]".format(row.step_seconds, *row.step_quartiles),
        f"{row.epoch_seconds:,.1f}",
        f"{row.peak_bytes / GIB:.2f}",
        ratio,
        f"{row.fraction_of_roofline:.0%}",
        f"{row.first_loss:.4f} ({row.first_loss_off:.0e})",
    )
