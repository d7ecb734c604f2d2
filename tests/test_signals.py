"""Processes of a group of their own: told to end with time to save, or ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.machine import needs

from tuneful import signals
from tuneful.signals import Interrupted, Signals, ask_to_end, end_group, own_group

PARENT = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"


def parent_of_one() -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        **own_group(),
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@needs("posix")
@pytest.mark.parametrize("has_groups", [True, False])
def test_a_group_is_ended_with_all_that_it_started(has_groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    process, child = parent_of_one()
    if not has_groups:
        monkeypatch.delattr(os, "killpg")
    with process:
        end_group(process)
        process.wait(10)
        for _ in range(100):
            if not is_alive(child):
                break
            time.sleep(0.05)
        assert not is_alive(child)
        end_group(process)  # once more is no error


@needs("posix")
def test_a_process_is_asked_to_end_by_the_signal_that_it_handles() -> None:
    process, child = parent_of_one()
    with process:
        ask_to_end(process)
        assert process.wait(10) == -signal.SIGTERM
        os.kill(child, signal.SIGKILL)
        ask_to_end(process)


def test_where_there_are_no_sessions_a_group_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "setsid", raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    assert own_group() == {"creationflags": 0x200}


def test_the_break_of_windows_comes_as_the_signal_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SIGBREAK", 21)
    with pytest.raises(Interrupted) as stopped:
        Signals().receive(21, None)
    assert stopped.value.exit_code == 143
