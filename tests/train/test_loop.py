"""The loop: what it yields and when, that a step is one mean, that a run is its seed, and what a bad number does."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from tests.engine import PADDED, TRIE, UNSHARED, mean_of, random_records, tiny_model, train_config

from tuneful.data.order import all_steps
from tuneful.errors import TunefulError
from tuneful.train.loop import Evaluation, Layout, Step, finetune, mean_loss, record_nll
from tuneful.train.optimizer import AdamW
from tuneful.types import Answer


def run(examples, validation=(), layout=TRIE, dtype=torch.float32, model=None, **changes):
    """All events of a run of `examples` on a tiny model, and that model at the end."""
    model = model or tiny_model()
    config = train_config(**changes)
    optimizer = AdamW(model, config, dtype)
    events = list(finetune(model, optimizer, examples, validation, config, layout))
    optimizer.masters_to_model()
    return events, model


def bits_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).view(torch.int32)


@pytest.mark.parametrize(
    ("max_steps", "eval_steps", "expected"),
    [
        (7, 3, "E0 S1 S2 S3 E3 S4 S5 S6 E6 S7 E7"),
        (6, 3, "E0 S1 S2 S3 E3 S4 S5 S6 E6"),
        (2, 5, "E0 S1 S2 E2"),
        (1, 1, "E0 S1 E1"),
        (3, None, "E0 S1 E1 S2 E2 S3 E3"),  # a tenth of the run, at least 1
    ],
)
def test_evaluations_come_first_at_intervals_and_once_at_the_end(max_steps, eval_steps, expected):
    events, _ = run(
        random_records(4), random_records(2, seed=1), batch_size=2, max_steps=max_steps, eval_steps=eval_steps
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
    first, last = (event.validation_loss for event in events if isinstance(event, Evaluation))
    assert last < first / 2


def test_a_sample_is_asked_for_at_each_evaluation():
    asked = []

    def sample(step):
        asked.append(step)
        return Answer("p", "t", (1,), "stop", "a.json:1")

    model, config = tiny_model(), train_config(batch_size=2, max_steps=4, eval_steps=2)
    events = list(finetune(model, AdamW(model, config, torch.float32), random_records(4), [], config, TRIE, sample))
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert asked == [0, 2, 4]
    assert all(event.sample is not None and event.validation_loss is None for event in evaluations)


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
    run = finetune(model, AdamW(model, config, torch.float32), examples, [], config, layout)
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
