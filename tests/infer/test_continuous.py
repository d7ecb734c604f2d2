"""Rows that come at any time, each with settings of its own, get the tokens that `generate` gives them."""

import math

import pytest
import torch
from tests.doubles.engine import tiny_model
from tests.infer.test_generate import all_of, random_prompts

from tuneful.batch.order import derived_seed
from tuneful.config import GenerateConfig
from tuneful.infer.continuous import ContinuousBatch, LiveRow, prompt_logprobs
from tuneful.infer.row import Row
from tuneful.infer.text import AnswerText
from tuneful.model.forward import compute_logits

CONFIGS = (
    GenerateConfig(max_new_tokens=12),
    GenerateConfig(max_new_tokens=9, temperature=0.8, top_k=5),
    GenerateConfig(max_new_tokens=15, temperature=1.2, top_p=0.7, min_p=0.05),
    GenerateConfig(max_new_tokens=7, repetition_penalty=1.5),
)


@pytest.fixture(params=["gpt2", "llama"], scope="module")
def model(request):
    return tiny_model(request.param, initializer_range=0.5)


def live(prompt, config, number=0, **others):
    row = Row(number, list(prompt), config.max_new_tokens, derived_seed(3, number), AnswerText(lambda ids: ""))
    return LiveRow(row, config, **others)


def finished(batch, coming=()):
    """All rows of `batch` to their end; one of `coming` enters before each step."""
    coming = list(coming)
    while batch or coming:
        if coming:
            batch.enter(coming.pop(0))
        batch.step()


def test_rows_that_come_one_by_one_with_settings_of_their_own_are_those_of_generate(model):
    prompts = random_prompts(12)
    configs = [CONFIGS[number % len(CONFIGS)] for number in range(len(prompts))]
    rows = [live(prompt, config, number) for number, (prompt, config) in enumerate(zip(prompts, configs, strict=True))]
    batch = ContinuousBatch(model, {1, 2}, max_rows=5)
    finished(batch, rows)
    for number, (row, prompt, config) in enumerate(zip(rows, prompts, configs, strict=True)):
        [alone] = all_of(model, [prompt], config, {1, 2}, seed=3, numbers=[number])
        assert (tuple(row.row.generated), row.row.finish_reason) == (alone.token_ids, alone.finish_reason)
    assert not batch
    assert batch.step() == []


def test_a_cancelled_row_gets_no_further_token_and_changes_no_other(model):
    first, second, third = (live(prompt, CONFIGS[0], number) for number, prompt in enumerate(random_prompts(3)))
    batch = ContinuousBatch(model, (), max_rows=2)
    for row in (first, second, third):
        batch.enter(row)
    batch.step()
    batch.step()
    first.is_cancelled = True
    finished(batch)
    assert len(first.row.generated) == 2
    assert first.row.finish_reason is None
    assert batch.take_dropped() == [first]
    assert batch.take_dropped() == []
    wanted = all_of(model, random_prompts(3), CONFIGS[0], ())
    assert [tuple(second.row.generated), tuple(third.row.generated)] == [one.token_ids for one in wanted[1:]]


def test_what_waits_leaves_too_when_it_is_cancelled(model):
    row, waiting = (live(prompt, CONFIGS[0]) for prompt in random_prompts(2))
    batch = ContinuousBatch(model, (), max_rows=1)
    batch.enter(row)
    batch.enter(waiting)
    batch.step()
    waiting.is_cancelled = True
    finished(batch)
    assert waiting.row.generated == []


def test_logprobs_are_those_of_a_plain_forward(model):
    [prompt] = random_prompts(1)
    row, plain = live(prompt, CONFIGS[0], num_logprobs=3), live(prompt, CONFIGS[0])
    batch = ContinuousBatch(model, (), max_rows=4)
    batch.enter(row)
    batch.enter(plain)
    finished(batch)
    assert row.row.generated == plain.row.generated
    assert plain.logprobs == []
    ids = torch.tensor([prompt + row.row.generated])
    with torch.no_grad():
        wanted = compute_logits(model, ids.shape[1], input_ids=ids)[0].float().log_softmax(-1)
    for place, found in enumerate(row.logprobs, start=len(prompt) - 1):
        assert found.token_id == row.row.generated[place - len(prompt) + 1]
        assert math.isclose(found.logprob, wanted[place, found.token_id].item(), abs_tol=1e-4)
        assert [token_id for token_id, _ in found.top] == wanted[place].topk(3).indices.tolist()
        assert found.top[0][0] == found.token_id  # greedy
    scored = prompt_logprobs(model, ids[0].tolist(), 2)
    assert scored[0] is None
    for place, found in enumerate(scored[1:]):
        assert found is not None
        assert math.isclose(found.logprob, wanted[place, int(ids[0, place + 1])].item(), abs_tol=1e-4)
        assert len(found.top) == 2
    assert prompt_logprobs(model, [5], 2) == [None]


def test_a_long_text_is_scored_in_parts_to_the_same_end(model, monkeypatch):
    [prompt] = random_prompts(1, longest=40)
    whole = prompt_logprobs(model, prompt * 2, 1)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    monkeypatch.setattr("tuneful.infer.continuous._MAX_SCORED_LOGITS", 3 * vocabulary)
    parts = prompt_logprobs(model, prompt * 2, 1)
    assert len(parts) == len(whole)
    for one, other in zip(parts[1:], whole[1:], strict=True):
        assert one is not None
        assert other is not None
        assert one.token_id == other.token_id
        assert math.isclose(one.logprob, other.logprob, abs_tol=1e-5)


def test_penalties_make_what_was_said_less_likely(model):
    [prompt] = random_prompts(1)
    config = GenerateConfig(max_new_tokens=20)
    free, present, frequent = live(prompt, config), live(prompt, config, presence_penalty=1e6), live(prompt, config)
    frequent.frequency_penalty = 1e6
    batch = ContinuousBatch(model, (), max_rows=3)
    for row in (free, present, frequent):
        batch.enter(row)
    finished(batch)
    assert len(set(free.row.generated)) < 20
    assert len(set(present.row.generated)) == len(set(frequent.row.generated)) == 20
