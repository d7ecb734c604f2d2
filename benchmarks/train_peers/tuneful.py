"""Tuneful's own engine as a system of the benchmark, with a switch for each technique (the ablation ladder)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from train_peers.adapter import read_into
from train_peers.worker import BETA, Batch, Job, Optimization, Record, open_job, serve
from tuneful.batch.trie import build_trie, visible
from tuneful.config import Config, PreferenceConfig, TrainConfig
from tuneful.model.attention import plan_attention, use_trie_attention
from tuneful.model.decoder import is_served, target_logits
from tuneful.model.load import load_model
from tuneful.model.memory import keep_freed_memory
from tuneful.model.precision import cast_parameters
from tuneful.runs.method import begin_method
from tuneful.train.loss import WeightedCrossEntropy, embedded, micro_batch_loss
from tuneful.train.objective import total_weight
from tuneful.train.optimizer import AdamW
from tuneful.train.preference import PairObjective, side_key
from tuneful.types import Example

Model = Any


def make_stepper(job: Job, dtype: str) -> Callable[[Batch], float]:
    """A function that runs one optimizer step on a batch and returns the loss before the update.

    `dtype` is the compute dtype, "bfloat16" or "float32"; the job's switches name every technique of `systems.SWITCHES`.
    """
    switches = job.switches
    if switches["kept_memory"]:
        keep_freed_memory()
    if not switches["compiled_kernels"]:
        os.environ["TUNEFUL_NATIVE"] = "0"
    model = _trainable_model(job, getattr(torch, dtype))
    forward = _total_loss
    techniques: dict[str, Any] = {name: switches[name] for name in ("block_attention", "target_rows", "tied_lookup")}
    if not all(techniques.values()):
        forward = partial(_ablated_loss, **techniques)
    make_optimizer = _own_optimizer if switches["one_pass_optimizer"] else _torch_optimizer
    update = make_optimizer(model, job.optimization, getattr(torch, dtype))

    def run_pairs(batch: Batch) -> float:
        loss = _pair_loss(model, batch, switches["sharing"])
        loss.backward()
        update()
        return float(loss.item())

    if job.batches and job.batches[0][0].rejected is not None:
        return run_pairs

    def run_step(batch: Batch) -> float:
        examples = [_example(record) for record in batch]
        loss = forward(model, examples, switches["sharing"]) / total_weight(examples)
        loss.backward()
        update()
        return float(loss.item())

    return run_step


def _trainable_model(job: Job, dtype: torch.dtype) -> Model:
    """The float32 model, or the base in the compute dtype with the adapter beside it, as a run of the product makes them."""
    if job.adapter is None:
        return load_model(str(job.model)).model.train()
    settings = json.loads((job.adapter / "adapter_config.json").read_text())
    adapter = {"r": settings["r"], "alpha": settings["lora_alpha"]}
    model = load_model(str(job.model), dtype=dtype).model.train()
    begin_method(model, Config.model_validate({"train": {"method": "lora"}, "lora": adapter}), torch.device("cpu"))
    read_into(model, job.adapter)
    return model


def _example(record: Record) -> Example:
    ids = np.asarray(record.ids, dtype=np.int32)
    weights = (np.arange(len(ids)) >= record.num_prompt).astype(np.float32)
    return Example(ids, weights, record.num_prompt, "benchmark")


def _total_loss(model: Model, examples: list[Example], share: bool) -> torch.Tensor:
    return micro_batch_loss(model, examples, "trie" if share else "unshared").total


def _pair_loss(model: Model, batch: Batch, share: bool) -> torch.Tensor:
    """DPO's loss of a step, against the reference that the batch brings."""
    pairs: list[Example] = []
    reference: dict[str, float] = {}
    for record in batch:
        chosen, rejected = map(_example, record.sides)
        pairs.append(replace(chosen, rejected=rejected))
        assert record.reference is not None
        reference |= {side_key(side): known for side, known in zip((chosen, rejected), record.reference, strict=True)}
    objective = PairObjective("dpo", PreferenceConfig(beta=BETA), reference)
    found = micro_batch_loss(model, objective.sides(pairs), "trie" if share else "unshared")
    return objective.begin(pairs, lambda _: [])(pairs, found)[0]


def _ablated_loss(
    model: Model, examples: list[Example], share: bool, *, block_attention: bool, target_rows: bool, tied_lookup: bool
) -> torch.Tensor:
    """The engine's forward with attention or head as others have them; attention as others have it is in transformers' own."""
    batch = build_trie(examples, share=share)
    rows = torch.from_numpy(batch.target_rows).long()
    read = rows if target_rows else torch.arange(batch.num_nodes)
    positions = torch.from_numpy(batch.positions).long()[None]
    ids = torch.from_numpy(batch.input_ids).long()[None]
    inputs = embedded(model, ids) if tied_lookup else {"input_ids": ids}
    if block_attention:
        use_trie_attention(model)
        assert is_served(model), type(model)
        logits = target_logits(model, inputs, positions, plan_attention(batch, model, only_targets=target_rows), read)
    else:
        model.set_attn_implementation("sdpa")
        mask = torch.from_numpy(visible(batch))[None, None]
        inputs = {**inputs, "position_ids": positions, "attention_mask": mask}
        logits = model(use_cache=False, logits_to_keep=read, **inputs).logits[0]
    targets = torch.from_numpy(batch.target_ids).long(), torch.from_numpy(batch.target_weights)
    total: torch.Tensor = WeightedCrossEntropy.apply(logits if target_rows else logits[rows], *targets)[0]
    return total


def _own_optimizer(model: Model, settings: Optimization, dtype: torch.dtype) -> Callable[[], None]:
    config = TrainConfig(
        learning_rate=settings.learning_rate,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
    optimizer = AdamW(model, config, dtype)

    def step() -> None:
        optimizer.step(settings.learning_rate)

    return step


def _torch_optimizer(model: Model, settings: Optimization, dtype: torch.dtype) -> Callable[[], None]:
    """torch's fused AdamW on float32 masters; gradients and low-precision copy are cast whole."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [torch.nn.Parameter(parameter.detach().float().clone()) for parameter in trained]
    cast_parameters(model, dtype)
    optimizer = torch.optim.AdamW(masters, fused=True, **settings.adamw())

    def update() -> None:
        for master, parameter in zip(masters, trained, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, settings.max_grad_norm)
        optimizer.step()
        for master, parameter in zip(masters, trained, strict=True):
            parameter.data.copy_(master.data)

    return update


def main() -> None:
    job, channel = open_job()
    dtype = job.variant if job.switches["bfloat16"] else "float32"
    serve(job, channel, make_stepper(job, dtype), dtype=dtype)


if __name__ == "__main__":
    main()
