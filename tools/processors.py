"""The tests of kernels and contracts on each lesser processor that this one can pretend to be: `make test-processors`.

    python tools/processors.py [--processors avx2 no-openmp --] [TESTS ...]

The kernels are compiled for each and run, and torch keeps to the same instructions (`TUNEFUL_PROCESSOR`, model/processor.py). The
last line of each run of pytest goes into a table; the exit code is 1 where a test failed anywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

PROCESSORS = ("avx512", "avx2", "no-fma", "sse2", "no-openmp", "no-compiler", "avx2,no-openmp")
TESTS = ("tests/model", "tests/contracts")


def main() -> int:
    """Run them all, one processor after the other, and print what came of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--processors", nargs="*", default=PROCESSORS, help="words of TUNEFUL_PROCESSOR, one processor each"
    )
    parser.add_argument("tests", nargs="*", default=TESTS, help="what pytest is given")
    options = parser.parse_args()
    rows = [(words, *run(words, options.tests)) for words in options.processors]
    print(f"{'processor':16} {'seconds':>8}  pytest")
    for words, code, seconds, said in rows:
        print(f"{words:16} {seconds:8.0f}  {said}" + ("" if code == 0 else f" (exit code {code})"))
    return int(any(code for _, code, _, _ in rows))


def run(words: str, tests: list[str]) -> tuple[int, float, str]:
    """The exit code of the tests on this processor, how long they took, and pytest's last line."""
    print(f"==> TUNEFUL_PROCESSOR={words} pytest {' '.join(tests)}", flush=True)
    environment = {**os.environ, "TUNEFUL_PROCESSOR": words, "TUNEFUL_NATIVE": "1"}
    start = time.perf_counter()
    line = [sys.executable, "-m", "pytest", *tests]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as running:
        said = ""
        for said in running.stdout or ():
            print(said, end="", flush=True)
    return running.returncode, time.perf_counter() - start, said.strip(" =\n")


if __name__ == "__main__":
    sys.exit(main())
