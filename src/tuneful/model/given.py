"""A model that a program holds becomes a folder: a run reads its base several times, and so does whoever goes on with it.

The folder lies in the cache, under the hash of what it holds: the same model is written once.
"""

from __future__ import annotations

import hashlib
from os import PathLike
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.files import cache_root, written_aside
from tuneful.model.checks import quiet

if TYPE_CHECKING:
    import torch


def as_name(model: Any) -> str:
    """`model` as a name that can be loaded: a name or path as it is; a (model, tokenizer) or pipeline of transformers, saved.

    Raises ModelError where it is none of these, or the cache cannot be written.
    """
    if isinstance(model, (str, PathLike)):
        return str(model)
    weights, tokenizer = model if isinstance(model, tuple) and len(model) == 2 else _parts(model)
    if not hasattr(weights, "save_pretrained") or not hasattr(tokenizer, "save_pretrained"):
        raise ModelError(
            f"model is a {type(model).__name__}: give the name of a model, its folder, or (model, tokenizer) of transformers"
        )
    folder = cache_root() / "models" / f"given-{_digest(weights, tokenizer)[:32]}"
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(folder) as aside, quiet():
                weights.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be written ({error.strerror or error}): set TUNEFUL_CACHE, or give a folder"
        ) from None
    return str(folder)


def _parts(model: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a pipeline; a model alone has none."""
    return getattr(model, "model", None), getattr(model, "tokenizer", None)


def _digest(model: Any, tokenizer: Any) -> str:
    """sha256 over configuration, weights and tokenizer."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + _bytes(tensor))
    digest.update(tokenizer.backend_tokenizer.to_str().encode() + str(tokenizer.chat_template).encode())
    digest.update(str(sorted(tokenizer.special_tokens_map.items())).encode())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    import torch

    found: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found
