"""`tuneful show DATA`: some records as they will be trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import (
    ConfigFile,
    DataAndSettings,
    Json,
    Model,
    chosen_data,
    configuration,
    data_and_settings,
    data_of,
)
from tuneful.errors import ConfigError, DataError, TemplateError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.data.in_memory import Data
    from tuneful.data.read import DataStream, Record
    from tuneful.encoding.encode import Encoder
    from tuneful.encoding.show import ShownRecord
    from tuneful.encoding.template import Piece, Template


def show(data: Data | None = None, *, config: Config | None = None, start: int = 1, rows: int = 3) -> list[ShownRecord]:
    """Records `start` (from 1) to `start + rows - 1` of `data`, token by token with weights, as a run would train them.

    No more of `data` is read than that takes. Raises DataError where there is no record at `start`.
    """
    from tuneful.config import Config
    from tuneful.data.read import stream_data
    from tuneful.model.saved_template import with_saved_template

    data, config = data_of(data, config, "starter"), with_saved_template(config or Config())
    chosen = _chosen(stream_data(data, config.data, config.train.objective), start, rows)
    return _encoded(chosen, _encoder(config))


def show_command(
    arguments: DataAndSettings = None,
    model: Model = None,
    config: ConfigFile = None,
    rows: Annotated[int, typer.Option(min=1, help="how many records to show")] = 3,
    start: Annotated[int, typer.Option(min=1, help="the record to begin with, counted from 1")] = 1,
    text: Annotated[bool, typer.Option("--text", help="the rendered text alone; needs no tokenizer")] = False,
    html: Annotated[Path | None, typer.Option(help="write them as a page to this file instead")] = None,
    as_json: Json = False,
) -> None:
    """The exact tokens and weights of some records."""
    from tuneful.console import Terminal, json_to_stdout, to_stdout
    from tuneful.data.read import stream_data
    from tuneful.model.saved_template import with_saved_template

    data, overrides = data_and_settings(arguments)
    settings = with_saved_template(configuration(config, overrides, {"model.name_or_path": model}))
    if html is not None and (text or as_json):
        raise ConfigError("--html shows tokens on a page; leave out --text and --json")
    data = chosen_data(data, settings, config, command="show", default="starter")
    stream = stream_data(data, settings.data, settings.train.objective)
    chosen = _chosen(stream, start, rows)
    for note in stream.notes:
        Terminal().say(note.text, style="dim")
    if text:
        _show_text(chosen, settings, as_json)
        return
    from tuneful.encoding.left_out import LeftOut

    encoder = _encoder(settings)
    shown = _encoded(chosen, encoder)
    left_out = LeftOut(encoder)
    left_out.add(record.conversation for record in chosen)
    for note in left_out.notes:
        Terminal().say(note.text, style="yellow")
    if html is not None:
        from tuneful.encoding.show import as_page
        from tuneful.files import write_text

        write_text(html, as_page(shown, title=f"{stream.name}, as it is trained"))
        to_stdout(str(html))
    elif as_json:
        json_to_stdout([_document(one) for one in shown], indent=1)
    else:
        _print(shown)


def _chosen(stream: DataStream, start: int, rows: int) -> list[Record]:
    from tuneful.data.read import Record

    records = (row for row in stream if isinstance(row, Record))
    chosen = list(islice(records, start - 1, start - 1 + rows))
    if not chosen:
        num_records = sum(isinstance(row, Record) for row in stream)
        raise DataError(f"{stream.name}: has {num_records} records; there is none at {start}")
    return chosen


def _show_text(records: Sequence[Record], config: Config, as_json: bool) -> None:
    from tuneful.console import json_to_stdout, to_stdout

    template = _template_without_model(config)
    thoughts = config.data.train_reasoning
    shown = [{"source": record.source, "text": _rendered(template, record, thoughts)} for record in records]
    if as_json:
        json_to_stdout(shown, indent=1)
    else:
        to_stdout("\n\n".join(f"{one['source']}\n{one['text']}" for one in shown))


def _rendered(template: Template, record: Record, train_reasoning: bool) -> str:
    """A record as marked text; of a pair the whole of both sides."""
    from tuneful.encoding.template import without_thoughts
    from tuneful.types import sides_of

    if record.conversation.is_document:
        return f"⟦{record.conversation.turns[0].response}⟧"
    try:
        texts = [
            _marked(without_thoughts(template.example(side), trained=train_reasoning))
            for side in sides_of(record.conversation)
        ]
    except TemplateError as error:
        return f"refused: {error}"
    return "\nrejected:\n".join(texts)


def _marked(pieces: Iterable[Piece]) -> str:
    same = groupby(pieces, attrgetter("is_trained"))
    stretches = ((trained, "".join(piece.text for piece in run)) for trained, run in same)
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in stretches)


def _template_without_model(config: Config) -> Template:
    """The template; only a chat template needs the tokenizer, for the names of its control tokens."""
    from tuneful.encoding.template import TEMPLATES, find_template

    if config.template.name in TEMPLATES:
        return find_template(config.template.name)
    from tuneful.encoding.chat_template import load_template
    from tuneful.model.load import load_tokenizer, resolve_model

    return load_template(config.template, load_tokenizer(resolve_model(config.model.name_or_path)))


def _encoder(config: Config) -> Encoder:
    from tuneful.encoding.prepare import load_encoder
    from tuneful.model.load import load_tokenizer, resolve_model

    return load_encoder(load_tokenizer(resolve_model(config.model.name_or_path)), config)


def _encoded(records: Sequence[Record], encoder: Encoder) -> list[ShownRecord]:
    from tuneful.encoding.show import ShownRecord, shown_record

    examples = encoder.examples([record.conversation for record in records])
    return [
        ShownRecord(record.source, refused=example)
        if isinstance(example, str)
        else shown_record(example, encoder.text, record.conversation)
        for record, example in zip(records, examples, strict=True)
    ]


def _document(one: ShownRecord) -> dict[str, Any]:
    from tuneful.encoding.show import as_tokens
    from tuneful.runs.schema import as_row

    if one.refused is not None:
        return {"source": one.source, "refused": one.refused}
    return {
        "source": one.source,
        "num_tokens": len(one.tokens),
        "num_trained": one.num_trained,
        "seams_apart": [place for place, token in enumerate(one.tokens) if token.parts],
        "tokens": [as_row(token) for token in as_tokens(one.tokens)],
        **({"rejected": [as_row(token) for token in as_tokens(one.rejected)]} if one.rejected else {}),
        **({} if one.label is None else {"label": one.label}),
    }


def _print(shown: Sequence[ShownRecord]) -> None:
    from rich.console import Console

    from tuneful.console import to_stdout
    from tuneful.encoding.show import AFTER_THE_PROMPT, bracketed, coloured, described, legend

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(legend())
        console.print()
    for one in shown:
        if one.refused is not None:
            console.print(f"{one.source}  refused: {one.refused}", style="yellow", markup=False)
            continue
        console.print(f"{one.source}  {described(one)}", style="bold", markup=False)
        for tokens in filter(None, (one.tokens, one.rejected_answer)):
            if tokens is not one.tokens:
                console.print(AFTER_THE_PROMPT, style="bold", markup=False)
            if console.is_terminal:
                console.print(coloured(tokens))
            else:
                to_stdout(bracketed(tokens))
        console.print()
