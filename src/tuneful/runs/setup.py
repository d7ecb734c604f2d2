"""A run is set up: data read, model loaded, folder made or resumed; then layout, compute dtype and optimizer are chosen.

`RunState` is what all phases of a run share, and `Engine` what those that compute share. Both are made here, and everything
that a phase needs stands in them by name: `training.py` and `measure.py` are functions of the two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from tuneful.batch.order import Mixture, all_steps
from tuneful.config import PREFERENCE_OBJECTIVES, Config, JudgeConfig
from tuneful.console import Terminal
from tuneful.data.read import stream_data
from tuneful.encoding.documents import with_own_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset, Subset, apart, load_encoder, prepare_data
from tuneful.encoding.replay import Replay
from tuneful.errors import ConfigError, InputError
from tuneful.evaluation.checks import Check, metrics_of, read_checks
from tuneful.evaluation.forgetting import GeneralText, read_general
from tuneful.evaluation.gate import Condition, check_headline, check_measurable, parse_gate
from tuneful.evaluation.task_comparison import metric_names
from tuneful.evaluation.task_files import Task
from tuneful.evaluation.tasks import tasks_of
from tuneful.files import cache_root
from tuneful.judge.run import check_judge_is_there
from tuneful.model.adapter import read_adapter
from tuneful.model.attention import ask_for
from tuneful.model.load import Pretrained, context_length, fingerprint, load_base, load_from, resolve_model
from tuneful.model.memory import give_back_freed_memory, keep_freed_memory, stop_keeping_freed_memory
from tuneful.model.names import is_adapter
from tuneful.model.native import describe as describe_kernels
from tuneful.model.native import kernels
from tuneful.model.precision import choose_device, choose_dtype
from tuneful.model.quantize import check_4_bits, compute_in
from tuneful.model.saved_template import with_saved_template
from tuneful.runs.data_files import check_sides, write_data
from tuneful.runs.disk import make_sure_of_room
from tuneful.runs.environment import changed_machine, describe_machine, peak_memory_bytes
from tuneful.runs.fits import check_fits, placed, weights_of
from tuneful.runs.folder import RunDir, new_run_path
from tuneful.runs.method import (
    Method,
    begin_method,
    continued_settings,
    doubtful_rate,
    method_in_words,
    rates_in_words,
    replay_in_words,
)
from tuneful.runs.mixing import read_mixture, replay_of
from tuneful.runs.progress import show_data
from tuneful.runs.resume import begin_or_resume, training_identity
from tuneful.runs.schema import (
    TORCH_KERNELS,
    Choices,
    DataDocument,
    Environment,
    Layout,
    RunRecord,
    TrainedModel,
    as_row,
    read_strictly,
)
from tuneful.runs.siblings import choices_of_siblings
from tuneful.runs.trackers import check_installed
from tuneful.signals import Signals
from tuneful.train.distributed import ProcessGroup, on_main_first
from tuneful.train.layout import choose_layout, set_dropout
from tuneful.train.memory import has_large_base
from tuneful.train.optimizer import AdamW
from tuneful.train.placement import target_cost
from tuneful.train.slices import shard_by_slices, weights_seen_in


@dataclass(slots=True)
class RunState:
    """What the phases of one run share.

    `config` has `data.max_length` within the model's context. `pretrained` and `method` are those that are trained, and after
    an adapter was merged the merged ones; `group` knows whether the model is sharded, which `prepare_engine` does.
    `dtype` is the compute dtype. `conditions` are those of `report.gate`, `checks` those of `evaluation.checks`,
    `general_texts` the passages of `report.general`, `tasks` the files of `evaluation.tests`. `asked` are the test records that
    are answered, `documents` those that are read. `audit` is what data.json holds, `mixture` in which shares files come;
    `siblings` may have computed the same before their first step. Each phase has taken `phase_seconds`, was to take
    `estimated_seconds`, and the model took `loading_seconds` to load.
    """

    verb: str
    config: Config
    folder: RunDir
    terminal: Terminal
    signals: Signals
    group: ProcessGroup
    device: torch.device
    dtype: torch.dtype
    pretrained: Pretrained
    model_sha256: str
    method: Method
    encoder: Encoder
    dataset: Dataset
    asked: Subset
    documents: Subset
    mixture: Mixture | None
    replay: Replay | None
    audit: DataDocument
    conditions: tuple[Condition, ...]
    checks: tuple[Check, ...]
    general_texts: list[GeneralText]
    tasks: list[Task]
    started: datetime
    phase_seconds: dict[str, float] = field(default_factory=dict)
    loading_seconds: float = 0.0
    estimated_seconds: dict[str, float] = field(default_factory=dict)
    siblings: tuple[Path, ...] = ()

    @property
    def model(self) -> PreTrainedModel:
        """The model that is trained, or was."""
        return self.pretrained.model

    @property
    def epoch_length(self) -> int:
        """Training examples of an epoch: records, or chunks of documents."""
        return len(self.dataset.train.chunks if self.mixture is None else self.mixture)

    def step_indices(self) -> Iterator[list[int]]:
        """The training examples of every step, by index, in the order in which they are trained."""
        train = self.config.train
        examples = self.mixture or self.epoch_length
        return all_steps(examples, train.batch_size, train.seed, train.num_train_epochs, train.max_steps)

    @property
    def given_name(self) -> str:
        """What the run was begun with, as the user called it: the adapter that goes on being trained, or the model."""
        return str(self.pretrained.adapter or self.pretrained.name)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time within the block counts as that of the phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, sentences: Sequence[str]) -> None:
        """Print each of `sentences` as a warning."""
        for sentence in sentences:
            self.terminal.say(sentence, style="yellow")

    def take_model(self, model: PreTrainedModel) -> None:
        """Continue with `model`, which holds all that was trained: there is no adapter any more."""
        self.method = replace(self.method, adapter=None)
        self.pretrained = replace(self.pretrained, model=model.to(self.device).eval())
        ask_for(self.model, self.config.model.attn_implementation)


@dataclass(frozen=True, slots=True)
class Engine:
    """How a run computes, once that is chosen: the layout of its batches, its compute dtype, its optimizer."""

    layout: Layout
    dtype: torch.dtype
    optimizer: AdamW


def set_up(
    data: str | Sequence[str],
    config: Config,
    output: Path | None,
    terminal: Terminal,
    signals: Signals,
    group: ProcessGroup,
    *,
    verb: str,
    allow_changed: Sequence[str],
) -> RunState:
    """Read the data, load the model, and make the run folder or resume it; the folder is held from here on.

    `verb` is the command, `run` or `train`; `allow_changed` names settings that may differ from those the run was begun with.
    Raises InputError, and leaves no folder, where the request or its input is wrong.
    """
    start = time.perf_counter()
    keep_freed_memory()
    tasks = tasks_of(config.evaluation, config.train.seed) if verb == "run" else []
    tests = metric_names(tasks)
    checks = read_checks(config, others=tests)
    conditions, general_texts, device = _check_request(verb, config, checks, group, tests)
    stream = stream_data(data, config.data, config.train.objective)
    stream.begin()
    folder = _open_folder(output or new_run_path(data, datetime.now()), group)
    with _released_on_error(folder):
        begun_loading = time.perf_counter()
        dtype = _compute_dtype(config, folder, device, group)
        config = with_saved_template(config)
        config, pretrained, group = _load(config, dtype, device, group, terminal)
        loading_seconds = time.perf_counter() - begun_loading
        if (dropout := 0.0 if config.train.objective in PREFERENCE_OBJECTIVES else config.model.dropout) is not None:
            set_dropout(pretrained.model, dropout)
        place = torch.device("cpu") if group.sharded else device  # where it stays until it is cut up
        with weights_seen_in(pretrained.model, _held(config, dtype)) if group.sharded else nullcontext():
            method = begin_method(pretrained.model, config, place, pretrained.adapter)
        if has_large_base(pretrained.model) or group.sharded:  # what is gathered and sent leaves holes of many sizes
            stop_keeping_freed_memory()
        config = with_own_template(_within_context(config, pretrained.model, terminal), pretrained.tokenizer)
        encoder = load_encoder(pretrained.tokenizer, config)
        dataset = prepare_data(stream, encoder, config, cache_root() / "tokens")
        replay = replay_of(config, encoder, dataset)
        mixture = read_mixture(dataset, config.data)
        asked, documents = apart(dataset.test, config)
        check_sides(verb, config, conditions, dataset.validation, asked, documents, tests)
        model_sha256 = fingerprint(pretrained.begun_with)
        identity = training_identity(config, dataset, replay, model_sha256)
        started, phase_seconds = begin_or_resume(folder, data, verb, config, identity, allow_changed, terminal)
        folder.write_config(config)
        audit = write_data(folder, dataset, mixture, encoder, config)
    phase_seconds["setup"] = phase_seconds.get("setup", 0.0) + time.perf_counter() - start
    return RunState(
        verb=verb,
        config=config,
        folder=folder,
        terminal=terminal,
        signals=signals,
        group=group,
        device=device,
        dtype=dtype,
        pretrained=pretrained,
        model_sha256=model_sha256,
        method=method,
        encoder=encoder,
        dataset=dataset,
        asked=asked,
        documents=documents,
        mixture=mixture,
        replay=replay,
        audit=audit,
        conditions=conditions,
        checks=checks,
        general_texts=general_texts,
        tasks=tasks,
        started=started,
        phase_seconds=phase_seconds,
        loading_seconds=loading_seconds,
    )


def prepare_engine(run: RunState) -> Engine:
    """Show the data; choose layout and compute dtype, or take those that the run was begun with; make the optimizer.

    Raises ConfigError where the disk has no room for what the run will write.
    """
    confidence = run.config.report.confidence if run.verb == "run" else None
    show_data(run.dataset, run.audit, run.encoder.text, run.terminal, confidence)
    if run.group.sharded:
        frozen_dtype = None if run.method.adapter is None else run.dtype
        shard_by_slices(run.model, run.dtype, run.device, run.group.replicas, frozen_dtype=frozen_dtype)
        give_back_freed_memory()
    if (choices := run.folder.begun.choices) is None:
        own = as_row(_choices(run)) if run.group.is_main or run.group.sharded else None
        chosen = run.group.broadcast(own)
        choices = read_strictly(Choices, chosen, "the main rank")
        run.folder.write_record(replace(run.folder.begun, choices=choices))
    layout, dtype = choices.layout, getattr(torch, choices.dtype)
    _show_model(run, choices)
    run.warn([sentence for sentence in (doubtful_rate(run.config),) if sentence])
    run.warn(changed_machine(choices, torch.get_num_threads(), kernels_in_use(run.device)))
    compute_in(run.model, dtype)
    engine = Engine(layout, dtype, AdamW(run.model, run.config.train, dtype, run.group))
    if run.group.is_main and not run.folder.has_model:
        make_sure_of_room(
            run.folder, run.config, run.model, engine.optimizer, run.dataset, run.epoch_length, run.terminal
        )
    write_environment(run)
    give_back_freed_memory()  # the self-check took much
    return engine


def write_environment(run: RunState, *, finished: bool = False) -> str | None:
    """Write environment.json: what the run ran on and with, and how long each phase took; the time now where it is `finished`."""
    choices, method = run.folder.begun.choices, run.method
    assert choices is not None, "nothing was chosen yet"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds") if finished else None
    run.folder.write_document(
        "environment.json",
        Environment(
            **describe_machine(),
            device=str(run.device),
            dtype=choices.dtype,
            kernels=kernels_in_use(run.device),
            layout=choices.layout.name,
            layout_reason=choices.layout.reason,
            layout_note=choices.layout.note,
            model=TrainedModel(run.given_name, method.num_parameters, method.num_trainable, run.model_sha256),
            started=run.started.isoformat(timespec="seconds"),
            finished=now,
            phase_seconds={name: round(seconds, 2) for name, seconds in run.phase_seconds.items()},
            estimated_seconds={name: round(seconds, 2) for name, seconds in run.estimated_seconds.items()} or None,
            peak_memory_bytes=peak_memory_bytes(run.device),
        ),
    )
    return now


def kernels_in_use(device: torch.device) -> str:
    """Which kernels compute, as far as it shows in the last bits."""
    if (library := kernels(device, torch.float32)) is None:
        return TORCH_KERNELS
    return "compiled (matrix products too)" if library.has_matrix_products() else "compiled"


def _check_request(
    verb: str, config: Config, checks: Sequence[Check], group: ProcessGroup, tests: Sequence[str]
) -> tuple[tuple[Condition, ...], list[GeneralText], torch.device]:
    """The gate's conditions, the general text and the device; InputError where the machine has not what `config` asks for."""
    general_texts, metrics = read_general(config.report.general), metrics_of(checks)
    conditions = parse_gate(config.report.gate, others=(*tests, *(spec.name for spec in metrics)))
    has_judge = config.judge.model is not None
    check_headline(config.report.headline, metrics, has_judge=has_judge)
    check_measurable(conditions, has_general=bool(general_texts), has_judge=has_judge)
    if has_judge and verb == "run" and group.is_main:
        check_judge_is_there(config)
    if verb == "run" and not has_judge and config.judge != JudgeConfig():
        raise ConfigError("the section judge is ignored where no judge is named; set judge.model (--judge), or drop it")
    device = group.own_device(choose_device(config.model.device))
    check_installed(config.train.report_to)
    if config.train.method == "qlora":
        check_4_bits(device)
    return conditions, general_texts, device


def _open_folder(path: Path, group: ProcessGroup) -> RunDir:
    """The run folder, which the main rank holds and the others follow."""
    folder = RunDir(path) if group.is_main else None
    record = as_row(folder.record) if folder and folder.record else None
    found = group.broadcast([str(path), record] if folder else None)
    if folder:
        return folder
    return RunDir.following(Path(found[0]), read_strictly(RunRecord, found[1], found[0]) if found[1] else None)


@contextmanager
def _released_on_error(folder: RunDir) -> Iterator[None]:
    """Let go of the folder where the block fails; where the request is at fault an empty folder is removed."""
    try:
        yield
    except InputError:
        folder.remove_if_empty()
        raise
    except BaseException:
        folder.close()
        raise


def _within_context(config: Config, model: PreTrainedModel, terminal: Terminal) -> Config:
    """A record longer than the model's context cannot be computed: `data.max_length` is lowered to it."""
    if (context := context_length(model)) >= config.data.max_length:
        return config
    terminal.say(f"data.max_length is lowered to {context}, the context of this model")
    return config.model_copy(update={"data": config.data.model_copy(update={"max_length": context})})


def _compute_dtype(config: Config, folder: RunDir, device: torch.device, group: ProcessGroup) -> torch.dtype:
    """The compute dtype that the run was begun with, else the one that the main rank chooses."""
    if folder.record and folder.record.choices:
        begun: torch.dtype = getattr(torch, folder.record.choices.dtype)
        return begun
    adapts, wanted = config.train.method != "full", config.model.dtype
    chosen = choose_dtype(wanted, device, cache_root(), adapts=adapts) if group.is_main else None
    name = group.broadcast(str(chosen).removeprefix("torch.") if chosen else None)
    found: torch.dtype = getattr(torch, name)
    return found


def _load(
    config: Config, dtype: torch.dtype, device: torch.device, group: ProcessGroup, terminal: Terminal
) -> tuple[Config, Pretrained, ProcessGroup]:
    """The model, where it fits: one that cannot be trained in the memory there is, is refused by its headers.

    A base that stays as it is is loaded in the compute dtype or 4 bits; `config` says what an adapter is that goes on beside it.
    The group that is returned knows whether the model is to be sharded: then its weights stay in their files for now.
    """
    name = config.model.name_or_path
    in_4_bits = config.train.method == "qlora" and device.type != "cuda"
    held = dtype if in_4_bits else _held(config, dtype)

    def find() -> tuple[Path, Config, bool]:
        path = resolve_model(name, terminal.say)
        continues = is_adapter(path) and config.train.method != "full" and not config.lora.create_new_adapter
        return path, continued_settings(config, read_adapter(path)) if continues else config, continues

    path, config, continues = on_main_first(group, find)
    if group.size == 1:  # of several, each may hold a part
        check_fits(weights_of(path, terminal.say), name, config, device)
    group = placed(group, config, path, held, device)
    begin = partial(load_base if continues else partial(load_from, name=name), path, notify=terminal.say, dtype=held)
    needs_values = config.train.method == "lora" and config.lora.use_dora  # its norms are those of the weights
    load = partial(begin, in_4_bits=in_4_bits, mapped=group.sharded and not needs_values)
    pretrained: Pretrained = on_main_first(group, load)
    return config, pretrained, replace(group, target_cost=target_cost(pretrained.model)) if group.size > 1 else group


def _held(config: Config, dtype: torch.dtype) -> torch.dtype:
    """The number format that weights are loaded in, but those of 4 bits."""
    return dtype if config.train.method == "lora" else torch.float32


def _choices(run: RunState) -> Choices:
    """What is chosen for the machine at hand and kept for the whole run, also where another machine resumes it."""
    known = choices_of_siblings(run.siblings, run.folder.begun, torch.get_num_threads(), kernels_in_use(run.device))
    if known is not None:
        return known
    dtype = run.dtype
    with run.phase("self_check"):
        others = [run.dataset.validation.chunks, run.dataset.test.chunks]
        if run.replay is not None:
            others.append(run.replay.examples)
        layout = choose_layout(run.model, run.dataset.train.chunks, run.config.train, dtype, others)
    name = cast(Literal["float32", "bfloat16", "float16"], str(dtype).removeprefix("torch."))
    return Choices(name, layout, num_threads=torch.get_num_threads(), kernels=kernels_in_use(run.device))


def _show_model(run: RunState, choices: Choices) -> None:
    layout = choices.layout
    run.terminal.heading("Model")
    run.terminal.facts(
        {
            "model": f"{run.given_name}, {run.method.num_parameters / 1e6:,.1f} M parameters",
            "method": method_in_words(run.method, run.config),
            "compute dtype": f"{choices.dtype} on {run.device}; master weights float32",
            **({"kernels": describe_kernels()} if run.device.type == "cpu" else {}),
            "layout": layout.name + (f": {layout.reason}" if layout.reason else ""),
            **({"transformers": layout.note} if layout.note else {}),
            **rates_in_words(run.config),
            **({"replay": replay_in_words(run.replay)} if run.replay is not None else {}),
            **({"ranks": f"{run.group.size}, {run.group.strategy}"} if run.group.size > 1 else {}),
        }
    )
