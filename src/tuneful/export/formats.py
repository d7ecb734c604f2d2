"""Every format that a model is exported to, a function each: it writes a folder, compares it, and says what it found.

huggingface   config.json, model.safetensors, tokenizer, chat template: what transformers reads
adapter       peft's folder; as `gguf` a file for llama.cpp's --lora
gguf          one file for llama.cpp and what is built on it
ollama        that, and a Modelfile
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import torch

from tuneful.encoding.template import save_template_name
from tuneful.errors import ExportError
from tuneful.export.card import Card, license_of
from tuneful.export.folder_check import check_range, tokenizer_parts
from tuneful.export.gguf_adapter import adapter_keys, adapter_of, adapter_tensors, scale_fault
from tuneful.export.gguf_check import key_faults, tensor_faults
from tuneful.export.gguf_file import file_keys, num_bytes, write_gguf
from tuneful.export.gguf_shapes import Value, context_of, shape_of
from tuneful.export.gguf_tensors import GgufTensor, plan_tensors
from tuneful.export.gguf_types import QUANTIZED, GgufType
from tuneful.export.huggingface import DType, Shipped, save_model, verify_export
from tuneful.export.ollama import modelfile, template_faults, trims
from tuneful.export.parts import listed, not_made
from tuneful.export.runtime import (
    MAX_NEW_TOKENS,
    Exported,
    ids_part,
    model_parts,
    prompts_part,
    renderable,
)
from tuneful.export.source import Source
from tuneful.files import free_bytes, sha256_of, write_text
from tuneful.infer.llama_cpp import LlamaCpp, LlamaCppMissingError
from tuneful.model.gguf_header import GgufHeader, read_gguf_header
from tuneful.model.load import load_model
from tuneful.runs.schema import ExportPart
from tuneful.types import Conversation

if TYPE_CHECKING:
    from tuneful.runs.schema import ExportKind

ADAPTER_AS_GGUF = "gguf"
"""The type of an adapter that is written for llama.cpp."""
MAX_PROMPTS = 8
"""Prompts whose logits and answers are compared."""
_RUNTIME = "pip install 'tuneful[export]' for llama.cpp (xllamacpp)"
_TENSORS = "read back and un-permuted, with the source after rounding"
_KEYS = "read back, with what the model and its tokenizer say"


@dataclass(frozen=True)
class Request:
    """One export: `source` to `folder`, which is there and empty. `title` is what the model is called, `asked` what it is tried
    with; `advance(1)` is called for each tensor that is written."""

    source: Source
    type: str | None
    folder: Path
    title: str
    asked: Sequence[Conversation]
    notify: Callable[[str], None]
    advance: Callable[[int], None]

    @property
    def file_name(self) -> str:
        """The name of a GGUF file of it."""
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.title)}-{self.type}.gguf"

    @property
    def license(self) -> str | None:
        """The license of the base, where it is known."""
        return license_of(self.source.base, self.source.name)


@dataclass(frozen=True, slots=True)
class Written:
    """What was compared of a folder that was written, how its tensors are stored, and what a person should know of it."""

    parts: tuple[ExportPart, ...]
    tensor_types: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how it is written, the types of numbers that it takes, and the one that it has where none is named."""

    write: Callable[[Request], Written]
    types: tuple[str, ...]
    default: str | None


# GGUF


def write_gguf_folder(request: Request) -> Written:
    """A GGUF file, compared in llama.cpp."""
    exported = _write_file(request)
    return Written(
        (*_read_back(exported, request), *_in_runtime(exported, request)),
        Counter(tensor.type for tensor in exported.tensors),
        tuple(_notes(exported)),
    )


def write_ollama_folder(request: Request) -> Written:
    """A GGUF file and a Modelfile, whose prompts are compared with those of training."""
    made = modelfile(request.source, request.file_name, request.license)  # before anything is written
    written = write_gguf_folder(request)
    write_text(request.folder / "Modelfile", made)
    text = (request.folder / "Modelfile").read_text(encoding="utf-8")
    asked = renderable(request.source)
    part = listed(
        "Modelfile",
        "prompts of its TEMPLATE with training's, byte for byte",
        len(asked),
        template_faults(request.source, text),
    )
    trim = ("the template takes white space from around a text, which a TEMPLATE cannot: send texts without",)
    notes = (*written.notes, *(trim if trims(request.source) else ()))
    return Written((*written.parts, part), written.tensor_types, notes)


def _write_file(request: Request) -> Exported:
    source, to = request.source, cast(GgufType, request.type)
    tensors = plan_tensors(source, to)
    keys = file_keys(source, to, request.title, request.license)
    needed, free = sum(map(num_bytes, tensors)), free_bytes(request.folder)
    if needed > free:
        raise ExportError(
            f"{request.folder.parent}: the file takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )
    file = request.folder / request.file_name
    write_gguf(file, shape_of(source.architecture).name, keys, tensors, request.advance)
    return Exported(file, read_gguf_header(file, with_lists=True), tensors, source, to)


def _read_back(exported: Exported, request: Request) -> Iterator[ExportPart]:
    request.notify("reading it back")
    keys = file_keys(exported.source, exported.type, request.title, request.license)
    yield from read_back_parts(
        exported.file, exported.header, keys, exported.tensors, shape_of(exported.source.architecture).name
    )


def read_back_parts(
    file: Path, header: GgufHeader, keys: Mapping[str, Value], tensors: Sequence[GgufTensor], architecture: str
) -> list[ExportPart]:
    """The keys and the tensors of a GGUF file, read back."""
    return [
        listed("keys", _KEYS, len(keys) + 1, key_faults(header, keys, architecture)),
        listed("tensors", _TENSORS, len(tensors), tensor_faults(file, header, tensors)),
    ]


def _in_runtime(exported: Exported, request: Request) -> list[ExportPart]:
    """What llama.cpp makes of the file; why it was not tried where it cannot be."""
    request.notify("trying it in llama.cpp")
    asked = _short_enough(request)
    try:
        llama = LlamaCpp.load(exported.file, num_ctx=_num_ctx(request.source, asked))
    except LlamaCppMissingError as error:
        return [
            not_made(name, "llama.cpp", f"{error}: {_RUNTIME}")
            for name in ("token ids", "prompts", "logits", "answers")
        ]
    with llama:
        parts = [ids_part(llama, request.source), prompts_part(llama, request.source)]
        request.notify("comparing it with the model")
        return [*parts, *model_parts(llama, exported, asked)]


def _short_enough(request: Request) -> list[Conversation]:
    context = context_of(request.source.architecture, shape_of(request.source.architecture))
    encoder = request.source.encoder
    return [one for one in request.asked if len(encoder.prompt_ids(one)) + MAX_NEW_TOKENS <= context][:MAX_PROMPTS]


def _num_ctx(source: Source, asked: Sequence[Conversation]) -> int:
    return max((len(source.encoder.prompt_ids(one)) for one in asked), default=0) + MAX_NEW_TOKENS + 16


def _notes(exported: Exported) -> Iterator[str]:
    odd = [tensor.name for tensor in exported.tensors if tensor.type == "f16" and exported.type in QUANTIZED]
    if odd:
        yield f"{len(odd)} tensors are f16, for their rows are no whole blocks of 32 numbers ({odd[0]} ...)"
    if exported.type == "q4_0":
        yield "embedding and output head are q8_0"
    source = exported.source
    if source.adapter is not None:
        yield "the adapter is merged into its base" + (
            ", DoRA's magnitudes included" if source.adapter.uses_dora else ""
        )
    context, own = (
        context_of(source.architecture, shape_of(source.architecture)),
        source.architecture.max_position_embeddings,
    )
    if context != own:
        yield f"its context is {context:,} tokens, the window of its attention: llama.cpp knows of no window in this family"
    if "NFC" in source.tokenizer.backend_tokenizer.to_str()[:200_000].partition('"model"')[0]:
        yield "llama.cpp does not compose characters (NFC) as the tokenizer does: send composed text"


# Adapters


def write_adapter_folder(request: Request) -> Written:
    """peft's folder as it is; or a GGUF adapter, compared in llama.cpp on a GGUF file of its base."""
    if request.type == ADAPTER_AS_GGUF:
        return _write_gguf_adapter(request)
    folder = adapter_of_any_kind(request.source)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    for file in files:
        shutil.copyfile(file, request.folder / file.name)
    faults = (file.name for file in files if sha256_of(file) != sha256_of(request.folder / file.name))
    return Written((listed("files", "with the adapter's own, byte for byte", len(files), faults),))


def adapter_of_any_kind(source: Source) -> Path:
    """The folder of the adapter; ModelError where there is none."""
    return source.folder if source.adapter is not None else adapter_of(source).folder


def _write_gguf_adapter(request: Request) -> Written:
    source, adapter = request.source, adapter_of(request.source)
    tensors, keys = adapter_tensors(source), adapter_keys(source, request.title)
    architecture, file = (
        shape_of(source.architecture).name,
        request.folder / f"{Path(request.file_name).stem}-adapter.gguf",
    )
    write_gguf(file, architecture, keys, tensors, request.advance)
    header = read_gguf_header(file, with_lists=True)
    ranks = {name: tensor.shape[1] for name, tensor in header.tensors.items() if name.endswith(".lora_a")}
    fault = scale_fault(adapter, header.metadata, ranks)
    parts = [
        *read_back_parts(file, header, keys, tensors, architecture),
        listed("scale", "llama.cpp's with training's", len(ranks), [fault] if fault else []),
    ]
    return Written((*parts, *_adapter_in_runtime(file, request)), Counter(tensor.type for tensor in tensors))


def _adapter_in_runtime(file: Path, request: Request) -> list[ExportPart]:
    """Base and adapter in llama.cpp against base and adapter merged by peft; the base is written for it and removed."""
    source, asked = request.source, _short_enough(request)
    base = Source(source.name, source.folder, source.base, None, source.config, source.architecture, source.tokenizer)
    merged = plan_tensors(source, "f32")
    if sum(map(num_bytes, merged)) > free_bytes(request.folder):
        return [not_made("logits", "llama.cpp with the adapter", "the disk has no room for a GGUF file of the base")]
    with tempfile.TemporaryDirectory(dir=request.folder.parent) as aside:
        of_base = Path(aside) / "base.gguf"
        write_gguf(
            of_base, shape_of(source.architecture).name, file_keys(base, "f32", "base", None), plan_tensors(base, "f32")
        )
        try:
            llama = LlamaCpp.load(of_base, num_ctx=_num_ctx(source, asked), adapter=file)
        except LlamaCppMissingError as error:
            return [not_made("logits", "llama.cpp with the adapter", f"{error}: {_RUNTIME}")]
        exported = Exported(of_base, read_gguf_header(of_base), merged, source, "f32")
        with llama:
            return model_parts(llama, exported, asked, takes_file=False)


# Hugging Face


def write_huggingface_folder(request: Request) -> Written:
    """The folder that transformers reads, an adapter merged; loaded again and compared."""
    source = request.source
    dtype = _DTYPES[request.type or "f32"]
    pretrained = load_model(source.name, request.notify)
    if dtype == "float16":
        check_range(pretrained.model)
    shipped = Shipped(
        source.tokenizer, source.chat_template, tuple(sorted(source.encoder.text.stop_token_ids)), source.name
    )
    save_model(pretrained.model, request.folder, shipped, Card(license=request.license), dtype=dtype)
    if source.adapter is None and (source.folder / "README.md").is_file():
        shutil.copyfile(source.folder / "README.md", request.folder / "README.md")
    save_template_name(request.folder, source.encoder.text.template.name)
    prompts = [source.encoder.prompt_ids(one) for one in request.asked[:MAX_PROMPTS]]
    difference = verify_export(pretrained.model, request.folder, prompts)
    count = len(pretrained.model.state_dict())
    tensors = ExportPart("tensors", "loaded again, with those in memory after rounding", count, "equal", "equal", True)
    logits = ExportPart(
        "logits",
        "of the loaded model, and of the weights as rounded: largest difference",
        len(prompts),
        f"{difference:.2g}",
        "rounding",
        True,
    )
    kinds = Counter(
        str(tensor.dtype).removeprefix("torch.")
        for tensor in pretrained.model.to(getattr(torch, dtype)).state_dict().values()
    )
    return Written((tensors, *tokenizer_parts(request.folder, source), logits), kinds)


_DTYPES: Mapping[str, DType] = MappingProxyType({"f32": "float32", "f16": "float16", "bf16": "bfloat16"})
FORMATS: Mapping[ExportKind, Format] = MappingProxyType(
    {
        "huggingface": Format(write_huggingface_folder, tuple(_DTYPES), "f32"),
        "adapter": Format(write_adapter_folder, (ADAPTER_AS_GGUF,), None),
        "gguf": Format(write_gguf_folder, ("f32", "f16", "bf16", "q8_0", "q4_0"), "q8_0"),
        "ollama": Format(write_ollama_folder, ("f32", "f16", "bf16", "q8_0", "q4_0"), "q8_0"),
    }
)
"""By the name that `--to` gives."""
