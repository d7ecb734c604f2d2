"""A GGUF file is the model it was made from: in llama.cpp, of every family and type, with every kind of tokenizer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.exported import (
    VARIANTS,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    tiny_adapter,
    tiny_folder,
)
from tokenizers import Regex, pre_tokenizers

import tuneful
from tuneful.config import load_config
from tuneful.errors import ConfigError, ModelError
from tuneful.export import formats, gguf_tensors, gguf_tokenizer
from tuneful.export.gguf_tensors import plan_tensors
from tuneful.export.gguf_tokenizer import portable_chat_template
from tuneful.export.gguf_types import QUANTIZED, TYPES, GgufType, rounded
from tuneful.export.source import find_source
from tuneful.infer.llama_cpp import LlamaCppMissingError
from tuneful.runs.schema import ExportPart

COMPARED = ["keys", "tensors", "token ids", "prompts", "logits", "rounding", "model", "answers", "endings", "weights"]


def exported(folder: Path, output: Path, type: GgufType = "f32") -> dict[str, ExportPart]:
    proof = tuneful.export(folder, "gguf", type=type, output=output).proof
    return {part.name: part for part in proof.parts}


def file_of(output: Path) -> Any:
    (file,) = output.glob("*.gguf")
    return gguf.GGUFReader(file)


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_a_model_of_each_family_does(variant: str, tmp_path: Path) -> None:
    found = exported(tiny_folder(variant, byte_level_tokenizer(), tmp_path / "model"), tmp_path / "out")
    assert [*found] == COMPARED
    assert all(part.holds for part in found.values())
    assert found["token ids"].number == 500


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_a_file_of_each_type_is_what_the_gguf_package_makes_of_the_weights(type: GgufType, tmp_path: Path) -> None:
    folder = tiny_folder("llama, tied", byte_level_tokenizer(), tmp_path / "model")
    assert all(part.holds for part in exported(folder, tmp_path / "out", type).values())
    model = find_source(load_config(None, [f"model.name_or_path={folder}"])).weights
    tensors = {tensor.name: tensor for tensor in file_of(tmp_path / "out").tensors}
    assert "output.weight" not in tensors  # it is the embedding
    for name, own in (("blk.1.ffn_up.weight", "mlp.up_proj"), ("blk.1.attn_q.weight", "self_attn.q_proj")):
        rows = model[f"model.layers.1.{own}.weight"].rows(0, 64).numpy()
        if name.endswith("q.weight"):  # a head's two halves, a row of each in turn
            rows = rows.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
        kind = gguf.GGMLQuantizationType[type.upper()]
        wanted = gguf.quants.quantize(rows, kind).view(np.uint8)
        assert np.array_equal(tensors[name].data[:64].view(np.uint8), wanted)
    assert tensors["token_embd.weight"].tensor_type.name == {"q4_0": "Q8_0"}.get(type, type.upper())


def test_rows_of_no_whole_blocks_are_16_bits_and_the_proof_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "odd", ("Llama", {"intermediate_size": 72}))
    result = tuneful.export(
        tiny_folder("odd", byte_level_tokenizer(), tmp_path / "model"), "gguf", type="q8_0", output=tmp_path / "out"
    )
    assert result.proof.tensor_types["f16"] == 2
    assert "2 tensors are f16, for their rows are no whole blocks of 32 numbers" in result.proof.notes[0]


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=64, max_size=64).map(
        lambda numbers: torch.tensor(numbers).reshape(2, 32)
    ),
    st.sampled_from(TYPES),
)
def test_our_rounding_is_that_of_the_gguf_package(numbers: torch.Tensor, type: GgufType) -> None:
    kind = gguf.GGMLQuantizationType[type.upper()]
    with np.errstate(all="ignore"):  # of numbers so small that their inverse is infinite the package makes what it can
        wanted = gguf.quants.dequantize(gguf.quants.quantize(numbers.numpy(), kind), kind)
    found = rounded(numbers, type).numpy()
    if type in QUANTIZED and not np.isfinite(wanted).all():
        return
    assert np.array_equal(found, wanted)


def test_a_file_is_written_in_pieces_and_the_pieces_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    monkeypatch.setattr(formats, "_in_runtime", lambda exported, request: [])
    exported(folder, tmp_path / "whole", "q8_0")
    monkeypatch.setattr(gguf_tensors, "_CHUNK", 100)
    source = find_source(load_config(None, [f"model.name_or_path={folder}"]))
    assert max(len([*tensor.stretches()]) for tensor in plan_tensors(source, "q8_0")) > 100
    exported(folder, tmp_path / "pieces", "q8_0")
    (whole,), (pieces,) = (list((tmp_path / name).glob("*.gguf")) for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_an_adapter_is_merged_row_by_row_as_peft_merges_it(
    variant: str, options: dict[str, bool], tmp_path: Path
) -> None:
    result = tuneful.export(tiny_adapter(variant, tmp_path, **options), "gguf", type="f32", output=tmp_path / "out")
    assert all(part.holds for part in result.proof.parts)
    assert "the adapter is merged into its base" in result.proof.notes[0]


# Tokenizers

LLAMA_3 = gguf_tokenizer._LLAMA_3


def splitting(pattern: str) -> Any:
    """As Llama 3 and Qwen split: a pattern, then bytes."""
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("tokenizer", "keys"),
    [
        (byte_level_tokenizer(), ("gpt2", "gpt-2", False)),
        (byte_level_tokenizer(begins=True), ("gpt2", "gpt-2", True)),
        (byte_level_tokenizer(DIGITS), ("gpt2", "smollm", False)),
        (byte_level_tokenizer(splitting(LLAMA_3)), ("gpt2", "smaug-bpe", False)),
        (byte_level_tokenizer(splitting(gguf_tokenizer._QWEN_2)), ("gpt2", "qwen2", False)),
        (sentencepiece_tokenizer(prefixed=False), ("llama", "default", True)),
        (sentencepiece_tokenizer(prefixed=True), ("llama", "default", True)),
    ],
    ids=["gpt-2", "with a begin token", "digits apart", "llama 3's", "qwen2's", "gemma's", "llama 2's"],
)
def test_a_tokenizer_of_each_kind_makes_the_same_ids_in_llama_cpp(
    tokenizer: Any, keys: tuple[str, str, bool], tmp_path: Path
) -> None:
    found = exported(tiny_folder("llama", tokenizer, tmp_path / "model"), tmp_path / "out")
    assert found["token ids"].holds
    assert found["prompts"].holds
    fields = file_of(tmp_path / "out").fields
    assert tuple(fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "add_bos_token")) == keys
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert not {key for key in fields if key.endswith(("eot_token_id", "eom_token_id"))}


def test_a_splitter_that_llama_cpp_has_no_name_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(splitting(r"\p{L}+|\d")), tmp_path / "model")
    with pytest.raises(ModelError, match="not known to encode text with the splitter"):
        tuneful.export(folder, "gguf", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generation_blocks_of_a_chat_template_become_what_any_jinja_reads() -> None:
    written = portable_chat_template(
        "a {%- generation -%} b {% endgeneration %} {%+ generation %}c{% endgeneration -%}"
    )
    assert written == "a {%- if true -%} b {% endif %} {%+ if true %}c{% endif -%}"


# What is refused, and what cannot be compared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "llama.cpp computes silu in a llama model, and this one gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "angles of type 'dynamic'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "other", ("Llama", changes))
    folder = tiny_folder("other", byte_level_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        tuneful.export(folder, "gguf", output=tmp_path / "out")


def test_without_llama_cpp_the_proof_says_what_was_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: Any, **options: Any) -> Any:
        raise LlamaCppMissingError("xllamacpp is not installed")

    monkeypatch.setattr(formats.LlamaCpp, "load", missing)
    found = exported(tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model"), tmp_path / "out")
    assert found["tensors"].holds
    assert found["logits"].holds is None
    assert "pip install 'tuneful[export]'" in found["logits"].note


def test_a_folder_that_is_no_export_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    with pytest.raises(ConfigError, match="already exists and is no export"):
        tuneful.export(folder, "gguf", output=folder)
    with pytest.raises(ConfigError, match="--to gguf takes f32, f16, bf16, q8_0, q4_0"):
        tuneful.export(folder, "gguf", type="q4_k_m", output=tmp_path / "out")
