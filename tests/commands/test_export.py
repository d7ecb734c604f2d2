"""`tuneful export` of a run: which model, where it goes, what it says, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.exported import byte_level_tokenizer, tiny_adapter, tiny_folder

from tuneful.cli import main
from tuneful.commands.export import _how_to_run, _show
from tuneful.console import Terminal
from tuneful.export import gguf_tensors
from tuneful.export.formats import Written
from tuneful.runs.schema import ExportPart, ExportProof, read_strictly

ROWS = [
    {"instruction": f"Say {word}.", "output": word, "source": f"x.jsonl:{at}"} for at, word in enumerate("abcdefghijk")
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """As much of a finished run with an adapter as an export reads."""
    run = tmp_path / "first"
    (run / "data").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tiny_folder("llama", byte_level_tokenizer(), run / "model")
    tiny_adapter("llama", tmp_path / "trained").rename(run / "adapter")
    return run


def tuneful(patch: pytest.MonkeyPatch, capture: Any, *arguments: str) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["tuneful", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    read = capture.readouterr()
    return code, read.out, read.err


def test_a_run_is_exported_into_its_folder_and_tried_with_its_test_records(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, out, err = tuneful(monkeypatch, capsys, "export", str(run_folder), "--to", "gguf", "--type", "f32", "--json")
    assert code == 0, err
    folder = run_folder / "export" / "gguf-f32"
    document = json.loads(out)
    assert document.pop("folder") == str(folder)
    assert document == json.loads((folder / "proof.json").read_text())
    proof = read_strictly(ExportProof, document, "proof.json")
    assert sorted(proof.files) == ["README.md", "first-f32.gguf"]
    assert proof.template == "alpaca"
    assert next(part for part in proof.parts if part.name == "answers").number == 8
    assert "token ids" in " ".join(err.split())
    assert "holds" in err
    assert f"  llama-server -m {folder / 'first-f32.gguf'}\n" in err
    card = (folder / "README.md").read_text()
    assert "llama-server -m first-f32.gguf" in card
    assert "| tensors | read back" in card


def test_the_adapter_of_a_run_is_exported_though_its_model_is_merged(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, out, err = tuneful(monkeypatch, capsys, "export", str(run_folder), "--to", "adapter")
    assert code == 0, err
    assert out.strip() == str(run_folder / "export" / "adapter")
    assert (run_folder / "export" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_command_that_uses_an_export_is_told_for_each_format(tmp_path: Path) -> None:
    folder = tmp_path / "my export"
    folder.mkdir()
    assert _how_to_run("huggingface", folder, "First") == f"tuneful chat --model '{folder}'"
    (folder / "First-q8_0.gguf").touch()
    assert _how_to_run("ollama", folder, "First") == f"ollama create first -f '{folder}/Modelfile'"
    assert _how_to_run("gguf", folder, "First") == f"llama-server -m '{folder}/First-q8_0.gguf'"
    assert _how_to_run("adapter", folder, "First") == f"llama-server -m BASE.gguf --lora '{folder}/First-q8_0.gguf'"


def test_what_several_comparisons_lack_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [ExportPart(name, "llama.cpp", 0, None, None, None, "not installed") for name in ("prompts", "logits")]
    _show(Written((*parts, ExportPart("keys", "read back", 3, "equal", "equal", True))), Terminal())
    said = capsys.readouterr().err
    assert "prompts, logits: not installed\n" in said
    assert said.count("not installed") == 1


def test_an_export_that_is_not_the_model_ends_with_1_and_leaves_what_was_there(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ("export", str(run_folder), "--type", "f32")
    assert tuneful(monkeypatch, capsys, *arguments)[0] == 0
    before = (run_folder / "export" / "gguf-f32" / "proof.json").read_bytes()
    monkeypatch.setattr(gguf_tensors, "_interleaved", lambda rows, unit: rows)
    code, out, err = tuneful(monkeypatch, capsys, *arguments)
    assert code == 1
    assert out == ""
    assert "FAILS" in err
    assert "error: " in err
    assert "tensor blk.0.attn_q.weight" in err.rpartition("error: ")[2]
    assert (run_folder / "export" / "gguf-f32" / "proof.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "onnx"), "--to onnx: there is no such format; there are huggingface, adapter, gguf, ollama"),
        (("--to", "gguf", "--type", "q5"), "--type q5: --to gguf takes f32"),
        (("--push", "mine"), "--push mine: expected ORG/NAME"),
        (("template.name=chatml", "--to", "huggingface", "--type", "q8_0"), "--to huggingface takes f32, f16, bf16"),
    ],
)
def test_a_request_that_is_wrong_ends_with_2_before_anything_is_written(
    arguments: tuple[str, ...], message: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, _, err = tuneful(monkeypatch, capsys, "export", str(run_folder), *arguments)
    assert code == 2
    assert message in err
    assert not (run_folder / "export").exists()
