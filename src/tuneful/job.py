"""The whole job, a method a phase: what `tuneful run` and `tuneful train` do, in the order in which they do it.

A job owns one run folder. Every phase writes what it found before the next begins, so an interrupted run keeps all that
was finished; an interrupted training saves the weights it has and reports what there is.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tuneful.answers import write_own_template
from tuneful.config import Config
from tuneful.console import Advance, Terminal
from tuneful.data.encode import Encoder, TextEncoder
from tuneful.data.order import num_steps
from tuneful.data.prepare import describe, make_encoder, prepare_data
from tuneful.data.read import read_data
from tuneful.data.show import bracketed, coloured, shown_tokens
from tuneful.data.template import find_template
from tuneful.environment import describe_machine
from tuneful.errors import InputError
from tuneful.infer.generate import answer
from tuneful.judge.compare import Comparison, as_dict, compare, items_as_dicts, summary_sentence
from tuneful.judge.metrics import AnswerScores, score_answer
from tuneful.model.builtin import cache_root
from tuneful.model.export import Card, save_model, verify_export
from tuneful.model.load import fingerprint, load_model
from tuneful.model.memory import keep_freed_memory
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.report.build import build_report
from tuneful.rundir import RunDir, new_run_path
from tuneful.train.loop import Evaluation, Step, choose_layout, finetune, record_nll
from tuneful.train.loss import set_dropout
from tuneful.train.optimizer import AdamW
from tuneful.types import Answer, Example

_VERIFIED_PROMPTS = 4
_SAMPLE_INDENT = " " * 12


class Interrupted(KeyboardInterrupt):
    """A signal ended the job after it saved; `exit_code` is 128 plus the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True, slots=True)
class JobResult:
    """Where the run is, its report, its trained model, and the comparison where there was a test set to compare on."""

    path: Path
    report: Path
    model: Path
    comparison: Comparison | None


class Job:
    """One run: data read, model loaded and the run folder made when it is constructed."""

    def __init__(self, data: str, config: Config, output: Path | None, terminal: Terminal) -> None:
        self.config, self.terminal = config, terminal
        self.started = datetime.now(timezone.utc)
        self.phase_seconds: dict[str, float] = {}
        torch.manual_seed(config.train.seed)
        keep_freed_memory()
        file = read_data(data, on_error=config.data.on_error)
        self.device = choose_device(config.model.device)
        self.dtype = choose_dtype(config.model.dtype, self.device, cache_root())
        self.run = RunDir(output or new_run_path(data, datetime.now()))
        try:
            self.pretrained = load_model(config.model.name_or_path, terminal.say)
            self.model = self.pretrained.model.to(self.device)
            if config.model.dropout is not None:
                set_dropout(self.model, config.model.dropout)
            self._limit_length_to_context()
            text = TextEncoder(self.pretrained.tokenizer, find_template(config.template.name))
            self.encoder = make_encoder(text, self.config.data)
            self.dataset = prepare_data(file, self.encoder, self.config)
        except InputError:
            self.run.remove_if_empty()
            raise
        self.run.write_config(self.config)
        self._write_data()

    def show_data(self) -> None:
        """What will be trained on: counts, share of trained tokens, and three records as the model will see them."""
        audit, terminal = self.audit, self.terminal
        tokens = audit["train_tokens"]
        split = audit["split"]
        terminal.heading("Data")
        terminal.facts(
            {
                "read": f"{audit['rows_read']:,} rows = {audit['rows_used']:,} used + {audit['rows_refused']:,} refused",
                "split": f"{split['train']:,} train, {split['validation']:,} validation, {split['test']:,} test "
                f"({split['method']})",
                "trained": f"{tokens['trained']:,} of {tokens['record']:,} tokens "
                f"({tokens['trained'] / tokens['record']:.1%}) carry loss",
            }
        )
        for refusal in audit["refused"][:3]:
            terminal.say(f"  refused {refusal['source']}: {refusal['reason']}", style="yellow")
        terminal.say()
        for example in self.dataset.train.examples[:3]:
            shown = shown_tokens(example, self.encoder.text)
            terminal.say(f"{example.source}  (green or in brackets: trained)", style="dim")
            terminal.say(coloured(shown) if terminal.console.is_terminal else bracketed(shown))
            terminal.say()

    def prepare_training(self) -> None:
        """Choose and prove the layout, then hand the weights to the optimizer, which makes their shadow."""
        with self._phase("proof"):
            self.layout = choose_layout(self.model, self.dataset.train.examples, self.config.train, self.dtype)
        self.terminal.heading("Model")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.terminal.facts(
            {
                "model": f"{self.pretrained.name}, {parameters / 1e6:,.1f} M parameters",
                "products": f"{str(self.dtype).removeprefix('torch.')} on {self.device}; master weights float32",
                "layout": self.layout.name + (f": {self.layout.reason}" if self.layout.reason else ""),
            }
        )
        self.optimizer = AdamW(self.model, self.config.train, self.dtype)
        self._write_environment()

    def answer_test_set(self, name: str) -> list[AnswerScores]:
        """The model's answers to the test set, written as answers/{name}.jsonl, and their scores."""
        test, references = self.dataset.test, self._references()
        with self._phase(f"answers_{name}"), self.terminal.progress(f"{name} answers", len(test), "answers") as advance:
            answers = answer(
                self.model,
                self.encoder,
                test.conversations,
                self.config.generate,
                seed=self.config.train.seed,
                advance=advance,
            )
        self.run.write_answers(name, answers)
        with self._phase(f"references_{name}"):
            nll = record_nll(self.model, references, self.layout)
        return [
            score_answer(
                given.text,
                conversation.turns[-1].response,
                ended=given.ended_by == "stop",
                reference_nll=own_nll,
                reference_tokens=int((reference.weights > 0).sum()),
            )
            for given, conversation, reference, own_nll in zip(
                answers, test.conversations, references, nll, strict=True
            )
        ]

    def train(self) -> None:
        """Finetune; a line of metrics.jsonl a step and an evaluation. Raises Interrupted, once saved, on a signal."""
        train, config = self.dataset.train, self.config.train
        total = num_steps(len(train), config.batch_size, config.num_train_epochs, config.max_steps)
        self.terminal.heading("Training")
        events = finetune(
            self.model,
            self.optimizer,
            train.examples,
            self.dataset.validation.examples,
            config,
            self.layout,
            self._sample,
        )
        with self._phase("training"), _signals() as signalled, self._training_progress(total) as show:
            for event in events:
                self.run.append_metrics(_metrics_row(event))
                show(event)
                if signalled:
                    break
        if signalled:
            self.terminal.say("interrupted: saving the weights as they are", style="yellow")
            self.save()
            self.finish(interrupted=True)
            raise Interrupted(signalled[0])

    def save(self) -> None:
        """The trained model as a folder, loaded again and compared before this returns.

        The optimizer is done after this; the model goes on in the precision that it was trained in.
        """
        self.optimizer.masters_to_model()
        text = self.encoder.text
        bos = self.pretrained.tokenizer.bos_token if text.bos_token_ids else ""
        end = self.pretrained.tokenizer.convert_ids_to_tokens(text.end_token_id)
        with self._phase("saving"):
            save_model(
                self.model,
                self.pretrained.tokenizer,
                self.run.model,
                chat_template=text.template.chat_template(bos_text=bos, end_text=end),
                base_name=self.pretrained.name,
                card=Card(facts=self._card_facts(), datasets=(self.dataset.file.name,)),
                stop_token_ids=sorted(text.stop_token_ids),
            )
            prompts = [self.encoder.prompt_ids(one) for one in self.dataset.train.conversations[:_VERIFIED_PROMPTS]]
            verify_export(self.model, self.run.model, prompts)
            write_own_template(self.run.model, text.template.name)
        cast_parameters(self.model, self.dtype)

    def compare(self, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]) -> Comparison:
        """Base against tuned on the test set, written as comparison.json and shown as a table."""
        report, test = self.config.report, self.dataset.test
        result = compare(
            base, tuned, confidence=report.confidence, num_resamples=report.num_resamples, seed=self.config.train.seed
        )
        items = items_as_dicts([record.source for record in test.records], base, tuned)
        for item, conversation in zip(items, test.conversations, strict=True):
            item["reference"] = conversation.turns[-1].response
        sentence = summary_sentence(result)
        self.run.write_json("comparison.json", {**as_dict(result), "sentence": sentence, "items": items})
        self.terminal.heading(f"Base against tuned, {result.num_items} test records")
        self.terminal.table(
            ["", "base", "tuned", f"difference, {result.confidence:.0%} interval", ""],
            [
                [
                    metric.label,
                    f"{metric.base:.3f}",
                    f"{metric.tuned:.3f}",
                    f"{metric.difference:+.3f}  [{metric.low:+.3f}, {metric.high:+.3f}]",
                    metric.verdict,
                ]
                for metric in result.metrics
            ],
        )
        self.terminal.say()
        self.terminal.say(sentence, style="bold")
        return result

    def finish(self, comparison: Comparison | None = None, *, interrupted: bool = False) -> JobResult:
        """Write what is left to write, build the report, and say where everything is."""
        self._write_environment(finished=not interrupted)
        report = build_report(self.run.path)
        self.terminal.heading("Written")
        self.terminal.facts({"report": str(report), "model": str(self.run.model), "run": str(self.run.path)})
        return JobResult(self.run.path, report, self.run.model, comparison)

    def _limit_length_to_context(self) -> None:
        """A record longer than the model's context cannot be computed: `data.max_length` is lowered to it."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context and context < self.config.data.max_length:
            self.terminal.say(f"data.max_length is lowered to {context}, the context of this model")
            data = self.config.data.model_copy(update={"max_length": context})
            self.config = self.config.model_copy(update={"data": data})

    def _sample(self, step: int) -> Answer:
        source = next(subset for subset in (self.dataset.validation, self.dataset.train) if len(subset))
        return answer(self.model, self.encoder, source.conversations[:1], self.config.generate, seed=step)[0]

    def _references(self) -> list[Example]:
        """The test records with loss on their responses alone, whatever training weighs; each fits, or it was refused."""
        encoder = Encoder(self.encoder.text, self.encoder.max_length, 0.0, self.encoder.cut_response)
        references = [encoder.example(conversation) for conversation in self.dataset.test.conversations]
        return [reference for reference in references if isinstance(reference, Example)]

    @contextmanager
    def _training_progress(self, total: int) -> Iterator[Callable[[Step | Evaluation], None]]:
        with self.terminal.progress("training", total, "steps") as advance:

            def show(event: Step | Evaluation) -> None:
                if isinstance(event, Step):
                    _show_step(advance, event)
                else:
                    self._show_evaluation(event)

            yield show

    def _show_evaluation(self, event: Evaluation) -> None:
        loss = "no validation set" if event.validation_loss is None else f"validation loss {event.validation_loss:.4f}"
        self.terminal.say(f"step {event.step:>5}  {loss}")
        if event.sample:
            room = min(self.terminal.console.width, 200) - len(_SAMPLE_INDENT) - len(" ...")
            self.terminal.say(_SAMPLE_INDENT + _clipped(event.sample.prompt, -room), style="dim")
            self.terminal.say(_SAMPLE_INDENT + _clipped(event.sample.text, room), style="green")

    def _write_data(self) -> None:
        dataset = self.dataset
        for name in ("train", "validation", "test"):
            records = getattr(dataset, name).records
            self.run.write_rows(f"data/{name}.jsonl", ({**record.raw, "source": record.source} for record in records))
        self.run.write_rows("data/refused.jsonl", map(asdict, dataset.refused))
        self.audit = describe(dataset, self.encoder, self.config)
        self.run.write_json("data.json", self.audit)

    def _write_environment(self, *, finished: bool = False) -> None:
        model = {
            "name": self.pretrained.name,
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        if not hasattr(self, "_model_sha256"):
            self._model_sha256 = fingerprint(self.pretrained.folder)
        self.run.write_json(
            "environment.json",
            {
                **describe_machine(),
                "device": str(self.device),
                "dtype": str(self.dtype).removeprefix("torch."),
                "layout": self.layout.name,
                "layout_reason": self.layout.reason,
                "model": {**model, "sha256": self._model_sha256},
                "started": self.started.isoformat(timespec="seconds"),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds") if finished else None,
                "phase_seconds": {name: round(seconds, 2) for name, seconds in self.phase_seconds.items()},
            },
        )

    def _card_facts(self) -> dict[str, str]:
        tokens, config = self.audit["train_tokens"], self.config
        return {
            "data": f"{self.dataset.file.name}, {len(self.dataset.train):,} training records",
            "template": config.template.name,
            "trained tokens": f"{tokens['trained']:,} of {tokens['record']:,}",
            "epochs": f"{config.train.num_train_epochs:g}",
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


def _metrics_row(event: Step | Evaluation) -> dict[str, Any]:
    if isinstance(event, Step):
        return asdict(event)
    row: dict[str, Any] = {"step": event.step, "validation_loss": event.validation_loss}
    if event.sample:
        row["sample"] = {"source": event.sample.source, "prompt": event.sample.prompt, "text": event.sample.text}
    return row


def _show_step(advance: Advance, step: Step) -> None:
    advance(1)
    advance.show(loss=f"{step.loss:.3f}", tokens_a_second=f"{step.record_tokens / step.step_seconds:,.0f}")


def _clipped(text: str, limit: int) -> str:
    """One line of at most |limit| characters: the head of `text`, or for a negative limit its tail."""
    line = " ".join(text.split())
    if len(line) <= abs(limit):
        return line
    return line[:limit] + " ..." if limit > 0 else "... " + line[limit:]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM put their number into the list instead of ending the process; a second one ends it at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise Interrupted(number)
        received.append(number)

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
