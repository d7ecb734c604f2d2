"""The one promise that the engine stands on: a trie batch computes the records' own loss and gradients, and nothing else.

Measured against plain transformers, one record a forward: float64 within 1e-10 and float32 within 1e-5, tensor by tensor.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.doubles.engine import (
    FAMILIES,
    PADDED,
    SLIDING_FAMILIES,
    TRIE,
    UNSHARED,
    VOCABULARY,
    Outcome,
    assert_close,
    mean_of,
    random_records,
    record,
    run_alone,
    run_batches,
    tiny_model,
    train_config,
    tries,
)

from tuneful.batch.trie import TrieBatch, build_trie, visible
from tuneful.model.attention import plan_attention, use_trie_attention
from tuneful.model.processor import pretended
from tuneful.runs.schema import Layout, Step
from tuneful.train import loop, loss
from tuneful.train.layout import cut_micro_batches
from tuneful.train.loop import Training, mean_loss, record_nll
from tuneful.train.objective import total_weight
from tuneful.train.optimizer import AdamW

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
OF_TWO_KEYS = {torch.float64: 1e-10, torch.float32: 3e-5 if pretended() else 1e-5}
"""Where a query sees two keys its gradient is so small that rounding is more of it: on AVX2, which a processor may be told to be,
1.4e-5 by torch's products alone."""


def check(model, examples, layout="trie", attention="sdpa", tolerance=TOLERANCE):
    """Loss and every gradient of one micro-batch are those of its records run one by one."""
    assert_close(run_batches(model, [examples], layout), run_alone(model, examples, attention), tolerance[model.dtype])


# ----------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING_FAMILIES])
def test_a_model_that_the_decoder_does_not_serve_is_exact_in_transformers_own_forward(family, monkeypatch):
    model = tiny_model(family, torch.float64)
    monkeypatch.setattr(loss, "is_served", lambda model: False)
    check(model, random_records(6))
    check(model, random_records(6, prompt_weight=0.5), "unshared")


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING_FAMILIES])
def test_random_tries_are_exact_in_float64(family):
    model = tiny_model(family, torch.float64)

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(tries())
    def holds(examples):
        check(model, examples)

    holds()


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING_FAMILIES])
def test_float32_is_exact_in_every_loss_mode(family, prompt_weight, attention):
    examples = random_records(8, prompt_weight=prompt_weight)
    check(tiny_model(family), [*examples, examples[2]], attention=attention)


@pytest.mark.usefixtures("arithmetic")
def test_a_prompt_weight_of_three_tenths_is_exact_in_float64():
    check(tiny_model(dtype=torch.float64), random_records(7, prompt_weight=0.3))


@pytest.mark.parametrize("layout", ["trie", "unshared", "padded"])
def test_a_sum_that_is_divided_before_the_backward_is_exact_in_float64(layout):
    model, examples = tiny_model(dtype=torch.float64), random_records(7)
    mean = run_batches(model, [examples], layout, divisor=total_weight(examples))
    assert_close(mean, mean_of(model, examples), TOLERANCE[torch.float64])


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("window", [1, 2, 9, 10])
@pytest.mark.parametrize("family", SLIDING_FAMILIES)
def test_records_shorter_than_a_window_as_long_one_token_longer_and_much_longer_are_exact(family, window):
    """Eight tokens are shared, so a window of 9 reaches over them from some nodes only."""
    responses = ([3], [4, 0], [4, 5, 0], [4, 6, 7, 0], [*range(1, 20), 0])
    examples = [record([1, 2], [3]), *(record(range(1, 9), response) for response in responses)]
    assert [len(example) - 1 for example in examples] == [2, 8, 9, 10, 11, 27]
    for dtype in (
        TOLERANCE if window > 1 else [torch.float64]
    ):  # whose keys get no gradient but rounding where all see one
        model = tiny_model(family, dtype, sliding_window=window)
        check(model, examples)
        check(model, [record([5], [6])], tolerance=OF_TWO_KEYS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_branches_longer_than_a_block_of_queries_are_exact(family):
    rng = np.random.default_rng(1)
    opening, middle = rng.integers(1, VOCABULARY, 150), rng.integers(1, VOCABULARY, 200)
    examples = [
        record([*prompt, *rng.integers(1, VOCABULARY, 3)], rng.integers(1, VOCABULARY, length))
        for prompt, length in (([*opening, *middle], 70), ([*opening, *middle], 1), (opening, 129), (opening[:64], 64))
    ]
    for dtype in TOLERANCE:
        check(tiny_model(family, dtype, **({"sliding_window": 140} if family == "mistral" else {})), examples)


@pytest.mark.parametrize("layout", ["unshared", "padded"])
@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING_FAMILIES])
def test_the_other_layouts_are_exact_too(family, layout):
    check(tiny_model(family, torch.float64), random_records(6, prompt_weight=0.3), layout)


# ------------------------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("layout", ["trie", "unshared", "padded"])
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(layout):
    model, examples = tiny_model(dtype=torch.float64), random_records(8, longest=20)
    oracle = run_alone(model, examples)
    cuts = {
        "1x8": [examples],
        "8x1": [[example] for example in examples],
        "4x2": [examples[start : start + 2] for start in range(0, 8, 2)],
        **{f"{budget} tokens": list(cut_micro_batches(examples, budget, layout)) for budget in (1, 30, 70, 1000)},
    }
    for name, batches in cuts.items():
        assert sum(map(len, batches)) == 8, name
        assert_close(run_batches(model, batches, layout), oracle, TOLERANCE[torch.float64])


@pytest.mark.parametrize("layout", ["trie", "unshared", "padded"])
@pytest.mark.parametrize("budget", [1, 25, 60, 10_000])
def test_micro_batches_are_a_partition_and_keep_to_their_budget(layout, budget):
    examples = random_records(12, longest=20)
    batches = list(cut_micro_batches(examples, budget, layout))
    assert sorted(map(id, examples)) == sorted(id(example) for batch in batches for example in batch)
    for batch in batches:
        computed = len(batch) * (max(map(len, batch)) - 1)
        if layout != "padded":
            computed = build_trie(batch, share=layout == "trie").num_nodes
        assert computed <= budget or len(batch) == 1


@pytest.mark.parametrize("layout", [TRIE, UNSHARED, PADDED, Layout("trie", 30), Layout("padded", 40)], ids=repr)
def test_the_nll_of_each_record_comes_back_in_the_order_given(layout):
    model, examples = tiny_model(dtype=torch.float64), random_records(6, prompt_weight=0.25)
    examples += [examples[3], record([1, 2], [3]), record([1, 2], [3, 4])]
    expected = [
        run_alone(model, [replace(example, weights=(example.weights > 0).astype(np.float32))]).loss
        for example in examples
    ]
    assert record_nll(model, examples, layout) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("layout", [TRIE, UNSHARED, PADDED, Layout("trie", 30), Layout("padded", 40)], ids=repr)
def test_the_validation_loss_is_the_mean_over_all_targets(layout):
    model, examples = tiny_model(dtype=torch.float64), random_records(9, prompt_weight=0.25)
    assert mean_loss(model, examples, layout) == pytest.approx(mean_of(model, examples).loss, rel=1e-10)


# ----------------------------------------------------------------------------------------------------------- isolation


def logits_of(model, batch: TrieBatch):
    """The logits of every node [N, V]."""
    use_trie_attention(model)
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(batch.input_ids).long()[None],
            position_ids=torch.from_numpy(batch.positions).long()[None],
            trie_plan=plan_attention(batch, model),
            use_cache=False,
        ).logits[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_token_changes_the_logits_of_those_who_see_it_and_no_bit_of_the_others(family):
    model = tiny_model(family)
    batch = build_trie(random_records(6, preamble=3, longest=6))
    before, sees = logits_of(model, batch), visible(batch)
    for node in range(batch.num_nodes):
        ids = batch.input_ids.copy()
        ids[node] = (ids[node] + 7) % VOCABULARY
        changed = (logits_of(model, replace(batch, input_ids=ids)) != before).any(1).numpy()
        assert np.array_equal(changed, sees[:, node]), f"node {node}"


def test_changing_one_records_last_tokens_leaves_the_logits_of_the_others_bit_equal():
    model, opening = tiny_model(), [5, 6, 7]
    answers = [[2, 3, 4, 0], [8, 9, 0], [11, 12, 13, 14, 0]]
    before_batch = build_trie([record(opening, answer) for answer in answers])
    before = logits_of(model, before_batch)
    for changed in range(3):
        other = [[*a[:-2], a[-2] + 8, 0] if index == changed else a for index, a in enumerate(answers)]
        batch = build_trie([record(opening, answer) for answer in other])
        assert np.array_equal(batch.positions, before_batch.positions)
        after = logits_of(model, batch)
        for index, (own, own_before) in enumerate(zip(batch.record_targets, before_batch.record_targets, strict=True)):
            rows, rows_before = batch.target_rows[own], before_batch.target_rows[own_before]
            same = torch.equal(after[rows], before[rows_before])
            assert same == (index != changed), f"record {index} after a change of record {changed}"


# -------------------------------------------------------------------------------------------------------- planted bugs


def restarted(batch: TrieBatch) -> TrieBatch:
    """Every branch counts its positions from 0."""
    starts = np.flatnonzero(np.diff(batch.positions, prepend=-2) != 1)
    lengths = np.diff([*starts, batch.num_nodes])
    return replace(batch, positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]))


def with_the_last_sibling_visible(batch: TrieBatch) -> TrieBatch:
    """The last branch hangs below the one before it, so it sees its sibling's tokens."""
    last = np.flatnonzero(np.diff(batch.positions) != 1)[-1] + 1
    positions, ends = batch.positions.copy(), batch.subtree_end.copy()
    positions[last:] += positions[last - 1] + 1 - positions[last]
    ends[ends == last] = batch.num_nodes
    return replace(batch, positions=positions, subtree_end=ends)


def without_merged_weights(batch: TrieBatch) -> TrieBatch:
    return replace(batch, target_weights=np.minimum(batch.target_weights, 1))


def without_the_last_target(batch: TrieBatch) -> TrieBatch:
    fields = {name: getattr(batch, name)[:-1] for name in ("target_rows", "target_ids", "target_weights")}
    return replace(batch, **fields)


def plant(monkeypatch, corrupt, *, in_batch: bool, in_plan: bool) -> None:
    """Let the loss compute with a corrupted batch, its attention with a corrupted plan, or both."""
    good: list[TrieBatch] = []

    def build(examples, *, share=True):
        good[:] = [build_trie(examples, share=share)]
        return corrupt(good[0]) if in_batch else good[0]

    def plan(batch, model, *, only_targets):
        planned = corrupt(good[0]) if in_plan else good[0]
        return plan_attention(planned, model, only_targets=only_targets)

    monkeypatch.setattr(loss, "build_trie", build)
    monkeypatch.setattr(loss, "plan_attention", plan)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("corrupt", "in_batch", "in_plan"),
    [
        (restarted, True, False),
        (restarted, False, True),
        (with_the_last_sibling_visible, False, True),
        (without_merged_weights, True, False),
        (without_the_last_target, True, False),
    ],
)
def test_a_planted_bug_turns_the_check_red(monkeypatch, family, corrupt, in_batch, in_plan):
    model, examples = tiny_model(family), random_records(5, prompt_weight=0.3)
    with monkeypatch.context() as patch:
        plant(patch, lambda batch: batch, in_batch=True, in_plan=True)
        check(model, examples)
    plant(monkeypatch, corrupt, in_batch=in_batch, in_plan=in_plan)
    with pytest.raises(AssertionError, match="differs by"):
        check(model, examples)


def check_step(examples, max_tokens):
    """The first step of a run reports the loss and gradient norm of its records' mean, however it is cut."""
    model = tiny_model(dtype=torch.float64)
    oracle = mean_of(model, examples)
    norm = torch.stack([gradient.norm() for gradient in oracle.gradients.values()]).norm()
    config = train_config(batch_size=len(examples), max_steps=1)
    steps = Training(model, AdamW(model, config, torch.float64), examples, [], config, Layout("trie", max_tokens)).run()
    step = next(event for event in steps if isinstance(event, Step))
    found = Outcome(step.loss, {"all": torch.tensor(step.grad_norm, dtype=torch.float64)})
    assert_close(found, Outcome(oracle.loss, {"all": norm}), 1e-6)  # the norm may be summed in float32


def test_a_step_of_ragged_micro_batches_is_one_mean_over_its_targets():
    examples = random_records(7, longest=25)
    for max_tokens in (1, 30, 60, 1000):
        check_step(examples, max_tokens)


def test_a_mean_taken_per_micro_batch_turns_the_check_red(monkeypatch):
    examples, original = random_records(7, longest=25), loss.micro_batch_loss

    def mean_per_micro_batch(model, batch, layout):
        correct = original(model, batch, layout)
        return replace(correct, total=correct.total / total_weight(batch) * total_weight(examples) / len(examples))

    monkeypatch.setattr(loop, "micro_batch_loss", mean_per_micro_batch)
    with pytest.raises(AssertionError, match="differs by"):
        check_step(examples, max_tokens=1)
