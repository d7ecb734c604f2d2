"""Preparation: every record gets its own example, and every row read is used or refused, in numbers that add up."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneful.config import load_config
from tuneful.data.read import read_data
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset, describe, make_encoder, prepare_data
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.runs.schema import as_row

ROWS = [{"instruction": f"Say {num}.", "input": "", "output": f"I say {num}."} for num in range(40)]


def prepared(folder: Path, tokenizer: Any, rows: list[Any], *settings: str) -> tuple[Dataset, Encoder, Any]:
    config = load_config(None, ["data.on_error=skip", *settings])
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")  # on one line: no line number tells its records apart
    encoder = make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)
    return prepare_data(read_data(str(file), on_error="skip"), encoder, config), encoder, config


@pytest.mark.parametrize("split", ["grouped", "random", "ordered"])
def test_every_record_is_trained_on_its_own_tokens(tmp_path: Path, byte_tokenizer: Any, split: str) -> None:
    data, encoder, _ = prepared(tmp_path, byte_tokenizer, ROWS, f"data.split={split}")
    for subset in (data.train, data.validation, data.test):
        for record, example in zip(subset.records, subset.examples, strict=True):
            text = encoder.text.decode(example.token_ids.tolist())
            assert text.endswith(f"{record.raw['instruction']}\n\n### Response:\n{record.raw['output']}")
            assert example.source == record.source
    assert (
        len({record.source for subset in (data.train, data.validation, data.test) for record in subset.records}) == 40
    )


def test_rows_read_are_rows_used_and_rows_refused(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = [*ROWS, {"instruction": "a"}, 5, {"instruction": "a " * 2000, "output": "b"}]
    data, encoder, config = prepared(tmp_path, byte_tokenizer, rows)
    audit = describe(data, encoder, config)
    assert (data.num_read, data.num_used, len(data.refused)) == (43, 40, 3)
    assert (audit.rows_read, audit.rows_used, audit.rows_refused) == (43, 40, 3)
    assert audit.split.train + audit.split.validation + audit.split.test == 40
    assert [row.raw for row in data.refused] == rows[40:]
    assert audit.train_tokens.record == sum(map(len, data.train.examples))
    json.dumps(as_row(audit), allow_nan=False)


def test_a_share_of_the_training_records_leaves_what_is_held_out_as_it_is_and_every_row_accounted_for(
    tmp_path: Path, byte_tokenizer: Any
) -> None:
    whole, _, _ = prepared(tmp_path, byte_tokenizer, ROWS)
    half, encoder, config = prepared(tmp_path, byte_tokenizer, ROWS, "data.train_share=0.5")
    quarter, _, _ = prepared(tmp_path, byte_tokenizer, ROWS, "data.train_share=0.25")
    assert set(quarter.train.sources) < set(half.train.sources) < set(whole.train.sources)
    assert len(half.train) == round(len(whole.train) / 2)
    for side in ("validation", "test"):
        assert list(getattr(quarter, side).sources) == list(getattr(whole, side).sources)
    audit = describe(half, encoder, config)
    assert audit.rows_left_out == len(whole.train) - len(half.train)
    assert audit.rows_read == audit.rows_used + audit.rows_left_out + audit.rows_refused == half.num_read


def test_the_seed_of_the_split_may_stay_while_that_of_the_training_changes(tmp_path: Path, byte_tokenizer: Any) -> None:
    seeds = ("train.seed=1", "data.split_seed=0")
    before, after, other = (
        prepared(tmp_path, byte_tokenizer, ROWS, *settings)[0].train.sources for settings in ((), seeds, seeds[:1])
    )
    assert list(before) == list(after) != list(other)


def test_a_file_of_records_that_are_all_too_long_names_the_first(tmp_path: Path, byte_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"no record is left to use; the first skipped row: .*rows\.json:1: \d+ tokens"):
        prepared(tmp_path, byte_tokenizer, ROWS, "data.max_length=10")


def test_a_record_that_is_read_but_not_by_the_template_or_too_long_is_left_out_and_stops_nothing(
    tmp_path: Path, byte_tokenizer: Any
) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "look_up", "arguments": {}}]}
    rows = [
        *ROWS,
        {"messages": [{"role": "user", "content": "Look."}, call]},
        {"instruction": "a " * 2000, "output": "b"},
    ]
    (file := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config()
    assert config.data.on_error == "stop"
    encoder = make_encoder(TextEncoder(byte_tokenizer, find_template(config.template.name)), config.data)
    data = prepare_data(read_data(str(file)), encoder, config)
    assert (data.num_read, data.num_used) == (42, 40)
    assert [row.source for row in data.refused] == [f"{file}:41", f"{file}:42"]
    assert data.refused[0].reason.startswith("template.name=alpaca: the template has no tool_calls")
    (note,) = [note for note in data.file.notes if note.kind == "calls"]
    assert note.text == "1 answer calls tools; what tools answer is context, not trained"  # nor is this call
