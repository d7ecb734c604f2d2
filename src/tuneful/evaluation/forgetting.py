"""Forgetting: the loss on the same general text before and after the finetuning.

Stands over `metric_comparison.py`, and asks the model for losses. Two measures, both on text that the finetuning never showed:

    forgetting   bits per byte of general text: the built-in sample (evaluation/general/, written for this project) or a file of
                 the user's. Higher after than before: the model has become worse at text of other kinds.
    kl_to_base   bits per token of samples that the base model itself wrote at temperature 1, before and after. Their
                 difference is an unbiased estimate of the Kullback-Leibler divergence per token from the base model to the
                 tuned one: how far the model has moved on what it would have written, right or wrong.

Bits are counted by byte, not by token, so that models with different tokenizers compare. All tokens of a text but its first are
targets: how a document begins is chance. The trade: a forward pass over sixty passages (7,000 tokens) under each model and,
before the training, 500 tokens of generation.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneful.config import GenerateConfig
from tuneful.errors import DataError
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import FORGETTING
from tuneful.evaluation.statistics import Ratio
from tuneful.model.load import context_length
from tuneful.runs.schema import GeneralScore, MetricComparison
from tuneful.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tuneful.encoding.tokens import TextEncoder
    from tuneful.runs.schema import Layout

MAX_GENERAL_BYTES = 1 << 17
"""How much of a user's general file is read, from its beginning: a minute or two on two cores."""

_MAX_PASSAGE_BYTES = 2048
_NUM_SAMPLES, _SAMPLE_PROMPT_TOKENS, _SAMPLE_TOKENS = 16, 8, 32
_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*(?:\n|$))+")
_SAMPLING = GenerateConfig(max_new_tokens=_SAMPLE_TOKENS, temperature=1.0)


@dataclass(frozen=True, slots=True)
class GeneralText:
    """A stretch of general text: `source` names it, `text` has at least one character."""

    source: str
    text: str


def read_general(general: str) -> list[GeneralText]:
    """The texts that `report.general` names: `builtin`, `none`, or a file of plain text or JSONL whose rows hold `text`.

    Passages of plain text are divided by blank lines. At most `MAX_GENERAL_BYTES` are read. DataError where the file
    cannot be read or holds no text.
    """
    if general == "none":
        return []
    if general == "builtin":
        return list(_builtin_texts())
    path = Path(general)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_GENERAL_BYTES)
            is_cut = bool(stream.read(1))
        text = content.decode("utf-8-sig", "ignore" if is_cut else "strict")
    except OSError as error:
        raise DataError(f"{path}: general text cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 ({error.reason})") from None
    rows = (
        _jsonl_texts(path, text, is_cut) if path.suffix.lower() in (".jsonl", ".ndjson") else _plain_texts(path, text)
    )
    found = list(rows)
    if not found:
        raise DataError(f"{path}: holds no text; report.general is plain text, or JSONL whose rows hold `text`")
    return found


def score_passages(
    model: PreTrainedModel, encoder: TextEncoder, texts: Sequence[GeneralText], layout: Layout
) -> list[GeneralScore]:
    """The loss of `model` on each text; a text too long for it is cut into stretches, each scored on its own."""
    from tuneful.train.loop import record_nll  # here, so that results can be compared without loading torch

    room = min(
        _MAX_PASSAGE_BYTES, context_length(model) - 1
    )  # a token is a byte at least, so a stretch of `room` bytes fits
    stretches = [GeneralText(text.source, part) for text in texts for part in _stretches(text.text, room)]
    read = [(text, example) for text in stretches if (example := _example(text, encoder))]
    nll = record_nll(model, [example for _, example in read], layout)
    return [_passage_score(text, example, own) for (text, example), own in zip(read, nll, strict=True)]


def write_samples(
    model: PreTrainedModel, encoder: TextEncoder, texts: Sequence[GeneralText], layout: Layout, *, seed: int
) -> list[GeneralScore]:
    """Samples that `model` writes at temperature 1 from the first words of some of `texts`, and its loss on them."""
    from tuneful.infer.generate import generate

    chosen = [texts[len(texts) * index // _NUM_SAMPLES] for index in range(min(_NUM_SAMPLES, len(texts)))]
    longest = max(1, min(_SAMPLE_PROMPT_TOKENS, context_length(model) - _SAMPLE_TOKENS))
    prompts = [_token_ids(text, encoder)[:longest] for text in chosen]
    stop = {encoder.end_token_id, *encoder.stop_token_ids}
    written = dict(generate(model, prompts, _SAMPLING, stop, seed=seed))
    samples = [
        GeneralScore("sample", text.source, 0.0, 1, 0, "", (*prompt, *written[index].token_ids), len(prompt))
        for index, (text, prompt) in enumerate(zip(chosen, prompts, strict=True))
    ]
    return score_samples(model, encoder, samples, layout)


def score_samples(
    model: PreTrainedModel, encoder: TextEncoder, samples: Sequence[GeneralScore], layout: Layout
) -> list[GeneralScore]:
    """The same token ids, with the loss of `model` on them."""
    from tuneful.train.loop import record_nll

    examples = [_targets_from(sample.token_ids, sample.num_prompt_tokens, sample.source) for sample in samples]
    return [
        GeneralScore(
            "sample",
            sample.source,
            nll,
            len(sample.token_ids) - sample.num_prompt_tokens,
            len(encoder.token_text(sample.token_ids[sample.num_prompt_tokens :]).encode("utf-8")),
            "",
            sample.token_ids,
            sample.num_prompt_tokens,
        )
        for sample, nll in zip(samples, record_nll(model, examples, layout), strict=True)
    ]


def covers(
    scores: Sequence[GeneralScore], texts: Sequence[GeneralText], samples: Sequence[GeneralScore] | None = None
) -> bool:
    """Whether `scores`, found in a resumed run, are those of `texts`, and of the same `samples` where these are given."""
    num_bytes = {text.source: len(text.text.encode("utf-8")) for text in texts}
    found = dict.fromkeys(num_bytes, 0)
    for score in scores:
        if score.kind == "passage":
            found[score.source] = found.get(score.source, 0) + score.num_bytes
    own = [score.token_ids for score in scores if score.kind == "sample"]
    same_samples = bool(own) if samples is None else own == [sample.token_ids for sample in samples]
    return found == num_bytes and same_samples


def compare_forgetting(
    base: Iterable[GeneralScore], tuned: Iterable[GeneralScore], *, confidence: float, num_resamples: int, seed: int
) -> tuple[MetricComparison, ...]:
    """Forgetting, and KL to base where there are samples, with the intervals over passages and over samples.

    Only texts that both models read count: the same bytes, or for a sample the same tokens. KL to base has no verdict but
    "changed" and "cannot tell": to move is what finetuning is for.
    """
    base_by_key, tuned_by_key = _by_text(base), _by_text(tuned)
    found = []
    for spec, kind in zip(FORGETTING, ("passage", "sample"), strict=True):
        shared = [key for key in base_by_key if key in tuned_by_key and key[0] == kind]
        if shared:
            pair = tuple(
                _bits_per([scores[key] for key in shared], per_byte=kind == "passage")
                for scores in (base_by_key, tuned_by_key)
            )
            found += compare_ratios(
                [(spec, (pair[0], pair[1]))], confidence=confidence, num_resamples=num_resamples, seed=seed
            )
    return tuple(found)


def _bits_per(scores: Sequence[GeneralScore], per_byte: bool) -> Ratio:
    bits = np.array([score.nll for score in scores]) / math.log(2)
    return Ratio(
        bits, np.array([score.num_bytes if per_byte else score.num_tokens for score in scores], dtype=np.float64)
    )


def _passage_score(text: GeneralText, example: Example, nll: float) -> GeneralScore:
    content = text.text.encode("utf-8")
    digest = hashlib.sha256(content).hexdigest()[:16]
    return GeneralScore("passage", text.source, nll, int((example.weights > 0).sum()), len(content), digest)


def _token_ids(text: GeneralText, encoder: TextEncoder) -> list[int]:
    """The text after the tokenizer's own begin token, where it has one; what looks like a special token is encoded as text."""
    return [*encoder.begin_token_ids, *encoder.text_ids(text.text)]


def _example(text: GeneralText, encoder: TextEncoder) -> Example | None:
    """The text with all tokens but its first as targets; None where that leaves nothing."""
    num_begin = len(encoder.begin_token_ids) + 1
    ids = _token_ids(text, encoder)
    return _targets_from(ids, num_begin, text.source) if len(ids) > num_begin else None


def _targets_from(token_ids: Sequence[int], start: int, source: str) -> Example:
    weights = np.zeros(len(token_ids), dtype=np.float32)
    weights[start:] = 1.0
    return Example(np.asarray(token_ids, dtype=np.int32), weights, start, source)


def _stretches(text: str, max_bytes: int) -> Iterator[str]:
    """`text` in stretches of at most `max_bytes` bytes, cut behind white space where there is any."""
    while len(text.encode("utf-8")) > max_bytes:
        head = text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
        cut = max(head.rfind(" "), head.rfind("\n")) + 1 or len(head)
        yield text[:cut]
        text = text[cut:]
    if text.strip():
        yield text


def _by_text(scores: Iterable[GeneralScore]) -> dict[tuple[Any, ...], GeneralScore]:
    return {(score.kind, score.source, score.num_bytes, score.sha256, score.token_ids): score for score in scores}


def _builtin_texts() -> Iterator[GeneralText]:
    folder = resources.files("tuneful.evaluation").joinpath("general")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".txt"):
            passages = file.read_text(encoding="utf-8").split("\n---\n")
            for number, passage in enumerate(passages, start=1):
                yield GeneralText(f"{file.name}#{number}", passage.strip())


def _plain_texts(path: Path, text: str) -> Iterator[GeneralText]:
    text = text.replace("\r\n", "\n")
    for block in _PARAGRAPH.finditer(text):
        yield GeneralText(f"{path.name}:{1 + text.count(chr(10), 0, block.start())}", block.group().strip("\n"))


def _jsonl_texts(path: Path, text: str, is_cut: bool) -> Iterator[GeneralText]:
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1] if is_cut else lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(
                f"{path}:{number}: not valid JSON; report.general is JSONL whose rows hold `text`"
            ) from None
        passage = row.get("text") if isinstance(row, dict) else None
        if not isinstance(passage, str):
            raise DataError(f"{path}:{number}: no `text`; report.general is JSONL whose rows hold `text`")
        if passage.strip():
            yield GeneralText(f"{path.name}:{number}", passage)
