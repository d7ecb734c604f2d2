"""What cannot fit is refused by arithmetic over the headers, before a weight is read, with what would fit."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.doubles.engine import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import tuneful
from tuneful.config import load_config
from tuneful.errors import ConfigError
from tuneful.model import memory
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.size import ModelSize, size_of
from tuneful.runs import fits, setup
from tuneful.train.distributed import SINGLE_PROCESS

SIZE = ModelSize(
    {
        "model.embed_tokens.weight": (1000, 10),
        **{f"model.layers.{number}.mlp.up_proj.weight": (10, 100) for number in range(2)},
        "model.norm.weight": (10,),
    },
    hidden_size=10,
    inner_size=100,
    num_layers=2,
)
WEIGHTS = 12_010
CPU = torch.device("cpu")


def parts(*settings: str, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    return dict(fits.needed(SIZE, load_config(overrides=settings), dtype, CPU).parts)


def test_full_finetuning_needs_masters_gradients_two_moments_and_the_best_weights() -> None:
    found = parts()
    assert found["weights"] == found["gradients"] == found["the best weights so far"] == 4 * WEIGHTS
    assert found["AdamW's moments"] == 8 * WEIGHTS
    assert found["their copies for products in 16 bits"] == 0
    assert parts("train.keep=last")["the best weights so far"] == 0
    assert parts("data.validation_share=0")["the best weights so far"] == 0


def test_bfloat16_keeps_a_copy_of_the_weights_and_gradients_of_half_the_size() -> None:
    found = parts(dtype=torch.bfloat16)
    assert found["their copies for products in 16 bits"] == found["gradients"] == 2 * WEIGHTS
    assert found["weights"] == 4 * WEIGHTS


def test_frozen_layers_have_no_gradients_and_no_moments() -> None:
    assert parts("train.freeze_layers=1")["AdamW's moments"] == 8 * (1000 + 10)


def test_an_adapter_needs_its_base_in_the_compute_dtype_and_no_phase_needs_a_float32_copy_of_it() -> None:
    adapter = 2 * 2 * (10 + 100)
    needs = {
        one.phase: one.parts
        for one in fits.phases(SIZE, load_config(overrides=["train.method=lora", "lora.r=2"]), torch.bfloat16, CPU)
    }
    assert needs["lora finetuning"]["weights"] == 2 * WEIGHTS + 4 * adapter
    assert needs["lora finetuning"]["AdamW's moments"] == 8 * adapter
    assert needs["loading the model"] == {"weights": 2 * WEIGHTS, "the widest as it is stored": 4 * 10_000}
    assert needs["saving the model"]["weights"] == 2 * WEIGHTS
    assert needs["saving the model"]["the widest matrix while it is merged and compared"] == 16 * 1000


def test_a_base_in_4_bits_takes_these_for_its_matrices_in_every_phase() -> None:
    needs = {
        one.phase: one.parts
        for one in fits.phases(SIZE, load_config(overrides=["train.method=qlora", "lora.r=2"]), torch.bfloat16, CPU)
    }
    base = 2 * (10_000 + 10) + int(2000 * (4 + 8 / 64 + 32 / 64 / 256) / 8)
    assert needs["qlora finetuning"]["weights"] == base + 4 * 2 * 2 * (10 + 100)
    assert needs["loading the model"]["weights"] == needs["saving the model"]["weights"] == base


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_the_headers_of_a_folder_tell_what_loading_it_would(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size is not None
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    config = model.config.get_text_config()
    assert (size.hidden_size, size.num_layers) == (config.hidden_size, config.num_hidden_layers)


def test_a_gguf_header_is_read_without_the_gguf_package_and_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny Tune")
    writer.add_license("apache-2.0")
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, reader = read_gguf_header(file), gguf.GGUFReader(file)
    assert {name: list(shape) for name, shape in header.shapes.items()} == {
        one.name: one.shape.tolist() for one in reader.tensors
    }
    assert header.text("general.name") == "Tiny Tune"
    assert header.text("general.license") == "apache-2.0"
    size = size_of(file)
    assert size is not None
    assert (size.num_parameters, size.hidden_size, size.inner_size, size.num_layers) == (24 + 128, 8, 16, 1)
    for length in range(4, 200, 7):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:length])
        assert size_of(tmp_path / "cut.gguf") is None


def test_a_folder_whose_headers_say_nothing_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    assert size_of(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert size_of(tmp_path) is None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]))
    return file


@pytest.mark.parametrize("work", ["run", "dry_run"])
def test_a_run_that_cannot_fit_is_refused_before_a_weight_is_read_and_says_what_fits(
    work: str, data: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    config = load_config(overrides=[f"model.name_or_path={tiny_llama}", "model.dtype=float32"])
    size = size_of(tiny_llama)
    assert size is not None
    need = fits.needed(size, config, torch.float32, CPU).num_bytes
    monkeypatch.setattr(fits, "available_bytes", lambda _: need - 1)
    monkeypatch.setattr(setup, "load_from", never)
    arguments: Any = {"output": tmp_path / "run"} if work == "run" else {}
    call: Any = tuneful.run if work == "run" else partial(tuneful.dry_run, "train")
    with pytest.raises(ConfigError) as refused:
        call(data, config=config, **arguments)
    said = str(refused.value)
    for part in (
        "finetuning all weights needs at least",
        "gradients",
        "AdamW's moments",
        "train.keep=last (at least",
        "train.method=lora",
    ):
        assert part in said
    assert not (tmp_path / "run").exists()


def test_what_would_fit_is_tried_by_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    monkeypatch.setattr(fits, "available_bytes", lambda _: 10)
    with pytest.raises(ConfigError, match=r"A smaller model is needed, or more memory$"):
        fits.check_fits(tiny_llama, "tiny", load_config(), CPU)


def test_the_limit_of_a_container_counts_and_its_file_cache_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "groups" / "a" / "b"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    (own / "memory.max").write_text("max\n")
    (own / "memory.current").write_text("1\n")
    (own / "memory.stat").write_text("anon 1\n")
    (own.parent / "memory.max").write_text("5000000\n")
    (own.parent / "memory.current").write_text("3000000\n")
    (own.parent / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    assert memory.available_bytes() == 3_000_000
    assert memory.total_bytes() == 5_000_000


def test_on_a_gpu_the_best_weights_and_the_copies_that_are_compared_lie_elsewhere() -> None:
    cpu, gpu = (fits.needed(SIZE, load_config(), torch.float32, torch.device(name)) for name in ("cpu", "cuda"))
    assert cpu.num_bytes - gpu.num_bytes == 4 * WEIGHTS
    assert [one.phase for one in fits.phases(SIZE, load_config(), torch.float32, torch.device("cuda"))] == [
        "finetuning all weights"
    ]


def test_one_process_alone_is_no_set_of_ranks(tiny_llama: Path) -> None:
    config = load_config(overrides=["train.shard_ranks=2"])
    with pytest.raises(ConfigError, match=r"train\.shard_ranks`: 2, and this is one process alone"):
        fits.placed(SINGLE_PROCESS, config, tiny_llama, torch.float32, CPU)
    assert fits.placed(SINGLE_PROCESS, load_config(), tiny_llama, torch.float32, CPU) is SINGLE_PROCESS


@pytest.mark.parametrize(
    ("name", "millions", "hidden", "inner", "layers", "heads", "key_heads", "vocab"),
    [
        ("SmolLM2-135M", 135, 576, 1536, 30, 9, 3, 49_152),
        ("SmolLM2-1.7B", 1_711, 2048, 8192, 24, 32, 32, 49_152),
        ("Llama-3.2-3B", 3_213, 3072, 8192, 28, 24, 8, 128_256),
        ("Llama-3.1-8B", 8_030, 4096, 14_336, 32, 32, 8, 128_256),
    ],
)
def test_the_table_of_the_page_on_one_gpu_is_this_arithmetic(
    name: str, millions: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocab: int
) -> None:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocab,
        tie_word_embeddings=hidden < 4096,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    size = ModelSize({key: tuple(one.shape) for key, one in model.named_parameters()}, hidden, inner, layers)
    assert round(size.num_parameters / 1e6) == millions
    methods = [load_config(overrides=[f"train.method={method}"]) for method in ("full", "lora", "qlora")]
    needs = [fits.needed(size, one, torch.bfloat16, torch.device("cuda")).num_bytes for one in methods]
    page = (Path(__file__).parents[2] / "docs" / "one-gpu.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", page, re.M)
    assert row is not None
    assert row[1].split(" | ") == [f"{need / 1e9:.1f}" for need in needs]
