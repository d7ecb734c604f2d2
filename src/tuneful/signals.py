"""SIGINT and SIGTERM: a job ends where it can go on later, with the exit code that its caller expects.

By default a signal ends the work at hand at once, by an exception, because nothing of it is worth keeping. Where something
is (a training), it is only remembered until `check` is called; a second one ends that too.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
        self.received = number
        if self.second_signal or not self._may_wait:
            raise Interrupted(number)

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
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, signals.receive)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
