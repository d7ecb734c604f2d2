"""What each record cost: written down without a forward of its own, and read into lists that find what was planted."""

import numpy as np
import pytest
import torch
from tests.doubles.engine import END, TRIE, random_records, record, tiny_model, train_config

from tuneful.batch.order import all_steps
from tuneful.train.loop import Training, record_nll
from tuneful.train.optimizer import AdamW
from tuneful.train.progress import LossTracker, outlier_scores, rank


def tracker_of(examples, layout=TRIE, **changes):
    model = tiny_model()
    config = train_config(batch_size=3, learning_rate=1e-3, **changes)
    tracker = LossTracker(len(examples))
    list(Training(model, AdamW(model, config, torch.float32), examples, [], config, layout, loss_tracker=tracker).run())
    return tracker, config


def test_the_first_sight_of_the_first_step_is_the_loss_before_training():
    examples = random_records(7)
    tracker, config = tracker_of(examples, num_train_epochs=2)
    untrained = record_nll(tiny_model(), examples, TRIE)
    order = list(all_steps(7, 3, config.seed, 2))
    for index in order[0]:
        assert tracker.first[index] == pytest.approx(untrained[index], rel=1e-5)
    for step, indices in enumerate(order, start=1):
        assert all(tracker.first_step[index] <= step <= tracker.last_step[index] for index in indices)
    assert sorted(tracker.first_step) == [1, 1, 1, 2, 2, 2, 3]
    again = tracker.last_step > tracker.first_step  # a step may span two epochs and hold a record twice
    assert again.sum() >= 5
    assert (tracker.last < tracker.first)[again].all()


def test_a_record_that_was_never_seen_is_known_for_nothing():
    examples = random_records(7)
    tracker, _ = tracker_of(examples, max_steps=1)
    rows = rank(tracker, examples)
    assert sum(row.loss_first is not None for row in rows) == 3
    assert {row.first_step for row in rows} == {0, 1}
    assert all(row.loss_after is None and row.loss_before is None for row in rows)


def test_a_record_that_was_seen_once_is_no_outlier_however_early_that_was():
    examples = random_records(12)
    tracker, _ = tracker_of(examples, num_train_epochs=1)
    assert all(row.outlier_score is None for row in rank(tracker, examples))
    tracker.after[:] = tracker.last  # with a pass after the last step all are at the same weights
    assert all(row.outlier_score is not None for row in rank(tracker, examples))
    twice, _ = tracker_of(examples, num_train_epochs=2)
    assert all(row.outlier_score is not None for row in rank(twice, examples))


def test_those_that_were_seen_again_are_measured_against_each_other_alone():
    examples = random_records(8)
    tracker = LossTracker(8)
    tracker.see(1, range(8), [90.0] * 8)
    tracker.see(2, range(4), [1.0, 1.1, 0.9, 5.0])
    scores = [row.outlier_score for row in rank(tracker, examples)]
    assert scores[4:] == [None] * 4
    assert None not in scores[:4]


def test_a_tracker_goes_on_from_its_state():
    tracker, other = LossTracker(3), LossTracker(3)
    tracker.see(1, [0, 2], [1.5, 0.0])
    state = tracker.state()
    assert all(tensor.isfinite().all() for tensor in state.values())  # a checkpoint holds nothing else
    other.load(state)
    for each in (tracker, other):
        each.see(2, [2, 1], [0.25, 3.0])
    for name, values in vars(tracker).items():
        assert np.array_equal(values, vars(other)[name], equal_nan=True), name
    assert tracker.first.tolist() == [1.5, 3.0, 0.0]
    assert tracker.last.tolist() == [1.5, 3.0, 0.25]


def test_means_are_over_the_targets_of_a_record():
    examples = [record([1, 2], [3, END]), record([1, 3], [4, 5, 6, END])]
    tracker = LossTracker(2)
    tracker.see(4, [0, 1], [6.0, 8.0])
    tracker.after[:] = 0.5, 8.0
    short, long = rank(tracker, examples)
    assert (short.num_targets, short.loss_first, short.loss_after, short.first_step) == (2, 3.0, 0.25, 4)
    assert (long.num_targets, long.loss_first, long.loss_after) == (4, 2.0, 2.0)
    assert (short.memorised, long.memorised) == (True, False)


def test_the_loss_after_training_counts_before_that_at_last_sight():
    tracker = LossTracker(2)
    tracker.see(1, [0, 1], [4.0, 5.0])
    tracker.after[0] = 1.0
    assert tracker.best_known().tolist() == [1.0, 5.0]
    tracker.before[1] = 7.0
    assert tracker.earliest_known().tolist() == [4.0, 7.0]


def test_a_record_is_measured_against_those_that_begin_alike():
    """Records of kind `a` cost 1, of kind `b` 5: the one of `a` that costs 3 stands out, though every `b` costs more."""
    rng = np.random.default_rng(0)
    keys = [b"a%03d" % index for index in range(40)] + [b"b%03d" % index for index in range(40)]
    losses = np.array([1.0] * 40 + [5.0] * 40) + rng.normal(0, 0.1, 80)
    losses[17] = 3.0
    shuffled = rng.permutation(80)
    found = outlier_scores(losses[shuffled], [keys[index] for index in shuffled])
    assert shuffled[np.argmax(found)] == 17
    losses[5] = np.nan
    found = outlier_scores(losses, keys)
    assert np.isnan(found[5])
    assert np.argmax(np.nan_to_num(found)) == 17


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 2.0], [np.nan] * 5])
def test_too_few_peers_make_nobody_suspicious(losses):
    assert np.isnan(outlier_scores(np.array(losses), [bytes([index]) for index in range(len(losses))])).all()


def test_peers_that_agree_to_the_bit_divide_by_nothing():
    found = outlier_scores(np.ones(30), [bytes([index]) for index in range(30)])
    assert (found == 0).all()
