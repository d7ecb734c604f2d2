"""A folder as OpenAI published GPT-2 becomes a Hugging Face folder in the cache, once, under the hash of what it holds.

    gpt2/124M/  checkpoint  hparams.json  encoder.json  vocab.bpe  model.ckpt.{index,meta,data-00000-of-00001}
    models/openai-3f7a.../model-1/  config.json  model.safetensors  tokenizer.json ...

From there on it is a model like any other. Both store a weight as [in, out] (OpenAI with a 1 in front), so numbers are copied as
they are, a few megabytes at a time, and their checksums compared on the way: 6 GB take no more memory than 500 MB. The trade: as
many bytes of disk as the checkpoint has, and its sha256 for each command, as with a `.gguf` file.

OpenAI's folder says nothing of dropout; here it is 0, where the Hub's gpt2 has 0.1.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tuneful.errors import ModelError
from tuneful.files import cache_root, free_bytes, hash_into, held, read_object, write_json, written_aside
from tuneful.model.checks import Notify, ignore, named
from tuneful.model.openai_vocabulary import END, MAX_BYTES, byte_pair_tokenizer
from tuneful.model.own_files import own_file
from tuneful.model.tf_checkpoint import TfCheckpoint, TfVariable, has_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONVERSION = 1  # part of the folder's name: raise it when the conversion changes

_HPARAMS, _ENCODER, _MERGES = "hparams.json", "encoder.json", "vocab.bpe"
_MAX_HPARAMS_BYTES = 1 << 16
_SPARE_BYTES = 1 << 30
"""What is left free on the disk of the cache."""
_NOT_WEIGHTS = re.compile(r"global_step$|beta[12]_power$|.*/(Adam(_1)?|Adafactor\w*|Momentum|RMSProp(_1)?)$")
"""What optimizers keep beside the weights."""
_OF_A_LAYER = {
    "ln_1.weight": ("ln_1/g", "E"),
    "ln_1.bias": ("ln_1/b", "E"),
    "attn.c_attn.weight": ("attn/c_attn/w", "1 E 3E"),
    "attn.c_attn.bias": ("attn/c_attn/b", "3E"),
    "attn.c_proj.weight": ("attn/c_proj/w", "1 E E"),
    "attn.c_proj.bias": ("attn/c_proj/b", "E"),
    "ln_2.weight": ("ln_2/g", "E"),
    "ln_2.bias": ("ln_2/b", "E"),
    "mlp.c_fc.weight": ("mlp/c_fc/w", "1 E 4E"),
    "mlp.c_fc.bias": ("mlp/c_fc/b", "4E"),
    "mlp.c_proj.weight": ("mlp/c_proj/w", "1 4E E"),
    "mlp.c_proj.bias": ("mlp/c_proj/b", "E"),
}
"""transformers' name of a weight of a layer -> OpenAI's, and its shape; E is n_embd."""


@dataclass(frozen=True, slots=True)
class Hparams:
    """hparams.json: the sizes of the model, all of them at least 1."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int


def is_openai_folder(folder: Path) -> bool:
    """Whether `folder` holds GPT-2 as OpenAI published it, or parts of that, and no model of Hugging Face's form."""
    if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        return False
    return (folder / _HPARAMS).is_file() or has_checkpoint(folder)


def check_not_above(folder: Path) -> None:
    """ModelError that names the sizes where `folder` holds folders of GPT-2, as the book's `gpt2` does, and no model itself."""
    try:
        inside = [one for one in sorted(folder.iterdir()) if one.is_dir()]
    except OSError:
        return  # whoever reads the folder says so
    if sizes := [str(one) for one in inside if is_openai_folder(one)]:
        raise ModelError(f"{folder} holds GPT-2 in folders of its own: give one of them to --model, {named(sizes)}")


def openai_folder(folder: Path, notify: Notify = ignore) -> Path:
    """The Hugging Face folder of the model in `folder`, from the cache or made; ModelError where it is damaged.

    Safe to call from several processes at once: one works, the others wait for it.
    """
    small = {
        name: own_file(folder, name, limit)
        for name, limit in ((_HPARAMS, _MAX_HPARAMS_BYTES), (_ENCODER, MAX_BYTES), (_MERGES, MAX_BYTES))
    }
    checkpoint = read_checkpoint(folder)
    hparams = _read_hparams(small[_HPARAMS])
    weights = _weights(checkpoint, hparams, folder)
    try:
        made = (
            cache_root() / "models" / f"openai-{_digest([*small.values(), *checkpoint.files])}" / f"model-{CONVERSION}"
        )
        if (made / "config.json").is_file():
            return made
        made.parent.mkdir(parents=True, exist_ok=True)
        with held(made.parent / ".lock", lambda: notify("waiting for another process that converts it")):
            if not (made / "config.json").is_file():
                tokenizer = byte_pair_tokenizer(small[_ENCODER], small[_MERGES], hparams.n_vocab)
                notify(f"converting {folder}, once: {_num_bytes(weights) / 1e6:,.0f} MB in {made}")
                if passed := len(checkpoint.variables) - len(weights):
                    notify(f"{folder}: {passed} variables of an optimizer are not read")
                _write(made, hparams, weights, tokenizer)
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be converted into {cache_root()} ({error.strerror or error}): set TUNEFUL_CACHE to a folder with "
            f"room that you may write"
        ) from error
    return made


def described(folder: Path) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:
    """What config.json will say of the model in `folder`, and the shape of each of its weights; no weight is read. ModelError."""
    hparams = _read_hparams(own_file(folder, _HPARAMS, _MAX_HPARAMS_BYTES))
    weights = _weights(read_checkpoint(folder), hparams, folder)
    return _config(hparams, 0), {name: variable.shape for name, variable in weights.items()}


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            hash_into(digest, stream)
    return digest.hexdigest()[:32]


def _num_bytes(weights: Mapping[str, TfVariable]) -> int:
    return sum(variable.num_bytes for variable in weights.values())


def _write(made: Path, hparams: Hparams, weights: Mapping[str, TfVariable], tokenizer: Tokenizer) -> None:
    """The Hugging Face folder `made`, whole or not at all; ModelError where there is no room, or a checksum is wrong."""
    if (free := free_bytes(made)) < _num_bytes(weights) + _SPARE_BYTES:
        raise ModelError(
            f"{made.parent} has {free / 1e9:,.1f} GB free, and {_num_bytes(weights) / 1e9:,.1f} GB with some room are needed: "
            "make room, or set TUNEFUL_CACHE to another disk"
        )
    end = tokenizer.token_to_id(END)
    assert end is not None, END
    with written_aside(made) as aside:
        with (aside / "model.safetensors").open("wb") as stream:
            _write_weights(weights, stream)
        tokenizer.save(str(aside / "tokenizer.json"))
        write_json(aside / "tokenizer_config.json", _tokenizer_config(hparams))
        write_json(aside / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        write_json(aside / "config.json", _config(hparams, end))


def _read_hparams(file: Path) -> Hparams:
    try:
        document = read_object(file)
    except ValueError as error:
        raise ModelError(f"{file} is not a JSON object: {error}; fetch it again") from error
    sizes = {}
    for name in (field.name for field in fields(Hparams)):
        value = document.get(name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ModelError(
                f"{file}: {name} has to be a whole number above 0, and is {str(value)[:40]}; fetch it again"
            )
        sizes[name] = value
    found = Hparams(**sizes)
    if found.n_embd % found.n_head:
        raise ModelError(f"{file}: n_embd {found.n_embd} is no multiple of n_head {found.n_head}; fetch it again")
    return found


# Weights


def _weights(checkpoint: TfCheckpoint, hparams: Hparams, folder: Path) -> dict[str, TfVariable]:
    """Each weight's variable, by transformers' name; ModelError where one is missing, too many, or of another shape."""
    known = checkpoint.variables
    if hparams.n_layer > len(known):  # before as many names are made
        raise ModelError(
            f"{folder}: {_HPARAMS} says {hparams.n_layer:,} layers, and the checkpoint holds {len(known):,} variables; "
            "they belong to different models"
        )
    wanted = _names_and_shapes(hparams)
    if missing := [name for name, _ in wanted.values() if name not in known]:
        raise ModelError(
            f"{folder}: the checkpoint lacks {named(missing)}, which {_HPARAMS} asks for; fetch the folder again"
        )
    others = sorted(known.keys() - {name for name, _ in wanted.values()})
    if unexpected := [name for name in others if not _NOT_WEIGHTS.match(name)]:
        raise ModelError(
            f"{folder}: the checkpoint holds {named(unexpected)}, which a GPT-2 of {_HPARAMS} does not have"
        )
    for name, shape in wanted.values():
        variable = known[name]
        if variable.shape != shape or variable.dtype is None:
            raise ModelError(
                f"{folder}: {name} has the shape {list(variable.shape)} in {variable.dtype or 'no format of weights'}; "
                f"{_HPARAMS} asks for {list(shape)} in floating point"
            )
    return {weight: known[name] for weight, (name, _) in wanted.items()}


def _names_and_shapes(hparams: Hparams) -> dict[str, tuple[str, tuple[int, ...]]]:
    """transformers' name of each weight -> OpenAI's name and shape."""
    width = hparams.n_embd
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "transformer.wte.weight": ("model/wte", (hparams.n_vocab, width)),
        "transformer.wpe.weight": ("model/wpe", (hparams.n_ctx, width)),
    }
    for layer in range(hparams.n_layer):
        for ours, (theirs, shape) in _OF_A_LAYER.items():
            sizes = tuple(1 if part == "1" else int(part[:-1] or 1) * width for part in shape.split())
            found[f"transformer.h.{layer}.{ours}"] = (f"model/h{layer}/{theirs}", sizes)
    found["transformer.ln_f.weight"] = ("model/ln_f/g", (width,))
    found["transformer.ln_f.bias"] = ("model/ln_f/b", (width,))
    return found


def _write_weights(weights: Mapping[str, TfVariable], stream: BinaryIO) -> None:
    """A safetensors file, a piece at a time; ModelError where a checksum is wrong."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    order = sorted(weights, key=lambda name: (-weights[name].num_bytes // max(1, math.prod(weights[name].shape)), name))
    offset = 0
    for name in order:
        variable = weights[name]
        stop = offset + variable.num_bytes
        shape = list(variable.shape[1:] if len(variable.shape) == 3 else variable.shape)
        header[name] = {"dtype": variable.dtype, "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for block in weights[name].blocks():
            stream.write(block)


# Configuration


def _config(hparams: Hparams, end: int) -> dict[str, object]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": hparams.n_vocab,
        "n_positions": hparams.n_ctx,
        "n_embd": hparams.n_embd,
        "n_layer": hparams.n_layer,
        "n_head": hparams.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def _tokenizer_config(hparams: Hparams) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": hparams.n_ctx,
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "clean_up_tokenization_spaces": False,
    }
