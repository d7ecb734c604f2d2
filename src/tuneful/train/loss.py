"""Examples become one number to descend: the weighted sum of their targets' negative log-likelihoods.

A loss is a sum; the caller divides it once, by the total target weight of the whole optimizer step. Only rows with a
target reach the output head (`logits_to_keep`, which almost every family in transformers takes): on instruction data that is a
quarter of the rows, and the head is a fifth to a third of a small model. Three layouts give the same sum:

    trie       each distinct prefix computed once (batch/trie.py, model/attention.py)
    unshared   the same engine, each record a branch of its own
    padded     the classical batch and the model's own attention: for models where the trie would not be exact

`layout.py` chooses among them, and computes one micro-batch both ways before anything is trained on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tuneful.batch.collate import pad_examples
from tuneful.batch.trie import build_trie
from tuneful.model.attention import NAME, laid_out, plan_attention, use_trie_attention
from tuneful.model.decoder import is_served, target_logits
from tuneful.model.forward import compute_logits, own_attention
from tuneful.model.native import KINDS, kernels
from tuneful.model.precision import in_float64
from tuneful.model.transfer import on_device
from tuneful.runs.schema import LayoutName
from tuneful.train.distributed import is_sharded
from tuneful.types import Example

# Legend of shapes: M targets, V vocabulary
SOFTMAX_ELEMENTS, GPU_SOFTMAX_ELEMENTS = 1 << 19, 1 << 26
"""Logits that are turned into probabilities at once: 2 MiB in float32 on a CPU, where they stay in the cache; 256 MiB on a GPU,
where each of these twenty operations has to be launched."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatchLoss:
    """What one micro-batch gives: `total`, the weighted sum (float32 or float64 scalar); the negative log-likelihood of each
    target [M]; both with their graph; which targets belong to which record; and how many tokens were computed."""

    total: torch.Tensor
    target_nll: torch.Tensor
    record_targets: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    num_computed_tokens: int

    def detached(self) -> MicroBatchLoss:
        """The same numbers without their graph, whose memory is free once nobody else holds it."""
        return replace(self, total=self.total.detach(), target_nll=self.target_nll.detach())

    def record_nll(self) -> list[float]:
        """For each record in the order given, the summed negative log-likelihood (nats) of its targets, unweighted."""
        nll = in_float64(self.target_nll.detach()).cpu().numpy()
        return [float(nll[own].sum()) for own in self.record_targets]

    def record_losses(self, examples: Sequence[Example]) -> list[float]:
        """The same for `examples`, those of this micro-batch, with each target counted by its weight: they sum to `total`."""
        nll = in_float64(self.target_nll.detach()).cpu().numpy()
        return [
            float(nll[own] @ example.weights[1:][example.weights[1:] > 0])
            for own, example in zip(self.record_targets, examples, strict=True)
        ]


def micro_batch_loss(model: PreTrainedModel, examples: Sequence[Example], layout: LayoutName) -> MicroBatchLoss:
    """The loss of `examples` in one forward of `model`."""
    return _padded_loss(model, examples) if layout == "padded" else _trie_loss(model, examples, layout == "trie")


class WeightedCrossEntropy(torch.autograd.Function):
    """sum_m weights[m] * -log softmax(logits[m])[ids[m]], with its gradient weights * (softmax - one-hot).

    logits [M, V] in any floating dtype; ids int64 [M]; weights [M]. Returns the sum and the unweighted nll [M], both in
    float32 or better and with a gradient: the slopes of a function of the nll are further weights. Softmax is computed in
    float32, a few rows at a time so that they stay in the cache, and again in the backward: what is kept is the logits as they
    came. The gradient has the logits' dtype. On a CPU the compiled kernels do it, where there are any.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if (library := kernels(logits.device, logits.dtype)) is None:
            logsumexp = torch.cat([rows.logsumexp(-1) for rows in _in_float(logits)])
            nll = logsumexp - logits.gather(1, ids[:, None])[:, 0]
        else:
            logsumexp, nll = _native_nll(library, logits, ids)
        weights = weights.to(nll.dtype)
        ctx.save_for_backward(logits, ids, weights, logsumexp)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, ids, weights, logsumexp = ctx.saved_tensors
        weights = weights * grads[0] + grads[1]
        if (library := kernels(logits.device, logits.dtype)) is not None:
            return _native_gradient(library, logits, ids, weights, logsumexp), None, None
        gradient = torch.empty_like(logits)
        start = 0
        for rows in _in_float(logits):
            part = slice(start, start + len(rows))
            probabilities = (rows - logsumexp[part, None]).exp_()
            probabilities[torch.arange(len(rows), device=ids.device), ids[part]] -= 1
            gradient[part] = probabilities.mul_(weights[part, None])
            start = part.stop
        return gradient, None, None


def _in_float(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of `logits` [M, V] in float32 or better, a few at a time."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_elements = SOFTMAX_ELEMENTS if logits.device.type == "cpu" else GPU_SOFTMAX_ELEMENTS
    for rows in logits.split(max(1, num_elements // logits.shape[1])):
        yield rows.to(dtype)


def _native_nll(library: ctypes.CDLL, logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log(sum(exp(row))) of each row [M], and the negative log-likelihood [M] of its id."""
    assert ids.dtype is torch.int64, ids.dtype
    assert ids.shape == logits.shape[:1], (ids.shape, logits.shape)
    assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < logits.shape[1], "an id outside of the vocabulary"
    logits, ids, rows = logits.contiguous(), ids.contiguous(), _rows_in_float(logits)
    logsumexp, nll = rows.new_empty(len(ids)), rows.new_empty(len(ids))
    library.cross_entropy_forward(
        *(len(rows), KINDS[logits.dtype], *logits.shape),
        *(tensor.data_ptr() for tensor in (logits, ids, logsumexp, nll, rows)),
    )
    return logsumexp, nll


def _native_gradient(
    library: ctypes.CDLL, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, logsumexp: torch.Tensor
) -> torch.Tensor:
    """weights * (softmax - one-hot) [M, V] in the dtype of the logits."""
    logits, ids, rows = logits.contiguous(), ids.contiguous(), _rows_in_float(logits)
    weights, gradient = weights.to(logsumexp.dtype).contiguous(), torch.empty_like(logits)
    library.cross_entropy_backward(
        *(len(rows), KINDS[logits.dtype], *logits.shape),
        *(tensor.data_ptr() for tensor in (logits, ids, logsumexp, weights, gradient, rows)),
    )
    return gradient


def _rows_in_float(logits: torch.Tensor) -> torch.Tensor:
    """Room for one row of `logits` a thread, in float32 or better."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.empty(torch.get_num_threads(), logits.shape[1], dtype=dtype)


def _trie_loss(model: PreTrainedModel, examples: Sequence[Example], share: bool) -> MicroBatchLoss:
    if model.config._attn_implementation != NAME:
        use_trie_attention(model)
    batch = laid_out(build_trie(examples, share=share), model)
    arrays = (batch.input_ids, batch.positions, batch.target_rows, batch.target_ids, batch.target_weights)
    ids, positions, rows, target_ids, weights = on_device(model.device, *arrays)
    inputs, plan = embedded(model, ids[None]), plan_attention(batch, model, only_targets=True)
    if is_served(model):
        logits = target_logits(model, inputs, positions[None], plan, rows)
    else:
        logits = compute_logits(model, rows, **inputs, position_ids=positions[None], trie_plan=plan, use_cache=False)[0]
    weights = weights.to(torch.promote_types(model.dtype, torch.float32))
    total, nll = WeightedCrossEntropy.apply(logits, target_ids, weights)  # type: ignore[no-untyped-call]
    return MicroBatchLoss(total, nll, batch.record_targets, batch.num_nodes)


def embedded(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The model's input: ids [1, N], or their embeddings where a tied matrix is to be spared a second dense gradient."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = type(inputs) is torch.nn.Embedding and outputs is not None and outputs.weight is inputs.weight
    if is_sharded(model) or not (
        tied and torch.is_grad_enabled() and inputs.weight.requires_grad and inputs.max_norm is None
    ):
        return {"input_ids": ids}
    anchor = torch.zeros((), device=ids.device, requires_grad=True)
    return {"inputs_embeds": TiedLookup.apply(anchor, inputs, ids)}  # type: ignore[no-untyped-call]


class TiedLookup(torch.autograd.Function):
    """Rows `ids` of an embedding matrix [V, D] that is the output head too: [1, N, D].

    Autograd would give the matrix a second dense gradient, almost all zeros, and add it to the head's: five passes over
    57 MB for a few hundred rows, a twentieth of a small step. Here those rows are added to the gradient that the head, whose
    backward comes first, has left in `weight.grad`. `anchor` is any scalar that requires a gradient: it puts the look-up
    into the graph. The matrix comes inside its module, so that autograd does not see it: a matrix that it saw would get
    the head's gradient only after this backward too. The row `padding_idx` gets no gradient, as in `torch.nn.Embedding`.
    """

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, embedding: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        ctx.embedding, ctx.ids = embedding, ids
        return torch.nn.functional.embedding(ids, embedding.weight.detach())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, None, None]:
        weight, ids = ctx.embedding.weight, ctx.ids[0]
        rows = grads[0][0]
        if ctx.embedding.padding_idx is not None:
            rows = rows * (ids != ctx.embedding.padding_idx)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        add_rows(weight.grad, ids, rows)
        return None, None, None


def add_rows(gradient: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> None:
    """Add `rows` [N, D] to the rows `ids` int64 [N] of `gradient` [V, D], those of one id in their order: on a GPU they are
    sorted first, for additions in whatever order threads come give other bits in every run."""
    if gradient.device.type == "cpu":
        gradient.index_add_(0, ids, rows)
    else:
        gradient.index_put_((ids,), rows, accumulate=True)


def _padded_loss(model: PreTrainedModel, examples: Sequence[Example]) -> MicroBatchLoss:
    if model.config._attn_implementation in {NAME, "sdpa"} - {attention := own_attention(model)}:
        model.set_attn_implementation(attention)
    # Padding stands to the right, in the future of every real token: causal attention needs no mask for it.
    inputs, targets, weights = (tensor.to(model.device) for tensor in pad_examples(examples, pad_token_id=0))
    trained = weights > 0
    columns = trained.any(0).nonzero()[:, 0]
    logits = compute_logits(model, columns, input_ids=inputs, use_cache=False)[trained[:, columns]]
    total, nll = WeightedCrossEntropy.apply(logits, targets[trained], weights[trained])  # type: ignore[no-untyped-call]
    last = torch.cumsum(trained.sum(1), 0).tolist()
    own = tuple(np.arange(start, stop) for start, stop in zip([0, *last[:-1]], last, strict=True))
    return MicroBatchLoss(total, nll, own, inputs.numel())
