"""The compiled step on processors that lack what this one has: compiled without it, in a process of its own."""

import os
import stat
import subprocess
import sys

import pytest
from tests.machine import needs

from tuneful.model import native

PROGRAM = """
from tests.infer import test_compiled as here
from tuneful.model import native
for case in here.CASES[::4]:
    for dtype in here.TOLERANCE:
        here.test_logits_are_those_of_each_row_alone(*case, dtype)
print(native.describe())
"""


@needs("compiler")
@needs("x86")
@pytest.mark.parametrize(
    "flags", ["-mno-avx512f -mno-avx512bf16", "-mamx-tile -mamx-bf16"], ids=["vectors of 256 bits", "a matrix unit"]
)
def test_logits_are_those_of_each_row_alone_on_other_processors(flags, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {native._compiler()} "$@" {flags}\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"CC": str(compiler), "TUNEFUL_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("compiled by")
    assert "matrix products" not in done.stdout  # those of training
