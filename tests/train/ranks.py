"""One rank of a small training; run by test_distributed.py, several at a time. Rank 0 writes found-<ranks>.json."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tests.doubles.engine import tiny_model, train_config
from tests.doubles.pairs import random_labelled, random_pairs

from tuneful.batch.order import all_steps
from tuneful.config import PreferenceConfig
from tuneful.errors import OutOfMemoryError, TunefulError
from tuneful.model.attention import use_trie_attention
from tuneful.model.decoder import is_served
from tuneful.runs.schema import Evaluation, Layout, Step, TrainingState
from tuneful.train import failures, gradients
from tuneful.train.distributed import SINGLE_PROCESS, full_tensor, joined_group, shard
from tuneful.train.loop import Training, mean_loss
from tuneful.train.optimizer import AdamW
from tuneful.train.preference import KtoObjective, PairObjective
from tuneful.train.reference import largest_difference, reference_logps
from tuneful.types import Example

LAYOUT = Layout("trie", max_tokens=30)  # two or three records a micro-batch
WITH_PAIRS = ("ddp", "fsdp", "copies")
MIXTURE = PreferenceConfig(loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.2))


def records(count):
    generator = np.random.default_rng(1)
    made = []
    for index in range(count):
        ids = np.concatenate([np.arange(5), generator.integers(0, 20, generator.integers(2, 16))]).astype(np.int32)
        weights = (np.arange(len(ids)) >= 5).astype(np.float32)
        made.append(Example(ids, weights, 5, f"record {index}"))
    return made


def train_pairs(group):
    """Four steps of pairs and labels, the last of fewer records than micro-batches; the reference is computed by all ranks."""
    found: dict[str, Any] = {}
    for name, examples in (("dpo", random_pairs(13)), ("kto", random_labelled(13))):
        model = tiny_model("llama", dtype=torch.float64)
        use_trie_attention(model)
        if group.sharded:
            shard(model, torch.float64, group.replicas)
        config = train_config(batch_size=4, num_train_epochs=1, learning_rate=1e-2, eval_steps=4, keep="last")
        optimizer = AdamW(model, config, torch.float64, group)  # while the parameters are shards, as in a run
        bare = KtoObjective(PreferenceConfig(), 64) if name == "kto" else PairObjective("dpo", MIXTURE)
        known: dict[str, float] = {}
        order = [[examples[index] for index in step] for step in all_steps(10, 4, config.seed, 1)]
        list(reference_logps(model, bare, [*order, examples[10:]], LAYOUT, known, group=group))
        objective = replace(bare, reference=known)
        assert largest_difference(model, objective, order[0], LAYOUT, group) < 1e-12
        training = Training(
            model, optimizer, examples[:10], examples[10:], config, LAYOUT, objective=objective, group=group
        )
        events = list(training.run())
        steps = [event for event in events if isinstance(event, Step)]
        found |= {
            f"{name} loss": [event.loss for event in steps],
            f"{name} logps": [event.logps_chosen for event in steps],
            f"{name} margin": [event.rewards_margins for event in steps[1:]],
            f"{name} validation": [event.validation_loss for event in events if isinstance(event, Evaluation)],
            f"{name} weight": {key: full_tensor(one).detach() for key, one in model.named_parameters()},
        }
    return found


def train(group):
    """Three epochs of 13 records, 6 a step: the last step has 3 records, at 2 or 3 ranks fewer than micro-batches."""
    model = tiny_model("llama", dtype=torch.float64)
    use_trie_attention(model)
    if group.sharded:
        shard(model, torch.float64, group.replicas)
    assert (
        is_served(model) is not group.sharded
    )  # layers that are gathered when they are called run in transformers' forward
    examples = records(17)
    config = train_config(batch_size=6, num_train_epochs=3, learning_rate=1e-2, eval_steps=3, keep="last")
    optimizer = AdamW(model, config, torch.float64, group)
    first: dict[str, torch.Tensor] = {}
    take = optimizer.step

    def step(rate):
        if not first:
            first.update({tensor.name: whole_gradient(tensor).clone() for tensor in optimizer._tensors})
        return take(rate)

    setattr(optimizer, "step", step)  # noqa: B010
    events = list(
        Training(
            model, optimizer, examples[:13], examples[13:], config, LAYOUT, state=TrainingState(), group=group
        ).run()
    )
    before = {name: full_tensor(weight).clone() for name, weight in optimizer.weights().items()}
    moments = {name: full_tensor(moment).clone() for name, moment in optimizer.moments().items()}
    optimizer.restore(9, before, moments, {})  # what a checkpoint holds is whole, whoever wrote it
    assert all(torch.equal(full_tensor(weight), before[name]) for name, weight in optimizer.weights().items())
    assert all(torch.equal(full_tensor(moment), moments[name]) for name, moment in optimizer.moments().items())
    return {
        "gradient": first,
        "weight": {name: full_tensor(parameter).detach() for name, parameter in model.named_parameters()},
        "loss": [event.loss for event in events if isinstance(event, Step)],
        "grad_norm": [event.grad_norm for event in events if isinstance(event, Step)],
        "validation_loss": [event.validation_loss for event in events if isinstance(event, Evaluation)],
        "own": [
            mean_loss(model, examples, replace(LAYOUT, max_tokens=tokens), group=group) for tokens in (8, 60, 10_000)
        ],
    }


def whole_gradient(tensor):
    return full_tensor(tensor.parameter.grad) if tensor.collected is None else tensor.collected


def difference(one, other):
    """The largest relative difference."""
    if isinstance(one, dict):
        return max(
            ((one[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-30)).item() for name in other
        )
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def held(group):
    """How the ranks hold the model, by name."""
    sharded = replace(group, sharded=True)
    if group.size == 4:
        copies = replace(sharded, replicas=2)
        return {"copies": copies, "copies, whole gradients": replace(copies, keeps_gradients=True)}
    return {"ddp": group, "fsdp": replace(sharded, keeps_gradients=group.size == 3)}


def train_rank(folder):
    """What one of the processes does; its rank stands in its environment."""
    torch.set_num_threads(1)
    setattr(gradients, "BUCKET_BYTES", 8192)  # several of them  # noqa: B010
    alone, alone_with_pairs = train(SINGLE_PROCESS), train_pairs(SINGLE_PROCESS)
    with joined_group(torch.device("cpu")) as group:
        found: dict[str, Any] = {"gathered": group.gather([{"rank": group.rank, "said": "é\n" * group.rank}])}
        for strategy, ranks in held(group).items():
            here = train(ranks)
            found[strategy] = {what: difference(here[what], alone[what]) for what in ("gradient", "weight", "loss")}
            found[strategy]["grad_norm"] = difference(here["grad_norm"], alone["grad_norm"])
            found[strategy]["validation_loss"] = max(
                difference(here["validation_loss"], alone["validation_loss"]),
                difference(here["own"], [alone["own"][0]] * len(here["own"])),
            )
            with_pairs = train_pairs(ranks) if strategy in WITH_PAIRS else {}
            found[strategy]["preferences"] = {
                what: difference(with_pairs[what], alone_with_pairs[what]) for what in with_pairs
            }
            digests = group.gather([float(sum(weight.sum() for weight in here["weight"].values()))])
            found[strategy]["ranks_differ"] = max(digests) - min(digests)
        if group.is_main:
            (folder / f"found-{group.size}.json").write_text(json.dumps(found))


def fail_while_others_wait(stalls):
    """Rank 1 fails while the others wait for its part of a sum; where it `stalls` it stays, and so does its connection."""
    for name, seconds in (("POLL_SECONDS", 0.1), ("GRACE_SECONDS", 0.5)):
        setattr(failures, name, seconds)
    leave = torch.distributed.destroy_process_group
    if stalls and os.environ["RANK"] == "1":
        setattr(torch.distributed, "destroy_process_group", lambda: time.sleep(60))  # noqa: B010
    try:
        with joined_group(torch.device("cpu")) as group:
            if group.rank == 1:
                raise OutOfMemoryError(3, 100, 50, "data.json:7").among_ranks(40)
            group.sum([1.0])
    except TunefulError as error:
        sys.exit(f"error: {error}")
    finally:
        setattr(torch.distributed, "destroy_process_group", leave)  # noqa: B010
