"""The folder of an adapter, as peft writes it, ours or anybody's: what it is, what it was made of, and whether it can go on being
trained.

Stands under `load.py` and reads JSON and headers alone, so that a request is refused before a weight is read. `lora.py` puts the
adapter onto its base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.errors import ConfigError, ModelError
from tuneful.files import read_object
from tuneful.model.names import ADAPTER
from tuneful.model.stored import StoredTensor, stored_tensors

WEIGHTS = "adapter_model.safetensors"
_LORA_TENSOR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?$")
LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways in which LoRA begins (`init_lora_weights`) that leave the base as it is."""
_TEXT_TASKS = (None, "CAUSAL_LM")
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
_IN_ACTIVATIONS = ("ADAPTION_PROMPT", "POLY", "XLORA")
_UNUSED: Mapping[str, Any] = {
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "target_parameters": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
    "alora_invocation_tokens": None,
}
"""Settings of peft's LoRA that plain LoRA leaves at these values (or at others that mean nothing: [], {}, false)."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the `folder` of an adapter holds: peft's `settings`, and the headers of its `tensors`."""

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def kind(self) -> str:
        """What peft calls it: `LORA`, `IA3`, ..."""
        return str(self.settings["peft_type"])

    @property
    def lora_settings(self) -> dict[str, Any]:
        """LoRA's settings in the words of the section `lora`; `target_modules` are the names of the layers that have a pair."""
        pairs = (name.partition(".lora_")[0].removesuffix(".base_layer") for name in self.tensors if ".lora_" in name)
        return {
            "r": int(self.settings["r"]),
            "alpha": float(self.settings["lora_alpha"]),
            "dropout": float(self.settings.get("lora_dropout") or 0.0),
            "target_modules": tuple(sorted(set(map(own_name, pairs)))),
            "use_rslora": bool(self.settings.get("use_rslora")),
            "use_dora": bool(self.settings.get("use_dora")),
        }

    @property
    def layers(self) -> set[int]:
        """The numbers of the layers that it stands beside."""
        return {int(found[1]) for name in self.tensors if (found := LAYER.search(name))}

    @property
    def leaves_its_base(self) -> bool:
        """Whether it is LoRA (rsLoRA, DoRA) beside weights that stay as everybody has them, or whole modules in place of theirs:
        each weight of the merged model then follows from one of the base's, or is its own."""
        modules = self.settings.get("modules_to_save") or []
        own = (name for name in self.tensors if not _LORA_TENSOR.search(name))
        return (
            self.kind == "LORA"
            and not set(self.more_than_lora) - {"rank_pattern", "alpha_pattern", "modules_to_save"}
            and all(name.rpartition(".")[0].endswith(tuple(modules) or "-") for name in own)
        )

    @property
    def more_than_lora(self) -> list[str]:
        """What an adapter of LoRA's kind holds or changes beside pairs of matrices, by the names of peft's settings."""
        found = [
            name for name, unused in _UNUSED.items() if (self.settings.get(name, unused) or None) != (unused or None)
        ]
        if self.settings.get("init_lora_weights", True) not in _INITIAL:
            found.append(f"init_lora_weights={self.settings['init_lora_weights']}")
        if not found and (other := [name for name in self.tensors if not _LORA_TENSOR.search(name)]):
            found.append(f"weights of its own for {other[0]}")
        return found


def own_name(path: str) -> str:
    """What a layer is called in its parent: the last part of its `path`, with the one before a number, which layers have too."""
    parts = path.split(".")
    first = next((at for at in range(len(parts) - 1, -1, -1) if not parts[at].isdigit()), 0)
    return ".".join(parts[first:])


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. ModelError where it is damaged, or of a kind that cannot be merged into a language model."""
    file = folder / ADAPTER
    try:
        settings = read_object(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}; fetch or save the adapter again") from None
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if not isinstance(kind, str):
        raise ModelError(f"{file}: names no kind of adapter (peft_type); fetch or save the adapter again")
    if task not in _TEXT_TASKS:
        raise ModelError(
            f"{file}: an adapter for {task}, and Tuneful continues text (CAUSAL_LM); choose another adapter"
        )
    if kind in _PROMPTS:
        raise ModelError(
            f"{file}: {kind} learns tokens of a prompt and no weights, so it cannot be merged into a model; Tuneful takes "
            "adapters that can (LoRA, DoRA, IA3, LoHa, ...)"
        )
    if kind in _IN_ACTIVATIONS or settings.get("alora_invocation_tokens"):
        kind = kind if kind in _IN_ACTIVATIONS else "aLoRA"
        raise ModelError(
            f"{file}: what {kind} adds depends on the tokens that are read, so it cannot be merged into a model; Tuneful takes "
            "adapters that can (LoRA, DoRA, IA3, LoHa, ...)"
        )
    return Adapter(folder, settings, _tensors(folder))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = folder / "adapter_model.bin"
        raise ModelError(
            f"{pickled} is pickled, and Tuneful opens safetensors only: load it with peft and save it again"
            if pickled.is_file()
            else f"{folder} has no weights: {WEIGHTS} is missing; fetch or save the adapter again"
        )
    try:
        return {name: one for name, one in stored_tensors(folder).items() if one.file.name == WEIGHTS}
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is damaged ({error}): fetch or save the adapter again") from None


def check_continued(adapter: Adapter) -> None:
    """ConfigError where training cannot go on with `adapter`, but only with a new one on the merged model."""
    out = "set lora.create_new_adapter=true, which merges this one into its base and trains a new one, or train.method=full"
    if adapter.kind != "LORA":
        raise ConfigError(f"{adapter.folder}: an adapter of the kind {adapter.kind} cannot go on being trained; {out}")
    if more := adapter.more_than_lora:
        raise ConfigError(
            f"{adapter.folder}: this adapter is more than LoRA ({', '.join(more)}), and cannot go on being trained; {out}"
        )
