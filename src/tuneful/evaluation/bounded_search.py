"""Regular expressions of one's own are searched in a process of its own, because some take longer than anybody waits.

    ^(a+)+$ on aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!     2^32 ways to try, and Python's `re` knows no limit

Stands under `check_kinds.py`, over `check_process.py`. It takes 50 ms to begin and 0.1 ms a text; what the pattern of a check
finds in time is what `re` finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tuneful.evaluation import check_worker
from tuneful.evaluation.check_process import CheckProcess

SECONDS = 1.0
"""What one search may take, where a check says nothing else."""
_MAX_MEMORY_MB = 1024.0


class NotSearchedError(Exception):
    """Why a text was not searched, or not to its end."""


class Search(Protocol):
    """Whether `pattern` is found in `text`, by the `how` of `check_worker.found_in`; NotSearchedError where it takes too long."""

    def __call__(self, pattern: str, text: str, how: str = "") -> bool: ...


@contextmanager
def bounded_search(seconds: float = SECONDS) -> Iterator[Search]:
    """A search each of whose calls ends within `seconds`; its process begins with the first call and ends with the block."""
    with CheckProcess(check_worker.__file__, "found_in", seconds, _MAX_MEMORY_MB, what="pattern") as process:

        def search(pattern: str, text: str, how: str = "") -> bool:
            found = process.ask(text, pattern, how)
            if isinstance(found, str):
                raise NotSearchedError(found)
            return bool(found)

        yield search
