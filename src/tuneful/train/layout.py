"""How the records of a step are laid out: which layout, how many tokens at once, and the self-check that it computes the same.

Three layouts give the same sum (`loss.py`). The trie is chosen wherever the model allows it and a few records, computed both
ways before the first step, agree with each record alone; else the padded batch, where that agrees; else one record at a time,
each with the reason. Code of transformers that no test has seen is proved on more records. A step is then cut into micro-batches
of at most `max_tokens` computed tokens, which changes no result.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel

from tuneful.batch.shares import longest_side
from tuneful.batch.trie import common_prefix, token_order
from tuneful.config import TrainConfig
from tuneful.errors import InputError, ModelError, OutOfMemoryError
from tuneful.model.attention import gpu_attention, has_windows, use_trie_attention, why_no_trie
from tuneful.model.behaviour import (
    NUM_PROBED,
    failure,
    longest_changes_others,
    raised_epsilons,
    randomness,
    sees_later_tokens,
)
from tuneful.model.decoder import is_served
from tuneful.model.freeze import activations_computed_again
from tuneful.model.load import UNLIMITED, context_length
from tuneful.model.memory import give_back_freed_memory
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.precision import computes_in, ieee_float32, in_float64
from tuneful.model.quantize import compute_in
from tuneful.model.repeatable import repeatable
from tuneful.model.sources import why_unknown
from tuneful.runs.schema import Layout, LayoutName
from tuneful.train.distributed import ProcessGroup, forget_forward, full_tensor, is_sharded
from tuneful.train.loss import micro_batch_loss
from tuneful.train.memory import affordable_tokens, out_of_memory_says
from tuneful.train.objective import AllSides
from tuneful.train.tolerance import gradient_tolerance, loss_tolerance
from tuneful.types import Example, sides_of

_OF_A_KIND, _SMALL_KIND = 1.5, 1e-2
"""How much further the gradient of one kind of parameter may be off than that of all, which averages over them; and the share of
the whole under which a kind is measured against that share. A fault shows in the kind that it strikes: scores of twice their
scale move the gradient of q_proj by 0.5 of its norm, and that of all by 0.04."""

_LAYER_NUMBER = re.compile(r"^.*\.\d+\.")

_Gradients = dict[str, torch.Tensor]
_LossAndGradients = tuple[float, _Gradients]

_CHECK_RECORDS, _CHECK_TOKENS = 4, 1024
"""How much is computed both ways before the first step: a second or two on a small model."""


@ieee_float32()
def choose_layout(
    model: PreTrainedModel,
    examples: Sequence[Example],
    config: TrainConfig,
    dtype: torch.dtype,
    others: Iterable[Sequence[Example]] = (),
) -> Layout:
    """The layout that `config` asks for where the model allows it and passes the self-check, else the next slower one that does.

    To be called while `model` is still in float32, where the self-check is sharp. It is made once more in `dtype`, the compute
    dtype of the training: the kernels and the rounding are another's there. A base that is in `dtype` already, as a frozen one
    in bfloat16 or a sharded model is, is checked in that alone: a copy in float32 would take more memory than the training. Of a
    sharded model every rank has to call. `others` are the sets besides `examples` that will be computed so. ModelError where the
    model cannot be computed, or sees tokens that come later.
    """
    examples, others = AllSides(examples), [AllSides(one) for one in others]
    max_tokens = config.micro_batch_tokens or affordable_tokens(model, dtype, config.activation_checkpointing)
    few = next(cut_micro_batches(examples[:_CHECK_RECORDS], _CHECK_TOKENS, config.layout))
    few += _beyond_window(model, few, examples) if config.layout != "padded" else []
    with _computing_in(model, held := computes_in(model)):  # the adapter of a base in bfloat16, too
        not_shared, not_padded = _why_not(model, few, (examples, *others), config.layout)
    if not_shared is None and config.layout != "padded" and (dtype != held or dtype.itemsize == 2):
        again = [few] if dtype != held else []
        not_shared = _why_not_in(dtype, model, [*again, *_smallest_and_largest(examples, config)])
    unknown = why_unknown(model) if not_shared is None and config.layout != "padded" and is_served(model) else None
    if unknown:
        not_shared = _why_not_unknown(dtype, model, examples)
    layout = functools.partial(Layout, note=unknown and f"{unknown}: the self-check compares two more batches")
    if not_padded is not None:
        known = not_shared is None or not_shared == not_padded
        reason = not_padded if known else f"{not_shared}; {not_padded}"
        return layout("padded", 1, f"one record at a time, because {reason}")
    if config.layout == "padded" or not_shared is not None:
        return layout("padded", max_tokens, not_shared)
    if config.layout == "trie" and (dropout := adapter_dropout(model)):
        return layout("unshared", max_tokens, f"lora.dropout {dropout:g} falls anew on every record")
    return layout(config.layout, max_tokens)


def _beyond_window(model: PreTrainedModel, few: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The shortest record that is longer than the window of some layers, where none of `few` is: only there a window shows."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or math.inf
    if not has_windows(model) or max(map(len, few)) - 1 > window:
        return []
    return sorted((example for example in examples if len(example) - 1 > window), key=len)[:1]


def _smallest_and_largest(examples: Sequence[Example], config: TrainConfig) -> Iterator[list[Example]]:
    """Of the records of the first steps the shortest alone, and the longest with as many others as the check takes."""
    first = sorted(examples[: 2 * config.batch_size], key=len)
    yield first[:1]
    yield next(cut_micro_batches(first[: -_CHECK_RECORDS - 1 : -1], max(_CHECK_TOKENS, len(first[-1])), "padded"))


def _why_not_unknown(dtype: torch.dtype, model: PreTrainedModel, examples: Sequence[Example]) -> str | None:
    """Why `model`, whose code no test has seen, must not share prefixes: two more batches, from a third and two thirds of the way
    through `examples`; then the second where another epsilon shows, in the model's precision, which may be sharper, too."""
    starts = [len(examples) * part // 3 for part in (1, 2)]
    batches = [
        next(cut_micro_batches(examples[start : start + _CHECK_RECORDS], _CHECK_TOKENS, "trie")) for start in starts
    ]
    raised = (_why_not_in(one, model, batches[1:], raised=True) for one in dict.fromkeys((computes_in(model), dtype)))
    return _why_not_in(dtype, model, batches) or next(filter(None, raised), None)


def _why_not_in(
    dtype: torch.dtype, model: PreTrainedModel, batches: Iterable[Sequence[Example]], *, raised: bool = False
) -> str | None:
    """Why `model` must not share prefixes while it computes in `dtype`; None where it may. `raised`: with `raised_epsilons`."""
    name = str(dtype).removeprefix("torch.")
    with _without_adapter_dropout(model), _computing_in(model, dtype):
        for batch in batches:
            with raised_epsilons(model, _probe(batch)) if raised else nullcontext():
                reason = _fitting_check(model, batch)
            if reason:
                return f"in {name} {reason}" + (", its norms' epsilons raised" if raised else "")
    return None


@contextmanager
def _computing_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the parameters of `model` are those that a training in `dtype` multiplies by; afterwards they are as they were."""
    if is_sharded(model):  # layers are gathered in what they compute in
        yield
        return
    kept = [(one, one.data) for one in model.parameters() if one.is_floating_point() and one.dtype != dtype]
    before = model.dtype
    compute_in(model, dtype)
    for parameter, data in kept:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
        compute_in(model, before)


def _why_not(
    model: PreTrainedModel, few: Sequence[Example], sets: Iterable[Sequence[Example]], wanted: LayoutName
) -> tuple[str | None, str | None]:
    """Why records must not share prefixes, where they are `wanted` to; and where they must not, or are not, why they must not be
    computed as a padded batch. None where they may.

    Raises ModelError where not even a record alone can be computed.
    """
    with _without_adapter_dropout(model):
        try:
            _check_causal(model, few)
            random, mixed = why_random(model, few), _why_not_mixed(model, few, sets)
            not_shared = None
            if wanted != "padded":
                not_shared = random or mixed or why_not_shared(model) or _fitting_check(model, few)
                if not_shared is None:
                    return None, None
            return not_shared, mixed or _fitting_check(model, few, "padded", training=not random)
        except (InputError, OutOfMemoryError):
            raise
        except Exception as error:  # of the code of any family, on a record alone
            raise ModelError(
                f"{type(model).__name__} cannot be trained on text alone ({failure(error)}); choose a model that continues text"
            ) from error


def cut_micro_batches(examples: Sequence[Example], max_tokens: int, layout: LayoutName) -> Iterator[list[Example]]:
    """The examples of one optimizer step in micro-batches of at most `max_tokens` computed tokens, or of one record: a pair stays
    together. Taken in the order of their token ids, so that those that share a prefix meet (padded: of their length)."""
    batch: list[Example] = []
    num_computed = 0
    for example in sorted(examples, key=longest_side if layout == "padded" else token_order):
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

    def cut(share: list[Example]) -> list[list[Example]]:
        return list(cut_micro_batches(share, layout.max_tokens, layout.name)) if share else []

    shares = group.shares(examples, layout.name)
    own = [(batch, True) for batch in cut(shares[group.rank])]
    if not group.sharded:
        return own
    spare = own[0][0] if own else [min(examples, key=len)]
    return own + [(spare, False)] * (max(len(cut(share)) for share in shares) - len(own))


def why_not_shared(model: PreTrainedModel) -> str | None:
    """What the configuration of `model` has that forbids sharing prefixes; None for nothing."""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        return "the model's router loss counts tokens"
    return why_no_trie(model)


def why_random(model: PreTrainedModel, examples: Sequence[Example]) -> str | None:
    """Why nothing that is computed for one record may be taken for another: random numbers that fall in training, under whatever
    name; None where there are none. (An adapter's dropout: `adapter_dropout`.)"""
    if dropout := largest_dropout(model):
        return (
            f"the model has dropout {dropout:g}, which falls anew on every record; model.dropout=0 would allow sharing"
        )
    if not (difference := randomness(model, _probe(examples))):
        return None
    values = {name: value for name, value in model.config.get_text_config().to_dict().items() if _is_noise(name, value)}
    named = (
        f" ({', '.join(f'{name} {value:g}' for name, value in values.items())} in its config.json)" if values else ""
    )
    return f"the model draws random numbers in training{named}: two forwards of one record differ by {difference:.1g}"


def _is_noise(name: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and any(word in name for word in ("drop", "jitter", "noise"))


def _why_not_mixed(
    model: PreTrainedModel, examples: Sequence[Example], sets: Iterable[Sequence[Example]]
) -> str | None:
    """Why records of unlike length must not be computed together; None where they may."""
    probe, context = _probe(examples), context_length(model)
    if context < UNLIMITED and not longest_changes_others(model, probe, context):
        return None  # without reading how long the records are
    longest = max(len(example) - 1 for examples in sets for example in examples)
    if not longest_changes_others(model, probe, longest):
        return None
    return f"a record of {longest} tokens changes what the model computes for shorter ones beside it"


def _check_causal(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """ModelError where the model looks at tokens that come later."""
    if sees_later_tokens(model, _probe(examples)):
        raise ModelError(
            f"{type(model).__name__} sees tokens that come later, so it cannot learn to continue text; choose a causal model, or "
            'set "is_decoder": true in its config.json where its architecture has that'
        )


def _probe(examples: Sequence[Example]) -> list[int]:
    """The first tokens of the longest record."""
    ids: list[int] = max(examples, key=len).token_ids[:-1][:NUM_PROBED].tolist()
    return ids


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
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                yield module, name


def _adapter_dropouts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.modules.dropout._DropoutNd]]:
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, torch.nn.modules.dropout._DropoutNd):
            yield name, module


def self_check(
    model: PreTrainedModel, examples: Sequence[Example], layout: LayoutName = "trie", *, training: bool = True
) -> str | None:
    """Compute `examples` together and one record at a time; None where loss and gradient agree, else what is different.

    In training mode, as they will be trained; where random numbers fall in it, only evaluation mode (`training=False`) can tell.
    """
    name, was_training = {"trie": "as a trie", "padded": "as a padded batch"}[layout], model.training
    model.train(training)
    try:
        alone = _loss_and_gradients(model, [[example] for example in examples], "padded")
        together = _together(model, examples, layout)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    if isinstance(together, str):
        return f"the model cannot be computed {name} ({together})"
    (loss, gradients), (loss_alone, gradients_alone) = together, alone
    if not abs(loss - loss_alone) <= loss_tolerance(model, examples, loss_alone):
        return f"the loss is {loss:.8g} {name} and {loss_alone:.8g} one record at a time"
    for kind, difference in _differences(gradients, gradients_alone).items():
        if not difference <= gradient_tolerance(model) * (_OF_A_KIND if kind else 1):
            gradient = f"gradient of {kind}" if kind else "gradient"
            return f"the {gradient} differs {name} from that of one record at a time by {difference:.2g} of its norm"
    return None


def _fitting_check(
    model: PreTrainedModel, examples: Sequence[Example], layout: LayoutName = "trie", *, training: bool = True
) -> str | None:
    """`self_check` of as many of `examples` as the memory has room for. OutOfMemoryError where one alone is too many, and at once
    where the model is sharded: the other ranks compute the same examples."""
    while True:
        try:
            return self_check(model, examples, layout, training=training)
        except OutOfMemoryError:
            if len(examples) == 1 or is_sharded(model):
                raise
        examples = examples[: len(examples) // 2]
        give_back_freed_memory()


def _differences(found: _Gradients, wanted: _Gradients) -> dict[str, float]:
    """How far gradients are from those `wanted`, as a share of their norm: of all (""), and of each kind of parameter, in all
    layers; of a kind smaller than `_SMALL_KIND` of all as a share of that."""
    if found.keys() != wanted.keys():
        return {"": math.inf}
    squares: dict[str, list[float]] = {}
    for name, gradient in wanted.items():
        one = [full_tensor(in_float64(part).norm()).item() ** 2 for part in (found[name] - gradient, gradient)]
        for kind in ("", _LAYER_NUMBER.sub("", name)):
            squares[kind] = [sum(pair) for pair in zip(squares.get(kind, (0, 0)), one, strict=True)]
    smallest = _SMALL_KIND**2 * squares[""][1]
    return {kind: math.sqrt(apart / max(size, smallest)) for kind, (apart, size) in squares.items()}


def _together(model: PreTrainedModel, examples: Sequence[Example], layout: LayoutName) -> _LossAndGradients | str:
    """Loss and gradients of `examples` in one micro-batch; or what the family's code raised at it."""
    try:
        if layout == "trie":
            use_trie_attention(model)
        return _loss_and_gradients(model, [list(examples)], layout)
    except Exception as error:  # of the code of any family, at inputs that it was not written for
        forget_forward(model)
        return failure(error)


@contextmanager
def _without_adapter_dropout(model: torch.nn.Module) -> Iterator[None]:
    """No value that an adapter gets is dropped inside: what falls at random cannot be compared."""
    kept = [(module, module.p) for _, module in _adapter_dropouts(model)]
    try:
        for module, _ in kept:
            module.p = 0.0
        yield
    finally:
        for module, probability in kept:
            module.p = probability


def _grown(num_computed: int, batch: Sequence[Example], example: Example, layout: LayoutName) -> int:
    """How many tokens a micro-batch computes once `example` has joined it, records coming in sorted order."""
    sides = sides_of(example)
    if layout == "padded":
        return (len(batch) + 1) * len(sides) * (longest_side(example) - 1)
    for before, side in zip((batch[-1] if batch else None, example), sides, strict=False):
        shared = common_prefix(before, side) if before is not None and layout == "trie" else 0
        num_computed += len(side) - 1 - shared
    return num_computed


def _loss_and_gradients(
    model: PreTrainedModel, micro_batches: Sequence[Sequence[Example]], layout: LayoutName
) -> _LossAndGradients:
    total = 0.0
    # What a base in 4 bits takes is little: the check, in transformers' own forward, is not to take more than the training.
    with activations_computed_again(model) if is_in_4_bits(model) else nullcontext():
        for examples in micro_batches:
            with out_of_memory_says(examples), repeatable(model.device):
                loss = micro_batch_loss(model, examples, layout).total
                if loss.requires_grad:
                    loss.backward()
                total += loss.item()
                del loss
            if layout == "trie" and gpu_attention(model) == "flex_attention":  # whose evaluations are another graph
                with torch.no_grad():
                    micro_batch_loss(model, examples, layout)
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    if not gradients:
        raise ModelError(
            "no gradient reaches any of the parameters that are to be trained: name other layers in lora.target_modules, or "
            "freeze fewer with train.freeze_layers"
        )
    model.zero_grad(set_to_none=True)
    return total, gradients
