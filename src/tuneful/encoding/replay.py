"""General records or text, mixed into training so that the model keeps what it could do before.

Stands beside prepare.py: what it gives are Examples like any other, of which `train` takes a share (`data.replay_ratio`)
and whose loss is drawn as a curve of its own. Records are answered by the same template; text (`.txt`) is cut at blank
lines into passages and is trained on whole, without a template, as it was in pretraining. A record whose prompt stands in
the validation or test set is left out: it would be studied for the exam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuneful.data.pairs import LABEL_OBJECTIVE, PAIR_OBJECTIVES
from tuneful.data.read import read_data
from tuneful.data.split import normal_prompt
from tuneful.encoding.encode import Encoder
from tuneful.errors import DataError
from tuneful.types import Conversation, Example


@dataclass(frozen=True, slots=True)
class Replay:
    """The examples of one replay set, of which `ratio` join each training example. `num_refused` rows could not be used,
    `num_held_out` are asked in an evaluation."""

    name: str
    ratio: float
    examples: Sequence[Example]
    num_refused: int = 0
    num_held_out: int = 0

    @property
    def num_read(self) -> int:
        """Rows or passages of the file."""
        return len(self.examples) + self.num_refused + self.num_held_out


def read_replay(
    name: str, ratio: float, encoder: Encoder, held_out: Iterable[Conversation], objective: str = "sft"
) -> Replay:
    """Read `name`: a file of records, `starter`, or a `.txt` file of passages; of pairs or labels where `objective`, that is
    train.objective, takes them. DataError where nothing can be used."""
    is_text = name.endswith(".txt")
    if is_text and objective in (*PAIR_OBJECTIVES, LABEL_OBJECTIVE):
        raise DataError(
            f"`data.replay`: {name} is text, and train.objective={objective} trains on preferences; name a file of them"
        )
    replay = _passages(name, ratio, encoder) if is_text else _records(name, ratio, encoder, held_out, objective)
    if not replay.examples:
        raise DataError(
            f"`data.replay`: {name} leaves nothing to replay: of {replay.num_read} rows {replay.num_refused} cannot be used "
            f"and {replay.num_held_out} stand in the validation or test set"
        )
    return replay


def _records(name: str, ratio: float, encoder: Encoder, held_out: Iterable[Conversation], objective: str) -> Replay:
    file = read_data(name, objective=objective, on_error="skip")
    asked = {normal_prompt(conversation) for conversation in held_out}
    free = [record for record in file.records if normal_prompt(record.conversation) not in asked]
    encoded = [encoder.example(record.conversation) for record in free]
    examples = tuple(example for example in encoded if isinstance(example, Example))
    num_refused = len(file.refused) + len(free) - len(examples)
    return Replay(name, ratio, examples, num_refused, len(file.records) - len(free))


def _passages(name: str, ratio: float, encoder: Encoder) -> Replay:
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"`data.replay`: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`data.replay`: {path}: cannot be read as UTF-8 text: {error}") from None
    examples: list[Example] = []
    num_short = 0
    for line, passage in _cut_at_blank_lines(text):
        ids = [*encoder.text.begin_token_ids, *encoder.text.text_ids(passage)]
        parts = [ids[start : start + encoder.max_length] for start in range(0, len(ids), encoder.max_length)]
        usable = [part for part in parts if len(part) > 1]
        num_short += not usable
        examples += [_plain_example(part, f"{path}:{line}") for part in usable]
    return Replay(name, ratio, tuple(examples), num_short)


def _cut_at_blank_lines(text: str) -> Iterator[tuple[int, str]]:
    """(first line from 1, text) of each passage."""
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            lines.append(line)
        elif lines:
            yield number - len(lines), "\n".join(lines)
            lines = []


def _plain_example(ids: list[int], source: str) -> Example:
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0
    # The passage goes on after its last token as far as anybody knows: no end is taught.
    return Example(np.asarray(ids, dtype=np.int32), weights, 0, source, cut=True)
