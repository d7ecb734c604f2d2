"""The order of examples: each once an epoch, and a pure function of seed, epoch and position."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuneful.batch.order import all_steps, derived_seed, epoch_order, mixture_of, num_steps, step_indices

sizes = st.integers(1, 40)


@given(sizes, st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation_of_all_examples(num_examples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_examples, seed, epoch).tolist()
    assert sorted(order) == list(range(num_examples))
    assert order == epoch_order(num_examples, seed, epoch).tolist()


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@given(sizes, st.integers(1, 12), st.integers(0, 3), st.integers(1, 3))
def test_every_example_comes_exactly_once_an_epoch(num_examples: int, batch_size: int, seed: int, epochs: int) -> None:
    steps = list(all_steps(num_examples, batch_size, seed, epochs))
    visited = [index for step in steps for index in step]
    assert len(steps) == num_steps(num_examples, batch_size, epochs)
    assert visited == [index for epoch in range(epochs) for index in epoch_order(num_examples, seed, epoch)]
    assert all(len(step) == batch_size for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch_size


@given(sizes, st.integers(1, 12), st.integers(0, 3), st.integers(1, 20))
def test_max_steps_are_whole_steps_however_many_epochs_they_take(
    num_examples: int, batch_size: int, seed: int, max_steps: int
) -> None:
    steps = list(all_steps(num_examples, batch_size, seed, 0.5, max_steps))
    assert [len(step) for step in steps] == [batch_size] * max_steps
    longer = list(all_steps(num_examples, batch_size, seed, 2, max_steps + 5))
    assert longer[:max_steps] == steps


@given(sizes, st.integers(1, 12), st.integers(0, 3), st.integers(1, 30))
def test_a_step_needs_no_other_to_be_known(num_examples: int, batch_size: int, seed: int, step: int) -> None:
    *_, last = all_steps(num_examples, batch_size, seed, 1, step)
    assert step_indices(num_examples, batch_size, seed, step) == last


def test_shares_of_an_epoch_are_rounded_up_to_whole_examples_and_no_further() -> None:
    assert [len(step) for step in all_steps(100, 7, 0, 0.07)] == [7]  # 0.07 * 100 is a little more than 7
    assert [len(step) for step in all_steps(10, 4, 0, 0.25)] == [3]
    assert [len(step) for step in all_steps(10, 4, 0, 1.5)] == [4, 4, 4, 3]
    assert num_steps(1000, 8, 0.001) == 1


def test_a_step_over_the_end_of_an_epoch_takes_from_both() -> None:
    steps = list(all_steps(5, 3, 0, 2))
    assert [len(step) for step in steps] == [3, 3, 3, 1]
    assert Counter(index for step in steps for index in step) == dict.fromkeys(range(5), 2)


def test_derived_seeds_are_their_own_and_never_change() -> None:
    """Runs of an earlier version go on with the same dropout, and its answers are drawn with the same numbers."""
    seeds = [derived_seed(0, 0), derived_seed(42, 7), derived_seed(2**70, 1)]
    assert seeds == [15793235383387715774, 10473664704035447458, 10590469685863665349]
    assert len({derived_seed(seed, number) for seed in range(30) for number in range(30)}) == 900


shares = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(shares, st.data(), st.integers(0, 3), st.sampled_from(["all_exhausted", "first_exhausted"]))
def test_sources_come_in_their_shares_and_each_example_of_one_as_often_as_another(
    parts: list[int], data: st.DataObject, seed: int, strategy: str
) -> None:
    sizes_ = [data.draw(st.integers(1, 30)) for _ in parts]
    source_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(parts)), sizes_))
    given_ = [part / sum(parts) for part in parts]
    mixture = mixture_of(source_of, given_, strategy)
    epochs = 3
    visited = [index for step in all_steps(mixture, 7, seed, epochs) for index in step]
    assert len(visited) == epochs * len(mixture)
    seen = Counter(visited)
    for source, (share, size, count) in enumerate(zip(given_, sizes_, mixture.counts, strict=True)):
        own = [seen[index] for index in np.flatnonzero(source_of == source).tolist()]
        assert sum(own) == epochs * count
        assert max(own) - min(own) <= 1
        assert abs(count - share * len(mixture)) <= len(parts)
        if strategy == "all_exhausted":
            assert count >= size
        else:
            assert count <= size
    assert any(count == size for size, count in zip(sizes_, mixture.counts, strict=True))


def test_a_share_that_is_no_whole_number_of_examples_is_rounded_so_that_none_comes_twice() -> None:
    source_of = np.repeat([0, 1], 10)
    assert mixture_of(source_of, [3 / 7, 4 / 7], "first_exhausted").counts == (7, 10)
    assert mixture_of(source_of, [3 / 7, 4 / 7], "all_exhausted").counts == (10, 14)


def test_a_mixed_epoch_holds_its_counts_and_a_step_needs_no_other_to_be_known() -> None:
    mixture = mixture_of(np.array([0] * 10 + [1] * 4), [0.5, 0.5], "all_exhausted")
    assert mixture.counts == (10, 10)
    steps = list(all_steps(mixture, 4, 1, 4))
    for epoch in range(4):
        visited = [index for step in steps for index in step][20 * epoch : 20 * (epoch + 1)]
        assert sorted(index for index in visited if index < 10) == list(range(10))
    assert [step_indices(mixture, 4, 1, step) for step in range(1, 21)] == steps
    assert steps != list(all_steps(mixture, 4, 2, 4))
