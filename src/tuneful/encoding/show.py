"""Records as tokens coloured by weight: what is shown is what is trained.

In a terminal trained tokens stand out, context is dim and control tokens are marked, in an HTML page likewise; in a pipe
the same record is plain text with trained stretches in ⟦brackets⟧. Where people look, each message begins a line of its
own, whether or not its template says so; in a pipe the text is what it is. A ‸ stands before a response that begins inside
what would be one token if prompt and response were encoded in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby

from rich.text import Text

from tuneful.encoding.template import Origin, Piece
from tuneful.encoding.tokens import TextEncoder
from tuneful.runs.schema import Token
from tuneful.types import Conversation, Example

SEAM = "‸"
"""Stands before a token that `parts` from the one before it only because generation begins there."""


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token's text, its weight in the loss, whether it is a control token, and its id.

    `ends` says that it ends a message, `parts` that it opens a response inside what would otherwise be one token. `origin` is
    who wrote it, or its first character; "" where that is not known.
    """

    text: str
    weight: float
    special: bool
    token_id: int
    ends: bool = False
    parts: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """A record as its tokens, or the reason why it is `refused`."""

    source: str
    tokens: tuple[ShownToken, ...] = ()
    refused: str | None = None

    @property
    def num_trained(self) -> int:
        """Tokens with a weight."""
        return sum(token.weight > 0 for token in self.tokens)


def shown_tokens(example: Example, encoder: TextEncoder, conversation: Conversation | None = None) -> list[ShownToken]:
    """The example token by token, with who wrote each where its `conversation` is given.

    Bytes of one character that several tokens share are shown with the last of them.
    """
    shown: list[ShownToken] = []
    token_ids = example.token_ids.tolist()
    # token_ids[start:end], the character shown last, is decoded again: some tokenizers drop the space at the head of a text.
    start = end = 0
    for index, weight in enumerate(example.weights.tolist()):
        special = token_ids[index] in encoder.control_token_ids
        before = encoder.token_text(token_ids[start:end])
        text = encoder.token_text(token_ids[start : index + 1])[len(before) :]
        pending = text.endswith("\ufffd") and index - end < 3 and not special and index + 1 < len(token_ids)
        if not pending:
            start, end = end, index + 1
        ends, parts = token_ids[index] in encoder.stop_token_ids, index in example.seams_apart
        shown.append(ShownToken("" if pending else text, weight, special, token_ids[index], ends, parts))
    return shown if conversation is None else _with_origins(shown, encoder, encoder.template.example(conversation))


def _with_origins(tokens: Sequence[ShownToken], encoder: TextEncoder, pieces: Sequence[Piece]) -> list[ShownToken]:
    """`tokens` with the origin of each: pieces are followed letter by letter, white space that a tokenizer moves aside.

    From where the tokens say something else than the pieces, as in a record of which something was cut, no origin is known.
    """
    end = encoder.token_text([encoder.end_token_id])
    letters = [(letter, piece.origin.value) for piece in pieces for letter in _text_of(piece, end)]
    shown: list[ShownToken] = []
    at = 0
    for token in tokens:
        if not shown and token.token_id in encoder.bos_token_ids:
            shown.append(replace(token, origin=Origin.TEMPLATE.value))
            continue
        found = _followed(token.text, letters, at)
        if found is None:
            return [*shown, *tokens[len(shown) :]]
        first, at = found
        shown.append(replace(token, origin=letters[min(first, len(letters) - 1)][1]))
    return shown


def _text_of(piece: Piece, end: str) -> str:
    return end if piece.origin is Origin.END and not piece.text else piece.text


def _followed(text: str, letters: Sequence[tuple[str, str]], at: int) -> tuple[int, int] | None:
    """Where the first letter of `text` stands in `letters` from place `at` on, and the place after it all; None where it does
    not stand there."""
    first = None
    for letter in text:
        while at < len(letters) and letters[at][0] != letter and letters[at][0].isspace() and not letter.isspace():
            at += 1
        if at < len(letters) and letters[at][0] == letter:
            first = at if first is None or letters[first][0].isspace() else first
            at += 1
        elif not letter.isspace():
            return None
    return at if first is None else first, at


def coloured(tokens: Sequence[ShownToken]) -> Text:
    """For a terminal: trained tokens green, partly weighted ones yellow, context dim, control tokens reversed; thoughts are
    slanted, calls of tools bold, what tools answered underlined."""
    text = Text()
    for token, breaks in _with_breaks(tokens):
        text.append(SEAM if token.parts else "", style="red")
        text.append(token.text, style=_style(token))
        text.append("\n" if breaks else "")
    return text


def legend() -> Text:
    """What the colours mean."""
    kinds = (
        ("trained", ShownToken("", 1, False, 0)),
        ("partly trained", ShownToken("", 0.5, False, 0)),
        ("context", ShownToken("", 0, False, 0)),
        ("control token", ShownToken("", 0, True, 0)),
    )
    return Text("  ").join(Text(name, style=_style(token)) for name, token in kinds)


def _style(token: ShownToken) -> str:
    style = "green" if token.weight >= 1 else "yellow" if token.weight > 0 else "dim"
    style += _STYLES.get(token.origin, "")
    return f"{style} reverse" if token.special else style


_STYLES = {"thought": " italic", "call": " bold", "argument": " bold", "tool": " underline"}


def _with_breaks(tokens: Sequence[ShownToken]) -> Iterator[tuple[ShownToken, bool]]:
    """Each token, and whether a line ends after it that the record itself does not end."""
    for index, token in enumerate(tokens):
        following = next((later.text for later in tokens[index + 1 :] if later.text), "")
        yield token, token.ends and bool(following) and not following.startswith("\n")


def bracketed(tokens: Sequence[ShownToken]) -> str:
    """For a pipe: plain text, with ⟦trained⟧ stretches in brackets."""
    return "".join(_brackets(tokens))


def described(record: ShownRecord) -> str:
    """How many tokens a record has and how many of them are trained, and what a seam in it means."""
    counts = f"{len(record.tokens):,} tokens, {record.num_trained:,} trained"
    if not _STYLES.keys().isdisjoint(token.origin for token in record.tokens):
        counts += f" ({_by_origin(record.tokens)})"
    if any(token.parts for token in record.tokens):
        counts += f" ({SEAM} encoded in one go with the prompt, this response would begin with another token)"
    return counts


def _by_origin(tokens: Sequence[ShownToken]) -> str:
    """How many tokens are whose, trained ones and context apart, in the order in which they come."""
    found: dict[tuple[str, bool], int] = {}
    for token in tokens:
        kind = (_NAMES.get(token.origin, token.origin or "other"), token.weight > 0)
        found[kind] = found.get(kind, 0) + 1
    trained, context = (
        ", ".join(f"{count} {name}" for (name, is_trained), count in found.items() if is_trained is wanted)
        for wanted in (True, False)
    )
    return f"trained: {trained}; context: {context}"


_NAMES = {"generation_prefix": "prefix", "argument": "call"}


def as_tokens(tokens: Sequence[ShownToken]) -> tuple[Token, ...]:
    """As data.json and `tuneful show --json` hold them."""
    return tuple(
        Token(token.text, token.weight, token.special, token.token_id, token.origin or None) for token in tokens
    )


def as_page(records: Sequence[ShownRecord], *, title: str) -> str:
    """One HTML page, everything in it: the records' tokens, coloured, with a legend. Text of the records is only text."""
    return _PAGE.format(title=escape(title), records="\n".join(map(_as_section, records)))


def _as_section(record: ShownRecord) -> str:
    if record.refused is not None:
        return f"<section><h2>{escape(record.source)}</h2><p>refused: {escape(record.refused)}</p></section>"
    counts = described(record)
    tokens = "".join(_as_span(token) + ("\n" if breaks else "") for token, breaks in _with_breaks(record.tokens))
    return f"<section><h2>{escape(record.source)} <small>{counts}</small></h2><pre>{tokens}</pre></section>"


def _as_span(token: ShownToken) -> str:
    kind = "trained" if token.weight >= 1 else "partly" if token.weight > 0 else "context"
    title = f"id {token.token_id}" + ("" if token.weight in (0, 1) else f", weight {token.weight:g}")
    title += f", {token.origin}" if token.origin else ""
    text = escape(token.text).replace("\n", "⏎\n")
    seam = f'<span class="seam">{SEAM}</span>' if token.parts else ""
    return f'{seam}<span class="{kind}{" special" if token.special else ""}" title="{title}">{text}</span>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #faf9f6; --ink: #1c1e22; --soft: #5a606b; --line: #d5d2ca;
  --trained: #dfe2fb; --trained-2: #ced3f7; --accent: #3d47b8; --partly: #eef0fd; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #131519; --ink: #e9e7e2; --soft: #a5abb6; --line: #3a3f49;
  --trained: #2d3468; --trained-2: #384180; --accent: #9aa5ff; --partly: #242942; }} }}
body {{ margin: 0 auto; max-width: 1000px; padding: 24px 20px 60px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1rem; overflow-wrap: anywhere; }}
small {{ color: var(--soft); font-weight: 400; margin-left: 8px; }}
pre, .legend span {{ font: 0.9rem/1.75 ui-monospace, Menlo, Consolas, monospace; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }}
.context {{ color: var(--soft); }}
.partly {{ background: var(--partly); border-bottom: 2px dotted var(--accent); }}
.trained {{ background: var(--trained); border-bottom: 2px solid var(--accent); }}
.trained:nth-child(even) {{ background: var(--trained-2); }}
.seam {{ color: var(--accent); font-weight: 700; }}
.special {{ outline: 1px solid var(--soft); outline-offset: -1px; padding: 0 3px; margin: 0 1px; }}
.legend span {{ margin-right: 14px; }}
</style></head><body>
<h1>{title}</h1>
<p class="legend"><span class="trained">trained</span><span class="partly">partly trained</span>
<span class="context">context</span><span class="context special">control token</span></p>
{records}
</body></html>
"""


def _brackets(tokens: Sequence[ShownToken]) -> Iterator[str]:
    for weight, stretch in groupby(tokens, key=lambda token: token.weight):
        text = "".join(SEAM * token.parts + token.text for token in stretch)
        yield text if weight == 0 else f"⟦{text}⟧" if weight == 1 else f"⟦{weight:g}: {text}⟧"
