"""The tokenizer of a GGUF file: vocabulary, merges or scores, how text is split, which token ends and whether one begins.

Decided from the tokenizer's own description (tokenizer.json), never from a checksum of what it makes of some text: what cannot be
said in a GGUF file is refused with what it is. Whether llama.cpp then makes the same ids is tried afterwards (`runtime.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneful.errors import ModelError
from tuneful.export.gguf_shapes import Value
from tuneful.export.source import Source
from tuneful.types import Conversation, Turn

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`, after https://github.com/ggml-org/llama.cpp."""

_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITTERS: Mapping[tuple[str, bool], str] = {
    ("gpt-2", False): "gpt-2",
    ("digits gpt-2", False): "smollm",
    (_LLAMA_3, True): "llama-bpe",
    (_LLAMA_3, False): "smaug-bpe",
    (_QWEN_2, False): "qwen2",
}
"""How text is split, and whether a text that is a token is one at once (`ignore_merges`): llama.cpp's name for both."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_UNREACHED = -1e9
"""The score of a token that no merge makes."""


def tokenizer_keys(source: Source) -> dict[str, Value]:
    """The `tokenizer.*` keys of the file; ModelError for a tokenizer that llama.cpp has no words for."""
    document = json.loads(source.tokenizer.backend_tokenizer.to_str())
    if document["model"]["type"] != "BPE":
        raise _unknown(source, f"a tokenizer of kind {document['model']['type']}")
    kind = _sentencepiece_keys if document["model"].get("byte_fallback") else _byte_level_keys
    tokens, types = _vocabulary(source, document)
    return {
        **kind(source, document, tokens),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **_special_keys(source),
        "tokenizer.chat_template": portable_chat_template(source.chat_template),
    }


def adds_bos(source: Source) -> bool:
    """Whether the begin token is the runtime's to put before a prompt: the tokenizer adds one, and training had it."""
    bos = source.tokenizer.bos_token_id
    if bos is None or source.tokenizer("", add_special_tokens=True)["input_ids"][:1] != [bos]:
        return False
    return source.encoder.prompt_ids(Conversation("", (Turn("a", "", "b"),), "a prompt"))[:1] == [bos]


def portable_chat_template(source: str) -> str:
    """A chat template for readers that do not know transformers' `generation` blocks: each becomes one that is always true."""
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source)


# The vocabulary


def _vocabulary(source: Source, document: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Every token by its id with its type, up to the rows of the embedding."""
    num_rows = int(source.architecture.vocab_size)
    vocab: Mapping[str, int] = document["model"]["vocab"]
    tokens: dict[int, tuple[str, int]] = {}
    for content, token_id in vocab.items():
        tokens[token_id] = (content, _plain_type(content, document))
    control = source.encoder.text.control_token_ids
    for added in document["added_tokens"]:
        is_control = added["special"] or added["id"] in control
        tokens[added["id"]] = (added["content"], CONTROL if is_control else USER_DEFINED)
    if max(tokens) >= num_rows:
        raise ModelError(f"{source.folder}: its tokenizer has token {max(tokens)}, its embedding {num_rows} rows")
    whole = [tokens.get(token_id, (f"[PAD{token_id}]", UNUSED)) for token_id in range(num_rows)]
    return [content for content, _ in whole], [kind for _, kind in whole]


def _plain_type(content: str, document: Mapping[str, Any]) -> int:
    if content == document["model"].get("unk_token"):
        return UNKNOWN
    return BYTE if document["model"].get("byte_fallback") and _BYTE_TOKEN.fullmatch(content) else NORMAL


def _special_keys(source: Source) -> dict[str, Value]:
    """One token ends an answer, the one that training taught; no other is named as an end."""
    tokenizer = source.tokenizer
    keys: dict[str, Value] = {
        "tokenizer.ggml.eos_token_id": source.encoder.text.end_token_id,
        "tokenizer.ggml.add_bos_token": adds_bos(source),
        "tokenizer.ggml.add_eos_token": False,
    }
    for name, token_id in (
        ("bos", tokenizer.bos_token_id),
        ("unknown", tokenizer.unk_token_id),
        ("padding", tokenizer.pad_token_id),
    ):
        if token_id is not None:
            keys[f"tokenizer.ggml.{name}_token_id"] = int(token_id)
    return keys


# Byte-level BPE


def _byte_level_keys(source: Source, document: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Value]:
    kinds = [step["type"] for step in _steps(document["normalizer"], "normalizers")]
    if set(kinds) - {"NFC"}:
        raise _unknown(source, f"a normalizer {kinds[0]}")
    how = " ".join(filter(None, (_split(step) for step in _steps(document["pre_tokenizer"], "pretokenizers"))))
    name = _SPLITTERS.get((how, bool(document["model"].get("ignore_merges"))))
    if name is None:
        raise _unknown(source, f"the splitter {how!r}")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in _merges(document)],
    }


def _split(step: Mapping[str, Any]) -> str:
    """How a step of the pre-tokenizer splits, in the words of `_SPLITTERS`; "" where it does not."""
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return "gpt-2" if step.get("use_regex", True) else ""
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex", step["pattern"]))
    return json.dumps(step)


# SentencePiece


def _sentencepiece_keys(source: Source, document: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Value]:
    """llama.cpp merges the pair whose token has the best score: here the one that is merged first."""
    steps = [*_steps(document["normalizer"], "normalizers"), *_steps(document["pre_tokenizer"], "pretokenizers")]
    if odd := [step["type"] for step in steps if not _marks_spaces(step)]:
        raise _unknown(source, f"a step {odd[0]}")
    scores: dict[str, float] = {}
    for rank, (first, second) in enumerate(_merges(document)):
        scores.setdefault(first + second, -float(rank))
    prefixed = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [scores.get(token, 0.0 if len(token) == 1 else _UNREACHED) for token in tokens],
        "tokenizer.ggml.add_space_prefix": prefixed,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }


def _marks_spaces(step: Mapping[str, Any]) -> bool:
    """Whether a step does what SentencePiece does to spaces, or nothing that a merge could tell."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
    if step["type"] == "Split":  # Gemma's: there are no spaces left to split at
        return bool(step["pattern"] == {"String": " "})
    return (step["type"] == "Prepend" and step["prepend"] == _SPACE) or (
        step["type"] == "Metaspace" and step["replacement"] == _SPACE and not step.get("split", True)
    )


def _merges(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs, best first; older files hold them as one text."""
    for merge in document["model"]["merges"]:
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield first, second


def _steps(step: Any, key: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the steps that it is made of."""
    if step is None:
        return []
    return [inner for part in step[key] for inner in _steps(part, key)] if key in step else [step]


def _unknown(source: Source, what: str) -> ModelError:
    return ModelError(
        f"{source.folder}: llama.cpp is not known to encode text with {what} as this tokenizer does; export it --to huggingface"
    )
