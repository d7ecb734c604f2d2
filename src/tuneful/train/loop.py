"""The training loop: steps and evaluations, handed out one by one to whoever writes, shows, saves or stops.

An optimizer step takes `batch_size` records, cut into micro-batches that fit; each adds its share of one weighted mean over
all targets of the step. The loop holds no files and prints nothing: it yields what happened. Where it stands is a `State`
of a few numbers; with the optimizer's tensors that is all it takes to go on from there, because the order of the records
and the learning rate follow from the step, and so do the random numbers of dropout.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

from tuneful.config import TrainConfig
from tuneful.data.order import all_steps, num_steps, replay_indices
from tuneful.data.replay import Replay
from tuneful.errors import OutOfMemoryError, TunefulError
from tuneful.train.distributed import ALONE, World
from tuneful.train.loss import (
    LayoutName,
    MicroBatchLoss,
    adapter_dropout,
    cut_micro_batches,
    micro_batch_loss,
    prove,
    why_not_shared,
)
from tuneful.train.optimizer import AdamW, learning_rate
from tuneful.train.progress import RecordLedger
from tuneful.types import Answer, Example

_PROOF_RECORDS, _PROOF_TOKENS = 4, 1024
"""How much is computed both ways before the first step: a second or two on a small model."""

_SPIKE_WINDOW, _SPIKE_SIGMAS, _SPIKE_RATIO = 64, 6.0, 1.5
"""A spike stands six standard deviations above the mean of the last 64 steps (at least a quarter of them), and by half."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. `loss` is the weighted mean over the targets of the step's training records (nats), `replay_loss`
    that of the replayed records that joined them; tokens are counted over all its records: `record_tokens` as given,
    `computed_tokens` as laid out, `target_tokens` those with a weight."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    target_tokens: int
    record_tokens: int
    computed_tokens: int
    step_seconds: float
    replay_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation loss (nats a target token, over the whole set) after `step` steps, and a sample answer."""

    step: int
    validation_loss: float | None
    sample: Answer | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should hear of: the loss of `step` jumped, or its memory ran out and smaller pieces fit."""

    step: int
    kind: Literal["spike", "memory"]
    sentence: str


Event = Step | Evaluation | Notice


@dataclass(slots=True)
class State:
    """Where a training stands between two events: all that is needed to go on, but the optimizer's tensors.

    `evaluated` tells whether the evaluation due after `step` was made; `num_worse` counts evaluations since `best_step`,
    the one with the lowest validation loss after the first step; `max_tokens` is what fits where the layout's did not.
    """

    step: int = 0
    evaluated: bool = False
    best_step: int | None = None
    best_loss: float | None = None
    num_worse: int = 0
    max_tokens: int | None = None
    recent_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layout:
    """How micro-batches are laid out, how many tokens each may compute, and why it is not the trie where it is not."""

    name: LayoutName
    max_tokens: int
    reason: str | None = None


def choose_layout(
    model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig, dtype: torch.dtype
) -> Layout:
    """The layout that `config` asks for, where the model allows it and a few records prove it right.

    To be called while `model` is still in float32, where the proof is sharp; `dtype` is what training will compute in.
    """
    max_tokens = config.micro_batch_tokens or _affordable_tokens(model, dtype, config.activation_checkpointing)
    if config.layout == "padded":
        return Layout("padded", max_tokens)
    reason = why_not_shared(model)
    if reason is None:
        reason = prove(model, next(cut_micro_batches(examples[:_PROOF_RECORDS], _PROOF_TOKENS, config.layout)))
    if reason is not None:
        return Layout("padded", max_tokens, reason)
    if config.layout == "trie" and (dropout := adapter_dropout(model)):
        return Layout("unshared", max_tokens, f"lora.dropout {dropout:g} falls anew on every record")
    return Layout(config.layout, max_tokens)


def go_on() -> None:
    """The `between` of a training that nobody interrupts."""


def finetune(
    model: PreTrainedModel,
    optimizer: AdamW,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: TrainConfig,
    layout: Layout,
    sample: Callable[[int], Answer] | None = None,
    *,
    replay: Replay | None = None,
    ledger: RecordLedger | None = None,
    state: State | None = None,
    between: Callable[[], None] = go_on,
    world: World = ALONE,
) -> Iterator[Event]:
    """Finetune `model` in place, from `state` on; `sample(step)` is asked for an answer at each evaluation.

    Every rank of `world` is called with the same arguments and hands out the same events.

    Validation is evaluated before the first step, every `eval_steps` and after the last. `replay` joins the steps at its
    ratio; `ledger` is told what each training record cost. At each event `state`, `ledger` and `optimizer` are what a
    checkpoint has to hold. `between` is called before every micro-batch and may raise: the step or
    evaluation at hand is then abandoned, and `state` is that of the event before. At the end the model has the weights
    of the best evaluation, or with `keep: last` those of the last step. Raises TunefulError, before the weights change,
    where a loss or gradient is not finite, and OutOfMemoryError where a single record does not fit.
    """
    state = state if state is not None else State()
    total = num_steps(len(train), config.batch_size, config.num_train_epochs, config.max_steps)
    eval_steps = config.eval_steps or max(1, total // 10)
    steps = all_steps(
        len(train), config.batch_size, config.seed, config.num_train_epochs, config.max_steps, first_step=state.step + 1
    )
    while True:
        if (state.step % eval_steps == 0 or state.step == total) and not state.evaluated:
            loss = yield from _fitting(
                state, layout, lambda fitting: mean_loss(model, validation, fitting, between=between, world=world)
            )
            answer = sample(state.step) if sample else None
            _remember(state, loss)
            yield Evaluation(state.step, loss, answer)
        if state.step >= total or (config.early_stopping_patience or math.inf) <= state.num_worse:
            break
        if config.keep == "best" and state.best_step == state.step:
            optimizer.keep_weights()
        indices = next(steps)
        replayed = _replayed(replay, config, state.step, len(indices))
        yield from _step(
            model, optimizer, train, indices, replayed, config, total, layout, state, ledger, between, world
        )
    if config.keep == "best" and state.best_step not in (None, state.step):
        optimizer.restore_weights()


def mean_loss(
    model: PreTrainedModel,
    examples: Sequence[Example],
    layout: Layout,
    *,
    between: Callable[[], None] = go_on,
    world: World = ALONE,
) -> float | None:
    """The weighted mean loss (nats) over all targets of `examples`, of which each rank computes its share; None for none."""
    if not examples:
        return None
    batches = own_micro_batches(examples, layout, world)
    losses = _without_gradients(model, (batch for batch, _ in batches), layout, between)
    total = sum(found.total.item() for (_, found), (_, counts) in zip(losses, batches, strict=True) if counts)
    return world.sum([total])[0] / total_weight(examples)


def own_micro_batches(examples: Sequence[Example], layout: Layout, world: World) -> list[tuple[list[Example], bool]]:
    """The micro-batches of this rank, each with whether it counts.

    Where layers are gathered from all ranks, all have to compute equally often: a rank with fewer micro-batches than
    another repeats one that does not count.
    """

    def cut(rank: int) -> list[list[Example]]:
        share = world.share(examples, rank)
        return list(cut_micro_batches(share, layout.max_tokens, layout.name)) if share else []

    own = [(batch, True) for batch in cut(world.rank)]
    if not world.sharded:
        return own
    most = max(len(cut(rank)) for rank in range(world.size))
    spare = own[0][0] if own else [min(examples, key=len)]
    return own + [(spare, False)] * (most - len(own))


def record_nll(
    model: PreTrainedModel, examples: Sequence[Example], layout: Layout, *, between: Callable[[], None] = go_on
) -> list[float]:
    """For each example, in order, the summed negative log-likelihood (nats) of its targets."""
    examples = list(examples)  # told apart by identity: a sequence on disk makes another object at each asking
    nll: dict[int, float] = {}
    batches = cut_micro_batches(examples, layout.max_tokens, layout.name) if examples else iter(())
    for batch, found in _without_gradients(model, batches, layout, between):
        nll.update(zip(map(id, batch), found.record_nll(), strict=True))
    return [nll[id(example)] for example in examples]


def total_weight(examples: Sequence[Example]) -> float:
    """The summed target weight of `examples`: what a summed loss is divided by, once."""
    return float(sum(example.weights.sum(dtype="float64") for example in examples))


def _without_gradients(
    model: PreTrainedModel, batches: Iterator[list[Example]], layout: Layout, between: Callable[[], None]
) -> Iterator[tuple[list[Example], MicroBatchLoss]]:
    model.eval()
    for batch in batches:
        between()
        with torch.no_grad(), _out_of_memory_says(batch):
            found = micro_batch_loss(model, batch, layout.name)
        yield batch, found


def _remember(state: State, validation_loss: float | None) -> None:
    """The evaluation of `state.step` was made. The model as it came is no candidate: a training gives trained weights."""
    state.evaluated = True
    if validation_loss is None or state.step == 0:
        return
    if state.best_loss is None or validation_loss < state.best_loss:
        state.best_step, state.best_loss, state.num_worse = state.step, validation_loss, 0
    else:
        state.num_worse += 1


def _replayed(replay: Replay | None, config: TrainConfig, steps_done: int, num_examples: int) -> list[Example]:
    """The replayed examples that join the `num_examples` training examples of the step after `steps_done` steps."""
    if replay is None:
        return []
    first = steps_done * config.batch_size
    indices = replay_indices(len(replay.examples), replay.ratio, config.seed, first, first + num_examples)
    return [replay.examples[index] for index in indices]


def _step(
    model: PreTrainedModel,
    optimizer: AdamW,
    train: Sequence[Example],
    indices: Sequence[int],
    replayed: Sequence[Example],
    config: TrainConfig,
    total: int,
    layout: Layout,
    state: State,
    ledger: RecordLedger | None,
    between: Callable[[], None],
    world: World,
) -> Iterator[Step | Notice]:
    """One optimizer step on the records `indices` and those `replayed`; `state` and `ledger` are those after it once it is
    handed out."""
    start = time.perf_counter()
    step = state.step + 1
    examples = [train[index] for index in indices]
    together = [*examples, *replayed]

    def gradients(fitting: Layout) -> _Costs:
        torch.manual_seed(_seed_of(config.seed, step))
        optimizer.forget_gradients()
        return _backward(model, optimizer, together, fitting, step, between, world)

    own = yield from _fitting(state, layout, gradients)
    if step == 1:
        _refuse_untrained(optimizer, world)
    optimizer.sum_gradients()
    costs = own.summed(together, world)
    rate = learning_rate(config, step, total)
    loss = costs.mean(examples) if replayed else costs.loss
    norm = optimizer.step(rate)
    if not math.isfinite(norm):
        raise _not_finite(step, f"the gradient's norm is {norm}", together)
    if ledger is not None:
        ledger.see(step, indices, [costs.nll[id(example)] for example in examples])
    notice = _spike(step, loss, state.recent_losses)
    state.step, state.evaluated = step, False
    state.recent_losses = [*state.recent_losses, loss][-_SPIKE_WINDOW:]
    yield Step(
        step=step,
        epoch=((step - 1) * config.batch_size + len(examples)) / len(train),
        loss=loss,
        learning_rate=rate,
        grad_norm=norm,
        target_tokens=sum(int((example.weights > 0).sum()) for example in together),
        record_tokens=sum(len(example) for example in together),
        computed_tokens=costs.num_computed_tokens,
        step_seconds=time.perf_counter() - start,
        replay_loss=costs.mean(replayed) if replayed else None,
    )
    if notice:
        yield notice


@dataclass(slots=True, eq=False)
class _Costs:
    """What the records of one step cost: the weighted mean `loss` of all of them, and by the identity of each its summed
    negative log-likelihood, plain (`nll`) and `weighted`."""

    loss: float = 0.0
    num_computed_tokens: int = 0
    nll: dict[int, float] = field(default_factory=dict)
    weighted: dict[int, float] = field(default_factory=dict)

    def add(self, batch: Sequence[Example], found: MicroBatchLoss) -> None:
        """Write down what the records of one micro-batch cost."""
        self.num_computed_tokens += found.num_computed_tokens
        self.nll.update(zip(map(id, batch), found.record_nll(), strict=True))
        self.weighted.update(zip(map(id, batch), found.record_losses(batch), strict=True))

    def summed(self, examples: Sequence[Example], world: World) -> _Costs:
        """What all ranks have written down together; `examples` are the records of the whole step."""
        if world.size == 1:
            return self
        keys = list(dict.fromkeys(map(id, examples)))
        own = [(self.nll.get(key, 0.0), self.weighted.get(key, 0.0), float(key in self.nll)) for key in keys]
        loss, num_computed, *rest = world.sum([self.loss, self.num_computed_tokens, *(x for row in own for x in row)])
        times = [max(1.0, count) for count in rest[2::3]]  # a record that stands in a step twice may have two ranks
        nll, weighted = (
            {key: total / count for key, total, count in zip(keys, rest[which::3], times, strict=True)}
            for which in (0, 1)
        )
        return _Costs(loss, int(num_computed), nll, weighted)

    def mean(self, examples: Sequence[Example]) -> float:
        """The weighted mean loss of some of them."""
        return sum(self.weighted[id(example)] for example in examples) / total_weight(examples)


def _backward(
    model: PreTrainedModel,
    optimizer: AdamW,
    examples: Sequence[Example],
    layout: Layout,
    step: int,
    between: Callable[[], None],
    world: World,
) -> _Costs:
    """Gradients of the mean loss of one optimizer step into the optimizer; what this rank's share of it costs. Where gradients
    come back averaged over ranks, what is averaged is as many times larger."""
    model.train()
    weight = total_weight(examples)
    costs = _Costs()
    for number, (batch, counts) in enumerate(own_micro_batches(examples, layout, world)):
        between()
        if number:
            optimizer.collect()
        with _out_of_memory_says(batch):
            micro_batch = micro_batch_loss(model, batch, layout.name)
            share = micro_batch.total / weight if counts else micro_batch.total * 0
            (share * world.size if world.sharded else share).backward()
        costs.loss += share.item()
        if not math.isfinite(costs.loss):
            optimizer.forget_gradients()
            raise _not_finite(step, f"the loss is {costs.loss}", _culprits(batch, micro_batch))
        if counts:
            costs.add(batch, micro_batch)
    return costs


def _seed_of(seed: int, step: int) -> int:
    """The seed of torch's generators for one step: dropout is a function of seed and step, with nothing to restore."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


# Bad numbers


def _culprits(batch: Sequence[Example], micro_batch: MicroBatchLoss) -> list[Example]:
    """The records of a micro-batch whose own loss is not finite, or all where each is and only their sum is not."""
    losses = micro_batch.record_nll()
    return [example for example, nll in zip(batch, losses, strict=True) if not math.isfinite(nll)] or list(batch)


def _not_finite(step: int, what: str, examples: Sequence[Example]) -> TunefulError:
    named = ", ".join(example.source for example in examples[:8])
    more = f" and {len(examples) - 8} more" if len(examples) > 8 else ""
    return TunefulError(
        f"step {step}: {what}: not finite, so no weight was changed by this step. Its records: {named}{more}. Lower "
        "train.learning_rate, or look at these records"
    )


def _refuse_untrained(optimizer: AdamW, world: World) -> None:
    """TunefulError where a parameter that is to be trained has had no gradient on any rank."""
    missing = world.gather(optimizer.without_gradient())
    names = [name for name in dict.fromkeys(missing) if missing.count(name) == world.size]
    if not names:
        return
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise TunefulError(
        f"step 1: no gradient has reached {', '.join(names[:8])}{more}: training would leave them as they are and say nothing. "
        "Name the layers to train in lora.target_modules, or freeze them with train.freeze_layers"
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


# Memory


def _fitting(state: State, layout: Layout, attempt: Callable[[Layout], Found]) -> Generator[Notice, None, Found]:
    """What `attempt` finds in micro-batches that fit: where memory runs out it is made again with smaller ones.

    The mathematics is the same, and what fits is kept for the rest of the run. OutOfMemoryError where one record does not.
    """
    while True:
        try:
            return attempt(replace(layout, max_tokens=state.max_tokens or layout.max_tokens))
        except OutOfMemoryError as error:
            if error.num_records == 1:
                raise
            state.max_tokens = min(state.max_tokens or layout.max_tokens, error.num_tokens) // 2
            notice = Notice(
                state.step + 1,
                "memory",
                f"out of memory at a micro-batch of {error.shape}: going on with at most {state.max_tokens:,} computed "
                "tokens in one, which changes no result",
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield notice


@contextmanager
def _out_of_memory_says(batch: Sequence[Example]) -> Iterator[None]:
    """Memory that runs out inside becomes an OutOfMemoryError that tells the shape of `batch`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in said and "not enough memory" not in said:
            raise
        lengths = [len(example) for example in batch]
        raise OutOfMemoryError(len(batch), sum(lengths), max(lengths), batch[0].source) from None


def _affordable_tokens(model: PreTrainedModel, dtype: torch.dtype, computed_again: bool) -> int:
    """Tokens a micro-batch may compute so that its activations and logits take at most a third of the free memory.

    Counted for a Llama-like block: about 14 hidden-size and 5 inner-size vectors a token and layer are kept for the
    backward, and 10 bytes a vocabulary entry for each target; attention over long records keeps up to half as much again. Of
    layers that are `computed_again` all that is kept is their input, and one at a time the rest.
    """
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 14 * hidden + 5 * inner
    kept = layers * hidden + layer if computed_again else layers * layer
    bytes_a_token = kept * dtype.itemsize + 10 * config.vocab_size
    free = (
        torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else psutil.virtual_memory().available
    )
    return int(min(max(free / 3 / bytes_a_token, 256), 16_384))
