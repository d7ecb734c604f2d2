"""Texts that say the same are found, exactly and nearly, and nothing else is."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.duplicates import Sketches, normal_text

WORDS = [
    "amber",
    "basket",
    "candle",
    "dragon",
    "ember",
    "forest",
    "garden",
    "harbor",
    "island",
    "jungle",
    "kettle",
    "lantern",
    "meadow",
    "needle",
    "orchard",
]


def jaccard(one: str, other: str) -> float:
    """The definition, written again: stretches of five characters that two lines have in common."""
    sets = []
    for line in (one, other):
        padded = f" {line} " + " " * max(0, 3 - len(line))
        sets.append({padded[at : at + 5] for at in range(len(padded) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def sentence(chance: random.Random, num_words: int = 14) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(num_words))


def changed(chance: random.Random, text: str) -> str:
    words = text.split()
    words[chance.randrange(len(words))] = chance.choice(WORDS)
    return " ".join(words)


def test_case_space_punctuation_and_character_form_are_no_difference() -> None:
    base = normal_text("What is 2 apples, Über?")
    for same in ("what  is\n2 apples über", "ＷＨＡＴ is 2 apples U\u0308BER", "“What” is 2 apples\u200b – über!"):
        assert normal_text(same) == base
    for other in ("What is 3 apples, Über?", "What is 2 apples, Uber?", "What is 2 apple s, Über?"):
        assert normal_text(other) != base


def test_what_carries_meaning_stays() -> None:
    families = [
        ["Hello in C", "Hello in C++", "Hello in C#"],
        ["5 + 3", "5 - 3", "5 * 3", "5 / 3", "-5 / 3"],
        ["What does 😀 mean?", "What does 😭 mean?"],
        ["?", "!", ""],
    ]
    for family in families:
        assert len({normal_text(text) for text in family}) == len(family)
    assert normal_text("a well-known fact") == normal_text("A well known fact.")


@given(st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=30))
def test_the_short_way_for_ascii_is_the_long_way(text: str) -> None:
    assert normal_text(f"ø {text} ø").removeprefix("ø").removesuffix("ø").strip() in (normal_text(text), "")


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_pairs_are_those_of_all_pairs_compared_one_by_one(threshold: float) -> None:
    chance = random.Random(int(threshold * 10))
    texts = [sentence(chance) for _ in range(60)]
    for _ in range(240):
        texts.append(changed(chance, chance.choice(texts)))
    matches, similarities = Sketches(texts).earliest_matches(threshold)
    expected = {}
    for later in range(len(texts)):
        similar = [earlier for earlier in range(later) if jaccard(texts[earlier], texts[later]) >= threshold]
        if similar:
            expected[later] = similar
    found = {int(row): int(matches[row]) for row in np.flatnonzero(matches >= 0)}
    assert all(earlier in expected[later] for later, earlier in found.items())  # nothing that is not so
    assert len(found) >= 0.97 * len(expected)  # MinHash misses a few at the threshold itself
    for later, earlier in found.items():
        assert similarities[later] == pytest.approx(jaccard(texts[earlier], texts[later]))


def test_a_cluster_is_named_by_its_earliest_member() -> None:
    texts = [
        "name three long rivers of northern europe",
        "tell me a joke",
        "name three long rivers of northern europe",
        "name three long rivers in northern europe",
    ]
    assert Sketches(texts).clusters(0.7).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\nclassify the word as a noun or as a verb and answer with one word\nrun", "walk"),
        ("\nclassify the word as a noun or as a verb and answer with one word\nrun", ""),
        ("\nconvert 45 kilometers to meters and explain every step of the way\n", None),
        ("be brief and answer in english\nname a river\n", "be brief and answer in english\nname a flower\n"),
    ],
)
def test_one_field_or_one_number_that_differs_makes_another_text(one: str, other: str | None) -> None:
    if other is None:
        other = one.replace("45", "46")
    elif "\n" not in other:
        other = one.rsplit("\n", 1)[0] + "\n" + other
    assert Sketches([one, other]).clusters().tolist() == [0, 1]


def test_empty_fields_shift_nothing() -> None:
    """What the finder of the book's chapter 7 gets wrong: rows with empty fields stand between the copies."""
    texts = [
        "\nask a\n",
        "\n\n",
        "\nthe moon is far away from here\n",
        "\n\nonly an input",
        "\n\n",
        "\nthe moon is far away from here\n",
    ]
    assert Sketches(texts).clusters().tolist() == [0, 1, 2, 3, 1, 2]


def test_the_same_words_divided_otherwise_into_fields_are_the_same() -> None:
    assert Sketches(["\nrewrite the chef cooks\n", "\nrewrite\nthe chef cooks"]).clusters().tolist() == [0, 0]


@given(st.lists(st.text(alphabet="abc 1é字\ud800", max_size=12), max_size=30), st.integers(0, 30))
def test_what_comes_later_changes_no_cluster(texts: list[str], num_first: int) -> None:
    whole = Sketches(texts).clusters()
    assert Sketches(texts[:num_first]).clusters().tolist() == whole[:num_first].tolist()
    assert all(cluster <= index and whole[cluster] == cluster for index, cluster in enumerate(whole.tolist()))


def test_a_text_between_two_clusters_joins_the_earlier_and_merges_nothing() -> None:
    left = "amber basket candle dragon ember forest garden harbor island jungle kettle lantern"
    middle = left.replace("basket", "amber")
    right = middle.replace("forest", "orchard")
    assert jaccard(left, right) < 0.7 <= min(jaccard(left, middle), jaccard(middle, right))
    assert Sketches([left, right, middle]).clusters(0.7).tolist() == [0, 1, 0]
    assert Sketches([left, middle, right]).clusters(0.7).tolist() == [0, 0, 0]


def test_the_order_asked_for_decides_what_is_earlier() -> None:
    sketches = Sketches(["tell me a joke", "name a river", "tell me a joke"])
    assert sketches.earliest_matches()[0].tolist() == [-1, -1, 0]
    assert sketches.earliest_matches(order=np.array([2, 1, 0]))[0].tolist() == [2, -1, -1]


def test_batches_are_no_seam() -> None:
    texts = [f"{'long ' * 20_000}text number {index % 7}" for index in range(21)]
    assert Sketches(texts).clusters().tolist() == [index % 7 for index in range(21)]


def test_no_text_is_no_cluster() -> None:
    assert Sketches([]).clusters().tolist() == []
