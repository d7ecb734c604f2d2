"""A Hub id becomes files: `owner/name`, or `owner/name:split`, fetched once into the Hub's own cache.

Which files belong to a split is read from the repository's card (`configs`), or else from their names
(`data/train-00000.parquet`, `test.jsonl`). Only data files are ever fetched, and they are read like any other file: no code of
a repository runs.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneful.errors import DataError

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
"""The splits that names of files speak of, and how they say it."""

DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_PACKED = (".gz", ".zst")
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<split>[\w.-]+))?")
_NOT_DATA = {"dataset_infos.json", "dataset_info.json", "state.json", "config.json", "package.json"}


def is_data_file(name: str) -> bool:
    """Whether a file's name ends as one of records does."""
    for packed in _PACKED:
        name = name.lower().removesuffix(packed)
    return name.endswith(DATA_ENDINGS)


def looks_like_an_id(name: str) -> bool:
    """Whether `name` may be a Hub id: `owner/name` or `owner/name:split`, and no file's name."""
    found = _ID.fullmatch(name)
    return bool(found) and not is_data_file(name) and not name.startswith("runs/") and not Path(name).parent.is_dir()


def fetch(name: str) -> list[tuple[str, Path]]:
    """(name for messages, path) of every file of a Hub id's split; DataError where there is none or it cannot be had."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    found = _ID.fullmatch(name)
    assert found, name
    repository, split = found["id"], found["split"] or "train"
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        described = huggingface_hub.HfApi(library_name="tuneful").dataset_info(repository)
        files = [str(file.rfilename) for file in described.siblings or ()]

        def fetched(file: str) -> Path:  # all at one commit, also where others push meanwhile
            path = huggingface_hub.hf_hub_download(
                repository, file, repo_type="dataset", revision=described.sha, library_name="tuneful"
            )
            return Path(path)

        configs = configs_of_card(fetched("README.md")) if "README.md" in files else []
        return [(f"{repository}/{file}", fetched(file)) for file in choose(files, configs, split, repository)]
    except DataError:
        raise
    except errors.GatedRepoError:
        raise DataError(
            f"{name}: gated; accept its terms on its Hub page, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{name}: no such file, and the Hub at {_endpoint()} knows no data set of this name; check the spelling, and for "
            "a private one set HF_TOKEN"
        ) from None
    except Exception as error:  # any network error: the user gets one line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{name}: no such file, and it could not be had from the Hub at {_endpoint()} ({reason}). Connect, or name a file"
        ) from None


def choose(files: Sequence[str], configs: Sequence[Any], split: str, repository: str) -> list[str]:
    """The data files of `split` in a repository of `files`: as its card's `configs` say, else by their names."""
    data = sorted(file for file in files if is_data_file(file) and Path(file).name not in _NOT_DATA)
    if not data:
        script = next((file for file in files if file == f"{repository.rpartition('/')[2]}.py"), None)
        why = f"it is made by a program ({script}), and no code of a repository is run" if script else "it holds none"
        raise DataError(f"{repository}: no file of records to read: {why}")
    by_split = _splits_of_card(data, configs, repository) or _splits_by_name(data)
    if split in by_split:
        return by_split[split]
    raise DataError(
        f"{repository}: has no split `{split}`; there are {', '.join(f'{repository}:{one}' for one in by_split)}"
    )


def _splits_of_card(data: list[str], configs: Sequence[Any], repository: str) -> dict[str, list[str]]:
    """The files of each split, as the card's `configs` say; none where they say nothing."""
    splits: dict[str, list[str]] = {}
    for split, pattern in _patterns(_data_files(configs, repository)):
        matches = [file for file in data if fnmatch.fnmatchcase(file, pattern.replace("**/", "*"))]
        splits.setdefault(split, []).extend(matches)
    return {split: list(dict.fromkeys(matches)) for split, matches in splits.items() if matches}


def _data_files(configs: Sequence[Any], repository: str) -> Any:
    """`data_files` of the one configuration that has them, or of the default one; DataError where none is."""
    usable = [config for config in configs if isinstance(config, dict) and config.get("data_files")]
    default = [config for config in usable if config.get("default") or config.get("config_name") == "default"]
    if len(usable) > 1 and not default:
        names = ", ".join(str(config.get("config_name")) for config in usable)
        raise DataError(
            f"{repository}: has several configurations ({names}) and none is the default; fetch one's files and name them"
        )
    return (default or usable)[0]["data_files"] if usable else []


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """(split, pattern) of `data_files`: a list of splits with their paths, or paths, which are of `train`."""
    if not isinstance(data_files, list) or not all(isinstance(entry, dict) for entry in data_files):
        data_files = [{"split": "train", "path": data_files}]
    for entry in data_files:
        patterns = entry.get("path", [])
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            yield str(entry.get("split", "train")), str(pattern)


def _splits_by_name(data: list[str]) -> dict[str, list[str]]:
    """`data/train-00000-of-00002.parquet` is train's; files that name no split are train's where no other is."""
    splits: dict[str, list[str]] = {}
    for file in data:
        words = re.split(r"[^a-z]+", file.lower())
        split = next((split for split, names in SPLITS.items() if any(name in words for name in names)), "")
        splits.setdefault(split, []).append(file)
    unnamed = splits.pop("", [])
    if "train" not in splits and unnamed:
        splits["train"] = unnamed
    return splits


def configs_of_card(card: Path) -> list[Any]:
    """The `configs` of a repository's README.md; none where its front matter has none, or cannot be read."""
    import yaml

    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        values = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    configs = values.get("configs") if isinstance(values, dict) else None
    return configs if isinstance(configs, list) else []


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
