"""Gradients of all ranks become one sum, most of it while the backward still computes others.

    ddp     buckets of about 64 MB, filled from the output backwards. One whose gradients are all there is sent while the
            backward of the last micro-batch goes on; what is left, when it has ended (Li et al. 2020, section 3.2)
    fsdp    layers are summed by FSDP itself, in their backward. Between nodes that hold copies this waits for the last
            micro-batch; within them too, where there is memory for whole gradients

Every rank sends the same buckets in the same order, whatever its backward does first, and gets the same bits. A bucket is made
when the first of its gradients comes, and these are gone then: beside the gradients there is one more bucket at a time, or two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from transformers import PreTrainedModel

from tuneful.train.distributed import BUCKET_BYTES, ProcessGroup, sum_in_backward
from tuneful.train.update import Trained

_ALIGNED = 16
"""Elements: every gradient of a bucket begins at a multiple of them, as one of its own would."""


class GradientSums(Protocol):
    """How the gradients of all ranks become one sum."""

    def expect(self, *, last: bool) -> None:
        """A backward follows, and whether it is the step's last one."""

    def restart(self) -> None:
        """The gradients of a step are computed again from its first micro-batch on."""

    def finish(self, numbers: Sequence[float]) -> list[float]:
        """All backwards are done: leave each gradient as the sum over all ranks, none where no rank has one; sum `numbers`."""

    def close(self) -> None:
        """No gradient is to come any more."""


def make_sums(model: PreTrainedModel, tensors: Sequence[Trained], group: ProcessGroup) -> GradientSums | None:
    """What sums the gradients of `tensors`, the trained parameters of `model`; None for a rank alone."""
    if group.size == 1:
        return None
    if group.sharded:
        return ShardedSums(model, group)
    return GradientBuckets(tensors, group, BUCKET_BYTES, tied=_tied(model))


class ShardedSums:
    """FSDP's own sums, told when to wait."""

    def __init__(self, model: PreTrainedModel, group: ProcessGroup) -> None:
        self._model, self._group = model, group

    def expect(self, *, last: bool) -> None:
        """Sum in each backward; or in the last one, between nodes and where whole gradients may be kept until then."""
        sum_in_backward(self._model, self._group, last=last)

    def restart(self) -> None:
        """Nothing: a step of sharded ranks is never computed again."""

    def finish(self, numbers: Sequence[float]) -> list[float]:
        """The backward has summed the gradients."""
        return self._group.sum(numbers)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True, eq=False)
class _Bucket:
    """Gradients that are sent together; `flat` holds them, each from its start on, once the first is there."""

    starts: dict[Trained, int] = field(default_factory=dict)
    size: int = 0
    flat: torch.Tensor | None = None
    taken: set[Trained] = field(default_factory=set)
    wait: Callable[[], object] | None = None

    def add(self, tensor: Trained) -> None:
        """Make room for one more gradient."""
        start = -(-self.size // _ALIGNED) * _ALIGNED
        self.starts[tensor], self.size = start, start + tensor.master.numel()

    def take(self, tensor: Trained) -> bool:
        """Move the gradient of `tensor` here, those of all micro-batches added up; False, and zeros, where it has none."""
        gradient, collected, master = tensor.parameter.grad, tensor.collected, tensor.master
        if gradient is None or collected is None:
            whole = collected if gradient is None else gradient
        else:
            whole = collected.add_(gradient)
        if whole is not None and len(self.starts) == 1:  # as large as a bucket, perhaps: it is one, and not copied
            self.flat = whole.to(master.dtype).contiguous().view(-1)
        elif self.flat is None:
            self.flat = torch.zeros(self.size, dtype=master.dtype, device=master.device)
        if whole is not None and len(self.starts) > 1:
            self.part(tensor).copy_(whole)
        tensor.parameter.grad = tensor.collected = None
        self.taken.add(tensor)
        return whole is not None

    def part(self, tensor: Trained) -> torch.Tensor:
        """The gradient of `tensor`, a view."""
        assert self.flat is not None
        start = self.starts[tensor]
        return self.flat[start : start + tensor.master.numel()].view(tensor.master.shape)

    def clear(self) -> None:
        """Forget what was taken."""
        self.flat, self.wait = None, None
        self.taken.clear()


class GradientBuckets:
    """Sums of gradients that every rank has whole.

    A step that is computed again, because memory ran out in it, keeps what was sent: those gradients were complete.
    """

    def __init__(
        self, tensors: Sequence[Trained], group: ProcessGroup, max_bytes: int, *, tied: torch.Tensor | None = None
    ) -> None:
        """`tied` is a parameter whose gradient is not whole when autograd has accumulated it: it is sent last."""
        self._group, self._tensors = group, list(tensors)
        last_first = self._tensors[::-1]
        last_first.sort(key=lambda tensor: tensor.parameter is tied)
        self._buckets = _filled(last_first, max_bytes)
        self._overlaps, self._num_sent = False, 0
        self._found: set[Trained] = set()
        self._hooks = [
            tensor.parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket, tensor))
            for bucket in self._buckets
            for tensor in bucket.starts
            if tensor.parameter is not tied
        ]

    def expect(self, *, last: bool) -> None:
        """In the last backward each gradient that comes is the whole step's, and may be sent."""
        self._overlaps = last

    def restart(self) -> None:
        """Forget the gradients that were not sent yet."""
        self._overlaps = False
        for bucket in self._buckets[self._num_sent :]:
            self._found -= bucket.taken
            bucket.clear()

    def finish(self, numbers: Sequence[float]) -> list[float]:
        """Send what is left, wait for all, and hand the sums to the optimizer: None for what no rank has a gradient of."""
        self._overlaps = False
        for bucket in self._buckets[self._num_sent :]:
            for tensor in bucket.starts:
                if tensor not in bucket.taken:
                    self._take(bucket, tensor)
            self._send_next()
        sums = self._group.sum([*numbers, *(float(tensor in self._found) for tensor in self._tensors)])
        counts = dict(zip(self._tensors, sums[len(numbers) :], strict=True))
        for bucket in self._buckets:
            assert bucket.wait is not None
            bucket.wait()
            for tensor in bucket.starts:
                tensor.parameter.grad = None  # of a step computed again, the one that was not sent
                tensor.collected = bucket.part(tensor) if counts[tensor] else None
            bucket.clear()
        self._num_sent = 0
        self._found.clear()
        return sums[: len(numbers)]

    def close(self) -> None:
        """Take the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._tensors, self._buckets, self._hooks = [], [], []

    def _arrived(self, bucket: _Bucket, tensor: Trained, parameter: torch.Tensor) -> None:
        """Autograd has left a gradient in `parameter`."""
        if not self._overlaps or bucket.wait is not None:
            return
        assert tensor not in bucket.taken, f"{tensor.name}: its gradient came in two parts"
        self._take(bucket, tensor)
        while self._num_sent < len(self._buckets) and self._next_is_full():
            self._send_next()

    def _take(self, bucket: _Bucket, tensor: Trained) -> None:
        if bucket.take(tensor):
            self._found.add(tensor)

    def _next_is_full(self) -> bool:
        bucket = self._buckets[self._num_sent]
        return len(bucket.taken) == len(bucket.starts)

    def _send_next(self) -> None:
        bucket = self._buckets[self._num_sent]
        assert bucket.flat is not None
        bucket.wait = self._group.begin_sum(bucket.flat)
        self._num_sent += 1


def _filled(tensors: Sequence[Trained], max_bytes: int) -> list[_Bucket]:
    """Buckets of at most `max_bytes`, or of one tensor, each of one dtype and device."""
    buckets: list[_Bucket] = []
    kind_before = None
    for tensor in tensors:
        master = tensor.master
        kind = (master.dtype, master.device)
        full = buckets and (buckets[-1].size + master.numel()) * master.itemsize > max_bytes
        if not buckets or full or kind != kind_before:
            buckets.append(_Bucket())
        buckets[-1].add(tensor)
        kind_before = kind
    return buckets


def _tied(model: PreTrainedModel) -> torch.Tensor | None:
    """The matrix that is embedding and head in one: `loss.TiedLookup` adds to its gradient what autograd does not see."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = outputs is not None and getattr(outputs, "weight", None) is inputs.weight
    return inputs.weight if tied else None
