"""A tokenizer straight from its `tokenizer.json`: what a check needs, in a tenth of a second and without torch.

transformers takes seconds to import and brings torch along. A folder that says that its tokenizer is nothing but its
`tokenizer.json` (`tokenizer_class` TokenizersBackend or PreTrainedTokenizerFast, as transformers itself writes it) needs
neither; any other goes through `model/load.py`. Which tokens come out is the same: a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tuneful.model.builtin import BUILTIN, cached_folder
from tuneful.model.names import full_name, trained_folder
from tuneful.model.openai_gpt2 import is_openai_folder, openai_folder
from tuneful.model.own_files import check_own_files, read_document
from tuneful.model.tokenizer_limits import check_tokenizer_file, panics_as_errors

_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """As much of a transformers tokenizer as encoding needs, under the same names."""

    name_or_path: str
    backend_tokenizer: Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """`input_ids` of `text`."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}


def find_locally(name: str) -> Path | None:
    """The folder of the model `name` where this machine has it; None where it would have to be fetched or made first."""
    if name == BUILTIN:
        return cached_folder()
    folder = Path(name).expanduser()
    if folder.exists():
        return openai_folder(folder) if is_openai_folder(folder) else trained_folder(folder)
    return _in_hub_cache(full_name(name))


def read_tokenizer_file(folder: Path) -> TokenizerFile | None:
    """The tokenizer of `folder`, or None where its `tokenizer.json` is not known to be all there is to it."""
    try:
        check_own_files(folder)
        settings = read_document(folder / "tokenizer_config.json")
        if settings.get("tokenizer_class") not in _PLAIN_CLASSES or settings.get("add_bos_token"):
            return None
        check_tokenizer_file(folder / "tokenizer.json")
        with panics_as_errors():
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.no_padding()
        backend.no_truncation()
    except Exception:  # loading it through transformers says better what is wrong with it
        return None
    ids = [_token_id(backend, settings.get(key)) for key in ("bos_token", "eos_token")]
    return TokenizerFile(str(folder), backend, *ids) if ids[1] is not None else None


def _token_id(backend: Tokenizer, token: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(content) if isinstance(content, str) else None


def _in_hub_cache(name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except errors.HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
