"""The whole job, a method a phase: what `tuneful run` and `tuneful train` do, in the order in which they do it.

A job owns one run folder. Every phase writes what it found before the next begins, and a job on the folder of an unfinished
run takes what it finds there: answers as they were given, the training from its newest whole checkpoint, the model where it
was saved. An interrupted training leaves a checkpoint of where it stood.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneful.answers import answer_rows, request_sha256, write_own_template
from tuneful.comparing import apply_gate, compare_models, comparison_document, show_comparison
from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.data.audit import audit_sides
from tuneful.data.chat_template import load_template
from tuneful.data.encode import TextEncoder
from tuneful.data.order import num_steps
from tuneful.data.prepare import describe, make_encoder, prepare_data
from tuneful.data.read import Record, stream_data
from tuneful.data.replay import Replay, read_replay
from tuneful.environment import describe_machine
from tuneful.errors import ConfigError, InputError
from tuneful.evaluating import judge_run, refuse_absent_judge
from tuneful.infer.generate import answer
from tuneful.interruption import Interrupted, Signals
from tuneful.journal import Journal
from tuneful.judge.answered import kind_of
from tuneful.judge.compare import Comparison
from tuneful.judge.forgetting import (
    GeneralScore,
    covers,
    read_general,
    score_of_row,
    score_passages,
    score_samples,
    write_samples,
)
from tuneful.judge.gate import Outcome, parse_gate, refuse_unmeasurable
from tuneful.judge.metrics import AnswerScores, score_answer
from tuneful.method import begin_method, merged_model, method_in_words, rates_in_words, replay_in_words
from tuneful.model.builtin import cache_root
from tuneful.model.export import Card, save_model, verify_export
from tuneful.model.load import fingerprint, load_model
from tuneful.model.lora import without_adapter
from tuneful.model.memory import keep_freed_memory
from tuneful.model.native import describe as describe_kernels
from tuneful.model.native import kernels
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.model.quantize import compute_in, refuse_4_bits
from tuneful.report.build import build_report
from tuneful.resuming import refuse_changes, training_identity
from tuneful.rundir import Difference, RunDir, differences, new_run_path
from tuneful.tracking import open_trackers, refuse_missing
from tuneful.train.checkpoint import (
    checkpoint_bytes,
    hand_over,
    newest_checkpoint,
    refuse_non_finite,
    save_checkpoint,
    set_aside,
)
from tuneful.train.distributed import ALONE, World, choose_strategy, on_main_first, put_whole, shard, whole
from tuneful.train.loop import (
    Event,
    Layout,
    Notice,
    State,
    Step,
    choose_layout,
    finetune,
    go_on,
    record_nll,
)
from tuneful.train.loss import set_dropout
from tuneful.train.optimizer import AdamW
from tuneful.train.progress import RecordLedger, rank
from tuneful.types import Answer, Example
from tuneful.watching import show_data, training_progress

TORCHS_KERNELS = "torch's"
_VERIFIED_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class JobResult:
    """Where the run is, its report, its trained model, and the comparison where there was a test set to compare on.

    `gate` says what became of each condition of `report.gate`; `judge.gate.refuse_unmet` raises where one is not met.
    """

    path: Path
    report: Path
    model: Path
    comparison: Comparison | None
    gate: tuple[Outcome, ...] = ()


class Job:
    """One run: data read, model loaded and the run folder made, or taken up again, when it is constructed.

    `verb` is the command that it does; `allow_changed` names settings that may differ from those the run was begun with.
    The folder is held until `close`.
    """

    def __init__(
        self,
        data: str | Sequence[str],
        config: Config,
        output: Path | None,
        terminal: Terminal,
        signals: Signals | None = None,
        world: World = ALONE,
        *,
        verb: str = "run",
        allow_changed: Sequence[str] = (),
    ) -> None:
        self.config, self.terminal, self.signals, self.world = config, terminal, signals or Signals(), world
        self.phase_seconds: dict[str, float] = {}
        keep_freed_memory()
        self.conditions = parse_gate(config.report.gate)
        self.outcomes: list[Outcome] = []
        self.general_texts = read_general(config.report.general)
        has_judge = config.judge.model is not None
        refuse_unmeasurable(self.conditions, has_general=bool(self.general_texts), has_judge=has_judge)
        if has_judge and verb == "run" and world.is_main:
            refuse_absent_judge(config)
        self.device = world.own_device(choose_device(config.model.device))
        refuse_missing(config.train.report_to)
        if config.train.method == "qlora":
            refuse_4_bits(self.device)
        stream = stream_data(data, config.data)
        stream.begin()
        self.run = self._open_run(output or new_run_path(data, datetime.now()))
        try:
            self.pretrained = on_main_first(world, lambda: load_model(config.model.name_or_path, terminal.say))
            self.model = self.pretrained.model
            if config.model.dropout is not None:
                set_dropout(self.model, config.model.dropout)
            self.method = begin_method(self.model, config, self.device)
            self._limit_length_to_context()
            tokenizer = self.pretrained.tokenizer
            text = TextEncoder(tokenizer, load_template(config.template, tokenizer))
            self.encoder = make_encoder(text, self.config.data)
            self.dataset = prepare_data(stream, self.encoder, self.config, cache_root() / "tokens")
            self._read_replay()
            if self.config.train.early_stopping_patience and not len(self.dataset.validation):
                raise ConfigError(
                    "`train.early_stopping_patience` needs validation records: raise data.validation_share"
                )
            if self.conditions and verb == "run" and not len(self.dataset.test):
                raise ConfigError("`report.gate` needs test records: raise data.test_share")
            self._begin_or_go_on(data, verb, allow_changed)
            self.run.write_config(self.config)
            self._write_data()
        except InputError:
            self.run.remove_if_empty()
            raise
        except BaseException:
            self.run.close()
            raise

    def close(self) -> None:
        """Let go of the run folder."""
        self.run.close()

    def prepare_training(self) -> None:
        """Show the data; choose and prove the layout, or take what the run was begun with; begin the optimizer."""
        show_data(self.dataset, self.audit, self.encoder.text, self.terminal)
        record = dict(self.run.record or {})
        if "choices" not in record:
            record["choices"] = self.world.agreed(self._choices() if self.world.is_main else None)
            self.run.write_record(record)
        choices = record["choices"]
        self.layout, self.dtype = Layout(**choices["layout"]), getattr(torch, choices["dtype"])
        strategy = self._choose_strategy()
        self.terminal.heading("Model")
        self.terminal.facts(
            {
                "model": f"{self.pretrained.name}, {self.method.num_parameters / 1e6:,.1f} M parameters",
                "method": method_in_words(self.method, self.config),
                "products": f"{choices['dtype']} on {self.device}; master weights float32",
                **({"kernels": describe_kernels()} if self.device.type == "cpu" else {}),
                "layout": self.layout.name + (f": {self.layout.reason}" if self.layout.reason else ""),
                **rates_in_words(self.config),
                **({"replay": replay_in_words(self.replay)} if self.replay is not None else {}),
            }
            | ({"ranks": f"{self.world.size}, {strategy}"} if self.world.size > 1 else {})
        )
        conditions = {
            f"{choices['num_threads']} threads": f"{torch.get_num_threads()} threads",
            # A run that was begun before there were compiled kernels says nothing of them.
            f"{choices.get('kernels', TORCHS_KERNELS)} kernels": f"{self._kernels()} kernels",
        }
        for begun, now in conditions.items():
            if begun != now:
                self.terminal.say(
                    f"begun with {begun}, going on with {now}: the same training, but not bit for bit", style="yellow"
                )
        if self.world.sharded:
            shard(self.model, self.dtype)
        compute_in(self.model, self.dtype)
        self.optimizer = AdamW(self.model, self.config.train, self.dtype, self.world)
        self._make_sure_of_room()
        self._write_environment()

    def answer_test_set(self, name: str) -> list[AnswerScores]:
        """The model's answers to the test set, written as answers/{name}.jsonl, and their scores."""
        test, references = self.dataset.test, self._references()
        rows = self.world.agreed(self.run.read_rows(f"answers/{name}.jsonl"))
        if rows is None:
            own = self._own_answers()
            with (
                self._as(name),
                self._phase(f"answers_{name}"),
                self._journal(name) as journal,
                self.terminal.progress(f"{name} answers", len(own), "answers") as advance,
            ):
                given = answer_rows(
                    self.model,
                    self.encoder,
                    test.conversations,
                    self.config.generate,
                    seed=self.config.train.seed,
                    numbers=own,
                    journal=journal,
                    advance=advance,
                )
                rows = [row for _, row in sorted(dict(self.world.gather(list(given.items()))).items())]
                self.run.write_rows(f"answers/{name}.jsonl", rows)
                if journal is not None:
                    journal.forget()
        losses = self.world.agreed(self.run.read_rows(f"answers/{name}-references.jsonl"))
        if losses is None:
            with self._as(name), self._phase(f"references_{name}"):
                nll = record_nll(self.model, references, self.layout)
            losses = [
                {"source": reference.source, "nll": own, "num_tokens": int((reference.weights > 0).sum())}
                for reference, own in zip(references, nll, strict=True)
            ]
            self.run.write_rows(f"answers/{name}-references.jsonl", losses)
        return [
            score_answer(
                row["text"],
                conversation.answered_turns[-1].response,
                ended=row["ended_by"] == "stop",
                reference_nll=loss["nll"],
                reference_tokens=loss["num_tokens"],
            )
            for row, conversation, loss in zip(rows, test.conversations, losses, strict=True)
        ]

    def train(self) -> None:
        """Finetune, from the newest whole checkpoint where there is one; a line of metrics.jsonl an event.

        On a signal a checkpoint is written, unless a second one comes, and Interrupted raised.
        """
        self.terminal.heading("Training")
        if self.world.agreed(self.run.has_model):
            self.terminal.say("trained and saved already")
            return
        train, config = self.dataset.train, self.config.train
        total = num_steps(len(train), config.batch_size, config.num_train_epochs, config.max_steps)
        ledger = RecordLedger(len(train))
        state = self._newest_state(ledger)
        if state.step == 0 and self.config.report.record_losses == "all":
            ledger.before[:] = self._record_losses("before")
        saved_step, saved_at = state.step, time.monotonic()
        trackers = open_trackers(
            config.report_to if self.world.is_main else (), self.run.path, self.config.model_dump()
        )
        events = finetune(
            self.model,
            self.optimizer,
            train.examples,
            self.dataset.validation.examples,
            config,
            self.layout,
            self.sample,
            replay=self.replay,
            ledger=ledger,
            state=state,
            between=self.signals.check if self.world.size == 1 else go_on,
            world=self.world,
        )
        with (
            self._phase("training"),
            training_progress(self.terminal, state.step, total) as show,
            self.signals.waiting(),
        ):
            try:
                for event in events:
                    row = _metrics_row(event)
                    self.run.append_metrics(row)
                    self._warn(trackers.log(row))
                    show(event)
                    if isinstance(event, Step) and self._save_is_due(state.step - saved_step, saved_at):
                        self._save_checkpoint(state, ledger)
                        saved_step, saved_at = state.step, time.monotonic()
                    self._check_signals()
            except Interrupted:
                if state.step > saved_step and not self.signals.insisted:
                    self.terminal.say(f"interrupted: saving a checkpoint of step {state.step}", style="yellow")
                    self._save_checkpoint(state, ledger)
                raise
            finally:
                self._warn(trackers.close())
        self._tell_how_it_ended(state, total)
        if self.config.report.record_losses == "all":
            ledger.after[:] = self._record_losses("after")
        self.run.write_rows("records.jsonl", map(asdict, rank(ledger, train.examples)))

    def save(self) -> None:
        """The trained model as a folder, loaded again and compared before this returns.

        The optimizer is done after this; the model goes on in the precision that it was trained in.
        """
        self.optimizer.masters_to_model()
        saved_before = self.world.agreed(self.run.has_model)
        if not saved_before:
            with self._phase("saving"), self.signals.waiting():
                model = self._whole_model()
                if self.world.is_main:
                    self._save_model(model)
            self._check_signals()
            self.world.wait()
        if self.method.adapter is not None:
            self._take(load_model(str(self.run.model)).model)
        elif saved_before:
            put_whole(self.model, load_model(str(self.run.model)).model.state_dict())
        if not self.world.sharded:
            cast_parameters(self.model, self.dtype)

    def measure_general(self, name: str) -> list[GeneralScore]:
        """What general text, and samples of the base model's own, cost the model; written as general/{name}.jsonl."""
        texts, text = self.general_texts, self.encoder.text
        samples = self._general_scores("base", sampled=True) if name == "tuned" else None
        found = self._general_scores(name)
        if not texts or covers(found, texts, samples):
            return found
        with self._as(name), self._phase(f"general_{name}"):
            scores = score_passages(self.model, text, texts, self.layout)
            if samples is None:
                scores += write_samples(self.model, text, texts, self.layout, seed=self.config.train.seed)
            else:
                scores += score_samples(self.model, text, samples, self.layout)
        self.run.write_rows(f"general/{name}.jsonl", (score.row() for score in scores))
        return scores

    def judge(
        self, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]
    ) -> tuple[Sequence[AnswerScores], Sequence[AnswerScores]]:
        """Both with what the judge of `judge.model` gave each answer; as they came where no judge is named or there."""
        if self.config.judge.model is None:
            return base, tuned
        with self._phase("judging"):
            found = judge_run(self.run.path, self.config, self.terminal) if self.world.is_main else None
        sides = self.world.agreed(found)
        if sides is None:
            return base, tuned
        judged = [
            [replace(scores, judge_score=score) for scores, score in zip(side, sides[name], strict=True)]
            for name, side in (("base", base), ("tuned", tuned))
        ]
        return judged[0], judged[1]

    def compare(
        self,
        base: Sequence[AnswerScores],
        tuned: Sequence[AnswerScores],
        general_base: Sequence[GeneralScore] = (),
        general_tuned: Sequence[GeneralScore] = (),
    ) -> Comparison:
        """Base against tuned on the test set and on general text, written as comparison.json and shown as tables."""
        test = self.dataset.test
        kinds = [kind_of(record.raw) for record in test.records]
        result = compare_models(self.config, base, tuned, kinds, general_base, general_tuned)
        document = comparison_document(
            result,
            sources=[record.source for record in test.records],
            references=[conversation.answered_turns[-1].response for conversation in test.conversations],
            kinds=kinds,
            base=base,
            tuned=tuned,
        )
        show_comparison(result, document["sentence"], self.terminal, ("base", "tuned"))
        self.outcomes = apply_gate(self.conditions, result, document, self.terminal)
        self.run.write_json("comparison.json", document)
        return result

    def finish(self, comparison: Comparison | None = None) -> JobResult:
        """Write what is left to write, build the report, and say where everything is."""
        finished = self._write_environment(finished=True)
        report = Path(self.world.agreed(str(build_report(self.run.path)) if self.world.is_main else None))
        self.run.write_record({**(self.run.record or {}), "finished": finished})
        self.terminal.heading("Written")
        self.terminal.facts({"report": str(report), "model": str(self.run.model), "run": str(self.run.path)})
        return JobResult(self.run.path, report, self.run.model, comparison, tuple(self.outcomes))

    def interrupted(self) -> None:
        """Report what there is of a run that was interrupted, and say how to go on with it."""
        record = self.run.record or {}
        if "choices" in record:
            self._write_environment()
            if self.world.is_main:
                build_report(self.run.path)
        verb = record["verb"]
        self.terminal.say(f"interrupted; go on with: tuneful {verb} --resume {self.run.path}", style="yellow")

    def _open_run(self, path: Path) -> RunDir:
        """The run folder, which the main rank holds and the others follow."""
        run = RunDir(path) if self.world.is_main else None
        found = self.world.agreed([str(path), run.record] if run else None)
        return run or RunDir.following(Path(found[0]), found[1])

    def _choose_strategy(self) -> str:
        """`ddp` or `fsdp`, where there are several ranks; from here on `world` knows whether the model is sharded."""
        if self.world.size == 1:
            return "ddp"
        wanted = self.config.train.strategy
        if self.method.adapter is not None:
            if wanted == "fsdp":
                raise ConfigError("`train.strategy`: fsdp is for full finetuning; an adapter is trained under ddp")
            wanted = "ddp"
        strategy = self.world.agreed(choose_strategy(self.model, wanted))
        self.world = replace(self.world, sharded=strategy == "fsdp")
        return str(strategy)

    def _own_answers(self) -> list[int]:
        """Which test records this rank answers: its share, or all of them where all ranks compute each layer together."""
        everything = range(len(self.dataset.test))
        return list(everything if self.world.sharded else everything[self.world.rank :: self.world.size])

    def _journal(self, name: str) -> AbstractContextManager[Journal | None]:
        """Where this rank's answers are kept as they come; nowhere where all ranks have to give each answer together."""
        if self.world.sharded:
            return nullcontext()
        part = f"{name}.jsonl" if self.world.size == 1 else f"{name}-{self.world.rank}-of-{self.world.size}.jsonl"
        request = request_sha256(
            self.model, self.encoder, self.dataset.test.conversations, self.config.generate, self.config.train.seed
        )
        folder = self.run.path / "answers"
        folder.mkdir(exist_ok=True)
        return Journal(folder / part, request, replace=True)

    def _check_signals(self) -> None:
        """Raise Interrupted where a signal was received, by any rank."""
        if self.world.size == 1:
            self.signals.check()
        elif number := max(self.world.gather([self.signals.received or 0])):
            raise Interrupted(number)

    def _whole_model(self) -> PreTrainedModel:
        """The model to save: this one, or one of its own that the slices of all ranks are gathered into."""
        if not self.world.sharded:
            return self.model
        weights = {name: whole(parameter.detach()).cpu() for name, parameter in self.model.named_parameters()}
        gathered = load_model(self.config.model.name_or_path).model
        put_whole(gathered, weights)
        return gathered

    def _begin_or_go_on(self, data: str | Sequence[str], verb: str, allow_changed: Sequence[str]) -> None:
        """Write run.json, or compare what it says with what is asked for now: ConfigError where that is another training."""
        self._model_sha256 = fingerprint(self.pretrained.folder)
        training = training_identity(self.config, self.dataset, self.replay, self._model_sha256)
        if (record := self.run.record) is None:
            self.started = datetime.now(timezone.utc)
            names = [data] if isinstance(data, str) else list(data)
            record = {"verb": verb, "data": names, "folder": os.getcwd(), "allowed": [], "finished": None}
            record["started"] = self.started.isoformat(timespec="seconds")
        else:
            self.started = datetime.fromisoformat(record["started"])
            self.phase_seconds = dict((self.run.read_json("environment.json") or {}).get("phase_seconds", {}))
            self._go_on(record, verb, differences(record["training"], training), allow_changed)
            record = {**record, "allowed": sorted({*record["allowed"], *allow_changed})}
        self.run.write_record({**record, "config": self.config.model_dump(mode="json"), "training": training})

    def _go_on(
        self, record: Mapping[str, Any], verb: str, changed: Sequence[Difference], allow_changed: Sequence[str]
    ) -> None:
        if verb != record["verb"]:
            raise ConfigError(
                f"{self.run.path}: was begun by `tuneful {record['verb']}`; go on with: tuneful {record['verb']} "
                f"--resume {self.run.path}"
            )
        refuse_changes(self.run.path, changed, allow_changed)
        if self.run.has_model and (
            late := [one.key for one in changed if not one.key.startswith(("generate.", "report."))]
        ):
            raise ConfigError(
                f"{self.run.path}: the model is trained and saved; `{late[0]}` comes too late. Begin another run for it"
            )
        self.terminal.say(f"going on with the run in {self.run.path}, begun {record['started']}")
        for one in changed:
            self.terminal.say(f"  changed: {one.key} was {one.before}, is {one.now}", style="yellow")
        if any(not one.key.startswith("train.") for one in changed):
            self.run.forget(
                *(f"answers/{name}{what}.jsonl" for name in ("base", "tuned") for what in ("", "-references")),
                *(f"general/{name}.jsonl" for name in ("base", "tuned")),
            )

    def _choices(self) -> dict[str, Any]:
        """What the machine decides and a run keeps to: it has to go on as it began wherever it goes on."""
        dtype = choose_dtype(self.config.model.dtype, self.device, cache_root())
        with self._phase("proof"):
            layout = choose_layout(self.model, self.dataset.train.examples, self.config.train, dtype)
        return {
            "dtype": str(dtype).removeprefix("torch."),
            "layout": asdict(layout),
            "num_threads": torch.get_num_threads(),
            "kernels": self._kernels(),
        }

    def _kernels(self) -> str:
        """Who computes, as far as it shows in the last bits."""
        if (library := kernels(self.device, torch.float32)) is None:
            return TORCHS_KERNELS
        return "compiled (products too)" if library.has_products() else "compiled"

    def _newest_state(self, ledger: RecordLedger) -> State:
        """Where the training stands: the newest whole checkpoint's tensors in optimizer and ledger, and its state."""
        checkpoint, damaged = newest_checkpoint(self.run.checkpoints)
        self.world.wait()  # all have looked before anything is moved
        for one in damaged if self.world.is_main else ():
            self.terminal.say(
                f"{one.path} is damaged ({one.reason}) and not used; it is now {set_aside(one)}", style="yellow"
            )
        if checkpoint is None:
            self.run.cut_metrics(0)
            return State()
        document, record = checkpoint.document, self.run.record or {}
        changed = differences(document["training"], record["training"])
        refuse_changes(checkpoint.path, changed, record["allowed"])
        self.optimizer.restore(
            checkpoint.step, checkpoint.tensors("weights"), checkpoint.tensors("optimizer"), checkpoint.tensors("best")
        )
        if "tokens" not in [one.key for one in changed]:  # what was noted of other records says nothing of these
            ledger.load(checkpoint.tensors("records"))
        self.run.cut_metrics(document["metrics_bytes"])
        self.terminal.say(f"going on after step {checkpoint.step}, from {checkpoint.path}")
        return State(**document["state"])

    def disk_bytes(self) -> tuple[int, int]:
        """What the run folder will take: (model, one checkpoint), in bytes, about."""
        weights = self.optimizer.weights()
        best = weights if self.config.train.keep == "best" and len(self.dataset.validation) else {}
        model = sum(4 * parameter.numel() for parameter in self.model.parameters())
        return model, checkpoint_bytes({"weights": weights, "optimizer": self.optimizer.moments(), "best": best})

    def _make_sure_of_room(self) -> None:
        """ConfigError where the disk cannot hold the model and the checkpoints that `save_steps` asks for."""
        if self.run.has_model or not self.world.is_main:
            return
        config, (model, checkpoint) = self.config.train, self.disk_bytes()
        total = num_steps(len(self.dataset.train), config.batch_size, config.num_train_epochs, config.max_steps)
        asked_for = min(total // config.save_steps, config.save_total_limit + 1) if config.save_steps else 0
        there = len(list(self.run.checkpoints.glob("step-*")))
        needed, free = model + max(0, asked_for - there) * checkpoint, shutil.disk_usage(self.run.path).free
        said = (
            f"{free / 1e9:,.1f} GB of disk are free; the model takes {model / 1e9:,.1f} GB and a checkpoint up to "
            f"{checkpoint / 1e9:,.1f} GB"
        )
        if needed > free:
            raise ConfigError(
                f"{self.run.path}: {said}, of which train.save_steps={config.save_steps} writes up to {asked_for}: "
                f"{needed / 1e9:,.1f} GB are needed. Make room, or give another --output"
                if asked_for
                else f"{self.run.path}: {said}. Make room, or give another --output"
            )
        if needed + (config.save_total_limit + 1) * checkpoint > free and config.save_minutes:
            self.terminal.say(
                f"{said}, of which a long run keeps {config.save_total_limit} and writes one more: that may be too little",
                style="yellow",
            )

    def _save_is_due(self, num_steps: int, saved_at: float) -> bool:
        config = self.config.train
        by_steps = config.save_steps is not None and num_steps >= config.save_steps
        by_clock = config.save_minutes is not None and time.monotonic() - saved_at >= 60 * config.save_minutes
        return bool(self.world.agreed(by_steps or by_clock))

    def _save_checkpoint(self, state: State, ledger: RecordLedger) -> None:
        tensors = {**self._checkpoint_tensors(state), "records": ledger.state()}
        if not self.world.is_main:
            if self.world.sharded:
                hand_over(tensors)
            return
        with self._phase("checkpoints"):
            path = save_checkpoint(
                self.run.checkpoints,
                state.step,
                tensors,
                {
                    "state": asdict(state),
                    "training": (self.run.record or {})["training"],
                    "metrics_bytes": self.run.flush_metrics(),
                },
                keep=self.config.train.save_total_limit,
            )
        self.terminal.say(f"step {state.step:>5}  saved {path}", style="dim")

    def _checkpoint_tensors(self, state: State) -> dict[str, dict[str, torch.Tensor]]:
        kept = self.optimizer.kept_weights() if state.best_step not in (None, state.step) else {}
        return {"weights": self.optimizer.weights(), "optimizer": self.optimizer.moments(), "best": kept}

    def _tell_how_it_ended(self, state: State, total: int) -> None:
        """Which weights the run ends with and why, as sentences and as training.json."""
        keeps_best = self.config.train.keep == "best" and state.best_step is not None
        self.kept_step = state.best_step if keeps_best else state.step
        self.run.write_json(
            "training.json",
            {
                "steps": state.step,
                "planned_steps": total,
                "best_step": state.best_step,
                "best_validation_loss": state.best_loss,
                "kept_step": self.kept_step,
            },
        )
        if state.step < total:
            evaluations = "evaluation" if state.num_worse == 1 else f"{state.num_worse} evaluations in a row"
            self.terminal.say(
                f"stopped after step {state.step} of {total}: no lower validation loss in the last {evaluations}"
            )
        if state.best_step not in (None, state.step):
            kept = (
                "those weights are kept" if keeps_best else "the last weights are kept all the same (train.keep: last)"
            )
            self.terminal.say(f"validation loss was lowest at step {state.best_step} ({state.best_loss:.4f}): {kept}")

    def _save_model(self, model: PreTrainedModel) -> None:
        refuse_non_finite(dict(model.named_parameters()))
        prompts = [self.encoder.prompt_ids(one) for one in self.dataset.train.conversations[:_VERIFIED_PROMPTS]]
        if self.method.adapter is not None:
            model, difference = merged_model(
                model, self.method.adapter, self.run.adapter, self.config, self.device, prompts
            )
            self._take(model)
            self.terminal.say(f"the adapter and its base, merged: the same logits to {difference:.0e} of the largest")
        text = self.encoder.text
        bos = self.pretrained.tokenizer.bos_token if text.bos_token_ids else ""
        end = self.pretrained.tokenizer.convert_ids_to_tokens(text.end_token_id)
        save_model(
            model,
            self.pretrained.tokenizer,
            self.run.model,
            chat_template=text.template.chat_template(bos_text=bos, end_text=end),
            base_name=self.pretrained.name,
            card=Card(facts=self._card_facts(), datasets=(self.dataset.file.name,)),
            stop_token_ids=sorted(text.stop_token_ids),
        )
        verify_export(model, self.run.model, prompts)
        write_own_template(self.run.model, text.template.name)

    def _take(self, model: Any) -> None:
        """Go on with `model`, which holds all that was trained."""
        self.model = model.to(self.device).eval()
        self.method = replace(self.method, adapter=None)
        self.pretrained = replace(self.pretrained, model=self.model)

    def _read_replay(self) -> None:
        data = self.config.data
        held_out = chain(self.dataset.validation.conversations, self.dataset.test.conversations)
        self.replay: Replay | None = None
        if data.replay is not None:
            self.replay = read_replay(data.replay, data.resolved_replay_ratio, self.encoder, held_out)

    def _record_losses(self, when: str) -> list[float]:
        train, between = self.dataset.train, self.signals.check if self.world.size == 1 else go_on
        self.terminal.say(f"loss of each of {len(train):,} training records, {when} training", style="dim")
        with self._phase(f"record_losses_{when}"):
            return record_nll(self.model, train.examples, self.layout, between=between)

    def _warn(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self.terminal.say(sentence, style="yellow")

    def _limit_length_to_context(self) -> None:
        """A record longer than the model's context cannot be computed: `data.max_length` is lowered to it."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context and context < self.config.data.max_length:
            self.terminal.say(f"data.max_length is lowered to {context}, the context of this model")
            data = self.config.data.model_copy(update={"max_length": context})
            self.config = self.config.model_copy(update={"data": data})

    def _as(self, name: str) -> AbstractContextManager[None]:
        """Inside, the model speaks as the `base` that it came as, without its adapter; or as the `tuned` one."""
        return without_adapter(self.method.adapter if name == "base" else None)

    def sample(self, step: int) -> Answer:
        """The model's answer to one record, as evaluations show it."""
        source = next(subset for subset in (self.dataset.validation, self.dataset.train) if len(subset))
        with self.signals.waiting(self.world.size > 1):
            return answer(self.model, self.encoder, source.conversations[:1], self.config.generate, seed=step)[0]

    def _general_scores(self, name: str, *, sampled: bool = False) -> list[GeneralScore]:
        """What general/{name}.jsonl holds; nothing where it was not written yet."""
        scores = [score_of_row(row) for row in self.world.agreed(self.run.read_rows(f"general/{name}.jsonl")) or ()]
        return [score for score in scores if score.kind == "sample"] if sampled else scores

    def _references(self) -> list[Example]:
        """The test records with loss on their last responses, whatever training weighs; each fits, or it was refused."""
        encoder = replace(self.encoder, prompt_weight=0.0, last_turn=True)
        references = [encoder.example(conversation) for conversation in self.dataset.test.conversations]
        return [reference for reference in references if isinstance(reference, Example)]

    def _write_data(self) -> None:
        dataset = self.dataset
        for name in ("train", "validation", "test"):
            records = getattr(dataset, name).records
            self.run.write_rows(f"data/{name}.jsonl", map(_data_row, records))
        self.run.write_rows("data/refused.jsonl", map(asdict, dataset.refused))
        sides = [(side.records, side.examples) for side in (dataset.train, dataset.validation, dataset.test)]
        found = audit_sides(sides, dataset.refused, self.config, self.encoder)
        self.audit = {**describe(dataset, self.encoder, self.config), **found.for_report()}
        self.run.write_json("data.json", self.audit)

    def _write_environment(self, *, finished: bool = False) -> str | None:
        model = {
            "name": self.pretrained.name,
            "num_parameters": self.method.num_parameters,
            "num_trainable": self.method.num_trainable,
        }
        now = datetime.now(timezone.utc).isoformat(timespec="seconds") if finished else None
        self.run.write_json(
            "environment.json",
            {
                **describe_machine(),
                "device": str(self.device),
                "dtype": str(self.dtype).removeprefix("torch."),
                "kernels": self._kernels(),
                "layout": self.layout.name,
                "layout_reason": self.layout.reason,
                "model": {**model, "sha256": self._model_sha256},
                "started": self.started.isoformat(timespec="seconds"),
                "finished": now,
                "phase_seconds": {name: round(seconds, 2) for name, seconds in self.phase_seconds.items()},
            },
        )
        return now

    def _card_facts(self) -> dict[str, str]:
        tokens, config = self.audit["train_tokens"], self.config
        return {
            "data": f"{self.dataset.file.name}, {len(self.dataset.train):,} training records",
            "template": config.template.name,
            "trained tokens": f"{tokens['trained']:,} of {tokens['record']:,}",
            "method": config.train.method,
            "epochs": f"{config.train.num_train_epochs:g}",
            "weights of step": str(self.kept_step),
            "learning rate": f"{config.train.learning_rate:g}",
            "records a step": str(config.train.batch_size),
            "seed": str(config.train.seed),
        }

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.perf_counter() - start


def _data_row(record: Record) -> dict[str, Any]:
    """A row of data/*.jsonl: the record as it was read, its own `source` under another name, and where it was read."""
    own = {"record_source": record.raw["source"]} if "source" in record.raw else {}
    return {**record.raw, **own, "source": record.source}


def _metrics_row(event: Event) -> dict[str, Any]:
    if isinstance(event, Step):
        return {name: value for name, value in asdict(event).items() if value is not None}  # no replay, no loss of it
    if isinstance(event, Notice):
        return {"step": event.step, "notice": event.kind, "sentence": event.sentence}
    row: dict[str, Any] = {"step": event.step, "validation_loss": event.validation_loss}
    if event.sample:
        row["sample"] = {"source": event.sample.source, "prompt": event.sample.prompt, "text": event.sample.text}
    return row
