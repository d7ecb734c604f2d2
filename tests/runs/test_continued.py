"""Training goes on from an adapter: the same adapter, or, where that is asked for, a new one on the merged model."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.doubles.cut_runs import cut_after_checkpoint
from tests.model.test_adapter import adapter_on, logits, settings_of
from tests.runs.test_saved import LORA, config
from transformers import AutoModelForCausalLM

import tuneful
from tuneful.config import load_config
from tuneful.errors import ConfigError
from tuneful.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ADAPTED = "train.method=lora"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


@pytest.fixture
def first(data: Path, tiny_llama: Path, tmp_path: Path) -> Path:
    """The adapter of a run under another template than the default."""
    tuneful.run(data, config=config(tiny_llama, *LORA, "template.name=chatml"), output=tmp_path / "first")
    return tmp_path / "first" / "adapter"


def answers(run: Path, name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (run / "answers" / f"{name}.jsonl").read_text().splitlines()]


def test_an_adapter_goes_on_being_trained_on_its_own_base_under_its_own_template(
    first: Path, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    second = tuneful.run(data, config=config(first, ADAPTED, "train.learning_rate=0.01"), output=tmp_path / "second")
    assert answers(second.path, "base") == answers(tmp_path / "first", "tuned"), "it begins where the first run ended"
    settings = json.loads((second.path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (2, str(tiny_llama))
    assert json.loads((second.path / "adapter" / "tuneful.json").read_text())["template"] == "chatml"
    wanted = logits(load_model(str(second.model)).model)
    oracle = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), str(second.path / "adapter")
    )
    torch.testing.assert_close(logits(oracle), wanted, rtol=0, atol=1e-5)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (first, second.path / "adapter"))
    assert before.keys() == after.keys()
    moved = [(after[name] - tensor).norm() / tensor.norm() for name, tensor in before.items()]
    assert 0 < max(moved) < 1, "from where it was, and not anew"
    environment = json.loads((second.path / "environment.json").read_text())
    assert environment["model"]["name"] == str(first)


def test_what_is_trained_is_the_adapter_that_was_given_and_it_moves_from_there(
    first: Path, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = config(first, ADAPTED, "train.max_steps=1", "train.learning_rate=1e-9")
    second = tuneful.train(data, config=settings, output=tmp_path / "second")
    before, after = (load_file(one / "adapter_model.safetensors") for one in (first, second.path / "adapter"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-8)


def test_a_continued_run_that_was_cut_off_ends_as_if_it_had_not_been(first: Path, data: Path, tmp_path: Path) -> None:
    settings = config(first, ADAPTED, "train.max_steps=4", "train.save_steps=1")
    straight = tuneful.run(data, config=settings, output=tmp_path / "straight")
    with cut_after_checkpoint(2):
        tuneful.run(data, config=settings, output=tmp_path / "cut")
    resumed = tuneful.run(data, config=settings, output=tmp_path / "cut")
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors", "answers/base.jsonl"):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes(), name


@pytest.mark.parametrize("more", [("train.method=full",), (ADAPTED, "lora.create_new_adapter=true", "lora.r=4")])
def test_all_weights_or_a_new_adapter_are_trained_on_the_merged_model(
    more: tuple[str, ...], first: Path, data: Path, tmp_path: Path
) -> None:
    second = tuneful.run(data, config=config(first, *more), output=tmp_path / "second")
    assert answers(second.path, "base") == answers(tmp_path / "first", "tuned")
    load_model(str(second.model))
    if more[0] == ADAPTED:
        settings = json.loads((second.path / "adapter" / "adapter_config.json").read_text())
        assert settings["r"] == 4
        assert logits(load_model(str(second.path / "adapter")).model).allclose(
            logits(load_model(str(second.model)).model), atol=1e-5
        )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lora.r=4", r"`lora.r`: 4, but .* has 2, and that adapter goes on being trained as it is"),
        ("lora.use_dora=true", r"`lora.use_dora`: True, but .* has False"),
        ("lora.target_modules=[q_proj]", r"`lora.target_modules`: q_proj, but .* has down_proj, "),
        ("train.freeze_layers=1", r"`train.freeze_layers`: 1, but .* stands beside layer 0"),
    ],
)
def test_a_setting_that_asks_for_another_adapter_is_refused(
    setting: str, said: str, first: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        tuneful.train(data, config=config(first, ADAPTED, setting), output=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_settings_that_say_what_the_adapter_is_are_taken(first: Path, data: Path, tmp_path: Path) -> None:
    said = ("lora.r=2", "lora.alpha=32", "lora.target_modules=all-linear", "lora.dropout=0.5", "lora.merge=false")
    second = tuneful.train(data, config=config(first, ADAPTED, *said), output=tmp_path / "second")
    settings = json.loads((second.path / "adapter" / "adapter_config.json").read_text())
    assert settings["lora_dropout"] == 0.5


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a head of its own", r"this adapter is more than LoRA \(modules_to_save\)"),
        ("ia3", "an adapter of the kind IA3 cannot go on being trained"),
    ],
)
def test_an_adapter_that_cannot_go_on_being_trained_is_refused_with_the_way_out(
    kind: str, said: str, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter_on(tiny_llama, settings_of(kind), tmp_path / "adapter")
    with pytest.raises(ConfigError, match=said):
        tuneful.train(data, config=config(tmp_path / "adapter", ADAPTED), output=tmp_path / "run")
    settings = config(tmp_path / "adapter", *LORA, "lora.create_new_adapter=true")
    load_model(str(tuneful.train(data, config=settings, output=tmp_path / "run").model))


def test_every_verb_takes_an_adapter_and_its_template(first: Path, data: Path, tmp_path: Path) -> None:
    settings = load_config(
        overrides=[f"model.name_or_path={first}", "model.dtype=float32", "generate.max_new_tokens=4"]
    )
    checked = tuneful.check(data, config=settings)
    assert (checked.template, checked.without_tokens) == ("chatml", "")
    shown = tuneful.show(data, config=settings, rows=1)
    assert "<|im_start|>" in "".join(token.text for token in shown[0].tokens)
    (answer,) = tuneful.generate("Say 3.", config=settings)
    assert answer.prompt.startswith("<|im_start|>")
