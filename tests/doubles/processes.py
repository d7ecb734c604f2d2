"""Processes that start in a hundredth of a second: forked from one that has imported torch and Tuneful already.

Importing them takes four seconds of a processor, and a rank of a tiny training not one. So the first process asked for
starts a server (multiprocessing's own, without threads), and all are forked from there, each with its own arguments,
environment, streams, signals and exit code, as a fresh one has. What a real start does besides stands in the tests that make
one: `tests/commands/test_cli.py` runs `python -m tuneful.cli`, `tests/runs/test_ranks.py` torchrun's `python -m tuneful`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "peft",
    "pydantic",
    "rich.live",
    "rich.table",
    "typer",
    "tuneful.commands.run",
    "tuneful.runs.job",
    "tuneful.report.build",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOADED)


class Process:
    """`target(*arguments)` in a process of its own, with what `subprocess.Popen` has to watch, stop and read it."""

    def __init__(
        self, target: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None, name: str = "python"
    ) -> None:
        """Start it. `env` is added to the environment of this process; `name` is its `sys.argv[0]`."""
        self._said = [Path(tempfile.mkstemp(prefix="said-")[1]) for _ in range(2)]
        whole = {**os.environ, **(env or {})}
        self._process = _CONTEXT.Process(
            target=_become, args=(target, arguments, whole, os.getcwd(), name, [str(file) for file in self._said])
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`, under the name that subprocess gives it."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code. Raises TimeoutError."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to standard output and to standard error."""
        self.wait(timeout)
        out, err = (file.read_text(encoding="utf-8") for file in self._said)
        for file in self._said:
            file.unlink()
        self._said = []
        return out, err

    @property
    def error_so_far(self) -> str:
        """What it wrote to standard error until now."""
        return self._said[1].read_text(encoding="utf-8")

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)


def tuneful(*arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """`tuneful ARGUMENTS` in a process of its own."""
    return Process(_command, arguments, env=env, name="tuneful")


def complaints(
    run: str, code: int, files: Mapping[str, Any], wanted: Mapping[str, Any], num_repeated: int, num_allowed: int
) -> list[str]:
    """What is wrong with the end of a `run` that was killed and went on: its exit code, files, or what it asked again."""
    found = [f"{run}: ended with {code}"] if code else []
    if missing := sorted(wanted.keys() - files.keys()):
        found.append(f"{run}: missing files: {', '.join(missing)}")
    if other := sorted(name for name, content in files.items() if name not in wanted or wanted[name] != content):
        found.append(f"{run}: other files: {', '.join(other)}")
    if num_repeated > num_allowed:
        found.append(f"{run}: {num_repeated} requests repeated, at most {num_allowed} were in flight")
    return found


def _command(arguments: tuple[str, ...]) -> None:
    from tuneful.cli import main

    sys.argv[1:] = arguments
    main()


def _become(
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    env: Mapping[str, str],
    folder: str,
    name: str,
    said: list[str],
) -> None:
    """In the fork: take on what a fresh process would have been given, and run."""
    for number, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [name]
    target(*arguments)
