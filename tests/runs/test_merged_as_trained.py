"""The end of a run with an adapter: what was saved is compared with what was trained, in float32 whatever the run computes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.runs.test_resume import Heard
from transformers import AutoConfig, AutoModelForCausalLM

import tuneful
from tuneful.config import Config, load_config
from tuneful.errors import ExportError
from tuneful.export.merged import save_merged
from tuneful.model.load import load_tokenizer

QUICK = ["train.max_steps=3", "train.batch_size=4", "generate.max_new_tokens=2", "report.general=none"]
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


def config(model: Path, *settings: str) -> Config:
    rank = [] if "train.method=full" in settings else ["lora.r=2"]
    return load_config(overrides=[f"model.name_or_path={model}", *rank, "train.learning_rate=0.01", *QUICK, *settings])


def stored(model: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The model with its weights in `dtype`."""
    return saved(AutoModelForCausalLM.from_pretrained(model), model, folder, dtype)


def restless(model: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A deeper model of large random weights: what is rounded in its first layers grows through the others."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers, config.initializer_range = 8, 0.8
    return saved(AutoModelForCausalLM.from_config(config), model, folder, dtype)


def saved(made: Any, like: Path, folder: Path, dtype: torch.dtype) -> Path:
    made.to(dtype).save_pretrained(folder)
    load_tokenizer(like).save_pretrained(folder)
    return folder


def planted(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Of every matrix of the merged model, saved and checked, `change(merged, base)` is written instead."""

    def wrongly_saved(model: Any, base: Path, folder: Path, *others: Any, **settings: Any) -> bool:
        assert save_merged(model, base, folder, *others, **settings)
        file, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
        for name, tensor in load_file(base / "model.safetensors").items():
            tensors[name] = change(tensors[name].float(), tensor.float()).to(tensors[name].dtype).contiguous()
        save_file(tensors, file, {"format": "pt"})
        return True

    monkeypatch.setattr("tuneful.runs.adapter.save_merged", wrongly_saved)


FAULTS = {
    "not merged": lambda merged, base: base,
    "half of it": lambda merged, base: (merged + base) / 2,
    "one in a hundred too much": lambda merged, base: merged + (merged - base) / 100,
}


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_was_merged_wrong_is_found_in_the_logits_in_bfloat16_too(
    fault: str, method: str, data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = stored(tiny_llama, tmp_path / "base", BFLOAT16)
    planted(monkeypatch, FAULTS[fault])
    with pytest.raises(ExportError, match="merged into its base the adapter gives logits that differ by"):
        tuneful.train(
            data, config=config(base, f"train.method={method}", "model.dtype=bfloat16"), output=tmp_path / "run"
        )
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_beside_a_base_that_was_rounded_for_the_training_an_adapter_that_was_not_merged_is_found(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, FAULTS["not merged"])
    settings = ["train.method=lora", "model.dtype=bfloat16", "train.learning_rate=0.05"]
    with pytest.raises(ExportError, match="and rounding explains"):
        tuneful.train(data, config=config(tiny_llama, *settings), output=tmp_path / "run")


@pytest.mark.parametrize("settings", [[], ["model.dtype=bfloat16"]])
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("fault", FAULTS)
def test_behind_the_rounding_of_the_saved_weights_an_adapter_that_was_merged_wrong_is_found_too(
    fault: str,
    method: str,
    settings: list[str],
    data: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(monkeypatch, FAULTS[fault])
    rounded = [f"train.method={method}", "model.save_dtype=bfloat16", "train.learning_rate=0.05", *settings]
    with pytest.raises(ExportError, match="merged into its base the adapter gives logits that differ by"):
        tuneful.train(data, config=config(tiny_llama, *rounded), output=tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("tiny_llama", ["lora.use_dora=true"]),
        ("tiny_llama", ["train.method=qlora", "lora.target_modules=q_proj"]),
        ("tiny_gpt2", ["train.method=lora"]),
        ("tiny_gpt2", ["train.method=qlora"]),
    ],
)
def test_what_was_merged_and_rounded_has_the_logits_that_were_expected(
    model: str, settings: list[str], data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    heard, begun_with = Heard(), request.getfixturevalue(model)
    rounded = ["train.method=lora", "model.save_dtype=bfloat16", *settings]
    tuneful.train(data, config=config(begun_with, *rounded), output=tmp_path / "run", terminal=heard)
    assert "merged and rounded to bfloat16: the same logits to 0e+00 of the largest" in heard


@pytest.mark.parametrize(
    ("kept_in", "settings"),
    [
        (BFLOAT16, ["train.method=lora"]),
        (FLOAT32, ["train.method=lora"]),
        (BFLOAT16, ["train.method=lora", "model.save_dtype=bfloat16", "train.learning_rate=1e-6"]),
        (FLOAT32, ["train.method=qlora"]),
        (BFLOAT16, ["train.method=lora", "lora.merge=false"]),
        (FLOAT32, ["train.method=full", "model.save_dtype=bfloat16"]),
    ],
)
def test_a_model_whose_logits_rounding_moves_far_is_saved_all_the_same(
    kept_in: torch.dtype, settings: list[str], data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    base = restless(tiny_llama, tmp_path / "base", kept_in)
    result = tuneful.train(data, config=config(base, "model.dtype=bfloat16", *settings), output=tmp_path / "run")
    assert result.model.is_dir()


def test_rounding_moves_the_logits_of_that_model_by_more_than_a_tenth(tiny_llama: Path, tmp_path: Path) -> None:
    base = restless(tiny_llama, tmp_path / "base", BFLOAT16)
    exact = AutoModelForCausalLM.from_pretrained(base, dtype=FLOAT32)
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        wanted = exact(ids).logits
        found = exact.bfloat16()(ids).logits.float()
    assert (found - wanted).abs().max() > 0.1 * wanted.abs().max()
