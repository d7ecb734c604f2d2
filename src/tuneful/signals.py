"""SIGINT and SIGTERM: a job ends where it can go on later, with the exit code that its caller expects.

By default a signal ends the work at hand at once, by an exception, because nothing of it is worth keeping. Where something
is (a training), it is only remembered until `check` is called; a second one ends that too.

Processes that a job starts get a group of their own, so that a Ctrl-C is for the job, which tells them once. Windows has neither
groups nor a SIGTERM that another process could handle; there SIGBREAK stands for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGBREAK = getattr(signal, "SIGBREAK", None)


class Interrupted(KeyboardInterrupt):
    """A signal ended the job; `exit_code` is 128 plus the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class Signals:
    """What has been received, and whether it may wait."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The number of the last signal."""
        self._may_wait = False
        self.second_signal = False
        """Whether a second one came: then there is no time left to save anything."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: raises Interrupted, unless this is the first signal and it may wait."""
        self.second_signal = self.received is not None
        self.received = signal.SIGTERM if number == _SIGBREAK else number
        if self.second_signal or not self._may_wait:
            raise Interrupted(self.received)

    def check(self) -> None:
        """Raise Interrupted where a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def waiting(self, may_wait: bool = True) -> Iterator[None]:
        """Within the block a first signal waits for `check`; or does not, within an inner block that says so."""
        before, self._may_wait = self._may_wait, may_wait
        try:
            if not may_wait:
                self.check()
            yield
        finally:
            self._may_wait = before


@contextmanager
def receiving_signals() -> Iterator[Signals]:
    """SIGINT and SIGTERM come here while the block runs; in another thread than the main one they stay where they are."""
    signals = Signals()
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, *([] if _SIGBREAK is None else [_SIGBREAK])):
            before[number] = signal.signal(number, signals.receive)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_group() -> dict[str, Any]:
    """What subprocess.Popen is told, so that a process and all that it starts are a group of their own."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def ask_to_end(process: subprocess.Popen[str]) -> None:
    """Send a process of an `own_group` the signal by which `receiving_signals` ends a job with time to save."""
    with suppress(OSError):  # it has ended
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process of an `own_group` at once, and whatever it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        import psutil

        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
    process.kill()
