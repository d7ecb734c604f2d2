"""Splits: disjoint, complete, the same every time, and no prompt on two sides."""

import random
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tuneful.data.read import Record
from tuneful.data.split import SIDE_NAMES, nested_share, normal_prompt, split_sides
from tuneful.errors import DataError
from tuneful.types import Conversation, Turn


class Split(NamedTuple):
    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    test: tuple[Record, ...]


def record(instruction: str, index: int, input: str = "", system: str = "") -> Record:
    return Record({"id": index}, Conversation(system, (Turn(instruction, input, "yes"),), f"data.json:{index}"))


def records(num: int) -> list[Record]:
    return [record(f"question {index}", index) for index in range(num)]


def split(
    rows: list[Record], method: str = "grouped", test: float = 0.1, validation: float = 0.05, seed: int = 0
) -> Split:
    prompts = (normal_prompt(row.conversation) for row in rows)
    sides = split_sides(prompts, method, test_share=test, validation_share=validation, seed=seed)
    return Split(*(tuple(rows[index] for index in np.flatnonzero(sides == side)) for side in range(len(SIDE_NAMES))))


def ids(rows: Any) -> list[int]:
    return [row.raw["id"] for row in rows]


def sizes(found: Split) -> tuple[int, int, int]:
    return len(found.train), len(found.validation), len(found.test)


@pytest.mark.parametrize("num", [20, 100, 1100, 1207])
def test_ordered_cuts_the_file_as_the_book_slices_it(num: int) -> None:
    data = records(num)
    train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
    found = split(data, "ordered")
    assert list(found.train) == data[:train_portion]
    assert list(found.test) == data[train_portion : train_portion + test_portion]
    assert list(found.validation) == data[train_portion + test_portion :]


@pytest.mark.parametrize(("num", "expected"), [(1000, (850, 50, 100)), (100, (85, 5, 10)), (20, (17, 1, 2))])
def test_ordered_shares_are_85_5_and_10_in_a_hundred(num: int, expected: tuple[int, int, int]) -> None:
    assert sizes(split(records(num), "ordered")) == expected


@pytest.mark.parametrize("method", ["grouped", "random"])
def test_hashed_shares_are_85_5_and_10_in_a_hundred_on_average(method: str) -> None:
    found = np.mean([sizes(split(records(400), method, seed=seed)) for seed in range(40)], axis=0)
    assert found == pytest.approx((340, 20, 40), abs=4 * 6 / 40**0.5)  # four standard errors


@pytest.mark.parametrize("method", ["grouped", "random", "ordered"])
def test_tiny_sets_leave_a_record_on_every_side_that_was_wanted(method: str) -> None:
    assert sizes(split(records(3), method)) == (1, 1, 1)
    assert sizes(split(records(5), method)) == (3, 1, 1)
    assert sizes(split(records(2), method, validation=0)) == (1, 0, 1)
    assert sizes(split(records(2), method, test=0)) == (1, 1, 0)
    assert sizes(split(records(1), method, test=0, validation=0)) == (1, 0, 0)
    few: list[tuple[int, dict[str, Any]]] = [(2, {}), (1, {"validation": 0.0}), (1, {"test": 0.0})]
    for num, shares in few:
        with pytest.raises(DataError, match="too few for a train, a validation and a test set"):
            split(records(num), method, **shares)


rows = st.lists(st.sampled_from("aaaabbcdefghij"), min_size=1, max_size=60).map(
    lambda letters: [record(f"{letter}?", index) for index, letter in enumerate(letters)]
)
shares = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.45])


@given(rows, st.sampled_from(["grouped", "random", "ordered"]), shares, shares, st.integers(0, 9))
def test_every_record_is_on_exactly_one_side(
    data: list[Record], method: str, test: float, validation: float, seed: int
) -> None:
    try:
        found = split(data, method, test, validation, seed)
    except DataError:
        wanted = 1 + bool(test) + bool(validation)
        different = len({normal_prompt(row.conversation) for row in data}) if method == "grouped" else len(data)
        assert different < wanted
        return
    assert Counter(ids([*found.train, *found.validation, *found.test])) == Counter(ids(data))
    assert [bool(size) for size in sizes(found)] == [True, bool(validation), bool(test)]
    assert found == split(data, method, test, validation, seed)


@given(rows, st.integers(0, 9))
def test_grouped_keeps_records_with_the_same_prompt_on_one_side(data: list[Record], seed: int) -> None:
    assume(len({normal_prompt(row.conversation) for row in data}) >= 3)
    found = split(data, seed=seed)
    prompts = [
        {normal_prompt(row.conversation) for row in side} for side in (found.train, found.validation, found.test)
    ]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


@given(rows, rows, st.sampled_from(["grouped", "random"]), st.integers(0, 9))
def test_rows_appended_later_move_no_record(data: list[Record], more: list[Record], method: str, seed: int) -> None:
    data = data + records(60)
    before, after = split(data, method, seed=seed), split(data + more, method, seed=seed)
    assume(min(sizes(before)) > 3)  # a side of a cluster or two may owe them to a rule for sides that would be empty
    for side in ("train", "validation", "test"):
        kept = [row for row in getattr(after, side) if any(row is old for old in data)]
        assert ids(kept) == ids(getattr(before, side))


def test_grouped_is_the_same_whatever_the_order_of_different_prompts() -> None:
    data = records(200)
    shuffled = random.Random(0).sample(data, len(data))
    assert {*ids(split(data).test)} == {*ids(split(shuffled).test)}


def test_one_prompt_with_half_of_all_records_is_trained_on_and_moves_no_other() -> None:
    data = records(500) + [record("Write a poem.", index) for index in range(500, 1000)]
    for seed in range(12):
        found = split(data, seed=seed)
        assert sum(row.raw["id"] >= 500 for row in found.train) == 500
        assert ids(found.test) == ids(split(data[:500], seed=seed).test)


def test_prompts_that_nearly_agree_stay_on_one_side() -> None:
    asked = ["Describe the long road to the village of {}", "Describe the long road to a village of {}"]
    places = ["Arnsbach", "Kelmunt", "Ostrava", "Quendlin", "Toruviel", "Wexholm", "Yrsel", "Zubrovka"] * 1
    data = [
        record(ask.format(place) + " and who lives there", index)
        for index, (place, ask) in enumerate((place, ask) for place in places for ask in asked)
    ]
    for seed in range(20):
        for side in (split(data, seed=seed, test=0.3).test, split(data, seed=seed, test=0.3).train):
            assert all(number ^ 1 in ids(side) for number in ids(side))


def test_grouped_refuses_fewer_prompts_than_sets_and_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"only 1 different prompt\(s\) for 3 sets; set data.split=random"):
        split([record("same", index) for index in range(10)])


def test_another_seed_is_another_split_and_ordered_has_none() -> None:
    assert split(records(100), seed=0) != split(records(100), seed=1)
    assert split(records(100), "ordered", seed=0) == split(records(100), "ordered", seed=1)


def test_prompts_are_the_same_where_only_case_space_punctuation_and_character_forms_differ() -> None:
    base = normal_prompt(record("What is 2 apples?", 0, "Über").conversation)
    assert normal_prompt(record("what  is\n2 apples", 0, "U\u0308BER!").conversation) == base
    assert normal_prompt(record("ＷＨＡＴ is 2 apples?", 0, "über").conversation) == base
    assert normal_prompt(record("What is 3 apples?", 0, "Über").conversation) != base
    assert normal_prompt(record("What is 2 apples?", 0).conversation) != base
    assert normal_prompt(record("What is 2 apples?", 0, "Über", "Be brief.").conversation) != base
    assert normal_prompt(record("?", 0).conversation) != normal_prompt(record("!", 0).conversation)


@given(st.integers(1, 300), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 2**31 - 1))
def test_a_smaller_share_of_records_is_part_of_a_larger_one(num: int, one: float, other: float, seed: int) -> None:
    small, large = (nested_share(num, share, seed).tolist() for share in sorted((one, other)))
    assert set(small) <= set(large)
    assert small == sorted(set(small))
    assert len(small) == max(1, round(min(one, other) * num))
    assert nested_share(num, 1.0, seed).tolist() == list(range(num))


def test_which_records_a_share_takes_is_a_matter_of_the_seed() -> None:
    taken = [set(nested_share(400, 0.5, seed).tolist()) for seed in range(20)]
    assert len(set(map(frozenset, taken))) == 20
    often = np.bincount([index for own in taken for index in own], minlength=400)
    assert 8.5 < often[:200].mean() < 11.5, "neither half of the file is preferred"
