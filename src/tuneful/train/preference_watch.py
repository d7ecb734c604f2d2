"""What a person should hear of while preferences are learned, from the figures of the last steps.

A margin grows as well where both responses fall and the rejected one falls further: the loss is content, and the model forgets
how to answer at all (Pal et al. 2024). And where every pair is far apart, there is nothing left to learn but to be further apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuneful.runs.schema import Notice, TrainingState

_WINDOW, _LEAST_STEPS = 16, 8
CHOSEN_FALLS = 0.1
"""Nats a token below the reference, over the window, that a person hears of."""
MARGINS_EXPLODE = 10.0
"""Margin of rewards, at an accuracy of 1, at which the sigmoid loss is 5e-5."""
_FIGURES = ("chosen_logratio", "chosen_below_reference", "rewards_accuracies", "rewards_margins")


def preference_notices(step: int, figures: Mapping[str, float], state: TrainingState) -> list[Notice]:
    """Notices of `step`, each given once in a training; `state` remembers the last steps and what was said."""
    if "rewards_margins" not in figures:
        return []
    state.recent_preferences = [*state.recent_preferences, [figures.get(name, 0.0) for name in _FIGURES]][-_WINDOW:]
    recent = state.recent_preferences
    if len(recent) < _LEAST_STEPS:
        return []
    logratio, below, accuracy, margin = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    over = f"over the last {len(recent)} steps"
    found = []
    has_reference = not figures.keys().isdisjoint(("chosen_logratio", "kl"))
    if logratio < -CHOSEN_FALLS:
        why = "the margin grows because rejected ones fall further" if margin > 0 else "rejected ones fall no further"
        found.append(
            Notice(
                step,
                "chosen_falls",
                f"chosen responses have become less probable than under the reference, by {-logratio:.2f} nats a token {over} "
                f"({below:.0%} of them): {why}. Give their likelihood more weight (`sft` beside what preference.loss_type "
                "has, its weight in preference.loss_weights), or lower train.learning_rate",
            )
        )
    if accuracy == 1 and margin > MARGINS_EXPLODE:
        found.append(
            Notice(
                step,
                "margins_explode",
                f"every pair {over} was ranked right, by a margin of {margin:.1f}: there is nothing left to learn from them but "
                "to be further apart. "
                + (
                    "Fewer epochs, a lower train.learning_rate or a larger preference.beta keep the model closer to the reference"
                    if has_reference
                    else "Fewer epochs or a lower train.learning_rate keep the model closer to what it was"
                ),
            )
        )
    new = [notice for notice in found if notice.notice not in state.noticed]
    state.noticed = [*state.noticed, *(notice.notice for notice in new)]
    return new
