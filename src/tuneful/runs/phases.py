"""The phases of a run and how long each takes: their names, what they are called, and how the later ones follow from the earlier.

Stands under `estimate.py`, which measures pieces before a run is begun, and `training.py`, which knows after two steps how long
the rest will take. The phases after the training do again what those before it did, with the same records.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tuneful.config import Config
from tuneful.files import written
from tuneful.numbers import rough_duration
from tuneful.runs.schema import Evaluation, Event, Step
from tuneful.signals import Interrupted, Signals
from tuneful.train.distributed import ProcessGroup
from tuneful.train.loop import no_op
from tuneful.train.schedule import Schedule

LABELS: Mapping[str, str] = {
    "setup": "reading and loading",
    "self_check": "self-check",
    "answers_base": "answers before",
    "references_base": "reference losses before",
    "documents_base": "documents before",
    "general_base": "general text before",
    "tests_base": "tests before",
    "reference": "reference of the preferences",
    "record_losses_before": "record losses before",
    "training": "training",
    "preference_accuracy": "preference accuracy",
    "record_losses_after": "record losses after",
    "validation_losses": "validation losses",
    "saving": "saving",
    "answers_tuned": "answers after",
    "references_tuned": "reference losses after",
    "documents_tuned": "documents after",
    "general_tuned": "general text after",
    "tests_tuned": "tests after",
    "judging": "judging",
    "checks": "checks",
}
"""Every phase by its name in environment.json, in order. Checkpoints are written while it trains, and counted apart, too."""

_PROBE_BYTES = 32 << 20
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends a run, the one that counts where both came first."""


def check_signals(signals: Signals, group: ProcessGroup) -> None:
    """Raise Interrupted where a signal was received, by any rank."""
    if group.size == 1:
        signals.check()
    else:
        check_received(group.sum(received(signals)))


def received(signals: Signals) -> list[float]:
    """What this rank has received, as numbers that are summed over all ranks: a count of each signal, for `check_received`."""
    return [float(signals.received == number) for number in _SIGNALS]


def check_received(counts: Sequence[float]) -> None:
    """Raise Interrupted where any rank had received a signal."""
    for number, count in zip(_SIGNALS, counts, strict=True):
        if count:
            raise Interrupted(number)


def stop_check(signals: Signals, group: ProcessGroup) -> Callable[[], None]:
    """What may end a step halfway: a signal, where there is one process. Several have to stop at the same event."""
    return signals.check if group.size == 1 else no_op


def in_words(seconds: Mapping[str, float]) -> str:
    """The phases that take a second or more, in order: `training 3 min, saving 20 s`."""
    parts = [f"{LABELS[name]} {rough_duration(seconds[name])}" for name in LABELS if seconds.get(name, 0.0) >= 1]
    return ", ".join(parts) or "less than a second each"


def after_training(measured: Mapping[str, float], saving: float, accuracy: float = 0.0) -> dict[str, float]:
    """What follows the training, in seconds, where `measured` are the phases so far; a judge's time is not known yet.

    `accuracy` is what preferences that were held out take, which nothing before the training is like.
    """
    repeated = ("answers", "references", "documents", "general", "tests")
    again = {f"{name}_tuned": measured.get(f"{name}_base", 0.0) for name in repeated}
    losses = {"preference_accuracy": accuracy, "record_losses_after": measured.get("record_losses_before", 0.0)}
    return {name: seconds for name, seconds in {**losses, "saving": saving, **again}.items() if seconds}


def saving_seconds(config: Config, num_bytes: int, loading: float, folder: Path) -> float:
    """Seconds that saving takes: `num_bytes` written, and what was `loading` seconds ago loaded again to compare."""
    loads = 1
    if config.train.method != "full":
        loads += config.lora.merge  # the base is read a second time, and what was merged once more
    if config.model.save_dtype != "float32":
        loads += 1
    return num_bytes * _seconds_a_byte(folder) + loads * loading


class Pace:
    """How fast a training is that began with this object, from its first evaluation and its second step; the first warms up."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._evaluation: float | None = None

    def training_seconds(self, event: Event, schedule: Schedule) -> float | None:
        """What the whole training takes, once, when `event` makes it known; None before, after, and in one that goes on."""
        if isinstance(event, Evaluation) and event.step == 0:
            self._evaluation = time.monotonic() - self._begun
        if not isinstance(event, Step) or event.step != min(2, schedule.num_steps) or self._evaluation is None:
            return None
        return training_seconds(schedule, event.step_seconds / event.record_tokens, self._evaluation)


def training_seconds(schedule: Schedule, seconds_a_token: float, evaluation: float) -> float:
    """Seconds of a training at that pace, each of whose evaluations takes `evaluation` seconds besides its sample."""
    evaluated = schedule.steps()
    num_tokens = schedule.num_steps * schedule.tokens_a_step
    num_tokens += sum(map(schedule.has_sample, evaluated)) * schedule.sample_cost
    return num_tokens * seconds_a_token + len(evaluated) * evaluation


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _seconds_a_byte(folder: Path) -> float:
    """How long a byte takes to the disk of `folder`, from a small file that is gone afterwards."""
    probe = folder / "probe"

    def write() -> None:
        with written(probe, binary=True) as file:
            file.write(bytes(_PROBE_BYTES))

    try:
        return seconds_of(write) / _PROBE_BYTES
    finally:
        probe.unlink(missing_ok=True)
