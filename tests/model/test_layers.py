"""Decoder layers in one node: the values of the parts', for the layers and calls that they are made for."""

import copy
import weakref
from typing import Any

import peft
import pytest
import torch
from tests.doubles.engine import random_records, record, run_alone, run_batches, tiny_model
from tests.machine import require
from transformers import MistralConfig, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from tuneful.batch.trie import build_trie
from tuneful.model import decoder, layers, native
from tuneful.model.attention import AttentionLayout, AttentionPlan, plan_attention
from tuneful.model.decoder import Family, decoder_layer
from tuneful.model.freeze import checkpoint_activations
from tuneful.model.layers import DecoderLayer, compiled_layer
from tuneful.train import loss
from tuneful.train.loss import micro_batch_loss

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 256}
LLAMA: dict[str, Any] = {
    **SIZES,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 0.1,
}
FAMILIES = {
    "llama": LLAMA,
    "llama with biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama, deep": {**LLAMA, "intermediate_size": 4100, "num_hidden_layers": 1},
    "qwen2": {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 0.1},
}
TWINS = [record([9, 9, 9], [5, 6, 0], source="twins:0"), record([9, 9, 9], [7, 8, 0], source="twins:1")]
RECORDS = [*TWINS, *random_records(7, longest=30)]
"""The twins part where both are trained: one node predicts two tokens."""


@pytest.fixture(autouse=True)
def library():
    require("compiled-products")
    found = native.kernels(CPU, torch.bfloat16)
    assert found is not None, native.describe()
    return found


@pytest.fixture
def count(monkeypatch):
    """How many layers were computed as one since the test began."""
    calls = []
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    return lambda: len(calls)


def make(family="llama", dtype=BFLOAT16, **changes):
    return tiny_model(family.replace(",", "").split()[0], dtype, **FAMILIES[family], **changes)


def in_float64(family, model):
    exact = make(family, torch.float64)
    exact.load_state_dict(model.state_dict())
    return exact


def errors(found, exact):
    return {
        name: ((found.gradients[name].double() - wanted).norm() / wanted.norm()).item()
        for name, wanted in exact.gradients.items()
    }


def same(one, other):
    assert one.loss == other.loss
    assert one.gradients.keys() == other.gradients.keys()
    return all(torch.equal(gradient, other.gradients[name]) for name, gradient in one.gradients.items())


def by_parts(model, monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "compiled_layer", lambda *_, last: None)
        return run(model)


def run(model):
    return run_batches(model, [RECORDS], "trie")


def through(model, batch, *, only_targets=False, last=False):
    """What the layers make of the embeddings of a batch, one after the other; of the `last` one only what `only_targets` says."""
    positions = torch.from_numpy(batch.positions).long()[None]
    hidden = model.model.embed_tokens(torch.from_numpy(batch.input_ids).long()[None])
    plan, angles = plan_attention(batch, model, only_targets=only_targets), model.model.rotary_emb(hidden, positions)
    for layer in model.model.layers:
        hidden = compiled_layer(layer, hidden, angles, plan, last=last and layer is model.model.layers[-1])
        assert hidden is not None
    return hidden


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_as_near_to_exact_arithmetic_as_those_of_the_parts(family, count, monkeypatch):
    model = make(family)
    exact = run_alone(in_float64(family, model), RECORDS)
    found, parts = run(model), by_parts(model, monkeypatch, run)
    assert count() == model.config.num_hidden_layers
    assert abs(found.loss - exact.loss) <= 2e-3 * exact.loss
    own, theirs = errors(found, exact), errors(parts, exact)
    assert max(own.values()) < 0.03
    assert sum(own.values()) < 1.2 * sum(theirs.values())  # 0.97 times on average, by luck 0.86 to 1.1


def test_mistrals_layer_is_llamas(count, monkeypatch):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**LLAMA, num_hidden_layers=2, sliding_window=None)).to(BFLOAT16).train()
    model.set_attn_implementation("sdpa")
    found, parts = run(model), by_parts(model, monkeypatch, run)
    assert count() == 2
    assert max(errors(found, parts).values()) < 0.03


@pytest.mark.parametrize("num_threads", [1, 3, 5])
def test_no_result_depends_on_the_number_of_threads(num_threads):
    model, before = make("llama, deep"), torch.get_num_threads()
    wanted = run(model)
    try:
        torch.set_num_threads(num_threads)
        assert all(same(run(model), wanted) for _ in range(5))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["llama with biases", "qwen2"])
def test_of_the_last_layer_only_targets_are_computed_and_nothing_else_changes(family, count, monkeypatch):
    model = make(family)
    few = run(model)
    with monkeypatch.context() as patch:
        patch.setattr(loss, "plan_attention", lambda batch, model, only_targets: plan_attention(batch, model))
        all_of_them = run(model)
    assert count() == 4
    assert few.loss == all_of_them.loss
    assert max(errors(few, all_of_them).values()) < 3e-3  # sums over rows, in another order


def test_what_nobody_reads_is_zero(count):
    model, batch = make(), build_trie(RECORDS)
    whole, above, few = (
        through(model, batch, only_targets=only_targets, last=last)[0]
        for only_targets, last in ((False, True), (True, False), (True, True))
    )
    assert count() == 6
    read = torch.zeros(batch.num_nodes, dtype=torch.bool)
    read[torch.from_numpy(batch.target_rows).long()] = True
    assert 0 < read.sum() < batch.num_nodes
    assert torch.equal(few[read], whole[read])
    assert not few[~read].any()
    assert whole[~read].any()
    assert torch.equal(above, whole)  # another layer reads every row


def test_a_record_that_changes_leaves_the_others_as_they_are(count):
    model = make()

    def outputs(records):
        batch = build_trie(records)
        with torch.no_grad():
            hidden = through(model, batch)[0, torch.from_numpy(batch.target_rows).long()]
        return [hidden[own] for own in batch.record_targets]

    before, after = outputs(RECORDS), outputs([*RECORDS[:-1], random_records(1, seed=5)[0]])
    assert count() == 4
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], after[:-1], strict=True))


def test_what_is_kept_is_only_read():
    """A backward that is run twice finds all as it was."""
    model = make()
    hidden = through(model, build_trie(RECORDS))
    parameters, total = list(model.model.layers.parameters()), hidden.square().sum()
    first = torch.autograd.grad(total, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, parameters)))


def test_nothing_is_written_past_the_end(monkeypatch):
    model, wanted, buffers = make("llama with biases"), None, []
    wanted = run(model)

    def with_surroundings(num_bytes):
        buffers.append(torch.full((num_bytes + 512,), 7, dtype=torch.uint8))
        return buffers[-1][256:-256]

    with monkeypatch.context() as patch:
        patch.setattr(layers, "thread_workspace", with_surroundings)
        patch.setattr(layers, "_kept_memory", with_surroundings)
        assert same(run(model), wanted)
    assert len(buffers) == 2 * 3  # for each layer what is kept, and a workspace each way
    assert all((buffer[:256] == 7).all() and (buffer[-256:] == 7).all() for buffer in buffers)


def test_computed_again_for_want_of_memory_the_bits_are_the_same(count, monkeypatch):
    model, buffers = make(), []
    wanted = run(model)
    make_buffer = layers._kept_memory
    monkeypatch.setattr(
        layers, "_kept_memory", lambda size: buffers.append(weakref.ref(buffer := make_buffer(size))) or buffer
    )
    checkpoint_activations(model)
    total = micro_batch_loss(model, RECORDS, "trie").total
    assert len(buffers) == 2
    assert not any(buffer() is not None for buffer in buffers)  # nothing is kept until the backward
    total.backward()
    assert len(buffers) == 4
    assert count() == 4
    assert all(torch.equal(parameter.grad, wanted.gradients[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    "frozen", [["norm"], ["k_proj.weight"], ["q_proj", "v_proj.bias", "down_proj"], ["_proj"], ["layers.0", "embed"]]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_one(frozen):
    model = make("llama with biases")
    wanted = run(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    found = run(model)
    assert 0 < len(found.gradients) < len(wanted.gradients)
    assert all(torch.equal(gradient, wanted.gradients[name]) for name, gradient in found.gradients.items())


# --------------------------------------------------------------------------------------------------------- who is served


@pytest.mark.parametrize(
    ("where", "register"),
    [
        ("", "register_forward_hook"),
        ("", "register_full_backward_hook"),
        ("self_attn", "register_forward_hook"),
        ("mlp.act_fn", "register_forward_pre_hook"),
        ("mlp.down_proj", "register_forward_hook"),
        ("", "register_full_backward_pre_hook"),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_whoever_listens_inside_hears_transformers_own_layers(where, register, early, count):
    model, heard = make(), []
    if not early:
        run(model)
        assert count() == 2
    listened = model.model.layers[0].get_submodule(where)
    handle = getattr(listened, register)(lambda module, first, *others: heard.append(first))
    before = count()
    found = run(model)
    assert count() == before
    assert len(heard) == 1
    assert all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in heard[0])
    assert max(errors(found, run(make())).values()) < 0.03
    handle.remove()
    before = count()
    assert same(run(model), run(make()))
    assert count() == before + 4


def test_a_layer_of_another_class_is_computed_by_its_parts_or_called(count):
    class OwnLayer(LlamaDecoderLayer):
        def forward(self, hidden_states, **options):
            called.append(1)
            return super().forward(hidden_states, **options) * 2

    called: list[int] = []
    for family, sizes in (("qwen3", LLAMA), ("gemma", {**LLAMA, "head_dim": 32})):
        run(tiny_model(family, BFLOAT16, **sizes))
    model = make()
    for layer in model.model.layers:
        layer.__class__ = OwnLayer
    run(model)
    assert (len(called), count()) == (2, 0)


@pytest.mark.parametrize("part", ["self_attn", "mlp", "self_attn.v_proj", "input_layernorm"])
@pytest.mark.parametrize("early", [True, False])
def test_a_forward_put_in_place_is_called(part, early, count):
    model, called = make(), []
    if not early:
        run(model)
    module = model.model.layers[1].get_submodule(part)
    forward, before = module.forward, count()
    module.forward = lambda *arguments, **options: called.append(1) or forward(*arguments, **options)
    run(model)
    assert (len(called), count()) == (1, before)


def test_an_attention_or_mlp_of_another_class_is_used(count):
    class OwnAttention(LlamaAttention):
        def forward(self, *arguments, **options):
            called.append("attention")
            return super().forward(*arguments, **options)

    class Doubled(torch.nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp = mlp

        def forward(self, rows):
            called.append("mlp")
            return 2 * self.mlp(rows)

    called: list[str] = []
    for what in ("attention", "mlp"):
        model = make(num_hidden_layers=3)
        if what == "attention":
            model.model.layers[0].self_attn.__class__ = OwnAttention
        else:
            model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)
        run(model)
        assert called.pop() == what
        assert (called, count()) == ([], 0)


def test_a_plan_or_rows_that_do_not_fit_are_refused():
    model = make()
    plan, angles = _given(model)
    layer, longer = model.model.layers[0], (torch.ones(1, 6, 16, dtype=BFLOAT16),) * 2

    def called(hidden, angles):
        assert compiled_layer(layer, hidden, angles, plan, last=False) is None
        return decoder_layer(layer, Family(), hidden, angles, plan)

    with pytest.raises(AssertionError):
        called(torch.ones(1, 6, 64, dtype=BFLOAT16), longer)
    with pytest.raises(AssertionError):
        called(torch.ones(2, 5, 64, dtype=BFLOAT16), angles)
    with pytest.raises(RuntimeError):
        called(torch.ones(1, 5, 64, dtype=BFLOAT16), longer)
    with pytest.raises(RuntimeError):
        called(torch.ones(1, 5, 66, dtype=BFLOAT16), angles)


@pytest.mark.parametrize("adapted", [["v_proj"], ["down_proj", "o_proj"]])
def test_a_projection_with_an_adapter_of_odd_rank_is_computed_by_its_parts(adapted, count):
    model = make()
    lora = peft.LoraConfig(r=3, target_modules=adapted, layers_to_transform=[1], init_lora_weights=False)
    peft.inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(BFLOAT16)
        parameter.requires_grad_("lora" in name)
    found = run(model)
    assert count() == 1
    assert len(found.gradients) == 2 * len(adapted)
    assert max(errors(found, run_alone(model, RECORDS)).values()) < 0.03


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.self_attn.register_parameter("sinks", torch.nn.Parameter(torch.zeros(4))),
        lambda layer: setattr(layer.mlp, "act_fn", torch.nn.GELU()),
        lambda layer: setattr(layer.mlp, "up_proj", torch.nn.Linear(64, 96, dtype=BFLOAT16, device="meta")),
        lambda layer: setattr(layer.mlp, "up_proj", torch.nn.Linear(64, 98, dtype=BFLOAT16)),
        lambda layer: setattr(layer.self_attn, "v_proj", torch.nn.Linear(66, 64, dtype=BFLOAT16)),
        lambda layer: setattr(layer.self_attn, "o_proj", torch.nn.Linear(64, 64, dtype=BFLOAT16)),
        lambda layer: setattr(layer, "input_layernorm", torch.nn.LayerNorm(64, dtype=BFLOAT16)),
        lambda layer: layer.float(),
        lambda layer: setattr(layer.self_attn, "attention_dropout", 0.5),
    ],
    ids=[
        "a parameter more",
        "another activation",
        "another device",
        "an MLP that does not fit together",
        "values that do not fit",
        "an output that does not fit",
        "another norm",
        "another precision",
        "dropout",
    ],
)
def test_a_layer_that_is_made_otherwise_is_computed_by_its_parts(change, count):
    model = make()
    change(model.model.layers[0])
    hidden, (plan, angles) = torch.randn(1, 5, 64).to(BFLOAT16), _given(model)
    served = [compiled_layer(layer, hidden, angles, plan, last=False) is not None for layer in model.model.layers]
    assert served == [False, True]
    assert count() == 1


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"plan": AttentionPlan(5, 5, lambda window: AttentionLayout())},
        {"angles": None},
        {"angles": (torch.ones(1, 4, 16, dtype=BFLOAT16),) * 2},
        {"angles": (torch.ones(1, 5, 8, dtype=BFLOAT16),) * 2},
        {"angles": (torch.ones(1, 5, 16, dtype=BFLOAT16), torch.ones(1, 5, 8, dtype=BFLOAT16))},
        {"angles": (torch.ones(1, 5, 16),) * 2},
        {"angles": (torch.ones(1, 5, 16, dtype=BFLOAT16, requires_grad=True),) * 2},
        {"angles": (torch.ones(1, 5, 16, dtype=BFLOAT16), torch.ones(1, 5, 16, dtype=BFLOAT16, requires_grad=True))},
        {"hidden": torch.ones(1, 5, 64)},
        {"hidden": torch.ones(2, 5, 64, dtype=BFLOAT16)},
        {"hidden": torch.ones(1, 6, 64, dtype=BFLOAT16)},
        {"hidden": torch.ones(1, 5, 66, dtype=BFLOAT16)},
    ],
    ids=lambda change: "-".join(change) or "nothing",
)
def test_a_call_with_anything_else_is_computed_by_the_parts(change, count):
    model = make()
    plan, angles = _given(model)
    call = {"hidden": torch.ones(1, 5, 64, dtype=BFLOAT16), "angles": angles, "plan": plan, **change}
    assert (compiled_layer(model.model.layers[0], **call, last=False) is None) == bool(change)
    assert count() == (not change)


def test_without_compiled_kernels_the_parts_compute_the_same(count, monkeypatch):
    model = make()
    found = run(model)
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert max(errors(run(model), found).values()) < 0.03
    assert count() == 2


def test_dropout_is_not_overlooked():
    model = make(attention_dropout=0.5)
    with pytest.raises(AssertionError, match="dropout"):
        run(model)
    model.eval()
    assert run(model).loss == run(make()).loss


def test_a_copy_of_a_model_computes_with_its_own_weights():
    model = make()
    wanted = run(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert max(errors(run(copied), wanted).values()) < 0.03


def _given(model):
    """A plan of five nodes, and angles for them."""
    batches = (build_trie(random_records(1, longest=8, preamble=0, seed=seed)) for seed in range(100))
    plan = plan_attention(next(batch for batch in batches if batch.num_nodes == 5), model)
    return plan, tuple(torch.randn(1, 5, 16).to(BFLOAT16) for _ in range(2))
