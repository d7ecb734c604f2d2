"""What each validation record costs the weights that a training kept: validation.jsonl, by which a sweep measures how much
choosing among its runs flatters the one that is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tuneful.encoding.documents import records_of
from tuneful.runs.phases import stop_check
from tuneful.runs.schema import ValidationLoss
from tuneful.runs.setup import Engine, RunState
from tuneful.train.costs import Costs
from tuneful.train.loop import mean_costs
from tuneful.train.memory import fitted

VALIDATION = "validation.jsonl"


def write_validation(run: RunState, engine: Engine, max_tokens: int | None = None) -> None:
    """Write validation.jsonl, where there are validation records; of a document all its chunks together.

    `max_tokens` is what the training found that a micro-batch may compute, where that is less than the layout says.
    """
    validation = run.dataset.validation
    chunks = list(validation.chunks)  # told apart by identity
    if not chunks:
        return
    stop = stop_check(run.signals, run.group)

    def measured(max_tokens: int) -> Costs | None:
        layout = replace(engine.layout, max_tokens=max_tokens)
        return mean_costs(run.model, chunks, layout, should_stop=stop, group=run.group)

    with run.phase("validation_losses"):
        costs, _, said = fitted(measured, max_tokens or engine.layout.max_tokens, sharded=run.group.sharded)
        run.warn(said)
    assert costs is not None
    record_of, num_records = records_of(validation.chunks), len(validation)
    losses, weights = (
        np.bincount(record_of, weights=values, minlength=num_records)
        for values in ([row[1] for row in costs.of(chunks)], [one.weights.sum(dtype="float64") for one in chunks])
    )
    run.folder.write_rows(
        VALIDATION,
        [
            ValidationLoss(source, float(loss), float(weight))
            for source, loss, weight in zip(validation.sources, losses, weights, strict=True)
        ],
    )
