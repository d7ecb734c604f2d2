"""OpenAI's `encoder.json` and `vocab.bpe` become a tokenizer, or one message: tokens, their ids, and the pairs that make them.

The library that reads them believes a good deal: a byte without a token is left out of the text, a pair that stands twice counts
by its last place. Both would train on other tokens than were meant, and are refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.errors import ModelError
from tuneful.files import read_object
from tuneful.model.checks import first_line, named

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
MAX_BYTES = 1 << 24
"""The largest of the two files that is read; GPT-2's own has a megabyte."""

_AGAIN = "fetch it again"


def byte_pair_tokenizer(encoder: Path, merges: Path, num_rows: int) -> Tokenizer:
    """The tokenizer of the two files, for an embedding of `num_rows` rows. Raises ModelError, OSError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = _vocabulary(encoder, num_rows)
    pairs = _pairs(merges, vocabulary)
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"{merges} does not suit {encoder.name}: {first_line(error)}; fetch both again") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _vocabulary(file: Path, num_rows: int) -> dict[str, int]:
    """Token -> id; the ids are 0, 1, 2 ..., each byte has a token, and so has the end of a text."""
    from tokenizers import pre_tokenizers

    try:
        document = read_object(file)
    except ValueError as error:
        raise ModelError(f"{file} is not a JSON object: {error}; {_AGAIN}") from error
    ids = list(document.values())
    if any(type(number) is not int for number in ids) or sorted(ids) != list(range(len(ids))):
        raise ModelError(f"{file}: its {len(ids):,} tokens do not have the ids from 0 on, each once; {_AGAIN}")
    if len(ids) > num_rows:
        raise ModelError(
            f"{file} has {len(ids):,} tokens, and hparams.json says n_vocab {num_rows:,}; they belong to different models"
        )
    if missing := sorted({*pre_tokenizers.ByteLevel.alphabet(), END} - document.keys()):
        raise ModelError(f"{file} lacks the tokens {named(missing)}; {_AGAIN}")
    return document


def _pairs(file: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in order, a line each, after a line with the version."""
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start:,}); {_AGAIN}") from error
    first = 2 if lines[0].startswith("#version") else 1
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines[first - 1 :], start=first):
        if not line:
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
            raise ModelError(f"{file}:{number}: {line[:80]!r} is no pair of tokens that makes a token; {_AGAIN}")
        pair = (parts[0], parts[1])
        if pair in pairs:
            raise ModelError(f"{file}:{number}: {line[:80]!r} stands there twice; {_AGAIN}")
        pairs[pair] = None
    return list(pairs)
