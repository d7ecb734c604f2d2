"""What stands on the command line between a verb and its options: data first, then settings."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_SETTING = re.compile(r"[^/=]*=")


def data_and_settings(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """`a.jsonl b.jsonl train.max_steps=5` as (names of data, settings): what has a `=` and is no file is a setting."""
    data: list[str] = []
    settings: list[str] = []
    for argument in arguments or ():
        is_setting = _SETTING.match(argument) and not os.path.lexists(argument)
        (settings if is_setting else data).append(argument)
    return data, settings
