"""What a model is, from its headers alone: a model without weights (`meta`), and the size of what its files hold.

For whoever wants to know before anything is loaded, fetched or converted. The trade: what only the weights can tell (whether the
self-check holds) is not known here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.checks import check_architecture, check_weight_files, first_line, quiet, read_config
from tuneful.model.gguf_cache import unpacked_folder
from tuneful.model.gguf_config import gguf_config
from tuneful.model.names import is_adapter
from tuneful.model.openai_gpt2 import described, is_openai_folder
from tuneful.model.size import ModelSize, size_from, size_of
from tuneful.model.stored import stored_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Outline:
    """A `model` on the device `meta`, without weights; the `size` of its files; `kind` says what they are, and `becomes` what is
    made of them when they are loaded."""

    model: PreTrainedModel
    size: ModelSize
    kind: str
    becomes: str
    stored: str | None


def outline(path: Path) -> Outline:
    """The model in `path`, a folder or file as `load.located` finds it, and no adapter. ModelError where it cannot be read."""
    assert not is_adapter(path), path
    if path.is_file():
        return _of_gguf(path)
    if is_openai_folder(path):
        values, shapes = described(path)
        becomes = "converted to safetensors in the cache, once"
        return Outline(
            _without_weights(values, path), size_from(values, shapes), "OpenAI's GPT-2 files", becomes, "float32"
        )
    values = read_config(path)
    check_architecture(values, path)
    check_weight_files(path)
    size = size_of(path)
    if size is None:
        raise ModelError(f"{path}: the headers of its weights do not tell how large it is; fetch it again")
    if size.num_layers > len(size.shapes):
        raise ModelError(
            f"{path}: config.json says {size.num_layers:,} layers, and the files hold {len(size.shapes):,} tensors; they belong "
            "to different models"
        )
    return Outline(_without_weights(values, path), size, "safetensors folder", "read as it is", stored_dtype(path))


def _of_gguf(file: Path) -> Outline:
    config = gguf_config(file)
    size = size_of(file)
    if size is None:
        raise ModelError(f"{file}: its header does not tell how large it is; fetch it again")
    num_bytes = 4 * size.num_parameters
    folder = unpacked_folder(file)
    becomes = f"read from {folder}" if folder else f"unpacked to float32 in the cache, once ({num_bytes / 1e9:,.1f} GB)"
    return Outline(_without_weights(json.loads(config.to_json_string()), file), size, "GGUF file", becomes, None)


def _without_weights(values: dict[str, Any], path: Path) -> PreTrainedModel:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a value of another type brings about
        raise ModelError(
            f"{path} cannot be read as its configuration describes it: {first_line(error)}; fetch it again"
        ) from error
    return model
