"""A run beside a base in 4 bits on a CPU: what is shipped is the adapter on the values that the 4 bits stand for, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tuneful
from tuneful.config import Config, load_config
from tuneful.errors import ConfigError, ExportError, ModelError
from tuneful.export.source import find_source
from tuneful.model.load import load_model
from tuneful.model.lora import restore_adapter
from tuneful.model.names import adapter_base
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.quantize import round_to_4_bits
from tuneful.runs import job, training

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8]])
QLORA = ["train.method=qlora", "lora.r=2", "train.learning_rate=0.01"]
QUICK = ["train.max_steps=4", "train.batch_size=4", "generate.max_new_tokens=2", "report.general=none"]
PEFT_WARNS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out:UserWarning")


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


def config(model: object, *settings: str) -> Config:
    return load_config(overrides=[f"model.name_or_path={model}", *QUICK, *QLORA, *settings])


def rounded_base(model: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    round_to_4_bits(base, CPU)
    return base


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@PEFT_WARNS
@pytest.mark.parametrize(
    ("family", "dtype", "settings"),
    [
        ("tiny_llama", "float32", []),
        ("tiny_llama", "bfloat16", ["model.save_dtype=bfloat16"]),
        ("tiny_llama", "bfloat16", ["lora.use_dora=true"]),
        ("tiny_gpt2", "float32", ["model.dropout=0", "train.freeze_layers=1"]),
    ],
)
def test_what_is_shipped_is_the_rounded_base_with_the_adapter(
    family: str, dtype: str, settings: list[str], data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    result = tuneful.train(data, config=config(model, f"model.dtype={dtype}", *settings), output=tmp_path / "run")
    base, as_it_came = rounded_base(model), AutoModelForCausalLM.from_pretrained(model)
    merged = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).merge_and_unload()
    shipped, rounding = load_file(result.model / "model.safetensors"), 2**-8 if "bfloat16" in str(settings) else 1e-5
    for name, tensor in shipped.items():
        wanted = merged.state_dict()[name]
        assert (tensor.float() - wanted).abs().max() <= rounding * wanted.abs().max(), name
        is_matrix = ".layers." in name or ".h." in name
        if is_matrix and tensor.ndim == 2:
            assert not torch.allclose(tensor.float(), as_it_came.state_dict()[name], atol=1e-3)
    embedding = base.get_input_embeddings().weight
    found = next(tensor for name, tensor in shipped.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    assert torch.equal(found, embedding.to(found.dtype))


def test_folders_cards_and_terminal_say_that_the_base_was_rounded(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = tuneful.run(data, config=config(tiny_llama), output=tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    assert adapter_base(adapter).quantization == "nf4"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_llama)
    card, merged_card = (
        (folder / "README.md").read_text(encoding="utf-8").replace("\n", " ") for folder in (adapter, result.model)
    )
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in card
    assert "merged into the values that these 4 bits stand for" in merged_card
    for text in (card, merged_card):
        assert "linear layers in 4 bits (NF4, blocks of 64" in text
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    base = load_model(str(tiny_llama)).model
    assert environment["model"]["num_parameters"] == base.num_parameters()
    assert "quantization" not in (result.model / "config.json").read_text()


@PEFT_WARNS
def test_an_adapter_alone_is_merged_into_the_rounded_base_wherever_it_is_loaded(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    both = tuneful.train(data, config=config(tiny_llama, "model.dtype=float32"), output=tmp_path / "both")
    alone = tuneful.train(
        data, config=config(tiny_llama, "model.dtype=float32", "lora.merge=false"), output=tmp_path / "alone"
    )
    assert alone.model.name == "adapter"
    wanted, found = logits(load_model(str(both.model)).model), logits(load_model(str(alone.path)).model)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    document = json.loads((alone.model / "tuneful.json").read_text())
    document["base"]["quantization"] = "fp3"
    (alone.model / "tuneful.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"quantized as 'fp3', and only 'nf4' is known"):
        load_model(str(alone.path))


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_llama, "train.save_steps=2")
    tuneful.run(data, config=settings, output=tmp_path / "straight")
    save, save_model = training._save_checkpoint, training._save_model

    def cut_off(run: Any, trained: Any) -> None:
        save(run, trained)
        raise CutOffError

    monkeypatch.setattr(training, "_save_checkpoint", cut_off)
    with pytest.raises(CutOffError):
        tuneful.run(data, config=settings, output=tmp_path / "cut")
    monkeypatch.setattr(training, "_save_checkpoint", save)

    def saved_and_cut_off(run: Any, model: Any) -> None:
        save_model(run, model)
        raise CutOffError

    monkeypatch.setattr(training, "_save_model", saved_and_cut_off)
    with pytest.raises(CutOffError):
        tuneful.run(data, config=settings, output=tmp_path / "cut")
    monkeypatch.setattr(training, "_save_model", save_model)
    tuneful.run(data, config=settings, output=tmp_path / "cut")
    for file in (
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
        "records.jsonl",
        "answers/tuned.jsonl",
    ):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file


def test_a_run_goes_on_from_a_run_and_rounds_what_that_one_merged(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, "model.dtype=float32", "lora.merge=false")
    first = tuneful.train(data, config=settings, output=tmp_path / "first")
    settings = config(first.path, "model.dtype=float32", "lora.create_new_adapter=true")
    second = tuneful.train(data, config=settings, output=tmp_path / "second")
    base = load_model(str(first.path)).model
    round_to_4_bits(base, CPU)
    shipped = load_file(second.model / "model.safetensors")
    adapter = load_file(tmp_path / "second" / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    low, high = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = base.state_dict()[f"{name}.weight"] + 16 * high @ low
    torch.testing.assert_close(shipped[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def adapter(data: Path, tiny_llama: Path, tmp_path: Path) -> Path:
    """The adapter of a run that merged nothing."""
    settings = config(tiny_llama, "model.dtype=float32", "lora.merge=false")
    return tuneful.run(data, config=settings, output=tmp_path / "first").model


@PEFT_WARNS
def test_an_adapter_goes_on_being_trained_beside_the_rounded_base(
    adapter: Path, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = config(adapter, "model.dtype=float32", "train.max_steps=1", "train.learning_rate=1e-9")
    second = tuneful.run(data, config=settings, output=tmp_path / "second")
    answers = [adapter.parent / "answers" / "tuned.jsonl", second.path / "answers" / "base.jsonl"]
    first, begun = ([json.loads(line)["text"] for line in file.read_text().splitlines()] for file in answers)
    assert begun == first, "it begins where the first run ended"
    before, after = (load_file(one / "adapter_model.safetensors") for one in (adapter, second.path / "adapter"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)
    base = adapter_base(second.path / "adapter")
    assert (base.name, base.quantization) == (str(tiny_llama), "nf4")
    wanted = peft.PeftModel.from_pretrained(rounded_base(tiny_llama), str(second.path / "adapter"))
    torch.testing.assert_close(logits(load_model(str(second.model)).model), logits(wanted), rtol=0, atol=1e-5)


def test_beside_the_base_as_it_came_the_adapter_of_a_rounded_one_does_not_go_on(
    adapter: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"learned beside its base in 4 bits: set train\.method=qlora, or lora"):
        tuneful.train(data, config=config(adapter, "train.method=lora"), output=tmp_path / "second")


@PEFT_WARNS
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_a_rounded_base_is_the_same_in_every_precision_and_for_every_export(
    family: str, dora: bool, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = ["model.dtype=float32", "lora.merge=false", f"lora.use_dora={dora}", "train.freeze_layers=1"]
    model = request.getfixturevalue(family)
    adapter = tuneful.train(data, config=config(model, *settings), output=tmp_path / "first").model
    wanted = load_model(str(adapter)).model.state_dict()
    low = load_model(str(adapter), dtype=torch.bfloat16).model
    assert not is_in_4_bits(low)
    for name, tensor in low.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name].to(tensor.dtype), rtol=2**-7, atol=1e-7)
    source = find_source(load_config(overrides=[f"model.name_or_path={adapter}"]))
    for name, weight in source.weights.items():
        rows = weight.rows(0, weight.shape[0] if len(weight.shape) > 1 else 1).reshape(weight.shape)
        torch.testing.assert_close(rows, wanted[name], rtol=1e-5, atol=1e-7)


def test_a_dry_run_counts_the_matrices_in_4_bits(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    estimate = job.estimate_job("train", str(data), config(tiny_llama), tmp_path / "run")
    assert estimate.model_bytes > 4 * load_model(str(tiny_llama)).model.num_parameters()
    assert set(estimate.phase_memory_bytes) == {"loading", "training", "saving"}


@PEFT_WARNS
def test_an_adapter_that_is_not_what_was_saved_is_refused(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    tuneful.train(data, config=config(tiny_llama), output=tmp_path / "run")
    folder = tmp_path / "run" / "adapter"
    tensors = load_file(folder / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    restore_adapter(adapter, folder)
    del tensors[min(tensors)]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="is not in both the trained and the saved adapter"):
        restore_adapter(adapter, folder)
