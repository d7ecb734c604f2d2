"""The reference of a training on preferences: the model as training starts from it, in one number a response.

It is computed before the first step, once, by the code of the steps on the micro-batches of the steps, so that the model's own
log-probabilities at step 0 are the same bits. Of full finetuning that is the model as it was read; of a new adapter, which
changes nothing yet, its base; of an adapter that goes on being trained, that adapter on its base; of qlora with the base in its 4
bits. Nothing is switched off or copied for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from tuneful.errors import TunefulError
from tuneful.model.precision import computes_in
from tuneful.runs.schema import Layout
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup
from tuneful.train.layout import own_micro_batches
from tuneful.train.loop import measure_in, no_op, without_gradients
from tuneful.train.loss import micro_batch_loss
from tuneful.train.memory import fitted, out_of_memory_says
from tuneful.train.preference import KtoObjective, PreferenceObjective, response_logps, side_key
from tuneful.types import Example

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""How far the model may be from the reference before the first step, as a share of a log-probability (or of one nat where that is
less). On the machine that computed the reference it is 0; another number of threads, or another processor, rounds otherwise."""


def reference_logps(
    model: PreTrainedModel,
    objective: PreferenceObjective,
    steps: Iterable[Sequence[Example]],
    layout: Layout,
    known: dict[str, float],
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    should_stop: Callable[[], None] = no_op,
) -> Iterator[int]:
    """Add to `known`, by `side_key`, what of each step it does not hold yet; yields how many were added, step by step.

    Every rank has to call with the same; each computes its share and gets all. Where memory runs out, the micro-batches are
    smaller from there on, as those of a training are.
    """

    def own_logps(max_tokens: int) -> list[tuple[str, float]]:
        return [*_own_logps(model, objective, examples, replace(layout, max_tokens=max_tokens), group, should_stop)]

    fits = layout.max_tokens
    for examples in steps:
        before = len(known)
        sides = objective.sides(examples)
        if any(side_key(side) not in known for side in sides):
            own, fits, _ = fitted(own_logps, fits, sharded=group.sharded)
            for key, logp in group.gather([[*one] for one in own]):
                known.setdefault(key, logp)
        others = objective.mismatched(examples) if isinstance(objective, KtoObjective) else []
        if any(side_key(one) not in known for one in others):
            measure = measure_in(model, replace(layout, max_tokens=fits), group, should_stop)
            for one, logp in zip(others, measure(others), strict=True):
                known.setdefault(side_key(one), logp)
        yield len(known) - before


def largest_difference(
    model: PreTrainedModel,
    objective: PreferenceObjective,
    examples: Sequence[Example],
    layout: Layout,
    group: ProcessGroup = SINGLE_PROCESS,
) -> float:
    """How far the log-probabilities of `examples`, in training mode, are from the reference's at most, as shares of the latter.

    Computed without a graph, in smaller micro-batches where memory runs out, as the reference was. TunefulError where it is more
    than rounding: the model is not its reference, and would be trained away from another one.
    """

    def own_difference(max_tokens: int) -> tuple[float, str]:
        return _own_difference(model, objective, examples, replace(layout, max_tokens=max_tokens), group)

    was_training = model.training
    model.train()
    try:
        own, _, _ = fitted(own_difference, layout.max_tokens, sharded=group.sharded)
    finally:
        model.train(was_training)
    worst, where = max(map(tuple, group.gather([[*own]])), key=lambda one: (math.isnan(one[0]), one[0]))
    if not worst <= TOLERANCE[computes_in(model)]:
        raise TunefulError(
            f"the model that training starts from is not its reference: its log-probability is {where}. Before the first "
            "step both are one model; what differs is dropout, an adapter that is on in one and off in the other, or a damaged "
            "reference.json (remove it, and it is computed again)"
        )
    return float(worst)


def _own_difference(
    model: PreTrainedModel,
    objective: PreferenceObjective,
    examples: Sequence[Example],
    layout: Layout,
    group: ProcessGroup,
) -> tuple[float, str]:
    """The largest share by which a side that this rank computes is off, NaN where one is, and a description of it."""
    worst, where = 0.0, ""
    for batch, _ in own_micro_batches(examples, layout, group):
        sides = objective.sides(batch)
        with torch.no_grad(), out_of_memory_says(batch):
            found = micro_batch_loss(model, sides, layout.name)
        for side, logp in zip(sides, response_logps(found, found.record_targets).tolist(), strict=True):
            known = objective.reference[side_key(side)]
            share = abs(logp - known) / max(1.0, abs(known))
            if not math.isnan(worst) and (math.isnan(share) or share > worst):
                worst, where = share, f"{logp:.6g} and not {known:.6g} nats for a response of {side.source}"
    return worst, where


def _own_logps(
    model: PreTrainedModel,
    objective: PreferenceObjective,
    examples: Sequence[Example],
    layout: Layout,
    group: ProcessGroup,
    should_stop: Callable[[], None],
) -> Iterator[tuple[str, float]]:
    """Key and log-probability of each side that this rank computes in a step of `examples`."""
    batches = own_micro_batches(examples, layout, group)
    sides = iter([objective.sides(batch) for batch, _ in batches])
    for (own, found), (_, counts) in zip(without_gradients(model, sides, layout, should_stop), batches, strict=True):
        if counts:
            yield from zip(map(side_key, own), response_logps(found, found.record_targets).tolist(), strict=True)
