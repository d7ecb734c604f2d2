"""What is served under which name: runs with their bases, adapters, and weights that are held once."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.doubles.served import Server, models_of
from tests.machine import needs

import tuneful
from tuneful.infer.session import LoadedModel, question
from tuneful.model.beside import beside
from tuneful.serve.limits import Limits
from tuneful.serve.models import ServedModel, UnknownModelError, share_equal_weights
from tuneful.serve.prompts import RequestError, chat_prompt, conversation_of

ASKED = "Say one."
MESSAGES = [{"role": "user", "content": ASKED}]
FLOAT32 = ("model.dtype=float32", "model.device=cpu")


def answered(model: ServedModel, asked_as: ServedModel | None = None) -> str:
    """What `model` says, greedily, to a prompt of its own template or that of another."""
    loaded = replace(model.loaded, encoder=(asked_as or model).loaded.encoder)
    config = loaded.config.model_copy(
        update={"generate": loaded.config.generate.model_copy(update={"max_new_tokens": 24})}
    )
    [answer] = replace(loaded, config=config).answer([question("", (), ASKED)])
    return answer.text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, lively_llama: Path) -> Path:
    """A run of two steps of LoRA on a few records, with a chat template that is not the default."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three", "four", "five", "six")]
    (folder / "data.json").write_text(json.dumps(rows))
    settings = [
        "train.max_steps=2",
        "train.method=lora",
        "lora.merge=false",
        "template.name=chatml",
        "data.test_share=0.2",
    ]
    config = tuneful.load_config(overrides=[f"model.name_or_path={lively_llama}", "model.dtype=float32", *settings])
    return tuneful.train(str(folder / "data.json"), config=config, output=folder / "first").path


@pytest.fixture(scope="module")
def others(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two further adapters of the same base: that of the run with other numbers."""
    from safetensors.torch import load_file, save_file

    folders = []
    for name, scale in (("second", 3.0), ("third", -4.0)):
        folder = tmp_path_factory.mktemp("adapters") / name
        shutil.copytree(run / "adapter", folder)
        file = folder / "adapter_model.safetensors"
        torch.manual_seed(int(scale) + 9)
        noisy = {key: one + scale * 0.1 * torch.randn(one.shape) for key, one in load_file(file).items()}
        save_file(noisy, file, metadata={"format": "pt"})
        folders.append(folder)
    return folders


def test_a_run_gives_what_it_trained_and_its_base_under_one_template(run, lively_llama):
    models = models_of(run)
    assert [model.name for model in models] == ["tuned", "base"]
    tuned, base = models
    assert tuned.base == "base"
    assert base.path == lively_llama
    assert tuned.loaded.encoder.text.template.name == "chatml"
    messages = [{"role": "user", "content": "Say one."}]
    prompts = [chat_prompt(model, conversation_of(messages), Limits()).token_ids for model in models]
    assert prompts[0] == prompts[1]
    [again] = models_of(lively_llama)
    state, untouched = base.loaded.model.state_dict(), again.loaded.model.state_dict()
    assert state.keys() == untouched.keys()
    assert all(torch.equal(state[name], untouched[name]) for name in untouched)
    assert answered(base) == answered(again, base)
    assert answered(tuned) != answered(base)


def test_a_prompt_is_the_beginning_of_the_training_example(run):
    from tuneful.types import Conversation, Turn

    tuned = models_of(run).find("tuned")
    turns = (Turn("Say one.", "", "one"), Turn("And two?", "", "two"))
    for system in ("", "Be brief."):
        example: Any = tuned.loaded.encoder.example(Conversation(system, turns, "here"))
        messages = [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": "Say one."},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "And two?"},
        ]
        ids = chat_prompt(tuned, conversation_of(messages), Limits()).token_ids
        assert example.token_ids[: len(ids)].tolist() == ids


def test_a_merged_adapter_has_the_weights_of_its_base_that_it_leaves(run, monkeypatch):
    monkeypatch.setattr("tuneful.serve.models.beside", lambda base, folder: None)
    tuned, base = models_of(run)
    held = {one.data_ptr() for one in base.loaded.model.parameters()}
    shared = [name for name, one in tuned.loaded.model.named_parameters() if one.data_ptr() in held]
    assert any("embed_tokens" in name for name in shared)
    assert not any("q_proj" in name for name in shared)


@needs("compiler")
def test_adapters_stand_beside_one_base_and_answer_as_if_each_were_merged_into_its_own(run, others, lively_llama):
    models = list(models_of(run, *others, lively_llama))
    assert [model.name for model in models] == ["tuned", "base", "second", "third", "lively"]
    tuned, base, *rest = models
    held = {one.data_ptr() for one in base.loaded.model.parameters()}
    for model in (tuned, *rest[:2]):
        assert model.base == "base"
        own = {name for name, one in model.loaded.model.named_parameters() if one.data_ptr() not in held}
        assert own
        assert all(".lora_" in name for name in own)
    texts = {model.name: answered(model) for model in models}
    assert len({texts[name] for name in ("tuned", "base", "second", "third")}) == 4
    for model, folder in zip((tuned, *rest[:2]), (run, *others), strict=True):
        merged = LoadedModel.load(tuneful.load_config(overrides=[f"model.name_or_path={folder}", *FLOAT32]))
        assert not any(".lora_" in name for name, _ in merged.model.named_parameters())
        assert answered(replace(model, loaded=merged)) == texts[model.name]
    [alone] = models_of(lively_llama)
    untouched = alone.loaded.model.state_dict()
    assert all(torch.equal(one, untouched[name]) for name, one in base.loaded.model.state_dict().items())


@needs("compiler")
def test_requests_to_several_adapters_at_once_get_what_each_says_alone(run, others):
    models = models_of(run, *others)
    wanted = {model.name: answered(model) for model in models}
    with Server(models) as server, ThreadPoolExecutor(8) as pool:

        def ask(name: str) -> tuple[str, str]:
            body = {"model": name, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
            given = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            return name, given["choices"][0]["message"]["content"]

        found = list(pool.map(ask, [model.name for model in models] * 4))
    assert all(text == wanted[name] for name, text in found)


def test_what_is_more_than_plain_lora_is_merged(run, tmp_path):
    [tuned, _] = models_of(run)
    base = LoadedModel.load(tuneful.load_config(overrides=[f"model.name_or_path={run}", *FLOAT32])).model
    adapter = tmp_path / "dora"
    shutil.copytree(run / "adapter", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    assert beside(base, adapter) is None
    assert beside(base.to(torch.bfloat16), run / "adapter") is None
    assert tuned.base == "base"


def test_a_compared_base_is_not_loaded_again(run, lively_llama):
    models = models_of(run, lively_llama)
    assert [model.name for model in models] == ["tuned", "base", "lively"]
    assert share_equal_weights(models.find("lively").loaded.model, models.find("base").loaded.model) == 0  # already


def test_names_are_those_of_folders_each_once(run, lively_llama, tiny_gpt2):
    assert [model.name for model in models_of(run / "adapter")] == ["first", "base"]
    assert [model.name for model in models_of(lively_llama, run)] == ["lively", "first"]
    assert [model.name for model in models_of(tiny_gpt2, run)] == ["gpt2", "first", "first-base"]
    assert [model.name for model in models_of(tiny_gpt2, tiny_gpt2)] == ["gpt2", "gpt2-2"]
    models = models_of(tiny_gpt2)
    for name in ("gpt2", "GPT2", "gpt2:latest", " gpt2 "):
        assert models.find(name).name == "gpt2"
    for name in ("", "gpt", "gpt2:8b"):
        with pytest.raises(UnknownModelError):
            models.find(name)


def test_a_run_whose_base_is_gone_is_served_alone_and_that_is_said(run, tmp_path):
    from tuneful.config import load_config
    from tuneful.serve.models import load_models

    merged = LoadedModel.load(tuneful.load_config(overrides=[f"model.name_or_path={run}", *FLOAT32]))
    folder = tmp_path / "lonely"
    merged.model.save_pretrained(folder / "model")
    for file in (run / "adapter").glob("tok*"):
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"]["name_or_path"] = str(tmp_path / "gone")
    (folder / "run.json").write_text(json.dumps(record))
    said: list[str] = []
    models = load_models(load_config(overrides=[f"model.name_or_path={folder}"]), notify=said.append)
    assert [model.name for model in models] == ["tuned"]
    assert any("without its base" in line for line in said)


def test_what_the_template_cannot_render_is_refused_in_its_words(tmp_path, lively_llama):
    template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system texts here') }}{% endif %}"
        "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    (tmp_path / "t.jinja").write_text(template)
    [model] = models_of(lively_llama, settings=[f"template.file={tmp_path / 't.jinja'}"])
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(RequestError, match="no system texts here"):
        chat_prompt(model, conversation_of(messages), Limits())
    assert chat_prompt(model, conversation_of(messages[1:]), Limits()).token_ids
