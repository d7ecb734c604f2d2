"""A torch without oneDNN, as every wheel for macOS is, does all that one with it does; in float32 where the processor decides."""

import pytest
import torch
from tests.doubles.elsewhere import without_onednn
from tests.doubles.engine import tiny_model

from tuneful.infer.packed import packed_weights
from tuneful.model import onednn
from tuneful.model.precision import choose_dtype


@pytest.fixture
def no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    without_onednn(monkeypatch)


@pytest.mark.usefixtures("no_onednn")
def test_the_stand_in_lacks_the_operators_as_a_build_without_them_does() -> None:
    with pytest.raises(AttributeError, match="_is_mkldnn_bf16_supported"):
        torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.usefixtures("no_onednn")
def test_without_onednn_the_processor_computes_in_float32_and_the_reason_is_said(tmp_path) -> None:
    assert choose_dtype("auto", torch.device("cpu"), tmp_path) is torch.float32
    assert onednn.why_no_bfloat16() == "this build of torch has no oneDNN"


@pytest.mark.usefixtures("no_onednn")
def test_without_onednn_no_weights_are_packed() -> None:
    model = tiny_model("llama").to(torch.bfloat16).eval()
    with torch.no_grad(), packed_weights(model):
        assert model(input_ids=torch.arange(1, 5)[None]).logits.isfinite().all()


def test_operators_that_are_missing_from_a_build_with_onednn_are_missing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    without_onednn(monkeypatch)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert not onednn.multiplies_bfloat16()
    assert onednn.why_no_bfloat16() == "the processor does not multiply bfloat16"
