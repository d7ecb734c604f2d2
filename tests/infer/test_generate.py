"""Answers: those of single prompts and of transformers' own `generate`, whatever the batch, and nothing after the stop."""

import numpy as np
import pytest
import torch
from tests.doubles.engine import FAMILIES, VOCABULARY, tiny_model
from tests.doubles.families import tiny_family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuneful.config import GenerateConfig
from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.infer.cached import CachedDecoder
from tuneful.infer.decode import make_decoder, why_not_cached
from tuneful.infer.generate import answer, answer_each, generate, stop_token_ids, stream
from tuneful.infer.plain import PaddedDecoder
from tuneful.types import Conversation, Turn

GREEDY = GenerateConfig(temperature=0, max_new_tokens=24, batch_size=16)
SAMPLED = GenerateConfig(temperature=1, max_new_tokens=24, batch_size=16)


def random_prompts(count=12, seed=0, longest=20):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, rng.integers(1, longest)).tolist() for _ in range(count)]


def all_of(model, prompts, config, stop, **others):
    """Every prompt's Generated, in the order of the prompts."""
    finished = dict(generate(model, prompts, config, stop, **others))
    assert sorted(finished) == list(range(len(prompts)))
    return [finished[index] for index in range(len(prompts))]


def stops_that_occur(model, prompts, config=GREEDY):
    """Two tokens at which some of the answers end, some sooner than others, and some never."""
    answers = [generated.token_ids for generated in all_of(model, prompts, config, ())]
    firsts = {t: [a.index(t) if t in a else len(a) for a in answers] for t in range(VOCABULARY)}
    by_spread = sorted(firsts, key=lambda token: len(set(firsts[token])), reverse=True)
    return set(by_spread[:2])


@pytest.fixture(params=["gpt2", "llama"], scope="module")
def model(request):
    return tiny_model(request.param, initializer_range=0.5)


@pytest.fixture(scope="module")
def stop(model):
    found = stops_that_occur(model, random_prompts())
    lengths = {len(generated.token_ids) for generated in all_of(model, random_prompts(), GREEDY, found)}
    assert len(lengths) > 3, "the answers should end at different times"
    return found


def test_greedy_answers_are_those_of_transformers(model, stop):
    prompts = random_prompts()
    ours = all_of(model, prompts, GREEDY, stop)
    model.eval()
    for prompt, generated in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=sorted(stop),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert list(generated.token_ids) == theirs
        assert generated.finish_reason == ("stop" if theirs[-1] in stop else "length")


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_an_answer_does_not_depend_on_the_batch_it_is_computed_in(model, stop, config, batch_size):
    """Rows leave as they end, at different times in different batches: nobody else's answer changes."""
    prompts = random_prompts()
    other = config.model_copy(update={"batch_size": batch_size})
    assert all_of(model, prompts, other, stop, seed=3) == all_of(model, prompts, config, stop, seed=3)


@pytest.mark.parametrize("least_shared", [1, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_500_answers_are_the_ones_given_alone(family, least_shared, monkeypatch):
    """Over a common preamble, kept once or in every slot, of lengths from 1 to 20, with rows that enter and leave."""
    for name in ("LEAST_SHARED", "LEAST_SHARED_COMPILED"):
        monkeypatch.setattr(f"tuneful.infer.decode.{name}", least_shared)
    model = tiny_model(family, initializer_range=0.3)
    prompts = [[5, 6, 7, 8, *prompt] for prompt in random_prompts(100, seed=1)] * (5 if family == "llama" else 1)
    stop = stops_that_occur(model, prompts[:20])
    config = GREEDY.model_copy(update={"max_new_tokens": 12, "batch_size": 37})
    together = all_of(model, prompts, config, stop)
    alone = all_of(model, prompts[:100], config.model_copy(update={"batch_size": 1}), stop)
    assert together == alone * (len(prompts) // 100)


def test_our_cache_and_that_of_transformers_answer_alike(model, stop, monkeypatch):
    prompts = random_prompts(20, seed=2)
    ours = all_of(model, prompts, GREEDY, stop)
    assert isinstance(make_decoder(model, 1, 0), CachedDecoder)
    monkeypatch.setattr("tuneful.infer.generate.make_decoder", lambda model, *sizes: PaddedDecoder(model))
    assert all_of(model, prompts, GREEDY, stop) == ours


def test_a_model_whose_attention_is_not_the_plain_one_speaks_through_transformers():
    falcon = tiny_family("falcon")
    assert "an attention of its own" in str(why_not_cached(falcon))
    assert isinstance(make_decoder(falcon, 1, 0), PaddedDecoder)
    assert all_of(falcon, [[1, 2, 3]], GREEDY, ())


def test_a_cache_that_gives_other_logits_is_found_out(monkeypatch):
    model = tiny_model("llama")
    assert why_not_cached(model) is None
    monkeypatch.setattr(
        "tuneful.infer.cache.KeyValues.attend",
        lambda cache, layer, query, hidden, scale, softcap: query.transpose(1, 2).contiguous(),
    )
    assert "the logits of a few tokens differ by" in str(why_not_cached(model))


def test_a_stop_token_ends_an_answer_and_stands_nowhere_else(model, stop):
    for generated in all_of(model, random_prompts(), GREEDY, stop):
        assert not stop & set(generated.token_ids[:-1])
        assert (generated.finish_reason == "stop") == (generated.token_ids[-1] in stop)
        assert generated.finish_reason == "stop" or len(generated.token_ids) == GREEDY.max_new_tokens


def test_no_answer_is_longer_than_it_may_be(model):
    for limit in (1, 5):
        config = GREEDY.model_copy(update={"max_new_tokens": limit})
        answers = all_of(model, random_prompts(4), config, ())
        assert {(len(generated.token_ids), generated.finish_reason) for generated in answers} == {(limit, "length")}


@pytest.mark.parametrize(
    ("family", "changes"), [("gpt2", {"n_positions": 16}), ("llama", {"max_position_embeddings": 16})]
)
def test_an_answer_ends_where_the_context_is_full(family, changes):
    model = tiny_model(family, **changes)
    prompts = [[1] * length for length in (15, 3, 10)]
    assert [len(generated.token_ids) for generated in all_of(model, prompts, GREEDY, ())] == [1, 13, 6]
    with pytest.raises(DataError, match="prompt 1: the prompt has 16 tokens; the model's context holds 16"):
        all_of(model, [[1], [1] * 16], GREEDY, ())


def test_one_candidate_samples_the_greedy_answer(model, stop):
    config = SAMPLED.model_copy(update={"top_k": 1})
    assert all_of(model, random_prompts(), config, stop, seed=5) == all_of(model, random_prompts(), GREEDY, stop)


def test_a_seed_is_an_answer_and_another_seed_another(model):
    prompts = random_prompts(6)
    first, again, other = (all_of(model, prompts, SAMPLED, (), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_prompts_that_are_alike_are_sampled_apart(model):
    answers = all_of(model, [[1, 2, 3]] * 4, SAMPLED, (), seed=0)
    assert len({generated.token_ids for generated in answers}) == 4


@pytest.mark.parametrize("seed", [2**31, 2**32, 2**63, 2**70])
def test_a_large_seed_is_a_seed(model, seed):
    [generated] = all_of(model, [[1, 2]], SAMPLED, (), seed=seed)
    assert len(generated.token_ids) == SAMPLED.max_new_tokens


def test_whoever_iterates_may_train_between_two_answers(model):
    before = model.config._attn_implementation
    for _ in generate(model, random_prompts(3), GREEDY, ()):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert model.config._attn_implementation == before


def test_no_prompts_give_no_answers(model):
    assert all_of(model, [], GREEDY, ()) == []


# -------------------------------------------------------------------------------------------------------------- answer

END = 256
TEXTS = [("Say hello.", ""), ("Add the numbers up.", "1 2 3"), ("Why?", ""), ("Name a colour.", "x")]


@pytest.fixture(scope="module")
def speaking():
    """A model and an encoder over bytes; three ordinary bytes and the end token stop the model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    encoder = Encoder(TextEncoder(fast, find_template("alpaca")), max_length=1024)
    model = tiny_model(vocab_size=END + 1, initializer_range=0.5, eos_token_id=END)
    prompts = [encoder.prompt_ids(conversation) for conversation in conversations()]
    first = all_of(model, prompts, GREEDY, ())
    model.generation_config.eos_token_id = [END, *{generated.token_ids[9] for generated in first[:3]}]
    return model, encoder


def conversations():
    return [Conversation("", (Turn(*text, "none"),), f"test.json:{line}") for line, text in enumerate(TEXTS, 1)]


def test_answers_come_in_order_with_prompt_source_and_no_stop_token_in_their_text(speaking):
    model, encoder = speaking
    told: list[int] = []
    answers = answer(model, encoder, conversations(), GREEDY, advance=told.append)
    assert sum(told) == len(answers) == len(TEXTS)
    stop_ids = set(model.generation_config.eos_token_id)
    for conversation, found in zip(conversations(), answers, strict=True):
        assert found.source == conversation.source
        assert found.prompt == encoder.prompt_text(conversation)
        said = found.token_ids[:-1] if found.finish_reason == "stop" else found.token_ids
        assert not stop_ids & set(said)
        decoded = encoder.text.decode(said)
        if found.finish_reason == "length":  # half a character at its end is none
            decoded = decoded.rstrip("\ufffd")
        assert found.text == encoder.text.template.parse(decoded)
    assert {found.finish_reason for found in answers} >= {"stop"}


def test_a_stream_put_together_is_the_answer(speaking):
    model, encoder = speaking
    for config in (GREEDY, SAMPLED):
        for conversation in conversations():
            [whole] = answer(model, encoder, [conversation], config, seed=4)
            assert "".join(stream(model, encoder, conversation, config, seed=4)) == whole.text


def test_an_answer_ends_at_a_stop_text_and_does_not_hold_it(speaking):
    model, encoder = speaking
    free = answer(model, encoder, conversations(), GREEDY)
    stop = max((given.text for given in free), key=len)[1:3]
    config = GREEDY.model_copy(update={"stop": (stop,)})
    stopped = answer(model, encoder, conversations(), config)
    for conversation, before, after in zip(conversations(), free, stopped, strict=True):
        assert stop not in "".join(stream(model, encoder, conversation, config))
        assert after.text == before.text.partition(stop)[0].strip()
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert (len(after.token_ids) < len(before.token_ids)) <= (after.finish_reason == "stop")
    assert any(len(after.token_ids) < len(before.token_ids) for before, after in zip(free, stopped, strict=True))


def test_who_answers_a_part_of_a_file_gives_the_answers_of_the_whole(speaking):
    model, encoder = speaking
    whole = answer(model, encoder, conversations(), SAMPLED, seed=2)
    part = dict(answer_each(model, encoder, conversations()[2:], SAMPLED, seed=2, numbers=[2, 3]))
    assert [part[0], part[1]] == whole[2:]


def test_a_control_token_that_begins_a_turn_ends_an_answer(byte_tokenizer):
    encoder = Encoder(TextEncoder(byte_tokenizer, find_template("chatml")), max_length=64)
    stops = stop_token_ids(tiny_model(vocab_size=400, eos_token_id=None), encoder)
    assert stops == set(byte_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"]))


def test_answers_do_not_depend_on_the_batch(speaking):
    model, encoder = speaking
    for config in (GREEDY, SAMPLED):
        together = answer(model, encoder, conversations(), config, seed=1)
        one_by_one = answer(model, encoder, conversations(), config.model_copy(update={"batch_size": 1}), seed=1)
        assert together == one_by_one
