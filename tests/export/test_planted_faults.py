"""Faults that conversions are known for, each planted where the file is made: each is caught, and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.exported import byte_level_tokenizer, tiny_adapter, tiny_folder

import tuneful
from tuneful.errors import ExportError, ModelError
from tuneful.export import gguf_adapter, gguf_shapes, gguf_tensors, gguf_tokenizer, ollama, source

Plant = Callable[[pytest.MonkeyPatch], None]


def no_permutation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_tensors, "_interleaved", lambda rows, unit: rows)


def angles_of_ten_thousand(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_shapes, "angle_base", lambda config: 10000.0)


def another_end(patch: pytest.MonkeyPatch) -> None:
    right = gguf_tokenizer._special_keys
    patch.setattr(gguf_tokenizer, "_special_keys", lambda one: {**right(one), "tokenizer.ggml.eos_token_id": 3})


def a_square_transposed(patch: pytest.MonkeyPatch) -> None:
    right = gguf_tensors._changed
    patch.setattr(gguf_tensors, "_changed", lambda rows, change, unit: right(_turned(rows, change), change, unit))


def _turned(rows: torch.Tensor, change: str) -> torch.Tensor:
    return rows.T if change == "as it is" and rows.shape[0] == rows.shape[1] else rows


def another_head(patch: pytest.MonkeyPatch) -> None:
    def with_head(one: Any) -> dict[str, Any]:
        weights = dict(one.weights)
        embedding = weights["model.embed_tokens.weight"]
        return {**weights, "lm_head.weight": gguf_adapter._Matrix(2 * embedding.rows(0, embedding.shape[0]))}

    patch.setattr(gguf_tensors, "_distinct", with_head)


@pytest.mark.usefixtures("few_probes")
@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (no_permutation, r"tensor blk\.0\.attn_q\.weight: it differs from model\.layers\.0\.self_attn\.q_proj\.weight"),
        (angles_of_ten_thousand, r"llama\.rope\.freq_base is 10000, and the model turns by 50000"),
        (another_end, r"tokenizer\.ggml\.eos_token_id is 3, and token 1 ends a response in training"),
        (a_square_transposed, r"tensor blk\.0\.attn_output\.weight: it differs"),
        (another_head, r"tensor output\.weight is not lm_head\.weight"),
    ],
)
def test_a_fault_of_the_file_is_caught_by_name(
    plant: Plant, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama, tied", byte_level_tokenizer(), tmp_path / "model")
    plant(monkeypatch)
    with pytest.raises(ExportError, match=named):
        tuneful.export(folder, "gguf", type="f32", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_begin_token_that_template_and_runtime_both_write_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = tiny_folder("llama", tokenizer, tmp_path / "model", template="tokenizer")
    assert tuneful.export(folder, "gguf", type="f32", output=tmp_path / "right").proof.parts
    monkeypatch.setattr(gguf_tokenizer, "adds_bos", lambda one: True)
    with pytest.raises(ExportError, match=r"prompts: .*the begin token is doubled"):
        tuneful.export(folder, "gguf", type="f32", output=tmp_path / "out")


def test_a_preamble_that_is_missing_in_the_modelfile_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    right = ollama.frame_of
    monkeypatch.setattr(ollama, "frame_of", lambda one: _without_opening(right(one)))
    with pytest.raises(ExportError, match=r"Modelfile: the prompt of the Modelfile is '.*not 'Below is an instruction"):
        tuneful.export(folder, "ollama", type="f32", output=tmp_path / "out")


def _without_opening(frame: ollama.Frame) -> ollama.Frame:
    return ollama.Frame("", frame.before_system, frame.after_system, frame.user_start, frame.user_end, frame.answer_end)


def test_an_adapter_that_was_not_merged_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny_adapter("llama", tmp_path)
    monkeypatch.setattr(source, "_merged", lambda named, one: named)
    with pytest.raises(ExportError, match=r"weights: .*tensor blk\.0\.attn_q\.weight is not .*q_proj\.weight"):
        tuneful.export(adapter, "gguf", type="f32", output=tmp_path / "out")


def test_the_scale_of_rslora_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny_adapter("llama", tmp_path, use_rslora=True)
    monkeypatch.setattr(gguf_adapter, "written_alpha", lambda one: one.alpha)
    with pytest.raises(
        ExportError, match=r"scale: adapter\.lora\.alpha makes llama\.cpp scale by 4, and training scaled by 8"
    ):
        tuneful.export(adapter, "adapter", type="gguf", output=tmp_path / "out")


def test_a_tied_head_with_other_values_in_the_folder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_folder("llama, tied", byte_level_tokenizer(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"] * 2
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight is not the embedding"):
        tuneful.export(folder, "gguf", type="f32", output=tmp_path / "out")


def test_another_splitter_is_caught_by_the_text_that_it_splits_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    monkeypatch.setattr(gguf_tokenizer, "_SPLITTERS", {("gpt-2", False): "smollm"})
    _with_digits(folder)  # the tiny vocabulary has no token of several digits: with one, the two splitters part
    with pytest.raises(ExportError, match=r"token ids: .*: token \d+ is \["):
        tuneful.export(folder, "gguf", type="f32", output=tmp_path / "out")


def _with_digits(folder: Path) -> None:
    import json

    file = folder / "tokenizer.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    vocab = description["model"]["vocab"]
    last = max(vocab, key=lambda token: vocab[token])
    vocab["12"] = vocab.pop(last)
    description["model"]["merges"] = [pair for pair in description["model"]["merges"] if "".join(pair) != last] + [
        ["1", "2"]
    ]
    file.write_text(json.dumps(description), encoding="utf-8")


@pytest.mark.usefixtures("few_probes")
def test_angles_of_a_window_that_are_left_out_show_in_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("gemma3, other angles", byte_level_tokenizer(), tmp_path / "model")
    right = gguf_shapes.shape_keys
    monkeypatch.setattr(
        "tuneful.export.gguf_file.shape_keys",
        lambda *given: {key: value for key, value in right(*given).items() if not key.endswith("freq_base_swa")},
    )
    with pytest.raises(ExportError, match=r"logits: most after prompt \d: \d\.\d+; rounding alone brings this model"):
        tuneful.export(folder, "gguf", type="f32", output=tmp_path / "out")
