"""What people rated: kappas by hand, ratings that find their answers, and how far a judge agrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.evaluation.rater_agreement import rater_agreement
from tuneful.evaluation.ratings import (
    MatchedRatings,
    RatedPair,
    in_words,
    judge_agreement,
    match_ratings,
    preference_ratios,
    summarise_ratings,
    text_sha256,
)
from tuneful.runs.schema import PreferredAnswer, RaterAgreement, RatingRow


def agreed(*items: dict[str, str]) -> RaterAgreement | None:
    return rater_agreement(items, confidence=0.95, num_resamples=2000, seed=0)


def two(*pairs: str) -> list[dict[str, str]]:
    return [{"ada": pair[0], "bob": pair[1]} for pair in pairs]


def test_cohens_kappa_by_hand() -> None:
    # Cohen's own table shape: 20 + 15 of 50 agree, 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa 0.4.
    found = agreed(*two(*["yy"] * 20, *["yn"] * 5, *["ny"] * 10, *["nn"] * 15))
    assert found is not None
    assert (found.statistic, found.num_items, found.share) == ("Cohen's kappa", 50, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.low is not None
    assert found.high is not None
    # The analytic error (Fleiss, Cohen & Everitt 1969) is near 0.127: 0.15 to 0.65.
    assert found.low == pytest.approx(0.15, abs=0.06)
    assert found.high == pytest.approx(0.65, abs=0.06)


def test_fleiss_kappa_by_hand() -> None:
    # Three raters, three items: all agree on two of them, two of three on one: P = (1 + 1 + 1/3) / 3 = 7/9.
    # Shares of categories: y 5/9, n 4/9: chance 41/81. kappa = (63 - 41) / (81 - 41) = 0.55.
    found = agreed({"a": "y", "b": "y", "c": "y"}, {"a": "n", "b": "n", "c": "n"}, {"a": "y", "b": "y", "c": "n"})
    assert found is not None
    assert found.statistic == "Fleiss' kappa"
    assert found.share == pytest.approx(7 / 9)
    assert found.kappa == pytest.approx(0.55)


def test_raters_may_be_missing_and_items_with_one_rating_count_nowhere() -> None:
    whole = agreed({"a": "y", "b": "y"}, {"b": "n", "c": "n"}, {"a": "y", "c": "n"})
    more = agreed({"a": "y", "b": "y"}, {"b": "n", "c": "n"}, {"a": "y", "c": "n"}, {"a": "n"}, {})
    assert whole == more
    assert whole is not None
    assert whole.num_items == 3
    assert agreed({"a": "y"}, {"b": "n"}) is None
    assert agreed() is None


def test_where_everything_is_rated_alike_there_is_no_kappa() -> None:
    found = agreed(*two("yy", "yy", "yy"))
    assert found is not None
    assert (found.share, found.kappa, found.low, found.high) == (1.0, None, None, None)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), min_size=2), min_size=2, max_size=12))
def test_kappa_lies_in_its_interval_and_names_mean_nothing(items: list[dict[str, str]]) -> None:
    found = rater_agreement(items, confidence=0.9, num_resamples=50, seed=0)
    other = [{rater.upper(): value * 2 for rater, value in item.items()} for item in items]
    assert found == rater_agreement(other, confidence=0.9, num_resamples=50, seed=0)
    assert found is not None
    if found.kappa is not None and found.low is not None and found.high is not None:
        assert -1 <= found.low <= found.kappa <= found.high <= 1


def row(source: str, rater: str, preference: PreferredAnswer, a: str = "base", b: str = "tuned") -> RatingRow:
    """What stood first was `a`."""
    return RatingRow(source, rater, "x", "y", preference, "a", "", "2026-11-30", text_sha256(a), text_sha256(b))


PAIR = RatedPair(("t:1",), "base", "tuned")


def test_a_rating_finds_its_texts_whichever_way_round_they_are_compared() -> None:
    rows = [row("t:1", "ada", "b"), row("t:1", "bob", "a", a="tuned", b="base"), row("t:1", "cem", "tie")]
    straight = match_ratings(rows, [PAIR])
    turned = match_ratings(rows, [RatedPair(("t:1",), "tuned", "base")])
    assert straight.by_item == ({"ada": "tuned", "bob": "tuned", "cem": "tie"},)
    assert turned.by_item == ({"ada": "base", "bob": "base", "cem": "tie"},)
    assert straight.shares() == [pytest.approx(5 / 6)]
    assert straight.majority() == ["tuned"]
    assert turned.majority() == ["base"]
    assert straight.first_preferred == (False, True)


def test_ratings_of_other_texts_or_other_records_are_counted_and_left_out() -> None:
    rows = [row("t:1", "ada", "b"), row("t:1", "bob", "b", b="tuned later"), row("t:2", "cem", "b")]
    matched = match_ratings(rows, [PAIR])
    people = summarise_ratings(matched, (), 0.95, 100, 0)
    assert people is not None
    assert (people.num_ratings, people.num_left_out, people.num_items, people.num_raters) == (1, 2, 1, 1)
    assert people.tuned_preferred + people.base_preferred + people.ties + people.both_bad == people.num_ratings
    assert "Left out: 2 ratings of other answers than these." in in_words(people, 0.95, ("before", "after"))
    assert summarise_ratings(match_ratings([], [PAIR]), (), 0.95, 100, 0) is None


def test_preferences_are_shares_of_the_rated_items_alone() -> None:
    base, tuned = preference_ratios(MatchedRatings(({"a": "tuned", "b": "both_bad"}, {}, {"a": "base"})))
    assert base.value() == pytest.approx(0.625)
    assert tuned.value() == pytest.approx(0.375)


def test_a_judge_is_held_against_the_majority() -> None:
    matched = MatchedRatings(({"a": "tuned"}, {"a": "base"}, {"a": "tuned", "b": "base"}, {"a": "base"}, {}))
    found = judge_agreement(matched, [5.0, -3.0, 0.0, 1.0, 9.0], confidence=0.95, num_resamples=100, seed=0)
    assert found is not None
    assert (found.statistic, found.num_items, found.share) == ("Cohen's kappa", 4, 0.75)
    assert judge_agreement(matched, [None] * 5, confidence=0.95, num_resamples=100, seed=0) is None
