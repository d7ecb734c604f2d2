"""Records as tokens coloured by weight: what is shown is what is trained.

In a terminal trained tokens stand out, context is dim and control tokens are marked; in a pipe the same record is plain
text with trained stretches in ⟦brackets⟧.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from tuneful.data.encode import TextEncoder
from tuneful.types import Example


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token's text, its weight in the loss, and whether it is a control token."""

    text: str
    weight: float
    special: bool


def shown_tokens(example: Example, encoder: TextEncoder) -> list[ShownToken]:
    """The example token by token; bytes of one character that several tokens share are shown with the last of them."""
    shown = []
    pending: list[int] = []
    for token_id, weight in zip(example.token_ids.tolist(), example.weights.tolist(), strict=True):
        special = token_id in encoder.control_token_ids
        text = encoder.token_text([*pending, token_id])
        incomplete = text.endswith("\ufffd") and len(pending) < 3 and not special
        pending = [*pending, token_id] if incomplete else []
        shown.append(ShownToken("" if incomplete else text, weight, special))
    return shown


def coloured(tokens: Sequence[ShownToken]) -> Text:
    """For a terminal: trained tokens green, partly weighted ones yellow, context dim, control tokens reversed."""
    text = Text()
    for token in tokens:
        style = "green" if token.weight >= 1 else "yellow" if token.weight > 0 else "dim"
        text.append(token.text, style=f"{style} reverse" if token.special else style)
    return text


def bracketed(tokens: Sequence[ShownToken]) -> str:
    """For a pipe: plain text, with ⟦trained⟧ stretches in brackets."""
    return "".join(_brackets(tokens))


def as_dicts(tokens: Sequence[ShownToken]) -> list[dict[str, Any]]:
    """For data.json: text, weight and special of each token."""
    return [asdict(token) for token in tokens]


def _brackets(tokens: Sequence[ShownToken]) -> Iterator[str]:
    for weight, stretch in groupby(tokens, key=lambda token: token.weight):
        text = "".join(token.text for token in stretch)
        yield text if weight == 0 else f"⟦{text}⟧" if weight == 1 else f"⟦{weight:g}: {text}⟧"
