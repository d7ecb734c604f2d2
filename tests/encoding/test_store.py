"""Records on disk are the records in memory: the same tokens, weights and rows, found again, and whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tuneful
from tuneful.config import load_config
from tuneful.data.read import DataStream, Record, stream_data
from tuneful.encoding import prepare
from tuneful.encoding.chat_template import load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset, describe, make_encoder, prepare_data
from tuneful.encoding.store import Selected, Store, StoreWriter
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.model.load import load_model
from tuneful.runs.schema import Layout
from tuneful.train.loop import record_nll
from tuneful.types import Example

ROWS: list[Any] = [
    *(
        {"instruction": f"Say {number} é日🙂.", "input": "x" * (number % 7), "output": f"It is {number}.", "id": number}
        for number in range(60)
    ),
    {"instruction": "no answer"},
    {"instruction": "long " * 60, "output": "cut"},
    {"instruction": "long", "output": "cut " * 60},
    {
        "messages": [{"role": "user", "content": "a ### Response: b"}, {"role": "assistant", "content": "c"}] * 2,
        "odd": "\ud800",
    },
]
SETTINGS = ["data.on_error=skip", "data.max_length=200", "data.on_long=cut_response", "data.prompt_weight=0.5"]


class Laboratory:
    """Rows in a file, encoded in memory or through a store of four records and more."""

    def __init__(self, folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.cache, self.tokenizer = folder / "rows.jsonl", folder / "cache", tokenizer
        self.write(ROWS)
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 4)
        monkeypatch.setattr(prepare, "_AT_ONCE", 9)

    def write(self, rows: list[Any]) -> None:
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def encoder(self, *settings: str) -> tuple[Encoder, Any]:
        config = load_config(None, [*SETTINGS, *settings])
        text = TextEncoder(self.tokenizer, load_template(config.template, self.tokenizer))
        return make_encoder(text, config.data), config

    def stored(self, *settings: str) -> Dataset:
        encoder, config = self.encoder(*settings)
        stream = stream_data(str(self.file), config.data, config.train.objective)
        return prepare_data(stream, encoder, config, self.cache)

    def in_memory(self, *settings: str) -> Dataset:
        encoder, config = self.encoder(*settings)
        return prepare_data(stream_data(str(self.file), config.data), encoder, config)

    def folders(self) -> list[str]:
        return sorted(os.listdir(self.cache)) if self.cache.is_dir() else []


@pytest.fixture
def laboratory(tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Laboratory(tmp_path, byte_tokenizer, monkeypatch)


def values(examples: Sequence[Example]) -> list[Any]:
    return [
        (one.source, one.token_ids.tolist(), one.weights.tolist(), one.num_prompt_tokens, one.cut, one.num_input_cut)
        for one in examples
    ]


def test_what_is_stored_is_what_is_held_in_memory(laboratory: Laboratory) -> None:
    stored, held = laboratory.stored(), laboratory.in_memory()
    for name in ("train", "validation", "test"):
        one, other = getattr(stored, name), getattr(held, name)
        assert isinstance(one.examples, Selected)
        assert isinstance(other.examples, tuple)
        assert len(one) == len(other) > 0
        assert values(one.examples) == values(other.examples)
        assert [(record.raw, record.conversation) for record in one.records] == [
            (record.raw, record.conversation) for record in other.records
        ]
        assert list(one.conversations) == list(other.conversations)
        assert values(one.examples[1:3]) == values(other.examples[1:3])
    assert list(stored.refused) == list(held.refused)
    assert stored.num_read == held.num_read == len(ROWS)
    encoder, config = laboratory.encoder()
    assert describe(stored, encoder, config) == describe(held, encoder, config)
    assert stored.special_token_texts == {"### Response:": 2}


def test_the_next_run_reads_and_encodes_nothing(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    first = laboratory.stored()

    def read_again(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the file is read again")

    monkeypatch.setattr(DataStream, "__iter__", read_again)
    monkeypatch.setattr(prepare, "split_sides", read_again)
    second = laboratory.stored()
    assert values(second.train.examples) == values(first.train.examples)
    assert second.file == first.file
    with pytest.raises(AssertionError, match="read again"):
        laboratory.stored("train.seed=5")


@pytest.mark.parametrize(
    "setting",
    [
        "template.name=chatml",
        "data.max_length=199",
        "data.train_on=all",
        "data.on_long=refuse",
        "data.columns=system=odd",
    ],
)
def test_what_changes_a_token_makes_a_store_of_its_own(laboratory: Laboratory, setting: str) -> None:
    laboratory.stored()
    settings = [setting, *(["data.prompt_weight=null"] if "train_on" in setting else [])]
    laboratory.stored(*settings)
    assert len(laboratory.folders()) == 2


def test_a_changed_file_a_moved_file_and_another_tokenizer_make_stores_of_their_own(
    laboratory: Laboratory, gpt2_tokenizer: Any
) -> None:
    laboratory.stored()
    laboratory.write(ROWS[:-1])
    laboratory.stored()
    assert len(laboratory.folders()) == 2
    laboratory.file = laboratory.file.rename(laboratory.file.with_name("moved.jsonl"))
    assert laboratory.stored().train.records[0].source.startswith(str(laboratory.file))
    assert len(laboratory.folders()) == 3
    laboratory.tokenizer = gpt2_tokenizer
    laboratory.stored()
    assert len(laboratory.folders()) == 4


def test_a_file_of_a_side_has_a_store_of_its_own_however_the_same_file_was_read_as_data(laboratory: Laboratory) -> None:
    laboratory.stored("data.weights=3")
    file, laboratory.file = laboratory.file, laboratory.file.with_name("other.jsonl")
    laboratory.write([{**row, "id": 0} for row in ROWS[:60]])
    given = laboratory.stored("data.weights=3", f"data.validation_file={file}")
    assert {one.weight for one in given.train.conversations} == {3.0}
    assert {one.weight for one in given.validation.conversations} == {1.0}
    assert {float(one.weights.max()) for one in given.validation.examples} == {1.0}


def test_a_test_file_that_was_read_as_documents_is_read_again_as_prompts(laboratory: Laboratory) -> None:
    laboratory.write([{"instruction": f"Say {at}.", "output": f"{at}.", "text": f"The text {at}."} for at in range(20)])
    file, settings = laboratory.file, ["train.objective=text", "data.prompt_weight=null", "data.on_long=refuse"]
    assert all(one.is_document for one in laboratory.stored(*settings).train.conversations)
    laboratory.file = file.with_name("other.jsonl")
    laboratory.write([{"text": f"Another text {at}."} for at in range(20)])
    given = laboratory.stored(*settings, f"data.test_file={file}")
    assert [one.is_document for one in given.test.conversations] == [False] * 20


def test_weights_that_go_to_other_files_make_a_store_of_their_own(laboratory: Laboratory) -> None:
    paths = [laboratory.file.with_name(f"{name}.jsonl") for name in "abc"]
    for path in paths:
        laboratory.file = path
        laboratory.write([{"instruction": f"Say {path.stem} {at}.", "output": "It."} for at in range(12)])
    found = []
    for names in ([f"{paths[0].parent}/[ab].jsonl", str(paths[2])], [str(paths[0]), f"{paths[0].parent}/[bc].jsonl"]):
        encoder, config = laboratory.encoder("data.weights=1,3")
        dataset = prepare_data(stream_data(names, config.data), encoder, config, laboratory.cache)
        conversations = [*dataset.train.conversations, *dataset.validation.conversations, *dataset.test.conversations]
        found.append({one.weight for one in conversations if "b.jsonl" in one.source})
    assert found == [{1.0}, {3.0}]


def test_a_few_records_leave_nothing_on_disk(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", len(ROWS))
    assert values(laboratory.stored().train.examples) == values(laboratory.in_memory().train.examples)
    assert laboratory.folders() == []


def test_a_writer_that_fails_or_dies_leaves_no_store(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: StoreWriter, records: Sequence[Record], examples: Sequence[Example]) -> None:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", full)
        with pytest.raises(OSError, match="full"):
            laboratory.stored()
    assert laboratory.folders() == []
    left = ".part-123-of-a-killed-one"
    (laboratory.cache / left).mkdir()
    laboratory.stored()
    assert left in laboratory.folders()  # it may still be writing
    os.utime(laboratory.cache / left, (time.time() - 90_000,) * 2)
    laboratory.stored("data.max_length=150")
    assert left not in laboratory.folders()


def test_of_two_that_write_the_same_store_the_second_takes_the_first_ones(laboratory: Laboratory) -> None:
    held = laboratory.in_memory()
    with StoreWriter(laboratory.cache / "same", 400) as one, StoreWriter(laboratory.cache / "same", 400) as other:
        for writer in (one, other):
            writer.add(held.train.records, held.train.examples)
        stores = [one.finish({}), other.finish({})]
    assert laboratory.folders() == ["same"]
    for store in stores:
        assert values([store.example(index) for index in range(len(store))]) == values(held.train.examples)


def test_a_store_that_is_damaged_is_not_read(laboratory: Laboratory) -> None:
    laboratory.stored()
    (name,) = laboratory.folders()
    column = laboratory.cache / name / "token_ids"
    column.write_bytes(column.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"damaged \(token_ids\); remove it"):
        Store(laboratory.cache / name)
    assert values(laboratory.stored().train.examples) == values(laboratory.in_memory().train.examples)


def test_weights_of_any_kind_come_back_bit_for_bit(laboratory: Laboratory) -> None:
    (record,) = laboratory.in_memory().train.records[:1]
    rng = np.random.default_rng(0)
    examples = []
    for length in (2, 3, 50, 200):
        weights = rng.choice([0, 0.25, 1, 1.5], length).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        examples.append(Example(rng.integers(0, 400, length).astype(np.int32), weights, 1, "here:1"))
    with StoreWriter(laboratory.cache / "weights", 70_000) as writer:
        writer.add([record] * len(examples), examples)
        store = writer.finish({})
    assert [store.example(index).weights.tobytes() for index in range(4)] == [one.weights.tobytes() for one in examples]


def test_losses_of_records_on_disk_are_those_of_records_in_memory(laboratory: Laboratory, tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama)).model
    torch.manual_seed(0)
    layout = Layout("trie", 300)
    stored, held = laboratory.stored(), laboratory.in_memory()
    assert record_nll(model, stored.test.examples, layout) == record_nll(model, held.test.examples, layout)


def test_a_run_from_disk_is_the_run_from_memory(
    laboratory: Laboratory, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.write([row for row in ROWS if "output" in row][:24])
    settings = ["train.max_steps=3", "train.batch_size=4", "generate.max_new_tokens=4", "model.dtype=float32"]
    config = load_config(None, [*SETTINGS, *settings, f"model.name_or_path={tiny_llama}"])
    found = []
    for in_memory in (4, 1000):
        cache = tmp_path / f"cache-{in_memory}"
        monkeypatch.setenv("TUNEFUL_CACHE", str(cache))
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY", in_memory)
        run = tuneful.run(str(laboratory.file), config=config, output=tmp_path / str(in_memory)).path
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        files = [run / "data" / f"{name}.jsonl" for name in ("train", "validation", "test", "refused")]
        files += [run / "data.json", run / "answers" / "tuned.jsonl", run / "model" / "model.safetensors"]
        found.append(
            ([row.get("loss", row.get("validation_loss")) for row in metrics], [one.read_bytes() for one in files])
        )
        assert (cache / "tokens").is_dir() is (in_memory == 4)
    assert found[0] == found[1]


def test_a_store_in_which_anything_changed_is_made_again(laboratory: Laboratory) -> None:
    wanted, (name,) = values(laboratory.stored().train.examples), laboratory.folders()
    files = sorted(path for path in (laboratory.cache / name).iterdir() if path.stat().st_size)
    assert len(files) > 10
    for number, file in enumerate(files):
        content = bytearray(file.read_bytes())
        content[number * 7 % len(content)] ^= 16
        file.write_bytes(content if number % 3 else content[: len(content) // 2])
        assert values(laboratory.stored().train.examples) == wanted, file.name
    shutil.rmtree(laboratory.cache / name)
    (laboratory.cache / name).symlink_to("nowhere")
    assert values(laboratory.stored().train.examples) == wanted
