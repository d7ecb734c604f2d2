"""Long wording that many prompts share is taken off before they are compared, and nothing else is."""

import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneful.data import windows
from tuneful.data.duplicates import Sketches, normal_text
from tuneful.data.wording import ALTERED, SHARED, shared_parts

REVIEW = (
    "You are a careful annotator for a boating magazine. Read the review below and say whether its author was pleased or "
    "displeased with the place. Answer with a single word, positive or negative, and do not explain yourself. Review: "
)
LOG = (
    "Below is the log of a ship. Summarise what happened for the owner, who has no time and wants to know only what cost "
    "money or will cost money, in at most two sentences. Log: "
)
SENTENCE = (
    "Put the sentence into German, keep its tone, keep names as they are, and add nothing that is not in it. Sentence: "
)
CHINESE = (
    "请仔细阅读下面的评论，判断作者对这个地方是满意还是不满意，只用一个词回答，不要解释，"
    "不要重复评论的内容，只看他对服务和环境的评价。评论："
)
ADJECTIVES = [
    "quiet",
    "clean",
    "broken",
    "sunny",
    "old",
    "green",
    "salty",
    "crowded",
    "narrow",
    "shiny",
    "wooden",
    "rusty",
]
NOUNS = ["buoy", "jetty", "pier", "boat", "harbour", "sail", "anchor", "rope", "deck", "galley", "cabin", "mast"]
WORDS = [
    *ADJECTIVES,
    *NOUNS,
    "was",
    "saw",
    "kept",
    "lost",
    "found",
    "sold",
    "liked",
    "the",
    "and",
    "of",
    "with",
    "before",
]
SHORT = [f"A {adjective} {noun}." for adjective in ADJECTIVES for noun in NOUNS]


def asked(*parts: str) -> str:
    """The normal prompt of one instruction without a system text and an input."""
    return "\n" + normal_text(" ".join(parts)) + "\n"


def sentences(num: int, num_words: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choice(WORDS) for _ in range(num_words)) for _ in range(num)]


def num_different(texts: list[str]) -> int:
    return len(set(Sketches(texts).clusters().tolist()))


@pytest.mark.parametrize(
    ("before", "after"),
    [(REVIEW, ""), ("", LOG), (REVIEW, LOG), (SENTENCE, REVIEW)],
    ids=["before", "after", "around", "around, long after"],
)
@pytest.mark.parametrize("fillings", [SHORT, WORDS, list(string.ascii_lowercase)], ids=["phrases", "words", "letters"])
def test_what_is_filled_into_one_wording_tells_prompts_apart(before: str, after: str, fillings: list[str]) -> None:
    assert num_different([asked(before, one, after) for one in fillings]) == len(fillings)


def test_the_wording_by_itself_is_one_prompt_more() -> None:
    assert num_different([asked(REVIEW, one) for one in ["", *SHORT]]) == len(SHORT) + 1


@pytest.mark.parametrize("num", [5, 8, 12, 30])
def test_a_small_file_of_one_wording_is_as_many_prompts(num: int) -> None:
    assert num_different([asked(REVIEW, one) for one in SHORT[::3][:num]]) == num


def test_several_wordings_beside_free_prompts_are_told_apart() -> None:
    chance = random.Random(1)
    texts = [asked(chance.choice([REVIEW, LOG, SENTENCE]), one) for one in SHORT] + [
        asked(one) for one in sentences(150, 12)
    ]
    chance.shuffle(texts)
    assert num_different(texts) == len(texts)


def test_one_filling_under_three_wordings_is_three_prompts() -> None:
    texts = [asked(before, one) for one in SHORT[:60] for before in (REVIEW, LOG, SENTENCE)]
    assert num_different(texts) == len(texts)


def test_a_wording_within_a_wording_is_taken_off_with_it() -> None:
    preamble = (
        "Below is an instruction that describes a task. Write a response that completes the request, and be as helpful, honest "
        "and short as you can be. Instruction: "
    )
    texts = [asked(preamble, REVIEW, one) for one in SHORT]
    texts += [asked(preamble, one) for one in dict.fromkeys(sentences(80, 4, seed=3))]
    assert num_different(texts) >= len(texts) - 2  # four words in another order are the same five-character stretches


def test_all_values_of_two_places_are_different_prompts() -> None:
    texts = [
        asked(
            "You are a critic who writes for a weekly paper and has eaten in many places. Describe a",
            adjective,
            "restaurant in a few warm sentences, without naming a price or a person, for readers who live near the",
            noun,
            "and end with a question.",
        )
        for adjective in ADJECTIVES
        for noun in NOUNS
    ]
    assert num_different(texts) == len(texts)


def test_a_script_without_spaces_is_compared_by_what_differs_too() -> None:
    characters = sorted(set(CHINESE) - set("，。："))
    chance = random.Random(2)
    fillings = list(dict.fromkeys("".join(chance.choice(characters) for _ in range(6)) for _ in range(100)))
    assert num_different([asked(CHINESE, one) for one in fillings]) == len(fillings)
    long = ["".join(chance.choice(characters) for _ in range(80)) for _ in range(60)]
    copies = [f"{one[:40]}丂{one[41:]}" for one in long[:20]]
    assert num_different([asked(CHINESE, one) for one in [*long, *copies]]) == len(long)


def test_near_copies_of_what_is_filled_in_are_found_as_they_are_without_the_wording() -> None:
    long = sentences(200, 22)
    copies = [f"{one[:60]}q{one[61:]}" for one in long[:40]]
    for before, after in (("", ""), (REVIEW, ""), (REVIEW, LOG)):
        clusters = Sketches([asked(before, one, after) for one in [*long, *copies]]).clusters()
        assert clusters.tolist() == [*range(200), *range(40)], before


def test_a_change_of_the_wording_is_no_other_prompt() -> None:
    chance = random.Random(4)
    texts = [asked(REVIEW, one) for one in SHORT]
    copies = []
    for row in range(0, len(SHORT), 6):
        words = REVIEW.split()
        words[chance.randrange(4, len(words) - 4)] = "xquux"
        copies.append((row, asked(" ".join(words), SHORT[row])))
    clusters = Sketches([*texts, *(text for _, text in copies)]).clusters()
    assert clusters[: len(texts)].tolist() == list(range(len(texts)))
    found = sum(clusters[len(texts) + number] == row for number, (row, _) in enumerate(copies))
    assert found >= 0.9 * len(copies)


def test_a_changed_instruction_with_the_same_input_is_no_other_prompt() -> None:
    texts = [f"\n{normal_text(REVIEW)}\n{normal_text(one)}" for one in SHORT]
    copies = [text.replace("careful annotator", "careful anotator") for text in texts[:40]]
    assert Sketches([*texts, *copies]).clusters().tolist() == [*range(len(texts)), *range(40)]


def test_many_copies_of_one_prompt_with_a_word_changed_each_stay_one_prompt() -> None:
    base = sentences(1, 40)[0].split()
    copies = [" ".join([*base[:at], "xquux", *base[at + 1 :]]) for at in range(5, 35)]
    texts = [asked(one) for one in [*sentences(150, 30, seed=5), " ".join(base), *copies]]
    assert num_different(texts) == 151


def test_chats_are_told_apart_by_the_turn_that_differs() -> None:
    system, last = normal_text(LOG), normal_text("Thanks, that is all I wanted to know.")
    turns = sentences(300, 24)
    chats = [f"{system}\nhello\n\n{turn}\n\n{last}\n" for turn in turns]
    copies = [chat.replace(turn, f"{turn[:50]}q{turn[51:]}") for chat, turn in zip(chats[:50], turns, strict=False)]
    assert Sketches([*chats, *copies]).clusters().tolist() == [*range(300), *range(50)]


def test_the_order_of_the_rows_changes_neither_wording_nor_prompts() -> None:
    texts = [asked(before, one) for before in (REVIEW, LOG) for one in SHORT] + [
        asked(one) for one in sentences(60, 12)
    ]
    order = random.Random(6).sample(range(len(texts)), len(texts))
    shuffled = [texts[index] for index in order]
    one, other = (shared_parts(rows, np.ones(len(rows), np.bool_)) for rows in (texts, shuffled))
    assert [one.of(index) for index in order] == [other.of(place) for place in range(len(order))]
    assert num_different(texts) == num_different(shuffled) == len(texts)


def test_copies_do_not_make_wording() -> None:
    texts = [asked(REVIEW, "A quiet buoy.")] * 40 + [asked(one) for one in sentences(20, 12)]
    sketches = Sketches(texts)
    assert sketches.parts(0) == []
    assert sketches.clusters().tolist() == [0] * 40 + list(range(40, 60))


def test_batches_are_no_seam_of_the_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [asked(REVIEW, one) for one in SHORT]
    distinct = np.ones(len(texts), np.bool_)
    whole = [shared_parts(texts, distinct).of(index) for index in range(len(texts))]
    monkeypatch.setattr(windows, "BATCH_CHARACTERS", 1000)
    assert [shared_parts(texts, distinct).of(index) for index in range(len(texts))] == whole
    assert all(parts for parts in whole)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab 1é字\n\ud800", max_size=90), max_size=30),
    st.lists(st.text(alphabet="xy z字", max_size=20), max_size=30),
)
def test_parts_rise_lie_in_lines_and_never_touch_what_few_share(free: list[str], fillings: list[str]) -> None:
    texts = [*free, *(f"\n{REVIEW.lower()}{one}\n" for one in fillings)]
    found = shared_parts(texts, np.ones(len(texts), np.bool_))
    for index, text in enumerate(texts):
        at = 0
        for start, end, kind in found.of(index):
            assert at <= start < end <= len(text)
            assert kind in (SHARED, ALTERED)
            assert "\n" not in text[start:end]
            at = end
        assert len(found.common_lines(index)) == text.count("\n") + 1
    if len(texts) < 4:
        assert not any(found.of(index) for index in range(len(texts)))
