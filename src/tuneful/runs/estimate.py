"""What a run will take, estimated before it is begun: what `--dry-run` does.

Steps and tokens are counted exactly. Time and memory come from two steps that are really taken, on records of the run
itself: the longest step, which is the peak, and one of middling length, which sets the pace; one answer and a part of the
validation set are timed too. Nothing is written: the two steps change weights in memory only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from tuneful.batch.order import epoch_order, num_steps
from tuneful.config import TrainConfig
from tuneful.console import Terminal
from tuneful.files import free_bytes
from tuneful.infer.generate import answer
from tuneful.numbers import rough_duration
from tuneful.runs.disk import disk_bytes
from tuneful.runs.schema import Step
from tuneful.runs.setup import Engine, RunState
from tuneful.runs.training import sample
from tuneful.train.loop import Training, evaluation_is_due, mean_loss
from tuneful.types import Example

_TIMED_RECORDS = 32


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is estimated. Tokens are those of records as given, over the whole run; seconds are of this machine as it is now."""

    num_steps: int
    num_evaluations: int
    record_tokens: int
    trained_tokens: int
    measured_tokens: tuple[int, int]
    measured_seconds: tuple[float, float]
    training_seconds: float
    evaluation_seconds: float
    answer_seconds: float
    peak_memory_bytes: int
    memory_bytes: int
    model_bytes: int
    checkpoint_bytes: int
    num_checkpoints: int
    free_disk_bytes: int

    @property
    def total_seconds(self) -> float:
        """Training, its evaluations, and the answers before and after."""
        return self.training_seconds + self.evaluation_seconds + self.answer_seconds

    @property
    def disk_bytes(self) -> int:
        """The model and as many checkpoints as there may be at once."""
        return self.model_bytes + self.num_checkpoints * self.checkpoint_bytes


def estimate_run(run: RunState, engine: Engine, *, folder: Path) -> Estimate:
    """The estimate of `run`, whose training is prepared; `folder` is where it would be written. The run is spent after this."""
    config, train = run.config.train, run.dataset.train.examples
    lengths = np.array([len(example) for example in train])
    trained = np.array([int((example.weights > 0).sum()) for example in train])
    visits = _visits(len(train), config)
    steps = np.add.reduceat(lengths[visits], np.arange(0, len(visits), config.batch_size))
    longest, middling = int(steps.argmax()), int(np.argsort(steps)[len(steps) // 2])
    taken = [
        _take(run, engine, [train[index] for index in visits[at * config.batch_size : (at + 1) * config.batch_size]])
        for at in (longest, middling)
    ]
    num_evaluations = sum(evaluation_is_due(step, len(steps), config) for step in range(len(steps) + 1))
    evaluation, answering = _seconds_of_an_evaluation(run, engine), 0.0
    if run.verb == "run" and len(run.dataset.test):
        answering = 2 * _seconds_of_answers(run)
    training_seconds = taken[1].step_seconds * int(steps.sum()) / taken[1].record_tokens
    model_bytes, checkpoint_bytes = disk_bytes(run.model, engine.optimizer, config, run.dataset)
    return Estimate(
        num_steps=len(steps),
        num_evaluations=num_evaluations,
        record_tokens=int(steps.sum()),
        trained_tokens=int(trained[visits].sum()),
        measured_tokens=(taken[0].record_tokens, taken[1].record_tokens),
        measured_seconds=(taken[0].step_seconds, taken[1].step_seconds),
        training_seconds=training_seconds,
        evaluation_seconds=num_evaluations * evaluation,
        answer_seconds=answering,
        peak_memory_bytes=_peak_memory(run, engine),
        memory_bytes=_memory(run),
        model_bytes=model_bytes,
        checkpoint_bytes=checkpoint_bytes,
        num_checkpoints=_num_checkpoints(config, len(steps), training_seconds),
        free_disk_bytes=free_bytes(folder),
    )


def show_estimate(estimate: Estimate, terminal: Terminal) -> None:
    """The estimate on the terminal."""
    (long_tokens, tokens), (long_seconds, seconds) = estimate.measured_tokens, estimate.measured_seconds
    terminal.heading("Estimate")
    terminal.facts(
        {
            "steps": f"{estimate.num_steps:,} and {estimate.num_evaluations:,} evaluations",
            "tokens": f"{estimate.record_tokens:,}, of which {estimate.trained_tokens:,} carry loss",
            "measured": f"a step of {tokens:,} tokens in {seconds:.2f} s, the longest ({long_tokens:,}) in {long_seconds:.2f} s",
            "time": f"{rough_duration(estimate.total_seconds)}: training {rough_duration(estimate.training_seconds)}, "
            f"evaluations {rough_duration(estimate.evaluation_seconds)}, answers {rough_duration(estimate.answer_seconds)}",
            "memory": f"{estimate.peak_memory_bytes / 1e9:,.1f} GB at the longest step, of "
            f"{estimate.memory_bytes / 1e9:,.1f} GB",
            "disk": f"{estimate.disk_bytes / 1e9:,.1f} GB (model {estimate.model_bytes / 1e9:,.1f}, "
            f"{estimate.num_checkpoints} checkpoints of {estimate.checkpoint_bytes / 1e9:,.1f}), of "
            f"{estimate.free_disk_bytes / 1e9:,.1f} GB free",
        }
    )


def _visits(num_examples: int, config: TrainConfig) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The index of every record that the run visits, in order."""
    total = num_steps(num_examples, config.batch_size, config.num_train_epochs, config.max_steps)
    positions = total * config.batch_size
    if config.max_steps is None:
        positions = min(positions, int(np.ceil(round(config.num_train_epochs * num_examples, 6))))
    epochs = range((positions - 1) // num_examples + 1)
    return np.concatenate([epoch_order(num_examples, config.seed, epoch) for epoch in epochs])[:positions]


def _take(run: RunState, engine: Engine, examples: Sequence[Example]) -> Step:
    """One real step on `examples`, and nothing else."""
    config = run.config.train.model_copy(update={"batch_size": len(examples), "max_steps": 1, "keep": "last"})
    training = Training(run.model, engine.optimizer, examples, [], config, engine.layout)
    return next(event for event in training.run() if isinstance(event, Step))


def _seconds_of_an_evaluation(run: RunState, engine: Engine) -> float:
    """A part of the validation set, counted up to the whole of it, and the sample answer."""
    examples = run.dataset.validation.examples
    part = examples[:_TIMED_RECORDS]
    share = sum(map(len, part)) / max(1, sum(map(len, examples)))
    loss = _seconds(lambda: mean_loss(run.model, part, engine.layout)) / share if part else 0.0
    return loss + _seconds(lambda: sample(run, 0))


def _seconds_of_answers(run: RunState) -> float:
    """One batch of test answers, counted up to the whole set."""
    batch = run.dataset.test.conversations[: run.config.generate.batch_size]
    seconds = _seconds(lambda: answer(run.model, run.encoder, batch, run.config.generate))
    return seconds * len(run.dataset.test) / len(batch)


def _num_checkpoints(config: TrainConfig, num_steps: int, training_seconds: float) -> int:
    """How many may lie there at once: those that are kept, and the one being written."""
    by_steps = num_steps // config.save_steps if config.save_steps else 0
    by_time = int(training_seconds // (60 * config.save_minutes)) if config.save_minutes else 0
    return min(by_steps + by_time, config.save_total_limit + 1)


def _peak_memory(run: RunState, engine: Engine) -> int:
    """Bytes at the longest step: freed memory is kept, so what the process holds after it is what it held.

    The weights of the best evaluation come on top; no evaluation was remembered yet.
    """
    kept = sum(weights.numel() * weights.element_size() for weights in engine.optimizer.weights().values())
    kept = kept if run.config.train.keep == "best" and len(run.dataset.validation) else 0
    if run.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(run.device))
    return int(psutil.Process().memory_info().rss) + kept


def _memory(run: RunState) -> int:
    if run.device.type == "cuda":
        return int(torch.cuda.get_device_properties(run.device).total_memory)
    return int(psutil.virtual_memory().total)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
