"""A rank that fails is heard by the others: by their thread, in time to end by themselves, or they are ended."""

from __future__ import annotations

import os
import threading

import pytest
import torch.distributed as dist

from tuneful.train import distributed, failures
from tuneful.train.failures import FailureWatch


class Shelf:
    """A store within the process; `gone` when the rank that held it is."""

    def __init__(self):
        self.values, self.gone = {}, False

    def _open(self):
        if self.gone:
            raise RuntimeError("Connection reset by peer")
        return self.values

    def compare_set(self, key, expected_value, desired_value):
        return self._open().setdefault(key, desired_value.encode())

    def add(self, key, value):
        self._open()[key] = self.values.get(key, 0) + value
        return self.values[key]

    def check(self, keys):
        return all(key in self._open() for key in keys)

    def get(self, key):
        return self._open()[key]


class Ranks:
    """Ranks of one store. `left` is set when one was told to leave collectives, `ended` when one was ended."""

    def __init__(self):
        self.store, self.left, self.ended = Shelf(), threading.Event(), threading.Event()
        self.watches: list[FailureWatch] = []

    def begin(self, size):
        self.watches = [
            FailureWatch(self.store, rank, size, holds_store=rank == 0, leave_collectives=self.left.set)
            for rank in range(size)
        ]
        return self.watches


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(failures, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(failures, "GRACE_SECONDS", 0.05)
    made = Ranks()
    monkeypatch.setattr(os, "_exit", lambda code: made.ended.set())
    yield made
    for watch in made.watches:
        watch.stop()


def test_the_first_failure_is_heard_by_all_others_and_outlives_the_store(ranks):
    first, second, third = ranks.begin(3)
    second.tell("no memory")
    third.tell("something else, because of that")
    first.tell("a third thing")  # waits until the others have heard
    ranks.store.gone = True
    assert first.heard() == "rank 0 ends because rank 1 failed: no memory"
    assert third.heard() == "rank 2 ends because rank 1 failed: no memory"
    assert second.heard() is None
    second.tell("too late for anybody")


def test_who_does_not_come_to_an_end_leaves_its_collectives_and_is_ended_with_the_reason(ranks, capsys):
    _, second = ranks.begin(2)
    second.stop()
    second.tell("no memory")
    assert ranks.left.wait(5)
    assert ranks.ended.wait(5)
    assert "error: rank 0 ends because rank 1 failed: no memory" in capsys.readouterr().err


def test_who_ends_in_time_is_left_alone(ranks):
    first, second = ranks.begin(2)
    first.stop()
    second.stop()
    second.tell("no memory")
    assert not ranks.left.wait(0.1)
    assert not ranks.ended.is_set()


@pytest.mark.parametrize(("backend", "aborts"), [("nccl", 1), ("gloo", 0)])
def test_only_what_waits_within_nccl_is_broken_off(backend, aborts, monkeypatch):
    """A stand-in for NCCL, which needs GPUs."""
    calls = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: calls.append(1))
    distributed._leave_collectives()
    assert len(calls) == aborts
