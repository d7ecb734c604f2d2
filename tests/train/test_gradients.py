"""Gradients of ranks in buckets, seen from one of two that both have the same: sent while the backward goes on, in one order,
once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from tests.doubles.engine import TRIE, random_records, tiny_model, train_config

from tuneful.train import gradients
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW

IN_A_BACKWARD, AFTER = True, False


@dataclass(frozen=True)
class Twins(ProcessGroup):
    """Rank 0 of two that have the same records: every sum is twice the own part. `sent`: how long each bucket was, and when."""

    size: int = 2
    computes: bool = True
    sent: list[tuple[int, bool]] = field(default_factory=list)
    summed: list[int] = field(default_factory=list)

    def shares(self, examples, layout):
        return [list(examples), []] if self.computes else [[], list(examples)]

    def sum(self, values):
        self.summed.append(len(values))
        return [2 * value for value in values]

    def gather(self, rows):
        return [*rows, *rows]

    def begin_sum(self, tensor):
        self.sent.append((len(tensor), torch._C._current_graph_task_id() != -1))
        return lambda: tensor.mul_(2)


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 10_000)


def training(group, family="gpt2", dtype=torch.float32, max_tokens=40, **changes):
    model = tiny_model(family)
    model.get_decoder().register_parameter("spare", torch.nn.Parameter(torch.ones(3, 3)))
    config = train_config(batch_size=6, max_steps=1, learning_rate=0.1, weight_decay=0.5, max_grad_norm=0, **changes)
    optimizer = AdamW(model, config, dtype, group)
    return Training(model, optimizer, random_records(6), [], config, replace(TRIE, max_tokens=max_tokens), group=group)


def gradients_of(training):
    """The gradients of one step, as its update takes them."""
    found = {}
    step = training.optimizer._update.step

    def noted(*arguments):
        found.update(
            {one.name: one.gradient.clone() for one in training.optimizer._tensors if one.gradient is not None}
        )
        step(*arguments)

    training.optimizer._update.step = noted
    list(training.step(range(6)))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # embedding and head in one, and two
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buckets_hold_the_sums_and_are_sent_while_the_backward_goes_on(family, dtype):
    group = Twins()
    alone = gradients_of(training(SINGLE_PROCESS, family, dtype))
    found = gradients_of(training(group, family, dtype))
    assert found.keys() == alone.keys()
    for name, gradient in alone.items():
        assert torch.equal(found[name], 2 * gradient.to(found[name].dtype)), name
    assert len(group.sent) > 4
    when = [moment for _, moment in group.sent]
    assert when == sorted(when, reverse=True)  # first in the backward, then what is left
    assert when.count(IN_A_BACKWARD) >= len(when) / 2


def test_a_rank_without_records_sends_the_same_buckets_in_the_same_order():
    busy, idle = Twins(), Twins(computes=False)
    gradients_of(training(busy))
    found = gradients_of(training(idle))
    assert [size for size, _ in busy.sent] == [size for size, _ in idle.sent]
    assert {moment for _, moment in idle.sent} == {AFTER}
    assert not found  # nobody had a gradient, and nothing is decayed for it


def test_all_small_numbers_of_a_step_are_summed_at_once():
    """Loss, counts, rows and who has which gradient, and what the caller tells."""
    one = training(Twins())
    one.tell = lambda: [1.0, 0.0]
    list(one.step(range(6)))
    assert len(one.group.summed) == 1
    assert one.heard == [2.0, 0.0]


def test_what_no_rank_has_a_gradient_of_stays_as_it_is():
    one = training(Twins())
    list(one.step(range(6)))
    assert torch.equal(one.model.get_decoder().spare, torch.ones(3, 3))
    assert not torch.equal(one.model.get_input_embeddings().weight, tiny_model("gpt2").get_input_embeddings().weight)


def test_a_step_in_which_memory_runs_out_halfway_sends_nothing_twice():
    group, whole = Twins(), Twins()
    wanted = gradients_of(training(whole, max_tokens=1 << 20))
    one = training(group, max_tokens=1 << 20)
    asked = []

    def runs_out(parameter):
        asked.append(len(group.sent))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("out of memory")

    first_layer = next(param for name, param in one.model.named_parameters() if "h.0.mlp" in name)
    first_layer.register_post_accumulate_grad_hook(runs_out)
    found = gradients_of(one)
    assert len(asked) > 1
    assert asked[0] > 0, "some were sent before memory ran out"
    assert [size for size, _ in group.sent] == [size for size, _ in whole.sent]
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_buckets_are_of_a_kind_and_no_larger_than_they_may_be():
    optimizer = training(Twins()).optimizer
    buckets = optimizer._sums._buckets
    assert sum(len(bucket.starts) for bucket in buckets) == len(optimizer._tensors)
    for bucket in buckets:
        assert len(bucket.starts) == 1 or 4 * bucket.size <= 10_000
        assert all(start % 16 == 0 for start in bucket.starts.values())


def test_a_model_that_was_trained_is_no_longer_watched():
    one = training(Twins())
    one.optimizer.release()
    before = len(one.group.sent)
    sum(parameter.sum() for parameter in one.model.parameters()).backward()
    assert all(parameter.grad is not None for parameter in one.model.parameters())
    assert len(one.group.sent) == before
