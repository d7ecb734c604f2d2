"""The training of a run: steps with their checkpoints and metrics, from the newest whole checkpoint on; then the model is saved.

On a signal a checkpoint of the last step is written, unless a second signal comes, and the run ends there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneful.config import TrainConfig
from tuneful.encoding.template import save_template_name
from tuneful.export.huggingface import Shipped, save_model, verify_export
from tuneful.infer.generate import answer
from tuneful.model.load import load_model
from tuneful.model.lora import restore_adapter
from tuneful.model.memory import give_back_freed_memory, small_copies, stop_keeping_freed_memory
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.precision import cast_parameters
from tuneful.numbers import rough_duration
from tuneful.runs.adapter import save_with_adapter
from tuneful.runs.card import describe_model
from tuneful.runs.disk import disk_bytes
from tuneful.runs.folder import differences
from tuneful.runs.phases import (
    Pace,
    after_training,
    check_received,
    check_signals,
    in_words,
    received,
    saving_seconds,
    stop_check,
)
from tuneful.runs.preference import begin_objective, held_out, measure_held_out
from tuneful.runs.progress import training_progress
from tuneful.runs.resume import check_changes
from tuneful.runs.schema import (
    CheckpointDocument,
    Evaluation,
    Event,
    Notice,
    Step,
    TrainingState,
    TrainingSummary,
    as_row,
    read_strictly,
)
from tuneful.runs.setup import Engine, RunState
from tuneful.runs.sharded import save_model_of_all_ranks, take_saved
from tuneful.runs.siblings import first_evaluation_of_siblings
from tuneful.runs.trackers import open_trackers
from tuneful.runs.validation import VALIDATION, write_validation
from tuneful.signals import Interrupted
from tuneful.train.checkpoint import check_finite, newest_checkpoint, quarantine, save_checkpoint
from tuneful.train.distributed import SINGLE_PROCESS
from tuneful.train.loop import Training, record_nll, remember
from tuneful.train.objective import RESPONSE_LOSS
from tuneful.train.progress import LossTracker, rank
from tuneful.train.slices import fill
from tuneful.types import Answer

_VERIFIED_PROMPTS = 4
_FORWARD_SHARE = 1 / 3
"""What a forward takes of a step, whose backward is twice as much."""


def train(run: RunState, engine: Engine, pause_at: float | None = None) -> bool:
    """Finetune, from the newest whole checkpoint where there is one; a line of metrics.jsonl an event.

    Where an earlier process has trained and saved the model there is nothing to do. On a signal a checkpoint is written,
    unless a second one comes, and Interrupted raised. At the first evaluation after `pause_at` of the steps, a share, it stops
    with a checkpoint, and False is returned: it is to go on later. A training that might have been paused ends with what each
    validation record costs.
    """
    run.terminal.heading("Training")
    if run.group.broadcast(run.folder.has_model):
        run.terminal.say("trained and saved already")
        return True
    give_back_freed_memory()  # answers took much
    config, examples = run.config.train, run.dataset.train.chunks
    loss_tracker = LossTracker(len(examples))
    objective = begin_objective(run, engine)
    state = _newest_state(run, engine, loss_tracker)
    records_all = run.config.report.record_losses == "all"
    if state.step == 0 and records_all:
        loss_tracker.before[:] = _record_losses(run, engine, "before")
    training = Training(
        run.model,
        engine.optimizer,
        examples,
        run.dataset.validation.chunks,
        config,
        engine.layout,
        lambda step: sample(run, step),
        sample_tokens=run.config.generate.max_new_tokens,
        replay=run.replay,
        objective=objective,
        loss_tracker=loss_tracker,
        state=state,
        should_stop=stop_check(run.signals, run.group),
        group=run.group,
        mixture=run.mixture,
    )
    _take_first_evaluation(run, state)
    if not _take_steps(run, training, pause_at):
        return False
    _tell_how_it_ended(run, training)
    measure_held_out(run, engine, objective, state.max_tokens)
    if records_all:
        loss_tracker.after[:] = _record_losses(run, engine, "after")
    if pause_at is not None and objective is RESPONSE_LOSS:
        write_validation(run, engine, state.max_tokens)
    run.folder.write_rows("records.jsonl", rank(loss_tracker, examples))
    run.folder.note_finished("training.json", "records.jsonl", "metrics.jsonl", VALIDATION)
    return True


def finish_training(engine: Engine) -> None:
    """The model has its trained weights in float32; the memory of the optimizer and of the activations is the system's again."""
    engine.optimizer.masters_to_model()
    engine.optimizer.release()
    stop_keeping_freed_memory()


def save(run: RunState, engine: Engine) -> None:
    """The trained model as a folder, loaded again and compared before this returns.

    The model goes on in the precision that it was trained in.
    """
    saved_before, is_adapter = run.group.broadcast(run.folder.has_model), run.method.adapter is not None
    if not saved_before:
        with run.phase("saving"), run.signals.waiting():
            _save_model(run, run.model)
        check_signals(run.signals, run.group)
        run.group.wait()
    if run.group.sharded:
        if saved_before:
            take_saved(run)
    elif is_in_4_bits(run.model):
        restore_adapter(run.method.adapter, run.folder.adapter)
    elif run.method.adapter is not None:
        run.take_model(load_model(str(run.folder.trained), dtype=engine.dtype).model)
    elif not is_adapter and (
        saved_before or run.config.model.save_dtype != "float32"
    ):  # what is measured is what was saved
        cast_parameters(run.model, engine.dtype)
        give_back_freed_memory()
        dtype = None if engine.dtype is torch.float32 else engine.dtype
        fill(run.model, load_model(str(run.folder.trained), dtype=dtype).model.state_dict())
    if not run.group.sharded:
        cast_parameters(run.model, engine.dtype)
    give_back_freed_memory()


def sample(run: RunState, step: int) -> Answer:
    """The model's answer to one record, as evaluations show it."""
    source = next(subset for subset in (run.dataset.validation, run.dataset.train) if len(subset))
    with small_copies(), run.signals.waiting(run.group.size > 1):
        return answer(run.model, run.encoder, source.conversations[:1], run.config.generate, seed=step)[0]


# Steps


def _take_steps(run: RunState, training: Training, pause_at: float | None) -> bool:
    """Run the training: write, track and show each event; save checkpoints where they are due, on a signal, and at a pause.

    Whether it is at its end.
    """
    state, train = training.state, run.config.train
    if _pause_is_due(training, pause_at):
        return False
    saved, pace = _Saved(state.step, time.monotonic()), Pace()
    training.tell = lambda: [*received(run.signals), float(run.group.is_main and _minutes_are_over(train, saved))]
    trackers = open_trackers(train.report_to if run.group.is_main else (), run.folder.path, run.config.model_dump())
    with (
        run.phase("training"),
        training_progress(run.terminal, state.step, training.num_steps) as show,
        run.signals.waiting(),
    ):
        try:
            for event in training.run():
                _estimate_rest(run, training, pace, event)
                row = as_row(event)
                run.folder.append_metrics(row)
                run.warn(trackers.log(row))
                show(event)
                if isinstance(event, Notice):  # a rank may have one of its own
                    continue
                if isinstance(event, Evaluation):
                    give_back_freed_memory()  # the buffers of an evaluation are of other sizes than those of a step
                if isinstance(event, Step) and _save_is_due(training, saved):
                    _save_checkpoint(run, training)
                    saved = _Saved(state.step, time.monotonic())
                _check_signals_at(run, training, event)
                if _pause_is_due(training, pause_at):
                    if state.step > saved.step:
                        _save_checkpoint(run, training)
                    return False
        except Interrupted:
            if state.step > saved.step and not run.signals.second_signal:
                run.terminal.say(f"interrupted: saving a checkpoint of step {state.step}", style="yellow")
                _save_checkpoint(run, training)
            raise
        finally:
            run.warn(trackers.close())
    return True


def _take_first_evaluation(run: RunState, state: TrainingState) -> None:
    """Where this run begins as a sibling did, the evaluation before the first step is that one's."""
    if state.step or state.evaluated:
        return
    found = first_evaluation_of_siblings(run.siblings, run.folder.begun)
    if found is not None:
        run.folder.append_metrics(as_row(found))
        remember(state, found.validation_loss)


def _pause_is_due(training: Training, pause_at: float | None) -> bool:
    """Whether the training stands at an evaluation after `pause_at` of its steps, and not at its end."""
    state, total = training.state, training.num_steps
    return pause_at is not None and state.evaluated and pause_at * total <= state.step < total


def _estimate_rest(run: RunState, training: Training, pace: Pace, event: Event) -> None:
    """Where `event` makes the pace known: say how long the rest will take, and keep that to be compared."""
    if (seconds := pace.training_seconds(event, training.schedule)) is None or not run.group.is_main:
        return
    num_bytes, _ = disk_bytes(run.model, training.optimizer, run.config, run.dataset)
    saving = saving_seconds(run.config, num_bytes, run.loading_seconds, run.folder.path)
    subset, accuracy = held_out(run), 0.0
    if subset is not None and isinstance(event, Step):
        accuracy = event.step_seconds / event.record_tokens * int(subset.sizes.num_tokens.sum()) * _FORWARD_SHARE
    run.estimated_seconds = {"training": seconds, **after_training(run.phase_seconds, saving, accuracy)}
    total = sum(run.estimated_seconds.values())
    run.terminal.say(f"about {rough_duration(total)} in all: {in_words(run.estimated_seconds)}", style="dim")


def _record_losses(run: RunState, engine: Engine, when: str) -> list[float]:
    train = run.dataset.train
    run.terminal.say(f"loss of each of {len(train.chunks):,} training records, {when} training", style="dim")
    with run.phase(f"record_losses_{when}"):
        return record_nll(run.model, train.chunks, engine.layout, should_stop=stop_check(run.signals, run.group))


def _tell_how_it_ended(run: RunState, training: Training) -> None:
    """Say, and write as training.json, which weights the run ends with and why."""
    state, total = training.state, training.num_steps
    keeps_best = run.config.train.keep == "best" and state.best_step is not None
    kept_step = state.best_step if keeps_best and state.best_step is not None else state.step
    kept_loss = state.best_loss if kept_step == state.best_step else state.last_loss
    summary = TrainingSummary(
        state.step, total, state.best_step, state.best_loss, kept_step, state.base_loss, kept_loss
    )
    run.folder.write_document("training.json", summary)
    if state.step < total:
        evaluations = "evaluation" if state.num_worse == 1 else f"{state.num_worse} evaluations in a row"
        run.terminal.say(
            f"stopped after step {state.step} of {total}: no lower validation loss in the last {evaluations}"
        )
    if state.best_step not in (None, state.step):
        kept = "those weights are kept" if keeps_best else "the last weights are kept all the same (train.keep: last)"
        run.terminal.say(f"validation loss was lowest at step {state.best_step} ({state.best_loss:.4f}): {kept}")
    if kept_loss is not None and state.base_loss is not None and kept_loss > state.base_loss:
        run.warn(
            [
                f"the weights that are kept (step {kept_step}, validation loss {kept_loss:.4f}) are worse than the model as it "
                f"came ({state.base_loss:.4f}). Lower train.learning_rate, or look at the data with `tuneful check`"
            ]
        )


# Checkpoints


def _newest_state(run: RunState, engine: Engine, loss_tracker: LossTracker) -> TrainingState:
    """Where the training stands: the newest whole checkpoint's tensors in optimizer and loss tracker, and its state."""
    checkpoint, damaged = newest_checkpoint(run.folder.checkpoints, run.group)
    run.group.wait()  # all have looked before anything is moved
    for one in damaged if run.group.is_main else ():
        run.warn([f"{one.path} is damaged ({one.reason}) and not used; it is now {quarantine(one)}"])
    if checkpoint is None:
        run.folder.cut_metrics(0)
        return TrainingState()
    document, begun = read_strictly(CheckpointDocument, checkpoint.document, str(checkpoint.path)), run.folder.begun
    changed = differences(document.training, begun.training)
    check_changes(checkpoint.path, changed, begun.allowed)
    engine.optimizer.restore(
        checkpoint.step, checkpoint.tensors("weights"), checkpoint.tensors("optimizer"), checkpoint.tensors("best")
    )
    if "tokens" not in [one.key for one in changed]:  # what was noted of other records says nothing of these
        loss_tracker.load(checkpoint.tensors("records"))
    if not run.folder.cut_metrics(document.metrics_bytes, document.metrics_sha256):
        run.warn([f"{run.folder.path}/metrics.jsonl is missing: its lines up to step {checkpoint.step} are lost"])
    run.terminal.say(f"going on after step {checkpoint.step}, from {checkpoint.path}")
    state: TrainingState = document.state
    return state


@dataclass(frozen=True, slots=True)
class _Saved:
    """The step of the newest checkpoint, or of the start, and when that was (`time.monotonic`)."""

    step: int
    at: float


def _save_is_due(training: Training, saved: _Saved) -> bool:
    """Whether a checkpoint is to be written after the step at hand: by steps, or because the main rank's clock has said so."""
    save_steps = training.config.save_steps
    by_steps = save_steps is not None and training.state.step - saved.step >= save_steps
    return by_steps or training.heard[-1] > 0


def _minutes_are_over(config: TrainConfig, saved: _Saved) -> bool:
    return config.save_minutes is not None and time.monotonic() - saved.at >= 60 * config.save_minutes


def _check_signals_at(run: RunState, training: Training, event: Event) -> None:
    """Raise Interrupted where any rank had received a signal: at a step its sums tell, which all ranks have."""
    if isinstance(event, Step) and run.group.size > 1:
        check_received(training.heard[:-1])
    else:
        check_signals(run.signals, run.group)


def _save_checkpoint(run: RunState, training: Training) -> None:
    state, optimizer, loss_tracker = training.state, training.optimizer, training.loss_tracker
    assert loss_tracker is not None
    kept = optimizer.kept_weights() if state.best_step not in (None, state.step) else {}
    tensors = {
        "weights": optimizer.weights(),
        "optimizer": optimizer.moments(),
        "best": kept,
        "records": loss_tracker.state(),
    }
    writers = run.group if run.group.sharded else SINGLE_PROCESS
    if not run.group.is_main and writers is SINGLE_PROCESS:
        return
    with run.phase("checkpoints"):
        document: dict[str, Any] = {}
        if run.group.is_main:
            document = as_row(CheckpointDocument(state, run.folder.begun.training, *run.folder.flush_metrics()))
        keep = run.config.train.save_total_limit
        path = save_checkpoint(run.folder.checkpoints, state.step, tensors, document, keep=keep, group=writers)
    run.terminal.say(f"step {state.step:>5}  saved {path}", style="dim")


# The trained model


def _save_model(run: RunState, model: PreTrainedModel) -> None:
    """Save what was trained and compare it: the main rank, or all of them where each holds a part."""
    prompts = [run.encoder.prompt_ids(one) for one in run.dataset.train.conversations[:_VERIFIED_PROMPTS]]
    shipped, text, folder = _shipped(run), run.encoder.text, run.folder
    if run.group.sharded:
        save_model_of_all_ranks(run, shipped, prompts)
    if not run.group.is_main:
        return
    if not run.group.sharded:
        check_finite(dict(model.named_parameters()))
        if run.method.adapter is None:
            save_model(model, folder.model, shipped, describe_model(run), dtype=run.config.model.save_dtype)
            verify_export(model, folder.model, prompts)
        else:
            save_with_adapter(run, shipped, prompts)
    if folder.trained == folder.model:
        save_template_name(folder.model, text.template.name)
    folder.note_finished("model", "adapter")


def _shipped(run: RunState) -> Shipped:
    """What goes with the weights: the tokenizer, and the template as a chat template."""
    text, tokenizer = run.encoder.text, run.pretrained.tokenizer
    bos = tokenizer.bos_token if text.bos_token_ids else ""
    end = tokenizer.convert_ids_to_tokens(text.end_token_id)
    chat_template = text.template.chat_template(bos_text=bos, end_text=end)
    return Shipped(tokenizer, chat_template, tuple(sorted(text.stop_token_ids)), run.pretrained.name)
