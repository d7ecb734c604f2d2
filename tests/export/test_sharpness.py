"""A model whose logits are large is held to how far rounding alone brings it, and to nothing wider."""

import math
from pathlib import Path

import pytest
import torch
from tests.doubles.exported import byte_level_tokenizer, tiny_folder
from transformers.activations import GELUTanh

import tuneful
from tuneful.config import load_config
from tuneful.export import parts
from tuneful.export.gguf_check import expected_rows
from tuneful.export.gguf_tensors import plan_tensors
from tuneful.export.gguf_types import GgufType
from tuneful.export.parts import Measured, divergence, rounding_part, runtime_part, whole
from tuneful.export.sharpness import move_at_random, rounded_inputs, rounding_as_llama_cpp
from tuneful.export.source import find_source
from tuneful.model.load import load_model
from tuneful.model.logits import prompt_logits

PROMPT = [7, 80, 31, 9, 120, 66]


def never() -> list[torch.Tensor]:
    raise AssertionError("nobody needs a control")


def test_a_small_change_costs_half_its_variance_so_a_sharp_model_pays_with_the_square() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, change = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = logits.softmax(0)
    variance = float((weights * change**2).sum() - (weights * change).sum() ** 2)
    for size in (1e-3, 1e-2):
        found = divergence(logits, whole(logits + size * change))
        assert found == pytest.approx(size**2 * variance / 2, rel=0.05)


def test_within_the_bound_no_control_is_made() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    part = rounding_part([*logits], [*logits], "bf16", never)
    assert (part.holds, part.bound, part.note) == (True, "at most 0.02", "")


def test_a_file_in_bf16_that_has_lost_what_was_trained_is_refused_and_one_that_lost_little_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    base = [3 * torch.randn(50, generator=generator) for _ in range(8)]
    trained = [one + torch.randn(50, generator=generator) for one in base]

    def with_a_share(lost: float) -> list[torch.Tensor]:
        return [one + lost * (other - one) for one, other in zip(trained, base, strict=True)]

    def changed() -> list[torch.Tensor]:
        return [one + 0.01 * torch.randn(50, generator=generator) for one in trained]

    assert rounding_part(with_a_share(0.1), trained, "bf16", changed).holds
    assert not rounding_part(with_a_share(1.0), trained, "bf16", changed).holds


def test_beyond_the_bound_the_models_own_rounding_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    trained = [30 * torch.randn(50, generator=generator) for _ in range(8)]

    def changed(size: float) -> list[torch.Tensor]:
        return [one + size * torch.randn(50, generator=generator) for one in trained]

    alike = rounding_part(changed(1.5), trained, "bf16", lambda: changed(1.5))
    assert alike.holds
    assert alike.note.startswith("rounding alone brings this model ")
    further = rounding_part(changed(6.0), trained, "bf16", lambda: changed(1.5))
    assert not further.holds
    assert further.note.startswith("most after prompt ")
    assert " is allowed. bf16 rounds small steps of the training away" in further.note
    flat = runtime_part([*map(whole, changed(2.0))], trained, "bf16", lambda: trained)
    assert not flat.holds
    assert flat.bound == "at most 0.002"  # a control that moves nothing makes no bound narrower


def test_what_is_no_number_is_never_within_a_bound() -> None:
    compared = Measured("logits", "", lambda logits, found: math.nan, max)
    logits = [torch.zeros(3)]
    assert compared.part([whole(logits[0])], logits, 1.0, lambda: logits).holds is False


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_weights_moved_by_chance_are_as_far_from_their_own_as_rounded_ones(type: GgufType, tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    source = find_source(load_config(None, [f"model.name_or_path={folder}"]))
    model, own = load_model(str(folder)).model, load_model(str(folder)).model.state_dict()
    tensors = plan_tensors(source, type)
    move_at_random(model, tensors)
    signs = []
    for tensor in (one for one in tensors if one.type != "f32"):
        moved = model.state_dict()[tensor.weight_name] - own[tensor.weight_name]
        rounding = torch.cat([expected_rows(tensor, *at) for at in tensor.stretches()]) - own[tensor.weight_name]
        assert torch.allclose(moved.abs(), rounding.abs(), atol=1e-6)
        signs.append(float((moved * rounding).sum() / (rounding**2).sum()))
    assert max(map(abs, signs)) < 0.1  # up as often as down


def test_the_table_of_gelu_is_read_as_ggml_reads_it() -> None:
    holder = torch.nn.Sequential(GELUTanh())
    given = torch.tensor([-11.0, -10.0, -0.30001, 0.30001, 9.9, 10.0, 11.3])
    with rounding_as_llama_cpp(holder, "f32"):
        found = holder(given)
    middle = holder(given[2:5].half().float()).half().float()
    assert torch.equal(found, torch.cat([torch.zeros(2), middle, given[5:]]))
    assert torch.equal(holder(given), GELUTanh()(given))  # and no longer


def test_inputs_are_rounded_as_the_type_of_the_weights_asks() -> None:
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded_inputs(inputs, "bf16"), inputs.bfloat16().float())
    assert torch.equal(rounded_inputs(inputs, "q4_0"), rounded_inputs(inputs, "q8_0"))
    assert torch.equal(rounded_inputs(inputs[:, :50], "q8_0"), inputs[:, :50].half().float())  # no whole blocks


def test_llama_cpps_own_rounding_is_what_its_logits_differ_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BOUNDS", {**parts.BOUNDS, "bf16": parts.Bounds(runtime=0.0, rounding=0.0)})
    folder = tiny_folder("gpt2", byte_level_tokenizer(), tmp_path / "model")
    found = {one.name: one for one in tuneful.export(folder, "gguf", type="bf16", output=tmp_path / "out").proof.parts}
    for name in ("logits", "rounding"):
        assert found[name].holds
        assert "rounding alone brings this model" in found[name].note
    model = load_model(str(folder)).model
    with rounding_as_llama_cpp(model, "bf16"):
        rounded = prompt_logits(model, PROMPT)
    assert not torch.equal(rounded, prompt_logits(model, PROMPT))
