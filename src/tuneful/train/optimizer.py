"""AdamW over float32 masters, with the model computing in bfloat16 where that is faster.

The model's own parameters are low-precision copies: bfloat16 or float16, written by the optimizer when it steps, so no forward
casts weights (autocast spends a quarter of a small CPU step on that). The arithmetic is `update.py`'s.
Gradients of several micro-batches add up in float32. In float32 the parameters are their own masters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from tuneful.config import TrainConfig
from tuneful.model.memory import room_for_a_copy
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup, local, sharded_like
from tuneful.train.gradients import make_sums
from tuneful.train.slices import own_part
from tuneful.train.update import Trained, make_update


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The learning rate of `step` (from 1) of `num_steps`: linear warmup, then the schedule; never 0.

    linear falls to 0 at num_steps + 1; cosine follows half a cosine to the same point (Loshchilov & Hutter 2017).
    """
    warmup = config.warmup_steps
    num_warmup = math.ceil(warmup * num_steps) if warmup < 1 else int(warmup)
    if step <= num_warmup:
        return config.learning_rate * step / (num_warmup + 1)
    done = (step - num_warmup - 1) / max(1, num_steps - num_warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1 - done)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019) on every trainable parameter of `model`; norms and biases exempt.

    Making one turns the model's parameters into `dtype`, the compute dtype; `masters_to_model` turns them back into float32.
    Parameters that are sharded over the ranks of `group` stay float32 shards: their copies in `dtype` are made when layers are
    gathered. Frozen ones stay in `dtype` under an adapter, whose base is read again when it is merged: nothing else is kept.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, dtype: torch.dtype, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self._config, self._dtype, self._group = config, dtype, group
        self._low_precision = dtype.itemsize < 4 and not group.sharded
        self._tensors = [
            self._prepare(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        self._update = make_update(self._tensors, config, dtype if self._low_precision else None)
        self._sums = make_sums(model, self._tensors, group)
        self._frozen = self._prepare_frozen(model)
        self._num_steps = 0

    @property
    def is_loss_scaled(self) -> bool:
        """Whether gradients are computed in float16, which holds neither small nor large ones: of a multiple of the loss."""
        return self._dtype is torch.float16

    def collect(self) -> None:
        """Add the gradients of one micro-batch to those collected, in float32; needed only where another one follows."""
        if not self._low_precision:
            return  # autograd adds them up in the parameters' own float32
        for tensor in self._tensors:
            if (gradient := tensor.parameter.grad) is not None:
                tensor.collected = gradient.float() if tensor.collected is None else tensor.collected.add_(gradient)
                tensor.parameter.grad = None

    def without_gradient(self) -> list[str]:
        """The names of the trainable parameters that no gradient at hand belongs to."""
        return [tensor.name for tensor in self._tensors if tensor.gradient is None and tensor.parameter.grad is None]

    def step(self, rate: float, loss_scale: float = 1.0) -> float:
        """One update at learning rate `rate` from the gradients at hand, which are then gone; their norm before clipping.

        They are `loss_scale` times those of the loss. Where the norm is not finite nothing is updated.
        """
        if any(tensor.collected is not None for tensor in self._tensors):
            self.collect()
        norm = self._gradient_norm() / loss_scale
        if math.isfinite(norm):
            limit = self._config.max_grad_norm
            self._num_steps += 1
            self._update.step(self._num_steps, rate, loss_scale * (max(1.0, norm / limit) if limit else 1.0))
        self.forget_gradients()
        return norm

    def begin_backward(self, *, last: bool) -> None:
        """Make room for the gradients of another micro-batch; those of the `last` one of a step may be sent to the other ranks as
        they come."""
        self.collect()
        if self._sums is not None:
            self._sums.expect(last=last)

    def sum_gradients(self, numbers: Sequence[float] = ()) -> list[float]:
        """Make each gradient the sum over all ranks, in the master's dtype, and sum `numbers` with them."""
        return list(numbers) if self._sums is None else self._sums.finish(numbers)

    def forget_gradients(self) -> None:
        """Drop the gradients at hand, those of a step that is abandoned or done."""
        for tensor in self._tensors:
            tensor.parameter.grad = tensor.collected = None
        if self._sums is not None:
            self._sums.restart()

    def keep_weights(self) -> None:
        """Lay a copy of the weights as they are aside, in place of an earlier one. From a GPU it is made while the next step is
        computed, where the memory of the host may be pinned for it."""
        on_gpu = any(tensor.master.device.type == "cuda" for tensor in self._tensors)
        num_bytes = sum(tensor.master.nbytes for tensor in self._tensors)
        pins = on_gpu and room_for_a_copy(2 * num_bytes)  # torch rounds each up to a power of two
        for tensor in self._tensors:
            if tensor.kept is None:
                tensor.kept = torch.empty_like(tensor.master, device="cpu", pin_memory=pins)
            tensor.kept.copy_(tensor.master, non_blocking=pins)

    def restore_weights(self) -> None:
        """Go back to the weights that were kept; the copy is gone after this."""
        for tensor in self._tensors:
            assert tensor.kept is not None, f"{tensor.name}: no weights were kept"
            self._set_master(tensor, tensor.kept)
            tensor.kept = None

    def weights(self) -> dict[str, torch.Tensor]:
        """The master of every trainable parameter by its name: views, which the next step changes, sharded where the
        parameter is."""
        return {tensor.name: sharded_like(tensor.parameter, tensor.master) for tensor in self._tensors}

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """The weights that were kept, by name; empty where none were."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copy may be under way
        return {
            tensor.name: sharded_like(tensor.parameter, tensor.kept)
            for tensor in self._tensors
            if tensor.kept is not None
        }

    def moments(self) -> dict[str, torch.Tensor]:
        """Both moments of every trainable parameter, `exp_avg.<name>` and `exp_avg_sq.<name>`: views."""
        return {
            f"{kind}.{tensor.name}": sharded_like(tensor.parameter, getattr(tensor, kind))
            for tensor in self._tensors
            for kind in ("exp_avg", "exp_avg_sq")
        }

    def restore(
        self,
        num_steps: int,
        weights: Mapping[str, torch.Tensor],
        moments: Mapping[str, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
    ) -> None:
        """Stand where an optimizer stood after `num_steps` steps, with what its `weights`, `moments` and `kept_weights` gave.

        The names must be those of this model; `kept` may be empty.
        """
        assert weights.keys() == self.weights().keys(), "other parameters than this model trains"
        self._num_steps = num_steps
        for tensor in self._tensors:
            own = functools.partial(own_part, like=tensor.parameter)
            self._set_master(tensor, own(weights, tensor.name))
            tensor.exp_avg.copy_(own(moments, f"exp_avg.{tensor.name}"))
            tensor.exp_avg_sq.copy_(own(moments, f"exp_avg_sq.{tensor.name}"))
            tensor.kept = own(kept, tensor.name).clone() if kept else None

    def masters_to_model(self) -> None:
        """Give the model its float32 weights; the optimizer is done after this. Shards are float32 as they are."""
        if self._group.sharded:
            return
        for tensor in self._tensors:
            tensor.parameter.data = tensor.master
        for parameter, original in self._frozen:
            parameter.data = original

    def release(self) -> None:
        """Let go of masters, moments, gradients and kept weights: what comes after the training has their memory."""
        self.forget_gradients()
        if self._sums is not None:
            self._sums.close()
        self._tensors, self._frozen = [], []
        self._update = make_update([], self._config, None)

    def _set_master(self, tensor: Trained, weights: torch.Tensor) -> None:
        tensor.master.copy_(weights)
        if self._low_precision:
            tensor.parameter.data.copy_(tensor.master)

    def _prepare(self, name: str, parameter: torch.nn.Parameter) -> Trained:
        master = local(parameter.data).contiguous()
        if self._low_precision:
            master = master.float()
            parameter.data = master.to(self._dtype)
        elif not self._group.sharded:
            parameter.data = master
        decay = self._config.weight_decay if parameter.ndim > 1 else 0.0
        return Trained(name, parameter, master, torch.zeros_like(master), torch.zeros_like(master), decay)

    def _prepare_frozen(self, model: PreTrainedModel) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Turn frozen parameters into the compute dtype; each with what it was, where that is to come back."""
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        originals = [(parameter, parameter.data) for parameter in frozen if self._config.method == "full"]
        for parameter in frozen:
            if self._low_precision and parameter.is_floating_point():
                parameter.data = parameter.data.to(self._dtype)
        return originals

    def _gradient_norm(self) -> float:
        squares = self._update.squared_norm()
        return math.sqrt(self._group.sum_of_shards(squares) if self._group.sharded else squares)
