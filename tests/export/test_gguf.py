"""A GGUF file is the model it was made from: in llama.cpp, of every family and type, and what is wrong with one is named."""

from pathlib import Path

import pytest
from tests.doubles.exported import VARIANTS, byte_level_tokenizer, tiny_folder

import tuneful
from tuneful.runs.schema import ExportPart

COMPARED = ["keys", "tensors", "token ids", "prompts", "logits", "rounding", "model", "answers", "endings", "weights"]


def parts(folder: Path, output: Path, type: str = "f32") -> dict[str, ExportPart]:
    proof = tuneful.export(folder, "gguf", type=type, output=output).proof
    return {part.name: part for part in proof.parts}


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_the_model_of_each_family_does(variant: str, tmp_path: Path) -> None:
    folder = tiny_folder(variant, byte_level_tokenizer(), tmp_path / "model")
    found = parts(folder, tmp_path / "out")
    assert [*found] == COMPARED
    assert all(part.holds for part in found.values())
    assert found["token ids"].number == 500
