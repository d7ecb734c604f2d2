"""How the records of a step are laid out: which layout, how many tokens at once, and the self-check that it computes the same.

Three layouts give the same sum (`loss.py`). The trie is chosen wherever the model allows it and a few records, computed both
ways before the first step, agree; else the padded batch, with the reason. A step is then cut into micro-batches of at most
`max_tokens` computed tokens, which changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from tuneful.batch.trie import common_prefix, token_order
from tuneful.config import TrainConfig
from tuneful.model.attention import use_trie_attention, why_no_trie
from tuneful.runs.schema import Layout, LayoutName
from tuneful.train.distributed import ProcessGroup
from tuneful.train.loss import micro_batch_loss
from tuneful.train.memory import affordable_tokens
from tuneful.types import Example

SELF_CHECK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference of loss and gradient norm between the two ways, by compute dtype."""

_CHECK_RECORDS, _CHECK_TOKENS = 4, 1024
"""How much is computed both ways before the first step: a second or two on a small model."""


def choose_layout(
    model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig, dtype: torch.dtype
) -> Layout:
    """The layout that `config` asks for where the model allows it and passes the self-check, else the padded one.

    To be called while `model` is still in float32, where the self-check is sharp; `dtype` is the compute dtype of the training.
    """
    max_tokens = config.micro_batch_tokens or affordable_tokens(model, dtype, config.activation_checkpointing)
    if config.layout == "padded":
        return Layout("padded", max_tokens)
    reason = why_not_shared(model)
    if reason is None:
        reason = self_check(model, next(cut_micro_batches(examples[:_CHECK_RECORDS], _CHECK_TOKENS, config.layout)))
    if reason is not None:
        return Layout("padded", max_tokens, reason)
    if config.layout == "trie" and (dropout := adapter_dropout(model)):
        return Layout("unshared", max_tokens, f"lora.dropout {dropout:g} falls anew on every record")
    return Layout(config.layout, max_tokens)


def cut_micro_batches(examples: Sequence[Example], max_tokens: int, layout: LayoutName) -> Iterator[list[Example]]:
    """The examples of one optimizer step in micro-batches of at most `max_tokens` computed tokens, or of one record.

    Records are taken in the order of their token ids, so that those that share a prefix meet (padded: of their length).
    """
    batch: list[Example] = []
    num_computed = 0
    for example in sorted(examples, key=len if layout == "padded" else token_order):
        grown = _grown(num_computed, batch, example, layout)
        if batch and grown > max_tokens:
            yield batch
            batch, grown = [], _grown(0, [], example, layout)
        batch.append(example)
        num_computed = grown
    yield batch


def own_micro_batches(
    examples: Sequence[Example], layout: Layout, group: ProcessGroup
) -> list[tuple[list[Example], bool]]:
    """The micro-batches of this rank, each with whether it counts.

    Where layers are gathered from all ranks, all have to compute equally often: a rank with fewer micro-batches than
    another repeats one that does not count.
    """

    def cut(rank: int) -> list[list[Example]]:
        shard = group.shard(examples, rank)
        return list(cut_micro_batches(shard, layout.max_tokens, layout.name)) if shard else []

    own = [(batch, True) for batch in cut(group.rank)]
    if not group.sharded:
        return own
    most = max(len(cut(rank)) for rank in range(group.size))
    spare = own[0][0] if own else [min(examples, key=len)]
    return own + [(spare, False)] * (most - len(own))


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why records of this model must not share prefixes; None where they may. (An adapter's dropout: `adapter_dropout`.)"""
    config = model.config.get_text_config()
    if dropout := largest_dropout(model):
        return (
            f"the model has dropout {dropout:g}, which falls anew on every record; model.dropout=0 would allow sharing"
        )
    if getattr(config, "output_router_logits", False):
        return "the model's router loss counts tokens"
    return why_no_trie(model)


def largest_dropout(model: torch.nn.Module) -> float:
    """The largest probability with which any part of `model` drops values in training; 0 where none does."""
    return max((getattr(module, name) for module, name in _dropouts(model)), default=0.0)


def adapter_dropout(model: torch.nn.Module) -> float:
    """The probability with which the adapter in `model` drops values: each record its own, so none is computed for two."""
    return max((module.p for _, module in _adapter_dropouts(model)), default=0.0)


def set_dropout(model: torch.nn.Module, dropout: float) -> None:
    """Give every dropout of `model` the probability `dropout`; its configuration keeps what its makers wrote."""
    for module, name in _dropouts(model):
        setattr(module, name, dropout)


def _dropouts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """(module, attribute) of every dropout probability: torch's own modules, and the numbers that attention layers keep.

    An adapter's are not among them: they are set by `lora.dropout`, and leave attention alone.
    """
    of_adapter = {name for name, _ in _adapter_dropouts(model)}
    for path, module in model.named_modules():
        if path in of_adapter:
            continue
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            yield module, "p"
        for name in ("attention_dropout", "attn_dropout", "dropout", "dropout_p", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                yield module, name


def _adapter_dropouts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.modules.dropout._DropoutNd]]:
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, torch.nn.modules.dropout._DropoutNd):
            yield name, module


def self_check(model: PreTrainedModel, examples: Sequence[Example]) -> str | None:
    """Compute `examples` as a trie and one record at a time; None where loss and gradient agree, else the difference."""
    use_trie_attention(model)
    shared = _loss_and_gradient_norm(model, [list(examples)], "trie")
    alone = _loss_and_gradient_norm(model, [[example] for example in examples], "padded")
    tolerance = SELF_CHECK_TOLERANCE[model.dtype]
    for what, one, other in zip(("loss", "gradient norm"), shared, alone, strict=True):
        if not abs(one - other) <= tolerance * abs(other):
            return f"the {what} is {one:.8g} as a trie and {other:.8g} one record at a time"
    return None


def _grown(num_computed: int, batch: Sequence[Example], example: Example, layout: LayoutName) -> int:
    """How many tokens a micro-batch computes once `example` has joined it, records coming in sorted order."""
    if layout == "padded":
        return (len(batch) + 1) * (len(example) - 1)
    shared = common_prefix(batch[-1], example) if batch and layout == "trie" else 0
    return num_computed + len(example) - 1 - shared


def _loss_and_gradient_norm(
    model: PreTrainedModel, micro_batches: Sequence[Sequence[Example]], layout: LayoutName
) -> tuple[float, float]:
    total = 0.0
    for examples in micro_batches:
        loss = micro_batch_loss(model, examples, layout).total
        loss.backward()
        total += loss.item()
    gradients = [parameter.grad.double().norm() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return total, torch.stack(gradients).norm().item()
