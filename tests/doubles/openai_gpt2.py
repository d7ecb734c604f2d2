"""GPT-2 as OpenAI published it, at tiny sizes and with random weights: what TensorFlow's saver would write, written by hand.

`benchmarks/openai_gpt2.py` compares the bytes with TensorFlow's own. Every part can be had in another form, so that a test can
damage it and have its checksums right all the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from tuneful.model.crc32c import crc32c, masked

Array = np.ndarray[Any, np.dtype[Any]]

END = "<|endoftext|>"
PREFIX = "model.ckpt"
HPARAMS = {"n_vocab": 300, "n_ctx": 64, "n_embd": 16, "n_head": 2, "n_layer": 2}
CORPUS = [
    "Below is an instruction that describes a task.",
    "### Instruction: ### Response: the and that is was of to in",
]
DTYPES = {"float32": 1, "float64": 2, "int64": 9, "float16": 19}
MAGIC = 0xDB4775248B80FB57


# The model


def random_variables(hparams: Mapping[str, int] = HPARAMS, seed: int = 0, dtype: str = "float32") -> dict[str, Array]:
    """All variables of a GPT-2, by OpenAI's names, sorted as TensorFlow's saver sorts them."""
    rng, width = np.random.default_rng(seed), hparams["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "model/wte": (hparams["n_vocab"], width),
        "model/wpe": (hparams["n_ctx"], width),
        "model/ln_f/g": (width,),
        "model/ln_f/b": (width,),
    }
    for layer in range(hparams["n_layer"]):
        for name, num_in, num_out in (
            ("attn/c_attn", width, 3 * width),
            ("attn/c_proj", width, width),
            ("mlp/c_fc", width, 4 * width),
            ("mlp/c_proj", 4 * width, width),
        ):
            shapes[f"model/h{layer}/{name}/w"] = (1, num_in, num_out)
            shapes[f"model/h{layer}/{name}/b"] = (num_out,)
        for name in ("ln_1/g", "ln_1/b", "ln_2/g", "ln_2/b"):
            shapes[f"model/h{layer}/{name}"] = (width,)
    return {name: rng.normal(0, 0.2, shapes[name]).astype(dtype) for name in sorted(shapes)}


def transformers_model(variables: Mapping[str, Array], hparams: Mapping[str, int] = HPARAMS) -> GPT2LMHeadModel:
    """transformers' own GPT-2 with the same numbers."""
    config = GPT2Config(
        vocab_size=hparams["n_vocab"],
        n_positions=hparams["n_ctx"],
        n_embd=hparams["n_embd"],
        n_head=hparams["n_head"],
        n_layer=hparams["n_layer"],
        bos_token_id=hparams["n_vocab"] - 1,
        eos_token_id=hparams["n_vocab"] - 1,
    )
    model = GPT2LMHeadModel(config).eval()
    kinds = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    with torch.no_grad():
        for name, array in variables.items():
            *path, kind = name.removeprefix("model/").split("/")
            where = ".".join([f"h.{part[1:]}" if part[1:].isdigit() else part for part in path] + [kinds[kind]])
            parameter = model.transformer.get_parameter(where)
            parameter.copy_(torch.from_numpy(array.astype(np.float32)).reshape(parameter.shape))
    return model


def write_openai_folder(
    folder: Path,
    hparams: Mapping[str, int] = HPARAMS,
    variables: Mapping[str, Array] | None = None,
    *,
    num_shards: int = 1,
    prefix: str = PREFIX,
) -> Path:
    """All seven files; `variables` are random ones where none are given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hparams.json").write_text(json.dumps(dict(hparams)))
    write_vocabulary(folder, hparams["n_vocab"])
    write_checkpoint(folder, random_variables(hparams) if variables is None else variables, num_shards, prefix)
    return folder


def write_vocabulary(folder: Path, num_tokens: int) -> None:
    """encoder.json and vocab.bpe of at most `num_tokens` tokens: the bytes, pairs that `CORPUS` has, the end of a text last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=num_tokens - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    document = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**document["vocab"], END: len(document["vocab"])}
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in document["merges"]), ""]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8", newline="\n")


# The checkpoint


@dataclass(frozen=True)
class Entry:
    """BundleEntryProto; a field that is 0 is not written."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    masked_crc: int
    extra: bytes = field(default=b"")

    def message(self) -> bytes:
        dimensions = b"".join(_text(2, _number(1, size)) for size in self.shape)
        numbers = _number(3, self.shard) + _number(4, self.offset) + _number(5, self.num_bytes)
        return (
            _number(1, self.dtype)
            + _text(2, dimensions)
            + numbers
            + b"\x35"
            + struct.pack("<I", self.masked_crc)
            + self.extra
        )


def write_checkpoint(folder: Path, variables: Mapping[str, Array], num_shards: int = 1, prefix: str = PREFIX) -> None:
    """The four files of a checkpoint, the variables dealt out to the data files in turn."""
    shards = [bytearray() for _ in range(num_shards)]
    entries = {}
    for number, (name, array) in enumerate(variables.items()):
        shard = number % num_shards
        data = array.tobytes()
        crc = masked(crc32c(data))
        entries[name] = Entry(DTYPES[array.dtype.name], array.shape, shard, len(shards[shard]), len(data), crc)
        shards[shard] += data
    for number, content in enumerate(shards):
        (folder / f"{prefix}.data-{number:05}-of-{num_shards:05}").write_bytes(content)
    (folder / f"{prefix}.index").write_bytes(index_file(entries, num_shards))
    (folder / f"{prefix}.meta").write_bytes(b"")
    state = f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "{prefix}"\n'
    (folder / "checkpoint").write_text(state)


def read_entries(folder: Path, prefix: str = PREFIX) -> dict[str, Entry]:
    """The entries of a checkpoint that `write_checkpoint` wrote, to be changed and written again."""
    from tuneful.model.tf_checkpoint import read_checkpoint

    codes = {"F32": 1, "F64": 2, "F16": 19, None: 9}
    found = {}
    for name, one in read_checkpoint(folder).variables.items():
        shard = int(one.file.name.split("-")[1])
        found[name] = Entry(codes[one.dtype], one.shape, shard, one.offset, one.num_bytes, one.masked_crc)
    return found


def rewrite_index(folder: Path, name: str, **changes: Any) -> None:
    """Change fields of the entry `name`; the checksums of the index are right."""
    entries = read_entries(folder)
    entries[name] = replace(entries[name], **changes)
    (folder / f"{PREFIX}.index").write_bytes(index_file(entries, 1))


def index_file(entries: Mapping[str, Entry], num_shards: int = 1, header: bytes | None = None, **options: Any) -> bytes:
    """The table of a checkpoint."""
    first = _number(1, num_shards) + _text(3, _number(1, 1)) if header is None else header
    rows = [(b"", first), *sorted((name.encode(), entry.message()) for name, entry in entries.items())]
    return table(rows, **options)


# The table


class Block:
    """Entries with what each key shares with the one before left out, but at restarts; then where the restarts are."""

    def __init__(self, interval: int) -> None:
        self._interval, self._out, self._restarts, self._last, self.count = interval, bytearray(), [0], b"", 0

    def add(self, key: bytes, value: bytes) -> None:
        if self.count and self.count % self._interval == 0:
            self._restarts.append(len(self._out))
            self._last = b""
        pairs = enumerate(zip(self._last, key, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(self._last), len(key)))
        self._out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self._last, self.count = key, self.count + 1

    @property
    def num_bytes(self) -> int:
        return len(self._out) + 4 * len(self._restarts) + 4

    def content(self) -> bytes:
        return bytes(self._out) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def block(rows: Iterable[tuple[bytes, bytes]], interval: int) -> bytes:
    """A block of `rows`, with a restart every `interval` of them."""
    made = Block(interval)
    for key, value in rows:
        made.add(key, value)
    return made.content()


def table(rows: Iterable[tuple[bytes, bytes]], block_bytes: int = 1 << 18, compression: int = 0) -> bytes:
    """A table as LevelDB's builder writes it: blocks of 16 entries between restarts, an index with shortened keys, a footer."""
    out, index, made, last = bytearray(), list[tuple[bytes, bytes]](), Block(16), b""
    handle: bytes | None = None
    for key, value in rows:
        if handle is not None:
            index.append((_between(last, key), handle))
            handle = None
        made.add(key, value)
        last = key
        if made.num_bytes >= block_bytes:
            handle, made = append(out, made.content(), compression), Block(16)
    if made.count:
        handle = append(out, made.content(), compression)
    meta = append(out, block([], 16), 0)
    if handle is not None:
        index.append((_after(last), handle))
    footer = meta + append(out, block(index, 1), 0)
    return bytes(out + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC))


def append(out: bytearray, content: bytes, compression: int) -> bytes:
    """Put a block with its trailer at the end of `out`; its handle."""
    handle = varint(len(out)) + varint(len(content))
    kind = bytes([compression])
    out += content + kind + struct.pack("<I", masked(crc32c(content + kind)))
    return handle


def _between(last: bytes, following: bytes) -> bytes:
    """A short key that is not below `last` and below `following` (FindShortestSeparator)."""
    place = next((i for i, (a, b) in enumerate(zip(last, following, strict=False)) if a != b), None)
    if place is not None and last[place] < 0xFF and last[place] + 1 < following[place]:
        return last[:place] + bytes([last[place] + 1])
    return last


def _after(last: bytes) -> bytes:
    """A short key that is not below `last` (FindShortSuccessor)."""
    place = next((i for i, byte in enumerate(last) if byte != 0xFF), None)
    return last if place is None else last[:place] + bytes([last[place] + 1])


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; a negative number as 64 bits."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _number(field_number: int, value: int) -> bytes:
    return varint(field_number << 3) + varint(value) if value else b""


def _text(field_number: int, content: bytes) -> bytes:
    return varint(field_number << 3 | 2) + varint(len(content)) + content
