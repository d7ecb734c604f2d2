"""The layout of a model that is measured and not trained: the trie where it computes what each record alone does, else alone.

Stands beside `layout.py`, whose self-check compares gradients, too; here nothing is trained, and log-likelihoods alone are
compared, in the precision that computes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tuneful.model.attention import use_trie_attention
from tuneful.model.behaviour import failure
from tuneful.runs.schema import Layout
from tuneful.train.layout import cut_micro_batches, why_not_shared
from tuneful.train.loss import micro_batch_loss
from tuneful.train.memory import affordable_tokens
from tuneful.train.tolerance import loss_tolerance
from tuneful.types import Example

_CHECK_RECORDS, _CHECK_TOKENS = 8, 1024


def layout_for_scoring(model: PreTrainedModel, examples: Sequence[Example]) -> Layout:
    """How `examples` are laid out for `record_nll`: as a trie, or one at a time, with the reason."""
    reason = why_not_shared(model) or _difference(model, examples[:_CHECK_RECORDS])
    if reason is not None:
        return Layout("padded", 1, f"one record at a time, because {reason}")
    return Layout("trie", affordable_tokens(model, model.dtype, False), None)


def _difference(model: PreTrainedModel, few: Sequence[Example]) -> str | None:
    """What is different where some of `few` are computed as a trie; None where they are as each alone."""
    if not few:
        return None
    few = next(cut_micro_batches(few, _CHECK_TOKENS, "trie"))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = [micro_batch_loss(model, [one], "padded").record_nll()[0] for one in few]
            use_trie_attention(model)
            together = micro_batch_loss(model, few, "trie").record_nll()
    except Exception as error:  # of the code of any family, at inputs that it was not written for
        return f"the model cannot be computed as a trie ({failure(error)})"
    finally:
        model.train(was_training)
    for example, one, other in zip(few, together, alone, strict=True):
        if not abs(one - other) <= loss_tolerance(model, [example], max(1.0, abs(other))):
            return f"a log-likelihood is {-one:.8g} as a trie and {-other:.8g} alone"
    return None
