"""The process in which a check of one's own runs: it imports a function from a file, and calls it answer by answer.

Started by `check_process.py` as a script, without Tuneful around it: `python -I check_worker.py FILE FUNCTION MEGABYTES`. A line
of JSON on standard input asks, a line of JSON answers. What the function prints goes nowhere.

Bounds, from the inside: memory and file sizes by resource limits; no process, no network and no signal to another process, by an
audit hook everywhere and, on Linux, by a seccomp filter that native code cannot get around either. Time is bounded by who waits.
It keeps mistakes from doing harm and hostile code from going far; it is no place for code that must not read files.
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import math
import os
import platform
import re
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_FILE_BYTES = 64 << 20
MAX_SAID = 300
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.exec",
    "os.system",
    "os.kill",
    "pty.spawn",
)
"""Beginnings of the audit events that are refused."""
_EPERM, _ENOSYS = 1, 38
_SYSCALLS = {
    # number of: audit architecture, clone, clone3, and those that are refused:
    # fork vfork (x86 only) execve execveat socket connect kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo ptrace
    # pidfd_send_signal io_uring_setup setsid setpgid
    "x86_64": (0xC000003E, 56, 435, (57, 58, 59, 322, 41, 42, 62, 200, 234, 129, 297, 101, 424, 425, 112, 109)),
    "aarch64": (0xC00000B7, 220, 435, (221, 281, 198, 203, 129, 130, 131, 138, 240, 117, 424, 425, 157, 154)),
}
_THREAD = 0x00010000
"""CLONE_THREAD: a clone that is a thread of this process, and no process of its own."""


def limit(megabytes: float) -> None:
    """Set every bound that this system has."""
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        num_bytes = int(megabytes * (1 << 20))
        for name, value in (("RLIMIT_AS", num_bytes), ("RLIMIT_FSIZE", MAX_FILE_BYTES), ("RLIMIT_CORE", 0)):
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (OSError, ValueError):
                continue
    if has_system_filter():
        _filter_system_calls()
    sys.addaudithook(_refuse)


def _refuse(event: str, _: Any) -> None:
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"a check may not use {event.partition('.')[0]}: {event}")


def has_system_filter() -> bool:
    """Whether calls of the system can be refused here, on a kernel that has seccomp."""
    return sys.platform == "linux" and platform.machine() in _SYSCALLS


def _filter_system_calls() -> None:
    """A seccomp filter of this process and its threads (prctl(2), seccomp(2)); nothing where the kernel has none."""
    architecture, clone, clone3, refused = _SYSCALLS[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, unknown = 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, deny),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, 0x40000000),  # another way to number calls
        (give, 0, 0, deny),
        (equal, 0, 1, clone3),  # whose flags lie in memory: libraries fall back to clone
        (give, 0, 0, unknown),
        *(row for number in refused for row in ((equal, 0, 1, number), (give, 0, 0, deny))),
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # its flags
        (any_bit, 1, 0, _THREAD),
        (give, 0, 0, deny),
        (give, 0, 0, allow),
    ]
    rows = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(rows)))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(38, 1, 0, 0, 0)  # no new privileges
    library.prctl(22, 2, header, 0, 0)  # the filter


def found_in(text: str, pattern: str, how: str) -> bool:
    """Whether the regular expression is found in `text`; `how` may hold `i` (upper and lower case are one), `w` (all of it)."""
    compiled = re.compile(pattern, re.IGNORECASE if "i" in how else 0)
    return (compiled.fullmatch if "w" in how else compiled.search)(text) is not None


def load_function(file: str, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    spec = importlib.util.spec_from_file_location("check_of_ones_own", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is no function")
    return function  # type: ignore[no-any-return]


def num_arguments(function: Callable[..., Any]) -> int:
    """How many of (answer, reference, prompt) the function takes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return 3
    num = sum(one.kind in kinds for one in parameters)
    if not 1 <= num <= 3:
        raise TypeError(f"takes {num} arguments; expected (answer), (answer, reference) or (answer, reference, prompt)")
    return num


def outcome_of(result: object) -> dict[str, object]:
    """What a returned value means: true, false or a finite number is a score, everything else is none."""
    if result is None:
        return {"reason": "returned None"}
    if hasattr(result, "item") and not isinstance(result, (bool, int, float)):
        result = result.item()  # a number of numpy or torch
    if isinstance(result, (bool, int, float)):
        try:
            score = float(result)
        except OverflowError:
            return {"reason": "returned a number that is too large"}
        return {"score": score} if math.isfinite(score) else {"reason": f"returned {score}"}
    return {"reason": f"returned {type(result).__name__}, expected true, false or a number"}


def failure(error: BaseException) -> dict[str, object]:
    """What an exception means, whatever its text is."""
    try:
        said = " ".join(str(error).split())[:MAX_SAID]
    except BaseException:
        said = ""
    return {"reason": f"{type(error).__name__}: {said}" if said else type(error).__name__}


def serve() -> None:
    """Answer every line of standard input, until there is none."""
    file, name, megabytes = sys.argv[1:]
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)

    def reply(document: dict[str, object]) -> None:
        replies.write(json.dumps(document) + "\n")
        replies.flush()

    try:
        limit(float(megabytes))
        function = load_function(file, name)
        num = num_arguments(function)
    except BaseException as error:
        reply(failure(error))
        return
    reply({"score": None})
    for line in requests:
        try:
            document = outcome_of(function(*json.loads(line)[:num]))
        except BaseException as error:
            document = failure(error)
        reply(document)


if __name__ == "__main__":
    serve()
