"""Does the folder of an adapter say of it what its weights are? Compared by headers, before peft builds what the folder asks for.

peft believes adapter_config.json: it makes room for a rank of a billion, and matches each layer against the folder's regular
expressions, one of which can take forever. It opens pickled weights where there are no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.errors import ModelError
from tuneful.model.names import ADAPTER
from tuneful.model.own_files import check_own_files, own_file, read_document
from tuneful.model.stored import StoredTensor, read_safetensors_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = "adapter_model.safetensors"
_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters")
_BY_PATTERN = ("rank_pattern", "alpha_pattern")
_LISTS = ("layers_to_transform", "layer_replication", "trainable_token_indices")
_MAX_NAMES, _MAX_PATTERN = 20_000, 4_096
_TENSORS_A_MODULE = 16
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_AGAIN = "fetch or save the adapter again"


def check_adapter(folder: Path) -> int:
    """ModelError where the adapter in `folder` has no safetensors, or asks for larger ones or for work without end.

    How many tensors it has.
    """
    check_own_files(folder)
    file, settings = folder / ADAPTER, read_document(folder / ADAPTER)
    tensors = _tensors(folder)
    for key in (*_NAMES, *_BY_PATTERN, *_LISTS):
        if isinstance(value := settings.get(key), (list, dict)) and len(value) > _MAX_NAMES:
            raise ModelError(f"{file}: {key} has {len(value):,} entries; {_AGAIN}")
    largest = max((max(one.shape, default=0) for one in tensors.values()), default=0)
    least = 1 if settings.get("peft_type", "LORA") == "LORA" else 0  # other kinds may say 0 for "by the size of blocks"
    for key, rank in _ranks(settings):
        if type(rank) is not int or not least <= rank <= largest:
            raise ModelError(
                f"{file}: {key} is {str(rank)[:40]}, and no weight in {_WEIGHTS} is larger than {largest:,}; {_AGAIN}"
            )
    for key, pattern in _patterns(settings):
        if not isinstance(pattern, str) or len(pattern) > _MAX_PATTERN or _is_endless(pattern):
            raise ModelError(
                f"{file}: {key} holds {str(pattern)[:40]!r}, which is no name of a layer, or takes forever to match; {_AGAIN}"
            )
    return len(tensors)


def check_suits(num_tensors: int, base: PreTrainedModel, folder: Path) -> None:
    """ModelError where the adapter in `folder` has many more tensors than its base has places for."""
    if num_tensors > _TENSORS_A_MODULE * sum(1 for _ in base.modules()):
        raise ModelError(
            f"{folder}: the adapter has {num_tensors:,} tensors, and its base no place for as many; {_AGAIN}"
        )


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    if not (folder / _WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{folder / 'adapter_model.bin'} is pickled, and Tuneful opens safetensors only: load it with peft and save it again"
        )
    file = own_file(folder, _WEIGHTS)
    try:
        return read_safetensors_header(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is damaged ({error}): {_AGAIN}") from error


def _ranks(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "r" in settings:
        yield "r", settings["r"]
    if isinstance(ranks := settings.get("rank_pattern"), dict):
        yield from (("rank_pattern", rank) for rank in ranks.values())


def _patterns(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name of a layer, or regular expression for some, with the key that it stands under."""
    for key in (*_NAMES, *_BY_PATTERN):
        value = settings.get(key)
        for one in value if isinstance(value, (list, dict)) else [value] if value is not None else []:
            yield key, one


def _is_endless(pattern: str) -> bool:
    """Whether a regular expression repeats what repeats without a bound itself, as (a+)+ does; True for none at all."""
    try:
        return _repeats_within(re._parser.parse(pattern), inside=False)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError):
        return True


def _repeats_within(parsed: Any, inside: bool) -> bool:
    for operation, argument in parsed:
        repeats = str(operation) in _REPEATS and argument[1] > _MAX_PATTERN
        if repeats and inside:
            return True
        if any(_repeats_within(one, inside or repeats) for one in _inner(argument)):
            return True
    return False


def _inner(argument: Any) -> Iterator[Any]:
    """The parts of an operation that are patterns themselves."""
    if hasattr(argument, "data") and hasattr(argument, "state"):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for one in argument:
            yield from _inner(one)
