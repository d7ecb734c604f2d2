"""GGUF files become plain float32 models and fast tokenizers; their text splitter is put right on the way.

transformers splits text as GPT-2 does where it does not know `tokenizer.ggml.pre`; a model whose numbers are split digit by digit
would then be trained on other tokens than it was made with, so an unknown splitter is refused.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.checks import check_loading, first_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
GPT2_SPLITTERS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")


def gguf_model(file: Path) -> PreTrainedModel:
    """Read a `.gguf` file into a plain float32 model: weights dequantized, no trace of quantization left on it."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32, "local_files_only": True}
    with contextlib.suppress(ImportError):  # transformers without packed GGUF weights always unpacks them
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's own bar obeys no setting
        try:
            model, info = AutoModelForCausalLM.from_pretrained(str(file.parent), output_loading_info=True, **options)
        except Exception as error:
            raise ModelError(f"{file} cannot be read as a GGUF model: {first_line(error)}") from error
    check_loading(info, file)
    _forget_quantization(model)
    return model.eval()


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Build the fast tokenizer that a `.gguf` file describes, splitting text as `tokenizer.ggml.pre` demands."""
    from transformers import AutoTokenizer

    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{file}: its tokenizer cannot be read: {first_line(error)}") from error
    _set_splitter(tokenizer, _gguf_splitter(file), file)
    return tokenizer


def _set_splitter(tokenizer: PreTrainedTokenizerBase, splitter: str | None, file: Path) -> None:
    """transformers splits as GPT-2 does where it does not know the splitter; `"a  42"` would get other tokens."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or splitter in (None, *GPT2_SPLITTERS):
        return
    if splitter not in DIGIT_SPLITTERS:
        raise ModelError(f"{file}: text splitter {splitter!r} is not known here; use the model's safetensors folder")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gguf_splitter(file: Path) -> str | None:
    """Value of the key `tokenizer.ggml.pre`. A GGUF key is its length, its bytes, a type (8 is a string), its value."""
    key = b"tokenizer.ggml.pre"
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
        start = data.find(entry)
        if start < 0:
            return None
        start += len(entry)
        (length,) = struct.unpack_from("<Q", data, start)
        return bytes(data[start + 8 : start + 8 + length]).decode()


def _forget_quantization(model: PreTrainedModel) -> None:
    model.hf_quantizer = None
    model.is_quantized, model.quantization_method = False, None
    model.generation_config._from_model_config = False
    for owner, name in ((model.config, "quantization_config"), (model.config, "_model_name_or_path")):
        if hasattr(owner, name):
            delattr(owner, name)
