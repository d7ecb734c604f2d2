"""What a model does that its configuration does not tell: found by computing a few tokens twice.

Each function answers one question that decides what may be computed together, in training and in answering alike, so that a new
family, or a setting under a name that nobody has heard of, is seen all the same. Each looks at `NUM_PROBED` tokens at most.
`raised_epsilons` makes visible what is too small to be seen in a bfloat16 number: the epsilon of a norm.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tuneful.model.attention import UnsupportedAttentionError
from tuneful.model.checks import first_line
from tuneful.model.forward import compute_logits, own_attention, takes
from tuneful.model.memory import is_out_of_memory
from tuneful.model.norms import epsilon_of
from tuneful.model.precision import computes_in, in_float64

SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Logits whose relative difference is at most this are the same up to rounding, by dtype."""
NUM_PROBED = 16
_EPSILONS = ("variance_epsilon", "eps")


def failure(error: Exception) -> str:
    """What the code of a family raised at inputs that it was not written for, in a few words.

    Memory that ran out is no model's fault: that is raised again.
    """
    if is_out_of_memory(error):
        raise error
    if isinstance(error, UnsupportedAttentionError):
        return str(error)
    return f"{type(error).__name__}: {textwrap.shorten(first_line(error), 100)}"


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is wanted; infinite where one of them is not finite."""
    found, wanted = in_float64(found), in_float64(wanted)
    difference = ((found - wanted).norm() / wanted.norm()).item()
    return difference if difference == difference else float("inf")


def randomness(model: PreTrainedModel, token_ids: Sequence[int]) -> float:
    """How far two forwards of the same tokens in training mode differ; 0 where no random number falls in them."""
    ids, training = _row(token_ids, model), model.training
    devices = [model.device] if model.device.type == "cuda" else []
    logits = []
    with _as_transformers(model), torch.random.fork_rng(devices):
        model.train()
        for seed in (1, 2):
            torch.manual_seed(seed)
            logits.append(compute_logits(model, ids.shape[1], input_ids=ids, use_cache=False))
        model.train(training)
    difference = relative_difference(*logits)
    return difference if difference > SAME[computes_in(model)] / 100 else 0.0


def sees_later_tokens(model: PreTrainedModel, token_ids: Sequence[int]) -> bool:
    """Whether what `model` predicts after a token depends on tokens that come after it: then it is no causal language model."""
    ids = _row(token_ids, model)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    before = torch.arange(ids.shape[1] - 1, device=ids.device)
    with _as_transformers(model):
        one, two = (compute_logits(model, before, input_ids=row, use_cache=False) for row in (ids, other))
    return relative_difference(two, one) > SAME[computes_in(model)]


def longest_changes_others(model: PreTrainedModel, token_ids: Sequence[int], longest: int) -> bool:
    """Whether a row of `longest` tokens changes what `model` gives for a short one beside it, as rotary positions that switch
    with the length of a batch do.

    Costs a dozen tokens: the second row is as short, and only its last token stands at position `longest - 1`.
    """
    if longest <= 1 or not takes(model, "position_ids", by_name=True):
        return False
    ids = _row(token_ids, model)
    positions = torch.arange(ids.shape[1], device=ids.device)[None].repeat(2, 1)
    positions[1, -1] = max(longest - 1, ids.shape[1] - 1)
    with _as_transformers(model):
        alone = compute_logits(model, ids.shape[1], input_ids=ids, position_ids=positions[:1], use_cache=False)
        beside = compute_logits(
            model, ids.shape[1], input_ids=ids.repeat(2, 1), position_ids=positions, use_cache=False
        )
        compute_logits(model, 1, input_ids=ids[:, :1], use_cache=False)  # positions that have grown shrink again
    return relative_difference(beside[:1], alone) > SAME[computes_in(model)]


@contextmanager
def raised_epsilons(model: PreTrainedModel, token_ids: Sequence[int]) -> Iterator[None]:
    """Inside, the epsilon of every norm of `model` is as large as the mean square that it is added to.

    A norm of x with mean square m is x / sqrt(m + epsilon). Were its epsilon c times as large, it would be smaller by
    c * epsilon / 2m, which no precision shows where m is 1 and epsilon 1e-6; with epsilon = m by the factor sqrt(2 / (1 + c)),
    which is 0.82 for c = 2. m is measured on `token_ids`.
    """
    norms = [module for module in model.modules() if isinstance(epsilon_of(module), float)]
    kept = [(norm, name, getattr(norm, name)) for norm in norms for name in _EPSILONS if hasattr(norm, name)]
    ids, sizes = _row(token_ids, model), dict[torch.nn.Module, float]()

    def measure(norm: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0].float()
        mean = rows.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else 0
        sizes[norm] = (rows - mean).square().mean().item()

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with _as_transformers(model):
            compute_logits(model, 1, input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    try:
        for norm, name, epsilon in kept:
            setattr(norm, name, sizes.get(norm, epsilon))
        yield
    finally:
        for norm, name, epsilon in kept:
            setattr(norm, name, epsilon)


@contextmanager
def _as_transformers(model: PreTrainedModel) -> Iterator[None]:
    """The model computes without gradients and through transformers' own attention, and as before afterwards."""
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(own_attention(model))
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        model.set_attn_implementation(attention)


def _row(token_ids: Sequence[int], model: PreTrainedModel) -> torch.Tensor:
    return torch.tensor([list(map(int, token_ids[:NUM_PROBED]))], device=model.device)
