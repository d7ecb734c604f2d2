"""A GGUF file is read as the model that it was made from: of every family that is exported, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.exported import SIZES, VARIANTS, YARN, byte_level_tokenizer, tiny_folder
from tests.doubles.families import tiny_family
from tests.doubles.written_gguf import write_tiny_gguf
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tuneful.config import load_config
from tuneful.errors import ModelError
from tuneful.export.gguf_file import file_keys, write_gguf
from tuneful.export.gguf_shapes import shape_of
from tuneful.export.gguf_tensors import plan_tensors
from tuneful.export.source import find_source
from tuneful.model import gguf_config
from tuneful.model.gguf import gguf_model
from tuneful.model.load import folder_model

IDS = torch.randint(4, 200, (1, 150), generator=torch.Generator().manual_seed(1))


def written(variant: str, place: Path, **more: Any) -> tuple[Path, Path]:
    """The folder of a tiny model, and the file that is exported of it, with `more` keys."""
    folder, file = tiny_folder(variant, byte_level_tokenizer(), place / "model"), place / "tiny.gguf"
    source = find_source(load_config(None, [f"model.name_or_path={folder}"]))
    kind = shape_of(source.architecture).name
    keys = {**file_keys(source, "f32", "tiny", None), **{name.replace("KIND", kind): one for name, one in more.items()}}
    write_gguf(file, kind, keys, plan_tensors(source, "f32"))
    return folder, file


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_exported_is_read_with_the_same_logits(variant: str, tmp_path: Path) -> None:
    folder, file = written(variant, tmp_path)
    with torch.no_grad():
        wanted, found = (model(IDS).logits for model in (folder_model(folder), gguf_model(file)))
    assert torch.equal(wanted, found), (wanted - found).abs().max()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("stablelm", {"partial_rotary_factor": 0.5}),
        ("nemotron", {"partial_rotary_factor": 0.5}),
        ("starcoder2", {}),
        ("phi3", {}),
        ("falcon", {}),
        ("mamba", {}),
        ("qwen2_moe", {}),
        ("qwen3_moe", {"norm_topk_prob": True}),
    ],
)
def test_files_of_other_architectures_are_read_with_the_same_logits(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_family(family, **changes)
    write_tiny_gguf(model, tmp_path / "tiny.gguf")
    ids = IDS[:, :40] % 24
    with torch.no_grad():
        wanted, found = (one(ids).logits for one in (model, gguf_model(tmp_path / "tiny.gguf")))
    assert (wanted - found).abs().max() <= 1e-6 * wanted.abs().max()


def test_heads_of_which_a_part_is_turned_are_refused_where_transformers_turns_all(tmp_path: Path) -> None:
    _, file = written("llama", tmp_path, **{"KIND.rope.dimension_count": 8, "KIND.attention.key_length": 16})
    with pytest.raises(ModelError, match="8 of the 16 numbers of a head are turned"):
        gguf_model(file)


def test_an_architecture_that_transformers_does_not_read_is_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    source = {"general.source.url": "https://huggingface.co/tiiuae/falcon-7b"}
    _, file = written("llama", tmp_path, **source, **{"general.architecture": "plamo"})
    with pytest.raises(ModelError) as refused:
        gguf_model(file)
    assert "architecture 'plamo'" in str(refused.value)
    assert "it reads bloom, falcon, gemma, gemma2" in str(refused.value)
    assert "--model tiiuae/falcon-7b" in str(refused.value)


def test_stretched_angles_of_a_file_are_those_of_transformers_own_yarn(tmp_path: Path) -> None:
    _, file = written("llama, yarn", tmp_path, **{"KIND.rope.scaling.yarn_beta_fast": 16.0})
    rotary = gguf_model(file).model.rotary_emb
    angles = {**YARN, "beta_fast": 16.0}
    wanted, scale = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**SIZES, rope_parameters=angles), None)
    assert torch.equal(rotary.inv_freq, wanted)
    assert rotary.attention_scaling == scale > 1


def test_angles_that_are_stretched_by_more_than_transformers_knows_are_refused(tmp_path: Path) -> None:
    _, file = written("llama, yarn", tmp_path, **{"KIND.rope.scaling.attn_factor": 1.5})
    with pytest.raises(ModelError, match=r"stretched by rope\.scaling\.attn_factor too"):
        gguf_model(file)


def test_a_llama_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    _, file = written("llama", tmp_path, **{"KIND.expert_count": 8})
    with pytest.raises(ModelError, match="architecture 'llama' with experts"):
        gguf_model(file)


def test_weights_that_the_model_has_no_place_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = written("llama with biases", tmp_path)
    monkeypatch.setattr(gguf_config, "_complete", lambda *_: None)
    with pytest.raises(ModelError, match=r"some would be left out \(its biases: .*attn_q\.bias"):
        gguf_model(file)


def test_angles_that_transformers_cannot_describe_are_refused(tmp_path: Path) -> None:
    _, file = written("llama", tmp_path, **{"KIND.rope.scaling.type": "longrope"})
    with pytest.raises(ModelError, match="longrope"):
        gguf_model(file)
    odd = np.array([1.0, 3.0, 2.0, 8.0])
    with pytest.raises(ModelError, match="stretched in a way that transformers does not have"):
        gguf_config._llama3(odd, 10000.0, file)


@pytest.mark.parametrize(("factor", "high", "original"), [(8.0, 4.0, 8192), (32.0, 4.0, 8192), (16.0, 3.0, 4096)])
def test_the_settings_of_stretched_angles_are_found_in_their_factors(factor: float, high: float, original: int) -> None:
    waves = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    settings = {"low_freq_factor": 1.0, "high_freq_factor": high, "original_max_position_embeddings": original}
    stored = gguf_config._divisors(waves, factor, **settings).astype(np.float32).astype(np.float64)
    assert gguf_config._llama3(stored, 500000.0, Path("x.gguf")) == {"factor": factor, **settings}
