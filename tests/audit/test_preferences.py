"""What a check finds in preferences: every kind is planted, and exactly those rows are found."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.planted import write_rows

from tuneful.audit.audit import Audit, audit
from tuneful.audit.findings import NEEDS_PAIRS
from tuneful.commands.check import check
from tuneful.config import load_config
from tuneful.data.read import read_data
from tuneful.encoding.prepare import make_encoder
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Example, sides_of

WORDS = ["river", "stone", "window", "garden", "letter", "copper", "morning", "station", "bridge", "candle", "harbour"]


def sentence(rng: random.Random, length: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length)).capitalize() + "."


def clean(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": f"Why {sentence(rng)} {n}?",
            "chosen": sentence(rng) + f" {n}.",
            "rejected": sentence(rng) + f" {-n}.",
        }
        for n in range(num_rows)
    ]


def look(folder: Path, rows: list[Any], *settings: str, fix: Path | None = None) -> Audit:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(None, ["train.objective=dpo", "model.name_or_path=nowhere", *settings])
    return check(str(path), config=config, fix=fix).audit


def places(found: Audit) -> dict[str, set[int]]:
    return {
        one.kind.name: {int(source.partition(" ")[0].rpartition(":")[2]) for source in one.sources}
        for one in found.findings
    }


def test_clean_pairs_have_no_findings(tmp_path: Path) -> None:
    found = look(tmp_path, clean(60))
    assert found.findings == ()
    assert found.preferences is not None
    assert found.preferences.num_pairs == 60
    assert set(found.lengths) == {"prompt", "chosen", "rejected", "record"}
    assert sum(found.sides.values()) == 60


def test_exactly_the_planted_pairs_are_found(tmp_path: Path) -> None:
    rows = clean(60)
    answer = rows[7]["chosen"]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3] |= {"score_chosen": 2.0, "score_rejected": "7.5"}
    rows[4] |= {"chosen_rating": 3, "rejected_rating": 3}
    rows[5] |= {"chosen-rating": 5, "rejected-rating": 3}
    rows[6]["rejected"] = rows[6]["chosen"] + " And more of it."
    rows[8] = {"prompt": rows[7]["prompt"], "chosen": rows[7]["rejected"], "rejected": answer}
    rows[9]["rejected"] = " "
    found = look(tmp_path, rows)
    assert places(found) == {
        "identical_sides": {3},
        "contradicting_ratings": {4},
        "equal_ratings": {5},
        "prefix_sides": {7},
        "contradicting_preferences": {8, 9},
        "empty_sides": {10},
    }
    assert found.num_read == 60 == found.num_used + 1


def test_every_kind_of_preferences_is_tried_here() -> None:
    planted = {"identical_sides", "contradicting_ratings", "equal_ratings", "prefix_sides", "contradicting_preferences"}
    assert planted | {"empty_sides", "length_bias", "answer_leakage"} == NEEDS_PAIRS


def test_equal_sides_and_empty_ones_are_dropped_by_fix_and_nothing_else(tmp_path: Path) -> None:
    rows = clean(12)
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["chosen"] = ""
    rows[4]["rejected"] = rows[4]["chosen"] + " More."
    look(tmp_path, rows, fix=tmp_path / "fixed.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert kept == [row for number, row in enumerate(rows) if number not in (2, 3)]


@pytest.mark.parametrize("prefers", ["longer", "shorter"])
def test_pairs_that_prefer_a_length_are_found_with_the_figure(tmp_path: Path, prefers: str) -> None:
    rows = clean(100)
    rng = random.Random(1)
    for row in rows[:85]:
        row["chosen" if prefers == "longer" else "rejected"] += " " + sentence(rng, 20)
    found = look(tmp_path, rows)
    (one,) = [one for one in found.findings if one.kind.name == "length_bias"]
    assert 85 <= one.count <= 100
    share = found.preferences.chosen_longer if found.preferences else None
    assert share is not None
    assert (share > 0.8) == (prefers == "longer")
    assert "the longer one in" in one.kind.why
    assert "medians" in one.kind.why
    assert found.preferences is not None
    assert found.preferences.longer_low is not None
    assert found.preferences.longer_high is not None
    assert found.preferences.longer_low <= share <= found.preferences.longer_high
    low, high = sorted((found.preferences.chosen_median or 0, found.preferences.rejected_median or 0))
    assert low < 20 < high


def test_an_answer_of_the_test_set_that_was_trained_on_is_found_on_either_side(tmp_path: Path) -> None:
    rows = clean(40)
    given = clean(6, seed=9)
    given[1]["rejected"] = rows[5]["chosen"]
    given[2]["chosen"] = rows[7]["rejected"].upper()
    stock = "I do not know that, and I cannot find it out for you either."
    for row in (*rows[:10:2], given[3]):
        row["rejected"] = stock
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    found = look(tmp_path, rows, f"data.test_file={tmp_path / 'test.jsonl'}")
    assert places(found) == {"answer_leakage": {2, 3}}


def test_labels_that_contradict_each_other_are_found_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": n % 3 > 0} for n, row in enumerate(clean(30))
    ]
    rows.append({**rows[4], "label": not rows[4]["label"]})
    rows.append({**rows[5], "completion": rows[6]["completion"]})
    found = look(tmp_path, rows, "train.objective=kto")
    assert places(found) == {"contradicting_preferences": {5, 31}}
    assert found.preferences is not None
    assert found.preferences.num_wanted + found.preferences.num_unwanted == 32
    assert found.preferences.num_pairs == 0


def test_pairs_as_labelled_records_are_no_copies_of_each_other(tmp_path: Path) -> None:
    found = look(tmp_path, clean(20), "train.objective=kto")
    assert found.findings == ()
    assert found.num_used == 40


def called(city: str, thought: str = "") -> dict[str, Any]:
    said = {
        "role": "assistant",
        "content": "I look it up.",
        "tool_calls": [{"name": "look", "arguments": {"in": city}}],
    }
    return {**said, **({"reasoning_content": thought} if thought else {})}


def asked(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}]


def test_sides_that_differ_in_a_call_or_a_thought_alone_are_not_identical(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = clean(20)
    rows[2] = {"prompt": asked(rows[2]), "chosen": [called("Rome")], "rejected": [called("Oslo")]}
    rows[3] = {"prompt": asked(rows[3]), "chosen": [called("Rome", "Rome, then.")], "rejected": [called("Rome")]}
    rows[4] = {"prompt": asked(rows[4]), "chosen": [called("Rome")], "rejected": [called("Rome")]}
    found = look(tmp_path, rows, fix=tmp_path / "fixed.jsonl")
    assert places(found) == {"identical_sides": {5}}
    kept = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert kept == [row for number, row in enumerate(rows) if number != 4]


def test_labels_of_answers_that_differ_in_a_call_alone_do_not_contradict_each_other(tmp_path: Path) -> None:
    (row,) = clean(1)
    rows = [{"prompt": asked(row), "completion": [called(city)], "label": city == "Rome"} for city in ("Rome", "Oslo")]
    assert look(tmp_path, rows, "train.objective=kto").findings == ()


# On their way into the model


def encoded(folder: Path, rows: list[Any], tokenizer: Any, *settings: str) -> tuple[Audit, list[Example]]:
    """The audit of pairs that are encoded, and the examples of those that fit."""
    config = load_config(None, ["train.objective=dpo", *settings])
    write_rows(folder / "rows.jsonl", rows)
    encoder = make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)
    records = read_data(str(folder / "rows.jsonl"), config.data, objective="dpo").records
    examples = [encoder.example(record.conversation) for record in records]
    found = audit(zip(records, examples, strict=True), config, encoder)
    return found, [one for one in examples if isinstance(one, Example)]


def test_trained_tokens_are_those_of_both_sides(tmp_path: Path, byte_tokenizer: Any) -> None:
    found, examples = encoded(tmp_path, clean(8), byte_tokenizer)
    assert found.num_trained == sum(int((side.weights > 0).sum()) for one in examples for side in sides_of(one))
    assert found.num_ended == found.num_used == 8


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_that_is_cut_is_found_whichever_it_is_and_its_pair_does_not_end(
    tmp_path: Path, byte_tokenizer: Any, side: str
) -> None:
    rows = clean(8)
    rows[2][side] = "so " * 400
    found, _ = encoded(tmp_path, rows, byte_tokenizer, "data.max_length=600", "data.on_long=cut_response")
    assert places(found)["cut_records"] == {3}
    assert found.num_ended == 7


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_that_would_merge_with_the_prompt_is_found_whichever_it_is(
    tmp_path: Path, gpt2_tokenizer: Any, side: str
) -> None:
    rows = clean(5)
    rows[1][side] = "\n\n" + rows[1][side]  # GPT-2 has a token for two line feeds
    found, _ = encoded(tmp_path, rows, gpt2_tokenizer)
    assert places(found) == {"boundary_tokenization": {2}}
