"""The date of chat templates that write one: always the same, in training and wherever the saved template is served.

Stands beside `jinja_sandbox.py`. A template that asks for today's date (`strftime_now`) would render another prompt each day.
Where it can do without, it is told that there is none, and writes what it has for that case; where it cannot, DATE is put in,
and into the template that is saved with the model too, as a macro that answers for each format that the template asks for.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

DATE = datetime.date(2025, 1, 1)
"""The day on which every prompt of such a template is written."""

_NO_DATE = "{% set strftime_now = there_is_no_date_in_training %}{{ '' }}"
_MACRO = "{% macro strftime_now(format) %}"
_ASKS_FOR_IT = re.compile(r"\bstrftime_now\s+is\s+(?:not\s+)?defined\b")
_FORMAT = re.compile(r"""(["'])((?:(?!\1)[^\\\n{}])*%(?:(?!\1)[^\\\n{}])*)\1""")


def fixed_dates(source: str) -> Mapping[str, str]:
    """What DATE is in each format that a template asks for; empty for a template that has no date, or can do without."""
    if "strftime_now" not in source or _ASKS_FOR_IT.search(source) or source.startswith((_MACRO, _NO_DATE)):
        return {}
    formats = dict.fromkeys(format for _, format in _FORMAT.findall(source) if re.search(r"%[A-Za-z]", format))
    return {format: DATE.strftime(format) for format in formats}


def with_fixed_date(source: str) -> str:
    """`source`, which writes the same date whoever renders it and when."""
    if "strftime_now" not in source or source.startswith((_MACRO, _NO_DATE)):
        return source
    if not (dates := fixed_dates(source)):
        return _NO_DATE + source
    answers = "".join(
        f"{{% {'elif' if number else 'if'} format == {format!r} %}}{{{{ {text!r} }}}}"
        for number, (format, text) in enumerate(dates.items())
    )
    return f"{_MACRO}{answers}{{% endif %}}{{% endmacro %}}{{{{ '' }}}}{source}"
