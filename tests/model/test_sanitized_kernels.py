"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: nothing is read or written that is not theirs.

In a process of its own, because the sanitizer has to be loaded before anything else.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.machine import needs, sanitizer_libraries

from tuneful.model.native.library import compiler as find_compiler

pytestmark = [needs("compiled-products"), needs("sanitizers")]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the library with the sanitizers in it is kept, and the compiler that puts them there."""
    return tmp_path_factory.mktemp("sanitized")


def run(cache: Path, program: str) -> subprocess.CompletedProcess[str]:
    compiler = cache / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {find_compiler().path} "$@" {FLAGS}\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "CC": str(compiler),
        "TUNEFUL_CACHE": str(cache),
        "LD_PRELOAD": " ".join(sanitizer_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_odd_shapes_and_up_to_seven_threads(cache):
    done = run(cache, "import runpy; runpy.run_module('tests.doubles.sanitized_kernels', run_name='__main__')")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "matrix products too" in done.stdout


def test_memory_that_is_too_small_is_seen(cache):
    done = run(
        cache,
        "from tests.doubles import sanitized_kernels as kernels\n"
        "kernels.products.thread_workspace = lambda num_bytes: kernels.exactly(num_bytes - 64)\n"
        "kernels.all_products()",
    )
    assert "heap-buffer-overflow" in done.stderr
    assert "products.h" in done.stderr
