"""Can a model folder run code, or exhaust the machine? Hundreds of damaged ones: each is one message, or loads in its limits.

    python benchmarks/fuzz_models.py [--kind huggingface|adapter|gguf|openai] [--models 300] [--seed 0] [--output FILE.json]

What is done to them stands in `tests/doubles/damaged_models.py`. Exit code 1 where anything fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.damaged_models import KINDS, campaign


def main() -> int:
    """Run the campaign; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--kind", choices=list(KINDS), default="huggingface")
    parser.add_argument("--only", help="one of the mutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        os.environ["TUNEFUL_CACHE"] = str(Path(place) / "cache")
        found, failures = campaign(options.kind, options.models, options.seed, Path(place) / "models", options.only)
    print(f"{found.total()} models, {len(failures)} failures")
    for name, count in sorted(found.items()):
        print(f"  {name:<30} {count:4}")
    for failure in failures:
        print(json.dumps(failure, ensure_ascii=False))
    if options.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/fuzz_models.py", *sys.argv[1:]]),
            "kind": options.kind,
            "seed": options.seed,
            "endings": dict(sorted(found.items())),
            "failures": failures,
            "seconds": round(time.perf_counter() - begun),
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
