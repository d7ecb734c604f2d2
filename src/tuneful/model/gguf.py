"""GGUF files become plain float32 models and fast tokenizers; their text splitter is put right on the way.

transformers splits text as GPT-2 does where it does not know `tokenizer.ggml.pre`; a model whose numbers are split digit by digit
would then be trained on other tokens than it was made with, so an unknown splitter is refused.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.checks import check_loading, first_line, quiet
from tuneful.model.gguf_config import check_all_taken, gguf_config, know_gemma
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.tokenizer_limits import check_tokenizer, panics_as_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
GPT2_SPLITTERS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")


_WIDTHS = (
    *(
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "expert_count",
        "expert_used_count",
        "rope.dimension_count",
    ),
    *("expert_feed_forward_length", "attention.head_count", "attention.head_count_kv"),
    *("attention.key_length", "attention.value_length"),
)
"""Sizes that are at most the largest dimension of a tensor."""
_MAX_CONTEXT = 1 << 31


def check_gguf(file: Path) -> None:
    """ModelError where the header of `file` is damaged, or asks for more than its tensors hold. To be called before transformers
    reads it, which builds what it asks for."""
    header = read_gguf_header(file)
    architecture = header.text("general.architecture")
    if architecture is None or not architecture.isprintable():
        raise ModelError(f"{file} cannot be read as a GGUF model: it names no architecture; fetch it again")
    widest = max((max(shape, default=1) for shape in header.shapes.values()), default=0)
    positions = header.shapes.get("position_embd.weight", (0, _MAX_CONTEXT))[-1]
    limits = {"block_count": len(header.tensors), "context_length": positions, **dict.fromkeys(_WIDTHS, widest)}
    for name, most in limits.items():
        value = header.metadata.get(key := f"{architecture}.{name}", 1)
        if type(value) is not int or not 0 < value <= most:
            raise ModelError(
                f"{file}: {key} is {str(value)[:40]!r}, and its tensors hold {most:,} at most; fetch the file again"
            )


def _unreadable(file: Path, what: str, error: Exception) -> ModelError:
    import transformers

    if "architecture" in str(error) and "supported" in str(error):
        architecture = read_gguf_header(file).text("general.architecture")
        return ModelError(
            f"{file}: transformers {transformers.__version__} reads no GGUF file of the architecture {architecture!r}; give the "
            "model's safetensors folder or its Hub id to --model, or upgrade transformers (pip install -U transformers)"
        )
    return ModelError(f"{file}{what}: {first_line(error)}")


def gguf_model(file: Path) -> PreTrainedModel:
    """Read a `.gguf` file into a plain float32 model: weights dequantized, no trace of quantization left on it.

    An output head that is a copy of the embedding becomes the embedding: they are one matrix, counted and trained once.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32, "local_files_only": True}
    options |= {"config": gguf_config(file), "ignore_mismatched_sizes": True}  # so that we can name them
    with contextlib.suppress(ImportError):  # transformers without packed GGUF weights always unpacks them
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's own bar obeys no setting
        try:
            model, info = AutoModelForCausalLM.from_pretrained(str(file.parent), output_loading_info=True, **options)
        except Exception as error:
            raise _unreadable(file, " cannot be read as a GGUF model", error) from error
    check_loading(info, file)
    check_all_taken(model, file)
    _forget_quantization(model)
    _tie_equal_head(model)
    return model.eval()


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Build the fast tokenizer that a `.gguf` file describes, splitting text as `tokenizer.ggml.pre` demands."""
    from transformers import AutoTokenizer

    know_gemma()
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            with panics_as_errors():
                tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        except Exception as error:
            raise _unreadable(file, ": its tokenizer cannot be read", error) from error
    if tokenizer.is_fast:
        check_tokenizer(tokenizer.backend_tokenizer, file)
    _set_splitter(tokenizer, read_gguf_header(file).text("tokenizer.ggml.pre"), file)
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


def _forget_quantization(model: PreTrainedModel) -> None:
    model.hf_quantizer = None
    model.is_quantized, model.quantization_method = False, None
    model.generation_config._from_model_config = False
    for owner, name in ((model.config, "quantization_config"), (model.config, "_model_name_or_path")):
        if hasattr(owner, name):
            delattr(owner, name)


def _tie_equal_head(model: PreTrainedModel) -> None:
    """Tie the output head to the embedding where the file holds the same matrix twice, and the architecture can tie them."""
    import torch

    head, embedding, config = (
        model.get_output_embeddings(),
        model.get_input_embeddings(),
        model.config.get_text_config(),
    )
    if head is None or head.weight is embedding.weight or not torch.equal(head.weight, embedding.weight):
        return
    tied, config.tie_word_embeddings = config.tie_word_embeddings, True
    model.tie_weights()
    if head.weight is not embedding.weight:
        config.tie_word_embeddings = tied
