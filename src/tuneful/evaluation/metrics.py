"""Metrics of one answer against one reference: exact match, token F1, ROUGE-L and chrF, without a judge and without a network.

Answers come from generation, references from the test set; `compare.py` takes the scores of two models from here. The trade: all
four look at the surface of the text only, so a right answer in other words scores low; they cost about ten milliseconds for a
thousand words, never fail, and are the same number everywhere. They rank two models on the same items; they do not grade one
answer.

ROUGE-L and chrF agree with the `rouge-score` and `sacrebleu` packages wherever those are meaningful (the tests compare
them); neither is imported. Where they are not, as rouge-score on Arabic or Chinese, our own Unicode tokens stand in.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from tuneful.runs.schema import AnswerScores

CHRF_MAX_ORDER = 6
CHRF_BETA = 2

_QUOTES = "\"'`‘’‚“”„«»‹›「」『』"
_OPENING = _QUOTES + "¿¡"
_CLOSING = _QUOTES + ".,;:!?。、،؛؟۔।॥"

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ZERO_WIDTH_SPACE = "\u200b"  # Thai and Khmer mark word boundaries with it; every other format character is invisible

# Letters of scripts that are written without spaces between words: each is a token of its own.
_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3000, 0x31FF),  # kana, bopomofo
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, extensions
)


def score_answer(
    text: str,
    reference: str,
    *,
    ended: bool | None,
    reference_nll: float | None = None,
    reference_tokens: int | None = None,
    judge_score: float | None = None,
) -> AnswerScores:
    """Every score of one answer; `reference_nll` (nats, summed over `reference_tokens` tokens) comes from the model.

    What the model thought before (up to </think>) is no part of the answer, unless the reference has a thought, too.
    """
    text = without_thought(text, reference)
    assert (reference_nll is None) == (reference_tokens is None), "a likelihood is of a number of tokens"
    if reference_nll is not None and reference_tokens is not None:
        assert math.isfinite(reference_nll), f"log likelihood of a reference: {reference_nll}"
        assert reference_tokens > 0, f"a reference of {reference_tokens} tokens has no likelihood"
    assert judge_score is None or 0 <= judge_score <= 100, judge_score
    scores = AnswerScores(
        exact_match=exact_match(text, reference),
        token_f1=token_f1(text, reference),
        rouge_l=rouge_l(text, reference),
        chrf=chrf(text, reference),
        ended=ended,
        num_words=len(word_tokens(text)),
        reference_nll=reference_nll,
        reference_tokens=reference_tokens,
        reference_words=len(word_tokens(reference)),
        judge_score=judge_score,
    )
    assert all(0 <= value <= 1 for value in (scores.token_f1, scores.rouge_l, scores.chrf)), scores
    return scores


def without_thought(text: str, reference: str) -> str:
    """`text` without what was thought before it (up to </think>), unless the reference has a thought, too."""
    is_thought = "</think>" in text and "</think>" not in reference
    return text.rpartition("</think>")[2].strip() if is_thought else text


def exact_match(text: str, reference: str) -> bool:
    """Whether both are the same text once normalised.

    Normalised: Unicode NFKC, lower case, white space folded to single spaces, and quotes and sentence marks taken off
    both ends. Unlike SQuAD's (Rajpurkar et al. 2016), no article and no inner punctuation is dropped, and signs that
    carry meaning stay: "-5" is not "5", "50%" not "50", "C#" not "C", "[0, 1]" not "(0, 1)", ".5" not "5". A text of
    nothing but marks keeps them, so "?" is not "!". NFKC costs one distinction: "10²" equals "102".
    """
    return without_outer_marks(text) == without_outer_marks(reference)


def without_outer_marks(text: str) -> str:
    """`text` normalised as `exact_match` says."""
    folded = " ".join(_folded(text).split())
    return folded.lstrip(_OPENING + " ").rstrip(_CLOSING + " ") or folded


def token_f1(text: str, reference: str) -> float:
    """F1 of the two bags of words, in 0..1 (as in SQuAD, Rajpurkar et al. 2016, over `word_tokens`).

    Twice the number of shared tokens, repeats counted, over the number of all tokens; symmetric. A text without a word
    ("+", an emoji) is its visible characters. Two empty texts score 1, one empty text scores 0.
    """
    tokens, reference_tokens = _words_or_signs(text), _words_or_signs(reference)
    if not tokens and not reference_tokens:
        return 1.0
    num_shared = sum((Counter(tokens) & Counter(reference_tokens)).values())
    return 2 * num_shared / (len(tokens) + len(reference_tokens))


def rouge_l(text: str, reference: str) -> float:
    """F-measure of ROUGE-L, in 0..1: the longest common subsequence of words, against both lengths (Lin 2004).

    2 * LCS / (words of text + words of reference), the harmonic mean of LCS precision and recall; symmetric. Equal to
    `rouge-score`'s `rougeL` without stemmer on ASCII text, 0 for a text without a word included. That package keeps
    a-z and 0-9 only, so it scores other scripts on what little is left of them; here they are scored on `word_tokens`.
    """
    words, reference_words = word_tokens(text), word_tokens(reference)
    if not words or not reference_words:
        return 0.0
    return 2 * _lcs_length(words, reference_words) / (len(words) + len(reference_words))


def chrf(text: str, reference: str) -> float:
    """Sentence-level chrF2, in 0..1 (Popović 2015): F-score, beta 2, of character n-grams of order 1 to 6.

    Precision and recall are averaged over the orders for which both texts are long enough, and recall counts
    beta squared = 4 times: not symmetric. White space is removed, case kept. Equal to `sacrebleu`'s
    `CHRF().sentence_score(text, [reference]).score / 100`, 0 for an empty text included.
    """
    characters, reference_characters = "".join(text.split()), "".join(reference.split())
    num_orders = min(CHRF_MAX_ORDER, len(characters), len(reference_characters))
    precision = recall = 0.0
    for order in range(1, num_orders + 1):
        ngrams, reference_ngrams = _ngrams(characters, order), _ngrams(reference_characters, order)
        num_shared = sum(min(count, reference_ngrams[ngram]) for ngram, count in ngrams.items())
        precision += num_shared / (len(characters) - order + 1) / num_orders
        recall += num_shared / (len(reference_characters) - order + 1) / num_orders
    if precision + recall == 0:
        return 0.0
    factor = CHRF_BETA**2
    return min(1.0, (1 + factor) * precision * recall / (factor * precision + recall))


def word_tokens(text: str) -> list[str]:
    """The words of `text`: runs of letters, digits and their combining marks, NFKC, lower-cased; all else separates.

    On ASCII text this is `[a-z0-9]+`, the tokens of rouge-score. Scripts without spaces (Chinese, Japanese, Thai, Lao,
    Burmese, Khmer) are cut into letters, marks attached. Invisible format characters (joiners, soft hyphens) vanish.

        "Don't: 東京タワー 3x"  ->  don t 東 京 タ ワ ー 3x
    """
    folded = _folded(text)
    return _ASCII_WORD.findall(folded) if folded.isascii() else list(_unicode_words(folded))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _words_or_signs(text: str) -> list[str]:
    return word_tokens(text) or list("".join(_folded(text).split()))


def _unicode_words(folded: str) -> Iterator[str]:
    word = ""
    for character in folded:
        category = unicodedata.category(character)
        if category == "Cf" and character != _ZERO_WIDTH_SPACE:
            continue
        if category[0] == "M":  # a mark belongs to the letter before it; behind a sign it is part of the sign
            word += character if word else ""
            continue
        starts_anew = category[0] not in "LN" or is_unspaced(character) or (word and is_unspaced(word[0]))
        if starts_anew and word:
            yield word
            word = ""
        if category[0] in "LN":
            word += character
    if word:
        yield word


def is_unspaced(character: str) -> bool:
    """Whether `character` is a letter of a script that is written without spaces between words."""
    code = ord(character)
    return (
        code >= _UNSPACED_RANGES[0][0]
        and any(first <= code <= last for first, last in _UNSPACED_RANGES)
        and not character.isdecimal()
    )


def _lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one big-integer step a token of `second` (Hyyrö 2004).

    Bit i of `unmatched` is 0 where the LCS grows at first[i]: a whole row of the classical table in one Python int, so
    1,000 x 1,000 words take a millisecond or less where the table would take hundreds.
    """
    positions: dict[str, int] = {}
    for i, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << i
    row = (1 << len(first)) - 1
    unmatched = row
    for token in second:
        matches = unmatched & positions.get(token, 0)
        unmatched = ((unmatched + matches) | (unmatched - matches)) & row
    return len(first) - unmatched.bit_count()


def _ngrams(characters: str, order: int) -> Counter[str]:
    return Counter(characters[i : i + order] for i in range(len(characters) - order + 1))
