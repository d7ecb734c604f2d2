"""What is exported, found without loading a model: configuration, tokenizer, prompt format, and every weight by its name.

Stands at the head of an export. A source is a folder in Hugging Face's format, or that and an adapter on it, whose weights are
then merged as they are read. Weights are read a few rows at a time: what is written from them takes little memory, however large
the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.config import Config
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import load_encoder
from tuneful.encoding.template import TEMPLATE_FILE
from tuneful.errors import ModelError
from tuneful.infer.session import with_saved_template
from tuneful.model.checks import check_architecture, check_weight_files, ignore, quiet, read_config
from tuneful.model.gguf_cache import cached_gguf_model, unpacked_folder
from tuneful.model.load import folder_model, load_tokenizer, resolve_model
from tuneful.model.names import adapter_base, is_adapter
from tuneful.model.stored import DTYPES, stored_tensors
from tuneful.model.stored_adapter import MergedWeight, StoredAdapter, StoredWeight, Weight, read_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIXES = {"gpt2": "transformer"}
"""What transformers calls the body of a model where it is not `model`; some files leave it out."""


@dataclass(frozen=True)
class Source:
    """A model to export: `name` as given, the `folder` of its tokenizer, the `base` of its weights, an `adapter` or none."""

    name: str
    folder: Path
    base: Path
    adapter: StoredAdapter | None
    config: Config
    architecture: Any
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the template that the model is asked under."""
        return load_encoder(self.tokenizer, self.config)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every weight, by the name that transformers has for it; ModelError for one that cannot be read."""
        stored = stored_tensors(self.base)
        prefix = _PREFIXES.get(self.architecture.model_type, "model")
        named: dict[str, Weight] = {}
        for name, tensor in stored.items():
            if tensor.dtype in DTYPES:
                whole = name if name.startswith((f"{prefix}.", "lm_head.")) else f"{prefix}.{name}"
                named[whole] = StoredWeight(tensor)
        return named if self.adapter is None else _merged(named, self.adapter)

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.architecture.tie_word_embeddings)

    @property
    def chat_template(self) -> str:
        """The prompt format as a Jinja chat template."""
        text = self.encoder.text
        bos = self.tokenizer.bos_token if text.bos_token_ids else ""
        end = self.tokenizer.convert_ids_to_tokens(text.end_token_id)
        return text.template.chat_template(bos_text=bos, end_text=end)


def find_source(config: Config, notify: Callable[[str], None] = ignore) -> Source:
    """What `config.model.name_or_path` names: a run, a folder, an adapter, a Hub id, a `.gguf` or the built-in model.

    Asked under the template that its folder names, else that of `config` where one was given, else its tokenizer's own. Raises
    ModelError, ConfigError, TemplateError.
    """
    name = config.model.name_or_path
    folder = resolve_model(name, notify)
    adapter = read_adapter(folder) if is_adapter(folder) else None
    base = _weights_of(resolve_model(adapter_base(folder).name, notify) if adapter is not None else folder, notify)
    check_architecture(read_config(base), base)
    check_weight_files(base)
    tokenizer = load_tokenizer(folder)
    return Source(
        name, folder, base, adapter, _with_template(config, folder, tokenizer), _architecture(base), tokenizer
    )


def _weights_of(path: Path, notify: Callable[[str], None]) -> Path:
    """The folder with the weights of a base: that of a `.gguf` is unpacked."""
    if is_adapter(path):
        raise ModelError(f"{path}: an adapter on an adapter cannot be exported; merge the first one (lora.merge=true)")
    if path.is_dir():
        return path
    cached_gguf_model(path, folder_model, notify)
    if (unpacked := unpacked_folder(path)) is None:
        raise ModelError(f"{path}: its weights have no room in the cache; make some, or name the model's own folder")
    return unpacked


def _with_template(config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Config:
    if config.template.model_fields_set & {"name", "file"}:
        return config
    if (folder / TEMPLATE_FILE).is_file():
        return with_saved_template(config)
    if not tokenizer.chat_template:
        return config
    return config.model_copy(update={"template": config.template.model_copy(update={"name": TOKENIZER_TEMPLATE})})


def _architecture(folder: Path) -> Any:
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{folder}: its config.json cannot be read: {error}") from error
    return config.get_text_config()


def _merged(named: dict[str, Weight], adapter: StoredAdapter) -> dict[str, Weight]:
    merged = dict(named)
    for name, pair in adapter.pairs.items():
        weight = named.get(name)
        if weight is None or weight.shape != pair.weight_shape:
            raise ModelError(
                f"{adapter.folder}: its matrices for {name} fit no weight of its base; name the base that it was trained on"
            )
        merged[name] = MergedWeight(weight, pair)
    return merged
