"""An adapter: where it is put, that the engine trains it as peft and torch would, and that merged it says the same."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.doubles.engine import FAMILIES, PADDED, TRIE, UNSHARED, random_records, run_alone, tiny_model, train_config

from tuneful.config import LoraConfig
from tuneful.errors import ConfigError, ExportError
from tuneful.model.freeze import checkpoint_activations
from tuneful.model.lora import MERGE_TOLERANCE, add_adapter, merge_adapter, save_adapter, without_adapter
from tuneful.runs.schema import Step
from tuneful.train.layout import choose_layout
from tuneful.train.loop import Training
from tuneful.train.objective import total_weight
from tuneful.train.optimizer import AdamW

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 7], [1, 8, 2, 8]]
KINDS = {
    "plain": LoraConfig(r=4),
    "rslora": LoraConfig(r=4, alpha=3, use_rslora=True),
    "dora": LoraConfig(r=2, use_dora=True),
    "two": LoraConfig(r=3, target_modules=("q_proj", "down_proj")),
}


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model, adapter, layout=TRIE, dtype=torch.float32, seed=0, **changes):
    """Three steps of a rate that shows."""
    settings = {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "weight_decay": 0.0, **changes}
    config = train_config(method="lora", **settings)
    optimizer = AdamW(model, config, dtype)
    events = list(Training(model, optimizer, random_records(8, seed=seed), [], config, layout).run())
    optimizer.masters_to_model()
    return [event for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_but_the_head_and_nothing_else_is_trained(family):
    model = tiny_model(family)
    before = set(dict(model.named_parameters()))
    add_adapter(model, LoraConfig(r=2))
    assert before.isdisjoint(trainable(model))
    held = {name.partition(".lora_")[0] for name in trainable(model)}
    linear = {"c_attn", "c_proj", "c_fc"} if family == "gpt2" else {"q_proj", "k_proj", "v_proj", "o_proj"}
    linear |= set() if family == "gpt2" else {"gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in held} == linear
    assert len(held) == (8 if family == "gpt2" else 14)


def test_an_adapter_above_frozen_layers_is_in_the_upper_ones_alone():
    model = tiny_model()
    add_adapter(model, LoraConfig(r=2), first_layer=1)
    assert {name.split(".")[2] for name in trainable(model)} == {"1"}


@pytest.mark.parametrize(
    ("family", "modules", "said"),
    [
        ("llama", ("q_proj", "w_proj"), "no layer w_proj; its layers are down_proj, .*v_proj"),
        ("llama", ("lm_head",), "embedding and output head of this model are one matrix"),
        ("gpt2", ("wte",), "one matrix"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name(family, modules, said):
    with pytest.raises(ConfigError, match=said):
        add_adapter(tiny_model(family), LoraConfig(target_modules=modules))


def test_the_head_of_an_untied_model_may_have_an_adapter(tmp_path):
    model = tiny_model("qwen2")
    adapter = add_adapter(model, LoraConfig(r=2, target_modules=("lm_head", "embed_tokens", "q_proj")))
    train(model, adapter)
    save_adapter(adapter, tmp_path / "adapter", "base")
    merged, _ = merge_adapter(tiny_model("qwen2").eval(), tmp_path / "adapter", PROMPTS)
    assert merged.lm_head.weight is not merged.get_input_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [TRIE, PADDED], ids=["trie", "padded"])
def test_steps_are_those_of_plain_peft_and_torchs_adamw(kind, layout):
    # An epsilon that outweighs rounding: where a gradient is all rounding, AdamW would step by its sign.
    config, settings = KINDS[kind], {"learning_rate": 1e-2, "weight_decay": 0.1, "adam_epsilon": 1e-4}
    model, plain = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64)
    adapter = add_adapter(model, config)
    start = {name: tensor.detach().clone() for name, tensor in trainable(model).items()}
    oracle = peft.get_peft_model(plain, adapter.peft_config["default"])
    oracle.load_state_dict(adapter.state_dict())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trainable(plain).values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in trainable(plain).values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        eps=1e-4,
    )
    examples = random_records(4)
    for _ in range(3):
        outcome = run_alone(plain, examples)
        for name, parameter in trainable(plain).items():
            parameter.grad = outcome.gradients[name] / total_weight(examples)
        torch.nn.utils.clip_grad_norm_(trainable(plain).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    run = train_config(method="lora", batch_size=4, max_steps=3, **settings)
    ours = AdamW(model, run, torch.float64)
    list(Training(model, ours, examples, [], run, layout).run())
    for name, parameter in trainable(plain).items():
        moved = (parameter - start[name]).norm()
        assert moved > 0, name
        # torch adds 1e-6 to the norm that it clips by; without clipping they agree to 1e-14.
        assert (trainable(model)[name] - parameter).norm() <= 1e-7 * moved, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_folder_is_pefts_own_and_merged_into_the_base_it_says_the_same(kind, dtype, tmp_path):
    model = tiny_model()
    adapter = add_adapter(model, KINDS[kind])
    train(model, adapter, dtype=dtype)
    save_adapter(adapter, tmp_path / "adapter", "smollm2-135m-instruct")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(weights) == len(trainable(model))
    assert all(tensor.dtype is torch.float32 and tensor.any() for tensor in weights.values())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["r"] == KINDS[kind].r
    merged, difference = merge_adapter(tiny_model().eval(), tmp_path / "adapter", PROMPTS)
    assert 0 < difference <= MERGE_TOLERANCE
    base, theirs = tiny_model().eval(), peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter")).eval()
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        own = merged(input_ids=ids).logits
        torch.testing.assert_close(own, theirs(input_ids=ids).logits, rtol=0, atol=1e-5 * own.abs().max().item())
        assert (own - base(input_ids=ids).logits).abs().max() > 1e-2
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert type(merged) is type(base)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in base.named_parameters()}


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        model = tiny_model()
        torch.manual_seed(0)
        adapter = add_adapter(model, KINDS["plain"])
        train(model, adapter)
        save_adapter(adapter, tmp_path / name, "base")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_adapter_that_does_not_fit_its_base_or_is_not_finite_is_refused(tmp_path):
    model = tiny_model()
    adapter = add_adapter(model, KINDS["plain"])
    save_adapter(adapter, tmp_path / "adapter", "base")
    with pytest.raises(ExportError, match="cannot be read back"):
        merge_adapter(tiny_model(hidden_size=64), tmp_path / "adapter", PROMPTS)
    with torch.no_grad():
        name, parameter = list(trainable(model).items())[3]
        parameter[0, 0] = torch.nan
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        save_adapter(adapter, tmp_path / "bad", "base")
    assert not (tmp_path / "bad").exists()


def test_without_its_adapter_the_model_is_its_base():
    model, base = tiny_model().eval(), tiny_model().eval()
    adapter = add_adapter(model, KINDS["dora"])
    train(model, adapter)
    model.set_attn_implementation("sdpa")
    model.eval()
    ids = torch.tensor(PROMPTS[:1])
    with torch.inference_mode():
        with without_adapter(adapter):
            assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
        assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_the_frozen_base_is_computed_in_bfloat16_and_kept_in_nothing_else():
    model = tiny_model()
    adapter = add_adapter(model, KINDS["plain"])
    optimizer = AdamW(model, train_config(method="lora"), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    optimizer.masters_to_model()
    frozen = {p.dtype for p in adapter.parameters() if not p.requires_grad}
    assert (frozen, {p.dtype for p in trainable(model).values()}) == ({torch.bfloat16}, {torch.float32})


def test_under_dropout_of_the_adapter_every_record_is_a_branch_of_its_own():
    model = tiny_model().eval()
    add_adapter(model, LoraConfig(r=2, dropout=0.5))
    examples = random_records(6)
    layout = choose_layout(model, examples, train_config(method="lora"), torch.float32)
    assert layout.name == "unshared"
    assert "lora.dropout" in str(layout.reason)
    plain = tiny_model().eval()
    add_adapter(plain, LoraConfig(r=2))
    assert choose_layout(plain, examples, train_config(method="lora"), torch.float32).name == "trie"


@pytest.mark.parametrize("layout", [TRIE, UNSHARED, PADDED], ids=["trie", "unshared", "padded"])
def test_activations_computed_again_are_the_same_activations(layout):
    outcomes = []
    for again in (False, True):
        model = tiny_model()
        torch.manual_seed(0)
        adapter = add_adapter(model, KINDS["plain"])
        if again:
            checkpoint_activations(model)
        steps = train(model, adapter, layout)
        outcomes.append(([step.loss for step in steps], [p.detach() for p in trainable(model).values()]))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(map(torch.equal, outcomes[0][1], outcomes[1][1]))
