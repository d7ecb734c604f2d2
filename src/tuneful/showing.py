"""Some records as they will be trained: what `tuneful show` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from tuneful.config import Config
from tuneful.console import to_stdout
from tuneful.data.read import Record, read_data
from tuneful.data.template import TEMPLATES, Origin, Template, find_template
from tuneful.errors import DataError


def show_records(
    data: str | Sequence[str], config: Config, *, start: int, rows: int, text: bool, as_json: bool
) -> None:
    """Print records `start` to `start + rows - 1` of `data`: tokens and weights, or with `text` the rendered text alone."""
    file = read_data(data, config.data)
    chosen = file.records[start - 1 : start - 1 + rows]
    if not chosen:
        raise DataError(f"{file.name}: has {len(file.records)} records; there is none at {start}")
    if text:
        _show_text(chosen, config, as_json)
    else:
        _show_tokens(chosen, config, as_json)


def _show_text(records: tuple[Record, ...], config: Config, as_json: bool) -> None:
    template = _template_without_model(config)
    shown = []
    for record in records:
        pieces = template.example(record.conversation)
        rendered = "".join(f"⟦{piece.text}⟧" if piece.origin is Origin.RESPONSE else piece.text for piece in pieces)
        shown.append({"source": record.source, "text": rendered})
    if as_json:
        to_stdout(json.dumps(shown, ensure_ascii=False, indent=1))
    else:
        to_stdout("\n\n".join(f"{one['source']}\n{one['text']}" for one in shown))


def _template_without_model(config: Config) -> Template:
    """The template; only a chat template needs the tokenizer, for the names of its control tokens."""
    if config.template.name in TEMPLATES:
        return find_template(config.template.name)
    from tuneful.data.chat_template import load_template
    from tuneful.model.load import load_tokenizer, resolve_model

    return load_template(config.template, load_tokenizer(resolve_model(config.model.name_or_path)))


def _show_tokens(records: tuple[Record, ...], config: Config, as_json: bool) -> None:
    from tuneful.data.chat_template import load_template
    from tuneful.data.encode import TextEncoder
    from tuneful.data.prepare import make_encoder
    from tuneful.data.show import as_dicts, bracketed, coloured, shown_tokens
    from tuneful.model.load import load_tokenizer, resolve_model

    tokenizer = load_tokenizer(resolve_model(config.model.name_or_path))
    encoder = make_encoder(TextEncoder(tokenizer, load_template(config.template, tokenizer)), config.data)
    console = Console(highlight=False)
    documents: list[dict[str, Any]] = []
    for record in records:
        example = encoder.example(record.conversation)
        if isinstance(example, str):
            documents.append({"source": record.source, "refused": example})
            continue
        tokens = shown_tokens(example, encoder.text)
        num_trained = int((example.weights > 0).sum())
        documents.append(
            {
                "source": record.source,
                "num_tokens": len(example),
                "num_trained": num_trained,
                "tokens": as_dicts(tokens),
            }
        )
        if not as_json:
            console.print(f"{record.source}  {len(example)} tokens, {num_trained} trained", style="bold", markup=False)
            if console.is_terminal:
                console.print(coloured(tokens))
            else:
                to_stdout(bracketed(tokens))
            console.print()
    if as_json:
        to_stdout(json.dumps(documents, ensure_ascii=False, indent=1))
        return
    for document in documents:
        if "refused" in document:
            console.print(f"{document['source']}  refused: {document['refused']}", style="yellow", markup=False)
