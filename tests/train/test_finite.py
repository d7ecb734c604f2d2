"""A number that is not finite has a message at the step where it appears, with the records; it is never written as a figure."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from tests.doubles.engine import PADDED, TRIE, random_records, tiny_model, train_config

from tuneful.config import Config, GenerateConfig, load_config
from tuneful.errors import TunefulError
from tuneful.evaluation.document import compare_models
from tuneful.evaluation.metrics import score_answer
from tuneful.files import as_json
from tuneful.infer.sample import next_tokens
from tuneful.runs.method import doubtful_rate
from tuneful.runs.schema import Evaluation, GeneralScore, Notice, Step, as_row
from tuneful.train.loop import Training, record_nll
from tuneful.train.optimizer import AdamW

POISON = 23


def poisoned(model: Any, bad: float = math.nan) -> Any:
    """A model whose embedding of the token POISON is not finite."""
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = bad
    return model


def records_with_one_bad() -> tuple[list[Any], Any]:
    examples = random_records(6)
    for example in examples:
        example.token_ids[example.token_ids == POISON] = 1
    examples[4].token_ids[2] = POISON
    return examples, examples[4]


@pytest.mark.parametrize("layout", [TRIE, PADDED], ids=["trie", "padded"])
def test_a_validation_loss_that_is_not_finite_names_step_and_records(layout: Any) -> None:
    validation, bad = records_with_one_bad()
    model = poisoned(tiny_model(tie_word_embeddings=False))
    config = train_config(batch_size=2, max_steps=2)
    run = Training(model, AdamW(model, config, torch.float32), random_records(4), validation, config, layout).run()
    with pytest.raises(
        TunefulError, match=r"step 0: the validation loss is nan: not finite, before any training"
    ) as found:
        list(run)
    assert bad.source in str(found.value)
    assert "model.dtype=float32" in str(found.value)


def test_a_validation_loss_that_training_has_broken_names_the_step_and_the_learning_rate() -> None:
    model = tiny_model(tie_word_embeddings=False)
    config = train_config(batch_size=2, max_steps=4, eval_steps=2)
    training = Training(
        model, AdamW(model, config, torch.float32), random_records(4), random_records(2, seed=1), config, TRIE
    )
    events = training.run()
    seen = [next(events) for _ in range(3)]
    assert [type(event) for event in seen] == [Evaluation, Step, Step]
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(TunefulError, match=r"step 2: the validation loss is nan.* Lower train\.learning_rate"):
        next(events)


def test_a_loss_outside_of_any_step_names_its_records() -> None:
    examples, bad = records_with_one_bad()
    with pytest.raises(TunefulError, match="is not finite under this model") as found:
        record_nll(poisoned(tiny_model(tie_word_embeddings=False)), examples, TRIE)
    assert bad.source in str(found.value)
    assert not any(example.source in str(found.value) for example in examples if example is not bad)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_whose_logits_are_not_finite_gives_no_answer(temperature: float, bad: float) -> None:
    logits = torch.zeros(3, 7)
    logits[1, 4] = bad
    with pytest.raises(TunefulError, match="logits are not finite"):
        next_tokens(logits, GenerateConfig(temperature=temperature), [torch.Generator()] * 3)
    logits[1, 4] = -math.inf  # what a model may say of a token that cannot be
    assert len(next_tokens(logits, GenerateConfig(temperature=temperature), [torch.Generator()] * 3)) == 3


def test_a_gradient_of_exactly_zero_is_told_once() -> None:
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.model.norm.weight.zero_()
    config = train_config(batch_size=2, max_steps=4, weight_decay=0.0)
    events = list(Training(model, AdamW(model, config, torch.float32), random_records(4), [], config, TRIE).run())
    assert [event.grad_norm for event in events if isinstance(event, Step)] == [0.0] * 4
    notices = [event for event in events if isinstance(event, Notice)]
    assert [(notice.step, notice.notice) for notice in notices] == [(1, "zero_gradient")]


def test_the_loss_of_the_model_as_it_came_and_the_last_one_are_kept_with_the_state() -> None:
    model = tiny_model()
    config = train_config(batch_size=2, max_steps=3, eval_steps=1)
    training = Training(
        model, AdamW(model, config, torch.float32), random_records(4), random_records(2, seed=1), config, TRIE
    )
    losses = [event.validation_loss for event in training.run() if isinstance(event, Evaluation)]
    assert (training.state.base_loss, training.state.last_loss) == (losses[0], losses[-1])


# What is measured may be of any size


@pytest.mark.parametrize("size", [1e2, 1e4, 1e9, 1e30, 3e38])
@pytest.mark.parametrize("only", [None, 3])
def test_a_model_that_has_diverged_is_compared_in_numbers_that_json_can_hold(size: float, only: int | None) -> None:
    def scores(large: bool) -> list[Any]:
        nll = [size * (1 + n / 20) if large and only in (None, n) else 3.0 + n for n in range(20)]
        return [
            score_answer("x" * (n % 5 + 1), "xx", ended=True, reference_nll=nll[n], reference_tokens=3)
            for n in range(20)
        ]

    def general(large: bool) -> list[GeneralScore]:
        return [GeneralScore("passage", f"p{n}", size * (n + 1) if large else 5.0 + n, 3, 10, "a") for n in range(10)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base, tuned in ((False, True), (True, False)):
            found = compare_models(Config(), scores(base), scores(tuned), [None] * 20, general(base), general(tuned))
            json.loads(as_json(as_row(found)), parse_constant=lambda name: pytest.fail(name))
    loss = next(metric for metric in found.metrics if metric.name == "reference_loss")
    assert loss.base > loss.tuned


def test_a_number_that_json_cannot_hold_is_named_and_is_no_defect() -> None:
    with pytest.raises(TunefulError, match=r"Out of range for JSON: `metrics\[1\]\.low` is -inf\."):
        as_json({"metrics": [{"low": 1.0}, {"low": -math.inf}]})


# The learning rate is asked about


@pytest.mark.parametrize(
    ("method", "rate", "asked"),
    [
        ("full", 5e-5, False),
        ("full", 5e-3, False),
        ("full", 6e-3, True),
        ("full", 1e5, True),
        ("full", 1e-10, True),
        ("full", 1e-8, False),
        ("lora", 2e-2, False),
        ("lora", 1.0, True),
    ],
)
def test_a_learning_rate_beyond_any_use_is_asked_about(method: str, rate: float, asked: bool) -> None:
    sentence = doubtful_rate(load_config(None, [f"train.method={method}", f"train.learning_rate={rate}"]))
    assert (sentence is not None) is asked
    assert sentence is None or f"train.learning_rate={rate:g}: is that meant?" in sentence
