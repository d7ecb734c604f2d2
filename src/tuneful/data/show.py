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
    shown: list[ShownToken] = []
    token_ids = example.token_ids.tolist()
    # token_ids[start:seam], the character shown last, is decoded again: some tokenizers drop the space at the head of a text.
    start = seam = 0
    for index, weight in enumerate(example.weights.tolist()):
        special = token_ids[index] in encoder.control_token_ids
        before = encoder.token_text(token_ids[start:seam])
        text = encoder.token_text(token_ids[start : index + 1])[len(before) :]
        pending = text.endswith("\ufffd") and index - seam < 3 and not special and index + 1 < len(token_ids)
        if not pending:
            start, seam = seam, index + 1
        shown.append(ShownToken("" if pending else text, weight, special))
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
