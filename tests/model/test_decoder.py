"""The decoder's own forward gives transformers' loss and gradients, family by family, and computes what is needed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from tests.doubles.decoders import EXAMPLES, TWO_KINDS, VARIANTS, alone, differences, run, small_model

from tuneful.batch.trie import build_trie
from tuneful.model import decoder, layers
from tuneful.model.attention import AttentionPlan, plan_attention, use_trie_attention
from tuneful.model.decoder import FAMILIES, decoder_layer, gpt2_layer, is_served, target_logits
from tuneful.model.freeze import checkpoint_activations
from tuneful.train import loss

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own


@contextmanager
def unserved() -> Iterator[None]:
    """Inside, transformers' own forward runs, over the same trie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "is_served", lambda _: False)
        yield


def tensors(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor, AttentionPlan, torch.Tensor]:
    """Ids, positions, plan and the rows of the targets, which are not distinct, of the records as a trie."""
    use_trie_attention(model)
    batch = build_trie(EXAMPLES)
    ids, positions, rows = (
        torch.from_numpy(array).long() for array in (batch.input_ids, batch.positions, batch.target_rows)
    )
    return ids[None], positions[None], plan_attention(batch, model, **options), rows


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_transformers_for_each_record_alone(variant: str, arithmetic: str) -> None:
    model = small_model(variant)
    assert is_served(model)
    found, expected = run(model), alone(model)
    # transformers' norms, and the softmax of Gemma 2's attention, are computed in float32 whatever the model's precision
    close = 1e-6 if arithmetic == "compiled" or variant.startswith("Gemma2") else 1e-9
    assert found.loss == pytest.approx(expected.loss, rel=close)
    assert max(differences(found, expected).values()) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_float32_too(variant: str, arithmetic: str) -> None:
    model = small_model(variant, torch.float32)
    found, expected = run(model), alone(copy.deepcopy(model).double())
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert max(differences(found, expected).values()) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bfloat16_they_are_as_near_to_exact_ones_as_transformers_own(variant: str, arithmetic: str) -> None:
    own, theirs = [], []
    for seed in range(3):
        model = small_model(variant, torch.bfloat16, seed)
        exact = alone(copy.deepcopy(model).double())
        found = run(model)
        with unserved():
            other = run(model)
        assert abs(found.loss - exact.loss) <= 2e-3 * exact.loss
        own.append(sum(differences(found, exact).values()))
        theirs.append(sum(differences(other, exact).values()))
    assert sum(own) <= 1.2 * sum(theirs)


@pytest.mark.parametrize("variant", ["Llama, tied", "Granite, tied", "Qwen3", "GPT2"])
def test_embeddings_may_come_instead_of_ids(variant: str) -> None:
    model = small_model(variant)
    ids, positions, plan, rows = tensors(model)
    given = {"inputs_embeds": model.get_input_embeddings()(ids)}
    found = [target_logits(model, inputs, positions, plan, rows) for inputs in (given, {"input_ids": ids})]
    assert torch.equal(*found)
    assert found[0].shape == (len(rows), 97)


GRANITE = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0, "attention_multiplier": 0.4}


@pytest.mark.parametrize("multiplier", GRANITE)
def test_each_of_granites_multipliers_is_heard(multiplier: str) -> None:
    changes: dict[str, Any] = {multiplier: GRANITE[multiplier]}
    usual, changed = small_model("Granite"), small_model("Granite", **changes)
    changed.load_state_dict(usual.state_dict())
    found = run(changed)
    assert found.loss == pytest.approx(alone(changed).loss, rel=1e-6)
    assert abs(found.loss - run(usual).loss) > 1e-5


@pytest.mark.parametrize("variant", ["Gemma3", "Olmo3 of two kinds of angles"])
def test_each_layer_rotates_by_the_angles_of_its_kind(variant: str) -> None:
    model = small_model(variant)
    _, positions, _, _ = tensors(model)
    hidden = torch.zeros(1, positions.shape[1], 64, dtype=torch.float64)
    angles = decoder._angles_of_layers(model, decoder._layers(model), hidden, positions)
    for kind, pair in zip(TWO_KINDS, angles, strict=True):
        assert pair is not None
        wanted = model.model.rotary_emb(hidden, positions, kind)
        assert all(map(torch.equal, pair, wanted))
    first, second, third = (pair[1] for pair in angles if pair is not None)
    assert first is third
    assert not torch.allclose(first, second)


def test_a_layer_without_angles_rotates_nothing() -> None:
    model = small_model("SmolLM3")
    _, positions, _, _ = tensors(model)
    hidden = torch.zeros(1, positions.shape[1], 64, dtype=torch.float64)
    angles = decoder._angles_of_layers(model, decoder._layers(model), hidden, positions)
    assert [pair is None for pair in angles] == [False, True, False]


# ---------------------------------------------------------------------------------------------- what is computed, and when


@pytest.mark.parametrize("variant", FAMILIES)
def test_beyond_the_last_layers_attention_only_rows_that_predict_are_computed(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(variant, torch.float32)
    ids, positions, plan, rows = tensors(model)
    seen: list[torch.Tensor] = []
    for layer in decoder._layers(model):
        act = "act" if variant == "GPT2" else "activation_fn" if hasattr(layer.mlp, "activation_fn") else "act_fn"
        monkeypatch.setattr(layer.mlp, act, Listening(getattr(layer.mlp, act), seen))
    few = target_logits(model, {"input_ids": ids}, positions, plan, rows)
    num_nodes, num_read = ids.shape[1], len(rows.unique())
    assert num_read < len(rows) < num_nodes
    assert [one.shape[1] for one in seen] == [num_nodes, num_nodes, num_read]
    whole = target_logits(model, {"input_ids": ids}, positions, plan, torch.arange(num_nodes))
    torch.testing.assert_close(few, whole[rows])
    assert seen[-1].shape[1] == num_nodes


class Listening(torch.nn.Module):
    """An activation that keeps what it was given."""

    def __init__(self, activation: Any, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.activation, self.seen = activation, seen

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.seen.append(rows)
        activated: torch.Tensor = self.activation(rows)
        return activated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", FAMILIES)
def test_activations_computed_again_give_the_same_bits(
    variant: str, dtype: torch.dtype, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = small_model(variant, dtype), []
    for name, compute in (("decoder_layer", decoder_layer), ("gpt2_layer", gpt2_layer)):
        monkeypatch.setattr(decoder, name, lambda *arguments, compute=compute: calls.append(1) or compute(*arguments))
    apply = layers.DecoderLayer.apply
    monkeypatch.setattr(layers.DecoderLayer, "apply", lambda *arguments: calls.append(2) or apply(*arguments))
    wanted = run(model)
    by_parts = [1] * 3
    assert calls in (by_parts, [2] * 3)
    again, calls[:] = calls == by_parts, []
    checkpoint_activations(model)
    found = run(model)
    assert len(calls) == (6 if again else 3)  # one node computes itself again: test_layers.py
    assert found.loss == wanted.loss
    assert all(torch.equal(gradient, wanted.gradients[name]) for name, gradient in found.gradients.items())
    with torch.no_grad():
        calls.clear()
        loss.micro_batch_loss(model, EXAMPLES, "trie")
    assert len(calls) == 3


@pytest.mark.parametrize("variant", FAMILIES)
def test_less_is_kept_where_activations_are_computed_again(variant: str) -> None:
    model = small_model(variant, torch.float32)

    def num_kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            loss.micro_batch_loss(model, EXAMPLES, "trie")
        return sum(sizes)

    kept = num_kept()
    checkpoint_activations(model)
    assert num_kept() < kept / 2


@pytest.mark.parametrize(
    "frozen", [["norm", "ln_"], ["q_proj", "v_proj.bias", "down_proj", "c_fc"], ["layers.0", "h.0"]]
)
@pytest.mark.parametrize("variant", FAMILIES)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_one(variant: str, frozen: list[str]) -> None:
    model = small_model(variant, torch.float32)
    wanted = run(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    found = run(model)
    if any(not parameter.requires_grad for parameter in model.parameters()):
        assert 0 < len(found.gradients) < len(wanted.gradients)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, wanted.gradients[name])


@pytest.mark.parametrize("variant", FAMILIES)
def test_adapters_are_computed_by_their_own_layers(variant: str) -> None:
    model = small_model(variant)
    lora = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=variant == "GPT2")
    peft.get_peft_model(model, lora)
    assert is_served(model)
    found = run(model)
    assert all("lora" in name for name in found.gradients)
    assert len(found.gradients) == 2 * 3 * {"GPT2": 4, "Phi3": 4}.get(variant, 7)
    assert max(differences(found, alone(model)).values()) < 3e-4  # transformers' norms are in float32
