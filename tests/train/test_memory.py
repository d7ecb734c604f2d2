"""What fits the memory: what is counted, what says that it ran out, and a self-check that does with fewer records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.doubles.engine import random_records, tiny_model, train_config

from tuneful.config import LoraConfig
from tuneful.errors import OutOfMemoryError
from tuneful.model.behaviour import failure
from tuneful.model.lora import add_adapter
from tuneful.model.memory import is_out_of_memory
from tuneful.train import layout, memory
from tuneful.train.layout import choose_layout, self_check
from tuneful.train.optimizer import AdamW


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out_is_known_whoever_says_it(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(type(error)):
        failure(error)
    with (
        pytest.raises(OutOfMemoryError, match="out of memory at a micro-batch of 2 records"),
        memory.out_of_memory_says(random_records(2)),
    ):
        raise error


def test_shared_memory_that_a_kernel_has_not_enough_of_is_no_memory_that_ran_out() -> None:
    error = RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376.")
    assert not is_out_of_memory(error)
    assert failure(error).startswith("RuntimeError: out of resource: shared memory")


@pytest.mark.parametrize("most", [3, 2, 1])
def test_where_the_self_check_runs_out_of_memory_it_does_with_fewer_records(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = getattr(layout, "micro_batch_loss"), []  # noqa: B009

    def small(model: Any, examples: Any, *others: Any) -> Any:
        if len(examples) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        computed.append(len(examples))
        return real(model, examples, *others)

    monkeypatch.setattr(layout, "micro_batch_loss", small)
    found = choose_layout(tiny_model(), random_records(8), train_config(), torch.bfloat16)
    assert (found.name, found.reason) == ("trie", None)
    assert max(computed) == min(most, 2)


def test_a_record_that_does_not_fit_the_self_check_by_itself_is_named_as_in_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(layout, "micro_batch_loss", never)
    with pytest.raises(OutOfMemoryError, match=r"out of memory at a micro-batch of 1 record, \d+ tokens"):
        choose_layout(tiny_model(), random_records(8), train_config(), torch.float32)
    with pytest.raises(OutOfMemoryError):
        self_check(tiny_model(), random_records(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapts", [False, True])
def test_what_the_optimizer_will_take_is_counted_before_it_is_there(dtype: torch.dtype, adapts: bool) -> None:
    model: Any = tiny_model(dtype=dtype if adapts else torch.float32)
    if adapts:
        add_adapter(model, LoraConfig(r=2))
    trained = [one for one in model.parameters() if one.requires_grad]
    before = sum(one.nbytes for one in trained)
    counted = memory.optimizer_bytes(model, dtype)
    optimizer = AdamW(model, train_config(method="lora" if adapts else "full"), dtype)
    parts = [*optimizer.weights().values(), *optimizer.moments().values()]
    if dtype is torch.bfloat16:
        parts += [one.data for one in trained]
    for number in range(2):  # the gradients of two micro-batches: what is collected, and what comes
        for one in trained:
            one.grad = torch.zeros_like(one)
        parts += [one.grad for one in trained if one.grad is not None and number]
        optimizer.collect()
    parts += [one.collected for one in optimizer._tensors if one.collected is not None]
    if dtype is torch.float32:
        assert not optimizer._low_precision
    assert counted == sum(part.nbytes for part in parts) - before


def test_tokens_of_a_micro_batch_share_what_the_optimizer_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    own = memory.optimizer_bytes(model, torch.float32)
    found = []
    for extra in (0, own):
        monkeypatch.setattr(memory, "available_bytes", lambda device, extra=extra: 20 * 10**6 + extra)
        found.append(memory.affordable_tokens(model, torch.float32, computed_again=False))
    monkeypatch.setattr(memory, "optimizer_bytes", lambda *given: 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 20 * 10**6)
    assert memory.affordable_tokens(model, torch.float32, computed_again=False) == found[1] > found[0]
    monkeypatch.setattr(memory, "optimizer_bytes", lambda *given: 10**12)
    assert memory.affordable_tokens(model, torch.float32, computed_again=False) == memory.MIN_TOKENS


def test_a_sharded_model_is_not_checked_with_fewer_records_by_one_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others compute the same records, and would wait for layers that this one asks for no more."""
    asked: list[int] = []

    def full(model: Any, examples: Any, *others: Any, **settings: Any) -> None:
        asked.append(len(examples))
        raise OutOfMemoryError(len(examples), 100, 50, "data.json:1")

    monkeypatch.setattr(layout, "self_check", full)
    monkeypatch.setattr(layout, "is_sharded", lambda model: True)
    with pytest.raises(OutOfMemoryError):
        layout._fitting_check(tiny_model(), random_records(4))
    assert asked == [4]
