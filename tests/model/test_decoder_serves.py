"""The decoder serves the models that it read and no other: whoever changed or listens to one has transformers' own forward."""

from typing import Any

import peft
import pytest
import torch
import transformers
from tests.doubles.decoders import alone, differences, run, small_model

from tuneful.model import decoder
from tuneful.model.decoder import FAMILIES, is_served

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
# ------------------------------------------------------------------------------------------------------- who is served


@pytest.mark.parametrize("variant", FAMILIES)
def test_what_is_not_served_runs_in_transformers_own_forward_over_the_same_trie(
    variant: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(variant)
    monkeypatch.setattr(decoder, "trie_attention", lambda *_, **__: pytest.fail("the decoder's own forward"))
    heard = []
    model.base_model.register_forward_hook(lambda *_: heard.append(1))
    assert not is_served(model)
    found = run(model)
    assert heard == [1]
    expected = alone(model)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert max(differences(found, expected).values()) < 1e-5


OTHERS: dict[str, Any] = {
    "GPTNeoX": {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96},
    "Glm": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 96,
    },
    "Starcoder2": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96},
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_that_is_not_on_the_page_is_exact_as_well(family: str, arithmetic: str) -> None:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=97, num_hidden_layers=2, **ends, **OTHERS[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().train()
    assert not is_served(model)
    found, expected = run(model), alone(model)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert max(differences(found, expected).values()) < 1e-5


def replaced_class(module: Any) -> None:
    module.__class__ = type(type(module).__name__, (type(module),), {"__module__": "elsewhere"})


CHANGES: dict[str, Any] = {
    "another model": replaced_class,
    "another base": lambda model: replaced_class(model.base_model),
    "another layer": lambda model: replaced_class(decoder._layers(model)[1]),
    "another attention": lambda model: replaced_class(attention_of(model)),
    "another MLP": lambda model: replaced_class(decoder._layers(model)[2].mlp),
    "no layer at all": lambda model: decoder._layers(model).__setitem__(1, torch.nn.Identity()),
    "a layer fewer than configured": lambda model: setattr(model.config, "num_hidden_layers", 2),
    "a hook before the model": lambda model: model.register_forward_pre_hook(lambda *_: None),
    "a hook after the head": lambda model: model.get_output_embeddings().register_forward_hook(lambda *_: None),
    "a hook at the embedding": lambda model: model.get_input_embeddings().register_forward_hook(lambda *_: None),
    "a hook in the MLP": lambda model: mlp_of(model).register_full_backward_hook(lambda *_: None),
    "a hook before a backward": lambda model: attention_of(model).register_full_backward_pre_hook(lambda *_: None),
    "a forward in place": lambda model: setattr(attention_of(model), "forward", attention_of(model).forward),
    "a forward of the whole": lambda model: setattr(model, "forward", model.forward),
}


def mlp_of(model: Any) -> Any:
    return decoder._layers(model)[0].mlp


def attention_of(model: Any) -> Any:
    layer = decoder._layers(model)[1]
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("variant", ["Llama", "Gemma3", "GPT2"])
def test_a_model_with_code_of_others_in_it_is_not_served(variant: str, change: str) -> None:
    model = small_model(variant)
    assert is_served(model)
    CHANGES[change](model)
    assert not is_served(model)


def test_whoever_listens_to_all_modules_hears_them() -> None:
    model, heard = small_model("Llama"), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: heard.append(type(module).__name__)
    )
    try:
        found = run(model)
    finally:
        handle.remove()
    assert heard.count("LlamaDecoderLayer") == 3
    assert found.loss == pytest.approx(run(model).loss, rel=1e-6)
    assert heard.count("LlamaDecoderLayer") == 3


DROPOUTS: dict[str, dict[str, Any]] = {
    **{family: {"attention_dropout": 0.1} for family in FAMILIES if family != "GPT2"},
    "GPT2": {"attn_pdrop": 0.1},
}


@pytest.mark.parametrize("variant", DROPOUTS)
def test_dropout_of_attention_is_not_overlooked(variant: str) -> None:
    model = small_model(variant, **DROPOUTS[variant])
    assert not is_served(model)
    with pytest.raises(AssertionError, match="attention dropout"):
        run(model)
    model.eval()
    assert is_served(model)
    assert run(model).loss == pytest.approx(run(small_model(variant)).loss, rel=1e-9)


@pytest.mark.parametrize(
    ("variant", "name"), [("GPT2", "resid_pdrop"), ("GPT2", "embd_pdrop"), ("Phi3", "resid_pdrop")]
)
def test_dropout_anywhere_else_falls_as_transformers_lets_it(variant: str, name: str) -> None:
    changes: dict[str, Any] = {name: 0.5}
    model = small_model(variant, **changes)
    assert not is_served(model)
    assert run(model).loss != run(model).loss
    assert is_served(model.eval())


def test_an_adapters_dropout_falls() -> None:
    model = small_model("Llama")
    peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False))
    assert is_served(model)
    assert run(model).loss != run(model).loss
    model.eval()
    assert run(model).loss == run(model).loss


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_scores_that_are_capped_are_computed(softcap: float) -> None:
    model = small_model("Gemma2", attn_logit_softcapping=softcap)
    assert is_served(model)
    found, expected = run(model), alone(model)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert max(differences(found, expected).values()) < 1e-5


def test_a_decoder_that_attends_to_another_model_too_is_not_served() -> None:
    assert not is_served(small_model("GPT2", add_cross_attention=True))


def test_every_family_has_a_layer_that_is_read_here() -> None:
    assert set(decoder.FAMILIES.values()) == {decoder._PRE_NORM, decoder._POST_NORM, decoder._BOTH, None}
