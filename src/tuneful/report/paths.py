"""Paths as a page shows them: a report is passed on, and tells no folders of whoever ran it.

Stands under `sections.py`; the template has it as a filter for places. Absolute paths inside a text lose their folders; relative
ones, addresses and ratios stay.
"""

from __future__ import annotations

import re

_STOP = r"\s'\"`,;:()<>|=\[\]"
_ABSOLUTE = re.compile(rf"(?<![\w.~/\\:-])(?:[A-Za-z]:[\\/]|~?/|\\\\)(?:[^{_STOP}\\/]+[\\/]+)*([^{_STOP}\\/]+)[\\/]?")


def without_folders(text: str) -> str:
    """`text` with `…/name` for every absolute path: `/home/ada/my.json` becomes `…/my.json`, `C:\\data` becomes `…/data`."""
    return _ABSOLUTE.sub(r"…/\1", text)
