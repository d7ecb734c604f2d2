"""What the tests themselves stand on: a test stands aside with a word that is counted, a forked process is like a fresh one."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests import machine
from tests.doubles import processes
from tests.doubles.processes import Process


def skipped(reason: str) -> pytest.TestReport:
    longrepr = ("test_a.py", 3, f"Skipped: {reason}")
    return pytest.TestReport("test_a.py::test_b", ("test_a.py", 3, "b"), {}, "skipped", longrepr, "call")


def test_a_skip_of_one_form_stays_one_and_any_other_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "lacks", lambda name: "there is none")
    with pytest.raises(pytest.skip.Exception) as stood_aside:
        machine.require("gpu")
    assert machine.explained(skipped(str(stood_aside.value))).outcome == "skipped"
    for reason in ("unconditional skip", "could not import 'bitsandbytes'"):
        report = machine.explained(skipped(reason))
        assert report.outcome == "failed"
        assert reason in str(report.longrepr)


def test_a_need_that_nobody_knows_is_no_need() -> None:
    with pytest.raises(AssertionError):
        machine.needs("a-gpu")


def test_the_end_of_a_run_says_what_could_not_be_run_and_how_many_tests_stood_aside() -> None:
    lacking = {"gpu": "torch finds no CUDA device", "compiler": "there is no cc"}
    reasons = ["Skipped: needs compiler: there is no cc"] * 2
    gpu, compiler, here = machine.summary(lacking, reasons)
    assert gpu == "gpu: training and answering on a GPU; torch finds no CUDA device: none of these tests asks for it"
    assert compiler == "compiler: the kernels compiled for this machine; there is no cc: 2 tests stood aside"
    assert here == f"run here: {', '.join(name for name in machine.PATHS if name not in lacking)}"


def speak(code: int) -> None:
    print(os.environ["WHO"], os.environ["OMP_NUM_THREADS"], psutil.Process().num_threads(), sys.argv)
    print("héard", file=sys.stderr)
    sys.exit(code)


def wait_for_ever(sign: Path) -> None:
    sign.touch()
    while True:
        time.sleep(0.01)


def fail() -> None:
    raise ValueError("by hand")


@machine.needs("posix")
def test_a_forked_process_has_an_environment_streams_a_thread_and_an_end_of_its_own(tmp_path: Path) -> None:
    os.environ.pop("WHO", None)
    process = Process(speak, 7, env={"WHO": "me"}, name="tuneful")
    assert process.communicate(timeout=60) == ("me 1 1 ['tuneful']\n", "héard\n")
    assert process.returncode == 7
    assert "WHO" not in os.environ
    process = Process(fail)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "ValueError: by hand" in err
    process = Process(wait_for_ever, tmp_path / "sign")
    while not (tmp_path / "sign").exists():
        assert process.poll() is None
    with pytest.raises(TimeoutError, match="still runs"):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_the_command_in_a_forked_process_ends_as_the_command_does() -> None:
    refused = processes.tuneful("show", "nowhere.json")
    out, err = refused.communicate(timeout=60)
    assert (refused.returncode, out) == (2, "")
    assert err.startswith("error: nowhere.json: no such file")
    helped = processes.tuneful("--help")
    out, err = helped.communicate(timeout=60)
    assert (helped.returncode, err) == (0, "")
    assert "Usage: tuneful" in out


def test_no_test_stands_aside_but_by_a_need_even_where_this_machine_lacks_nothing() -> None:
    by_itself = re.compile(r"pytest\.(?:skip|importorskip|xfail)\(|mark\.(?:skip|skipif|xfail)\b|unittest\.skip")
    tests = Path(machine.__file__).parent
    found = {file.name for file in tests.rglob("*.py") if by_itself.search(file.read_text(encoding="utf-8"))}
    assert found == {"machine.py"}
