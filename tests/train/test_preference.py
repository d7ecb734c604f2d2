"""Preferences on the trie: a step is each pair alone, however cut; the reference is the model at step 0; faults turn red."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tests.doubles.engine import END, PADDED, TRIE, UNSHARED, Outcome, assert_close, tiny_model, train_config
from tests.doubles.pairs import (
    alone,
    difficult_pairs,
    gradients_of,
    labelled,
    made_up_reference,
    objective_of,
    outcome_of,
    pair,
    plain_kto,
    plain_loss,
    random_labelled,
    random_pairs,
)

from tuneful.batch.order import all_steps
from tuneful.config import LoraConfig, PreferenceConfig
from tuneful.errors import OutOfMemoryError, TunefulError
from tuneful.model.lora import add_adapter
from tuneful.runs.schema import Evaluation, Layout, Notice, Step, TrainingState
from tuneful.train import loop
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup
from tuneful.train.layout import cut_micro_batches, own_micro_batches, set_dropout
from tuneful.train.loop import Training, measure_in
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.train.preference import KtoObjective, response_logps, side_key
from tuneful.train.preference_losses import DPO_LOSSES
from tuneful.train.preference_watch import preference_notices
from tuneful.train.reference import largest_difference, reference_logps
from tuneful.types import sides_of

OBJECTIVES = [
    *(f"dpo-{name}" for name in [*DPO_LOSSES, "sft", "mixture"]),
    *(f"cpo-{name}" for name in ("sigmoid", "hinge", "ipo")),
    "simpo",
    "orpo",
]
TRIE_OF_ONE, TRIE_OF_SOME = Layout("trie", 1), Layout("trie", 25)


def with_reference(name, pairs):
    return objective_of(name, made_up_reference([side for one in pairs for side in sides_of(one)]))


def backward_of(model, examples, objective, layout):
    """The loss of one step of `examples` as the loop computes it, micro-batch by micro-batch, its gradients left in the model."""
    total = 0.0
    share_of = objective.begin(examples, measure_in(model, layout))
    for batch in cut_micro_batches(examples, layout.max_tokens, layout.name):
        share, _ = share_of(batch, micro_batch_loss(model, objective.sides(batch), layout.name))
        share.backward()
        total += share.item()
    return total


def step_of(model, examples, objective, layout=TRIE):
    model.zero_grad(set_to_none=True)
    loss = backward_of(model, examples, objective, layout)
    gradients = gradients_of(model)
    model.zero_grad(set_to_none=True)
    return Outcome(loss, gradients)


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_pairs_on_the_trie_is_each_side_alone(model, name):
    pairs = difficult_pairs()
    objective = with_reference(name, pairs)
    wanted = outcome_of(model, lambda: plain_loss(model, pairs, objective))
    assert_close(step_of(model, pairs, objective), wanted, 1e-10)


@pytest.mark.parametrize("layout", [TRIE_OF_ONE, TRIE_OF_SOME, UNSHARED, PADDED, Layout("padded", 30)], ids=repr)
@pytest.mark.parametrize("name", ["dpo-mixture", "orpo"])
def test_a_step_of_pairs_is_the_same_however_it_is_cut_and_laid_out(model, name, layout):
    pairs = difficult_pairs()
    objective = with_reference(name, pairs)
    assert_close(step_of(model, pairs, objective, layout), step_of(model, pairs, objective), 1e-10)


def test_another_family_computes_pairs_alike():
    model = tiny_model("gpt2", dtype=torch.float64)
    pairs = difficult_pairs()
    objective = with_reference("dpo-sigmoid", pairs)
    assert_close(
        step_of(model, pairs, objective), outcome_of(model, lambda: plain_loss(model, pairs, objective)), 1e-10
    )


@pytest.mark.parametrize("layout", [TRIE, TRIE_OF_ONE], ids=repr)
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_a_step_of_labelled_records_is_each_alone_with_the_kl_of_the_whole_step(model, loss_type, layout):
    records = [
        labelled([1, 2, 3], [4, 5, END], True),
        labelled([1, 2, 3], [4, 6, 7, END], False, weight=2.0),
        labelled([1, 2], [9, 9, 9, END], True),
        labelled([8], [4, END], False),
    ]
    settings = PreferenceConfig(loss_type=loss_type, desirable_weight=1.3, undesirable_weight=0.7)
    bare = KtoObjective(settings, max_length=64)
    others = bare.mismatched(records)
    reference = made_up_reference([*records, *others])
    objective = replace(bare, reference=reference)
    kl = 0.0
    if others:
        assert [one.token_ids.tolist() for one in others[:2]] == [[1, 2, 3, 4, END], [1, 2, 3, 4, 5, END]]
        logps = measure_in(model, TRIE)(others)
        kl = max(
            0.0, float(np.mean([logp - reference[side_key(one)] for logp, one in zip(logps, others, strict=True)]))
        )
    wanted = outcome_of(model, lambda: plain_kto(model, records, settings, reference, kl))
    assert_close(step_of(model, records, objective, layout), wanted, 1e-10)


def test_a_mismatched_response_is_cut_to_the_longest_record(model):
    objective = KtoObjective(PreferenceConfig(), max_length=5)
    records = [labelled([1, 2, 3], [4, END], True), labelled([5], [6, 7, 8, END], False)]
    assert [one.token_ids.tolist() for one in objective.mismatched(records)] == [[1, 2, 3, 6, 7], [5, 4, END]]


# What sharing gives


@pytest.mark.parametrize("name", ["dpo-sigmoid", "dpo-hinge", "dpo-robust", "dpo-discopop", "cpo-hinge"])
def test_equal_sides_have_a_gradient_of_exactly_0_under_a_loss_of_differences(model, name):
    equal = [pair([1, 2], [3, 4, 5, END], [3, 4, 5, END]), pair([1, 3], [6, END], [6, END])]
    objective = with_reference(name, equal)
    if name.startswith("cpo"):
        objective = replace(objective, settings=PreferenceConfig(loss_type="hinge", cpo_alpha=0))
    found = step_of(model, equal, objective)
    assert all(not gradient.any() for gradient in found.gradients.values())


def test_the_tokens_that_both_sides_open_with_have_slopes_of_exactly_0(model):
    pairs = [pair([1, 2], [3, 4, 5, END], [3, 4, 6, 7, END])]
    objective = with_reference("dpo-sigmoid", pairs)
    found = micro_batch_loss(model, objective.sides(pairs), "trie")
    share, _ = objective.begin(pairs, measure_in(model, TRIE))(pairs, found)
    [slopes] = torch.autograd.grad(share, found.target_nll)
    shared = set(found.record_targets[0]) & set(found.record_targets[1])
    assert len(shared) == 2
    assert all(slopes[index] == 0 for index in shared)
    assert all(slopes[index] != 0 for own in found.record_targets for index in set(own) - shared)
    assert found.num_computed_tokens == 2 + 2 + 1 + 2


# Pairs and micro-batches


def test_a_pair_is_never_divided_and_both_sides_count():
    pairs = random_pairs(12)
    layouts: list[Layout] = [Layout("trie", 40), Layout("padded", 60)]
    for layout in layouts:
        batches = list(cut_micro_batches(pairs, layout.max_tokens, layout.name))
        assert sorted(one.source for batch in batches for one in batch) == sorted(one.source for one in pairs)
        for batch in batches:
            sides = [side for one in batch for side in sides_of(one)]
            computed = micro_batch_loss(tiny_model(), sides, layout.name).num_computed_tokens
            assert len(batch) == 1 or computed <= layout.max_tokens


def test_ranks_share_pairs_by_the_tokens_of_both_sides():
    long = pair([1], [2, END], [3] * 40 + [END])
    short = [pair([1, index], [2, END], [3, END]) for index in range(2, 6)]
    shares = ProcessGroup(0, 2).shares([long, *short], "trie")
    assert [len(share) for share in shares if long in share] == [1]


# The reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [TRIE, TRIE_OF_SOME, PADDED], ids=repr)
def test_at_step_0_every_margin_is_exactly_0_and_the_loss_ln_2(dtype, layout):
    model, pairs = tiny_model(dtype=dtype), random_pairs(6)
    known: dict[str, float] = {}
    objective = objective_of("dpo-sigmoid")
    assert list(reference_logps(model, objective, [pairs], layout, known)) == [12]
    objective = replace(objective, reference=known)
    assert largest_difference(model, objective, pairs, layout) == 0
    [step] = steps_in(events_of(model, pairs, objective, layout, dtype=dtype))
    assert step["loss"] == pytest.approx(math.log(2), rel=1e-12)
    assert (step["rewards_chosen"], step["rewards_margins"], step["rewards_accuracies"]) == (0, 0, 0)


@pytest.mark.parametrize("place", [0, -1])
def test_a_reference_that_is_no_number_is_refused_wherever_it_stands(place):
    model, pairs = tiny_model(), random_pairs(3)
    known: dict[str, float] = {}
    list(reference_logps(model, objective_of("dpo-sigmoid"), [pairs], UNSHARED, known))
    sides = [side_key(one) for one in objective_of("dpo-sigmoid").sides(pairs)]
    known[sides[place]] = math.nan
    with pytest.raises(TunefulError, match="not nan nats"):
        largest_difference(model, objective_of("dpo-sigmoid", known), pairs, UNSHARED)


@pytest.mark.parametrize("name", ["dpo-sigmoid", "kto"])
def test_where_memory_runs_out_the_reference_and_its_check_take_smaller_micro_batches_too(name, monkeypatch):
    model = tiny_model(dtype=torch.float64)
    bare = KtoObjective(PreferenceConfig(), 64) if name == "kto" else objective_of(name)
    records, refused = random_labelled(8) if name == "kto" else random_pairs(4), []
    whole: dict[str, float] = {}
    list(reference_logps(model, bare, [records], TRIE, whole))
    limit = 2 * max(sum(map(len, bare.sides([record]))) for record in records)

    def small(model, batch, layout):
        assert not torch.is_grad_enabled()
        if sum(map(len, batch)) > limit:
            refused.append(len(batch))
            raise MemoryError
        return micro_batch_loss(model, batch, layout)

    monkeypatch.setattr(loop, "micro_batch_loss", small)
    monkeypatch.setattr("tuneful.train.reference.micro_batch_loss", small)
    known: dict[str, float] = {}
    list(reference_logps(model, bare, [records], TRIE, known))
    assert known == pytest.approx(whole, rel=1e-9)
    before = len(refused)
    assert before > 0
    assert largest_difference(model, replace(bare, reference=known), records, TRIE) < 1e-9
    assert len(refused) > before
    nll = loop.record_nll(model, records, TRIE)
    monkeypatch.undo()
    assert nll == pytest.approx(loop.record_nll(model, records, TRIE), rel=1e-9)


def test_a_pair_that_does_not_fit_ends_with_its_shape(monkeypatch):
    model, pairs = tiny_model(), random_pairs(3)
    monkeypatch.setattr(loop, "micro_batch_loss", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(OutOfMemoryError, match="out of memory at a micro-batch of 2 records"):
        list(reference_logps(model, objective_of("dpo-sigmoid"), [pairs], TRIE, {}))


@pytest.mark.parametrize("num_records", [1, 2])
def test_a_step_of_one_labelled_record_is_not_compared_with_its_own_response(num_records):
    model, records = tiny_model(), random_labelled(num_records)
    objective = KtoObjective(PreferenceConfig(), 64)
    others = objective.mismatched(records)
    assert len(others) == (0 if num_records == 1 else 2)
    far_below = dict.fromkeys(map(side_key, [*records, *others]), -1e3)
    share_of = replace(objective, reference=far_below).begin(records, measure_in(model, TRIE))
    _, rows = share_of(records, micro_batch_loss(model, records, "trie"))
    assert all((row[4] == 0) == (num_records == 1) for row in rows)


def test_a_side_is_known_by_its_tokens_and_by_which_of_them_count():
    side = labelled([1, 2, 3], [4, 5, END], True)
    fewer, heavier = (replace(side, weights=side.weights * factor) for factor in (np.array([1, 1, 1, 1, 0, 1]), 2))
    fewer = replace(fewer, weights=fewer.weights.astype(np.float32))
    assert side_key(fewer) != side_key(side)
    assert side_key(heavier) == side_key(side)
    assert side_key(labelled([1, 2, 3], [4, 6, END], True)) != side_key(side)


def test_the_reference_is_computed_once_a_side():
    model, pairs = tiny_model(), random_pairs(4)
    known: dict[str, float] = {}
    objective = objective_of("dpo-sigmoid")
    assert list(reference_logps(model, objective, [pairs[:2], pairs[2:], pairs], TRIE, known)) == [4, 4, 0]
    kto, labels = KtoObjective(PreferenceConfig(), 64), random_labelled(4)
    assert list(reference_logps(model, kto, [labels, labels[::-1]], TRIE, known))[1] > 0, "other neighbours"


def test_at_step_0_the_kl_of_kto_is_exactly_0_in_any_order():
    model, records = tiny_model(), random_labelled(6)
    bare = KtoObjective(PreferenceConfig(), 64)
    known: dict[str, float] = {}
    list(reference_logps(model, bare, [records], TRIE_OF_SOME, known))
    objective = replace(bare, reference=known)
    share_of = objective.begin(records, measure_in(model, TRIE_OF_SOME))
    batch = next(cut_micro_batches(records, 25, "trie"))
    _, rows = share_of(batch, micro_batch_loss(model, batch, "trie"))
    assert {row[4] for row in rows} == {0.0}
    assert {row[2] for row in rows} == {0.0}


def planted_dropout(model):
    set_dropout(model, 0.3)


def planted_adapter(model):
    """The reference was computed with the adapter off, which is as a new one is, and training goes on with it on."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


@pytest.mark.parametrize(("plant", "family"), [(planted_dropout, "gpt2"), (planted_adapter, "llama")])
def test_a_model_that_is_not_its_reference_is_refused_before_the_first_step(plant, family):
    model, pairs = tiny_model(family), random_pairs(4)
    if plant is planted_adapter:
        add_adapter(model, LoraConfig(r=2), first_layer=0)
    known: dict[str, float] = {}
    list(reference_logps(model, objective_of("dpo-sigmoid"), [pairs], PADDED, known))
    plant(model)
    with pytest.raises(TunefulError, match="is not its reference"):
        largest_difference(model, objective_of("dpo-sigmoid", known), pairs, PADDED)


# A training


def events_of(model, examples, objective, layout=TRIE, *, validation=(), dtype=torch.float32, state=None, **changes):
    config = train_config(**{"batch_size": len(examples), "max_steps": 1, **changes})
    optimizer = AdamW(model, config, dtype)
    return list(
        Training(
            model, optimizer, examples, validation, config, layout, objective=objective, state=state or TrainingState()
        ).run()
    )


def steps_in(events):
    """The steps as the rows that are written."""
    return [asdict(event) for event in events if isinstance(event, Step)]


def begun(model, examples, objective, validation=(), batch_size=None, max_steps=1):
    """The objective with its reference, of one step of all examples unless it is said how a run cuts them."""
    known: dict[str, float] = {}
    order = all_steps(len(examples), batch_size or len(examples), 0, 1, max_steps)
    steps = [[examples[index] for index in indices] for indices in order]
    list(reference_logps(model, objective, [*steps, *([validation] if validation else [])], TRIE, known))
    return replace(objective, reference=known)


@pytest.mark.parametrize("name", ["dpo-sigmoid", "dpo-mixture", "simpo", "orpo", "cpo-sigmoid", "kto"])
def test_training_moves_chosen_and_rejected_apart(name):
    model = tiny_model()
    train, validation = (
        (random_labelled(8), random_labelled(4, 1)) if name == "kto" else (random_pairs(8), random_pairs(4, 1))
    )
    objective = KtoObjective(PreferenceConfig(), 64) if name == "kto" else objective_of(name)
    if objective.uses_reference:
        objective = begun(model, train, objective, validation, 8, 12)
    settings = {"max_steps": 12, "batch_size": 8, "learning_rate": 5e-3, "eval_steps": 6, "validation": validation}
    events = events_of(model, train, objective, **settings)
    steps = steps_in(events)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["rewards_margins"] > steps[0]["rewards_margins"]
    assert steps[-1]["rewards_accuracies"] >= 0.75
    assert steps[0]["record_tokens"] == sum(len(side) for one in train for side in sides_of(one))
    accuracies = [asdict(event)["validation_accuracy"] for event in events if isinstance(event, Evaluation)]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert (steps[0]["kl"] is not None) == (name == "kto")


@pytest.mark.parametrize("name", ["dpo-sigmoid", "orpo"])
def test_a_run_of_pairs_is_the_same_run_in_any_micro_batches(name):
    pairs = random_pairs(10)

    def outcome(layout):
        model = tiny_model(dtype=torch.float64)
        objective = begun(model, pairs, objective_of(name), (), 4, 4) if name == "dpo-sigmoid" else objective_of(name)
        events = events_of(
            model, pairs, objective, layout, dtype=torch.float64, batch_size=4, max_steps=4, learning_rate=1e-3
        )
        return [(step["loss"], step["rewards_margins"], step["logps_chosen"]) for step in steps_in(events)]

    for layout in (TRIE_OF_ONE, TRIE_OF_SOME, PADDED):
        assert np.allclose(outcome(layout), outcome(TRIE), rtol=1e-9, atol=1e-11)


def test_the_figures_of_a_step_are_means_over_its_pairs(model):
    pairs = difficult_pairs()
    objective = with_reference("dpo-sigmoid", pairs)
    own = alone(model, pairs)
    share_of = objective.begin(pairs, measure_in(model, TRIE))
    _, rows = share_of(pairs, micro_batch_loss(model, objective.sides(pairs), "trie"))
    figures = objective.figures(rows)
    known = [[objective.reference[side_key(side)] for side in sides_of(one)] for one in pairs]
    moved = [(own.chosen - torch.tensor(known)[:, 0]) * 0.1, (own.rejected - torch.tensor(known)[:, 1]) * 0.1]
    assert figures["rewards_chosen"] == pytest.approx(moved[0].mean().item(), rel=1e-6)
    assert figures["rewards_margins"] == pytest.approx((moved[0] - moved[1]).mean().item(), rel=1e-6)
    assert figures["rewards_accuracies"] == pytest.approx((moved[0] > moved[1]).double().mean().item())
    assert figures["logps_rejected"] == pytest.approx(own.rejected.mean().item())


def test_a_model_whose_chosen_responses_fall_or_whose_margins_explode_is_told_of_once():
    state = TrainingState()
    falling = {
        "rewards_margins": 1.0,
        "rewards_accuracies": 0.8,
        "chosen_logratio": -0.3,
        "chosen_below_reference": 0.75,
    }
    said = [notice for step in range(1, 20) for notice in preference_notices(step, falling, state)]
    assert [notice.notice for notice in said] == ["chosen_falls"]
    assert "0.30 nats a token" in said[0].sentence
    assert "75%" in said[0].sentence
    assert "the margin grows because rejected ones fall further" in said[0].sentence
    apart = {"rewards_margins": 14.0, "rewards_accuracies": 1.0, "chosen_logratio": 0.1, "chosen_below_reference": 0.2}
    said = [notice for step in range(20, 60) for notice in preference_notices(step, apart, state)]
    assert [notice.notice for notice in said] == ["margins_explode"]
    assert "closer to the reference" in said[0].sentence
    calm = {"rewards_margins": 0.1, "rewards_accuracies": 0.9, "chosen_logratio": -0.01, "chosen_below_reference": 0.5}
    assert not [one for step in range(40) for one in preference_notices(step, calm, TrainingState())]


def test_of_both_sides_that_fall_alike_no_growing_margin_is_told():
    both = {"rewards_margins": -0.2, "rewards_accuracies": 0.4, "chosen_logratio": -0.3, "chosen_below_reference": 0.9}
    state = TrainingState()
    [said] = [notice for step in range(1, 20) for notice in preference_notices(step, both, state)]
    assert "rejected ones fall no further" in said.sentence
    assert "the margin grows" not in said.sentence
    assert "sigmoid" not in said.sentence, "whatever loss was asked for stays"


def test_of_a_loss_without_a_reference_none_is_spoken_of():
    apart = {"rewards_margins": 14.0, "rewards_accuracies": 1.0}
    state = TrainingState()
    [said] = [notice for step in range(1, 20) for notice in preference_notices(step, apart, state)]
    assert said.notice == "margins_explode"
    assert "reference" not in said.sentence
    assert "beta" not in said.sentence


def test_a_rate_that_ruins_the_model_is_told_of_and_a_usual_one_is_not():
    def notices(rate):
        model, pairs = tiny_model(), random_pairs(16)
        objective = begun(model, pairs, objective_of("dpo-sigmoid"), (), 4, 40)
        events = events_of(model, pairs, objective, batch_size=4, max_steps=40, learning_rate=rate)
        return {event.notice for event in events if isinstance(event, Notice)}

    assert "chosen_falls" in notices(3e-2)
    assert not notices(5e-6)


# Planted faults


def crossed(pairs):
    return [replace(one.rejected, rejected=replace(one, rejected=None)) for one in pairs]


def shifted(example):
    """The mask one token too early."""
    return replace(
        example,
        weights=np.append(example.weights[1:], np.float32(0)),
        rejected=example.rejected and shifted(example.rejected),
    )


def without_end(example):
    side = example
    if example.token_ids[-1] == END and (example.weights > 0).sum() > 1:
        side = replace(example, weights=np.append(example.weights[:-1], np.float32(0)))
    return replace(side, rejected=example.rejected and without_end(example.rejected))


def mean_for_sum(found, own):
    lengths = torch.tensor([len(part) for part in own], dtype=torch.float64)
    return response_logps(found, own) / lengths


def faulty_examples(change):
    return lambda model, pairs, monkeypatch: list(map(change, pairs))


def faulty_sums(model, pairs, monkeypatch):
    monkeypatch.setattr("tuneful.train.preference.response_logps", mean_for_sum)
    return pairs


FAULTS = {
    "averages for sums": faulty_sums,
    "chosen and rejected crossed": lambda model, pairs, monkeypatch: crossed(pairs),
    "the mask off by one": faulty_examples(shifted),
    "the end token left out": faulty_examples(without_end),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_turns_the_comparison_red(model, fault, monkeypatch):
    pairs = random_pairs(5)
    faulty = FAULTS[fault](model, pairs, monkeypatch)
    sides = [side for one in [*pairs, *faulty] for side in sides_of(one)]
    objective = objective_of("dpo-sigmoid", dict.fromkeys(map(side_key, sides), -9.0))
    wanted = outcome_of(model, lambda: plain_loss(model, pairs, objective))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(step_of(model, faulty, objective), wanted, 1e-6)


def test_a_mean_taken_per_micro_batch_turns_the_comparison_red(model):
    pairs = random_pairs(5)
    objective = with_reference("dpo-mixture", pairs)
    batches = [batch for batch, _ in own_micro_batches(pairs, TRIE_OF_SOME, SINGLE_PROCESS)]
    assert len({len(batch) for batch in batches}) > 1

    def per_micro_batch():
        losses = []
        for batch in batches:
            found = micro_batch_loss(model, objective.sides(batch), "trie")
            losses.append(objective.begin(batch, measure_in(model, TRIE))(batch, found)[0])
        return torch.stack(losses).mean()

    wanted = outcome_of(model, lambda: plain_loss(model, pairs, objective))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(outcome_of(model, per_micro_batch), wanted, 1e-6)
