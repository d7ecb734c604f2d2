"""Evaluations and sample answers take their share of a training's time, whatever it is of, and come as they would again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.engine import random_records, train_config

from tuneful.train.schedule import TOKENS_A_GENERATED_TOKEN, Schedule, schedule_of

TRAIN, VALIDATION = random_records(40), random_records(8, seed=1)


def schedule(num_steps: int, sample_tokens: int = 8, **changes: object) -> Schedule:
    return schedule_of(train_config(**changes), num_steps, TRAIN, VALIDATION, sample_tokens)


def test_an_ordinary_run_is_evaluated_ten_times() -> None:
    found = schedule(100, batch_size=8)
    assert found.interval == 10
    assert found.steps() == list(range(0, 101, 10))


def test_a_short_run_is_not_evaluated_at_every_step() -> None:
    assert schedule(12, batch_size=1).interval > 4
    assert schedule(12, batch_size=1, eval_steps=1).steps() == list(range(13))
    assert schedule(12, batch_size=1, eval_share=1).interval < schedule(12, batch_size=1).interval


@given(
    num_steps=st.integers(1, 200),
    batch_size=st.integers(1, 16),
    share=st.floats(0.01, 1),
    sample_tokens=st.integers(1, 300),
    eval_steps=st.none() | st.integers(1, 50),
)
def test_shares_are_kept_to_but_for_the_first_and_the_last(
    num_steps: int, batch_size: int, share: float, sample_tokens: int, eval_steps: int | None
) -> None:
    found = schedule(
        num_steps, sample_tokens, batch_size=batch_size, eval_share=share, sample_share=share, eval_steps=eval_steps
    )
    steps, trained = found.steps(), num_steps * found.tokens_a_step
    assert (steps[0], steps[-1]) == (0, num_steps)
    validated = sum(map(len, VALIDATION)) / 3
    if eval_steps is None:
        assert (len(steps) - 2) * validated <= share * trained * 1.01
    samples = [step for step in steps if found.has_sample(step)]
    assert samples[-1] == num_steps
    assert (len(samples) - 1) * TOKENS_A_GENERATED_TOKEN * sample_tokens <= share * trained * 1.01


def test_without_a_share_there_is_no_sample_at_all() -> None:
    found = schedule(20, sample_share=0)
    assert not any(map(found.has_sample, found.steps()))
