"""How far a tokenizer can stretch a text and how long it can take, from its description: one that makes gigabytes of a line, or
hours of it, is refused before it is used.

The steps of a `tokenizer.json` (normalizer, pre_tokenizer, post_processor, decoder) replace, prepend and repeat, one after the
other, and the library runs them without a limit: thirty steps that double a text make a billion characters of one. The factors
of a step, in characters, multiply to at most `MAX_GROWTH`. T5's is 72, Llama 2's 2. Unicode's own forms count with what a
replacement writes, not for themselves: what they make of a text is the text's. Its regular expressions are those of which
`regex_limits.py` can say that they end.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.own_files import MAX_DEPTH
from tuneful.model.regex_limits import why_slow

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_GROWTH = 128
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_MAX_AFFIX = 1_000
_MAX_STEPS = 1_000
_MAX_PATTERNS = 64
_SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
_ADDED = ("prepend", "suffix", "prefix", "word_delimiter_token")
"""Settings of a step whose text it may put beside every part of another."""
_OF_A_TYPE = {"ByteLevel": 5, "BertNormalizer": 3, "Metaspace": 2, "BertProcessing": 3, "RobertaProcessing": 5}
"""A character is up to four bytes; blanks, marks and tokens stand beside it."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Inside, where the library of tokenizers panics (at base64 that it cannot read, say) a ValueError is raised: its own
    exception is none that `except Exception` catches."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ValueError(f"the library of tokenizers stopped: {str(error)[:200]}") from error
        raise


def check_tokenizer_file(file: Path) -> None:
    """ModelError where the tokenizer in `file` stretches a text without measure. Vocabulary and merges are not read."""
    text = file.read_bytes()
    for key in (*STEPS, *_AFFIXES):
        for found in _key(key).finditer(text):
            _check(key, _value_at(text, found.end()), file)


def check_tokenizer(tokenizer: Tokenizer, file: Path) -> None:
    """The same for one that is loaded already, from other files than a tokenizer.json."""
    for key in STEPS:
        step = getattr(tokenizer, key)
        if step is not None:
            _check(key, json.loads(step.__getstate__()), file)


def _check(key: str, value: Any, file: Path) -> None:
    if key in _AFFIXES:
        if isinstance(value, str) and len(value) > _MAX_AFFIX:
            raise ModelError(f"{file}: {key} has {len(value):,} characters; fetch it again")
        return
    _check_patterns(key, value, file)
    try:
        growth = _growth(value, MAX_DEPTH)
    except (TypeError, ValueError, KeyError, AttributeError, binascii.Error):
        return  # no step of that library: it says what is wrong with it
    if growth > MAX_GROWTH:
        raise ModelError(
            f"{file}: `{key}` makes a text up to {growth:,.0f} times as long, and {MAX_GROWTH} times is the most there may be; "
            "fetch it again, or choose another model"
        )


def _check_patterns(key: str, value: Any, file: Path) -> None:
    patterns = list(itertools.islice(_patterns(value, MAX_DEPTH), _MAX_PATTERNS + 1))
    if len(patterns) > _MAX_PATTERNS:
        raise ModelError(f"{file}: `{key}` has more than {_MAX_PATTERNS} regular expressions; fetch it again")
    for pattern in patterns:
        if reason := why_slow(pattern):
            raise ModelError(
                f"{file}: `{key}` goes by the regular expression {pattern[:60]!r}, which a text may keep busy without end: "
                f"{reason}; fetch it again, or choose another model"
            )


def _patterns(value: Any, depth: int) -> Iterator[str]:
    """Every regular expression in the description of a step, and of the steps within it."""
    if depth and isinstance(value, list):
        for one in value:
            yield from _patterns(one, depth - 1)
    elif depth and isinstance(value, dict):
        if isinstance(found := value.get("Regex"), str):
            yield found
        for one in value.values():
            yield from _patterns(one, depth - 1)


def _key(name: str) -> re.Pattern[bytes]:
    """A key of a JSON text as it may be written: any character may stand there by its number."""
    spellings = "".join(rf"(?:{re.escape(letter)}|\\u00(?i:{ord(letter):02x}))" for letter in name)
    return re.compile(rf'"{spellings}"\s*:\s*'.encode())


def _value_at(text: bytes, start: int) -> Any:
    """The JSON value that begins at byte `start`; None where there is none, or it is a vocabulary's number."""
    if text[start : start + 1] not in (b"{", b"[", b'"'):
        return None
    try:
        return json.JSONDecoder().raw_decode(text[start:].decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None


def _growth(step: Any, depth: int) -> float:
    """How many times as long a step makes a text at most. ValueError, KeyError ... for what is no step."""
    if not isinstance(step, dict):
        return 1
    if depth == 0:
        return math.inf
    growth: float = _OF_A_TYPE.get(str(step.get("type")), 1)
    inner = [one for key in _SEQUENCES for one in step.get(key) or ()]
    if len(inner) > _MAX_STEPS:
        return math.inf
    growth *= math.prod(_growth(one, depth - 1) for one in inner)
    growth *= 1 + max(_length(step.get(key) or "") for key in _ADDED)
    if "content" in step:
        growth *= _replaced(step["pattern"], _length(step["content"]))
    if "single" in step:
        growth *= max(_repeated(step, key) for key in ("single", "pair"))
    if "precompiled_charsmap" in step:
        growth *= _precompiled(step["precompiled_charsmap"])
    return growth


def _length(text: str) -> int:
    """Characters of `text` once Unicode's forms and lower case have taken it apart."""
    return max(len(unicodedata.normalize("NFKD", one)) for one in (text, text.lower()))


def _replaced(pattern: dict[str, str], length: int) -> float:
    if "Regex" in pattern:  # which may match between two characters
        return 1 + length
    shortest = len(pattern["String"])
    return max(1, length / shortest) if shortest else 1 + length


def _repeated(step: dict[str, Any], key: str) -> int:
    """Parts of what a template makes of a text: the text as often as it stands there, and the tokens around it."""
    sizes = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
    parts = [part.get("SpecialToken", {}).get("id") for part in step[key]]
    return sum(1 if part is None else sizes.get(part, 1) for part in parts)


def _precompiled(charsmap: str | list[int]) -> int:
    """The longest text of sentencepiece's replacements: the size of a trie, the trie, texts with a zero behind each."""
    table = base64.b64decode(charsmap) if isinstance(charsmap, str) else bytes(charsmap)
    begin = 4 + int.from_bytes(table[:4], "little")
    return max([1, *map(_length, _texts(table[begin:]))])


def _texts(table: bytes) -> Iterator[str]:
    return (text.decode("utf-8", "replace") for text in table.split(b"\0"))
