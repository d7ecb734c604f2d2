"""Checks of one's own, as `evaluation.checks` writes them, become `CheckSpec`s.

    - json:                           a check is a mapping with its kind as a key, whose value says what is asked;
      required: [name, price]         further keys are options of that kind
      name: valid_product             the metric is called so; default: the kind

Everything that can be seen without the answers is refused here: a kind or an option that does not exist, a pattern that does not
compile, two checks of one name. What is asked of an answer is computed in `evaluation/checks.py`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from tuneful.config.yaml_file import YAML_ERRORS, YamlLoader

NORMALISATIONS: Mapping[str, str] = MappingProxyType(
    {
        "unicode": "compatible characters are one (NFKC): full-width and plain digits, ligatures and their letters",
        "case": "upper and lower case are one",
        "punctuation": "whatever is no letter, digit or white space is dropped",
        "articles": "the words a, an and the are dropped",
        "space": "runs of white space are one space, and none at the ends",
        "all_space": "all white space is dropped",
    }
)
"""What `same_as` may take for equal, in the order in which it is done, whatever the order in which it is named."""

LENGTH_UNITS = ("words", "characters", "lines")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check: its `kind`, the `name` of its metric, the `value` of its kind, and its options with their defaults."""

    kind: str
    name: str
    value: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a kind is written: who reads its value, and its options with who reads each and the default."""

    value: Callable[[Any], Any]
    options: Mapping[str, tuple[Callable[[Any], Any], Any]]
    default_name: str = ""


def given_checks(value: Any) -> tuple[dict[str, Any], ...]:
    """The checks as a configuration holds them: of a list, or of the YAML or JSON file that is named; ValueError says what is
    wrong with which. A file's own paths are meant from its folder."""
    if isinstance(value, str):
        file = Path(value)
        return tuple(_from_folder(entry, file.parent) for entry in given_checks(_file_of_checks(file)))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list of checks, or a file that holds one")
    entries = tuple(dict(entry) if isinstance(entry, Mapping) else {str(entry): None} for entry in value)
    specs = [_checked(entry, f"check {number}") for number, entry in enumerate(entries, start=1)]
    for name in {spec.name for spec in specs}:
        if sum(spec.name == name for spec in specs) > 1:
            raise ValueError(f"two checks are called `{name}`: give each a name of its own, name: NAME")
    return entries


def check_spec(entry: Mapping[str, Any]) -> CheckSpec:
    """The check that one entry of `given_checks` is."""
    return _checked(entry, "check")


def _file_of_checks(file: Path) -> Any:
    try:
        found = yaml.load(file.read_text(encoding="utf-8-sig"), YamlLoader)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from None
    except YAML_ERRORS as error:
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(found, dict) and set(found) == {"evaluation"} and isinstance(found["evaluation"], dict):
        found = found["evaluation"]
    if isinstance(found, dict) and set(found) == {"checks"}:
        found = found["checks"]
    if not isinstance(found, (list, dict)) or not found:
        raise ValueError(f"{file}: holds no list of checks, such as `- regex: ^yes`")
    return found


def _from_folder(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry with the files that it names found from `folder`."""
    joined = {
        key: str(folder / value)
        for key, value in entry.items()
        if (key == "python" or (key == "schema" and "json" in entry)) and isinstance(value, str)
    }
    return {**entry, **joined}


def _checked(entry: Mapping[str, Any], where: str) -> CheckSpec:
    found = [str(key) for key in entry if key in _KINDS]
    if len(found) != 1:
        raise ValueError(f"{where}: {_no_kind(entry, found)}")
    kind, where = found[0], f"{where} ({found[0]})"
    rules = _KINDS[kind]
    name = entry.get("name", rules.default_name or kind)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name: expected small letters, digits and _, such as valid_product, found {name!r}")
    options = {option: default for option, (_, default) in rules.options.items()}
    for key, given in entry.items():
        if key in (kind, "name"):
            continue
        if key not in options:
            known = ", ".join(f"`{one}`" for one in ("name", *options))
            raise ValueError(f"{where}: `{key}` is no option of it; there are {known}")
        options[key] = _read(rules.options[key][0], given, f"{where}: {key}")
    value = _read(rules.value, entry[kind], where)
    if kind == "length":
        _check_bounds(options, where)
    return CheckSpec(kind, name, value, MappingProxyType(options))


def _no_kind(entry: Mapping[str, Any], found: list[str]) -> str:
    if found:
        return f"is of two kinds, {' and '.join(found)}: make two checks of it"
    names = ", ".join(_KINDS)
    guess = next((one for key in entry for one in difflib.get_close_matches(str(key), _KINDS, n=1, cutoff=0.6)), None)
    hint = f"did you mean `{guess}`?" if guess else f"kinds are {names}"
    return f"names no kind (found {', '.join(map(str, entry)) or 'nothing'}): {hint}"


def _read(reader: Callable[[Any], Any], value: Any, where: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error} (found {value!r})") from None


def _check_bounds(options: Mapping[str, Any], where: str) -> None:
    low, high = options["min"], options["max"]
    if low is None and high is None:
        raise ValueError(f"{where}: give min, max or both")
    if None not in (low, high) and low > high:
        raise ValueError(f"{where}: min {low} is above max {high}")


# Values


def _texts(value: Any) -> tuple[str, ...]:
    """A text or a list of them; what YAML makes of yes, no and numbers is no text."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise ValueError(
            "expected a text or a list of texts; quote what YAML takes for something else, such as 'yes' or '1'"
        )
    return tuple(values)


def _maybe_texts(value: Any) -> tuple[str, ...]:
    return () if value is None else _texts(value)


def _among(*names: str) -> Callable[[Any], str]:
    """One of `names`; nothing is the first."""

    def read(value: Any) -> str:
        if value is None:
            return names[0]
        if value not in names:
            raise ValueError(f"expected {' or '.join(names)}")
        return str(value)

    return read


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError("expected a number of 0 or more")
    return float(value)


def _positive(value: Any) -> float:
    if _number(value) == 0:
        raise ValueError("expected a number above 0")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a whole number of 0 or more")
    return value


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a regular expression")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    return value


def _schema(value: Any) -> Any:
    if not isinstance(value, (str, dict, bool)):
        raise ValueError("expected a JSON schema, or the file that holds one")
    if isinstance(value, dict):
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("holds what JSON cannot; quote dates and keys that are no text") from None
    return value


def _function(value: Any) -> str:
    file, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and file and function.isidentifier()):
        raise ValueError("expected file.py:function")
    return str(value)


def _normalisations(value: Any) -> tuple[str, ...]:
    names = () if value is None else _texts(value)
    for name in names:
        if name not in NORMALISATIONS:
            raise ValueError(f"no normalisation is called {name}; there are {', '.join(NORMALISATIONS)}")
    return tuple(name for name in NORMALISATIONS if name in names)


def _language(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2}", value):
        raise ValueError("expected the two letters of a language, such as en; quote 'no'")
    return value


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "json": _Kind(_among("whole", "fenced"), {"required": (_texts, ()), "schema": (_schema, None)}),
        "regex": _Kind(
            _pattern,
            {"whole": (_switch, False), "ignore_case": (_switch, False), "timeout_seconds": (_positive, 1.0)},
        ),
        "contains": _Kind(_texts, {"ignore_case": (_switch, False)}),
        "not_contains": _Kind(_texts, {"ignore_case": (_switch, False)}),
        "one_of": _Kind(_texts, {}),
        "label": _Kind(_maybe_texts, {"whole": (_switch, False)}),
        "number": _Kind(_among("last", "only"), {"tolerance": (_number, 0.0), "relative_tolerance": (_number, 0.0)}),
        "tool_call": _Kind(_among("arguments", "name"), {}),
        "length": _Kind(_among(*LENGTH_UNITS), {"min": (_count, None), "max": (_count, None)}, "length_within"),
        "language": _Kind(_language, {}),
        "same_as": _Kind(_normalisations, {}),
        "python": _Kind(
            _function,
            {
                "timeout_seconds": (_positive, 10.0),
                "max_memory_mb": (_positive, 1024.0),
                "higher_is_better": (_switch, True),
            },
        ),
    }
)
KINDS = tuple(_KINDS)
"""Every kind of check."""
