"""Model folders and files of others: refused in one message before anything grows, hangs or runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.doubles.damaged_adapter import write_adapter
from tests.doubles.damaged_huggingface import edit, write_huggingface_folder
from tests.doubles.damaged_models import KINDS, MAX_SECONDS, campaign
from tests.machine import needs
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from tuneful.errors import ModelError
from tuneful.model import stored, tokenizer_limits
from tuneful.model.load import load_model, load_tokenizer
from tuneful.model.size import size_of
from tuneful.model.stored import read_safetensors_header, stored_tensors
from tuneful.model.tokenizer_file import read_tokenizer_file
from tuneful.model.tokenizer_limits import MAX_GROWTH, check_tokenizer_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huggingface_folder(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "home" / "model"))


def refused(model: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(model))
    assert "\n" not in str(caught.value)


# By chance


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # from Python 3.12
@pytest.mark.parametrize("kind", ["huggingface", "adapter", "gguf"])
def test_damaged_models_run_no_code_and_take_neither_time_nor_memory(kind: str, tmp_path: Path) -> None:
    found, failures = campaign(kind, len(KINDS[kind].mutations), 1, tmp_path / "models")
    assert failures == []
    assert found.total() == len(KINDS[kind].mutations)


# Places


@needs("posix")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused_by_every_reader(name: str, folder: Path) -> None:
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    refused(folder, f"{name} is a link out of its folder")
    with pytest.raises(ModelError, match="link out"):
        load_tokenizer(folder)
    assert read_tokenizer_file(folder) is None
    if name in ("config.json", "model.safetensors"):
        assert size_of(folder) is None


@needs("posix")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "additional_chat_templates/a.jinja", "merges.txt"]
)
def test_a_pipe_or_a_device_is_never_opened(name: str, folder: Path) -> None:
    for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(ModelError):
            load_model(str(folder))
        assert size_of(folder) is None or name not in ("config.json", "model.safetensors")


@needs("posix")
def test_a_folder_that_is_a_link_and_the_hubs_cache_are_read(folder: Path) -> None:
    home = folder.parent / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    shutil.copytree(folder, home / "snapshots" / "1")
    for number, file in enumerate(sorted((home / "snapshots" / "1").iterdir())):
        file.rename(home / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    (folder.parent / "link").symlink_to(home / "snapshots" / "1")
    for place in (home / "snapshots" / "1", folder.parent / "link"):
        assert load_model(str(place)).model is not None
        assert read_tokenizer_file(place) is not None
    (home / "snapshots" / "1" / "config.json").unlink()
    (home / "snapshots" / "1" / "config.json").symlink_to("../../refs")
    (home / "refs").write_text("{}")
    refused(folder.parent / "link", "link out of its folder")


# Documents


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("depth", [150, 900, 10_000])
def test_what_is_nested_too_deeply_is_one_message(name: str, depth: int, folder: Path) -> None:
    text = (folder / name).read_text().rstrip()
    (folder / name).write_text(f'{text[:-1]}, "deep": {"[" * depth}{"]" * depth}}}')
    refused(folder, f"{name} is not a JSON object: it is nested too deeply")
    assert name != "config.json" or size_of(folder) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1_000_000),
        ("num_hidden_layers", 1 << 62),
        ("vocab_size", 1 << 31),
        ("intermediate_size", 1 << 33),
        ("num_labels", 10**9),
        ("head_dim", 1 << 40),
        ("text_config", {"num_hidden_layers": 1 << 40}),
    ],
)
def test_sizes_beyond_those_of_the_weights_are_refused_before_anything_is_built(
    key: str, value: Any, folder: Path
) -> None:
    edit(folder / "config.json", {key: value})
    refused(folder, r"config\.json")


def test_a_table_that_grows_with_the_context_is_refused(folder: Path) -> None:
    sizes = {"max_position_embeddings": 10**9, "rotary_dim": 4, "n_embd": 16, "n_layer": 1, "n_head": 2}
    edit(folder / "config.json", dict(model_type="gptj", **sizes))
    refused(folder, "tables of")


# Headers of safetensors


def with_header(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("length", [2, 100, 1 << 27, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_not_read(length: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"claims|Expecting"):
        read_safetensors_header(with_header(tmp_path / "x.safetensors", b"{ ", length=max(length, 3)))


@pytest.mark.parametrize(
    ("header", "num_bytes", "words"),
    [
        ({"a": TENSOR, "b": TENSOR}, 8, "does not begin where"),
        ({"a": TENSOR}, 9, "describes"),
        ({"a": {**TENSOR, "data_offsets": [8, 16]}}, 16, "does not begin where"),
        ({"a": {**TENSOR, "shape": [3]}}, 8, "has 8 bytes"),
        ({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}, 8, "has 8 bytes"),
        ({"a": {**TENSOR, "shape": [-2]}}, 8, "describes no tensor"),
        ({"a": {**TENSOR, "shape": [2.0]}}, 8, "describes no tensor"),
        ({"a": {**TENSOR, "shape": [1] * 17 + [2]}}, 8, "describes no tensor"),
        ({"a": {**TENSOR, "dtype": "Q4"}}, 8, "describes no tensor"),
        ({"a": {**TENSOR, "dtype": []}}, 8, "describes no tensor"),
        ({"a": {**TENSOR, "data_offsets": [0, 8, 8]}}, 8, "describes no tensor"),
        ({"a": 3}, 8, "describes no tensor"),
        ({"a\x1b": TENSOR}, 8, "the name of a tensor"),
        (b'{"a":' * 10_000, 0, "nested too deeply"),
        ([], 0, "expected a JSON object"),
    ],
)
def test_a_header_has_to_be_true_of_its_file(header: Any, num_bytes: int, words: str, folder: Path) -> None:
    file = with_header(folder / "model.safetensors", header, bytes(num_bytes))
    with pytest.raises(ValueError, match=words):
        read_safetensors_header(file)
    refused(folder, r"model\.safetensors is damaged")
    assert size_of(folder) is None


def test_tensors_of_no_number_and_half_bytes_are_read(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}, "b": {**TENSOR, "data_offsets": [0, 8]}}
    header |= {"c": {"dtype": "F4", "shape": [3, 2], "data_offsets": [8, 11]}, "__metadata__": {"format": "pt"}}
    found = read_safetensors_header(with_header(tmp_path / "x.safetensors", header, bytes(11)))
    assert {name: one.num_bytes for name, one in found.items()} == {"a": 0, "b": 8, "c": 3}


def test_a_header_is_read_again_only_where_its_file_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    first = read_safetensors_header(file)
    first.clear()  # a caller's own
    read, tensor = Counter[str](), stored._tensor
    monkeypatch.setattr(stored, "_tensor", lambda file, name, *rest: read.update([name]) or tensor(file, name, *rest))
    assert read_safetensors_header(file)
    assert not read
    save_file({"other": np.ones(3, np.float32)}, file)
    assert list(read_safetensors_header(file)) == list(read) == ["other"]


def test_fifty_thousand_tensors_without_a_place_are_refused_soon(folder: Path) -> None:
    file = folder / "model.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header, data = json.loads(file.read_bytes()[8 : 8 + length]), file.read_bytes()[8 + length :]
    header |= {f"more.{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(50_000)}
    with_header(file, header, data)
    begun = time.process_time()
    assert size_of(folder) is not None
    refused(folder, "50,020 tensors, for which the architecture in config.json has no place")
    assert time.process_time() - begun < MAX_SECONDS


def test_weights_beside_those_of_the_index_are_not_counted(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one = {"data": np.ones((2, 2), np.float32)}
    save_file(one, folder / "model-1.safetensors")
    save_file({"other": one["data"]}, folder / "consolidated.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"data": "model-1.safetensors"}}))
    assert list(stored_tensors(folder)) == ["data"]


@pytest.mark.parametrize("place", [3, ["a"], None, {"a": 1}, "../x.safetensors", "/dev/zero", "a\0b", ""])
def test_an_index_that_names_no_files_is_one_message(place: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    refused(folder, "is no index of weights")
    assert size_of(folder) is None


# Tokenizers

DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("normalizer", sequence(*[DOUBLE] * 33)),
        ("normalizer", sequence(*[sequence(DOUBLE, DOUBLE)] * 20)),
        ("normalizer", sequence(*[{**DOUBLE, "pattern": {"Regex": "(?=a)"}, "content": "b"}] * 8)),
        (
            "normalizer",
            sequence(*[{"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"}, {"type": "NFKC"}] * 3),
        ),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1_000_000}),
        ("normalizer", {"normalizers": [{"prepend": "a" * 200}]}),
        ("normalizer", sequence(*[{"type": "ByteLevel"}] * 12)),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}] * 30},
        ),
        ("decoder", {"type": "Sequence", "decoders": [DOUBLE] * 33}),
        ("decoder", {"type": "BPEDecoder", "suffix": "a" * 1_000_000}),
    ],
)
def test_a_tokenizer_that_stretches_text_is_refused_before_it_is_used(key: str, step: Any, folder: Path) -> None:
    edit(folder / "tokenizer.json", {key: step})
    refused(folder, rf"tokenizer\.json: `{key}` makes a text up to")
    assert read_tokenizer_file(folder) is None
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace(f'"{key}"', f'"\\u00{ord(key[0]):02X}{key[1:]}"'))
    refused(folder, "makes a text up to")


def test_a_tokenizer_at_which_its_library_panics_is_one_message(folder: Path) -> None:
    odd = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAh="}  # bits behind the last byte
    edit(folder / "tokenizer.json", {"normalizer": odd})
    assert read_tokenizer_file(folder) is None
    refused(folder, r"tokenizer\.json cannot be read: the library of tokenizers stopped: .*Invalid")


def test_a_template_of_the_tokenizer_that_repeats_text_is_refused(folder: Path) -> None:
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}] * 1_000
    step = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}
    edit(folder / "tokenizer.json", {"post_processor": step})
    refused(folder, "`post_processor` makes a text up to 1,000 times")


REAL: dict[str, tuple[str, dict[str, Any] | None, int]] = {
    "Llama 2": (
        "normalizer",
        sequence({"type": "Prepend", "prepend": "▁"}, {**DOUBLE, "pattern": {"String": " "}, "content": "▁"}),
        2,
    ),
    "Gemma": ("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, 1),
    "Qwen": ("normalizer", {"type": "NFC"}, 1),
    "a step that is left out": ("normalizer", None, 1),
    "BERT": ("normalizer", {"type": "BertNormalizer", "clean_text": True, "lowercase": True}, 3),
    "GPT-2": ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, 5),
    "Metaspace": ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_what_the_tokenizers_of_real_models_do_is_within_the_limit(name: str, tmp_path: Path) -> None:
    key, step, growth = REAL[name]
    assert tokenizer_limits._growth(step, 10) == growth <= MAX_GROWTH
    (tmp_path / "tokenizer.json").write_text(json.dumps({key: step, "model": {"vocab": {key: 3, "normalizer": 4}}}))
    check_tokenizer_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (normalizers.Sequence([normalizers.Replace("a", "bbb"), normalizers.Prepend("xy")]), "aaaa"),
        (normalizers.Sequence([normalizers.ByteLevel(), normalizers.ByteLevel()]), "\U0001f600é"),
        (normalizers.Replace(Regex("(?=a)"), "xx"), "aaaa"),
        (pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Metaspace()]), "a 世 é"),
    ],
)
def test_no_step_of_the_library_makes_a_text_longer_than_its_factor(step: Any, text: str) -> None:
    factor = tokenizer_limits._growth(json.loads(step.__getstate__()), 10)
    made = (
        step.normalize_str(text)
        if hasattr(step, "normalize_str")
        else "".join(part for part, _ in step.pre_tokenize_str(text))
    )
    assert len(text) < len(made) <= factor * len(text)


def test_padding_and_truncation_of_a_tokenizer_json_do_not_matter(folder: Path) -> None:
    padding = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "<|end|>"}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", {"padding": padding, "truncation": truncation})
    found = read_tokenizer_file(folder)
    assert found is not None
    assert len(found("Hello")["input_ids"]) == len(load_tokenizer(folder)("Hello")["input_ids"]) == 5


# Adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path)


def test_an_adapter_as_it_should_be_is_merged(adapter: Path) -> None:
    assert load_model(str(adapter)).model is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 1 << 40}, "r is 1099511627776"),
        ({"r": 0}, "r is 0"),
        ({"r": "2"}, "r is 2"),
        ({"rank_pattern": {"q_proj": 1 << 40}}, "rank_pattern is"),
        ({"target_modules": [f"m{number}" for number in range(100_000)]}, "has 100,000 entries"),
        ({"target_modules": [3]}, "no name of a layer"),
        ({"target_modules": "(([a-z.])+)+!"}, "takes forever"),
        ({"exclude_modules": "(.*)*!"}, "takes forever"),
        ({"rank_pattern": {"((a|.)+)+!": 2}}, "takes forever"),
        ({"layers_to_transform": list(range(100_000))}, "has 100,000 entries"),
        ({"base_model_name_or_path": 3}, "names no base model"),
    ],
)
def test_settings_of_an_adapter_that_its_weights_do_not_bear_out_are_refused(
    settings: dict[str, Any], words: str, adapter: Path
) -> None:
    edit(adapter / "adapter_config.json", settings)
    refused(adapter, words)


def test_a_regular_expression_as_trainers_write_it_is_taken(adapter: Path) -> None:
    pattern = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj))|(?:\bmodel\.layers\.[\d]{1,}\.self_attn\.q_proj)"
    edit(adapter / "adapter_config.json", {"target_modules": f"(?:base_model\\.)?.*({pattern}|q_proj)"})
    assert load_model(str(adapter)).model is not None


def test_pickled_weights_of_an_adapter_are_never_opened(adapter: Path) -> None:
    marker = adapter.parent / "ran"
    (adapter / "adapter_model.safetensors").rename(adapter / "elsewhere")
    (adapter / "adapter_model.bin").write_bytes(b"cbuiltins\nexec\n(Vopen('" + str(marker).encode() + b"', 'w')\ntR.")
    refused(adapter, "pickled")
    assert not marker.exists()


def test_an_adapter_of_more_tensors_than_its_base_has_places_for_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({f"more.{number}": np.zeros(2, np.float32) for number in range(1_000)}, file)
    refused(adapter, "the adapter has 1,000 tensors")


def test_adapters_that_name_each_other_as_base_are_one_message(adapter: Path) -> None:
    other = Path(shutil.copytree(adapter, adapter.parent / "other"))
    edit(adapter / "adapter_config.json", {"base_model_name_or_path": str(other)})
    edit(other / "adapter_config.json", {"base_model_name_or_path": str(adapter)})
    refused(adapter, "adapter itself")


def test_a_tokenizer_written_by_the_library_passes_as_it_is(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer_limits.check_tokenizer(tokenizer, folder)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 20)
    with pytest.raises(ModelError, match="makes a text"):
        tokenizer_limits.check_tokenizer(tokenizer, folder)
