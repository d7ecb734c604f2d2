"""Rows that come at any time, each with settings of its own, get the tokens that `generate` gives them."""

import math

import pytest
import torch
from tests.doubles.engine import tiny_model
from tests.infer.test_generate import all_of, random_prompts

from tuneful.batch.order import derived_seed
from tuneful.config import GenerateConfig
from tuneful.infer import continuous, decode
from tuneful.infer.cache import Room
from tuneful.infer.continuous import ContinuousBatch, LiveRow, bytes_per_token, prompt_logprobs
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


@pytest.mark.parametrize("num_cached", [1, 60, 90])
def test_rows_for_which_there_is_no_memory_wait_and_go_on_where_they_were(model, monkeypatch, num_cached):
    prompts = random_prompts(9)
    config = GenerateConfig(max_new_tokens=25, temperature=0.8, repetition_penalty=1.2)
    rows = [live(prompt, config, number, num_logprobs=1) for number, prompt in enumerate(prompts)]
    monkeypatch.setattr(continuous, "bytes_per_token", lambda model: 1)
    monkeypatch.setattr(continuous, "available_bytes", lambda device: num_cached * 4)
    monkeypatch.setattr(continuous, "_SPARE_TOKENS", 1)
    batch = ContinuousBatch(model, {1, 2}, max_rows=6)
    for row in rows:
        batch.enter(row)
    most, sent_back = 0, 0
    while batch:
        batch.step()
        in_flight = [row for row in batch._rows if row.row.finish_reason is None]
        most = max(most, len(in_flight))
        sent_back += sum(bool(row.row.generated) for row in batch._waiting)
        assert len(in_flight) <= 1 or len(in_flight) * max(row.num_tokens for row in in_flight) <= num_cached
    assert (most == 1) if num_cached == 1 else (1 < most < 6 and sent_back)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        [alone] = all_of(model, [prompt], config, {1, 2}, seed=3, numbers=[number])
        assert (tuple(row.row.generated), row.row.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert len(row.logprobs) == len(row.row.generated)


def test_weights_that_are_laid_out_stay_until_they_are_given_back(monkeypatch):
    model, made = tiny_model("llama"), []
    lay_out = vars(decode)["_lay_out"]

    def counted(own):
        made.append(own)
        return lay_out(own)

    monkeypatch.setattr(decode, "_lay_out", counted)
    batch = ContinuousBatch(model, (), max_rows=2)
    for number in range(4):
        batch.enter(live(random_prompts(1)[0], CONFIGS[0]))
        finished(batch)
        assert batch.holds_weights
        assert len(made) == (1 if number < 2 else 2)
        if number == 1:
            batch.give_back_weights()
    batch.enter(live(random_prompts(1)[0], CONFIGS[0]))
    assert not batch.holds_weights, "a row is in flight that needs them"


def test_keys_and_values_have_bytes():
    small = tiny_model("llama")
    config = small.config
    wanted = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert bytes_per_token(small) == wanted


def test_slots_become_as_many_as_rows_and_no_more_than_needed():
    room = Room().fitted(1, 100, 64, enters=True)
    assert room == (4, 100)
    assert room.fitted(4, 90, 64, enters=True) is room
    assert room.fitted(5, 90, 64, enters=True) == (8, 100)
    assert room.fitted(4, 101, 64, enters=False) == (7, 164)
    assert Room().fitted(64, 10, 64, enters=True) == (64, 64)
    assert Room().fitted(1, 10, 1, enters=True).num_slots == 1
    long = Room(64, 8000)
    assert long.fitted(2, 100, 64, enters=False) is long
    assert long.fitted(2, 100, 64, enters=True) == (5, 100)


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


def test_a_row_whose_logits_are_not_finite_fails_alone_and_changes_no_other(model, monkeypatch):
    prompts = random_prompts(4)
    config = GenerateConfig(max_new_tokens=12, temperature=0.8)
    rows = [live(prompt, config, number, num_logprobs=1) for number, prompt in enumerate(prompts)]
    sick, choose = rows[1], continuous._chosen

    def infect(logits, stepped):
        if len(sick.row.generated) == 3 and sick in stepped:
            logits = logits.clone()
            logits[stepped.index(sick)] = math.inf
        return choose(logits, stepped)

    monkeypatch.setattr(continuous, "_chosen", infect)
    batch = ContinuousBatch(model, (), max_rows=4)
    for row in rows:
        batch.enter(row)
    finished(batch)
    assert sick.failure is not None
    assert "not finite" in str(sick.failure)
    assert (len(sick.row.generated), sick.row.finish_reason, len(sick.logprobs)) == (3, None, 3)
    for number in (0, 2, 3):
        [alone] = all_of(model, [prompts[number]], config, (), seed=3, numbers=[number])
        assert (tuple(rows[number].row.generated), rows[number].row.finish_reason) == (
            alone.token_ids,
            alone.finish_reason,
        )
        assert rows[number].failure is None
