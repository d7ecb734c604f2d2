"""The folder of an adapter of a tiny model, damaged in what its settings, its weights and the name of its base say."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tests.doubles.damaged_bytes import ANY_FILE, MARKER, NUMBERS, Mutation
from tests.doubles.damaged_huggingface import NESTED, ODD, edit, header, numbers, shapes, write_huggingface_folder


def write_adapter(place: Path) -> Path:
    """Write the model as `base` and an adapter of it, whose folder is returned."""
    write_huggingface_folder(place / "base")
    folder = place / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "../base"}))
    weights: dict[str, Any] = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        weights |= {f"{name}A.weight": np.ones((2, 16), np.float32), f"{name}B.weight": np.ones((16, 2), np.float32)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def settings(folder: Path, rng: random.Random) -> None:
    keys: tuple[str, ...] = (
        "r",
        "lora_alpha",
        "target_modules",
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "lora_dropout",
        "bias",
    )
    keys += (
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    )
    keys += (
        "use_dora",
        "use_rslora",
        "fan_in_fan_out",
        "exclude_modules",
        "target_parameters",
        "auto_mapping",
        "revision",
    )
    edit(folder / "adapter_config.json", {key: rng.choice(ODD) for key in rng.sample(keys, rng.choice((1, 1, 2)))})


def patterns(folder: Path, rng: random.Random) -> None:
    changes: tuple[dict[str, Any], ...] = (
        *({"r": number} for number in NUMBERS),
        {"target_modules": [f"m{number}" for number in range(1_000_000)]},
        {"target_modules": "(([a-z0-9_.])+)+!"},
        {"target_modules": "(.*)*!", "r": 2},
        {"rank_pattern": {"((a|.)+)+!": 4}},
        {"rank_pattern": {"q_proj": 1 << 40}},
        {"layers_to_transform": list(range(1_000_000))},
        {"layers_to_transform": [0], "layers_pattern": "((.)+)+!"},
        {"exclude_modules": "((.)+)+!"},
        {"init_lora_weights": rng.choice(("pissa", "olora", "corda", "eva", "loftq", "x"))},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"peft_type": rng.choice(("IA3", "ADALORA", "BOFT", "PREFIX_TUNING", "VERA", "NOTHING", "X-LORA"))},
    )
    edit(folder / "adapter_config.json", rng.choice(changes))


def circle(folder: Path, rng: random.Random) -> None:
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    places = rng.choice(((".", "../base"), ("../other", "../adapter"), ("../other", "."), ("nowhere/here/at-all", ".")))
    for one, place in zip((folder, other), places, strict=True):
        edit(
            one / "adapter_config.json", {"base_model_name_or_path": rng.choice((place, str((one / place).resolve())))}
        )


def adapter_code(folder: Path, rng: random.Random) -> None:
    program = f"open({str(folder.parent / MARKER)!r}, 'w')"
    (folder / "adapter_model.bin").write_bytes(b"cbuiltins\nexec\n(V" + program.encode() + b"\ntR.")
    if rng.random() < 0.8:
        (folder / "adapter_model.safetensors").unlink()
    (folder / "tuneful.json").write_text(
        rng.choice(("{}", "[]", NESTED, '{"base": {"name": 3, "sha256": []}}', '{"base": []}'))
    )


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (*ANY_FILE, settings, patterns, circle, adapter_code, header, numbers, shapes)
}
