"""What is wrong with a configuration, in our words: an unknown key with the one that is meant, a value with what it may be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tuneful.config.names import COLUMN_FIELDS, PEER_KEYS, RENAMED_KEYS


def explained(error: ValidationError, where: Mapping[str, str], known: Sequence[str], sections: Sequence[str]) -> str:
    """Every problem of `error`, a line each; `where` says of a key which file or argument it came from."""
    lines = []
    for problem in error.errors():
        dotted = ".".join(str(part) for part in problem["loc"])
        place = where.get(dotted) or next((where[key] for key in where if key.startswith(dotted)), "configuration")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: {unknown_key(dotted, known, sections)}")
            continue
        key = f"`{dotted}`: " if dotted else ""  # what is wrong with several sections together has none
        lines.append(f"{place}: {key}{problem['msg'].removeprefix('Value error, ')}{_found(problem['input'])}")
    return "\n".join(lines)


def unknown_key(dotted: str, known: Sequence[str], sections: Sequence[str]) -> str:
    """That the key `dotted` is none, and which one is meant."""
    if dotted in RENAMED_KEYS:
        return f"`{dotted}` is called `{RENAMED_KEYS[dotted]}` now"
    key = dotted.rpartition(".")[2]
    if key in PEER_KEYS:
        return f"unknown key `{dotted}`: here it is called `{PEER_KEYS[key]}`"
    if dotted.lower() in COLUMN_FIELDS:
        return f"unknown key `{dotted}`: the columns of all fields are one setting, with commas: data.columns=...,{dotted}=COLUMN"
    same_name = [name for name in known if name.endswith(f".{key}")]
    guess = same_name or difflib.get_close_matches(dotted, known, n=1, cutoff=0.6)
    hint = f"did you mean `{guess[0]}`?" if guess else f"sections are {', '.join(sections)}"
    return f"unknown key `{dotted}`: {hint}"


def setting_named(name: str, known: Sequence[str]) -> str | None:
    """The dotted key that `name` means, its section left out or as another trainer calls it; None for none and for several.

    Of several that of the training is meant.
    """
    if name in PEER_KEYS:
        return PEER_KEYS[name]
    for mark in (".", "_"):
        found = [key for key in known if key.endswith(f"{mark}{name}")]
        meant = [key for key in found if key.startswith("train.")] if len(found) > 1 else found
        if len(meant) == 1:
            return meant[0]
    return None


def _found(value: Any) -> str:
    is_long = isinstance(value, dict) or (
        isinstance(value, (list, tuple)) and any(isinstance(one, dict) for one in value)
    )
    return "" if is_long else f" (found {value!r})"
