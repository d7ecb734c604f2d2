"""What may be read as a model, and what is wrong with it in one message: everything is refused that would be half right.

Stands under `load.py`, `gguf.py` and `builtin.py`. transformers warns and goes on with random numbers where a weight is missing,
unexpected or of another shape; here each is an error that names it.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.own_files import check_own_files, read_document
from tuneful.model.stored import INDEX, StoredTensor, read_safetensors_header, weight_files
from tuneful.model.tokenizer_limits import panics_as_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Notify = Callable[[str], None]
"""Receives one line of status before something that takes a while."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LEGACY_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|(^|\.)attn\.(masked_)?bias)$")
MAX_NAMED = 5
_DOCUMENTS = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "added_tokens", "chat_template")
_TEMPLATES = "chat_template.jinja"


def ignore(_: str) -> None:
    """The `notify` of callers that show nothing."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; ModelError where it is none."""
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds both an adapter (adapter_config.json) and a model: move one of them to a folder of its own"
        )
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json: a model folder holds one, *.safetensors and a tokenizer")
    return read_document(file)


def check_text_files(folder: Path) -> None:
    """ModelError that names the first small file of a model folder that is damaged; transformers passes over some of them.

    No file of the folder that transformers may open is a link out of it, or anything else than a file.
    """
    check_own_files(folder)
    for file in (folder / f"{name}.json" for name in _DOCUMENTS):
        if os.path.lexists(file):
            read_document(file)
    if os.path.lexists(template := folder / _TEMPLATES):
        try:
            template.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _damaged(template, error) from error


def damaged_tokenizer(folder: Path, error: Exception) -> ModelError:
    """What to say of a folder whose tokenizer transformers cannot read, naming the file that is at fault."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not os.path.lexists(file):
        return ModelError(f"{folder}: the tokenizer cannot be read: {first_line(error)}")
    try:
        with panics_as_errors():
            Tokenizer.from_file(str(file))
    except Exception as own:  # the library raises no narrower one
        return _damaged(file, own)
    return ModelError(
        f"{folder}: the tokenizer cannot be read, though tokenizer.json can: {first_line(error)}; "
        "fetch tokenizer_config.json again"
    )


def damaged_model(folder: Path, error: Exception) -> ModelError:
    """What to say of a folder whose model transformers cannot load, though its weights were checked: which file is at fault."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if file.is_file():
        try:
            GenerationConfig.from_pretrained(str(folder))
        except Exception as own:  # whatever a value of another type brings about
            return _damaged(file, own)
    return ModelError(f"{folder} cannot be loaded as config.json describes it: {first_line(error)}; fetch it again")


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return ModelError(f"{file} cannot be read: {reason}; fetch it again")


def check_architecture(config: Mapping[str, Any], folder: Path) -> None:
    """ModelError for an architecture that transformers does not have, that needs code of the folder, or that is quantized."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file, kind = folder / "config.json", config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise ModelError(
                f"{file}: architecture {kind!r} needs Python code from the model folder, which Tuneful never runs; "
                f"choose a model whose architecture is part of transformers"
            )
        raise ModelError(
            f"{file}: model_type {kind!r} is unknown to transformers {transformers.__version__}; "
            f"upgrade it (pip install -U transformers) or choose another model"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{file}: {kind} is no causal language model; choose one that continues text")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        raise ModelError(f"{file}: the weights are quantized ({method}); choose the unquantized model")
    for key, value in _attention_keys(config):
        if "/" in str(value):
            raise ModelError(f"{file}: {key}={value!r} would download and run code; remove this key")


def _attention_keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _attention_keys(value)
        elif "attn_implementation" in key or "experts_implementation" in key:
            yield key, value


def check_weight_files(folder: Path) -> dict[str, StoredTensor]:
    """ModelError unless the folder holds whole safetensors files; what they hold, by name."""
    if not any(os.path.lexists(folder / name) for name in ("model.safetensors", INDEX)):
        if any(file for pattern in PICKLES for file in folder.glob(pattern)):
            raise ModelError(
                f"{folder} holds pickled weights only, and Tuneful opens safetensors only. Where you trust the source: "
                f'python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('{folder}')\" writes a model.safetensors beside them"
            )
        raise ModelError(f"{folder} has no weights: model.safetensors is missing")
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found |= _checked_safetensors(file)
    return found


def _checked_safetensors(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as stream:
            if stream.read(24).startswith(b"version https://git-lfs"):
                raise ModelError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
        found = read_safetensors_header(file)
        with safe_open(file, framework="pt"):
            pass
    except ModelError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is damaged ({first_line(error)}): fetch it again") from error
    return found


def check_loading(info: Any, path: Path) -> None:
    """Refuse what transformers only warns of: weights left random, dropped or of another shape."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{path}: the weights lack {named(missing)}, which config.json asks for; they would be random. Fetch the model again"
        )
    unexpected = sorted(name for name in info["unexpected_keys"] if not LEGACY_BUFFERS.search(name))
    if unexpected:
        raise ModelError(
            f"{path}: the weights hold {named(unexpected)}, which the architecture in config.json does not have; "
            f"config.json and weights belong to different models"
        )
    if mismatched := sorted(f"{name} {list(found)} for {list(want)}" for name, found, want in info["mismatched_keys"]):
        raise ModelError(f"{path}: weights of another shape than config.json says: {named(mismatched)}")
    problems: Any = info.get("error_msgs") or info.get("conversion_errors")
    if problems:
        lines = list(problems.values()) if isinstance(problems, dict) else list(problems)
        raise ModelError(f"{path} cannot be loaded: {first_line(lines[0])}")


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """ModelError where the tokenizer gives ids that the embedding has no row for."""
    num_rows = model.get_input_embeddings().weight.shape[0]
    top = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if top[1] >= num_rows:
        raise ModelError(
            f"{path}: the tokenizer's {top[0]!r} has id {top[1]}, but the embedding table has {num_rows} rows; "
            f"the tokenizer (tokenizer.json, tokenizer_config.json) and the weights belong to different models"
        )


def with_end_token(tokenizer: PreTrainedTokenizerBase, path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as it is; ModelError where it has no end token."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f'{path}: the tokenizer has no end token; add "eos_token": "..." to its tokenizer_config.json')
    return tokenizer


@contextlib.contextmanager
def quiet(hub_bars: bool = False) -> Iterator[None]:
    """Hold back the bars and warnings of transformers (and of the Hub, unless `hub_bars`) while the block runs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (enable_progress_bars if hub_bars and hub else disable_progress_bars)()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        (enable_progress_bars if hub else disable_progress_bars)()


def first_line(error: object) -> str:
    """The first line of what an error says that is not blank, else its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def named(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more
