"""Settings by file: which value of `data.weights`, `data.formats` or `data.interleave_probs` is meant for which file of DATA.

A list goes by the order in which DATA was given. In a mapping a file goes by the name that DATA was given by (a pattern or a
folder stands for all its files), by its path, or by its last part where only one file has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from tuneful.data.sources import Place
from tuneful.errors import ConfigError

Key = str | int
Setting = Mapping[str, object] | Sequence[object]


def keys_by_place(setting: Setting | None, key: str, given: Sequence[str], places: Sequence[Place]) -> list[Key | None]:
    """For each place the key of `setting` that speaks of it, None where none does; `given` are the names of DATA.

    ConfigError, naming the setting `key`, where a list is of another length, or a name is that of no file.
    """
    if setting is None:
        return [None] * len(places)
    if not isinstance(setting, Mapping):
        if len(setting) != len(given):
            raise ConfigError(f"`{key}`: {len(setting)} values for {len(given)} names of data: {', '.join(given)}")
        return [given.index(place.given) for place in places]
    found: list[Key | None] = [_name_of(place, setting, places) for place in places]
    unknown = [name for name in setting if name not in found]
    if unknown:
        raise ConfigError(f"`{key}`: {unknown[0]} is no file of the data; its files are {_listed(places)}")
    return found


def _name_of(place: Place, names: Mapping[str, object], places: Sequence[Place]) -> str | None:
    last = PurePath(place.name).name
    is_only = sum(PurePath(other.name).name == last for other in places) == 1
    return next((name for name in (place.name, last if is_only else "", place.given) if name in names), None)


def _listed(places: Sequence[Place]) -> str:
    names = ", ".join(place.name for place in places[:4])
    return names + (f" and {len(places) - 4} more" if len(places) > 4 else "")
