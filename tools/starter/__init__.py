"""The built-in data set `starter`: Alpaca-shaped records for a first finetuning run, dedicated to the public domain.

`starter.json` is what is read; `make.py` and the tables beside it are how it was written. See README.md.
"""

from __future__ import annotations

import pathlib


def path() -> pathlib.Path:
    """Return the path of `starter.json`, a JSON list of records with `instruction`, `input` and `output`."""
    return pathlib.Path(__file__).with_name("starter.json")
