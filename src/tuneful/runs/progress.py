"""What a run shows on the terminal while it works: its data before the first step, its training step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuneful.audit.labels import labels_in_words
from tuneful.console import Advance, Terminal
from tuneful.data.notes import UNUSED, refused_in_words
from tuneful.encoding.by_file import files_in_words
from tuneful.encoding.prepare import Dataset
from tuneful.encoding.show import bracketed, coloured, shown_record
from tuneful.encoding.tokens import TextEncoder
from tuneful.evaluation.statistics import fewest_items
from tuneful.numbers import plural
from tuneful.runs.schema import DataDocument, Evaluation, Event, Step

_SAMPLE_INDENT = " " * 12


def show_data(
    dataset: Dataset, audit: DataDocument, text: TextEncoder, terminal: Terminal, confidence: float | None = None
) -> None:
    """What will be trained on: counts, share of trained tokens, and three records as the model will see them.

    `confidence` is that of the verdict on the test set, None where there will be none.
    """
    tokens, split = audit.train_tokens, audit.split
    rows = "documents" if dataset.file.format == "text" else "rows"
    left_out = f" + {audit.rows_left_out:,} left out by data.train_share" if audit.rows_left_out else ""
    terminal.heading("Data")
    terminal.facts(
        {
            "format": dataset.file.format,
            "read": f"{audit.rows_read:,} {rows} = {audit.rows_used:,} used{left_out} + {audit.rows_refused:,} refused",
            "split": f"{split.train:,} train, {split.validation:,} validation, {split.test:,} test ({split.method})",
            "trained": f"{tokens.trained:,} of {tokens.record:,} tokens ({tokens.trained / tokens.record:.1%}) carry loss",
            **({"chunks": _chunks_in_words(dataset, audit)} if audit.num_chunks is not None else {}),
            **({"labels": labels_in_words(audit.labels)} if audit.labels else {}),
            "findings": ", ".join(f"{one.name.replace('_', ' ')} {one.count:,}" for one in audit.findings or ())
            or "none",
        }
    )
    for line in files_in_words(audit.files):
        terminal.say(f"  {line}")
    for note in audit.reading:
        terminal.say(f"  {note.text}", style="yellow" if note.kind == UNUSED else None)
    for sentence in text.template.notes:
        terminal.say(f"  {sentence}", style="yellow")
    if split.validation == 1:
        terminal.say(
            "  one record is the whole validation set: validation loss, and which weights are kept, hang on it alone; raise "
            "data.validation_share, or give data.validation_file",
            style="yellow",
        )
    if confidence is not None and 0 < split.test < fewest_items(confidence):
        terminal.say(
            f"  {plural(split.test, 'test record')}: on fewer than {fewest_items(confidence)} no difference can be told from "
            "chance; raise data.test_share, or give data.test_file",
            style="yellow",
        )
    for line in refused_in_words([(one.source, one.reason) for one in audit.refused], audit.rows_refused):
        terminal.say(f"  {line}", style="yellow")
    terminal.say()
    for example in dataset.train.chunks[:3]:
        shown = shown_record(example, text)
        terminal.say(f"{example.source}  (green or in brackets: trained)", style="dim")
        for side in filter(None, (shown.tokens, shown.rejected_answer)):
            terminal.say(coloured(side) if terminal.console.is_terminal else bracketed(side))
        terminal.say()


def _chunks_in_words(dataset: Dataset, audit: DataDocument) -> str:
    """How documents are cut."""
    said = f"{audit.num_chunks:,} of at most {audit.max_length:,} tokens"
    records, chunks = len(dataset.train), len(dataset.train.chunks)
    return f"{said}, of {records:,} training records" if chunks > records else f"{said}: no document is longer"


@contextmanager
def training_progress(terminal: Terminal, step: int, total: int) -> Iterator[Callable[[Event], None]]:
    """A bar over `total` steps, begun at `step`; what it yields takes the events of the training as they come."""
    with terminal.progress("training", total, "steps") as advance:
        if step:
            advance(step)

        def show(event: Event) -> None:
            if isinstance(event, Step):
                _show_step(advance, event)
            elif isinstance(event, Evaluation):
                _show_evaluation(event, terminal)
            else:
                terminal.say(f"step {event.step:>5}  {event.sentence}", style="yellow")

        yield show


def _show_evaluation(event: Evaluation, terminal: Terminal) -> None:
    loss = "no validation set" if event.validation_loss is None else f"validation loss {event.validation_loss:.4f}"
    accuracy = f", accuracy {event.validation_accuracy:.1%}" if event.validation_accuracy is not None else ""
    terminal.say(f"step {event.step:>5}  {loss}{accuracy}")
    if event.sample:
        room = min(terminal.console.width, 200) - len(_SAMPLE_INDENT) - len(" ...")
        terminal.say(_SAMPLE_INDENT + _clipped(event.sample.prompt, -room), style="dim")
        terminal.say(_SAMPLE_INDENT + _clipped(event.sample.text, room), style="green")


def _show_step(advance: Advance, step: Step) -> None:
    advance(1)
    advance.show(loss=f"{step.loss:.3f}", tokens_a_second=f"{step.record_tokens / step.step_seconds:,.0f}")


def _clipped(text: str, limit: int) -> str:
    """One line of at most |limit| characters: the head of `text`, or for a negative limit its tail."""
    line = " ".join(text.split())
    if len(line) <= abs(limit):
        return line
    return line[:limit] + " ..." if limit > 0 else "... " + line[limit:]
