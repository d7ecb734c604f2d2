"""What is served under which name: runs with their bases, adapters, and weights that are held once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.doubles.served import models_of

import tuneful
from tuneful.serve.limits import Limits
from tuneful.serve.models import UnknownModelError, share_equal_weights
from tuneful.serve.prompts import RequestError, chat_prompt, conversation_of


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
    assert all(torch.equal(state[name], untouched[name]) for name in untouched)
    assert not all(torch.equal(one, state[name]) for name, one in tuned.loaded.model.state_dict().items())


def test_a_prompt_is_the_beginning_of_the_training_example(run):
    from tuneful.types import Conversation, Turn

    tuned = models_of(run).find("tuned")
    turns = (Turn("Say one.", "", "one"), Turn("And two?", "", "two"))
    for system in ("", "Be brief."):
        example = tuned.loaded.encoder.example(Conversation(system, turns, "here"))
        assert not isinstance(example, str)
        messages = [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": "Say one."},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "And two?"},
        ]
        ids = chat_prompt(tuned, conversation_of(messages), Limits()).token_ids
        assert example.token_ids[: len(ids)].tolist() == ids


def test_weights_that_are_equal_are_held_once_and_a_compared_base_is_not_loaded_again(run, lively_llama):
    tuned, base = models_of(run)
    held = {one.data_ptr() for one in base.loaded.model.parameters()}
    shared = [name for name, one in tuned.loaded.model.named_parameters() if one.data_ptr() in held]
    assert any("embed_tokens" in name for name in shared)
    assert not any("q_proj" in name for name in shared)
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

    merged = models_of(run).find("tuned").loaded
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
