"""The training loop: steps and evaluations, handed out one by one to whoever writes, shows or stops.

An optimizer step takes `batch_size` records, cut into micro-batches that fit; each adds its share of one weighted mean over
all targets of the step. The loop holds no files and prints nothing: it yields what happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedModel

from tuneful.config import TrainConfig
from tuneful.data.order import all_steps, num_steps
from tuneful.errors import TunefulError
from tuneful.train.loss import LayoutName, cut_micro_batches, micro_batch_loss, prove, why_not_shared
from tuneful.train.optimizer import AdamW, learning_rate
from tuneful.types import Answer, Example

_PROOF_RECORDS, _PROOF_TOKENS = 4, 1024
"""How much is computed both ways before the first step: a second or two on a small model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. `loss` is the weighted mean over the step's targets (nats); tokens are counted over its records:
    `record_tokens` as given, `computed_tokens` as laid out, `target_tokens` those with a weight."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    target_tokens: int
    record_tokens: int
    computed_tokens: int
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation loss (nats a target token, over the whole set) after `step` steps, and a sample answer."""

    step: int
    validation_loss: float | None
    sample: Answer | None


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
    max_tokens = config.micro_batch_tokens or _affordable_tokens(model, dtype)
    if config.layout == "padded":
        return Layout("padded", max_tokens)
    reason = why_not_shared(model)
    if reason is None:
        reason = prove(model, next(cut_micro_batches(examples[:_PROOF_RECORDS], _PROOF_TOKENS, config.layout)))
    return Layout(config.layout if reason is None else "padded", max_tokens, reason)


def finetune(
    model: PreTrainedModel,
    optimizer: AdamW,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: TrainConfig,
    layout: Layout,
    sample: Callable[[int], Answer] | None = None,
) -> Iterator[Step | Evaluation]:
    """Finetune `model` in place; `sample(step)` is asked for an answer at each evaluation.

    Validation is evaluated before the first step, every `eval_steps` and after the last. Raises TunefulError, before the
    weights change, where a loss or gradient is not finite.
    """
    total = num_steps(len(train), config.batch_size, config.num_train_epochs, config.max_steps)
    eval_steps = config.eval_steps or max(1, total // 10)

    def evaluate(step: int) -> Evaluation:
        return Evaluation(step, mean_loss(model, validation, layout), sample(step) if sample else None)

    yield evaluate(0)
    num_seen = 0
    for step, indices in enumerate(
        all_steps(len(train), config.batch_size, config.seed, config.num_train_epochs, config.max_steps), start=1
    ):
        start = time.perf_counter()
        examples = [train[index] for index in indices]
        rate = learning_rate(config, step, total)
        loss, num_computed = _backward(model, optimizer, examples, layout)
        norm = optimizer.step(rate)
        _refuse_non_finite(step, loss, norm, examples)
        num_seen += len(examples)
        yield Step(
            step=step,
            epoch=num_seen / len(train),
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            target_tokens=sum(int((example.weights > 0).sum()) for example in examples),
            record_tokens=sum(len(example) for example in examples),
            computed_tokens=num_computed,
            step_seconds=time.perf_counter() - start,
        )
        if step % eval_steps == 0 or step == total:
            yield evaluate(step)


def mean_loss(model: PreTrainedModel, examples: Sequence[Example], layout: Layout) -> float | None:
    """The weighted mean loss (nats) over all targets of `examples`; None where there are none."""
    if not examples:
        return None
    model.eval()
    with torch.inference_mode():
        batches = cut_micro_batches(examples, layout.max_tokens, layout.name)
        total = sum(micro_batch_loss(model, batch, layout.name).total.item() for batch in batches)
    return total / total_weight(examples)


def record_nll(model: PreTrainedModel, examples: Sequence[Example], layout: Layout) -> list[float]:
    """For each example, in order, the summed negative log-likelihood (nats) of its targets."""
    model.eval()
    nll: dict[int, float] = {}
    with torch.inference_mode():
        for batch in cut_micro_batches(examples, layout.max_tokens, layout.name) if examples else ():
            losses = micro_batch_loss(model, batch, layout.name).record_nll()
            nll.update(zip(map(id, batch), losses, strict=True))
    return [nll[id(example)] for example in examples]


def total_weight(examples: Sequence[Example]) -> float:
    """The summed target weight of `examples`: what a summed loss is divided by, once."""
    return float(sum(example.weights.sum(dtype="float64") for example in examples))


def _backward(
    model: PreTrainedModel, optimizer: AdamW, examples: Sequence[Example], layout: Layout
) -> tuple[float, int]:
    """Gradients of the mean loss of one optimizer step into the optimizer; that loss, and the tokens computed for it."""
    model.train()
    weight = total_weight(examples)
    loss, num_computed, micro_batch = 0.0, 0, None
    for batch in cut_micro_batches(examples, layout.max_tokens, layout.name):
        if micro_batch is not None:
            optimizer.collect()
        micro_batch = micro_batch_loss(model, batch, layout.name)
        share = micro_batch.total / weight
        share.backward()
        loss += share.item()
        num_computed += micro_batch.num_computed_tokens
    return loss, num_computed


def _refuse_non_finite(step: int, loss: float, norm: float, examples: Sequence[Example]) -> None:
    """Called after the optimizer has declined to step on a gradient that is not finite."""
    if torch.tensor([loss, norm]).isfinite().all():
        return
    raise TunefulError(
        f"step {step}: loss {loss}, gradient norm {norm}: not finite, so no weight was changed by this step. Its records: "
        f"{', '.join(example.source for example in examples[:8])}. Lower train.learning_rate, or look at these records"
    )


def _affordable_tokens(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Tokens a micro-batch may compute so that its activations and logits take at most a third of the free memory.

    Counted for a Llama-like block: about 14 hidden-size and 5 inner-size vectors a token and layer are kept for the
    backward, and 10 bytes a vocabulary entry for each target.
    """
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    bytes_a_token = layers * (14 * hidden + 5 * inner) * dtype.itemsize + 10 * config.vocab_size
    free = (
        torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else psutil.virtual_memory().available
    )
    return int(min(max(free / 3 / bytes_a_token, 256), 16_384))
