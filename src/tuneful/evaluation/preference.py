"""What became of preferences that were not trained on, in a sentence for the terminal and the report."""

from __future__ import annotations

from tuneful.runs.schema import PreferenceOutcome


def outcome_in_words(outcome: PreferenceOutcome) -> str:
    """How many of the held-out records are on the right side, with the interval, and where the chosen responses went."""
    records = f"{outcome.num_records:,} {outcome.subset} record" + ("" if outcome.num_records == 1 else "s")
    if outcome.accuracy is None or outcome.accuracy_low is None or outcome.accuracy_high is None:
        return f"loss {outcome.loss:.4f} on {records}"
    interval = f"{outcome.accuracy_low:.1%} to {outcome.accuracy_high:.1%}"
    if outcome.confidence is not None:
        interval = f"{outcome.confidence:.0%} interval {interval}"
    said = f"preference accuracy {outcome.accuracy:.1%} ({interval}) on {records}"
    if (margin := outcome.figures.get("rewards_margins")) is not None:
        said += f", mean margin {margin:.3g}"
    if (logratio := outcome.figures.get("chosen_logratio")) is None:
        return said
    more, below = "more" if logratio >= 0 else "less", outcome.figures.get("chosen_below_reference", 0.0)
    return (
        f"{said}; chosen responses are {more} probable than under the reference by {abs(logratio):.3g} nats a token, {below:.0%} "
        "of them less"
    )
