"""A check that is a function of one's own, `file.py:function`, called in a process of its own, within limits of time and memory.

    def polite(answer, reference, prompt): return "please" in answer        # it may take fewer: (answer), (answer, reference)

True and false, and finite numbers, are scores. Whatever else happens leaves the answer unscored with its reason: an exception,
sys.exit, no end, too much memory, a process that dies. The process (`check_worker.py`) serves one answer after another, and is
ended with whatever it started and begun anew where it did not answer in time; the trade: what a function keeps between answers
is lost then. After `MAX_FAILURES` such ends the answers left are unscored, so that an endless loop costs minutes and not days.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tuneful.config.checks import CheckSpec
from tuneful.errors import ConfigError
from tuneful.evaluation import check_worker
from tuneful.evaluation.check_kinds import CheckItem, unmet, unscored
from tuneful.runs.schema import CheckOutcome
from tuneful.signals import end_group, own_group

MAX_FAILURES = 5
"""Processes that may end or be ended; after that nothing is asked any more."""
START_SECONDS = 30.0
"""Seconds that importing the file may take, where `timeout_seconds` is not more."""
_MAX_REPLY = 1 << 14  # characters
_MAX_WAITING = 8  # replies read ahead: nobody but the function writes more


def check_function(spec: CheckSpec) -> None:
    """ConfigError where the file of the check is not there, is no Python, or defines no such function; it is not run."""
    file, _, function = spec.value.rpartition(":")
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except OSError as error:
        raise ConfigError(
            f"evaluation.checks: {spec.name}: {file}: cannot be read: {error.strerror or error}"
        ) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"evaluation.checks: {spec.name}: {file}: not valid Python: {error}") from None
    if function not in {name for node in tree.body for name in _names(node)}:
        raise ConfigError(f"evaluation.checks: {spec.name}: {file} defines no {function}")


def _names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file may define; those inside `if` and `try` too."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    inner = [one for one in ast.walk(node) if isinstance(one, (ast.FunctionDef, ast.ClassDef, ast.alias, ast.Name))]
    return [
        one.id if isinstance(one, ast.Name) else one.asname or one.name if isinstance(one, ast.alias) else one.name
        for one in inner
    ]


def function_outcomes(spec: CheckSpec, items: Sequence[CheckItem]) -> list[CheckOutcome]:
    """What the function of `spec` says of every item."""
    outcomes: list[CheckOutcome] = []
    worker: _Worker | None = None
    num_failures, refused = 0, None
    try:
        for item in items:
            if refused is None and worker is None:
                worker = _Worker(spec)
                refused = worker.start()
            if refused is not None or worker is None:
                outcomes.append(unscored(refused or ""))
                continue
            outcomes.append(worker.ask(item))
            if not worker.is_alive:
                worker.end()
                worker, num_failures = None, num_failures + 1
                if num_failures == MAX_FAILURES:
                    refused = f"not asked: the function had failed to answer {MAX_FAILURES} times"
    finally:
        if worker is not None:
            worker.end()
    return outcomes


class _Worker:
    """One process of `check_worker.py`; `is_alive` until it has failed to answer."""

    def __init__(self, spec: CheckSpec) -> None:
        file, _, function = spec.value.rpartition(":")
        self._timeout = float(spec.options["timeout_seconds"])
        self._lines: queue.Queue[str] = queue.Queue(maxsize=_MAX_WAITING)
        self.is_alive = True
        command = [
            sys.executable,
            "-I",
            "-B",
            check_worker.__file__,
            file,
            function,
            str(spec.options["max_memory_mb"]),
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
        return None if reason is None else f"the function cannot be loaded: {reason}"

    def ask(self, item: CheckItem) -> CheckOutcome:
        """What the function says of `item`."""
        request = json.dumps([item.text, item.reference, item.prompt]) + "\n"
        # In a thread: a process that does not read must not stop the one that waits.
        writer = threading.Thread(target=_write, args=(self._process.stdin, request), daemon=True)
        writer.start()
        self._threads = [*(one for one in self._threads if one.is_alive()), writer]
        document = self._reply(self._timeout)
        score = document.get("score")
        if isinstance(score, float) and math.isfinite(score):
            return unmet("says no") if score == 0 else CheckOutcome(score)
        return unscored(str(document.get("reason", "no reply that can be read")))

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
        return {"reason": "the process of the function ended" if not line else "no reply that can be read"}


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
