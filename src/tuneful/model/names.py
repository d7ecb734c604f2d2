"""What a model is called: here, on the Hub, and in the folder of the run that trained it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.errors import ModelError
from tuneful.files import write_json
from tuneful.model.builtin import BUILTIN, BUILTIN_HUB_ID
from tuneful.model.own_files import read_document

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER = "adapter_config.json"
"""What tells the folder of an adapter from that of a model."""

TRAINED_WITH = "tuneful.json"
"""What a folder that Tuneful trained says of its training: the template, and of an adapter the base."""

_GPT2_SIZES = {"small": ("gpt2", "124M"), "medium": ("gpt2-medium", "355M"), "large": ("gpt2-large", "774M")}
_GPT2_SIZES["xl"] = ("gpt2-xl", "1558M")
_GPT2_HUB_IDS = {
    name.lower(): f"openai-community/{hub_name}"
    for size, (hub_name, weights) in _GPT2_SIZES.items()
    for name in (f"gpt2-{size}", weights, f"gpt2-{size} ({weights})")
}
"""gpt2-medium, 355M and "gpt2-medium (355M)" -> its place on the Hub."""

NF4 = "nf4"
"""How the base of a `qlora` run is rounded, in that document."""

_MAX_ADAPTERS = 8
_RUN, _TRAINED = "run.json", ("model", "adapter")


def hub_id(base_name: str) -> str | None:
    """The Hub id by which others find the model that is called `base_name` here; None where there is none."""
    if base_name == BUILTIN:
        return BUILTIN_HUB_ID
    if Path(base_name).exists():
        return None
    return found if HUB_ID.fullmatch(found := full_name(base_name)) else None


def full_name(name: str) -> str:
    """The Hub id of the size of GPT-2 that is called `name`, by OpenAI or in the book; any other name as it is."""
    return _GPT2_HUB_IDS.get(name.lower(), name)


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter stands on: the name of a model, its fingerprint where that was written down, and how its weights were
    rounded while the adapter learned (`nf4`), where they were."""

    name: str
    sha256: str | None = None
    quantization: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and no model; a config.json that some trainers write beside an adapter is no model."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in weights)


def adapter_base(folder: Path) -> Base:
    """The base of the adapter in `folder`: what Tuneful wrote down with it, else what peft did. ModelError for none, and where
    adapters name one another in a circle, or stand on one another more than `_MAX_ADAPTERS` times."""
    base, passed = _adapter_base(folder), [folder.resolve()]
    below = base
    while (path := Path(below.name).expanduser()).is_dir() and is_adapter(path := trained_folder(path)):
        if path.resolve() in passed or len(passed) == _MAX_ADAPTERS:
            raise ModelError(
                f"{folder / ADAPTER}: its base {base.name} is an adapter itself, and so on without an end ({path}); "
                "write the name or folder of the base model there (base_model_name_or_path)"
            )
        passed.append(path.resolve())
        below = _adapter_base(path)
    return base


def _adapter_base(folder: Path) -> Base:
    """The base of the adapter in `folder`: what Tuneful wrote down with it, or what peft did. ModelError for none.

    Of two names the one counts that leads to something on this machine: a base that was moved is written into peft's file.
    """
    written, settings = _document(folder / TRAINED_WITH).get("base"), _document(folder / ADAPTER)
    ours = written if isinstance(written, dict) and isinstance(written.get("name"), str) else {}
    names = [
        name for name in (ours.get("name"), settings.get("base_model_name_or_path")) if isinstance(name, str) and name
    ]
    if not names:
        raise ModelError(
            f"{folder / ADAPTER} names no base model (base_model_name_or_path); write its name or folder there"
        )
    found = [_found_from(folder, name) for name in names]
    here = (name for name in found if name == BUILTIN or Path(name).expanduser().exists())
    return Base(next(here, found[0]), ours.get("sha256"), _quantization(folder, ours))


def save_trained_with(folder: Path, template: str, base: Base) -> None:
    """Write down in an adapter's folder the template that it was trained with, and the base."""
    quantized = {"quantization": base.quantization} if base.quantization else {}
    document = {"template": template, "base": {"name": base.name, "sha256": base.sha256, **quantized}}
    write_json(folder / TRAINED_WITH, document)


def _quantization(folder: Path, written: dict[str, Any]) -> str | None:
    found = written.get("quantization")
    if found not in (None, NF4):
        raise ModelError(
            f"{folder / TRAINED_WITH}: the base was quantized as {found!r}, and only {NF4!r} is known; install a newer Tuneful"
        )
    return None if found is None else NF4


def _found_from(folder: Path, name: str) -> str:
    """A relative path is meant from here, else from the adapter's own folder."""
    beside = folder / name
    return str(beside) if not Path(name).expanduser().exists() and beside.exists() else name


def _document(file: Path) -> dict[str, Any]:
    return read_document(file) if os.path.lexists(file) else {}


def trained_folder(folder: Path) -> Path:
    """The model, or else the adapter, of the run in `folder`; `folder` itself where it holds no run. ModelError for none."""
    if not (folder / _RUN).is_file() or (folder / "config.json").is_file():
        return folder
    for name in _TRAINED:
        if any((folder / name / file).is_file() for file in ("config.json", ADAPTER)):
            return folder / name
    raise ModelError(f"{folder}: this run has saved no model yet; go on with it: tuneful run --resume {folder}")
