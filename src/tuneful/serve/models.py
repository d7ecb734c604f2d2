"""What a server answers with: the models that were named, each under a name of its own, with the prompts that training made.

A run, or an adapter, gives two: what was trained and the base, both asked under the template of the training. Adapters stand
beside one base in memory where they can (`model/beside.py`), else each is merged into a copy of its base. No request changes what
another is answered by, and weights that two models have in common are held once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import torch

from tuneful.config import Config
from tuneful.encoding.prepare import load_encoder
from tuneful.errors import InputError, ModelError
from tuneful.files import read_object
from tuneful.infer.compiled import CompiledModel
from tuneful.infer.continuous import ContinuousBatch
from tuneful.infer.decode import forget_decoders, give_back_laid_out, laid_out
from tuneful.infer.generate import stop_token_ids
from tuneful.infer.session import LoadedModel
from tuneful.model.beside import beside
from tuneful.model.checks import check_vocabulary, ignore
from tuneful.model.load import UNLIMITED, base_path, context_length, load_tokenizer, resolve_model
from tuneful.model.names import adapter_base, is_adapter
from tuneful.model.saved_template import with_saved_template
from tuneful.serve.limits import Limits

Notify = Callable[[str], None]
TUNED, BASE = "tuned", "base"
_RUN = "run.json"


class UnknownModelError(InputError):
    """No model of that name is served."""


@dataclass(frozen=True)
class ServedModel:
    """A model under the `name` that requests give, the `path` that it was read from, and the batch that answers for it."""

    name: str
    loaded: LoadedModel
    path: Path
    batch: ContinuousBatch
    base: str | None = None
    """The name of the model that this one was trained from, where that is served too."""

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return context_length(self.loaded.model)

    @cached_property
    def num_parameters(self) -> int:
        """Its weights."""
        return int(self.loaded.model.num_parameters())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of its weights in memory."""
        return sum(one.numel() * one.element_size() for one in self.loaded.model.parameters())

    @cached_property
    def modified_at(self) -> datetime:
        """When its newest file was written, UTC."""
        return datetime.fromtimestamp(
            max((file.stat().st_mtime for file in _files(self.path)), default=0), timezone.utc
        )

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits that tell it from others: over names, sizes and times of its files. No weight is read for it."""
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(self.path)]
        return hashlib.sha256(json.dumps([self.name, str(self.path.absolute()), facts]).encode()).hexdigest()


class Models:
    """The models of a server by name; the first is the one that was named first."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        assert models
        self._models = {model.name: model for model in models}
        assert len(self._models) == len(models)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model that is called `name`, with Ollama's `:latest` behind it or without. Raises UnknownModelError."""
        wanted = name.strip().removesuffix(":latest").lower()
        for model in self:
            if model.name.lower() == wanted:
                return model
        raise UnknownModelError(f"model '{name}' not found; there are {', '.join(self._models)}")


def load_models(
    config: Config, compare: Sequence[str] = (), *, limits: Limits | None = None, notify: Notify = ignore
) -> Models:
    """The model that `config` names, its base where it was trained here, and those of `compare`. Raises InputError.

    A run's trained model is called `tuned`, its base `base`; any other by the last part of its name. A number is put behind a
    name that is taken.
    """
    limits = limits or Limits()
    served: list[ServedModel] = []
    for number, name in enumerate((config.model.name_or_path, *compare)):
        _add(served, _named(config, name), limits, notify, is_first=number == 0)
    return Models(served)


def _add(served: list[ServedModel], config: Config, limits: Limits, notify: Notify, *, is_first: bool) -> None:
    name = config.model.name_or_path
    base_name = _base_name(name, notify)
    own = TUNED if is_first and _is_run(name) else _short(name)
    path = resolve_model(name, notify)
    if base_name is None:
        loaded = LoadedModel.load(config, notify)
        served.append(_sharing(_served(_free(own, served), loaded, path, limits), served))
        return
    below = resolve_model(base_name, notify)
    base = next((one for one in served if one.path == below), None)
    base_model = base.loaded if base else LoadedModel.load(_named(config, base_name), notify)
    loaded = _beside(base_model, below, path, config, notify) or LoadedModel.load(config, notify)
    trained = _sharing(_served(_free(own, served), loaded, path, limits), served)
    if base is None:
        # Under the template of the training, which its own folder may not name.
        base_model = replace(base_model, encoder=loaded.encoder)
        base = _served(_free(BASE if is_first else f"{own}-{BASE}", served), base_model, below, limits)
        served += [replace(trained, base=base.name), _sharing(base, [*served, trained])]
    else:
        served.append(replace(trained, base=base.name))


def _beside(base: LoadedModel, below: Path, path: Path, config: Config, notify: Notify) -> LoadedModel | None:
    """The adapter in `path` beside the weights of `base`, which came from `below`; None where it has to be merged."""
    if not is_adapter(path) or is_adapter(below) or base_path(path, notify) != below:
        return None
    if (model := beside(base.model, path)) is None:
        return None
    forget_decoders(model)
    give_back_laid_out(base.model)  # one copy at a time; a request lays out again what it needs
    is_compiled = isinstance(laid_out(model)[1], CompiledModel)
    give_back_laid_out(model)
    if not is_compiled:
        return None
    config, tokenizer = with_saved_template(config), load_tokenizer(path)
    check_vocabulary(model, tokenizer, path)
    return LoadedModel(model, load_encoder(tokenizer, config), config)


def _named(config: Config, name: str) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": name})})


def _served(name: str, loaded: LoadedModel, path: Path, limits: Limits) -> ServedModel:
    context = context_length(loaded.model)
    longest = limits.max_prompt_tokens + limits.max_new_tokens if context == UNLIMITED else context
    batch = ContinuousBatch(
        loaded.model,
        stop_token_ids(loaded.model, loaded.encoder),
        max_rows=loaded.config.generate.batch_size,
        longest=longest,
    )
    return ServedModel(name, loaded, path, batch)


def _base_name(name: str, notify: Notify) -> str | None:
    """What the model `name` was trained from, where it is a run or an adapter and that can be found."""
    path = Path(name).expanduser()
    if _is_run(name):
        found = base_of_run(path)
    elif is_adapter(path):
        found = adapter_base(path).name
    else:
        return None
    try:
        resolve_model(found)
    except ModelError as error:
        notify(f"{name}: answers without its base: {error}")
        return None
    return found


def base_of_run(path: Path) -> str:
    """The name of the model that a run began with, a relative folder as it is from here."""
    record = read_object(path / _RUN)
    try:
        name, began_in = str(record["config"]["model"]["name_or_path"]), Path(record["folder"])
    except (KeyError, TypeError):
        raise ModelError(f"{path / _RUN} names no base model (config.model.name_or_path); restore it") from None
    return str(began_in / name) if not Path(name).exists() and (began_in / name).exists() else name


def _is_run(name: str) -> bool:
    return (Path(name).expanduser() / _RUN).is_file()


def _short(name: str) -> str:
    """The last part of a path; a Hub id or a name is as it is."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    whole = path.resolve()
    if whole.name in ("model", "adapter") and (whole.parent / _RUN).is_file():
        whole = whole.parent  # what a run trained is called as the run
    return whole.stem if whole.is_file() else whole.name


def _free(name: str, served: Sequence[ServedModel]) -> str:
    taken = {one.name.lower() for one in served}
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(one for one in names if one.lower() not in taken)


def _sharing(model: ServedModel, others: Sequence[ServedModel]) -> ServedModel:
    """`model`, with each weight that one of `others` has, too, in the memory of that one."""
    if sum(share_equal_weights(model.loaded.model, other.loaded.model) for other in others):
        model.batch.give_back_weights()  # which were laid out in the memory that is free now
    return model


def share_equal_weights(model: torch.nn.Module, other: torch.nn.Module) -> int:
    """Let `model` use the memory of `other` for the weights that are equal in both; how many bytes that saves."""
    theirs = {name.replace(".base_layer", ""): one for name, one in other.named_parameters()}
    saved = 0
    for name, own in model.named_parameters():
        one = theirs.get(name.replace(".base_layer", ""))
        if one is None or one.shape != own.shape or one.dtype != own.dtype or one.device != own.device:
            continue
        if one.data_ptr() != own.data_ptr() and torch.equal(one, own):
            own.data = one.data
            saved += own.numel() * own.element_size()
    return saved


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".json"))
