"""`tuneful doctor`: what the machine offers, and with --model what a model is and would take, before anything is loaded."""

from __future__ import annotations

import json
import math
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.elsewhere import without_onednn
from tests.doubles.exported import tiny_adapter
from tests.doubles.openai_gpt2 import write_openai_folder
from tests.model.test_builtin import tiny_gguf

import tuneful
from tuneful.commands.doctor import _bytes_below, doctor_command, show_findings
from tuneful.config import METHOD_DEFAULTS, load_config
from tuneful.console import Terminal
from tuneful.errors import ModelError
from tuneful.model import load
from tuneful.model.load import folder_model
from tuneful.model.lora import add_adapter
from tuneful.model.size import ModelSize, size_of
from tuneful.model.speed import ProductSpeed, measure_products
from tuneful.model.stored import stored_tensors
from tuneful.model.used import parts_of_machine
from tuneful.runs import fits
from tuneful.runs import model_facts as facts_module
from tuneful.runs.model_facts import facts_in_words, model_facts


@pytest.fixture(autouse=True)
def nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    for name in ("folder_model", "cached_gguf_model", "openai_folder"):
        monkeypatch.setattr(load, name, lambda *_, **__: pytest.fail("a model was loaded"))


def facts(path: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = tuneful.doctor(str(path))["model"]
    return found


def test_the_parameters_are_those_of_the_loaded_model_and_of_its_adapter(tiny_llama: Path) -> None:
    found, model = facts(tiny_llama), folder_model(tiny_llama)
    assert found["num_parameters"] == model.num_parameters()
    assert found["context"] == model.config.max_position_embeddings
    add_adapter(model, load_config().lora)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert found["methods"]["lora"]["num_trainable"] == trainable
    assert found["methods"]["full"]["num_trainable"] == found["num_parameters"]
    assert "q_proj" in found["target_modules"]
    assert found["kind"] == "safetensors folder"
    assert found["loaded_as"].startswith("LlamaForCausalLM")


def test_the_memory_is_the_one_by_which_a_run_is_refused_and_what_fits_is_said(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = facts(tiny_llama)["methods"]
    assert all(one["fits"] and one["instead"] is None for one in enough.values())
    needs = {method: max(one["phase_bytes"].values()) for method, one in enough.items()}
    assert needs["full"] > needs["lora"]
    monkeypatch.setattr(facts_module, "available_bytes", lambda _: needs["lora"])
    tight = facts(tiny_llama)["methods"]
    assert tight["lora"]["fits"]
    assert not tight["full"]["fits"]
    assert "train.method=lora" in tight["full"]["instead"]


def test_on_a_gpu_without_bfloat16_an_adapter_is_counted_in_float16_as_it_is_trained(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, size = torch.device("cuda"), size_of(tiny_llama)
    assert size is not None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(facts_module, "choose_device", lambda _: gpu)
    monkeypatch.setattr(facts_module, "available_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(facts_module, "measure_products", lambda *_: ProductSpeed(1.0, 1.0, 1.0, 1.0))
    for method, one in facts(tiny_llama)["methods"].items():
        dtype = torch.float32 if method == "full" else torch.float16
        needs = fits.phases(size, load_config(overrides=[f"train.method={method}"]), dtype, gpu)
        assert one["phase_bytes"] == {need.phase: need.num_bytes for need in needs}


def test_what_forbids_sharing_is_said_before_the_self_check_could(tiny_llama: Path, tiny_gpt2: Path) -> None:
    assert "computed once" in facts(tiny_llama)["records"]
    assert "dropout of 0.1" in facts(tiny_gpt2)["records"]


def test_a_gguf_file_is_described_without_being_unpacked(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf")
    found = facts(tmp_path / "tiny.gguf")
    assert found["kind"] == "GGUF file"
    assert "unpacked to float32 in the cache, once" in found["loaded_as"]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_openais_files_are_described_without_being_converted(tmp_path: Path) -> None:
    write_openai_folder(tmp_path / "124M")
    found = facts(tmp_path / "124M")
    assert found["kind"] == "OpenAI's GPT-2 files"
    assert found["loaded_as"].startswith("GPT2LMHeadModel, converted")
    assert found["target_modules"] == ("c_attn", "c_fc", "c_proj")


def test_an_adapter_is_described_with_its_base(tmp_path: Path) -> None:
    folder = tiny_adapter("llama", tmp_path)
    found = facts(folder)
    assert found["kind"] == "adapter"
    assert "LORA on" in found["adapter"]
    assert "goes on being trained" in found["adapter"]
    assert found["num_parameters"] == facts(tmp_path / "base")["num_parameters"]
    own = sum(math.prod(one.shape) for one in stored_tensors(folder).values())
    assert (found["adapter_rank"], found["methods"]["lora"]["num_trainable"]) == (4, own)
    assert f"{own / 1e6:,.2f} M trained by LoRA r 4" in facts_in_words(model_facts(str(folder)))["parameters"]


def test_the_rank_that_is_said_is_the_one_of_the_configuration(tiny_llama: Path) -> None:
    found = model_facts(str(tiny_llama), load_config(None, ["train.method=lora", "lora.r=8"]))
    assert found.adapter_rank == 8
    assert "by LoRA r 8" in facts_in_words(found)["parameters"]
    assert set(found.methods or ()) == set(METHOD_DEFAULTS)


@pytest.mark.parametrize(
    ("name", "place"), [("smollm2-135m-instruct", "from PyPI"), ("gpt2-small", "openai-community/gpt2")]
)
def test_what_is_not_here_is_not_fetched(name: str, place: str) -> None:
    found = facts(name)
    assert place in found["fetched"]
    assert found["num_parameters"] is None


@pytest.mark.parametrize("name", ["./nowhere", "smollm2-135m"])
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        tuneful.doctor(name)


def test_more_layers_than_tensors_are_refused_before_they_are_made(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "absurd"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1_000_000}))
    with pytest.raises(ModelError, match="1,000,000 layers"):
        tuneful.doctor(str(folder))


def test_a_person_gets_a_line_for_each_fact(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor_command(str(tiny_llama), as_json=False)
    said = capsys.readouterr().out
    for name in (
        "loaded as",
        "parameters",
        "context",
        "records",
        "memory, full",
        "memory, lora",
        "training",
        "answering",
    ):
        assert name in said
    doctor_command("gpt2-xl", as_json=False)
    assert "would be fetched" in capsys.readouterr().out


def test_a_token_that_meets_half_of_the_weights_takes_half_as_long() -> None:
    size = ModelSize({"model.layers.0.mlp.up_proj.weight": (64, 32)}, 32, 64, 1)
    speed = measure_products(size, size.num_parameters, torch.float32, torch.device("cpu"), seconds=0.01)
    assert speed.lora == pytest.approx(1.5 * speed.full)
    assert all(rate > 0 for rate in (speed.full, speed.answering_one, speed.answering_together))


def test_each_part_of_the_machine_is_used_or_not_with_the_reason_in_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    without_onednn(monkeypatch)
    found = tuneful.doctor()
    parts = {part["name"]: part for part in found["parts"]}
    assert list(parts)[:5] == ["CUDA", "MPS", "bfloat16", "oneDNN", "matrix unit"]
    assert all(part["why"] for part in parts.values())
    assert not any(parts[name]["used"] for name in ("CUDA", "MPS", "bfloat16", "oneDNN"))
    assert parts["oneDNN"]["why"] == "this build of torch has none"
    assert parts["bfloat16"]["why"] == "this build of torch has no oneDNN"
    assert parts["kernels"]["why"] == found["kernels"]
    show_findings(found, Terminal(stderr=False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "oneDNN not used: this build of torch has none" in [" ".join(line.split()) for line in lines]


def test_what_a_gpu_computes_the_processor_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    parts = {part.name: part for part in parts_of_machine(tmp_path)}
    assert (parts["CUDA"].used, parts["CUDA"].why) == (True, "a card")
    assert (parts["kernels"].used, parts["kernels"].why) == (False, "the model computes on cuda")


def test_a_file_that_goes_while_the_cache_is_counted_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, size_of_file = tmp_path / "cache", os.path.getsize
    (cache / "native").mkdir(parents=True)
    for name in ("kept", "going"):
        (cache / "native" / name).write_bytes(b"seven b")

    def sized(path: str) -> int:
        if path.endswith("going"):
            Path(path).unlink()
        return size_of_file(path)

    monkeypatch.setattr(os.path, "getsize", sized)
    assert _bytes_below(cache) == 7


class _Ollama(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"version": "0.99.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_an_ollama_server_and_a_browser_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = tuneful.doctor()
    assert (found["ollama"]["version"], found["browser"]) == (None, None)
    show_findings(found, Terminal(stderr=False))
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().out
    browser = tmp_path / "chromium"
    browser.touch(0o755)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ollama) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
        found = tuneful.doctor()
        server.shutdown()
    assert (found["ollama"]["version"], found["browser"]) == ("0.99.0", str(browser))
