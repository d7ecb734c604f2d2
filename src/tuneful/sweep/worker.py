"""A process of its own for one leg: `python -m tuneful.sweep.worker`, told what to do by a line on its standard input.

That stays open for as long as the sweep lives. Where it ends, however that came, this process ends at once: nobody would read
what it finds, and the sweep that goes on takes the run up where its last checkpoint is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.errors import TunefulError
from tuneful.runs.job import train_part
from tuneful.sweep.legs import as_answer


def main() -> None:
    """Train one leg and print what came of it, a line of JSON."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    config = load_config(None, begun_with=request["config"])
    try:
        part = train_part(
            tuple(request["data"]),
            config,
            Path(request["path"]),
            Terminal(quiet=True),
            request["pause_at"],
            [Path(name) for name in request["siblings"]],
        )
    except TunefulError as error:
        print(as_answer(error), flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupted:
        sys.exit(getattr(interrupted, "exit_code", 130))
    print(as_answer(part), flush=True)


def _end_with_the_sweep() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
