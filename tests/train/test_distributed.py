"""Several ranks are one: sums, and a training on two, three and four processes beside the one of a single process."""

from __future__ import annotations

import json
import socket
import time

import pytest
import torch
from tests.doubles.processes import Process
from tests.train.ranks import WITH_PAIRS, fail_while_others_wait, train_rank

from tuneful.errors import ConfigError
from tuneful.train.distributed import BUCKET_BYTES, SINGLE_PROCESS
from tuneful.train.placement import HeldModel, choose_keeps_gradients, choose_replicas, choose_strategy


def test_alone_every_sum_is_the_number_itself():
    assert SINGLE_PROCESS.sum([1.5, 2.0]) == [1.5, 2.0]
    assert SINGLE_PROCESS.gather([{"a": 1}]) == [{"a": 1}]
    assert SINGLE_PROCESS.is_main


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def begin_ranks(size, target, *arguments):
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Process(target, *arguments, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)
    ]


@pytest.fixture(scope="module")
def ranks_found(tmp_path_factory):
    """What rank 0 of so many found, each number of ranks started once."""
    found = {}

    def run(size):
        if size not in found:
            folder = tmp_path_factory.mktemp(f"ranks{size}")
            ranks = begin_ranks(size, train_rank, folder)
            outputs = [rank.communicate(timeout=300) for rank in ranks]
            assert [rank.returncode for rank in ranks] == [0] * size, outputs
            found[size] = json.loads((folder / f"found-{size}.json").read_text())
        return found[size]

    return run


HELD = [(2, "ddp"), (2, "fsdp"), (3, "ddp"), (3, "fsdp"), (4, "copies"), (4, "copies, whole gradients")]
"""Ranks, and how they hold the model: of four, two hold a copy in shards, and two another; of three sharded ones each keeps whole
gradients until the last micro-batch."""


@pytest.fixture(params=HELD, ids=lambda held: f"{held[0]} {held[1]}")
def found(request, ranks_found):
    size, strategy = request.param
    return ranks_found(size)[strategy]


def test_gradients_are_those_of_one_process(found):
    """Ragged records, accumulated micro-batches, and a last window of fewer records than ranks; in float64."""
    assert found["gradient"] <= 1e-10


def test_losses_norms_and_weights_of_a_training_are_those_of_one_process(found):
    assert found["loss"] <= 1e-10
    assert found["grad_norm"] <= 1e-10
    assert found["weight"] <= 1e-9
    assert found["validation_loss"] <= 1e-6


@pytest.mark.parametrize(("size", "strategy"), [held for held in HELD if held[1] in WITH_PAIRS])
def test_preferences_are_learned_as_one_process_learns_them(size, strategy, ranks_found):
    """One mean over the pairs, and one over the chosen tokens, of the whole step; one KL; one reference."""
    apart = ranks_found(size)[strategy]["preferences"]
    assert {what.split()[0] for what in apart} == {"dpo", "kto"}
    assert max(apart.values()) <= 1e-7, apart
    assert max(apart["dpo loss"], apart["kto loss"], apart["dpo logps"]) <= 1e-10, apart


def test_every_rank_ends_with_the_same_weights(found):
    assert found["ranks_differ"] == 0


@pytest.mark.parametrize("size", [2, 3])
def test_rows_are_gathered_rank_by_rank(size, ranks_found):
    assert ranks_found(size)["gathered"] == [{"rank": rank, "said": "é\n" * rank} for rank in range(size)]


@pytest.mark.parametrize("stalls", [False, True], ids=["it ends", "it stays"])
def test_what_a_rank_fails_with_is_told_by_all_and_nobody_waits(stalls):
    """Ended by its broken connection; or, where that stays open, by the thread that watches."""
    begun = time.monotonic()
    ranks = begin_ranks(3, fail_while_others_wait, stalls)
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1] * 3, said
    assert time.monotonic() - begun < 30
    for rank in (0, 2):
        assert f"error: rank {rank} ends because rank 1 failed: out of memory" in said[rank]
        assert "train.micro_batch_tokens=40" in said[rank]
    assert "error: out of memory at a micro-batch of 3 records" in said[1]


def test_copies_are_of_equal_numbers_of_ranks_and_by_default_one_a_node(monkeypatch):
    model = HeldModel(1000, 0, torch.device("cpu"))
    assert [choose_replicas(model, 8, ranks) for ranks in (2, 4, 8)] == [4, 2, 1]
    with pytest.raises(ConfigError, match=r"train\.shard_ranks.*8 ranks cannot be divided into sets of 3"):
        choose_replicas(model, 8, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_replicas(model, 8, None) == 2
    assert choose_replicas(model, 6, None) == 1  # nodes of unlike numbers of ranks
    assert choose_replicas(HeldModel(1 << 50, 0, torch.device("cpu")), 8, None) == 1  # a node has no room for a copy


@pytest.mark.parametrize(
    ("free", "strategy", "keeps"),
    [(18_000 + 2 * BUCKET_BYTES + 1, "ddp", True), (13_001, "fsdp", True), (13_000, "fsdp", False)],
)
def test_what_a_rank_has_room_for_decides_how_a_model_is_held(monkeypatch, free, strategy, keeps):
    """18 bytes a trained parameter, and two buckets; of half a model 9, and whole gradients of 4."""
    monkeypatch.setattr(HeldModel, "room", free)
    model = HeldModel(1000, 0, torch.device("cpu"))
    assert choose_strategy(model, "auto") == strategy
    assert choose_keeps_gradients(model, 2) is keeps
    assert (choose_strategy(model, "ddp"), choose_strategy(model, "fsdp")) == ("ddp", "fsdp")
