"""A folder becomes the files of one split: what `datasets` saved (`save_to_disk`), and a clone of a data set of the Hub.

    saved/dataset_dict.json  saved/train/state.json  saved/train/data-00000-of-00001.arrow
    saved/state.json         saved/data-00000-of-00001.arrow
    clone/README.md          clone/data/train-00000-of-00001.parquet

The split is `train`; another one is a folder of its own (`saved/test`), or its files by name. What else lies in a folder is never
guessed at: the message says what there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from tuneful.data import hub
from tuneful.data.rows import TEXT_SUFFIXES, shown, suffix_of
from tuneful.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_NOT_A_DATA_SET = ("run.json", "config.json", "config.yaml", "tokenizer.json", "pyproject.toml")
_MOST_NAMED = 4


def files_of_folder(folder: Path, *, holds_text: bool = False) -> list[Path]:
    """The files of records of a folder's split `train`; DataError where it holds no data set, or none of that split.

    Of one that `holds_text`, and is no saved data set, all files of text and of records, wherever they lie in it.
    """
    if (folder / _STATE).is_file():
        return _saved_files(folder)
    if (folder / _SPLITS).is_file():
        return _saved_files(folder / _split_of(folder))
    if holds_text:
        return _files_of_text(folder)
    card = folder / "README.md"
    is_clone = (card.is_file() or (folder / "data").is_dir()) and not any(
        (folder / one).exists() for one in _NOT_A_DATA_SET
    )
    names = _data_files(folder, folder.rglob("*")) if is_clone else []
    if not names:
        raise _no_data_set(folder, _data_files(folder, chain(folder.glob("*"), folder.glob("*/*"))))
    configs = hub.configs_of_card(card) if card.is_file() else []
    return [folder / name for name in hub.choose(names, configs, "train", str(folder))]


def _files_of_text(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if _may_be_data(path, folder) or _may_be_text(path, folder)]
    if not found:
        raise DataError(f"{folder}: is a folder without a file of text ({', '.join(TEXT_SUFFIXES)}) or of records")
    return found


def _may_be_text(path: Path, folder: Path) -> bool:
    return suffix_of(path.name) in TEXT_SUFFIXES and not _is_hidden(path, folder) and path.is_file()


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _data_files(folder: Path, paths: Iterable[Path]) -> list[str]:
    """Those of `paths` that may hold records, as they are called inside `folder`."""
    return [path.relative_to(folder).as_posix() for path in sorted(paths) if _may_be_data(path, folder)]


def _may_be_data(path: Path, folder: Path) -> bool:
    return not _is_hidden(path, folder) and path.is_file() and hub.is_data_file(path.name)


def _split_of(folder: Path) -> str:
    """The split of a saved dictionary that is read: `train`, or the only one."""
    splits = _document(folder / _SPLITS).get("splits")
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    there = ", ".join(f"{folder}/{shown(name)}" for name in names) or "none"
    raise DataError(f"{folder}: has no split train; name the split's folder: {there}")


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files that state.json lists."""
    entries = _document(folder / _STATE).get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    files = [folder / name for name in names if isinstance(name, str) and Path(name).name == name]
    missing = [file.name for file in files if not file.is_file()]
    if not files or missing:
        raise DataError(
            f"{folder / _STATE}: names {', '.join(missing[:_MOST_NAMED]) or 'no files'}, which is not there; save it again"
        )
    return files


def _document(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the data set again") from None
    return value if isinstance(value, dict) else {}


def _no_data_set(folder: Path, names: list[str]) -> DataError:
    """The error for a folder that is no data set: what may be meant."""
    some = ", ".join(f"'{folder / name}'" for name in names[:_MOST_NAMED]) + (
        ", ..." if len(names) > _MOST_NAMED else ""
    )
    what = f"name a file of it, or several: {some}" if names else "and no file of records lies in it"
    return DataError(f"{folder}: is a folder; {what}")
