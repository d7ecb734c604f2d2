"""The source of each family is hashed as tested versions of transformers have it; any other is unknown."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.doubles.decoders import small_model
from transformers.models.llama import modeling_llama

from tuneful.model import sources
from tuneful.model.decoder import FAMILIES
from tuneful.model.sources import installed_hashes, read_source, source_hash, why_unknown

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
REGENERATE = (
    "run tests/model and tests/train with this transformers, mend what fails, then `python -m tuneful.model.sources`, which puts "
    "its hashes into src/tuneful/model/sources.json"
)

MODULE = """
import torch

SCALE = 2


def turned(rows):
    return -rows


def helped(rows):
    return turned(rows) * SCALE


class Unrelated:
    ...


class Layer:
    def forward(self, rows):
        return helped(rows)


@torch.no_grad()
class Model:
    layer = Layer
"""

# ------------------------------------------------------------------------------------------------------------ the file


def test_the_installed_transformers_is_among_those_tested() -> None:
    known = sources._known()
    assert transformers.__version__ in known, REGENERATE
    assert known[transformers.__version__] == installed_hashes(), REGENERATE


def test_the_oldest_transformers_that_is_allowed_is_among_those_tested() -> None:
    (lowest,) = re.findall(r'"transformers>=([\d.]+)"', PYPROJECT.read_text(encoding="utf-8"))
    assert [version for version in sources._known() if version.split(".")[: lowest.count(".") + 1] == lowest.split(".")]


def test_each_version_has_a_hash_of_every_family_and_no_two_are_alike() -> None:
    for version, hashes in sources._known().items():
        assert list(hashes) == list(FAMILIES), version
        assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes.values()), version
        assert len(set(hashes.values())) == len(FAMILIES), version


# ------------------------------------------------------------------------------------------------------- what is hashed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return -rows", "return rows"),
        ("SCALE = 2", "SCALE = 3"),
        ("turned(rows) * SCALE", "turned(rows)"),
        ("return helped(rows)", "return rows + helped(rows)"),
        ("@torch.no_grad()\n", ""),
    ],
)
def test_whatever_a_model_needs_of_its_module_is_in_its_hash(before: str, after: str) -> None:
    changed = MODULE.replace(before, after)
    assert changed != MODULE
    assert read_source(changed, "Model").sha256 != read_source(MODULE, "Model").sha256


def test_what_it_does_not_need_is_not_nor_where_it_stands() -> None:
    changed = MODULE.replace("class Unrelated:\n    ...", "class Unrelated:\n    size = 3\n    other = 4")
    assert read_source(changed, "Model").sha256 == read_source(MODULE, "Model").sha256


def test_all_of_a_layer_is_hashed() -> None:
    text = Path(inspect.getsourcefile(modeling_llama) or "").read_text(encoding="utf-8")
    parts = [
        "RMSNorm",
        "RotaryEmbedding",
        "MLP",
        "Attention",
        "DecoderLayer",
        "PreTrainedModel",
        "Model",
        "ForCausalLM",
    ]
    functions = {"rotate_half", "apply_rotary_pos_emb", "repeat_kv", "eager_attention_forward"}
    found = read_source(text, "LlamaForCausalLM").definitions
    assert {f"Llama{part}" for part in parts} | functions <= set(found)
    assert "LlamaForSequenceClassification" not in found


# --------------------------------------------------------------------------------------------------------- what is known


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_known_and_unknown_once_code_of_others_stands_in_its_layer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(family)
    assert why_unknown(model) is None
    layer = (model.base_model.h if family == "GPT2" else model.base_model.layers)[0]
    forward = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda *given, **named: forward(*given, **named))
    reason = str(why_unknown(model))
    assert reason.startswith(
        f"the code of {family} in transformers {transformers.__version__} is none of those tested ("
    )
    assert all(version in reason for version in sources._known())


def plain(*given: Any, **named: Any) -> Any:
    return given, named


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (modeling_llama, "apply_rotary_pos_emb"),
        (modeling_llama, "repeat_kv"),
        (modeling_llama.LlamaMLP, "forward"),
        (modeling_llama.LlamaAttention, "__init__"),
        (modeling_llama.LlamaDecoderLayer, "__call__"),
        (modeling_llama, "LlamaRMSNorm"),
    ],
)
def test_whatever_is_put_in_the_place_of_transformers_code_makes_it_unknown(
    place: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, plain, raising=False)
    assert source_hash(modeling_llama.LlamaForCausalLM) == ""


def test_another_source_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_known", lambda: {"5.0.0": {"Llama": "0" * 64}})
    assert "none of those tested (5.0.0)" in str(why_unknown(small_model("Llama")))


@pytest.mark.parametrize("failure", [OSError("could not get source code"), TypeError("is a built-in module")])
def test_a_source_that_cannot_be_read_is_unknown(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> str:
        raise failure

    sources._source_of.cache_clear()
    monkeypatch.setattr(inspect, "getsource", fail)
    assert why_unknown(small_model("Qwen2")) is not None


def test_a_source_is_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read, getsource = [], inspect.getsource
    sources._source_of.cache_clear()
    monkeypatch.setattr(inspect, "getsource", lambda one: read.append(one) or getsource(one))
    assert [why_unknown(small_model("Llama")) for _ in range(3)] == [None] * 3
    assert len(read) == 1
