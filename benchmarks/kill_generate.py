"""kill -9 at random while a file is answered: the final file is that of an uninterrupted process.

    python benchmarks/kill_generate.py [--kills 50] [--records 200]

What is killed and compared stands in `tests/doubles/killed_answering.py`. Fails where a file differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not survive the fork
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.killed_answering import campaign


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = campaign(arguments.kills, arguments.records, arguments.seed)
    print(
        f"{found.kills} kills over {found.files} files of {arguments.records} answers, {found.torn} with half a line: "
        "every file the same"
    )


if __name__ == "__main__":
    main()
