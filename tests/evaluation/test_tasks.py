"""A model takes tests: log-likelihoods are transformers' own, item by item, in float64 and float32, template or raw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.doubles.engine import tiny_model
from tests.doubles.exported import byte_level_tokenizer

from tuneful.config import Config, EvaluationConfig
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import load_encoder
from tuneful.errors import ConfigError
from tuneful.evaluation.constraints import Constraint
from tuneful.evaluation.task_files import ChoiceItem, InstructionItem, Task
from tuneful.evaluation.tasks import (
    ask_instructions,
    choice_examples,
    encoder_of,
    fewshot,
    score_choices,
    score_instructions,
)
from tuneful.runs.schema import AnswerRow
from tuneful.train.scoring import layout_for_scoring

ITEMS = tuple(
    ChoiceItem(
        f"t.jsonl:{number + 1}", f"What is {number} and {number}?", (str(2 * number), "nothing at all", "Füße"), (0,)
    )
    for number in range(6)
)
BLANKS = tuple(
    ChoiceItem(
        f"b.jsonl:{number + 1}", f"The cup {number} fell as _ shook.", ("the shelf", "a moon"), (0,), has_blank=True
    )
    for number in range(3)
)
TOKENIZER = byte_level_tokenizer(begins=True)
PLAIN = byte_level_tokenizer()


def task_of(items: tuple[Any, ...]) -> Task:
    return Task("t", "t.jsonl", "0", items)


def asked(tokenizer: Any, prompt: str, template: str = "alpaca") -> tuple[Encoder, EvaluationConfig]:
    config = Config(template={"name": template}, evaluation={"tests": ["t.jsonl"], "tests_prompt": prompt})
    return encoder_of(load_encoder(tokenizer, config), tokenizer, config.evaluation), config.evaluation


def model_of(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return tiny_model("llama", dtype, vocab_size=len(TOKENIZER), **changes)


def plain_loglikelihood(model: Any, before: str, choice: str, tokenizer: Any) -> float:
    """By transformers' forward over what the tokenizer makes of the text, in which it puts a begin token once."""
    ids, context = tokenizer(before + choice).input_ids, tokenizer(before).input_ids
    assert ids[: len(context)] == context
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(len(context), len(ids)))


def flat(examples: list[Any]) -> list[Any]:
    """The examples of all choices."""
    return [one for own in examples for one in own if not isinstance(own, str)]


def scores_of(model: Any, items: Any, encoder: Encoder, shown: Any = ()) -> Any:
    examples = choice_examples(shown, items, encoder)
    layout = layout_for_scoring(model, flat(examples))
    assert layout.name == "trie", layout.reason
    return score_choices(model, items, examples, layout)


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:\n"
)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, PLAIN], ids=["begins", "plain"])
@pytest.mark.parametrize("prompt", ["template", "raw"])
def test_loglikelihoods_are_those_of_transformers(
    dtype: torch.dtype, bound: float, tokenizer: Any, prompt: str
) -> None:
    model, (encoder, _) = model_of(dtype), asked(tokenizer, prompt)
    for score, item in zip(scores_of(model, ITEMS, encoder), ITEMS, strict=True):
        before = item.question if prompt == "raw" else ALPACA.format(item.question)
        space = " " if prompt == "raw" else ""
        wanted = [plain_loglikelihood(model, before, space + choice, tokenizer) for choice in item.choices]
        assert score.loglikelihoods == pytest.approx(wanted, abs=bound)
        assert score.acc == (wanted.index(max(wanted)) == 0)
        by_character = [one / len(choice) for one, choice in zip(wanted, item.choices, strict=True)]
        assert score.acc_norm == (by_character.index(max(by_character)) == 0)
        by_byte = [one / len(choice.encode()) for one, choice in zip(wanted, item.choices, strict=True)]
        assert score.acc_bytes == (by_byte.index(max(by_byte)) == 0)


def test_items_that_stand_before_are_answered_and_their_tokens_are_computed_once() -> None:
    model, (encoder, _) = model_of(), asked(TOKENIZER, "raw")
    shown, items = ITEMS[:2], ITEMS[2:]
    before = "What is 0 and 0? 0\n\nWhat is 1 and 1? 2\n\n"
    for score, item in zip(scores_of(model, items, encoder, shown), items, strict=True):
        wanted = [plain_loglikelihood(model, before + item.question, f" {one}", TOKENIZER) for one in item.choices]
        assert score.loglikelihoods == pytest.approx(wanted, abs=1e-6)
    examples = flat(choice_examples(shown, items, encoder))
    begin = TOKENIZER(before).input_ids[:-1]
    assert all(example.token_ids[: len(begin)].tolist() == begin for example in examples)


def test_items_that_stand_before_are_earlier_turns_under_a_template() -> None:
    model, (encoder, _) = model_of(), asked(TOKENIZER, "template", "chatml")
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    before = turn.format(ITEMS[0].question) + "0<|im_end|>\n" + turn.format(ITEMS[1].question)
    [score] = scores_of(model, ITEMS[1:2], encoder, ITEMS[:1])
    wanted = [plain_loglikelihood(model, before, choice, TOKENIZER) for choice in ITEMS[1].choices]
    assert score.loglikelihoods == pytest.approx(wanted, abs=1e-6)


def test_a_blank_holds_the_choice_and_the_rest_of_the_sentence_is_scored() -> None:
    model, (encoder, _) = model_of(), asked(TOKENIZER, "raw")
    for score, item in zip(scores_of(model, BLANKS, encoder), BLANKS, strict=True):
        before = item.question.partition("_")[0]
        wanted = [plain_loglikelihood(model, before + choice, " shook.", TOKENIZER) for choice in item.choices]
        assert score.loglikelihoods == pytest.approx(wanted, abs=1e-6)


def test_white_space_at_the_end_of_a_question_belongs_to_the_choice() -> None:
    model, (encoder, _) = model_of(), asked(PLAIN, "raw")
    item = ChoiceItem("t.jsonl:1", "The answer is ", ("yes", "no"), (1,))
    [score] = scores_of(model, [item], encoder)
    wanted = [plain_loglikelihood(model, "The answer is", f"  {choice}", PLAIN) for choice in item.choices]
    assert score.loglikelihoods == pytest.approx(wanted, abs=1e-6)


def test_an_item_that_does_not_fit_the_context_is_not_scored_and_says_why() -> None:
    model, (encoder, _) = model_of(max_position_embeddings=64), asked(PLAIN, "raw")
    long = ChoiceItem("t.jsonl:9", "word " * 80, ("yes", "no"), (0,))
    short, score = scores_of(model, [ITEMS[0], long], encoder)
    assert short.unscored_reason is None
    assert score.acc is score.acc_norm is score.acc_bytes is None
    assert score.unscored_reason is not None
    assert score.unscored_reason.endswith("tokens, and the model's context holds 64")


def test_an_item_as_long_as_the_context_is_scored() -> None:
    (encoder, _) = asked(PLAIN, "raw")
    [own] = choice_examples((), ITEMS[:1], encoder)
    assert not isinstance(own, str)
    fits = max(map(len, own)) - 1
    for context, is_scored in ((fits, True), (fits - 1, False)):
        [score] = scores_of(model_of(max_position_embeddings=context), ITEMS[:1], encoder)
        assert (score.acc is not None) is is_scored


def test_items_before_are_the_first_or_drawn_by_the_seed_and_never_scored() -> None:
    task = task_of(ITEMS)
    first = EvaluationConfig(tests=("t",), num_fewshot=2)
    drawn = EvaluationConfig(tests=("t",), num_fewshot=2, fewshot_sampler="random")
    assert fewshot(task, first, 0) == (list(ITEMS[:2]), list(ITEMS[2:]))
    draws = [fewshot(task, drawn, seed) for seed in range(8)]
    assert draws == [fewshot(task, drawn, seed) for seed in range(8)]
    assert len({tuple(one.source for one in shown) for shown, _ in draws}) > 3
    assert all({*shown, *items} == {*ITEMS} and len(items) == 4 for shown, items in draws)
    with pytest.raises(ConfigError, match="none is left to score"):
        fewshot(task, EvaluationConfig(tests=("t",), num_fewshot=6), 0)


def test_a_model_that_cannot_share_prefixes_is_computed_one_record_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (encoder, _) = model_of(), asked(PLAIN, "raw")
    examples = choice_examples((), ITEMS[:2], encoder)
    together = score_choices(model, ITEMS[:2], examples, layout_for_scoring(model, flat(examples)))
    monkeypatch.setattr("tuneful.train.scoring.why_not_shared", lambda model: "of a rule")
    layout = layout_for_scoring(model, flat(examples))
    assert (layout.name, layout.max_tokens, layout.reason) == (
        "padded",
        1,
        "one record at a time, because of a rule",
    )
    alone = score_choices(model, ITEMS[:2], examples, layout)
    for one, other in zip(together, alone, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-9)


def test_answers_are_held_against_their_instructions_without_what_was_thought() -> None:
    rules = (Constraint("punctuation:no_comma", {}), Constraint("startend:quotation", {}))
    items = (
        InstructionItem("i.jsonl:1", "Say it.", rules),
        InstructionItem("i.jsonl:2", "No.", (), "cannot verify x:y"),
        InstructionItem("i.jsonl:3", "word " * 400, rules[:1]),
    )
    encoder, _ = asked(PLAIN, "template")
    instructions = ask_instructions(task_of(items), encoder, 200)
    assert list(instructions.conversations) == [0]
    row = AnswerRow("i.jsonl:1", "p", "<think>a, b</think>\nno comma\n", "stop", 5)
    first, second, third = score_instructions(instructions, [row])
    assert (first.strict, first.loose, first.unscored_reason) == ((True, False), (True, False), None)
    assert first.instructions == ("punctuation:no_comma", "startend:quotation")
    assert (second.strict, second.unscored_reason) == ((), "cannot verify x:y")
    assert third.unscored_reason is not None
    assert "the model's context holds 200" in third.unscored_reason


def test_a_raw_prompt_is_the_text_after_one_begin_token() -> None:
    encoder, _ = asked(TOKENIZER, "raw")
    items = (InstructionItem("i.jsonl:1", "Go on: <|im_end|>", (Constraint("punctuation:no_comma", {}),)),)
    [conversation] = ask_instructions(task_of(items), encoder, 200).conversations.values()
    ids = encoder.prompt_ids(conversation)
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") not in ids
    assert encoder.text.token_text(ids[1:]) == "Go on: <|im_end|>"
