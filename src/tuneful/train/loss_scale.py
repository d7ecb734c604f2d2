"""A loss scale for float16: gradients are computed of a multiple of the loss, and divided by it where they are float32.

float16 holds nothing below 6e-8, and gradients are often smaller; so they are made larger on the way (Micikevicius et al. 2018).
How much larger is found out: where one is too large for float16, which ends at 65,504, the scale is halved and the same step
computed again, so that no record goes untrained and what is learned is the same; after many steps without that it is doubled.
The scale is part of the training's state, and so of its checkpoints.
"""

from __future__ import annotations

from tuneful.runs.schema import Notice, TrainingState

FIRST_SCALE, LEAST_SCALE, LARGEST_SCALE = 2.0**16, 1.0, 2.0**24
STEPS_AT_A_SCALE = 2_000
"""Steps after which a larger scale is tried."""


def current(state: TrainingState, *, is_scaled: bool) -> float:
    """What the loss of the next step is multiplied by: 1 where the training `is_scaled` not."""
    if not is_scaled:
        return 1.0
    if state.loss_scale is None:
        state.loss_scale = FIRST_SCALE
    return state.loss_scale


def lower(state: TrainingState, step: int) -> Notice | None:
    """Halve the scale of `state`, since a gradient of `step` was not finite; None where that helps no more."""
    scale = state.loss_scale
    if scale is None or scale <= LEAST_SCALE:
        return None
    state.loss_scale, state.steps_at_scale = scale / 2, 0
    return Notice(
        step,
        "loss_scale",
        f"a gradient was too large for float16 at a loss scale of {scale:g}: the step is computed again at {scale / 2:g}",
    )


def count(state: TrainingState) -> None:
    """A step went well; after `STEPS_AT_A_SCALE` of them the scale is doubled."""
    if state.loss_scale is None:
        return
    state.steps_at_scale += 1
    if state.steps_at_scale >= STEPS_AT_A_SCALE and state.loss_scale < LARGEST_SCALE:
        state.loss_scale, state.steps_at_scale = state.loss_scale * 2, 0
