"""What a run leaves behind is used as it is: by Tuneful under the run's own name, by transformers, and by peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.model.test_builtin import tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

import tuneful
from tuneful.config import Config, load_config
from tuneful.errors import ConfigError, ModelError
from tuneful.infer.session import LoadedModel
from tuneful.model.gguf_header import gguf_hub_id
from tuneful.model.load import fingerprint, load_model, load_tokenizer
from tuneful.runs import job
from tuneful.train.loop import Training

PEFT_WARNS = pytest.mark.filterwarnings("ignore::FutureWarning")
QUICK = ("train.max_steps=3", "train.batch_size=4", "generate.max_new_tokens=4", "report.general=none")
LORA = ("train.method=lora", "lora.r=2", "train.learning_rate=0.01")
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


def config(model: object, *settings: str) -> Config:
    return load_config(overrides=[f"model.name_or_path={model}", "model.dtype=float32", *QUICK, *settings])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_folder_of_a_run_names_its_trained_model_and_its_template(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = tuneful.train(data, config=config(tiny_llama, "template.name=chatml"), output=tmp_path / "run")
    assert result.model == tmp_path / "run" / "model"
    loaded = load_model(str(tmp_path / "run"))
    assert torch.equal(logits(loaded.model), logits(load_model(str(result.model)).model))
    session = LoadedModel.load(load_config(overrides=[f"model.name_or_path={tmp_path / 'run'}", "model.dtype=float32"]))
    assert session.config.template.name == "chatml"
    assert tuneful.check(data, config=config(tmp_path / "run")).without_tokens == ""


def test_a_run_without_a_model_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"this run has saved no model yet; go on with it: tuneful run --resume"):
        load_model(str(tmp_path / "run"))


def test_an_adapter_alone_is_kept_used_and_gone_on_with(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_llama, *LORA)
    both = tuneful.run(data, config=settings, output=tmp_path / "both")
    alone = config(tiny_llama, *LORA, "lora.merge=false")
    result = tuneful.run(data, config=alone, output=tmp_path / "alone")
    assert result.model == tmp_path / "alone" / "adapter"
    assert not (tmp_path / "alone" / "model").exists()
    merged = logits(load_model(str(both.model)).model)
    for name in (tmp_path / "alone", result.model):
        assert torch.allclose(logits(load_model(str(name)).model), merged, atol=1e-6)
    answers = [(run / "answers" / "tuned.jsonl").read_text() for run in (both.path, result.path)]
    assert answers[0] == answers[1]


def test_a_run_that_keeps_an_adapter_alone_and_is_killed_after_saving_takes_it_from_there(
    data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    settings = config(tiny_llama, *LORA, "lora.merge=false")
    straight = tuneful.run(data, config=settings, output=tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(job, "compare", killed)
        with pytest.raises(KilledError):
            tuneful.run(data, config=settings, output=tmp_path / "cut")
    (tmp_path / "cut" / "answers" / "tuned.jsonl").unlink()
    monkeypatch.setattr(Training, "run", killed)  # nothing is trained again
    result = tuneful.run(data, config=settings, output=tmp_path / "cut")
    for name in ("answers/tuned.jsonl", "adapter/adapter_model.safetensors"):
        assert (result.path / name).read_bytes() == (straight.path / name).read_bytes()


@PEFT_WARNS
def test_the_folder_of_an_adapter_is_all_that_peft_needs(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = tuneful.train(data, config=config(tiny_llama, *LORA), output=tmp_path / "run")
    folder = tmp_path / "run" / "adapter"
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(logits(model), logits(load_model(str(result.model)).model), atol=1e-5)
    tokenizer, shipped = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(result.model)
    messages = [{"role": "user", "content": "Say red."}]
    assert tokenizer.apply_chat_template(messages) == shipped.apply_chat_template(messages)
    assert tokenizer.eos_token_id == shipped.eos_token_id
    text = card_of(folder)
    assert "library_name: peft" in text
    assert "AutoPeftModelForCausalLM" in text
    assert "| adapter | rank 2, alpha 32 |" in text
    assert "More Information Needed" not in text
    assert str(tmp_path) not in text


def test_an_adapter_is_not_put_on_another_base_than_its_own(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for folder in (base, tmp_path / "other"):
        model.save_pretrained(folder)
        load_tokenizer(tiny_llama).save_pretrained(folder)
        model.model.norm.weight.data.mul_(2)
    tuneful.train(data, config=config(base, *LORA, "lora.merge=false"), output=tmp_path / "run")
    before = fingerprint(tmp_path / "run" / "adapter")
    (tmp_path / "other" / "model.safetensors").replace(base / "model.safetensors")
    with pytest.raises(ModelError, match="is not the model that it was trained on"):
        load_model(str(tmp_path / "run"))
    assert fingerprint(tmp_path / "run" / "adapter") != before, "the base is a part of what an adapter is"


@PEFT_WARNS
def test_an_adapter_of_pefts_own_is_loaded_with_the_tokenizer_of_its_base(tiny_llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    assert len(loaded.tokenizer) == len(load_tokenizer(tiny_llama))
    document = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("more", [(), LORA])
def test_a_model_saved_in_bfloat16_is_the_one_that_is_measured(
    more: tuple[str, ...], data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = tuneful.run(data, config=config(tiny_llama, *more, "model.save_dtype=bfloat16"), output=tmp_path / "run")
    saved = AutoModelForCausalLM.from_pretrained(result.model, dtype="auto")
    assert saved.dtype == torch.bfloat16
    assert "Weights are bfloat16 safetensors" in card_of(result.model)
    settings = load_config(overrides=[f"model.name_or_path={result.model}", "model.dtype=float32", *QUICK])
    again = tuneful.generate_file(result.path / "data" / "test.jsonl", tmp_path / "again.jsonl", config=settings)
    rows = [json.loads(line) for line in (result.path / "answers" / "tuned.jsonl").read_text().splitlines()]
    assert [row.text for row in again] == [row["text"] for row in rows]


def test_the_card_of_a_short_run_tells_the_passes_that_were_made(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = tuneful.train(data, config=config(tiny_llama), output=tmp_path / "run")
    num_train = len((tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines())
    assert f"| epochs | {12 / num_train:.3g} |" in card_of(result.model)
    assert "| steps | 3 of 4 records |" in card_of(result.model)
    whole = config(tiny_llama, "train.max_steps=null", "train.num_train_epochs=1.5")
    assert "| epochs | 1.5 |" in card_of(tuneful.train(data, config=whole, output=tmp_path / "whole").model)


@PEFT_WARNS
def test_the_card_takes_name_license_and_hub_id_from_the_header_of_a_gguf(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    texts = {"general_name": "Tiny Tune", "general_license": "Gemma"}
    tiny_gguf(tmp_path / "file.gguf", **texts)
    settings = config(tmp_path / "file.gguf", *LORA, "template.name=chatml", "data.max_length=64")
    short = [{"instruction": f"{n}?", "output": f"{n}"} for n in range(20)]
    result = tuneful.train(short, config=settings, output=tmp_path / "run")
    for folder in (result.model, tmp_path / "run" / "adapter"):
        text = card_of(folder)
        assert "license: gemma" in text
        assert "# Tiny Tune, finetuned on instructions" in text
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter")
    assert torch.allclose(logits(model), logits(load_model(str(result.model)).model), atol=1e-4)
    assert gguf_hub_id(tmp_path / "file.gguf") is None
    tiny_gguf(tmp_path / "named.gguf", general_source_url="https://huggingface.co/owner/tiny-model")
    assert gguf_hub_id(tmp_path / "named.gguf") == "owner/tiny-model"


def test_an_adapter_can_be_kept_alone_only_where_there_is_one(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="the section lora is ignored"):
        config(tiny_llama, "lora.merge=false")
