"""Decoder layers with adapters (LoRA) in one node: values and gradients of exact arithmetic, and none but those asked for."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tests.doubles.engine import random_records, record, run_alone, run_batches, tiny_model
from tests.machine import require
from torch.nn import functional as F

from tuneful.batch.trie import build_trie, cut_blocks, visible
from tuneful.config import LoraConfig
from tuneful.model import attention_native, layers, native
from tuneful.model.attention_native import lay_out_blocks
from tuneful.model.layers import DecoderLayer, _LayerOptions
from tuneful.model.lora import add_adapter, linear_parts, without_adapter
from tuneful.train.loss import micro_batch_loss

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16
BATCH = build_trie(
    [
        record([9, 9, 9], [5, 6, 0], source="twins:0"),
        record([9, 9, 9], [7, 8, 0], source="twins:1"),
        *random_records(6, longest=30),
    ]
)
EVERYWHERE, NOWHERE = (16,) * 7, (0,) * 7


@pytest.fixture(autouse=True)
def library():
    require("compiled-products")
    found = native.kernels(CPU, BFLOAT16)
    assert found is not None, native.describe()
    return found


@dataclass(frozen=True)
class Shape:
    """Of a layer: query heads, key heads, their size; features of the stream and of the MLP; the adapters' ranks."""

    heads: tuple[int, int, int] = (4, 2, 16)
    width: int = 64
    inner: int = 96
    ranks: tuple[int, ...] = EVERYWHERE
    biases: bool = False

    @property
    def linears(self):
        """What comes out of each linear layer, and what goes in."""
        num_heads, num_key_heads, size = self.heads
        attention = [(num_heads * size, self.width), *[(num_key_heads * size, self.width)] * 2]
        return [
            *attention,
            (self.width, num_heads * size),
            *[(self.inner, self.width)] * 2,
            (self.width, self.inner),
        ]


SCALINGS = (2.0, 0.7, 1.0, 4.0, 0.3, 2.0, 1.1)
NAMES = [
    *("norm 0", "norm 1"),
    *(f"{kind} {i}" for kind in ("weight", "bias", "A", "B") for i in range(7)),
]


def make_parameters(shape):
    """The 30 parameters of a layer in bfloat16, None where there is none."""
    torch.manual_seed(0)
    norms = [1 + 0.2 * torch.randn(shape.width) for _ in range(2)]
    weights = [torch.randn(out, into) / into**0.5 for out, into in shape.linears]
    biases = [torch.randn(out) / 5 if shape.biases else None for out, _ in shape.linears]
    each = list(zip(shape.linears, shape.ranks, strict=True))
    lora_a = [torch.randn(rank, into) / into**0.5 if rank else None for (_, into), rank in each]
    lora_b = [torch.randn(out, rank) / (2 * rank**0.5) if rank else None for (out, _), rank in each]
    tensors = [*norms, *weights, *biases, *lora_a, *lora_b]
    return [None if one is None else one.to(BFLOAT16).requires_grad_() for one in tensors]


def make_inputs(shape, num_nodes=BATCH.num_nodes):
    """Hidden rows, and the cosines and sines of their positions."""
    torch.manual_seed(1)
    size = shape.heads[2]
    angles = torch.from_numpy(BATCH.positions[:num_nodes])[:, None] / 7 ** torch.arange(size // 2)[None]
    cosines, sines = (torch.cat([one, one], 1)[None].to(BFLOAT16) for one in (angles.cos(), angles.sin()))
    return torch.randn(1, num_nodes, shape.width).to(BFLOAT16).requires_grad_(), cosines, sines


def make_options(shape, library, batch=BATCH, window=None, **changes):
    cut = cut_blocks(batch, attention_native.MAX_QUERIES, window)
    blocks = lay_out_blocks(cut, shape.heads[1], library)
    size = shape.heads[2]
    return replace(
        _LayerOptions(False, (0.1, 0.1), (0.0, 0.0), size, size**-0.5, SCALINGS, blocks, None, library), **changes
    )


def exact_layer(shape, parameters, hidden, cosines, sines, batch=BATCH):
    """The same in the dtype of what is given, by torch's operations."""
    norms, parts = parameters[:2], [parameters[start : start + 7] for start in range(2, 30, 7)]

    def linear(i, rows):
        weight, bias, a, b = (part[i] for part in parts)
        output = F.linear(rows, weight, bias)
        return output if a is None else output + SCALINGS[i] * (rows @ a.T) @ b.T

    def norm(i, rows):
        return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 0.1) * norms[i]

    def heads(rows, num_heads, rotated):
        one = rows.view(len(rows), num_heads, -1).transpose(0, 1)
        first, second = one.chunk(2, -1)
        return one * cosines[0] + torch.cat([-second, first], -1) * sines[0] if rotated else one

    num_heads, num_key_heads, size = shape.heads
    rows = norm(0, hidden[0])
    query, key = heads(linear(0, rows), num_heads, True), heads(linear(1, rows), num_key_heads, True)
    value = heads(linear(2, rows), num_key_heads, False)
    key, value = (one.repeat_interleave(num_heads // num_key_heads, 0) for one in (key, value))
    scores = (query @ key.transpose(1, 2) * size**-0.5).masked_fill(~torch.from_numpy(visible(batch)), -torch.inf)
    attended = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    middle = hidden[0] + linear(3, attended)
    rows = norm(1, middle)
    return (middle + linear(6, F.silu(linear(4, rows)) * linear(5, rows)))[None]


def compute(shape, options, parameters=None, inputs=None):
    """The output, and the gradients by name of all that requires one, of the compiled layer."""
    parameters, inputs = parameters or make_parameters(shape), inputs or make_inputs(shape)
    output = DecoderLayer.apply(*inputs, options, *parameters)
    return output, gradients(output, inputs[0], parameters, options.read_rows)


def gradients(output, hidden, parameters, read=None):
    named = {"hidden": hidden, **dict(zip(NAMES, parameters, strict=True))}
    wanted = {name: tensor for name, tensor in named.items() if tensor is not None and tensor.requires_grad}
    torch.manual_seed(2)
    upstream = torch.randn(output.shape).to(BFLOAT16).to(output.dtype)
    if read is not None:
        upstream = torch.zeros_like(upstream).index_copy_(1, read, upstream[:, read])
    found = torch.autograd.grad(output, list(wanted.values()), upstream)
    return dict(zip(wanted, found, strict=True))


def exact(shape, dtype=torch.float64, read=None, parameters=None):
    parameters = [
        None if one is None else one.detach().to(dtype).requires_grad_() for one in parameters or make_parameters(shape)
    ]
    hidden, cosines, sines = (one.detach().to(dtype) for one in make_inputs(shape))
    output = exact_layer(shape, parameters, hidden.requires_grad_(), cosines, sines)
    return output.detach(), gradients(output, hidden, parameters, read)


def errors(found, wanted):
    return {name: ((found[name].double() - one).norm() / one.norm()).item() for name, one in wanted.items()}


SHAPES = {
    "grouped heads": Shape(),
    "biases": Shape(biases=True),
    "rank 2": Shape(ranks=(2,) * 7),
    "rank 8, one key head": Shape((8, 1, 8), ranks=(8,) * 7),
    "rank 64": Shape(ranks=(64,) * 7),
    "a rank above a panel's width": Shape((2, 1, 32), ranks=(66,) * 7),
    "heads of 2": Shape((32, 16, 2)),
    "heads of 256": Shape((1, 1, 256), ranks=(2, 4, 6, 8, 10, 12, 14)),
    "no size a multiple of anything": Shape((3, 1, 22), 70, 102, (2, 18, 6, 34, 50, 4, 12), True),
    "deeper than a stretch": Shape((1, 1, 64), 66, 2100, (16, 0, 2, 0, 8, 4, 6)),
    "query and value only": Shape(ranks=(8, 0, 8, 0, 0, 0, 0)),
    "the mlp only": Shape(ranks=(0, 0, 0, 0, 4, 8, 16), biases=True),
    "output only": Shape(ranks=(0, 0, 0, 16, 0, 0, 0)),
}


@pytest.mark.parametrize("few_rows", [False, True], ids=["all rows read", "few rows read"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_nearer_to_exact_arithmetic_than_those_of_torch_in_bfloat16(shape, few_rows, library):
    read = torch.from_numpy(np.unique(BATCH.target_rows)).long() if few_rows else None
    wanted_output, wanted = exact(shape, read=read)
    _, rounded = exact(shape, BFLOAT16, read=read)
    output, found = compute(shape, make_options(shape, library, read_rows=read))
    rows = slice(None) if read is None else read
    own, theirs = errors(found, wanted), errors(rounded, wanted)
    (output_error,) = errors({"": output[:, rows]}, {"": wanted_output[:, rows]}).values()
    assert output_error < 0.01
    assert found.keys() == wanted.keys()
    assert len(found) == 10 + 7 * shape.biases + 2 * sum(map(bool, shape.ranks))
    assert max(own.values()) < 0.02
    assert sum(own.values()) < 0.9 * sum(theirs.values())  # 0.6 to 0.77 of it


@pytest.mark.parametrize("shape", [Shape(), SHAPES["no size a multiple of anything"]], ids=["even", "odd"])
def test_computed_again_for_want_of_memory_the_bits_are_the_same(shape, library):
    wanted = compute(shape, make_options(shape, library))
    found = compute(shape, make_options(shape, library, recompute=True))
    assert_same(found, wanted)


@pytest.mark.parametrize("name", ["no size a multiple of anything", "deeper than a stretch", "rank 64"])
def test_no_result_depends_on_the_number_of_threads(name, library):
    shape, before = SHAPES[name], torch.get_num_threads()
    wanted = compute(shape, make_options(shape, library))
    try:
        for num_threads in range(1, 8):
            torch.set_num_threads(num_threads)
            assert_same(compute(shape, make_options(shape, library)), wanted)
    finally:
        torch.set_num_threads(before)


def assert_same(found, wanted):
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(found[1][name], one) for name, one in wanted[1].items())


def test_an_adapter_of_zeros_changes_no_bit(library):
    """As training begins: B is zero."""
    shape = Shape()
    without, with_zeros = make_parameters(replace(shape, ranks=NOWHERE)), make_parameters(shape)
    with torch.no_grad():
        for b in with_zeros[23:]:
            b.zero_()
    wanted = compute(shape, make_options(shape, library), without)
    found = compute(shape, make_options(shape, library), with_zeros)
    assert_same(found, wanted)
    assert all(not found[1][f"A {i}"].any() and found[1][f"B {i}"].any() for i in range(7))


@pytest.mark.parametrize("name", ["biases", "no size a multiple of anything", "deeper than a stretch"])
@pytest.mark.parametrize("few_rows", [False, True], ids=["all rows read", "few rows read"])
def test_nothing_is_written_past_the_end(name, few_rows, library, monkeypatch):
    shape, buffers = SHAPES[name], []
    read = torch.from_numpy(np.unique(BATCH.target_rows)).long() if few_rows else None
    options = make_options(shape, library, read_rows=read)
    wanted = compute(shape, options)

    def with_surroundings(num_bytes):
        buffers.append(torch.full((num_bytes + 512,), 7, dtype=torch.uint8))
        return buffers[-1][256:-256]

    monkeypatch.setattr(layers, "thread_workspace", with_surroundings)
    monkeypatch.setattr(layers, "_kept_memory", with_surroundings)
    assert_same(compute(shape, options), wanted)
    assert len(buffers) == 3  # what is kept, and a workspace each way
    assert all((buffer[:256] == 7).all() and (buffer[-256:] == 7).all() for buffer in buffers)


def test_one_record_of_one_token(library):
    shape = Shape(biases=True)
    batch = build_trie([record([5], [6])])
    assert batch.num_nodes == 1
    parameters, inputs = make_parameters(shape), make_inputs(shape, 1)
    output, found = compute(shape, make_options(shape, library, batch), parameters, inputs)
    exactly = [one.detach().double().requires_grad_() for one in parameters]
    hidden, cosines, sines = (one.detach().double() for one in inputs)
    wanted_output = exact_layer(shape, exactly, hidden.requires_grad_(), cosines, sines, batch)
    wanted = gradients(wanted_output, hidden, exactly)
    seen = {name: one for name, one in wanted.items() if one.any()}  # of one score no gradient reaches query and key
    assert len(seen) == len(wanted) - 8
    assert max(errors(found, seen).values()) < 0.02
    torch.testing.assert_close(output.double(), wanted_output.detach(), rtol=0.02, atol=0.02)


# ------------------------------------------------------------------------------------------- what nobody asks for


FROZEN = [
    ("weight", "bias", "norm"),
    ("weight", "bias", "norm", "hidden"),
    ("weight", "bias", "hidden"),
    ("weight", "bias", "norm 0", "hidden", "A 0", "B 0", "A 1", "B 1", "A 2", "B 2"),
    ("A",),
    ("B", "weight 3"),
    ("weight 0", "A 1", "B 4", "bias 2"),
]


@pytest.mark.parametrize("few_rows", [False, True], ids=["all rows read", "few rows read"])
@pytest.mark.parametrize("frozen", FROZEN, ids=", ".join)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_one(frozen, few_rows, library):
    shape = Shape(biases=True)
    read = torch.from_numpy(np.unique(BATCH.target_rows)).long() if few_rows else None
    options = make_options(shape, library, read_rows=read)
    output, wanted = compute(shape, options)
    parameters, inputs = make_parameters(shape), make_inputs(shape)
    for name, one in zip(NAMES, parameters, strict=True):
        one.requires_grad_(not any(name.startswith(part) for part in frozen))
    inputs[0].requires_grad_("hidden" not in frozen)
    found_output, found = compute(shape, options, parameters, inputs)
    assert torch.equal(output, found_output)
    assert 0 < len(found) < len(wanted)
    assert not [name for name in found if any(name.startswith(part) for part in frozen)]
    assert all(torch.equal(one, wanted[name]) for name, one in found.items())


def test_no_gradient_of_the_rows_is_computed_where_nobody_asks_for_it(library, monkeypatch):
    """What is left over is seen in the address that the kernels are given."""
    shape, given = Shape(), []
    monkeypatch.setattr(
        layers, "LayerGradients", lambda *places: given.append(places) or native.LayerGradients(*places)
    )
    for asked in (True, False):
        inputs = make_inputs(shape)
        inputs[0].requires_grad_(asked)
        compute(shape, make_options(shape, library), inputs=inputs)
    assert [places[0] is None for places in given] == [False, True]


# ------------------------------------------------------------------------------------------------------ peft's layers

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 0.1,
}
RECORDS = [*random_records(7, longest=30)]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def count(monkeypatch):
    """How many layers were computed as one since the test began."""
    calls = []
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    return lambda: len(calls)


def make(dtype=BFLOAT16, targets=ALL, biases=False, **settings):
    """A model with random adapters, whose base is frozen."""
    model = tiny_model("llama", dtype, **LLAMA, attention_bias=biases, mlp_bias=biases).requires_grad_(False)
    settings = {"r": 8, "lora_alpha": 16, "init_lora_weights": False, **settings}
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, **settings), model)
    return model.to(dtype).train()


def run(model):
    return run_batches(model, [RECORDS], "trie")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"targets": ["q_proj", "v_proj"], "r": 16},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"k_proj": 2, "down_proj": 66}, "alpha_pattern": {"up_proj": 1}},
    ],
    ids=lambda settings: ", ".join(settings) or "all-linear",
)
def test_a_model_with_adapters_learns_as_in_exact_arithmetic(settings, count):
    model, exactly = make(**settings), make(torch.float64, **settings)
    exactly.load_state_dict(model.state_dict())
    found = run(model)
    assert count() == model.config.num_hidden_layers
    wanted = run_alone(exactly, RECORDS)
    assert found.gradients.keys() == wanted.gradients.keys()
    assert abs(found.loss - wanted.loss) <= 2e-3 * wanted.loss
    assert max(errors(found.gradients, wanted.gradients).values()) < 0.03


def test_switched_off_the_base_alone_is_computed(count):
    base, model = run(tiny_model("llama", BFLOAT16, **LLAMA)).loss, tiny_model("llama", BFLOAT16, **LLAMA)
    adapter = add_adapter(model, LoraConfig())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(BFLOAT16)
    tuned = run(model).loss
    with without_adapter(adapter), torch.no_grad():
        switched_off = micro_batch_loss(model, RECORDS, "trie").total.item()
    assert count() == 6
    assert tuned != base
    assert switched_off == base
    assert run(model).loss == tuned


@pytest.mark.parametrize(
    "change",
    [
        {"lora_dropout": 0.1},
        {"r": 7},
        {"use_dora": True},
        {"lora_bias": True, "biases": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_adapter_of_another_kind_is_computed_by_its_parts(change, count):
    run_batches(make(**{**change, "layers_to_transform": [0]}), [RECORDS], "unshared")
    assert count() == 1  # the layer without one


def test_merged_or_with_two_adapters_or_a_precision_of_its_own_it_is_computed_by_its_parts(count):
    model = make()
    layer = model.model.layers[0].self_attn.q_proj
    parts = linear_parts(layer)
    assert parts is not None
    assert parts.base is layer.base_layer
    assert (parts.lora_a, parts.lora_b) == (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert parts.scaling == 2
    layer.merge()
    assert linear_parts(layer) is None
    layer.unmerge()
    assert linear_parts(layer) is not None
    layer.add_module("lora_dropout", torch.nn.ModuleDict({"default": torch.nn.Dropout(0.1).eval()}))
    assert linear_parts(layer) is not None
    layer.lora_dropout.train()
    assert linear_parts(layer) is None
    key = model.model.layers[0].self_attn.k_proj
    key.update_layer("second", r=4, lora_alpha=4, config=peft.LoraConfig(r=4))
    key.set_adapter(["default", "second"])
    assert linear_parts(key) is None
    key.set_adapter("second")
    parts = linear_parts(key)
    assert parts is not None
    assert parts.lora_b is key.lora_B["second"].weight
    other_sizes = make().model.layers[0].mlp.up_proj
    other_sizes.lora_A["default"].weight = torch.nn.Parameter(torch.zeros(6, 64))
    assert linear_parts(other_sizes) is None
    mixed = make()
    mixed.model.layers[1].mlp.up_proj.lora_A.float()
    mixed.model.layers[1].mlp.up_proj.lora_B.float()
    run(mixed)
    assert count() == 1


def test_dropout_that_is_switched_off_is_none(count):
    model = make(lora_dropout=0.5).eval()
    assert run(model).loss == run(make().eval()).loss
    assert count() == 4


def test_scalings_ranks_and_linear_layers_are_not_mistaken_for_each_other(library):
    """Each adapter alone, told from the others by its scaling."""
    shape = Shape((1, 1, 64), 64, 64, EVERYWHERE)
    output = compute(shape, make_options(shape, library))[0]
    for i, j in itertools.combinations(range(7), 2):
        swapped = list(SCALINGS)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        changed = compute(shape, make_options(shape, library, scalings=tuple(swapped)))[0]
        assert torch.equal(changed, output) == (SCALINGS[i] == SCALINGS[j])
