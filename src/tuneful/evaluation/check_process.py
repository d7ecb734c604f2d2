"""A function that is called in a process of its own, within limits of time and memory.

Stands under `python_check.py` and `bounded_search.py`, over `check_worker.py`, which is that process. It serves one call after
another, and is ended with whatever it started and begun anew where it did not answer in time; the trade: what a function keeps
between calls is lost then. After `MAX_FAILURES` such ends nothing is asked any more, so that an endless loop costs minutes and
not days.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from functools import partial
from typing import IO, Any

from tuneful.evaluation import check_worker
from tuneful.signals import end_group, own_group

MAX_FAILURES = 5
"""Processes that may end or be ended; after that nothing is asked any more."""
START_SECONDS = 30.0
"""Seconds that importing the file may take, where the function may not take more."""
_MAX_REPLY = 1 << 14  # characters
_MAX_WAITING = 8  # replies read ahead: nobody but the function writes more


class CheckProcess:
    """`function` of the Python `file`, each call within `timeout_seconds` and `max_memory_mb`; `what` it is called in reasons.

    A process runs from the first call on, and none after the block.
    """

    def __init__(
        self, file: str, function: str, timeout_seconds: float, max_memory_mb: float, what: str = "function"
    ) -> None:
        self._begin = partial(_Worker, file, function, timeout_seconds, max_memory_mb, what)
        self._what = what
        self._worker: _Worker | None = None
        self._num_failures = 0
        self._refused: str | None = None

    def __enter__(self) -> CheckProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, *arguments: str | None) -> float | str:
        """What the function returns, a finite number, or the reason why there is none."""
        if self._refused is None and self._worker is None:
            self._worker = self._begin()
            self._refused = self._worker.start()
        if self._refused is not None or self._worker is None:
            return self._refused or ""
        found = self._worker.ask(arguments)
        if not self._worker.is_alive:
            self._end()
            self._num_failures += 1
            if self._num_failures == MAX_FAILURES:
                self._refused = f"not asked: the {self._what} had failed to answer {MAX_FAILURES} times"
        return found

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """One process of `check_worker.py`; `is_alive` until it has failed to answer."""

    def __init__(self, file: str, function: str, timeout_seconds: float, max_memory_mb: float, what: str) -> None:
        self._timeout, self._what = timeout_seconds, what
        self._lines: queue.Queue[str] = queue.Queue(maxsize=_MAX_WAITING)
        self.is_alive = True
        command = [
            sys.executable,
            "-I",
            "-B",
            check_worker.__file__,
            file,
            function,
            str(max_memory_mb),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            **own_group(),
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._threads = [threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True)]
        self._threads[0].start()

    def start(self) -> str | None:
        """Wait until the function is there; why it never will be, or None."""
        document = self._reply(max(START_SECONDS, self._timeout))
        reason = document.get("reason")
        return None if reason is None else f"the {self._what} cannot be loaded: {reason}"

    def ask(self, arguments: tuple[str | None, ...]) -> float | str:
        """What the function returns, or the reason why there is no number."""
        request = json.dumps(arguments) + "\n"
        # In a thread: a process that does not read must not stop the one that waits.
        writer = threading.Thread(target=_write, args=(self._process.stdin, request), daemon=True)
        writer.start()
        self._threads = [*(one for one in self._threads if one.is_alive()), writer]
        document = self._reply(self._timeout)
        score = document.get("score")
        if isinstance(score, float) and math.isfinite(score):
            return score
        return str(document.get("reason", "no reply that can be read"))

    def end(self) -> None:
        """End the process, and whatever is of its session."""
        end_group(self._process)
        self._process.wait()
        for thread in self._threads:
            while thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    self._lines.get_nowait()
                thread.join(0.01)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _reply(self, seconds: float) -> dict[str, Any]:
        """The next reply, or the reason why none comes, after which the worker is not alive."""
        try:
            line = self._lines.get(timeout=seconds)
            document = json.loads(line) if line else None
        except queue.Empty:
            self.is_alive = False
            return {"reason": f"no answer within {seconds:g} seconds"}
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
        self.is_alive = False
        return {"reason": f"the process of the {self._what} ended" if not line else "no reply that can be read"}


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Pass lines on as they come, and "" at the end; what is longer than a reply is none, and the last."""
    try:
        while line := stream.readline(_MAX_REPLY):
            lines.put(line)
            if not line.endswith("\n"):
                break
    except (OSError, ValueError):
        pass
    lines.put("")


def _write(stream: IO[str], request: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the process has ended: the reply that does not come says so
        stream.write(request)
        stream.flush()
