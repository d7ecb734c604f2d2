"""An adapter leaves by itself: peft's folder as it is, or a GGUF adapter that llama.cpp applies as it was trained."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doubles.exported import byte_level_tokenizer, tiny_adapter, tiny_folder

import tuneful
from tuneful.errors import ConfigError, ExportError, ModelError
from tuneful.export.source import Source
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.load import load_model
from tuneful.model.stored import stored_tensors
from tuneful.model.stored_adapter import MergedWeight, StoredWeight, read_adapter

pytestmark = pytest.mark.usefixtures("few_probes")


@pytest.mark.parametrize("variant", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
def test_llama_cpp_with_base_and_adapter_computes_what_peft_does(
    variant: str, use_rslora: bool, tmp_path: Path
) -> None:
    adapter = tiny_adapter(variant, tmp_path, use_rslora=use_rslora)
    result = tuneful.export(adapter, "adapter", type="gguf", output=tmp_path / "out")
    assert {part.name: part.holds for part in result.proof.parts} == dict.fromkeys(
        ["keys", "tensors", "scale", "logits", "model", "answers", "endings"], True
    )
    (file,) = (tmp_path / "out").glob("*.gguf")
    header = read_gguf_header(file)
    assert header.metadata["adapter.lora.alpha"] == pytest.approx(16 * math.sqrt(4) if use_rslora else 16)
    assert {"lora_a", "lora_b"} == {name.rpartition(".")[2] for name in header.tensors}


def test_dora_is_refused_as_a_gguf_adapter_and_merged_in_a_gguf_file(tmp_path: Path) -> None:
    adapter = tiny_adapter("llama", tmp_path, use_dora=True)
    with pytest.raises(ModelError, match=r"DoRA .* export it --to gguf, merged"):
        tuneful.export(adapter, "adapter", type="gguf", output=tmp_path / "out")
    result = tuneful.export(adapter, "gguf", type="f32", output=tmp_path / "out")
    assert result.proof.notes == ("the adapter is merged into its base, DoRA's magnitudes included",)


def test_pefts_folder_leaves_as_it_is(tmp_path: Path) -> None:
    adapter = tiny_adapter("llama", tmp_path)
    result = tuneful.export(adapter, "adapter", output=tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert [part.name for part in result.proof.parts] == ["files"]


def test_a_model_without_adapter_has_none_to_export(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    for type in (None, "gguf"):
        with pytest.raises(ModelError, match=r"is no adapter, nor a run that keeps one"):
            tuneful.export(folder, "adapter", type=type, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="--to adapter takes gguf"):
        tuneful.export(folder, "adapter", type="q8_0", output=tmp_path / "out")


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_a_weight_is_merged_in_any_rows_as_peft_merges_it(
    variant: str, options: dict[str, bool], tmp_path: Path
) -> None:
    folder = tiny_adapter(variant, tmp_path, **options)
    wanted = load_model(str(folder)).model.state_dict()
    base = stored_tensors(tmp_path / "base")
    for name, pair in read_adapter(folder).pairs.items():
        weight = MergedWeight(StoredWeight(base[name]), pair)
        rows = torch.cat([weight.rows(at, at + 8) for at in range(0, weight.shape[0], 8)])
        torch.testing.assert_close(rows, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "a LOHA adapter is not known here"),
        ("alpha_pattern", {"q_proj": 2}, "`alpha_pattern` cannot be merged weight by weight"),
        ("bias", "all", "`bias` cannot be merged weight by weight"),
    ],
)
def test_an_adapter_that_is_more_than_pairs_of_matrices_is_refused(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = tiny_adapter("llama", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=message):
        read_adapter(folder)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter = tiny_adapter("llama", tmp_path)
    other = tiny_folder("llama, square", byte_level_tokenizer(), tmp_path / "other")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match=r"its matrices for model\.layers\.0\.self_attn\.v_proj\.weight fit no weight"):
        tuneful.export(adapter, "gguf", type="f32", output=tmp_path / "out")


def test_a_merged_folder_for_transformers_holds_the_adapter(tmp_path: Path) -> None:
    adapter = tiny_adapter("llama", tmp_path)
    result = tuneful.export(adapter, "huggingface", type="bf16", output=tmp_path / "out")
    assert all(part.holds for part in result.proof.parts)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    wanted = load_model(str(adapter)).model.state_dict()
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(saved[name], wanted[name].bfloat16())
    assert json.loads((tmp_path / "out" / "tuneful.json").read_text()) == {"template": "alpaca"}


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("begins", [False, True], ids=["plain", "with a begin token"])
def test_a_folder_for_transformers_asks_as_training_did(type: str, begins: bool, tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(begins=begins), tmp_path / "model")
    result = tuneful.export(folder, "huggingface", type=type, output=tmp_path / "out")
    assert {part.name: part.holds for part in result.proof.parts} == dict.fromkeys(
        ["tensors", "token ids", "prompts", "logits"], True
    )
    kind = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[type]
    assert set(result.proof.tensor_types) == {kind}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == kind
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        f"torch.{kind}"
    }


def test_a_folder_that_asks_otherwise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    right = Source.chat_template.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Source, "chat_template", property(lambda one: right(one).replace("Response", "Answer")))
    with pytest.raises(ExportError, match=r"prompts: the prompt is '.*Answer:.*not '.*Response:"):
        tuneful.export(folder, "huggingface", output=tmp_path / "out")


def test_numbers_that_sixteen_bits_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 7e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ExportError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds 7e\+04, and f16 ends at 65504"
    ):
        tuneful.export(folder, "huggingface", type="f16", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gpt2_folder_names_the_context_as_llama_cpps_converter_wants_it(tmp_path: Path) -> None:
    folder = tiny_folder("gpt2", byte_level_tokenizer(), tmp_path / "model")
    tuneful.export(folder, "huggingface", output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_ctx"] == 512
