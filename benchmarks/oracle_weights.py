"""Tokens and loss weights of random conversations against an oracle that is written out by hand, byte by byte.

    python benchmarks/oracle_weights.py --conversations 20000 --tokenizer builtin

The oracle is that of `tests/doubles/written_weights.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.written_weights import TEMPLATES, TOKENIZERS, check

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run one tokenizer's share and write results/oracle_weights-DATE-TOKENIZER.json."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=20_000)
    arguments.add_argument("--tokenizer", choices=TOKENIZERS, required=True)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    start = time.perf_counter()
    tokenizer = TOKENIZERS[given.tokenizer]()
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tokenizer": given.tokenizer,
        "conversations": given.conversations,
        "seed": given.seed,
        "templates": {name: check(tokenizer, name, given.conversations, given.seed) for name in TEMPLATES},
    }
    found["seconds"] = round(time.perf_counter() - start, 1)
    output = RESULTS / f"oracle_weights-{found['date'][:10]}-{given.tokenizer}.json"
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
