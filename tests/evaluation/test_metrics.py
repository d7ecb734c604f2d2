"""Surface metrics: equal to the field's packages where those are meaningful, exact by hand elsewhere."""

from __future__ import annotations

import math
import random
import string
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneful.evaluation.metrics import chrf, exact_match, rouge_l, score_answer, token_f1, word_tokens
from tuneful.runs.schema import AnswerScores

METRICS = (token_f1, rouge_l, chrf)

PAIRS = [
    ("The cat sat on the mat.", "The cat is on the mat."),
    ("Paris", "The capital of France is Paris."),
    ("The capital of France is Paris.", "Paris"),
    ("one two three four", "four three two one"),
    ("a a a b", "a b b b"),
    ("", "something"),
    ("something", ""),
    ("", ""),
    ("!?", "!?"),
    ("snake_case and don't", "snake case and dont"),
    ("1. First\n2. Second\n\t3. Third", "First, second, third."),
    ("x" * 50, "x" * 3),
    ("Die Straße ist schön.", "Die Strasse ist schön!"),
    ("東京は日本の首都です", "日本の首都は東京です"),
]

# Few letters, so that words, n-grams and subsequences often agree; all of ASCII, so that nothing is left out.
few_letters = st.text(alphabet="abAB _.,'1\n", max_size=60)
ascii_text = st.one_of(few_letters, st.text(alphabet=string.printable, max_size=80))
any_text = st.one_of(
    ascii_text, st.text(max_size=40), st.text(alphabet="東京 สวัดี مرحبا हिन्दी é\u200d❤\ufe0f", max_size=30)
)


@pytest.fixture(scope="module")
def rouge_score() -> Callable[[str, str], float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk and absl warn on import
        from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return lambda text, reference: scorer.score(reference, text)["rougeL"].fmeasure


@pytest.fixture(scope="module")
def sacrebleu_chrf() -> Callable[[str, str], float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sacrebleu.metrics import CHRF
    scorer = CHRF()
    return lambda text, reference: scorer.sentence_score(text, [reference]).score / 100


@settings(deadline=None)
@given(ascii_text, ascii_text)
def test_rouge_l_is_that_of_rouge_score_on_ascii(
    rouge_score: Callable[[str, str], float], text: str, reference: str
) -> None:
    assert rouge_l(text, reference) == pytest.approx(rouge_score(text, reference), abs=1e-12)


@pytest.mark.parametrize(("text", "reference"), [pair for pair in PAIRS if "".join(pair).isascii()])
def test_rouge_l_is_that_of_rouge_score_on_written_pairs(
    rouge_score: Callable[[str, str], float], text: str, reference: str
) -> None:
    assert rouge_l(text, reference) == pytest.approx(rouge_score(text, reference), abs=1e-12)


@settings(deadline=None)
@given(any_text, any_text)
def test_chrf_is_that_of_sacrebleu(sacrebleu_chrf: Callable[[str, str], float], text: str, reference: str) -> None:
    assert chrf(text, reference) == pytest.approx(sacrebleu_chrf(text, reference), abs=1e-9)


@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_chrf_is_that_of_sacrebleu_on_written_pairs(
    sacrebleu_chrf: Callable[[str, str], float], text: str, reference: str
) -> None:
    assert chrf(text, reference) == pytest.approx(sacrebleu_chrf(text, reference), abs=1e-9)


@settings(deadline=None)
@given(any_text, any_text)
def test_scores_lie_between_0_and_1(text: str, reference: str) -> None:
    for metric in METRICS:
        assert 0 <= metric(text, reference) <= 1


@settings(deadline=None)
@given(any_text, any_text)
def test_token_f1_rouge_l_and_exact_match_are_symmetric(text: str, other: str) -> None:
    for metric in (token_f1, rouge_l, exact_match):
        assert metric(text, other) == metric(other, text)


@settings(deadline=None)
@given(any_text, any_text)
def test_rouge_l_is_never_above_token_f1(text: str, reference: str) -> None:
    assert rouge_l(text, reference) <= token_f1(text, reference)


@settings(deadline=None)
@given(any_text)
def test_a_text_beside_itself_scores_1(text: str) -> None:
    assert exact_match(text, text)
    assert token_f1(text, text) == 1
    assert rouge_l(text, text) == (1 if word_tokens(text) else 0)
    assert chrf(text, text) == pytest.approx(1 if text.split() else 0, abs=1e-12)


def test_chrf_is_not_symmetric_since_recall_counts_four_times() -> None:
    # Order 1: precision 1/1, recall 1/2; only order 1 fits both: 5 P R / (4 P + R) = 2.5 / 4.5.
    assert chrf("a", "ab") == pytest.approx(5 / 9)
    assert chrf("ab", "a") == pytest.approx(2.5 / 3)


def test_token_f1_by_hand() -> None:
    assert token_f1("the cat sat", "the cat") == pytest.approx(2 * 2 / 5)
    assert token_f1("b a", "A, B!") == 1
    assert token_f1("a a a b", "a b b b") == pytest.approx(2 * 2 / 8)
    assert token_f1("cat", "dog") == 0


def test_token_f1_of_empty_texts() -> None:
    assert token_f1("", "") == 1
    assert token_f1(" \n", "") == 1
    assert token_f1("", "a") == token_f1("a", "") == 0


def test_texts_without_words_are_compared_by_their_signs() -> None:
    assert token_f1("+", "-") == 0
    assert token_f1("+", "+") == 1
    assert token_f1("😀", "😢") == 0
    assert token_f1("😀 😢", "😢") == pytest.approx(2 / 3)


def test_rouge_l_by_hand() -> None:
    # "police killed the gunman" / "police kill the gunman" / "the gunman kill police", the example of Lin 2004.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert rouge_l("one two three four", "four three two one") == pytest.approx(1 / 4)
    assert rouge_l("a x b y c", "a b c") == pytest.approx(2 * 3 / 8)


def _lcs_by_table(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        above = row[:]
        for j, b in enumerate(second):
            row[j + 1] = above[j] + 1 if a == b else max(above[j + 1], row[j])
    return row[-1]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1), st.lists(st.sampled_from("abcd"), min_size=1))
def test_the_bit_parallel_subsequence_is_as_long_as_the_tables(first: list[str], second: list[str]) -> None:
    expected = 2 * _lcs_by_table(first, second) / (len(first) + len(second))
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


def test_a_thousand_words_are_scored_fast() -> None:
    words = random.Random(0)
    text, reference = (" ".join(words.choice("abcdefghij") * 3 for _ in range(1000)) for _ in range(2))
    started = time.perf_counter()
    rouge_l(text, reference)
    assert time.perf_counter() - started < 0.2  # about a millisecond; a table of Python cells takes longer than this


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Paris", " paris.\n"),
        ('"Paris."', "Paris"),
        ("¿Qué?", "qué"),
        ("«Париж»", "париж"),
        ("two  words", "Two\twords"),
        ("ＡＢＣ！", "abc"),
        ("cafe\u0301", "café"),
        ("東京。", "東京"),
        ("نعم؟", "نعم"),
    ],
)
def test_case_white_space_and_outer_marks_do_not_matter_to_an_exact_match(text: str, reference: str) -> None:
    assert exact_match(text, reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("-5", "5"),
        ("50%", "50"),
        (".5", "5"),
        ("C#", "C"),
        ("[0, 1]", "(0, 1)"),
        ("?", "!"),
        ("", "."),
        ("the cat", "cat"),
        ("1,000", "1000"),
    ],
)
def test_signs_that_carry_meaning_matter_to_an_exact_match(text: str, reference: str) -> None:
    assert not exact_match(text, reference)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't: 東京タワー 3x", ["don", "t", "東", "京", "タ", "ワ", "ー", "3x"]),
        ("iPhone15を買う", ["iphone15", "を", "買", "う"]),
        ("ﾀﾞ", ["ダ"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("مَرْحَبًا بالعالم، ٢٥", ["مَرْحَبًا", "بالعالم", "٢٥"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("ดี ๒๕", ["ดี", "๒๕"]),
        ("so\u00adft snake_case", ["soft", "snake", "case"]),
        ("I ❤\ufe0f it", ["i", "it"]),
        ("naïve Straße", ["naïve", "straße"]),
        ("İstanbul", ["i̇stanbul"]),
        ("\u200b \n", []),
    ],
)
def test_words_are_cut_as_each_script_writes_them(text: str, tokens: list[str]) -> None:
    assert word_tokens(text) == tokens


@settings(deadline=None)
@given(ascii_text)
def test_ascii_words_are_cut_alike_alone_and_beside_other_scripts(text: str) -> None:
    assert word_tokens(text + " ü") == [*word_tokens(text), "ü"]


def test_scripts_that_rouge_score_cannot_see_are_scored(rouge_score: Callable[[str, str], float]) -> None:
    chinese = ("日本的首都是东京", "东京是日本的首都")
    arabic = ("عاصمة فرنسا هي باريس", "باريس هي عاصمة فرنسا")
    assert rouge_score(*chinese) == rouge_score(*arabic) == 0
    assert rouge_l(*chinese) == pytest.approx(5 / 8)  # 日本的首都
    assert rouge_l(*arabic) == pytest.approx(2 / 4)  # the two words "capital (of) France"
    assert token_f1(*chinese) == token_f1(*arabic) == 1


def test_an_answer_is_scored_in_full() -> None:
    scores = score_answer("The cat sat.", "the cat", ended=True, reference_nll=3.5, reference_tokens=2)
    assert scores == AnswerScores(
        exact_match=False,
        token_f1=4 / 5,
        rouge_l=4 / 5,
        chrf=chrf("The cat sat.", "the cat"),
        ended=True,
        num_words=3,
        reference_nll=3.5,
        reference_tokens=2,
        reference_words=2,
    )


@pytest.mark.parametrize(
    "broken", [{"reference_nll": math.nan}, {"reference_nll": math.inf}, {"reference_tokens": 0}], ids=str
)
def test_a_likelihood_that_is_no_number_is_our_mistake(broken: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        score_answer("a", "a", **{"ended": True, "reference_nll": 1.0, "reference_tokens": 1, **broken})


@settings(max_examples=30, deadline=None)
@given(any_text, any_text)
def test_any_two_texts_have_scores(text: str, reference: str) -> None:
    score_answer(text, reference, ended=False, reference_nll=0.0, reference_tokens=1)
