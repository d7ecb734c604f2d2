"""A finished run is opened again: its records as they were encoded, its model, and every set of weights that it kept.

For commands that ask about a training afterwards (`explain`). The records are those of RUN/data, encoded once more; that they
come to the tokens that were trained on is proved by the sha256 in run.json before anything is computed with them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuneful.config import Config, load_config
from tuneful.config.load import read_yaml
from tuneful.console import Terminal
from tuneful.data.read import Record, read_data, settings_of_side
from tuneful.data.split import TEST, TRAIN, VALIDATION
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import load_encoder
from tuneful.encoding.replay import Replay, read_replay
from tuneful.errors import DataError, ModelError
from tuneful.evaluation.answers import check_unchanged
from tuneful.files import read_lines
from tuneful.influence.parameters import trainable
from tuneful.model.adapter import read_adapter
from tuneful.model.freeze import freeze_lower_layers
from tuneful.model.load import Pretrained, fingerprint, load_base, load_from, load_model, resolve_model
from tuneful.model.lora import restore_adapter
from tuneful.model.names import is_adapter
from tuneful.model.precision import choose_device
from tuneful.runs.folder import METRICS, TRAINING, read_record
from tuneful.runs.method import begin_method, continued_settings
from tuneful.runs.resume import digest_of
from tuneful.runs.schema import RunRecord, Step, TrainingSummary, load_document, noted_sums, read_loosely
from tuneful.train.checkpoint import Checkpoint, whole_checkpoints
from tuneful.types import Conversation, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRun:
    """The folder of a run whose training is done, what was asked for, and which weights it ended with."""

    path: Path
    record: RunRecord
    config: Config
    training: TrainingSummary

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter was trained, and not the model's own weights."""
        return self.config.train.method != "full"

    def grad_norms(self) -> dict[int, float]:
        """The gradient's norm before clipping, by step, as far as metrics.jsonl says."""
        rows = (line.row for line in read_lines(self.path / METRICS))
        steps = [read_loosely(Step, row) for row in rows if row is not None and "loss" in row]
        return {one.step: one.grad_norm for one in steps}


@dataclass(frozen=True, slots=True, eq=False)
class TrainedOn:
    """The training records with their examples and where they were read first, in the order in which steps count them."""

    conversations: Sequence[Conversation]
    examples: Sequence[Example]
    sources: Sequence[str]
    replay: Replay | None


@dataclass(frozen=True, slots=True, eq=False)
class KeptWeights:
    """Weights of the training after `step` steps: those of a `checkpoint`; without one, those that it began with at step 0, else
    those that it ended with."""

    step: int
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """The trained model in float32, an adapter beside its base where one was trained, and the run's encoder.

    What was trained is trainable, and nothing else. `initial` is what it was before the first step, by name; None where the model
    that training began with is not there any more.
    """

    model: PreTrainedModel
    encoder: Encoder
    initial: Mapping[str, torch.Tensor] | None


def open_finished(path: Path) -> FinishedRun:
    """The run in the folder `path`; DataError where it is none, its training is not done, or it is damaged."""
    path = path.absolute()
    record = read_record(path) if path.is_dir() else None
    if record is None:
        raise DataError(f"{path}: not a run folder, it has no run.json. Give the folder that `tuneful run` wrote")
    if (training := load_document(TrainingSummary, path / TRAINING)) is None:
        command = shlex.join(["tuneful", record.verb, "--resume", str(path)])
        raise DataError(f"{path}: its training is not done. Go on with it: {command}")
    noted = noted_sums(path)
    for name in ("config.yaml", TRAINING, "data/train.jsonl"):
        check_unchanged(path, path / name, noted)
    return FinishedRun(path, record, load_config(begun_with=read_yaml(path / "config.yaml")), training)


def read_trained_on(run: FinishedRun, encoder: Encoder) -> TrainedOn:
    """The records of RUN/data as they were trained on; DataError where they do not come to the same tokens."""
    sides = [_side(run, name, side) for name, side in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))]
    conversations = [[one.conversation for one in records] for records in sides]
    train, validation = (encoder.examples(own) for own in conversations[:2])
    examples = [one for one in train if isinstance(one, Example)]
    held_out = [one for one in validation if isinstance(one, Example)]
    replay, data = None, run.config.data
    if data.replay is not None:
        with _where_it_was_begun(run):
            replay = read_replay(
                data.replay, data.resolved_replay_ratio, encoder, chain(*conversations[1:]), run.config.train.objective
            )
    digest = digest_of(chain(examples, held_out, replay.examples if replay is not None else ()))
    if run.record.training.get("tokens") != f"sha256 {digest}":
        raise DataError(
            f"{run.path / 'data'}: its records do not come to the tokens that were trained on: another version of Tuneful may "
            "have encoded them, or settings that go by file (data.weights, data.formats) weighed them. Train the run again"
        )
    return TrainedOn(conversations[0], examples, [str(one.raw["source"]) for one in sides[0]], replay)


def _side(run: FinishedRun, name: str, side: int) -> Sequence[Record]:
    file = run.path / "data" / f"{name}.jsonl"
    if not file.exists() or not file.stat().st_size:
        return ()
    settings = settings_of_side(run.config.data, side).model_copy(update={"on_error": "stop"})
    return read_data(str(file), settings, objective=run.config.train.objective).records


def load_trained(run: FinishedRun, terminal: Terminal) -> TrainedModel:
    """The model that `run` trained. ModelError where an adapter's base is gone, or is another one."""
    device = choose_device(run.config.model.device)
    load = _with_adapter if run.is_adapter else _whole
    pretrained, initial = load(run, device, terminal)
    return TrainedModel(pretrained.model.eval(), load_encoder(pretrained.tokenizer, run.config), initial)


_Loaded = tuple[Pretrained, Mapping[str, torch.Tensor] | None]


def _whole(run: FinishedRun, device: torch.device, terminal: Terminal) -> _Loaded:
    pretrained = load_model(str(run.path / "model"), terminal.say, dtype=torch.float32)
    pretrained.model.to(device)
    if run.config.train.freeze_layers:
        freeze_lower_layers(pretrained.model, run.config.train.freeze_layers)
    return pretrained, _initial_weights(run, terminal)


def _initial_weights(run: FinishedRun, terminal: Terminal) -> Mapping[str, torch.Tensor] | None:
    """What full finetuning began with, left in its files; None where it is not there any more."""
    name = run.config.model.name_or_path
    with _where_it_was_begun(run), contextlib.suppress(ModelError):
        path = resolve_model(name, terminal.say)
        if _is_what_it_began_with(run, path):
            return dict(load_from(path, name, terminal.say, mapped=True).model.named_parameters())
    return None


def _with_adapter(run: FinishedRun, device: torch.device, terminal: Terminal) -> _Loaded:
    """The base as training began with it, and the trained adapter beside it, its parameters called as they were in training."""
    config, name = run.config, run.config.model.name_or_path
    in_4_bits = config.train.method == "qlora" and device.type != "cuda"
    with _where_it_was_begun(run):
        path = resolve_model(name, terminal.say)
        continues = is_adapter(path) and not config.lora.create_new_adapter
        if continues:
            config = continued_settings(config, read_adapter(path))
            pretrained = load_base(path, terminal.say, torch.float32, in_4_bits=in_4_bits)
        else:
            pretrained = load_from(path, name, terminal.say, torch.float32, in_4_bits=in_4_bits)
        if not _is_what_it_began_with(run, pretrained.begun_with):
            raise ModelError(f"{name}: is not the model that {run.path} began with; put that one back in its place")
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"activation_checkpointing": False})}
        )
        method = begin_method(pretrained.model, config, device, pretrained.adapter)
    initial = {name: one.detach().clone() for name, one in trainable(pretrained.model).items()}
    restore_adapter(method.adapter, run.path / "adapter")
    return pretrained, initial


def _is_what_it_began_with(run: FinishedRun, folder: Path) -> bool:
    with contextlib.suppress(OSError):  # some of it is gone
        return run.record.training.get("model") == f"sha256 {fingerprint(folder)}"
    return False


@contextlib.contextmanager
def _where_it_was_begun(run: FinishedRun) -> Iterator[None]:
    """Inside, paths of the configuration mean what they meant when the run was begun."""
    folder = run.record.folder if os.path.isdir(run.record.folder) else os.getcwd()
    with contextlib.chdir(folder):
        yield


def kept_weights(run: FinishedRun, *, with_initial: bool) -> list[KeptWeights]:
    """The weights before the first step, where they are known (`with_initial`), and the checkpoints on the way to those that the
    run ended with, the oldest first; those alone where there is neither."""
    last = run.training.kept_step
    found = [KeptWeights(one.step, one) for one in whole_checkpoints(run.path / "checkpoints") if one.step <= last]
    before = [one for one in found if one.step < last]  # what stands at the end has no step after it
    initial = [KeptWeights(0, None)] if with_initial else []
    return [*initial, *before] or found or [KeptWeights(last, None)]


@contextlib.contextmanager
def before_training(trained: TrainedModel) -> Iterator[None]:
    """Inside, the trainable parameters are what they were before the first step, which must be known. Only those of another
    number format, or beside another device, are copied."""
    parameters = trainable(trained.model)
    begun, ended = _tensors(trained, KeptWeights(0, None)), {name: one.data for name, one in parameters.items()}
    try:
        for name, tensor in begun.items():
            parameters[name].data = tensor.to(parameters[name])
        yield
    finally:
        for name, tensor in ended.items():
            parameters[name].data = tensor


def set_weights(trained: TrainedModel, kept: KeptWeights) -> None:
    """Give the trainable parameters the weights that were kept; those that the run ended with are its own already."""
    if kept.checkpoint is None and kept.step:
        return
    parameters = trainable(trained.model)
    for name, tensor in _tensors(trained, kept).items():
        parameters[name].data.copy_(tensor)


def _tensors(trained: TrainedModel, kept: KeptWeights) -> Mapping[str, torch.Tensor]:
    """The weights of a checkpoint, or those before the first step, by the names of trainable parameters. ModelError where they
    are of another model."""
    tensors = trained.initial if kept.checkpoint is None else kept.checkpoint.tensors("weights")
    assert tensors is not None, kept
    parameters = trainable(trained.model)
    for name in tensors if kept.checkpoint else parameters:
        if name not in parameters or name not in tensors or parameters[name].shape != tensors[name].shape:
            place = kept.checkpoint.path if kept.checkpoint else "the model that training began with"
            raise ModelError(f"{place}: {name} is no parameter of the model of this run")
    return tensors if kept.checkpoint else {name: tensors[name] for name in parameters}
