"""Some records as they will be trained: what `tuneful show` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuneful.config import Config
from tuneful.console import to_stdout
from tuneful.data.read import Record, stream_data
from tuneful.data.template import TEMPLATES, Origin, Piece, Template, find_template
from tuneful.errors import ConfigError, DataError, TemplateError

if TYPE_CHECKING:
    from tuneful.data.show import ShownRecord


def show_records(
    data: str | Sequence[str],
    config: Config,
    *,
    start: int,
    rows: int,
    text: bool = False,
    as_json: bool = False,
    html: Path | None = None,
) -> None:
    """Show records `start` to `start + rows - 1` of `data`: tokens and weights, or with `text` the rendered text alone.

    They are printed, as JSON with `as_json`, or written to the page `html`. No more of `data` is read than that takes.
    """
    if html is not None and (text or as_json):
        raise ConfigError("--html shows tokens on a page; leave out --text and --json")
    stream = stream_data(data, config.data)
    records = (row for row in stream if isinstance(row, Record))
    chosen = list(islice(records, start - 1, start - 1 + rows))
    if not chosen:
        num_records = sum(isinstance(row, Record) for row in stream)
        raise DataError(f"{stream.name}: has {num_records} records; there is none at {start}")
    if text:
        _show_text(chosen, config, as_json)
    else:
        _show_tokens(chosen, config, as_json, html, stream.name)


def _show_text(records: Sequence[Record], config: Config, as_json: bool) -> None:
    template = _template_without_model(config)
    shown = [{"source": record.source, "text": _rendered(template, record)} for record in records]
    if as_json:
        to_stdout(json.dumps(shown, ensure_ascii=False, indent=1))
    else:
        to_stdout("\n\n".join(f"{one['source']}\n{one['text']}" for one in shown))


def _rendered(template: Template, record: Record) -> str:
    try:
        pieces = template.example(record.conversation)
    except TemplateError as error:
        return f"refused: {error}"

    def is_trained(piece: Piece) -> bool:
        return piece.origin in (Origin.LEAD, Origin.RESPONSE, Origin.END)

    stretches = ((trained, "".join(piece.text for piece in same)) for trained, same in groupby(pieces, is_trained))
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in stretches)


def _template_without_model(config: Config) -> Template:
    """The template; only a chat template needs the tokenizer, for the names of its control tokens."""
    if config.template.name in TEMPLATES:
        return find_template(config.template.name)
    from tuneful.data.chat_template import load_template
    from tuneful.model.load import load_tokenizer, resolve_model

    return load_template(config.template, load_tokenizer(resolve_model(config.model.name_or_path)))


def _show_tokens(records: Sequence[Record], config: Config, as_json: bool, html: Path | None, name: str) -> None:
    from tuneful.data.show import as_dicts, as_page
    from tuneful.rundir import write_text

    shown = _encoded(records, config)
    if html is not None:
        write_text(html, as_page(shown, title=f"{name}, as it is trained"))
        to_stdout(str(html))
    elif as_json:
        documents: list[dict[str, Any]] = [
            {
                "source": one.source,
                "num_tokens": len(one.tokens),
                "num_trained": one.num_trained,
                "tokens": as_dicts(one.tokens),
            }
            if one.refused is None
            else {"source": one.source, "refused": one.refused}
            for one in shown
        ]
        to_stdout(json.dumps(documents, ensure_ascii=False, indent=1))
    else:
        _print(shown)


def _encoded(records: Sequence[Record], config: Config) -> list[ShownRecord]:
    from tuneful.data.chat_template import load_template
    from tuneful.data.encode import TextEncoder
    from tuneful.data.prepare import make_encoder
    from tuneful.data.show import ShownRecord, shown_tokens
    from tuneful.model.load import load_tokenizer, resolve_model

    tokenizer = load_tokenizer(resolve_model(config.model.name_or_path))
    encoder = make_encoder(TextEncoder(tokenizer, load_template(config.template, tokenizer)), config.data)
    examples = encoder.examples([record.conversation for record in records])
    return [
        ShownRecord(record.source, refused=example)
        if isinstance(example, str)
        else ShownRecord(record.source, tuple(shown_tokens(example, encoder.text)))
        for record, example in zip(records, examples, strict=True)
    ]


def _print(shown: Sequence[ShownRecord]) -> None:
    from tuneful.data.show import bracketed, coloured, legend

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(legend())
        console.print()
    for one in shown:
        if one.refused is not None:
            console.print(f"{one.source}  refused: {one.refused}", style="yellow", markup=False)
            continue
        counts = f"{len(one.tokens)} tokens, {one.num_trained} trained"
        console.print(f"{one.source}  {counts}", style="bold", markup=False)
        if console.is_terminal:
            console.print(coloured(one.tokens))
        else:
            to_stdout(bracketed(one.tokens))
        console.print()
