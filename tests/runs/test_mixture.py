"""A run with an adapter of a mixture of experts: transformers holds those of a layer as one tensor, and saves each apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.doubles.families import tiny_family

import tuneful
from tuneful.config import load_config
from tuneful.model.load import load_tokenizer

SETTINGS = ("train.method=lora", "lora.r=2", "train.max_steps=2", "train.learning_rate=0.01", "report.general=none")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_its_adapter_is_merged_and_what_was_saved_says_the_same(family: str, tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer, base = load_tokenizer(tiny_llama), tmp_path / "base"
    made = tiny_family(family)
    made.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    made.save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    config = load_config(overrides=[f"model.name_or_path={base}", *SETTINGS])
    tuneful.train(data, config=config, output=tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    changed = [name for name, tensor in before.items() if not tensor.equal(after[name])]
    assert changed
    assert all(".self_attn." in name or ".experts." in name for name in changed)
