"""Exports: what is saved is what was in memory, bit for bit; it loads without a word; a crash spares the older one."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.machine import needs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tuneful.errors import ExportError
from tuneful.export.card import Card
from tuneful.export.huggingface import Shipped, save_model, verify_export
from tuneful.files import written_aside
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import load_model

END, TURN = "<|endoftext|>", "<|im_end|>"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
PROMPTS = [[1, 2, 3], list(range(40)), [256]]
CARD = Card(facts={"records": "17", "note": "a | b"}, data=("owner/data",), license="apache-2.0")


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (END, TURN)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 256, "bos_token_id": 256}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **options})).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_embd=16, n_layer=2, n_head=2, eos_token_id=256, bos_token_id=256)
    return GPT2LMHeadModel(config).eval()


def save(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    stop = tuple(options.pop("stop_token_ids", (256,)))
    names = {"chat_template": options.pop("chat_template", TEMPLATE), "base_name": options.pop("base_name", BUILTIN)}
    shipped = Shipped(byte_tokenizer(eos_token=END), stop_token_ids=stop, **names)
    save_model(model, folder, shipped, options.pop("card", CARD), **options)


@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(tie_word_embeddings=True)], ids=["llama", "gpt2", "tied"])
def test_what_was_trained_is_what_is_saved(make: Any, tmp_path: Path) -> None:
    model, folder = make(), tmp_path / "model"
    save(model, folder)
    assert verify_export(model, folder, PROMPTS) == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert load_model(str(folder)).tokenizer.chat_template == TEMPLATE


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    save(llama(tie_word_embeddings=True), tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")


def test_a_view_with_odd_strides_is_saved_right(tmp_path: Path) -> None:
    model = llama()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.randn(16, 32).T)
    assert not layer.weight.is_contiguous()
    save(model, tmp_path / "model")
    assert verify_export(model, tmp_path / "model", PROMPTS) == 0


def test_bfloat16_halves_the_file_and_rounds_once(tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path / "full")
    save(model, tmp_path / "half", dtype="bfloat16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert verify_export(model, tmp_path / "half", PROMPTS) == 0, "in float32, of weights rounded alike"
    assert model.dtype == torch.float32


def test_the_model_in_memory_is_left_as_it_was(tmp_path: Path) -> None:
    model, tokenizer = llama().train(), byte_tokenizer(eos_token=END)
    model.config.use_cache = False
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "m", Shipped(tokenizer, TEMPLATE, (257,), "x"), CARD)
    verify_export(model, tmp_path / "m", PROMPTS)
    assert model.training
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert (tokenizer.chat_template, tokenizer.eos_token) == (None, END)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["use_cache"] is True


def test_leftovers_of_quantization_and_of_this_machine_are_not_shipped(tmp_path: Path) -> None:
    model = llama()
    model.config.quantization_config = {"quant_method": "gguf"}
    model.config.name_or_path = str(tmp_path / "secret")
    save(model, tmp_path / "model", base_name=str(tmp_path / "secret"))
    for file in ("config.json", "generation_config.json", "tokenizer_config.json", "README.md"):
        text = (tmp_path / "model" / file).read_text()
        assert "quantization" not in text
        assert str(tmp_path) not in text


def test_an_attention_made_for_training_is_neither_shipped_nor_compared(tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("attention made for training")

    AttentionInterface.register("tuneful_test", broken)
    model = llama()
    model.set_attn_implementation("tuneful_test")
    save(model, tmp_path / "model")
    assert "tuneful_test" not in (tmp_path / "model" / "config.json").read_text()
    assert verify_export(model, tmp_path / "model", PROMPTS) == 0
    assert model.config._attn_implementation == "tuneful_test"


def test_a_published_temperature_without_sampling_can_be_saved(tmp_path: Path) -> None:
    model = llama()
    model.generation_config = GenerationConfig(eos_token_id=256, temperature=0.6, top_p=0.9)
    model.generation_config.do_sample = False
    save(model, tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.6, True)


def test_transformers_loads_it_without_a_word_and_stops_where_it_should(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama()
    save(model, tmp_path / "model", stop_token_ids=[257, 256])
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING, "transformers"):
            warnings.simplefilter("always")
            loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
            with torch.no_grad():  # whatever it reads, it wants to say <|im_end|>
                loaded.lm_head.weight.zero_()
                loaded.lm_head.weight[257] = loaded.model.norm(loaded.model.embed_tokens.weight[5])
            prompt = torch.tensor([[5]])
            answer = loaded.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    finally:
        library.removeHandler(caplog.handler)
    assert caught == []
    assert caplog.records == []
    assert len(answer[0]) < 21
    assert answer[0, -1] == 257
    assert loaded.generation_config.eos_token_id == [257, 256]
    assert loaded.generation_config.pad_token_id == 257
    assert tokenizer.encode("abc") == byte_tokenizer(eos_token=END).encode("abc")


def test_the_tokenizers_end_token_is_one_that_was_trained(tmp_path: Path) -> None:
    save(llama(), tmp_path / "model", stop_token_ids=[257])
    assert load_model(str(tmp_path / "model")).tokenizer.eos_token == TURN
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == 257


# What is refused


def test_a_changed_weight_is_found_and_named(tmp_path: Path) -> None:
    model, folder = llama(), tmp_path / "model"
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight"):
        verify_export(model, folder, PROMPTS)


def test_a_changed_config_is_found_in_the_logits(tmp_path: Path) -> None:
    model, folder = llama(), tmp_path / "model"
    save(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 99.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="logits"):
        verify_export(model, folder, PROMPTS)


def test_not_a_number_is_not_equal_enough(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save(model, tmp_path / "model")
    with pytest.raises(ExportError, match="nan"):
        verify_export(model, tmp_path / "model", PROMPTS)


def test_a_folder_that_cannot_be_loaded_is_an_export_error(tmp_path: Path) -> None:
    save(llama(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="loaded again"):
        verify_export(llama(), tmp_path / "model", PROMPTS)


def test_somebodys_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ExportError, match="something else"):
        save(llama(), tmp_path)
    with pytest.raises(ExportError, match="is a file"):
        save(llama(), tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


# Whole or not at all


def test_an_older_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(gpt2(), folder)
    (folder / "stray.txt").write_text("old")
    model = llama()
    save(model, folder)
    assert verify_export(model, folder, PROMPTS) == 0
    assert not (folder / "stray.txt").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_leaves_the_older_export_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = gpt2(), tmp_path / "model"
    save(model, folder)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    broken = llama()
    monkeypatch.setattr(broken, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(broken, folder)
    assert verify_export(model, folder, PROMPTS) == 0
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_attempt_left_is_cleared_or_put_back(tmp_path: Path) -> None:
    folder, part, old = tmp_path / "m", tmp_path / ".part-m", tmp_path / ".old-m"
    part.mkdir()
    (part / "half").write_text("")
    old.mkdir()  # killed between the two renames: the only whole copy
    (old / "whole").write_text("")
    with pytest.raises(KeyboardInterrupt), written_aside(folder):
        raise KeyboardInterrupt
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [folder]


@needs("posix")
def test_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(llama(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()} == {0o640}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_is_the_embedding_is_saved_once(dtype: str, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    save(model, tmp_path / "model", dtype=dtype)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert verify_export(model, tmp_path / "model", PROMPTS) >= 0
