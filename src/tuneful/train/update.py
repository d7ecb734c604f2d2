"""What AdamW does to numbers: the norm of all gradients, and one step of every weight.

`NativeUpdate` is the compiled kernels': a gradient is read once, as it came, and master, moments and low-precision copy are
written in the same pass, 28 bytes of memory traffic a parameter. `TorchUpdate` does the same with torch's operations, for other
devices and where nothing is compiled: tensors in batches that stay in the cache, small ones together and large ones in stretches,
each of gradient to float32, clip, AdamW and copy to low precision one call for a whole batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tuneful.config import TrainConfig
from tuneful.model.native import KINDS, Parameter, kernels
from tuneful.model.precision import in_float64
from tuneful.train.distributed import local

BATCH_ELEMENTS, GPU_BATCH_ELEMENTS = 1 << 20, 1 << 26
"""Elements that torch steps at once: on a CPU 4 MiB of float32 gradient, with master and moments four times that; on a GPU, where
every call is a launch, 256 MiB."""
_CHUNK = 65_536  # of kernels.c


@dataclass(slots=True, eq=False)
class Trained:
    """One parameter with its master and moments (all of one shape, contiguous and of one dtype); `collected` adds up
    micro-batches, `kept` are the weights of an earlier step."""

    name: str
    parameter: torch.nn.Parameter
    master: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    weight_decay: float
    collected: torch.Tensor | None = None
    kept: torch.Tensor | None = None

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient of the whole step, once all micro-batches are in; of this rank's shard where the model is sharded."""
        if self.collected is not None:
            return self.collected
        return None if self.parameter.grad is None else local(self.parameter.grad)


def make_update(
    tensors: Sequence[Trained], config: TrainConfig, copies: torch.dtype | None
) -> NativeUpdate | TorchUpdate:
    """The faster of the two that serves `tensors`; `copies` is the low precision in which the parameters copy their masters."""
    kinds = {(tensor.master.device, tensor.master.dtype) for tensor in tensors}
    device, dtype = next(iter(kinds)) if len(kinds) == 1 else (None, None)
    served = dtype in (torch.float32, torch.float64) and copies in (None, torch.bfloat16)
    if device is not None and dtype is not None and served and (library := kernels(device, dtype)):
        return NativeUpdate(tensors, config, copies is not None, library)
    return TorchUpdate(tensors, config, copies is not None)


class NativeUpdate:
    """By the compiled kernels: one call for all parameters, whose chunks the threads share."""

    def __init__(
        self, tensors: Sequence[Trained], config: TrainConfig, low_precision: bool, library: ctypes.CDLL
    ) -> None:
        self._tensors, self._config, self._low_precision, self._library = tensors, config, low_precision, library
        self._kind = KINDS[tensors[0].master.dtype]

    def squared_norm(self) -> float:
        """The sum of squares of all gradients."""
        parameters, _alive = self._parameters()
        if not len(parameters):
            return 0.0
        parts = torch.empty(sum(-(-row.size // _CHUNK) for row in parameters), dtype=torch.float64)
        return float(
            self._library.squared_norm(
                *(torch.get_num_threads(), self._kind, len(parameters), parameters), parts.data_ptr()
            )
        )

    def step(self, num_steps: int, rate: float, divisor: float) -> None:
        """AdamW's step number `num_steps` with the gradients divided by `divisor`."""
        parameters, _alive = self._parameters()
        if len(parameters):
            betas = self._config.adam_beta1, self._config.adam_beta2
            self._library.adamw(
                *(torch.get_num_threads(), self._kind, len(parameters), parameters),
                *(rate, *betas, self._config.adam_epsilon, divisor, num_steps),
            )

    def _parameters(self) -> tuple[ctypes.Array[Parameter], list[torch.Tensor]]:
        """Those that have a gradient, as the kernels read them, and the gradients, to be held until they are read."""
        rows, gradients, num_chunks = [], [], 0
        for tensor in self._tensors:
            if (gradient := tensor.gradient) is None:
                continue
            if gradient.dtype is not torch.bfloat16:
                gradient = gradient.to(tensor.master.dtype)
            gradients.append(gradient.contiguous())
            assert not self._low_precision or tensor.parameter.dtype is torch.bfloat16, tensor.parameter.dtype
            rows.append(
                Parameter(
                    master=tensor.master.data_ptr(),
                    exp_avg=tensor.exp_avg.data_ptr(),
                    exp_avg_sq=tensor.exp_avg_sq.data_ptr(),
                    gradient=gradients[-1].data_ptr(),
                    low_precision=tensor.parameter.data_ptr() if self._low_precision else None,
                    size=tensor.master.numel(),
                    first_chunk=num_chunks,
                    gradient_kind=KINDS[gradient.dtype],
                    decay=tensor.weight_decay,
                )
            )
            num_chunks += -(-tensor.master.numel() // _CHUNK)
        return (Parameter * len(rows))(*rows), gradients


@dataclass(frozen=True, slots=True, eq=False)
class _Stretch:
    """Some elements of one parameter."""

    tensor: Trained
    start: int
    stop: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The stretch of `whole`, which is laid out as the parameter is: a flat view."""
        return whole.view(-1)[self.start : self.stop]


class TorchUpdate:
    """By torch's fused AdamW, a batch of stretches at a time."""

    def __init__(self, tensors: Sequence[Trained], config: TrainConfig, low_precision: bool) -> None:
        self._config, self._low_precision = config, low_precision
        self._batches = _batches(tensors)

    def squared_norm(self) -> float:
        """The sum of squares of all gradients."""
        squares = [torch.dot(part, part) for batch in self._with_gradients() for part in _gradients(batch)]
        return in_float64(torch.stack(squares)).sum().item() if squares else 0.0  # a rank may hold nothing

    def step(self, num_steps: int, rate: float, divisor: float) -> None:
        """AdamW's step number `num_steps` with the gradients divided by `divisor`."""
        scalars: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        for batch in self._with_gradients():
            device = batch[0].tensor.master.device
            if device not in scalars:
                # Filled there: a copy would wait for the device.
                steps, by = (torch.full((), float(one), device=device) for one in (num_steps, divisor))
                scalars[device] = steps, by
            self._step_batch(batch, rate, *scalars[device], divides=divisor != 1.0)

    def _with_gradients(self) -> Iterator[list[_Stretch]]:
        """The batches of what has a gradient."""
        for batch in self._batches:
            if trained := [stretch for stretch in batch if stretch.tensor.gradient is not None]:
                yield trained

    def _step_batch(
        self, batch: Sequence[_Stretch], rate: float, num_steps: torch.Tensor, divisor: torch.Tensor, *, divides: bool
    ) -> None:
        masters = [stretch.of(stretch.tensor.master) for stretch in batch]
        gradients = _gradients(batch)
        if divides and masters[0].device.type == "mps":
            # Its kernel may not know `grad_scale`, and the gradients are used once.
            torch._foreach_div_(gradients, divisor)
            divides = False
        torch._fused_adamw_(
            masters,
            gradients,
            [stretch.of(stretch.tensor.exp_avg) for stretch in batch],
            [stretch.of(stretch.tensor.exp_avg_sq) for stretch in batch],
            [],
            [num_steps] * len(batch),
            lr=rate,
            beta1=self._config.adam_beta1,
            beta2=self._config.adam_beta2,
            weight_decay=batch[0].tensor.weight_decay,
            eps=self._config.adam_epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor if divides else None,
        )
        if self._low_precision:
            torch._foreach_copy_([stretch.of(stretch.tensor.parameter.data) for stretch in batch], masters)


def _batches(tensors: Sequence[Trained]) -> list[list[_Stretch]]:
    """Every element once, in order: stretches that are stepped together, of one dtype, device and weight decay."""
    batches: list[list[_Stretch]] = []
    room, before = 0, None
    for tensor in tensors:
        kind = (tensor.weight_decay, tensor.master.dtype, tensor.master.device)
        start, size = 0, tensor.master.numel()
        while start < size:
            if not room or kind != before:
                batches.append([])
                room, before = BATCH_ELEMENTS if kind[-1].type == "cpu" else GPU_BATCH_ELEMENTS, kind
            stop = min(size, start + room)
            batches[-1].append(_Stretch(tensor, start, stop))
            room, start = room - (stop - start), stop
    return batches


def _gradients(batch: Sequence[_Stretch]) -> list[torch.Tensor]:
    """The gradients of a batch in the masters' dtype, flat; those of the next batch may take their place in memory."""
    found = [stretch.of(stretch.tensor.gradient) for stretch in batch if stretch.tensor.gradient is not None]
    master = batch[0].tensor.master
    if all(gradient.dtype is master.dtype for gradient in found):
        return found
    sizes = [len(gradient) for gradient in found]
    copies = list(torch.empty(sum(sizes), dtype=master.dtype, device=master.device).split(sizes))
    torch._foreach_copy_(copies, found)
    return copies
