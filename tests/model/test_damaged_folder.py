"""A file of a model folder that is damaged is named, also where transformers would pass over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tuneful.config import load_config
from tuneful.errors import ConfigError, ModelError
from tuneful.model.load import load_model
from tuneful.model.saved_template import with_saved_template

DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "a list": lambda file: file.write_text("[]"),
    "a number": lambda file: file.write_text("3"),
    "nested": lambda file: file.write_text('{"a": ' + "[" * 100_000),
    "no UTF-8": lambda file: file.write_bytes(b'{"a": "\xff"}'),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.fixture(scope="module")
def sharded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in several files, with their index."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="50KB")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


DOCUMENTS = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
]
CASES = [(name, what) for name in DOCUMENTS for what in DAMAGE]
CASES += [("chat_template.jinja", what) for what in ("no UTF-8", "a folder", "a link to nothing")]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_a_damaged_file_is_named(name: str, what: str, sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    DAMAGE[what](folder / name)
    if name == "model.safetensors.index.json" and what in ("a folder", "a link to nothing"):
        name = "model.safetensors"  # then it has no weights
    if name == "tokenizer.json" and what in ("a folder", "a link to nothing"):
        name = "tokenizer"
    with pytest.raises(ModelError, match=name):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "hidden_size", "many"),
        ("config.json", "num_attention_heads", 0),
        ("tokenizer_config.json", "model_max_length", {}),
        ("model.safetensors.index.json", "weight_map", {"a": "../elsewhere.safetensors"}),
        ("model.safetensors.index.json", "weight_map", []),
    ],
)
def test_a_value_of_another_type_is_blamed_on_its_file(
    name: str, key: str, value: object, sharded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**document, key: value}))
    with pytest.raises(ModelError, match=name):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["", "[]", '{"template": 3}', '{"template": ["alpaca"]}', "[" * 100_000])
def test_a_damaged_name_of_the_template_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "tuneful.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tuneful\.json: names no known template"):
        with_saved_template(load_config(None, [f"model.name_or_path={json.dumps(str(tmp_path))}"]))
