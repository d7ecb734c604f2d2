"""The training loop: steps and evaluations, yielded one by one, to be written, shown and saved by the caller.

An optimizer step takes `batch_size` records, cut into micro-batches that fit; each adds its share of one weighted mean over
all targets of the step. The loop holds no files and prints nothing: it yields what happened. Where it stands is a
`TrainingState` of a few numbers; with the optimizer's tensors that is all it takes to go on from there, because the order of
the records and the learning rate follow from the step, and so do the random numbers of dropout.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from tuneful.batch.order import Mixture, all_steps, derived_seed, num_steps, replay_indices
from tuneful.config import TrainConfig
from tuneful.encoding.replay import Replay
from tuneful.runs.schema import Evaluation, Event, Layout, Notice, Sample, Step, TrainingState
from tuneful.train.costs import Costs
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup, is_sharded
from tuneful.train.finite import check_losses, culprits, not_finite, validation_not_finite
from tuneful.train.layout import cut_micro_batches, own_micro_batches
from tuneful.train.loss import MicroBatchLoss, micro_batch_loss
from tuneful.train.memory import MIN_TOKENS, fitted, out_of_memory_says
from tuneful.train.objective import RESPONSE_LOSS, Measure, Objective, Share
from tuneful.train.optimizer import AdamW, learning_rate
from tuneful.train.preference_watch import preference_notices
from tuneful.train.progress import LossTracker
from tuneful.train.schedule import Schedule, schedule_of
from tuneful.types import Answer, Example

_EVALUATED_BYTES = 1 << 28
"""What the logits of a micro-batch that is only evaluated may take, were all its tokens targets."""

_SPIKE_WINDOW, _SPIKE_SIGMAS, _SPIKE_RATIO = 64, 6.0, 1.5
"""A spike stands six standard deviations above the mean of the last 64 steps (at least a quarter of them), and by half."""

Found = TypeVar("Found")


def no_op() -> None:
    """The `should_stop` of a training that is not to be interrupted."""


@dataclass(slots=True, eq=False)
class Training:
    """A training from `state` on: `run` hands out its events, and `model` is finetuned in place while it does.

    `sample(step)` gives an answer to show with an evaluation, of at most `sample_tokens` tokens. `replay` joins the steps at its
    ratio, `mixture` mixes `train`; `loss_tracker` is told what each training record cost. At each event `state`, `loss_tracker`
    and `optimizer` are what a checkpoint holds. `should_stop` is called before every micro-batch and may raise: what was begun is
    abandoned, and `state` is that of the event before. Every rank of `group` makes the same one and gets the same events, its own
    notices aside; of the numbers that each has to `tell` a step hands out the sums (`heard`).
    """

    model: PreTrainedModel
    optimizer: AdamW
    train: Sequence[Example]
    validation: Sequence[Example]
    config: TrainConfig
    layout: Layout
    sample: Callable[[int], Answer] | None = None
    sample_tokens: int = 1
    replay: Replay | None = None
    objective: Objective = RESPONSE_LOSS
    loss_tracker: LossTracker | None = None
    state: TrainingState = field(default_factory=TrainingState)
    should_stop: Callable[[], None] = no_op
    group: ProcessGroup = SINGLE_PROCESS
    mixture: Mixture | None = None
    tell: Callable[[], Sequence[float]] = tuple
    heard: Sequence[float] = ()
    _zero_was_said: bool = field(default=False, init=False)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        config = self.config
        return num_steps(self.epoch_length, config.batch_size, config.num_train_epochs, config.max_steps)

    @property
    def epoch_length(self) -> int:
        """Training examples of an epoch."""
        return len(self.train if self.mixture is None else self.mixture)

    @property
    def schedule(self) -> Schedule:
        """When it is evaluated, and with which evaluations a sample is shown."""
        return schedule_of(self.config, self.num_steps, self.train, self.validation, self.sample_tokens)

    def run(self) -> Iterator[Event]:
        """Every evaluation and step, until the last step or until early stopping.

        Validation is evaluated before the first step, every so many steps (`schedule`) and after the last. At the end the model
        has the weights of the best evaluation, or with `keep: last` those of the last step. Raises TunefulError where a loss or
        gradient is not finite, before the step changes a weight, or where a validation loss is not, and OutOfMemoryError where a
        single record does not fit.
        """
        config, state, total = self.config, self.state, self.num_steps
        interval = self.schedule.interval
        keeps_best = config.keep == "best"
        steps = all_steps(
            self.mixture or len(self.train),
            config.batch_size,
            config.seed,
            config.num_train_epochs,
            config.max_steps,
            first_step=state.step + 1,
        )
        while True:
            if (state.step % interval == 0 or state.step == total) and not state.evaluated:
                yield from self.evaluate()
            if state.step >= total or (config.early_stopping_patience or math.inf) <= state.num_worse:
                break
            if keeps_best and state.best_step == state.step:  # copied when the next step is about to change them
                self.optimizer.keep_weights()
            yield from self.step(next(steps))
        if keeps_best and state.best_step not in (None, state.step):
            self.optimizer.restore_weights()

    def evaluate(self) -> Iterator[Event]:
        """The validation loss after `state.step` steps, and a sample answer."""

        def validation_costs(layout: Layout) -> Costs | None:
            bad.clear()
            return mean_costs(
                self.model,
                self.validation,
                layout,
                objective=self.objective,
                should_stop=self.should_stop,
                group=self.group,
                bad=bad,
                begin=begin,
            )

        bad: list[Example] = []
        measure = measure_in(self.model, evaluated_in(self._layout, self.model), self.group, self.should_stop)
        begin = functools.cache(lambda: self.objective.begin(self.validation, measure))  # once, if memory runs out too
        costs, notices = self._fitted(validation_costs)
        loss = costs.loss if costs else None
        if loss is not None and not math.isfinite(loss):
            raise validation_not_finite(self.state.step, loss, bad)
        yield from notices
        shown = self.sample if self.schedule.has_sample(self.state.step) else None
        answer = shown(self.state.step) if shown else None
        sample = Sample(answer.source, answer.prompt, answer.text) if answer else None
        _remember(self.state, loss)
        figures = self.objective.figures(list(costs.rows.values())) if costs else {}
        yield Evaluation(self.state.step, loss, sample, validation_accuracy=figures.get("rewards_accuracies"))

    def step(self, indices: Sequence[int]) -> Iterator[Event]:
        """One optimizer step on the training records `indices` and those replayed with them; `state` and `loss_tracker` are those
        after it once it is handed out."""
        start, step = time.perf_counter(), self.state.step + 1
        examples = [self.train[index] for index in indices]
        replayed = self._replayed(len(examples))
        together = [*examples, *replayed]
        sides, columns = self.objective.sides(together), self.objective.num_columns
        share_of = self.objective.begin(together, measure_in(self.model, self._layout, self.group, self.should_stop))

        def gradients(layout: Layout) -> Costs:
            torch.manual_seed(derived_seed(self.config.seed, step))  # of dropout
            self.optimizer.forget_gradients()
            return self._backward(together, share_of, layout)

        own, memory_notices = self._fitted(gradients)
        yield from memory_notices
        told = self.tell()
        sums = self.optimizer.sum_gradients([*told, *own.numbers(together, columns)])
        self.heard, costs = sums[: len(told)], Costs.of_sums(sums[len(told) :], together, columns)
        if step == 1 and (unused := _without_gradient(self.optimizer, self.group)):
            yield unused
        rate = learning_rate(self.config, step, self.num_steps)
        loss = costs.mean(examples) if replayed else costs.loss
        norm = self.optimizer.step(rate)
        if not math.isfinite(norm):
            raise not_finite(step, f"the gradient's norm is {norm}", together)
        figures = self.objective.figures(costs.of(examples))
        notices = self._notices(step, loss, norm, figures)
        if self.loss_tracker is not None:
            self.loss_tracker.see(step, indices, [row[0] for row in costs.of(examples)])
        self.state.step, self.state.evaluated = step, False
        self.state.recent_losses = [*self.state.recent_losses, loss][-_SPIKE_WINDOW:]
        yield Step(
            step=step,
            epoch=((step - 1) * self.config.batch_size + len(examples)) / self.epoch_length,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            target_tokens=sum(int((side.weights > 0).sum()) for side in sides),
            record_tokens=sum(map(len, sides)),
            computed_tokens=costs.num_computed_tokens,
            step_seconds=time.perf_counter() - start,
            replay_loss=costs.mean(replayed) if replayed else None,
            **figures,
        )
        yield from notices

    def _notices(self, step: int, loss: float, norm: float, figures: Mapping[str, float]) -> list[Notice]:
        """What a person should hear of at this step."""
        found = (_spike(step, loss, self.state.recent_losses), self._gradient_is_zero(step, norm))
        return [*filter(None, found), *preference_notices(step, figures, self.state)]

    def _gradient_is_zero(self, step: int, norm: float) -> Notice | None:
        """Said once: a gradient of exactly 0, as a model has that has diverged so far that nothing moves it any more. Pairs that
        are far enough apart have it, too."""
        if norm or self._zero_was_said or self.objective is not RESPONSE_LOSS:
            return None
        self._zero_was_said = True
        return Notice(
            step,
            "zero_gradient",
            "the gradient is exactly 0, so this model learns nothing any more: train.learning_rate may have been too high",
        )

    def _fitted(self, attempt: Callable[[Layout], Found]) -> tuple[Found, list[Notice]]:
        """What `attempt` finds in micro-batches that fit, and a notice for each time that memory ran out on the way."""

        def within(max_tokens: int) -> Found:
            return attempt(replace(self.layout, max_tokens=max_tokens))

        found, fits, said = fitted(within, self._layout.max_tokens, sharded=self.group.sharded)
        if said:
            self.state.max_tokens = fits
        return found, [Notice(self.state.step + 1, "memory", sentence) for sentence in said]

    @property
    def _layout(self) -> Layout:
        """The layout, with micro-batches of what has been found to fit."""
        return replace(self.layout, max_tokens=self.state.max_tokens or self.layout.max_tokens)

    def _replayed(self, num_examples: int) -> list[Example]:
        """The replayed examples that join the next step, which has `num_examples` training examples."""
        if self.replay is None:
            return []
        first = self.state.step * self.config.batch_size
        indices = replay_indices(
            len(self.replay.examples), self.replay.ratio, self.config.seed, first, first + num_examples
        )
        return [self.replay.examples[index] for index in indices]

    def _backward(self, examples: Sequence[Example], share_of: Share, layout: Layout) -> Costs:
        """Gradients of the mean loss of one optimizer step into the optimizer; what this rank's share of it costs. Where they
        come back averaged over ranks, what is averaged is as many times larger."""
        objective, group, costs = self.objective, self.group, Costs()
        self.model.train()
        batches = own_micro_batches(examples, layout, group)
        for number, (batch, counts) in enumerate(batches, start=1):
            self.should_stop()
            self.optimizer.begin_backward(last=number == len(batches))
            with out_of_memory_says(batch):
                found = micro_batch_loss(self.model, sides := objective.sides(batch), layout.name)
                share, rows = share_of(batch, found)
                share = share if counts else share * 0
                (share * group.size if group.sharded else share).backward()
            costs.loss += share.item()
            if not math.isfinite(costs.loss):
                self.optimizer.forget_gradients()
                raise not_finite(self.state.step + 1, f"the loss is {costs.loss}", culprits(sides, found))
            if counts:
                costs.add(batch, found, rows)
        return costs


def mean_loss(
    model: PreTrainedModel,
    examples: Sequence[Example],
    layout: Layout,
    *,
    should_stop: Callable[[], None] = no_op,
    group: ProcessGroup = SINGLE_PROCESS,
) -> float | None:
    """The weighted mean loss (nats) over all targets of `examples`, of which each rank computes its share; None for none."""
    costs = mean_costs(model, examples, layout, should_stop=should_stop, group=group)
    return costs.loss if costs else None


def mean_costs(
    model: PreTrainedModel,
    examples: Sequence[Example],
    layout: Layout,
    *,
    objective: Objective = RESPONSE_LOSS,
    should_stop: Callable[[], None] = no_op,
    group: ProcessGroup = SINGLE_PROCESS,
    bad: list[Example] | None = None,
    begin: Callable[[], Share] | None = None,
) -> Costs | None:
    """What `examples` cost as one step of `objective` that changes nothing, each rank computing its share; None for none.

    The records of this rank whose loss is not finite are added to `bad`. `begin` begins the step where this may be called again
    by one rank alone.
    """
    if not examples:
        return None
    examples, layout = list(examples), evaluated_in(layout, model)  # told apart by identity
    share_of = begin() if begin else objective.begin(examples, measure_in(model, layout, group, should_stop))
    batches, costs = own_micro_batches(examples, layout, group), Costs()
    sides = [objective.sides(batch) for batch, _ in batches]
    losses = without_gradients(model, iter(sides), layout, should_stop)
    for (own_sides, found), (batch, counts) in zip(losses, batches, strict=True):
        if not counts:
            continue
        share, rows = share_of(batch, found)
        loss = share.item()
        costs.loss += loss
        costs.add(batch, found, rows)
        if bad is not None and not math.isfinite(loss):
            bad += culprits(own_sides, found)
    return Costs.of_sums(group.sum(costs.numbers(examples, objective.num_columns)), examples, objective.num_columns)


def measure_in(
    model: PreTrainedModel,
    layout: Layout,
    group: ProcessGroup = SINGLE_PROCESS,
    should_stop: Callable[[], None] = no_op,
) -> Measure:
    """What an objective computes more with: the summed log-probability of each example's targets, on every rank alike."""

    def measure(examples: Sequence[Example]) -> list[float]:
        place = {id(example): index for index, example in enumerate(examples)}

        def own(max_tokens: int) -> list[float]:
            logps, within = [0.0] * len(examples), replace(layout, max_tokens=max_tokens)
            batches = own_micro_batches(examples, within, group)
            losses = without_gradients(model, (batch for batch, _ in batches), within, should_stop)
            for (batch, found), (_, counts) in zip(losses, batches, strict=True):
                for example, nll in zip(batch, found.record_nll(), strict=True):
                    if counts:
                        logps[place[id(example)]] = -nll
            return logps

        return group.sum(fitted(own, layout.max_tokens, sharded=group.sharded)[0])

    return measure


def record_nll(
    model: PreTrainedModel, examples: Sequence[Example], layout: Layout, *, should_stop: Callable[[], None] = no_op
) -> list[float]:
    """For each example, in order, the summed negative log-likelihood (nats) of its targets; TunefulError for one that is not
    finite. Where memory runs out, the micro-batches are smaller from there on."""
    examples = list(examples)  # told apart by identity: a sequence on disk makes another object at each asking
    nll: dict[int, float] = {}

    def compute(max_tokens: int) -> None:
        left = [example for example in examples if id(example) not in nll]
        batches = cut_micro_batches(left, max_tokens, layout.name) if left else iter(())
        for batch, found in without_gradients(model, batches, layout, should_stop):
            own = found.record_nll()
            check_losses(batch, own)
            nll.update(zip(map(id, batch), own, strict=True))

    fitted(compute, evaluated_in(layout, model).max_tokens, sharded=is_sharded(model))
    return [nll[id(example)] for example in examples]


def evaluated_in(layout: Layout, model: PreTrainedModel) -> Layout:
    """`layout` with micro-batches whose logits stay small where every token may be a target: an evaluation is to take less memory
    than a step, and is not faster in larger ones."""
    a_token = model.config.get_text_config().vocab_size * model.dtype.itemsize
    return replace(layout, max_tokens=min(layout.max_tokens, max(MIN_TOKENS, _EVALUATED_BYTES // a_token)))


def without_gradients(
    model: PreTrainedModel, batches: Iterator[list[Example]], layout: Layout, should_stop: Callable[[], None]
) -> Iterator[tuple[list[Example], MicroBatchLoss]]:
    """Each of `batches` with its loss, computed in evaluation mode and without a graph; `should_stop` may raise before any."""
    model.eval()
    for batch in batches:
        should_stop()
        with torch.no_grad(), out_of_memory_says(batch):
            found = micro_batch_loss(model, batch, layout.name)
        yield batch, found


def _remember(state: TrainingState, validation_loss: float | None) -> None:
    """The evaluation of `state.step` was made. The model as it came is no candidate: a training gives trained weights."""
    state.evaluated, state.last_loss = True, validation_loss
    if state.step == 0:
        state.base_loss = validation_loss
    if validation_loss is None or state.step == 0:
        return
    if state.best_loss is None or validation_loss < state.best_loss:
        state.best_step, state.best_loss, state.num_worse = state.step, validation_loss, 0
    else:
        state.num_worse += 1


# What a step may show


def _without_gradient(optimizer: AdamW, group: ProcessGroup) -> Notice | None:
    """A notice that names the parameters that are to be trained and have had no gradient on any rank; None where there are none.

    A decoder that was cut out of an encoder-decoder has such, and one that can see.
    """
    missing = group.gather(optimizer.without_gradient())
    names = [name for name in dict.fromkeys(missing) if missing.count(name) == group.size]
    if not names:
        return None
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return Notice(
        1,
        "unused",
        f"no gradient has reached {', '.join(names[:8])}{more}: the model does not use them on these records, and they stay as "
        "they are until it does",
    )


def _spike(step: int, loss: float, recent: Sequence[float]) -> Notice | None:
    if len(recent) < _SPIKE_WINDOW // 4:
        return None
    mean = statistics.fmean(recent)
    if loss <= max(mean + _SPIKE_SIGMAS * statistics.pstdev(recent), _SPIKE_RATIO * mean):
        return None
    return Notice(
        step, "spike", f"the loss jumped to {loss:.3f}; over the {len(recent)} steps before it was {mean:.3f}"
    )
