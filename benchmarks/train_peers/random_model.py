"""A model of the shape of Qwen2.5 1.5B with random weights in bfloat16, to time a step that is ten times as large.

Its tokenizer is the built-in model's, whose ids lie below its vocabulary; time and memory do not depend on what is learned.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def make_random_model(folder: Path) -> Path:
    """Write the model folder, about 3.1 GB, unless it is there."""
    from tuneful.model.load import resolve_model

    if (folder / "done").exists():
        return folder
    builtin = Path(resolve_model("smollm2-135m-instruct"))
    end_token = json.loads((builtin / "config.json").read_text())["eos_token_id"]
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_token,
        pad_token_id=end_token,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(builtin / name, folder / name)
    (folder / "done").touch()
    return folder
