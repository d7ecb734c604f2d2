"""The loop: what it yields and when, that a step is one mean, that a run is its seed, and what a bad number does."""

import random
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.engine import PADDED, TRIE, UNSHARED, mean_of, random_records, tiny_model, train_config

from tuneful.batch.order import all_steps
from tuneful.errors import CheckpointError, OutOfMemoryError, TunefulError
from tuneful.runs.schema import Evaluation, Layout, Notice, Step, TrainingState
from tuneful.train import loop
from tuneful.train.checkpoint import check_finite
from tuneful.train.loop import Training, mean_loss, record_nll
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.types import Answer


def run(examples, validation=(), layout=TRIE, dtype=torch.float32, model=None, **changes):
    """All events of a run of `examples` on a tiny model, and that model at the end."""
    model = model or tiny_model()
    config = train_config(**changes)
    optimizer = AdamW(model, config, dtype)
    events = list(Training(model, optimizer, examples, validation, config, layout).run())
    optimizer.masters_to_model()
    return events, model


def validation_losses(events):
    """Those of all evaluations, each of which has one."""
    losses = [event.validation_loss for event in events if isinstance(event, Evaluation)]
    assert None not in losses
    return [loss for loss in losses if loss is not None]


def bits_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).view(torch.int32)


@pytest.mark.parametrize(
    ("max_steps", "eval_steps", "expected"),
    [
        (7, 3, "E0 S1 S2 S3 E3 S4 S5 S6 E6 S7 E7"),
        (6, 3, "E0 S1 S2 S3 E3 S4 S5 S6 E6"),
        (2, 5, "E0 S1 S2 E2"),
        (1, 1, "E0 S1 E1"),
        (3, None, "E0 S1 E1 S2 E2 S3 E3"),  # a tenth of the run, at least 1, where their share of the time allows
    ],
)
def test_evaluations_come_first_at_intervals_and_once_at_the_end(max_steps, eval_steps, expected):
    events, _ = run(
        random_records(4),
        random_records(2, seed=1),
        batch_size=2,
        max_steps=max_steps,
        eval_steps=eval_steps,
        eval_share=1,
    )
    assert " ".join(f"{type(event).__name__[0]}{event.step}" for event in events) == expected


def test_every_epoch_sees_every_record_once_and_the_last_step_may_be_smaller():
    examples = random_records(7)
    events, _ = run(examples, batch_size=3, num_train_epochs=2, eval_steps=100)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.epoch for step in steps] == pytest.approx([3 / 7, 6 / 7, 9 / 7, 12 / 7, 2])
    assert sum(step.record_tokens for step in steps) == 2 * sum(map(len, examples))
    assert sum(step.target_tokens for step in steps) == 2 * sum(int((e.weights > 0).sum()) for e in examples)
    assert all(0 < step.computed_tokens < step.record_tokens for step in steps)


def test_a_step_reports_the_loss_of_its_own_records_before_it_changes_the_weights():
    examples = random_records(6)
    events, _ = run(examples, batch_size=4, max_steps=1, seed=3)
    [indices] = all_steps(6, 4, 3, 1, 1)
    oracle = mean_of(tiny_model(), [examples[index] for index in indices])
    step = next(event for event in events if isinstance(event, Step))
    assert step.loss == pytest.approx(oracle.loss, rel=1e-5)
    norm = torch.stack([gradient.norm() for gradient in oracle.gradients.values()]).norm().item()
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "layout", [UNSHARED, PADDED, Layout("trie", 1), Layout("trie", 40), Layout("padded", 30)], ids=repr
)
def test_a_run_is_the_same_run_however_it_is_laid_out(layout):
    examples, validation = random_records(10, longest=20), random_records(3, seed=1)
    settings = {"batch_size": 5, "max_steps": 6, "eval_steps": 3, "learning_rate": 1e-3}
    (reference, _), (other, _) = (run(examples, validation, each, **settings) for each in (TRIE, layout))
    for one, two in zip(reference, other, strict=True):
        if isinstance(one, Step):
            assert two.loss == pytest.approx(one.loss, rel=1e-4)
            assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        else:
            assert two.validation_loss == pytest.approx(one.validation_loss, rel=1e-4)


def test_micro_batches_of_a_bfloat16_run_are_one_step_too():
    examples = random_records(8, longest=20)
    settings = {"batch_size": 8, "max_steps": 1, "dtype": torch.bfloat16}
    steps = [
        next(event for event in run(examples, layout=layout, **settings)[0] if isinstance(event, Step))
        for layout in (TRIE, Layout("trie", 1))
    ]
    assert steps[1].loss == pytest.approx(steps[0].loss, rel=1e-2)
    assert steps[1].grad_norm == pytest.approx(steps[0].grad_norm, rel=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_is_the_same_run_bit_for_bit_and_another_is_not(dtype):
    def outcome(seed):
        events, model = run(
            random_records(9), random_records(3, seed=1), batch_size=3, max_steps=8, seed=seed, dtype=dtype
        )
        return [{**asdict(event), "step_seconds": 0} for event in events], bits_of(model)

    (events, bits), (again, same_bits), (_, other_bits) = outcome(1), outcome(1), outcome(2)
    assert events == again
    assert torch.equal(bits, same_bits)
    assert not torch.equal(bits, other_bits)


def test_training_lowers_the_loss_of_what_it_trains_on():
    examples = random_records(8)
    events, _ = run(examples, examples, batch_size=8, max_steps=30, learning_rate=1e-2, eval_steps=30)
    first, last = validation_losses(events)
    assert last < first / 2


def test_a_sample_is_asked_for_where_its_share_allows_and_at_the_last_evaluation():
    asked = []

    def sample(step):
        asked.append(step)
        return Answer("p", "t", (1,), "stop", "a.json:1")

    model, config = tiny_model(), train_config(batch_size=2, max_steps=4, eval_steps=2, sample_share=1)
    events = list(
        Training(model, AdamW(model, config, torch.float32), random_records(4), [], config, TRIE, sample).run()
    )
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert asked == [2, 4]
    assert [event.sample is not None for event in evaluations] == [False, True, True]
    assert all(event.validation_loss is None for event in evaluations)


@pytest.mark.parametrize("layout", [TRIE, PADDED, Layout("trie", 1)], ids=repr)
def test_a_loss_that_is_not_finite_names_step_and_records_and_changes_no_weight(layout):
    examples = random_records(6)
    poison = 23
    for example in examples:
        example.token_ids[example.token_ids == poison] = 1
    bad = examples[4]
    bad.token_ids[2] = poison
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.inf
    config = train_config(batch_size=2, num_train_epochs=1, learning_rate=1e-3)
    step = 1 + next(at for at, indices in enumerate(all_steps(6, 2, config.seed, 1)) if 4 in indices)
    run = Training(model, AdamW(model, config, torch.float32), examples, [], config, layout).run()
    after_each = [bits_of(model)]
    with pytest.raises(TunefulError, match=rf"step {step}: .*not finite.*{bad.source}") as refusal:
        after_each.extend(bits_of(model) for _ in run)
    assert refusal.value.exit_code == 1
    assert torch.equal(bits_of(model), after_each[-1])
    others = {
        example.source for index, example in enumerate(examples) if index not in list(all_steps(6, 2, 0, 1))[step - 1]
    }
    assert not any(source in str(refusal.value) for source in others)


def test_nothing_to_evaluate_gives_no_loss_and_no_nll():
    assert mean_loss(tiny_model(), [], TRIE) is None
    assert record_nll(tiny_model(), [], TRIE) == []


def test_evaluation_leaves_weights_and_gradients_alone():
    model, examples = tiny_model(), random_records(4)
    before = bits_of(model)
    mean_loss(model, examples, TRIE)
    assert np.isfinite(record_nll(model, examples, TRIE)).all()
    assert torch.equal(bits_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_smaller_micro_batches_of_an_evaluation_change_its_losses_by_rounding_alone(monkeypatch):
    model, examples = tiny_model(dtype=torch.float64), random_records(9, longest=40)
    found, num_batches = [], []
    for most in (1, 1 << 28):  # so many bytes of logits; the micro-batches are never cut below 64 tokens here
        calls: list[int] = []
        monkeypatch.setattr(loop, "_EVALUATED_BYTES", most)
        monkeypatch.setattr(loop, "MIN_TOKENS", 64)
        monkeypatch.setattr(
            loop, "micro_batch_loss", lambda *given, calls=calls: calls.append(1) or micro_batch_loss(*given)
        )
        found.append([mean_loss(model, examples, TRIE), *record_nll(model, examples, TRIE)])
        num_batches.append(len(calls))
    assert num_batches[0] > num_batches[1] == 2
    assert found[0] == pytest.approx(found[1], rel=1e-12)


# Which weights a training ends with


OVERFITTING = {
    "batch_size": 4,
    "max_steps": 12,
    "eval_steps": 1,
    "learning_rate": 5e-2,
    "lr_scheduler_type": "constant",
}


def test_the_weights_of_the_best_evaluation_are_those_that_are_left():
    validation = random_records(4, seed=1)
    for keep in ("best", "last"):
        events, model = run(random_records(4), validation, keep=keep, **OVERFITTING)
        losses = validation_losses(events)
        assert losses[-1] > min(losses[1:]), "this training was to overfit"
        wanted = min(losses[1:]) if keep == "best" else losses[-1]
        assert mean_loss(model, validation, TRIE) == pytest.approx(wanted, rel=1e-6)


def test_a_training_ends_with_trained_weights_even_where_none_were_better_than_those_it_began_with():
    examples, validation = random_records(4), random_records(4, seed=1)
    events, model = run(examples, validation, **{**OVERFITTING, "learning_rate": 1.0, "max_steps": 3})
    losses = validation_losses(events)
    assert min(losses[1:]) > losses[0]
    assert mean_loss(model, validation, TRIE) == pytest.approx(min(losses[1:]), rel=1e-6)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_stops_after_so_many_evaluations_in_a_row_that_are_no_better(patience):
    events, _ = run(
        random_records(4),
        random_records(4, seed=1),
        early_stopping_patience=patience,
        **{**OVERFITTING, "max_steps": 40},
    )
    losses = validation_losses(events)[1:]
    expected = next(
        at + 1
        for at in range(patience, len(losses))
        if min(losses[at - patience + 1 : at + 1]) >= min(losses[: at - patience + 1])
    )
    assert len(losses) == expected < 40
    assert isinstance(events[-1], Evaluation)


# Interrupted


class StopError(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("call", range(1, 24, 3))
def test_a_training_interrupted_before_any_micro_batch_goes_on_to_the_same_bits(call):
    examples, validation = random_records(7), random_records(3, seed=1)
    settings = {"batch_size": 3, "max_steps": 5, "eval_steps": 2, "learning_rate": 1e-2}
    layout, config = Layout("trie", 20), train_config(**settings)
    events, model = run(examples, validation, layout, **settings)
    other, state, calls = tiny_model(), TrainingState(), 0
    seen: list[Any] = []
    optimizer = AdamW(other, config, torch.float32)

    def between():
        nonlocal calls
        calls += 1
        if calls == call:
            raise StopError

    with pytest.raises(StopError):
        seen.extend(
            Training(other, optimizer, examples, validation, config, layout, state=state, should_stop=between).run()
        )
    seen = []  # what was seen before is told by `state`
    resumed = TrainingState(**asdict(state))
    seen.extend(Training(other, optimizer, examples, validation, config, layout, state=resumed).run())
    optimizer.masters_to_model()
    assert torch.equal(bits_of(other), bits_of(model))
    rows = [{**asdict(event), "step_seconds": 0} for event in events]
    assert [{**asdict(event), "step_seconds": 0} for event in seen] == rows[len(rows) - len(seen) :]


# Bad numbers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", ["loss", "gradient", "activation", "weight", "unused weight", "moment"])
def test_a_number_that_is_not_finite_stops_the_run_or_its_saving_and_is_named(where, seed, monkeypatch):
    dice = random.Random(f"{where} {seed}")
    step, bad = dice.randint(1, 6), dice.choice([float("nan"), float("inf")])
    examples = random_records(9)
    for example in examples:
        example.token_ids[example.token_ids == 23] = 1
    model = tiny_model(tie_word_embeddings=False)
    config = train_config(batch_size=3, max_steps=6, learning_rate=1e-3, eval_steps=100)
    optimizer = AdamW(model, config, torch.float32)
    layer, planted = model.model.layers[1].mlp, []

    def plant():
        planted.append(True)
        if where == "loss":
            real = micro_batch_loss
            monkeypatch.setattr(loop, "micro_batch_loss", lambda *given: poisoned(real(*given), bad))
        elif where == "gradient":
            layer.down_proj.weight.register_hook(lambda gradient: gradient * bad)
        elif where == "activation":
            layer.register_forward_hook(lambda module, given, found: found * bad)
        elif where == "weight":
            layer.down_proj.weight.data[1, 2] = bad
        elif where == "unused weight":
            model.get_input_embeddings().weight.data[23, 1] = bad
        else:
            optimizer.moments()["exp_avg.model.embed_tokens.weight"][23, 1] = bad

    at_each = [bits_of(model)]

    def train():
        for event in Training(model, optimizer, examples, [], config, TRIE).run():
            if event.step == step - 1 and not planted:
                plant()
            at_each.append(bits_of(model))

    if where in ("unused weight", "moment"):  # nothing computes with it: it is found when it is to be saved
        train()
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: \d+ of its 768 numbers are not finite"):
            check_finite({**optimizer.weights(), **optimizer.moments()})
        return
    with pytest.raises(TunefulError, match=f"step {step}: .* not finite, so no weight was changed") as refusal:
        train()
    assert torch.equal(bits_of(model), at_each[-1])
    indices = list(all_steps(9, 3, config.seed, 1, 6))[step - 1]
    assert any(examples[index].source in str(refusal.value) for index in indices)


def poisoned(found, bad):
    """A micro-batch whose loss is `bad`."""
    return type(found)(found.total * bad, found.target_nll, found.record_targets, found.num_computed_tokens)


def test_a_loss_that_jumps_is_told_once():
    model = tiny_model()
    config = train_config(batch_size=2, max_steps=30, learning_rate=1e-4, eval_steps=100)
    optimizer = AdamW(model, config, torch.float32)
    notices = []
    for event in Training(model, optimizer, random_records(2), [], config, TRIE).run():
        if isinstance(event, Notice):
            notices.append(event)
        if isinstance(event, Step) and event.step in (20, 21):  # for one step the head is turned around
            model.get_output_embeddings().weight.data.mul_(-4 if event.step == 20 else -0.25)
    assert [(notice.step, notice.notice) for notice in notices] == [(21, "spike")]
    assert "the loss jumped to" in notices[0].sentence


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_memory_runs_out_smaller_micro_batches_give_the_same_training(error, monkeypatch):
    examples, validation = random_records(8, longest=20), random_records(3, seed=1)
    settings = {"batch_size": 8, "max_steps": 4, "eval_steps": 2, "learning_rate": 1e-3}
    reference, whole = run(examples, validation, **settings)
    real, refused = micro_batch_loss, []

    def small(model, batch, layout):
        if sum(map(len, batch)) > 60:
            refused.append(len(batch))
            raise error
        return real(model, batch, layout)

    monkeypatch.setattr(loop, "micro_batch_loss", small)
    events, model = run(examples, validation, **settings)
    notices = [event for event in events if isinstance(event, Notice)]
    assert 1 <= len(notices) == len(refused) <= 4, "what fits is found once and kept"
    assert f"out of memory at a micro-batch of {refused[0]} records" in notices[0].sentence
    events = [event for event in events if not isinstance(event, Notice)]
    for one, two in zip(reference, events, strict=True):
        assert one.step == two.step
        if isinstance(one, Step):
            assert (one.target_tokens, one.record_tokens) == (two.target_tokens, two.record_tokens)
            assert two.loss == pytest.approx(one.loss, rel=1e-5)
        else:
            assert two.validation_loss == pytest.approx(one.validation_loss, rel=1e-5)
    # Adam's first updates are about the rate whatever the gradient's size: rounding shows more in weights than in losses.
    difference = torch.nn.utils.parameters_to_vector(model.parameters()) - torch.nn.utils.parameters_to_vector(
        whole.parameters()
    )
    assert difference.abs().mean() < 1e-5


def test_one_record_that_does_not_fit_ends_the_run_with_its_shape(monkeypatch):
    monkeypatch.setattr(loop, "micro_batch_loss", lambda *_: (_ for _ in ()).throw(MemoryError))
    examples = random_records(3)
    with pytest.raises(
        OutOfMemoryError, match=r"out of memory at a micro-batch of 1 record, \d+ tokens.*data.max_length"
    ):
        run(examples, batch_size=3, max_steps=1)


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    monkeypatch.setattr(loop, "micro_batch_loss", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(random_records(3), batch_size=3, max_steps=1)
