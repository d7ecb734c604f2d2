"""Several ranks are one: shares, sums, and a training on two and three processes beside the one of a single process."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.processes import Process
from tests.train.ranks import train_rank

from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup
from tuneful.types import Example


def examples(lengths):
    made = []
    for index, length in enumerate(lengths):
        weights = np.ones(length, dtype=np.float32)
        weights[0] = 0
        made.append(Example(np.arange(index, index + length, dtype=np.int32), weights, 1, f"record {index}"))
    return made


@given(st.lists(st.integers(2, 60), max_size=30), st.integers(1, 6))
def test_every_example_is_in_exactly_one_share(lengths, size):
    given_ = examples(lengths)
    shares = [ProcessGroup(rank, size).shard(given_) for rank in range(size)]
    assert sorted(one.source for share in shares for one in share) == sorted(one.source for one in given_)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(2, 6))
def test_shares_are_even_to_one_record(lengths, size):
    """A record belongs where its middle falls, so a share is off by at most half a record at either end."""
    even = sum(lengths) / size
    for rank in range(size):
        tokens = sum(len(one) for one in ProcessGroup(rank, size).shard(examples(lengths)))
        assert abs(tokens - even) <= max(lengths)


def test_alone_every_sum_is_the_number_itself():
    assert SINGLE_PROCESS.sum([1.5, 2.0]) == [1.5, 2.0]
    assert SINGLE_PROCESS.gather([{"a": 1}]) == [{"a": 1}]
    assert SINGLE_PROCESS.is_main


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(size, folder):
    """Start `size` ranks of ranks.py and return what rank 0 found."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        Process(train_rank, folder, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, outputs
    return json.loads((folder / f"found-{size}.json").read_text())


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    return run_ranks(request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_are_those_of_one_process(found, strategy):
    """Ragged records, accumulated micro-batches, and a last window of fewer records than ranks; in float64."""
    assert found[strategy]["gradient"] <= 1e-10


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_losses_norms_and_weights_of_a_training_are_those_of_one_process(found, strategy):
    assert found[strategy]["loss"] <= 1e-10
    assert found[strategy]["grad_norm"] <= 1e-10
    assert found[strategy]["weight"] <= 1e-9
    assert found[strategy]["validation_loss"] <= 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_preferences_are_learned_as_one_process_learns_them(found, strategy):
    """One mean over the pairs, and one over the chosen tokens, of the whole step; one KL; one reference."""
    apart = found[strategy]["preferences"]
    assert {what.split()[0] for what in apart} == {"dpo", "kto"}
    assert max(apart.values()) <= 1e-7, apart
    assert max(apart["dpo loss"], apart["kto loss"], apart["dpo logps"]) <= 1e-10, apart


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_rank_ends_with_the_same_weights(found, strategy):
    assert found[strategy]["ranks_differ"] == 0


def test_rows_are_gathered_rank_by_rank(found):
    size = len(found["gathered"])
    assert found["gathered"] == [{"rank": rank, "said": "é\n" * rank} for rank in range(size)]
