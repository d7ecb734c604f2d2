"""What a GPU is asked for so that a training gives the same bits again, and that all is as before afterwards."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.engine import random_records, tiny_model

from tuneful.model.precision import ieee_float32
from tuneful.model.repeatable import repeatable, reserve_workspace, strictly_repeatable
from tuneful.model.transfer import on_device, packed, unpacked
from tuneful.train.loss import add_rows, micro_batch_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def switches() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        getattr(torch.utils.deterministic, "fill_uninitialized_memory"),  # noqa: B009
    )


def test_on_a_gpu_operations_of_a_fixed_order_are_taken_and_flash_attention_may_take_no_other() -> None:
    before = switches()
    with repeatable(CPU):
        assert switches() == before
    with repeatable(CUDA):
        assert switches() == (True, True, False)
        with strictly_repeatable():
            assert switches() == (True, False, False)
        assert switches() == (True, True, False)
        with warnings.catch_warnings(record=True) as heard:
            warnings.filterwarnings("ignore", message=".*deterministic")
            warnings.warn("put_ does not have a deterministic implementation", stacklevel=1)
        assert not heard
    assert switches() == before == (False, False, True)


def test_after_an_error_everything_is_as_before() -> None:
    before = switches()
    with pytest.raises(ZeroDivisionError), repeatable(CUDA):
        raise ZeroDivisionError
    assert switches() == before


def test_cublas_gets_its_workspace_on_a_gpu_and_keeps_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    reserve_workspace(CPU)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    reserve_workspace(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    reserve_workspace(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_step_uses_no_operation_of_torch_that_has_no_fixed_order() -> None:
    """torch raises at one that it knows of, on a CPU too."""
    model = tiny_model()
    with strictly_repeatable():
        micro_batch_loss(model, random_records(6), "trie").total.backward()


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_rows_that_are_looked_up_several_times_are_added_in_one_order(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ids, rows, before = torch.randint(0, 5, (60,)), torch.randn(60, 8, dtype=dtype), torch.randn(7, 8, dtype=dtype)
    one_by_one, sorted_first = before.clone(), before.clone()
    add_rows(one_by_one, ids, rows)
    add_rows(sorted_first.as_subclass(Elsewhere), ids, rows)
    again = before.clone()
    add_rows(again.as_subclass(Elsewhere), ids, rows)
    assert torch.equal(sorted_first, again)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(sorted_first, one_by_one, rtol=tolerance, atol=tolerance)
    assert not torch.equal(sorted_first, before)


def test_float32_is_float32_in_the_proof_whatever_was_asked_of_torch() -> None:
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32"
        with ieee_float32():
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert [place.fp32_precision for place in places] == ["tf32", "tf32"]
        with pytest.raises(ZeroDivisionError), ieee_float32():
            raise ZeroDivisionError
        assert [place.fp32_precision for place in places] == ["tf32", "tf32"]
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_the_older_of_torchs_settings_is_that_of_float32_too_and_comes_back(asked: str) -> None:
    before = torch.get_float32_matmul_precision()
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009
    try:
        torch.set_float32_matmul_precision(asked)
        kept = [place.fp32_precision for place in places]
        with ieee_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == asked
        assert [place.fp32_precision for place in places] == kept
    finally:
        torch.set_float32_matmul_precision(before)
        for place in places:
            place.fp32_precision = "none"


def test_arrays_that_travel_in_one_buffer_arrive_as_they_were() -> None:
    rng = np.random.default_rng(0)
    arrays: list[Any] = [
        rng.integers(0, 2**31 - 1, 7).astype(np.int32),
        rng.random(5),
        rng.integers(-9, 9, (3, 4)).astype(np.int32),
        np.zeros(0, dtype=np.int32),
        rng.random((2, 1)),
    ]
    buffer = packed(arrays)
    assert (buffer.dtype, len(buffer)) == (torch.int32, 7 + 12 + 2 * 7)
    for found, array in zip(unpacked(buffer, arrays), arrays, strict=True):
        assert np.array_equal(found.numpy(), array)
        assert found.numpy().dtype == array.dtype
    for found, array in zip(on_device(CPU, *arrays), arrays, strict=True):
        assert np.array_equal(found.numpy(), array)
        assert found.dtype in (torch.int64, torch.float64)
    assert on_device(CPU, arrays[0], integers=torch.int32)[0].dtype is torch.int32
