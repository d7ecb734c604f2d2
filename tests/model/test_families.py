"""Families, one for each outcome and those that most people train, do as docs/families.md says and as each row alone does."""

import pytest
import transformers
from tests.doubles.families import FAMILIES
from tests.model.families import PAGE, examine, page_rows, page_version

SUBSET = {
    "llama": ("trie", "shared", "trie"),
    "jetmoe": ("trie", "padded", "trie"),  # experts that attend: more heads than the configuration says
    "gemma3n_text": ("trie", "shared", "trie"),  # windows; layers of unlike width
    "gpt_oss": ("padded", "padded", "padded"),  # windows, and sinks of attention
    "nemotron": ("padded", "padded", "padded"),  # layers that do not hand on what attention is given
    "phimoe": ("padded", "padded", "padded"),  # a router that jitters in training
    "qwen3_next": ("padded", "held", "padded"),  # a cache from which no row can be taken
    "mamba": ("padded", "single", "padded"),  # a state that padding would enter
    "rwkv": ("padded", "single", "padded"),  # a state under another name
    "bart": (
        "padded",
        "single",
        "padded",
    ),  # positions counted from the first column; parameters that text does not reach
    "roberta": ("padded", "single", "padded"),  # positions that begin behind the padding token
    "deepseek_v4": ("padded", "single", "padded"),  # stretches compressed from the first column on
    "minimax": ("padded", "single", "padded"),  # a cache of its own
    "openai-gpt": ("padded", "single", "padded"),  # no cache, no `logits_to_keep`
    "falcon": ("padded", "padded", "padded"),  # linear layers of a kind of its own
    "ctrl": ("trie", "shared", "trie"),  # linear layers whose names are numbers, as those of layers are
    "jamba": ("padded", "held", "padded"),  # a linear layer whose weights are read without it
    "longcat_flash": ("trie", "shared", "trie"),
    "laguna": ("trie", "shared", "refused"),  # an adapter that peft does not find again
    **dict.fromkeys(("gpt2", "gpt_neox", "qwen2", "qwen3", "qwen3_moe"), ("trie", "shared", "trie")),
    **dict.fromkeys(("gemma", "olmo2", "smollm3", "granite"), ("trie", "shared", "trie")),
    **dict.fromkeys(("mistral", "mixtral", "gemma2", "gemma3_text", "phi3"), ("trie", "shared", "trie")),
    "prophetnet": (
        "one record at a time",
        "recompute",
        "one record at a time",
    ),  # padding that changes what stands before it
}


@pytest.mark.parametrize("family", SUBSET)
def test_a_family_is_trained_and_answers_as_it_does_alone(family):
    found = examine(family)
    assert found.wrong == ()
    assert not found.refused
    assert (found.layout, found.answers, found.lora) == SUBSET[family]
    assert bool(found.adapted) == (found.lora != "refused")
    assert bool(found.answers_reason) == (found.answers != "shared")


@pytest.mark.parametrize("family", ["jetmoe", "qwen2", "gemma2"])
def test_without_the_kernels_a_family_is_trained_in_the_same_way(family, monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    found = examine(family)
    assert found.wrong == ()
    assert (found.layout, found.lora) == (SUBSET[family][0], SUBSET[family][2])
    assert bool(found.layout_reason) == (found.layout != "trie")


@pytest.mark.parametrize("family", ["xlnet", "reformer"])
def test_a_family_that_cannot_be_trained_on_text_is_refused_in_a_sentence(family):
    found = examine(family)
    assert "choose a" in found.refused
    assert not found.wrong


def test_the_page_says_the_same_of_them():
    text = PAGE.read_text(encoding="utf-8")
    if page_version(text) == transformers.__version__:
        assert {family: page_rows(text)[family] for family in SUBSET} == SUBSET
        assert [family for family in FAMILIES if f"`{family}`" not in text] == []
    assert "None crashes, and none answers wrongly." in text
