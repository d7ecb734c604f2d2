"""The adapter that every system starts from: peft's folder, written once, with both matrices away from zero.

Fresh adapters begin with B at zero, where the first loss would not show whether A, the scale or the adapter itself is there at
all. Here B is small and random, so the gate's first loss depends on every matrix. peft and torch only: this file
runs in each peer's own environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ALPHA = 32
B_SCALE = 0.01
SEED = 11
_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def write_adapter(model: Path, folder: Path, rank: int) -> Path:
    """Write an adapter beside all linear layers of the model in `model`; its sizes come from the configuration alone."""
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        settings = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(SEED)
    tensors = {
        name.replace(".default.", "."): _start(name, parameter.shape, generator)
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = adapted.peft_config["default"]
    written.base_model_name_or_path = str(model)
    written.save_pretrained(str(folder))
    save_file(tensors, folder / _FILE)
    return folder


def read_into(model: Any, folder: Path) -> None:
    """Give the trainable parameters of `model`, peft's by their names, the values of the adapter in `folder`."""
    parameters = {
        name.removeprefix(_PREFIX): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    stored = {
        name.removeprefix(_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(folder / _FILE).items()
    }
    assert parameters.keys() == stored.keys(), sorted(parameters.keys() ^ stored.keys())[:4]
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def _start(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    scale = B_SCALE if ".lora_B." in name else shape[1] ** -0.5
    return torch.randn(shape, generator=generator) * scale
