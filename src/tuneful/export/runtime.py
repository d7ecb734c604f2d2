"""A GGUF file in llama.cpp, compared with the model that it was made from: ids, prompts, logits, answers.

The trained model is loaded once, in float32, as generation loads it; an adapter is then merged by peft, not by the arithmetic
that wrote the file. For the second half its numbers are replaced by those of the file, tensor by tensor, which shows apart what
the type costs and what the runtime does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from tuneful.config import GenerateConfig
from tuneful.export.gguf_check import read_rows
from tuneful.export.gguf_shapes import angle_base
from tuneful.export.gguf_tensors import GgufTensor
from tuneful.export.gguf_tokenizer import adds_bos
from tuneful.export.gguf_types import STEPS, GgufType
from tuneful.export.parts import (
    BOUNDS,
    NextToken,
    answers_part,
    endings_part,
    listed,
    not_made,
    rounding_part,
    runtime_part,
)
from tuneful.export.probes import probe_conversations, probe_texts
from tuneful.export.sharpness import move_at_random, rounding_as_llama_cpp
from tuneful.export.source import Source
from tuneful.infer.generate import generate, stop_token_ids
from tuneful.infer.llama_cpp import Continuation, LlamaCpp
from tuneful.model.gguf_header import GgufHeader
from tuneful.model.load import load_model
from tuneful.model.logits import prompt_logits
from tuneful.model.size import size_of
from tuneful.runs.schema import ExportPart
from tuneful.types import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NEW_TOKENS = 48
"""Tokens of each greedy answer."""
MAX_LIKELIEST = 1 << 16
"""Tokens whose probabilities are compared after a prompt: all of them in most models."""
_WEIGHTS = "the numbers of the file with those of the loaded model, up to a step of the type"
_IDS, _PROMPTS = "texts in llama.cpp's tokenizer", "prompts of llama.cpp's chat template, and their ids"


@dataclass(frozen=True, slots=True)
class Exported:
    """A GGUF file that was written, and what it was written from."""

    file: Path
    header: GgufHeader
    tensors: Sequence[GgufTensor]
    source: Source
    type: GgufType


def ids_part(llama: LlamaCpp, source: Source) -> ExportPart:
    """Token ids of texts, which hold no control token, whatever they look like."""
    text = source.encoder.text
    texts = probe_texts(tuple(text.control_token_ids.values()))
    return listed("token ids", _IDS, len(texts), _id_faults(llama, source, texts))


def _id_faults(llama: LlamaCpp, source: Source, texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        found, wanted = llama.token_ids(text), source.encoder.text.text_ids(text)
        if found != wanted:
            at = next((at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), -1)
            yield f"{text[:40]!r}: token {at} is {found[at : at + 1]}, not {wanted[at : at + 1]}"


def prompts_part(llama: LlamaCpp, source: Source) -> ExportPart:
    """Prompts as the file's chat template renders them, and their ids, which have the begin token as in training."""
    asked = renderable(source)
    return listed("prompts", _PROMPTS, len(asked), _prompt_faults(llama, source, asked))


def _prompt_faults(llama: LlamaCpp, source: Source, asked: Sequence[Conversation]) -> Iterator[str]:
    for conversation in asked:
        wanted = without_bos(source, source.encoder.prompt_text(conversation))
        found = without_bos(source, llama.rendered(messages_of(conversation)))
        if fault := prompt_id_fault(llama, source, conversation, wanted):
            yield fault
        elif found != wanted:
            yield differing("the prompt", found, wanted)


def prompt_id_fault(llama: LlamaCpp, source: Source, conversation: Conversation, rendered: str) -> str | None:
    """What is wrong with the ids that llama.cpp makes of the `rendered` prompt, which has no begin token that it adds itself."""
    found, wanted = llama.token_ids(rendered, with_control=True), source.encoder.prompt_ids(conversation)
    if found == wanted:
        return None
    bos = source.tokenizer.bos_token_id
    doubled = found[:2] == [bos, bos] and wanted[:2] != [bos, bos]
    return f"the ids of a prompt begin {found[:3]}, not {wanted[:3]}" + (
        ": the begin token is doubled" if doubled else ""
    )


def renderable(source: Source) -> list[Conversation]:
    """The conversations for prompts that the template takes: some have no system text, or one turn only."""
    from tuneful.errors import TemplateError

    found = []
    for conversation in probe_conversations():
        try:
            source.encoder.prompt_text(conversation)
        except TemplateError:
            continue
        found.append(conversation)
    return found


def messages_of(conversation: Conversation) -> list[dict[str, str]]:
    """The prompt of `conversation` as the messages of a chat; it holds text alone."""
    assert not conversation.tools, conversation.source
    assert not any(turn.calls or turn.results for turn in conversation.turns), conversation.source
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for number, turn in enumerate(conversation.turns, start=1):
        messages.append({"role": "user", "content": turn.instruction})
        if number < len(conversation.turns):
            messages.append({"role": "assistant", "content": turn.response})
    return messages


def without_bos(source: Source, text: str) -> str:
    """`text` without the begin token that the runtime puts before it; one that the template alone writes stays."""
    return text.removeprefix(source.tokenizer.bos_token or "") if adds_bos(source) else text


def differing(what: str, found: str, wanted: str) -> str:
    """Where two texts part, in a sentence."""
    at = next(
        (at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(wanted)),
    )
    start = max(0, at - 20)
    return f"{what} is {found[start : at + 40]!r} at character {at}, not {wanted[start : at + 40]!r}"


# With the model


def model_parts(
    llama: LlamaCpp, exported: Exported, asked: Sequence[Conversation], *, takes_file: bool = True
) -> list[ExportPart]:
    """Logits and answers against our own forward; where that does not fit the memory, why they were not compared.

    The file holds the whole model, unless `takes_file` is False: then llama.cpp's is compared with the trained one.
    """
    source = exported.source
    if why := _no_room(source):
        return [not_made(name, "our forward", why) for name in ("logits", "rounding", "answers", "endings")]
    model = load_model(source.name).model.float()
    prompts = [source.encoder.prompt_ids(one) for one in asked]
    trained = [_last_logits(model, prompt) for prompt in prompts]
    ours = _continued(model, source, prompts)
    theirs = [llama.continued(prompt, MAX_NEW_TOKENS) for prompt in prompts]
    excused = sum(
        _is_excused(model, prompt, one, other, exported.type)
        for prompt, one, other in zip(prompts, ours, theirs, strict=True)
    )
    most = min(MAX_LIKELIEST, int(source.architecture.vocab_size))
    found = [NextToken(*llama.log_probabilities(prompt, most)) for prompt in prompts]
    parts = [
        listed("model", "angles and end token against what the model computes with", 2, _fact_faults(model, exported)),
        answers_part(ours, theirs, excused, exported.type),
        endings_part(ours, theirs, excused, exported.type),
    ]
    if not takes_file:
        return [runtime_part(found, trained, exported.type, lambda: _as_in_llama_cpp(model, exported, prompts)), *parts]
    parts.append(listed("weights", _WEIGHTS, len(exported.tensors), take_numbers(model, exported)))
    rounded = [_last_logits(model, prompt) for prompt in prompts]
    return [
        runtime_part(found, rounded, exported.type, lambda: _as_in_llama_cpp(model, exported, prompts)),
        rounding_part(rounded, trained, exported.type, lambda: _moved_at_random(model, exported, prompts)),
        *parts,
    ]


def _as_in_llama_cpp(
    model: PreTrainedModel, exported: Exported, prompts: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The logits of `model` where it rounds what llama.cpp rounds."""
    with rounding_as_llama_cpp(model, exported.type):
        return [_last_logits(model, prompt) for prompt in prompts]


def _moved_at_random(
    model: PreTrainedModel, exported: Exported, prompts: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The logits of `model` with weights that are as far from the trained ones as those of the file."""
    move_at_random(model, exported.tensors)
    return [_last_logits(model, prompt) for prompt in prompts]


def take_numbers(model: PreTrainedModel, exported: Exported) -> list[str]:
    """Give `model` the numbers of the file, as the model lays them out; what is further from its own than rounding brings it."""
    state, faults = model.state_dict(), []
    for tensor in exported.tensors:
        if (parameter := state.get(tensor.weight_name)) is None:
            continue  # the table of stretched angles, which the model computes
        info, columns = exported.header.tensors[tensor.name], tensor.matrix_shape[1]
        read = torch.cat([tensor.restored(read_rows(exported.file, info, *at, columns)) for at in tensor.stretches()])
        numbers, largest = read.reshape(parameter.shape), float(parameter.abs().max())
        difference = float((numbers - parameter).abs().max())
        if not difference <= STEPS[tensor.type] * largest:
            faults.append(
                f"tensor {tensor.name} is not {tensor.weight_name}: they differ by {difference:.3g} of {largest:.3g}"
            )
        parameter.copy_(numbers)
    return faults


def _fact_faults(model: PreTrainedModel, exported: Exported) -> Iterator[str]:
    """What the file says otherwise than the loaded model computes: told apart from how the keys were made."""
    said = exported.header.metadata
    architecture = said["general.architecture"]
    turned: Any = next((one for name, one in model.named_modules() if name.endswith("rotary_emb")), None)
    frequencies = getattr(turned, "inv_freq", None)  # Gemma 3 has two
    base = said.get(f"{architecture}.rope.freq_base")
    if frequencies is not None and turned.rope_type in ("default", "linear"):
        own = float(frequencies[0] / frequencies[1]) ** len(frequencies)
        if isinstance(base, float) and abs(base / own - 1) > 0.01:
            yield f"{architecture}.rope.freq_base is {base:g}, and the model turns by {own:g}"
    elif isinstance(base, float) and base != angle_base(exported.source.architecture):
        yield f"{architecture}.rope.freq_base is {base:g}"
    end, wanted = said.get("tokenizer.ggml.eos_token_id"), exported.source.encoder.text.end_token_id
    if end != wanted:
        yield f"tokenizer.ggml.eos_token_id is {end}, and token {wanted} ends a response in training"


def _no_room(source: Source) -> str | None:
    size = size_of(source.base)
    needed, free = 4 * (size.num_parameters if size else 0), psutil.virtual_memory().available
    return (
        None if needed < free else f"the model in float32 takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    )


def _last_logits(model: PreTrainedModel, prompt: Sequence[int]) -> torch.Tensor:
    return prompt_logits(model, prompt)[0, -1].float().cpu()


def _continued(model: PreTrainedModel, source: Source, prompts: Sequence[Sequence[int]]) -> list[Continuation]:
    stops = stop_token_ids(model, source.encoder)
    found = generate(model, prompts, GenerateConfig(max_new_tokens=MAX_NEW_TOKENS), stops)
    answers = {index: Continuation(one.token_ids, one.finish_reason == "stop") for index, one in found}
    return [answers[index] for index in range(len(prompts))]


def _is_excused(
    model: PreTrainedModel, prompt: Sequence[int], ours: Continuation, theirs: Continuation, to: GgufType
) -> bool:
    """Whether the answers part for no fault of the file.

    Our forward has the two tokens as likely as each other, up to the bound of logits; or llama.cpp ended at a control token that
    it takes for an end by its text, whatever the file says, and ours went on after the same one.
    """
    if theirs.stopped and ours.token_ids[: len(theirs.token_ids)] == theirs.token_ids != ours.token_ids:
        return True
    bound = BOUNDS[to].logit
    pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
    at = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    if bound is None or at is None:
        return False
    logits = _last_logits(model, [*prompt, *ours.token_ids[:at]])
    gap = abs(float(logits[ours.token_ids[at]] - logits[theirs.token_ids[at]]))
    return gap <= bound * float(logits.abs().max())
