"""The folder of an adapter as a model: whatever peft writes is merged as peft computes it, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from tests.doubles.engine import tiny_model
from tests.doubles.exported import byte_level_tokenizer
from tests.doubles.families import tiny_family
from transformers import AutoModelForCausalLM, PreTrainedModel

from tuneful.config import LoraConfig, load_config
from tuneful.errors import ConfigError, ExportError, ModelError
from tuneful.infer.session import LoadedModel, load_to_answer
from tuneful.model import load
from tuneful.model.adapter import check_continued, read_adapter
from tuneful.model.load import folder_model, load_model, load_tokenizer
from tuneful.model.lora import add_adapter, merge_adapter, save_adapter
from tuneful.model.precision import cast_parameters
from tuneful.model.saved_template import with_saved_template
from tuneful.runs.method import begin_method

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
IDS = torch.tensor([[5, 6, 7, 8, 9]])
LINEAR = ["q_proj", "v_proj", "down_proj"]
LORA: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "one layer": {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    "other ranks": {"target_modules": LINEAR, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "by a pattern": {"target_modules": r".*layers\.0\..*_proj"},
    "a head of its own": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "norms of its own": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}
BASE_CHANGED: dict[str, dict[str, Any]] = {
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "pissa": {"target_modules": LINEAR, "init_lora_weights": "pissa"},
}
OTHERS: dict[str, PeftConfig] = {
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=2, target_modules=LINEAR),
    "lokr": peft.LoKrConfig(r=2, target_modules=LINEAR),
    "oft": peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj", "o_proj"]),
}


def settings_of(kind: str) -> PeftConfig:
    settings = {**LORA, **BASE_CHANGED}.get(kind)
    return OTHERS[kind] if settings is None else peft.LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM", **settings)


def base_folder(tiny_llama: Path, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for key, value in changes.items():
        setattr(model.config, key, value)
    model.to(dtype).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


def adapter_on(base: Path, settings: PeftConfig, folder: Path) -> PreTrainedModel:
    """The model with an adapter that does something, in float32, as peft computes it; its folder is written."""
    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", [*LORA, *BASE_CHANGED, *OTHERS])
def test_whatever_peft_writes_is_loaded_with_its_base_and_says_what_peft_says(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter_on(tiny_llama, settings_of(kind), tmp_path / "adapter")
    oracle = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    wanted, plain = logits(oracle), logits(AutoModelForCausalLM.from_pretrained(tiny_llama))
    model = load_model(str(tmp_path / "adapter")).model
    assert (wanted - plain).abs().max() > 1e-3 * wanted.abs().max()
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    is_one = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings == is_one
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(model)), "a merged model is a model like any other"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*LORA, *BASE_CHANGED, "loha"])
def test_in_bfloat16_it_is_bit_for_bit_what_merging_in_float32_and_rounding_once_gives(
    kind: str, stored: torch.dtype, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_folder(tiny_llama, tmp_path / "base", stored)
    adapter_on(base, settings_of(kind), tmp_path / "adapter")
    wanted = load_model(str(tmp_path / "adapter")).model
    cast_parameters(wanted, torch.bfloat16)
    loaded: list[Any] = []
    own = load.folder_model
    monkeypatch.setattr(
        load, "folder_model", lambda path, dtype=None, **given: loaded.append(dtype) or own(path, dtype, **given)
    )
    found = load_model(str(tmp_path / "adapter"), dtype=torch.bfloat16).model
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    if kind in LORA:
        assert loaded == [torch.bfloat16], "the base is never held in float32"


def test_tokens_that_were_added_before_the_training_come_with_the_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    num_tokens = base.get_input_embeddings().weight.shape[0] + 2
    base.resize_token_embeddings(num_tokens, mean_resizing=False)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model = peft.get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    assert loaded.model.get_input_embeddings().weight.shape[0] == num_tokens
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-5)


def test_the_base_is_found_beside_the_adapter_and_where_it_was_moved_to(tiny_llama: Path, tmp_path: Path) -> None:
    base = base_folder(tiny_llama, tmp_path / "base")
    model = adapter_on(base, settings_of("lora"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "base_model_name_or_path": "../base"}))
    torch.testing.assert_close(logits(load_model(str(tmp_path / "adapter")).model), logits(model), rtol=0, atol=1e-5)
    gone = {"template": "chatml", "base": {"name": str(tmp_path / "gone"), "sha256": load.fingerprint(base)}}
    (tmp_path / "adapter" / "tuneful.json").write_text(json.dumps(gone))
    load_model(str(tmp_path / "adapter"))
    file.write_text(json.dumps({**document, "base_model_name_or_path": str(tmp_path / "nowhere")}))
    with pytest.raises(ModelError, match=r"its base is not here: .*gone.*\(base_model_name_or_path\)"):
        load_model(str(tmp_path / "adapter"))


def test_a_config_that_a_trainer_wrote_beside_the_adapter_makes_it_no_model(tiny_llama: Path, tmp_path: Path) -> None:
    model = adapter_on(tiny_llama, settings_of("lora"), tmp_path)
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    torch.testing.assert_close(logits(load_model(str(tmp_path)).model), logits(model), rtol=0, atol=1e-5)


PROMPT = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
PREFIX = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
ALORA = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PROMPT, "PROMPT_TUNING learns tokens of a prompt and no weights"),
        (PREFIX, "PREFIX_TUNING learns tokens of a prompt and no weights"),
        (ALORA, "what aLoRA adds depends on the tokens that are read"),
    ],
    ids=["prompt", "prefix", "alora"],
)
def test_what_cannot_be_merged_is_refused_in_words(
    settings: PeftConfig, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=said):
        load_model(str(tmp_path))


def _without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def _lacking_one(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)


def _for_classes(folder: Path) -> None:
    _set(folder, task_type="SEQ_CLS")


def _of_no_kind(folder: Path) -> None:
    _set(folder, peft_type=None)


def _set(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_weights, "has no adapter_model.safetensors"),
        (_pickled, "is pickled, and Tuneful opens safetensors only"),
        (_cut, "adapter_model.safetensors is damaged"),
        (_lacking_one, "the adapter cannot be read back onto its base"),
        (_for_classes, "an adapter for SEQ_CLS, and Tuneful continues text"),
        (_of_no_kind, "names no kind of adapter"),
    ],
)
def test_an_adapter_that_is_not_whole_is_one_message(damage: Any, said: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter_on(tiny_llama, settings_of("lora"), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=said):
        load_model(str(tmp_path))


@pytest.mark.parametrize("is_adapter", [False, True], ids=["a model", "an adapter"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_what_answers_in_bfloat16_is_never_held_in_float32_and_is_the_same(
    is_adapter: bool, stored: torch.dtype, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base_folder(tiny_llama, tmp_path / "base", stored)
    if is_adapter:
        adapter_on(folder, settings_of("lora"), tmp_path / "adapter")
        folder = tmp_path / "adapter"
    config = load_config(overrides=[f"model.name_or_path={folder}", "model.dtype=bfloat16", "model.device=cpu"])
    wanted = load_model(str(folder))
    cast_parameters(wanted.model, torch.bfloat16)
    loaded: list[Any] = []
    own = load.folder_model
    monkeypatch.setattr(
        load, "folder_model", lambda path, dtype=None, **given: loaded.append(dtype) or own(path, dtype, **given)
    )
    for model in (load_to_answer(config).model, LoadedModel.load(config).model):
        assert torch.equal(logits(model), logits(wanted.model))
    assert set(loaded) == {torch.bfloat16}


def test_the_template_is_the_adapters_else_its_bases(tiny_llama: Path, tmp_path: Path) -> None:
    base = base_folder(tiny_llama, tmp_path / "base")
    adapter_on(base, settings_of("lora"), tmp_path / "adapter")
    config = load_config(overrides=[f"model.name_or_path={tmp_path / 'adapter'}"])
    assert with_saved_template(config).template.name == load_config().template.name
    (base / "tuneful.json").write_text('{"template": "chatml"}')
    assert with_saved_template(config).template.name == "chatml"
    (tmp_path / "adapter" / "tuneful.json").write_text('{"template": "phi-3"}')
    assert with_saved_template(config).template.name == "phi-3"
    asked = load_config(overrides=[f"model.name_or_path={tmp_path / 'adapter'}", "template.name=alpaca"])
    assert with_saved_template(asked).template.name == "alpaca"


def test_what_an_adapter_was_made_of_is_told_by_its_folder(tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_model(), settings_of("dora"))
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.lora_settings == {
        "r": 2,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": ("down_proj", "q_proj", "v_proj"),
        "use_rslora": False,
        "use_dora": True,
    }
    assert adapter.layers == {0, 1}


def old_adapter(family: str, projections: tuple[str, str, str], place: Path) -> tuple[Path, PreTrainedModel]:
    """An adapter beside each expert alone, as peft wrote it before transformers made one tensor of them; and the model that its
    sums come to by hand."""
    tiny_family(family, vocab_size=400).save_pretrained(place / "base")
    (merged, tensors) = folder_model(place / "base"), dict[str, torch.Tensor]()
    byte_level_tokenizer().save_pretrained(place / "base")
    torch.manual_seed(0)

    def add(path: str, weight: torch.Tensor) -> None:
        first, second = torch.randn(2, weight.shape[1]) * 0.1, torch.randn(weight.shape[0], 2) * 0.1
        weight += 4 * second @ first
        tensors[f"base_model.model.model.layers.{path}.lora_A.weight"] = first
        tensors[f"base_model.model.model.layers.{path}.lora_B.weight"] = second

    for layer, one in enumerate(merged.model.layers):
        experts, inner = one.mlp.experts, one.mlp.experts.gate_up_proj.shape[1] // 2
        for expert, fused in enumerate(experts.gate_up_proj.detach()):
            weights = (fused[:inner], fused[inner:], experts.down_proj.detach()[expert])
            for name, weight in zip(projections, weights, strict=True):
                add(f"{layer}.mlp.experts.{expert}.{name}", weight)
        if hasattr(one.mlp, "shared_expert"):
            for name in projections:
                add(f"{layer}.mlp.shared_expert.{name}", getattr(one.mlp.shared_expert, name).weight.detach())
    (place / "adapter").mkdir()
    save_file(tensors, place / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": list(projections)}
    settings |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(place / "base")}
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return place / "adapter", merged


@pytest.mark.parametrize(
    ("family", "projections"),
    [("mixtral", ("w1", "w3", "w2")), ("qwen3_moe", ("gate_proj", "up_proj", "down_proj"))],
)
def test_an_adapter_beside_single_experts_is_merged_into_all_of_them_and_cannot_go_on(
    family: str, projections: tuple[str, str, str], tmp_path: Path
) -> None:
    folder, wanted = old_adapter(family, projections, tmp_path)
    found = folder_model(tmp_path / "base")
    merge_adapter(found, folder, ())
    assert largest_share(found, wanted) < 1e-6
    assert read_adapter(folder).more_than_lora == []
    config = load_config(overrides=["train.method=lora"])
    with pytest.raises(ConfigError, match="experts are one tensor there"):
        begin_method(folder_model(tmp_path / "base"), config, torch.device("cpu"), folder)


def test_an_adapter_beside_experts_that_peft_would_leave_out_is_refused(tmp_path: Path) -> None:
    folder, _ = old_adapter("qwen2_moe", ("gate_proj", "up_proj", "down_proj"), tmp_path)
    with pytest.raises(ExportError, match="would be left out; the model has no such layer"):
        merge_adapter(folder_model(tmp_path / "base"), folder, ())
    with pytest.raises(ModelError, match="would be left out"):
        load_model(str(folder))


def largest_share(one: PreTrainedModel, other: PreTrainedModel) -> float:
    with torch.no_grad():
        found, wanted = (model(IDS).logits for model in (one, other))
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "family",
    [
        *("afmoe", "cohere2_moe", "deepseek_v2", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe"),
        *("glm4_moe_lite", "hunyuan_v1_moe", "longcat_flash", "qwen3_next", "solar_open"),
    ],
)
def test_an_adapter_that_peft_put_beside_experts_cannot_go_on_being_trained(family: str, tmp_path: Path) -> None:
    save_adapter(add_adapter(tiny_family(family), LoraConfig(r=4, alpha=8)), tmp_path / "adapter", "some/base")
    with pytest.raises(ConfigError, match=r"more than LoRA \(.*target_parameters\), and cannot go on being trained"):
        check_continued(read_adapter(tmp_path / "adapter"))
