"""What a run will take, estimated before it is begun: what `--dry-run` does.

Steps and tokens are counted exactly. Time and memory come from two steps that are really taken, on records of the run
itself: the longest step, which is the peak, and one of middling length, which sets the pace. Of every other phase a small part is
timed: a batch of answers, some losses, some general text, a file on the disk, a few questions to the judge. Nothing is left
behind: the two steps change weights in memory only.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from tuneful.config import TrainConfig
from tuneful.console import Terminal
from tuneful.encoding.encode import Encoder
from tuneful.errors import JudgeError
from tuneful.evaluation.forgetting import score_passages, write_samples
from tuneful.evaluation.task_files import Task
from tuneful.evaluation.tasks import ask_instructions, choice_examples, encoder_of, fewshot
from tuneful.files import free_bytes
from tuneful.infer.generate import answer
from tuneful.judge.run import time_judging
from tuneful.model.load import context_length
from tuneful.model.memory import small_copies, total_bytes
from tuneful.model.nf4_layers import weights_without_values
from tuneful.model.stored import STRETCH
from tuneful.numbers import rough_duration
from tuneful.runs.disk import disk_bytes
from tuneful.runs.fits import BYTES_WHILE_MERGED
from tuneful.runs.measure import has_measured
from tuneful.runs.phases import after_training, in_words, saving_seconds, seconds_of
from tuneful.runs.preference import held_out, make_objective
from tuneful.runs.schema import Step
from tuneful.runs.setup import Engine, RunState
from tuneful.runs.training import finish_training, sample
from tuneful.train.loop import Training, mean_loss
from tuneful.train.objective import AllSides
from tuneful.train.preference import KtoObjective
from tuneful.types import Conversation, Example, sides_of

_TIMED_RECORDS, _TIMED_PASSAGES = 32, 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is estimated. Tokens are those of records as given, over the whole run; seconds are of this machine as it is now.

    `phase_seconds` are all phases by their names in environment.json, where `training` holds its evaluations.
    `phase_memory_bytes` are the peaks of loading (with the self-check), of the answers before training, of training (at the
    longest step) and of saving.
    """

    num_steps: int
    num_evaluations: int
    record_tokens: int
    trained_tokens: int
    measured_tokens: tuple[int, int]
    measured_seconds: tuple[float, float]
    training_seconds: float
    evaluation_seconds: float
    answer_seconds: float
    phase_seconds: Mapping[str, float]
    num_judge_questions: int
    peak_memory_bytes: int
    phase_memory_bytes: Mapping[str, int]
    memory_bytes: int
    model_bytes: int
    checkpoint_bytes: int
    num_checkpoints: int
    free_disk_bytes: int

    @property
    def total_seconds(self) -> float:
        """All phases together."""
        return sum(self.phase_seconds.values())

    @property
    def disk_bytes(self) -> int:
        """The model and as many checkpoints as there may be at once."""
        return self.model_bytes + self.num_checkpoints * self.checkpoint_bytes


def estimate_run(run: RunState, engine: Engine, *, folder: Path) -> Estimate:
    """The estimate of `run`, whose training is prepared; `folder` is where it would be written. The run is spent after this."""
    config, train = run.config.train, run.dataset.train.chunks
    memory = {"loading": _most_bytes_so_far(run)}
    _forget_most_bytes()
    with small_copies():  # as a run answers
        before = _phases_before(run, engine)
    memory |= {"answers": _most_bytes_so_far(run)} if before.get("answers_base") else {}
    _forget_most_bytes()
    lengths = np.array([sum(map(len, sides_of(example))) for example in train])
    trained = np.array([sum(int((side.weights > 0).sum()) for side in sides_of(example)) for example in train])
    visits = _visits(run)
    steps = np.add.reduceat(lengths[visits], np.arange(0, len(visits), config.batch_size))
    longest, middling = int(steps.argmax()), int(np.argsort(steps)[len(steps) // 2])
    training = _training(run, engine, train)
    schedule = training.schedule
    num_evaluations, num_samples = len(schedule.steps()), sum(map(schedule.has_sample, schedule.steps()))
    evaluation, a_sample = _seconds_of_an_evaluation(run, engine), seconds_of(lambda: sample(run, 0))
    is_measured_between = any(0 < step < schedule.num_steps for step in schedule.steps())
    if config.keep == "best" and len(run.dataset.validation) and is_measured_between:
        engine.optimizer.keep_weights()  # as the training does once it has evaluated
    taken = [
        _take(run, engine, [train[index] for index in visits[at * config.batch_size : (at + 1) * config.batch_size]])
        for at in (longest, middling)
    ]
    training_seconds = taken[1].step_seconds * int(steps.sum()) / taken[1].record_tokens
    evaluation_seconds = num_evaluations * evaluation + num_samples * a_sample
    model_bytes, checkpoint_bytes = disk_bytes(run.model, engine.optimizer, run.config, run.dataset)
    memory["training"] = _most_bytes_so_far(run)
    saving = saving_seconds(run.config, model_bytes, run.loading_seconds, run.folder.path)
    subset = held_out(run)
    accuracy = 0.0 if subset is None else _seconds_of_losses(run, engine, AllSides(subset.examples))
    num_questions, judging = _judging(run)
    memory["saving"] = _memory_of_saving(run, engine)
    in_training = training_seconds + evaluation_seconds
    phases = {**before, "training": in_training, **after_training(before, saving, accuracy)}
    phases |= {"judging": judging} if num_questions else {}
    return Estimate(
        num_steps=len(steps),
        num_evaluations=num_evaluations,
        record_tokens=int(steps.sum()),
        trained_tokens=int(trained[visits].sum()),
        measured_tokens=(taken[0].record_tokens, taken[1].record_tokens),
        measured_seconds=(taken[0].step_seconds, taken[1].step_seconds),
        training_seconds=training_seconds,
        evaluation_seconds=evaluation_seconds,
        answer_seconds=2 * before.get("answers_base", 0.0),
        phase_seconds={name: round(seconds, 2) for name, seconds in phases.items()},
        num_judge_questions=num_questions,
        peak_memory_bytes=max(memory.values()),
        phase_memory_bytes=memory,
        memory_bytes=total_bytes(run.device),
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
            "time": f"{rough_duration(estimate.total_seconds)}: {in_words(estimate.phase_seconds)}",
            "memory": f"{estimate.peak_memory_bytes / 1e9:,.1f} GB of {estimate.memory_bytes / 1e9:,.1f} GB: "
            + ", ".join(f"{name} {num_bytes / 1e9:,.1f}" for name, num_bytes in estimate.phase_memory_bytes.items()),
            "disk": f"{estimate.disk_bytes / 1e9:,.1f} GB (model {estimate.model_bytes / 1e9:,.1f}, "
            f"{estimate.num_checkpoints} checkpoints of {estimate.checkpoint_bytes / 1e9:,.1f}), of "
            f"{estimate.free_disk_bytes / 1e9:,.1f} GB free",
        }
    )


def _visits(run: RunState) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The index of every training example that the run visits, in order."""
    return np.array([index for step in run.step_indices() for index in step], dtype=np.int64)


def _take(run: RunState, engine: Engine, examples: Sequence[Example]) -> Step:
    """One real step on `examples`, and nothing else."""
    config = run.config.train.model_copy(update={"batch_size": len(examples), "max_steps": 1, "keep": "last"})
    objective = make_objective(run.config, defaultdict(float))
    training = Training(
        run.model, engine.optimizer, examples, [], config, engine.layout, objective=objective, group=run.group
    )
    return next(event for event in training.run() if isinstance(event, Step))


def _training(run: RunState, engine: Engine, train: Sequence[Example]) -> Training:
    """The training of the run, for its schedule; it is not begun."""
    validation, tokens = run.dataset.validation.chunks, run.config.generate.max_new_tokens
    return Training(
        run.model,
        engine.optimizer,
        train,
        validation,
        run.config.train,
        engine.layout,
        sample_tokens=tokens,
        mixture=run.mixture,
    )


def _phases_before(run: RunState, engine: Engine) -> dict[str, float]:
    """Seconds of every phase before the training: those that were over before this, and parts of the others, counted up."""
    phases = {name: run.phase_seconds.get(name, 0.0) for name in ("setup", "self_check")}
    if run.config.report.record_losses == "all":
        phases["record_losses_before"] = _seconds_of_losses(run, engine, run.dataset.train.chunks)
    if (objective := make_objective(run.config)).uses_reference:
        phases["reference"] = sum(
            _seconds_of_losses(run, engine, AllSides(one.chunks))
            for one in (run.dataset.train, run.dataset.validation, run.dataset.test)
        )
        if isinstance(objective, KtoObjective) and objective.mismatched(run.dataset.train.examples[:2]):
            phases["reference"] *= 2  # of each prompt with another's response, too
    if run.verb == "run" and len(run.asked):
        phases["answers_base"] = _seconds_of_answers(run, run.encoder, run.asked.conversations)
        phases["references_base"] = _seconds_of_losses(run, engine, run.asked.examples)
    if run.verb == "run" and has_measured(run):
        phases["documents_base"] = _seconds_of_losses(run, engine, run.documents.chunks)
        phases["general_base"] = _seconds_of_general(run, engine)
    if run.verb == "run" and run.tasks:
        phases["tests_base"] = sum(_seconds_of_test(run, engine, task) for task in run.tasks)
    return {name: seconds for name, seconds in phases.items() if seconds}


def _seconds_of_test(run: RunState, engine: Engine, task: Task) -> float:
    """Some choices, or a batch of answers, counted up to the whole test."""
    encoder = encoder_of(run.encoder, run.pretrained.tokenizer, run.config.evaluation)
    if task.kind == "choices":
        examples = choice_examples(*fewshot(task, run.config.evaluation, run.config.train.seed), encoder)
        every = [one for own in examples if not isinstance(own, str) for one in own]
        return _seconds_of_losses(run, engine, every)
    asked = list(ask_instructions(task, encoder, context_length(run.model)).conversations.values())
    return _seconds_of_answers(run, encoder, asked)


def _seconds_of_an_evaluation(run: RunState, engine: Engine) -> float:
    return _seconds_of_losses(run, engine, AllSides(run.dataset.validation.chunks))


def _seconds_of_losses(run: RunState, engine: Engine, examples: Sequence[Example]) -> float:
    """A forward over some of `examples`, counted up to all of them."""
    part = examples[:_TIMED_RECORDS]
    if not part:
        return 0.0
    share = sum(map(len, part)) / sum(map(len, examples))
    return seconds_of(lambda: mean_loss(run.model, part, engine.layout)) / share


def _seconds_of_general(run: RunState, engine: Engine) -> float:
    """A few passages, counted up to all of them, and the samples that are written from their beginnings."""
    part = run.general_texts[:_TIMED_PASSAGES]
    if not part:
        return 0.0
    text, layout = run.encoder.text, engine.layout
    share = sum(len(one.text) for one in part) / sum(len(one.text) for one in run.general_texts)
    passages = seconds_of(lambda: score_passages(run.model, text, part, layout)) / share
    return passages + seconds_of(lambda: write_samples(run.model, text, run.general_texts, layout, seed=0))


def _seconds_of_answers(run: RunState, encoder: Encoder, conversations: Sequence[Conversation]) -> float:
    """One batch of answers, counted up to all of them."""
    batch = conversations[: run.config.generate.batch_size]
    if not batch:
        return 0.0
    return seconds_of(lambda: answer(run.model, encoder, batch, run.config.generate)) * len(conversations) / len(batch)


def _judging(run: RunState) -> tuple[int, float]:
    """How many questions the judge of the run is asked, and how long they take by the first few; the run has no judge: none."""
    if run.config.judge.model is None or run.verb != "run" or not len(run.asked):
        return 0, 0.0
    try:
        return time_judging(run.config, run.asked.conversations, run.folder.path, run.terminal)
    except JudgeError as error:
        run.warn([f"the judge's time is not known: {error}"])
        return 0, 0.0


def _num_checkpoints(config: TrainConfig, num_steps: int, training_seconds: float) -> int:
    """How many may lie there at once: those that are kept, and the one being written."""
    by_steps = num_steps // config.save_steps if config.save_steps else 0
    by_time = int(training_seconds // (60 * config.save_minutes)) if config.save_minutes else 0
    return min(by_steps + by_time, config.save_total_limit + 1)


def _most_bytes_so_far(run: RunState) -> int:
    """The most that this process has held until now."""
    if run.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(run.device))
    info = psutil.Process().memory_info()
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return int(getattr(info, "peak_wset", info.rss))


def _forget_most_bytes() -> None:
    """Let the most that this process has held be counted anew, where the system can; elsewhere it is that of all phases."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory_of_saving(run: RunState, engine: Engine) -> int:
    """Bytes while the trained model is saved and compared: what stays once optimizer and activations are gone, and what comes to
    it. The training is done after this."""
    if run.device.type == "cuda":
        return int(torch.cuda.memory_allocated(run.device))
    finish_training(engine)
    settled = int(psutil.Process().memory_info().rss)
    if run.method.adapter is not None:
        with weights_without_values(run.model):
            layers = (module.get_base_layer().weight for module in run.model.modules() if hasattr(module, "lora_A"))
            widest = max((int(weight.numel()) for weight in layers), default=0)
        largest = max(int(parameter.numel()) for parameter in run.model.parameters())
        widest = max(widest, min(STRETCH, largest))  # what no adapter stands beside is written stretch by stretch
        return settled + (BYTES_WHILE_MERGED * widest if run.config.lora.merge else 0)
    # What was saved is read again, and laid out as the weights in memory are: one of them is there twice for a moment.
    sizes = [parameter.numel() * parameter.element_size() for parameter in run.model.parameters()]
    return int(settled + sum(sizes) + max(sizes))
