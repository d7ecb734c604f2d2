"""A GGUF file is unpacked once, by its hash, and never half."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.test_builtin import tiny_gguf

from tuneful.model import gguf_cache
from tuneful.model.gguf import gguf_model
from tuneful.model.load import load_model, load_tokenizer


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def never(*_: Any) -> Any:
    raise AssertionError("unpacked again")


IDS = torch.tensor([[5, 6, 7, 8]])


def test_the_second_command_unpacks_nothing_and_gets_the_same_model_and_tokens(
    file: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    first = load_model(str(file), told.append)
    assert [
        line for line in told if "unpacking" in line and "once" in line and str(models) in line and " MB in " in line
    ]
    monkeypatch.setattr(gguf_cache, "gguf_model", never)
    monkeypatch.setattr(gguf_cache, "gguf_tokenizer", never)
    second = load_model(str(file))
    assert torch.equal(first.model(IDS).logits, second.model(IDS).logits)
    for text in ("a  42\n", "<s> x", "Grüße"):
        assert first.tokenizer(text).input_ids == second.tokenizer(text).input_ids
    assert first.tokenizer.chat_template == second.tokenizer.chat_template
    assert first.tokenizer.eos_token_id == second.tokenizer.eos_token_id
    assert second.folder == file, "the model is told by the file that was named"


def test_what_was_unpacked_in_float32_is_let_go_of_and_read_as_it_is_wanted(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[weakref.ref[Any]]()

    def unpacked(path: Path) -> Any:
        model = gguf_model(path)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(gguf_cache, "gguf_model", unpacked)
    gc.disable()
    try:
        first = load_model(str(file), dtype=torch.bfloat16).model
        assert [one() for one in made] == [None]
    finally:
        gc.enable()
    second = load_model(str(file), dtype=torch.bfloat16).model
    assert first.dtype is torch.bfloat16
    assert torch.equal(first(IDS).logits, second(IDS).logits)


def test_a_tokenizer_alone_is_kept_without_the_weights(file: Path, models: Path) -> None:
    load_tokenizer(file)
    assert [path.name for path in models.glob("gguf-*/*-1")] == ["tokenizer-1"]


def test_another_file_under_the_same_name_is_unpacked_anew(file: Path, models: Path) -> None:
    before = load_model(str(file)).model
    tiny_gguf(file, head="own")
    after = load_model(str(file)).model
    assert not torch.equal(before(IDS).logits, after(IDS).logits)
    assert len(list(models.glob("gguf-*"))) == 2


def test_without_room_or_without_a_cache_the_file_is_unpacked_each_time(
    file: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_model(str(file)).model(IDS).logits
    (tmp_path / "no-folder").touch()
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "no-folder"))
    assert torch.equal(load_model(str(file)).model(IDS).logits, kept)
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(gguf_cache, "free_bytes", lambda _: 0)
    told: list[str] = []
    assert torch.equal(load_model(str(file), told.append).model(IDS).logits, kept)
    assert "there is no room" in "\n".join(told)
    assert not list((tmp_path / "full").rglob("model.safetensors"))


def test_an_unpacking_that_was_killed_leaves_no_half_of_a_model(
    file: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("transformers.LlamaForCausalLM.save_pretrained", killed)
        with pytest.raises(KilledError):
            load_model(str(file))
    assert not list(models.glob("gguf-*/model-2"))
    load_model(str(file))
    assert [path.name for path in models.glob("gguf-*/model-2/*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(("head", "is_tied"), [("", True), ("equal", True), ("own", False)])
def test_a_head_that_is_the_embedding_again_is_tied_counted_and_trained_once(
    head: str, is_tied: bool, tmp_path: Path
) -> None:
    tiny_gguf(tmp_path / "head.gguf", head=head)
    for _ in range(2):  # as it is unpacked, and from the cache
        model = load_model(str(tmp_path / "head.gguf")).model
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is is_tied
        assert ("lm_head.weight" in dict(model.named_parameters())) is not is_tied
        assert model.config.tie_word_embeddings is is_tied
