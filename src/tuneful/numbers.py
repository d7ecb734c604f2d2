"""Numbers as people read them: three significant digits, thousands in commas, spans of time, percentages, plurals.

Stands on the ground: every number of the report is written here, and spans of time, percentages and plurals of the terminal.
The trade: rounded for reading; all digits are in the run folder's JSON files.
"""

from __future__ import annotations

import math
from typing import TypeGuard

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"
NO_BREAK = "\N{NO-BREAK SPACE}"
UNKNOWN = "\N{EN DASH}"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def known(number: float | None) -> TypeGuard[float]:
    """Whether there is a figure: None and NaN are none."""
    return number is not None and not math.isnan(number)


def count(number: float | None) -> str:
    """A whole number with commas: `1,298`; an en dash where there is none."""
    return fixed(number, 0)


def significant(number: float | None, digits: int = 3) -> str:
    """A number in `digits` significant digits: `0.0213`, `2.31`, `1,234`, `5.00 × 10⁻⁶`."""
    if not known(number):
        return UNKNOWN
    if number == 0:
        return "0"
    exponent = math.floor(math.log10(abs(number)))
    if exponent < -4 or exponent > 11:
        return f"{fixed(number / 10.0**exponent, digits - 1)}{THIN}×{THIN}{power_of_ten(exponent)}"
    return fixed(number, max(0, digits - 1 - exponent))


def plain(number: float | None) -> str:
    """As `significant`, without zeros at the end: `5 × 10⁻⁵`, `0.1`; for settings."""
    text = significant(number)
    mantissa, times, power = text.partition(f"{THIN}×{THIN}")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa + times + power


def fixed(number: float | None, decimals: int) -> str:
    """A number with a fixed count of decimals."""
    if not known(number):
        return UNKNOWN
    if abs(number) >= 1e12:
        return significant(number)
    text = f"{number:,.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.,") else _true_minus(text)


def signed(number: float | None, decimals: int) -> str:
    """A difference: its sign is always written, except at zero."""
    text = fixed(number, decimals)
    return f"+{text}" if known(number) and number > 0 and text.strip("0.,") else text


def decimals_for(*numbers: float | None) -> int:
    """The decimals that give the largest of `numbers` three significant digits, at most four; for figures in a row."""
    largest = max((abs(number) for number in numbers if known(number)), default=0.0)
    if largest == 0:
        return 2
    return min(4, max(0, 2 - math.floor(math.log10(largest))))


def percent(share: float | None) -> str:
    """A share as a percentage: `23.8 %`."""
    if not known(share):
        return UNKNOWN
    hundred = share * 100
    decimals = 0 if hundred == 0 or hundred >= 99.95 else 1 if hundred >= 1 else 2
    return f"{fixed(hundred, decimals)}{THIN}%"


def duration(seconds: float | None) -> str:
    """A span of time: `0.81 s`, `41 s`, `3 min 21 s`, `2 h 05 min`."""
    if not known(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{significant(seconds, 2)}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{THIN}h {minutes % 60:02d}{THIN}min"


def rough_percent(share: float) -> str:
    """A share as a whole percentage, for a list of many: `98 %`, `under 1 %`."""
    hundred = share * 100
    return f"{hundred:.0f}{NO_BREAK}%" if hundred >= 1 or not hundred else f"under 1{NO_BREAK}%"


def rough_duration(seconds: float) -> str:
    """A span of time that is only estimated: `41 s`, `3 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def storage(num_bytes: float | None) -> str:
    """An amount of memory in binary units: `15.6 GiB`."""
    if not known(num_bytes):
        return UNKNOWN
    size, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count(size) if unit == 'bytes' else significant(size)}{THIN}{unit}"


def compact(number: float) -> str:
    """A count for an axis: `400`, `20k`, `1.5M`."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * (10 if letter == "k" else 1):
            return f"{_true_minus(f'{number / limit:.4g}')}{letter}"
    return _true_minus(f"{number:,.10g}")


def power_of_ten(exponent: int) -> str:
    """`10⁻⁵` for -5."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def plural(number: float, noun: str, nouns: str | None = None) -> str:
    """A counted noun: `1 row`, `1,298 rows`."""
    return f"{count(number)} {noun if number == 1 else nouns or noun + 's'}"


def _true_minus(text: str) -> str:
    return text.replace("-", MINUS)
