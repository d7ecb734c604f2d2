"""A rank that fails tells the others why, and all end: nobody waits for two hours for a sum that will not come.

    rank 2: raises OutOfMemoryError -> store: "rank 2: out of memory ..." -> ends
    others: a broken connection (gloo), or their watching thread looks -> "rank 0 ends because rank 2 failed: out of memory ..."

The store is torchrun's, or the first rank's own, reached by a connection that nothing else waits on. A thread looks into it every
second. A rank that does not come to its own end within `GRACE_SECONDS` of another's failure, because it waits within a
collective that cannot be left, is ended from that thread, as a kill would end it: a run goes on after that from its checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

POLL_SECONDS = 1.0
GRACE_SECONDS = 60.0
"""How long a rank may take to its own end."""
_HEARD_SECONDS = 5.0
"""How long the rank that holds the store waits for the others to have heard why it ends."""
_FAILED, _HEARD = "failed", "heard"
_MAX_MESSAGE = 2_000


class Store(Protocol):
    """What is used of torch's key-value store."""

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        """Set `key` where it is not set; what it holds then."""

    def add(self, key: str, value: int) -> int:
        """Add to a counter; what it holds then."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are set."""

    def get(self, key: str) -> bytes:
        """The value of a key that is set."""


class FailureWatch:
    """Watches, from one rank, for the first failure of any; `leave_collectives` is called once there is one."""

    def __init__(
        self, store: Store, rank: int, size: int, *, holds_store: bool, leave_collectives: Callable[[], None]
    ) -> None:
        self._store, self._rank, self._size, self._holds_store = store, rank, size, holds_store
        self._leave_collectives, self._own = leave_collectives, ""
        self._heard: str | None = None  # kept: the store may go with the rank that holds it
        self._stopped, self._acknowledged = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="tuneful-failures", daemon=True)
        self._thread.start()

    def tell(self, message: str, *, wait: bool = True) -> None:
        """This rank ends because of `message`; the first failure counts. The rank that holds the store stays until all heard."""
        self._own = message
        said = json.dumps([self._rank, message[:_MAX_MESSAGE]])
        try:
            self._store.compare_set(_FAILED, "", said)
            self.heard()
            self._acknowledge()
            until = time.monotonic() + (_HEARD_SECONDS if wait and self._holds_store else 0.0)
            while time.monotonic() < until and self._store.add(_HEARD, 0) < self._size:
                time.sleep(0.05)
        except RuntimeError:  # the store went with the rank that held it
            return

    def heard(self) -> str | None:
        """The failure of another rank, in words; None for none."""
        if self._heard is not None:
            return self._heard
        try:
            if not self._store.check([_FAILED]):
                return None
            rank, message = json.loads(self._store.get(_FAILED))
        except RuntimeError:
            return None
        if rank != self._rank:
            self._heard = f"rank {self._rank} ends because rank {rank} failed: {message}"
        return self._heard

    def stop(self) -> None:
        """The rank has come to its end by itself."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                failed = self._store.check([_FAILED])
            except RuntimeError:
                return
            if failed:
                self._end()
                return

    def _end(self) -> None:
        """Somebody failed: this rank ends by itself within the time it has, or is ended."""
        said = self.heard()
        self._acknowledge()
        if said is not None and not self._stopped.wait(POLL_SECONDS):
            self._leave_collectives()
        if self._stopped.wait(GRACE_SECONDS):
            return
        print(f"error: {said or self._own}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _acknowledge(self) -> None:
        if self._acknowledged.acquire(blocking=False):
            try:
                self._store.add(_HEARD, 1)
            except RuntimeError:
                return
