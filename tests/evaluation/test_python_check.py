"""A function of one's own as a check: what it may return, and that hostile ones cost their limits and nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.machine import needs

from tuneful.config import load_config
from tuneful.errors import ConfigError
from tuneful.evaluation.check_process import MAX_FAILURES
from tuneful.evaluation.checks import check_item, read_checks, run_checks
from tuneful.runs.schema import CheckOutcome


def called(folder: Path, body: str, answers: list[str], **options: Any) -> list[CheckOutcome]:
    """What a function of this body says of answers; `body` is the whole file where it defines `check`."""
    file = folder / "own.py"
    file.write_text(body if "def check" in body else f"def check(answer, reference, prompt):\n    {body}\n")
    settings = {"timeout_seconds": 20, "max_memory_mb": 512, **options}
    config = load_config(None)
    entry = {"python": f"{file}:check", **settings}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"checks": (entry,)})})
    items = [check_item(f"my.json:{index}", "asked", "wanted", answer) for index, answer in enumerate(answers)]
    return [found["python"] for found in run_checks(read_checks(config), items)]


def reasons(outcomes: list[CheckOutcome]) -> list[str | None]:
    assert all((one.score is None) == (one.unscored_reason is not None) for one in outcomes)
    return [one.unscored_reason for one in outcomes]


def test_true_false_and_numbers_are_scores_and_whatever_else_comes_back_is_none(tmp_path: Path) -> None:
    body = (
        "return {'yes': True, 'no': False, 'half': 0.5, 'none': None, 'text': 'x' * 10**7, 'nan': float('nan'),"
        "'huge': 10**400, 'same': (reference, prompt) == ('wanted', 'asked')}[answer]"
    )
    found = called(tmp_path, body, ["yes", "no", "half", "same", "none", "text", "nan", "huge", "other"])
    assert [one.score for one in found] == [1, 0, 0.5, 1, None, None, None, None, None]
    assert found[1].why == "says no"
    assert reasons(found)[4:] == [
        "returned None",
        "returned str, expected true, false or a number",
        "returned nan",
        "returned a number that is too large",
        "KeyError: 'other'",
    ]


def test_a_function_takes_as_many_arguments_as_it_wants_and_its_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("WORD = 'please'\n")
    body = "from neighbour import WORD\nprint('noise' * 10000)\ndef check(answer): return WORD in answer\n"
    assert [one.score for one in called(tmp_path, body, ["yes please", "no"])] == [1, 0]
    assert [one.score for one in called(tmp_path, "def check(*given): return len(given) == 3", ["a"])] == [1]
    (refused,) = reasons(called(tmp_path, "def check(a, b, c, d): return True", ["a"]))
    assert refused == (
        "the function cannot be loaded: TypeError: takes 4 arguments; expected (answer), (answer, reference) or (answer, "
        "reference, prompt)"
    )


HOSTILE = {
    "socket": ("import socket; socket.socket()", "PermissionError"),
    "socket by ctypes": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); s = c.socket(2, 1, 0); assert s < 0, s; "
        "raise OSError(ctypes.get_errno(), 'refused')",
        "refused",
    ),
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "fork": ("import os\n    while True: os.fork()", "PermissionError"),
    "fork by ctypes": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); p = c.fork(); assert p < 0, p; "
        "raise OSError(ctypes.get_errno(), 'refused')",
        "refused",
    ),
    "subprocess": ("import subprocess; subprocess.run(['true'])", "PermissionError"),
    "shell": ("import os; os.system('true')", "PermissionError"),
    "processes": (
        "import multiprocessing as m; p = m.get_context('spawn').Process(target=print); p.start(); p.join()",
        "Error",
    ),
    "kill the one that waits": ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "PermissionError"),
    "memory": ("return len('x' * (1 << 31))", "MemoryError"),
    "recursion": ("return check(answer, reference, prompt)", "RecursionError"),
    "an exception that cannot be shown": (
        "class E(BaseException):\n        def __str__(self): raise SystemExit\n    raise E",
        "E",
    ),
}


@needs("system-filter")
def test_hostile_functions_are_unscored_with_their_reason_one_answer_after_the_other(tmp_path: Path) -> None:
    """All in one file and one process: what one tries does not keep the next answer from its score."""
    cases = "\n".join(
        f"def case{number}(answer, reference, prompt):\n    {body.replace('check(', f'case{number}(')}"
        for number, (body, _) in enumerate(HOSTILE.values())
    )
    body = f"{cases}\ndef check(answer, reference, prompt):\n    return globals()[answer](answer, reference, prompt)\n"
    body += "def fine(answer, reference, prompt): return True\n"
    answers = [name for number in range(len(HOSTILE)) for name in (f"case{number}", "fine")]
    found = called(tmp_path, body, answers)
    assert [one.score for one in found[1::2]] == [1] * len(HOSTILE)
    for name, (_, expected), reason in zip(HOSTILE, HOSTILE.values(), reasons(found)[::2], strict=True):
        assert expected in (reason or ""), (name, reason)


def test_an_endless_loop_costs_its_time_each_time_and_is_given_up(tmp_path: Path) -> None:
    start = time.monotonic()
    found = called(
        tmp_path, "while answer == 'stay': pass\n    return True", ["go", *["stay"] * 9, "go"], timeout_seconds=0.2
    )
    assert time.monotonic() - start < 60
    assert found[0].score == 1
    assert reasons(found)[1:] == [
        *["no answer within 0.2 seconds"] * MAX_FAILURES,
        *[f"not asked: the function had failed to answer {MAX_FAILURES} times"] * (10 - MAX_FAILURES),
    ]


def test_a_process_that_dies_or_floods_is_begun_anew_for_the_next_answer(tmp_path: Path) -> None:
    body = (
        "import os\n"
        "def check(answer):\n"
        "    if answer == 'die': os._exit(0)\n"
        "    if answer == 'flood':\n"
        "        for descriptor in range(3, 20):\n"
        "            try:\n"
        "                while True: os.write(descriptor, b'x' * 100000)\n"
        "            except OSError: pass\n"
        "    if answer == 'forge':\n"
        "        for descriptor in range(3, 20):\n"
        "            try: os.write(descriptor, b'[1]\\n')\n"
        "            except OSError: pass\n"
        "    return True\n"
    )
    found = called(tmp_path, body, ["die", "fine", "flood", "fine", "forge", "fine"])
    assert [one.score for one in found[1::2]] == [1, 1, 1]
    assert reasons(found)[::2] == [
        "the process of the function ended",
        "no reply that can be read",
        "no reply that can be read",
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('at import')\ndef check(a): pass", "ValueError: at import"),
        ("import sys\nsys.exit(3)\ndef check(a): pass", "SystemExit: 3"),
        (
            "import nothing_of_this_name\ndef check(a): pass",
            "ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("import os\nos._exit(0)\ndef check(a): pass", "the process of the function ended"),
        ("def check(a): pass\ncheck = 3", "TypeError: check is no function"),
    ],
)
def test_a_file_that_cannot_be_imported_leaves_every_answer_unscored(tmp_path: Path, body: str, reason: str) -> None:
    assert reasons(called(tmp_path, body, ["a", "b"])) == [f"the function cannot be loaded: {reason}"] * 2


def test_a_file_that_is_no_python_or_lacks_the_function_is_refused_and_not_run(tmp_path: Path) -> None:
    for text, message in {
        "def other(): pass": "own.py defines no check",
        "def check(:": "own.py: not valid Python",
        "x = '\0'": "own.py: not valid Python",
    }.items():
        (tmp_path / "own.py").write_text(text)
        config = load_config(None, [f"evaluation.checks=[{{python: '{tmp_path}/own.py:check'}}]"])
        with pytest.raises(ConfigError) as refused:
            read_checks(config)
        assert message in str(refused.value)
    for text in ("from a import check", "import a as check", "if True:\n    def check(): pass", "check = print"):
        (tmp_path / "own.py").write_text(text)
        assert len(read_checks(load_config(None, [f"evaluation.checks=[{{python: '{tmp_path}/own.py:check'}}]"]))) == 1


def test_nothing_that_the_checks_started_is_left(tmp_path: Path) -> None:
    called(tmp_path, "while True: pass", ["a"], timeout_seconds=0.1)
    running = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    assert [command for command in running if any(str(tmp_path) in part for part in command)] == []
