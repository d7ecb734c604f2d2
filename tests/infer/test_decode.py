"""A model answers in the fastest way that is proved on it: planted faults are found, and the next slower way is taken."""

import pytest
import torch
from tests.doubles.engine import VOCABULARY, tiny_model
from tests.doubles.families import tiny_family
from tests.model.families import greedy_of_transformers

from tuneful.config import Config, GenerateConfig
from tuneful.infer import decode
from tuneful.infer.cached import CachedDecoder
from tuneful.infer.decode import choose_decoder, chosen_decoder, laid_out, make_decoder
from tuneful.infer.generate import generate
from tuneful.infer.plain import PaddedDecoder, RecomputingDecoder, SingleDecoder
from tuneful.infer.session import LoadedModel

GREEDY = GenerateConfig(temperature=0, max_new_tokens=10, batch_size=4)
PROMPTS = [[3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [2, 7], [3, 1, 4, 1, 8, 2, 8]]
SWITCH = 16


def with_sinks():
    """A family whose attention is not the plain one."""
    return tiny_family("gpt_oss")


def switching():
    """Phi-3, whose rotary positions turn by other angles as soon as anything in the batch is longer than 16 tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [40.0, 30.0, 20.0, 10.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": SWITCH, **factors}
    return tiny_family("phi3", sliding_window=None, rope_parameters=rope, original_max_position_embeddings=SWITCH)


def answers(model, prompts, config=GREEDY, stop=()):
    found = dict(generate(model, prompts, config, stop))
    return [list(found[index].token_ids) for index in range(len(prompts))]


def spoil(monkeypatch, decoder):
    """Let `decoder` give other logits than it should."""
    right = decoder._call
    monkeypatch.setattr(decoder, "_call", lambda self, *given: right(self, *given) + torch.arange(VOCABULARY))


def test_each_way_is_followed_by_the_next_slower_one_where_it_is_wrong(monkeypatch):
    assert choose_decoder(tiny_model()).reason is None
    assert isinstance(make_decoder(tiny_model(), 1, 0), CachedDecoder)
    wanted = answers(tiny_model(), PROMPTS)
    for decoder, name, follower in (
        (CachedDecoder, "padded", PaddedDecoder),
        (PaddedDecoder, "single", SingleDecoder),
        (SingleDecoder, "recompute", RecomputingDecoder),
    ):
        spoil(monkeypatch, decoder)
        model = tiny_model()
        choice = choose_decoder(model)
        assert choice.name == name
        assert "differ" in str(choice.reason)
        assert type(make_decoder(model, 1, 0)) is follower
        assert answers(model, PROMPTS) == wanted


def test_what_a_family_raises_is_a_reason_and_no_end(monkeypatch):
    def fails(self, ids):
        raise IndexError("too many indices")

    monkeypatch.setattr(PaddedDecoder, "_call", fails)
    choice = choose_decoder(with_sinks())
    assert choice.name == "single"
    assert "a padded batch fails (IndexError: too many indices)" in str(choice)


def test_memory_that_runs_out_is_no_fault_of_the_family(monkeypatch):
    def fails(self, ids):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PaddedDecoder, "_call", fails)
    with pytest.raises(torch.OutOfMemoryError):
        choose_decoder(with_sinks())


def test_a_model_is_proved_once(monkeypatch):
    model = tiny_model()
    first, _ = laid_out(model)
    monkeypatch.setattr(decode, "choose_decoder", lambda *given: pytest.fail("proved again"))
    assert laid_out(model)[0] is first
    assert answers(model, PROMPTS)


def test_the_check_leaves_mode_and_attention_as_they_were():
    for model in (tiny_model().train(), with_sinks().eval()):
        before = model.training, model.config._attn_implementation
        choose_decoder(model)
        assert (model.training, model.config._attn_implementation) == before


def test_the_prompts_of_the_check_are_longer_than_windows_and_have_no_padding_in_them():
    model = tiny_family("mistral", sliding_window=64)
    lengths = [len(prompt) for prompt in decode._prompts(model)]
    assert min(lengths) < 8
    assert sorted(lengths)[1] > 64
    assert max(len(prompt) for prompt in decode._prompts(tiny_family("mistral", sliding_window=4096))) < 16
    padded = tiny_family("roberta")
    assert all(padded.config.pad_token_id not in prompt for prompt in decode._prompts(padded))


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "mistral", "mamba", "openai-gpt"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_row_that_ends_early_changes_no_other(family, batch_size):
    model = tiny_family(family)
    full = answers(model, PROMPTS)
    stop = {full[1][2]}
    cut = [own[: own.index(next(iter(stop))) + 1] if stop & set(own) else own for own in full]
    assert len({len(own) for own in cut}) > 1
    assert answers(model, PROMPTS, GREEDY.model_copy(update={"batch_size": batch_size}), stop) == cut


def test_rows_that_may_outgrow_the_switch_of_rotary_positions_are_answered_alone():
    model = switching()
    assert chosen_decoder(model).by_length
    assert isinstance(make_decoder(model, 4, 0, longest=SWITCH), CachedDecoder)
    assert isinstance(make_decoder(model, 4, 0, longest=SWITCH + 1), SingleDecoder)
    ours = answers(model, PROMPTS)
    assert ours == [greedy_of_transformers(model, prompt) for prompt in PROMPTS]


def test_a_model_that_answers_in_a_slower_way_says_so_when_it_is_loaded(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("tuneful.infer.session.load_encoder", lambda *given: None)
    monkeypatch.setattr("tuneful.infer.session.choose_dtype", lambda *given: torch.float32)
    for model in (tiny_model(), with_sinks()):
        pretrained = type("Pretrained", (), {"model": model, "tokenizer": None})()
        LoadedModel.of(pretrained, Config(), said.append)
    assert [line.partition(", because ")[0] for line in said] == ["answers: a padded batch"]
