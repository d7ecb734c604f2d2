"""A model that is merged while it is written is the one that peft merges and transformers saves, file by file, and is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doubles.engine import tiny_model
from tests.export.test_huggingface import END, TEMPLATE, byte_tokenizer
from transformers import AutoModelForCausalLM

from tuneful.config import LoraConfig
from tuneful.errors import ExportError
from tuneful.export import merged
from tuneful.export.card import Card
from tuneful.export.huggingface import Shipped, save_model
from tuneful.export.merged import save_merged
from tuneful.files import sha256_of
from tuneful.model import merge
from tuneful.model.load import folder_model
from tuneful.model.lora import add_adapter, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
KINDS = {
    "plain": LoraConfig(r=4),
    "rslora": LoraConfig(r=4, alpha=3, use_rslora=True),
    "dora": LoraConfig(r=2, use_dora=True),
    "two": LoraConfig(r=3, target_modules=("c_attn",)),
}


@pytest.fixture
def shipped() -> Shipped:
    return Shipped(byte_tokenizer(eos_token=END), TEMPLATE, (256,), "base")


def base(tmp_path: Path, family: str, stored: torch.dtype, **changes: Any) -> Path:
    folder = tmp_path / "base"
    tiny_model(family, **changes).to(stored).save_pretrained(folder)
    return folder


def adapted(folder: Path, dtype: torch.dtype, config: LoraConfig):
    """The base in `dtype` with an adapter in float32 whose every number matters."""
    model = folder_model(folder, dtype)
    adapter = add_adapter(model, config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + 0.05 * torch.randn(parameter.shape)
    return model, adapter


def files(folder: Path) -> dict[str, str]:
    """The sha256 of each file."""
    return {file.name: sha256_of(file) for file in folder.iterdir()}


def by_peft(folder: Path, adapter: Any, tmp_path: Path, shipped: Shipped, dtype: Any) -> Path:
    """The base in float32, merged by peft and saved by transformers."""
    save_adapter(adapter, tmp_path / "adapter", "base")
    plain = folder_model(folder)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    save_model(theirs, tmp_path / "theirs", shipped, Card(), dtype=dtype)
    return tmp_path / "theirs"


@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "plain"), ("llama", "dora"), ("gpt2", "plain"), ("gpt2", "dora"), ("qwen2", "rslora"), ("gpt2", "two")],
)
def test_the_folder_is_byte_for_byte_what_peft_and_transformers_make_of_the_base_in_float32(
    family: str, kind: str, stored: torch.dtype, held: torch.dtype, saved: Any, tmp_path: Path, shipped: Shipped
) -> None:
    folder = base(tmp_path, family, stored)
    model, adapter = adapted(folder, held, KINDS[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert save_merged(model, folder, tmp_path / "ours", shipped, Card(), dtype=saved)
    theirs = files(by_peft(folder, adapter, tmp_path, shipped, saved))
    ours = files(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        assert content == theirs[name], name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_embedding_and_head_of_an_untied_model_may_have_adapters(tmp_path: Path, shipped: Shipped) -> None:
    folder = base(tmp_path, "qwen2", torch.bfloat16)
    config = LoraConfig(r=2, target_modules=("lm_head", "embed_tokens", "q_proj"))
    model, adapter = adapted(folder, torch.bfloat16, config)
    assert save_merged(model, folder, tmp_path / "ours", shipped, Card())
    theirs = load_file(by_peft(folder, adapter, tmp_path, shipped, "float32") / "model.safetensors")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_model_is_saved_in_several_files_as_transformers_does(
    tied: bool, tmp_path: Path, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path, "qwen2", torch.float32, tie_word_embeddings=tied)
    model, adapter = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    monkeypatch.setattr(merged, "MAX_FILE_BYTES", 30_000)
    monkeypatch.setattr("tuneful.model.stored.STRETCH", 1000)
    assert save_merged(model, folder, tmp_path / "ours", shipped, Card())
    whole = AutoModelForCausalLM.from_pretrained(
        by_peft(folder, adapter, tmp_path, shipped, "float32"), pad_token_id=None
    )
    whole.save_pretrained(tmp_path / "shards", max_shard_size=30_000)
    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "shards")
    written = {name for name in ours if "safetensors" in name}
    assert len(written) > 3
    assert written == {name for name in theirs if "safetensors" in name}
    for name in written:
        assert ours[name] == theirs[name], name


def test_a_base_that_was_saved_without_its_head_is_found_under_its_own_names(tmp_path: Path, shipped: Shipped) -> None:
    folder = base(tmp_path, "gpt2", torch.float32)
    state = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): one for name, one in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    model, adapter = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    assert save_merged(model, folder, tmp_path / "ours", shipped, Card())
    theirs = by_peft(folder, adapter, tmp_path, shipped, "float32")
    assert files(tmp_path / "ours") == files(theirs)


def test_a_base_whose_file_holds_other_numbers_by_now_is_an_error_and_leaves_nothing(
    tmp_path: Path, shipped: Shipped
) -> None:
    folder = base(tmp_path, "llama", torch.float32)
    model, _ = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] += 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight has changed"):
        save_merged(model, folder, tmp_path / "ours", shipped, Card())
    assert not (tmp_path / "ours").exists()


def test_a_base_of_which_memory_holds_less_and_no_file_is_known_is_not_merged_this_way(
    tmp_path: Path, shipped: Shipped
) -> None:
    folder = base(tmp_path, "llama", torch.float32)
    model, _ = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    assert not save_merged(model, None, tmp_path / "ours", shipped, Card())
    assert not (tmp_path / "ours").exists()
    model, _ = adapted(folder, torch.float32, LoraConfig(r=2))
    assert save_merged(model, None, tmp_path / "ours", shipped, Card())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_in_the_merged_weights_is_found_when_they_are_read_again(
    kind: str, tmp_path: Path, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path, "gpt2", torch.bfloat16)
    model, _ = adapted(folder, torch.bfloat16, KINDS[kind])
    right = merge._merged
    monkeypatch.setattr(merge, "_merged", lambda layer, weight: right(layer, weight) + 0.01 * weight)
    with pytest.raises(ExportError, match="differs from base"):
        save_merged(model, folder, tmp_path / "ours", shipped, Card())
    assert not (tmp_path / "ours").exists()


def test_numbers_that_were_damaged_on_the_disk_are_found(
    tmp_path: Path, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path, "llama", torch.bfloat16)
    model, _ = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    write = merged._write_file

    def damaged(saved: Any, file: Path, target: torch.dtype) -> None:
        write(saved, file, target)
        state = load_file(file)
        state["model.embed_tokens.weight"][0, 0] += 1
        save_file(state, file, {"format": "pt"})

    monkeypatch.setattr(merged, "_write_file", damaged)
    with pytest.raises(ExportError, match=r"embed_tokens\.weight was not saved as it is in the base"):
        save_merged(model, folder, tmp_path / "ours", shipped, Card())


def test_the_index_of_several_files_counts_each_matrix_once(
    tmp_path: Path, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path, "llama", torch.bfloat16)
    model, _ = adapted(folder, torch.bfloat16, LoraConfig(r=2))
    monkeypatch.setattr(merged, "MAX_FILE_BYTES", 30_000)
    save_merged(model, folder, tmp_path / "ours", shipped, Card())
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == folder_model(folder).num_parameters()
