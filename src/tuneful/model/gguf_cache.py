"""A `.gguf` file is unpacked once: its model and its tokenizer stay in the cache, under the hash of the file.

    models/gguf-3f7a.../model-2/      config.json, model.safetensors in float32
    models/gguf-3f7a.../tokenizer-1/  the tokenizer's files

Unpacking 1.5 billion weights takes a minute, and every command needs them. The trade: four bytes of disk a weight, which are
said before they are written. Where the disk has no room, or the cache cannot be written, the file is unpacked as before.
Whoever deletes a folder gets it made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.errors import ModelError
from tuneful.files import cache_root, free_bytes, held, sha256_of, written_aside
from tuneful.model.checks import Notify, ignore, quiet
from tuneful.model.gguf import check_gguf, gguf_model, gguf_tokenizer
from tuneful.model.memory import give_back_freed_memory
from tuneful.model.size import size_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERSION, TOKENIZER = 2, 1  # parts of the folders' names: raise them when the conversion changes

_SPARE_BYTES = 1 << 30
"""What is left free on the disk of the cache."""
_PROBES = ("a  42\\n", " Grüße, 世界! \U0001f600", "x=1;\n\tprint(x)\r\n", "<s></s><|im_start|>user\n", " ")
"""Texts of which the saved tokenizer has to make the same tokens as the one that was made of the file."""


def cached_gguf_model(file: Path, load: Callable[[Path], PreTrainedModel], notify: Notify = ignore) -> PreTrainedModel:
    """The model of `file`: from the cache by `load`, or unpacked and put there. ModelError where the file is none."""
    from safetensors import SafetensorError  # its writer reports a full disk in words only

    check_gguf(file)
    folder = _folder_of(file) / f"model-{CONVERSION}"
    if (folder / "config.json").is_file():
        return load(folder)
    size = size_of(file)
    num_bytes = 4 * size.num_parameters if size else 4 * file.stat().st_size
    with _writing(folder, notify) as is_writable:
        if (folder / "config.json").is_file():  # another process has made it
            return load(folder)
        if not is_writable or free_bytes(folder) < num_bytes + _SPARE_BYTES:
            notify(f"unpacking {file}; there is no room to keep it in {folder} ({_size(num_bytes)})")
            return gguf_model(file)
        notify(f"unpacking {file} to float32, once: {_size(num_bytes)} in {folder}")
        model = gguf_model(file)
        with contextlib.suppress(OSError, SafetensorError), written_aside(folder) as aside, quiet():
            model.save_pretrained(str(aside))
        if not (folder / "config.json").is_file():
            return model
        del model  # in float32, and what is wanted may be a quarter of that
        give_back_freed_memory()
        return load(folder)


def unpacked_folder(file: Path) -> Path | None:
    """The folder of the cache that holds the model of `file`; None where there is none."""
    folder = _folder_of(file) / f"model-{CONVERSION}"
    return folder if (folder / "config.json").is_file() else None


def cached_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `file`, from the cache, or made and put there. ModelError where it cannot be read."""
    from transformers import AutoTokenizer

    check_gguf(file)
    folder = _folder_of(file) / f"tokenizer-{TOKENIZER}"
    if (folder / "tokenizer.json").is_file():
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer = gguf_tokenizer(file)
    with _writing(folder, ignore) as is_writable:
        if is_writable and not folder.exists():
            with contextlib.suppress(OSError, _OtherTokensError), written_aside(folder) as aside, quiet():
                for leftover in ("is_local", "local_files_only", "gguf_file"):
                    tokenizer.init_kwargs.pop(leftover, None)
                tokenizer.save_pretrained(str(aside))
                _check_same(tokenizer, AutoTokenizer.from_pretrained(str(aside), local_files_only=True))
    return tokenizer


class _OtherTokensError(Exception):
    """The saved tokenizer, read back, is not the one that was saved: it is made anew each time."""


def _check_same(made: PreTrainedTokenizerBase, saved: PreTrainedTokenizerBase) -> None:
    alike = made.special_tokens_map == saved.special_tokens_map and made.chat_template == saved.chat_template
    if not alike or any(made(text)["input_ids"] != saved(text)["input_ids"] for text in _PROBES):
        raise _OtherTokensError


def _folder_of(file: Path) -> Path:
    try:
        return cache_root() / "models" / f"gguf-{sha256_of(file)[:32]}"
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _writing(folder: Path, notify: Notify) -> Iterator[bool]:
    """Hold the place of `folder` for one process; whether it can be written."""
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                held(folder.parent / ".lock", lambda: notify("waiting for another process that unpacks it"))
            )
        except OSError:
            yield False
            return
        yield True


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
