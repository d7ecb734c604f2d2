"""What a sweep found, in sentences and as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tuneful.console import Terminal
from tuneful.numbers import UNKNOWN, count, fixed, plural, rough_percent
from tuneful.runs.schema import SweepDocument, SweepRun
from tuneful.sweep.curve import MIN_SIZES, Gain, PowerLaw
from tuneful.sweep.grid import as_text, in_words

_RIVAL_SHARE = 0.05
"""Runs that would be chosen at least so often are named beside the chosen one."""
_TIMES = {2.0: "Twice", 4.0: "Four times"}


def loss_in_words(loss: float | None) -> str:
    """A loss with four decimals; an en dash where there is none."""
    return fixed(loss, 4)


def choice_in_words(document: SweepDocument) -> list[str]:
    """Which run was chosen and what choosing does to its validation loss; nothing where none was."""
    run = next((one for one in document.runs if one.name == document.chosen), None)
    if run is None:
        return []
    trained = [one for one in document.runs if one.state == "trained" and one.validation_loss is not None]
    among = f"of {len(trained)} that were trained to the end" if len(trained) > 1 else "the only one trained to the end"
    sentences = [
        f"{run.name} ({in_words(run.settings)}) has the lowest validation loss, {loss_in_words(run.validation_loss)}, {among}."
    ]
    if document.optimism is None:
        sentences.append("How much choosing flatters it cannot be measured here.")
    elif run.validation_loss is not None and len(trained) > 1:
        sentences.append(
            f"Choosing among them makes that look lower than it is by about {loss_in_words(document.optimism)}: on new records "
            f"expect {loss_in_words(run.validation_loss + document.optimism)}."
        )
    rivals = [one for one in trained if one is not run and (one.chosen_share or 0) >= _RIVAL_SHARE]
    if run.chosen_share is not None and len(trained) > 1:
        sentences.append(
            f"Were the validation records drawn again, it would be chosen in {rough_percent(run.chosen_share)} of the cases"
            + (f", and {_listed(rivals)}." if rivals else ".")
        )
    return sentences


def _listed(runs: Sequence[SweepRun]) -> str:
    ordered = sorted(runs, key=lambda run: -(run.chosen_share or 0))
    return ", ".join(f"{run.name} in {rough_percent(run.chosen_share or 0)}" for run in ordered)


def curve_in_words(law: PowerLaw | None, sizes: Sequence[int], loss: float, confidence: float) -> str:
    """What more records would bring, or that it cannot be told; `loss` is that at the most records."""
    if law is None:
        missing = (
            f"{plural(len(set(sizes)), 'size')} of the training set, and a curve takes {MIN_SIZES}"
            if len(set(sizes)) < MIN_SIZES
            else f"{plural(len(sizes), 'run')}, and a curve with its noise takes more: sweep train.seed too"
        )
        return f"What more records would bring cannot be told: there are {missing}."
    return " ".join(_gain_in_words(gain, law.num_largest, loss, confidence) for gain in law.gains)


def _gain_in_words(gain: Gain, num_records: int, loss: float, confidence: float) -> str:
    times = _TIMES.get(gain.factor, f"{gain.factor:g} times")
    who = f"{times} the records ({count(gain.factor * num_records)})"
    within = f"({rough_percent(confidence)} interval: from {_change(gain.high)} to {_change(gain.low)})"
    if gain.low > 0:
        fall, then = loss_in_words(gain.value), loss_in_words(loss - gain.value)
        return f"{who} would lower the validation loss by about {fall}, to {then} {within}."
    if gain.high < 0:
        return (
            f"{who} would raise the validation loss by about {loss_in_words(-gain.value)} {within}: it rises with more records, "
            "so look at how the records were drawn, and at train.learning_rate."
        )
    return f"Whether {who[0].lower()}{who[1:]} would lower the validation loss cannot be told {within}."


def _change(gain: float) -> str:
    return f"{loss_in_words(abs(gain))} {'lower' if gain >= 0 else 'higher'}"


def table(document: SweepDocument) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of all runs: the best first, then those that were stopped, then those that failed."""
    columns = [
        "run",
        *document.keys,
        *(f"after {share:g}" for share in document.rungs),
        "validation loss",
        "chosen in",
        "state",
    ]
    order = {"trained": 0, "paused": 1, "waiting": 1, "stopped": 2, "failed": 3}
    infinite = float("inf")

    def place(run: SweepRun) -> tuple[int, int, float]:
        last = run.rungs[-1].validation_loss if run.rungs else None
        loss = run.validation_loss if run.validation_loss is not None else last
        return order[run.state], -len(run.rungs), infinite if loss is None else loss

    rows = []
    for run in sorted(document.runs, key=place):
        reached = {rung.share: rung.validation_loss for rung in run.rungs}
        rows.append(
            [
                run.name,
                *(as_text(run.settings[key]) for key in document.keys),
                *(loss_in_words(reached.get(share)) for share in document.rungs),
                loss_in_words(run.validation_loss),
                UNKNOWN if run.chosen_share is None else rough_percent(run.chosen_share),
                "chosen" if run.name == document.chosen else run.state,
            ]
        )
    return columns, rows


def show_sweep(document: SweepDocument, terminal: Terminal) -> None:
    """The table of all runs and what was found."""
    terminal.heading("Runs of the sweep")
    terminal.table(*table(document))
    terminal.say()
    for sentence in choice_in_words(document):
        terminal.say(sentence)
    for curve in document.curves:
        of = f"{in_words(curve.settings)}: " if curve.settings else ""
        terminal.say(f"{of}{curve.sentence}")
    for note in document.notes:
        terminal.say(note, style="yellow")
    if document.verdict:
        terminal.say(f"On the test set, which was used for this run alone: {document.verdict}")
