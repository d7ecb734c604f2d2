"""Files of tests become items: multiple choice, and instructions that can be verified.

The forms are those in which such sets are passed around, by the names of their keys (`_QUESTIONS`, `_CHOICES`, `_GOLD`), in any
file that data may be in (`data/sources.py`): JSONL, a JSON list, CSV, Parquet, packed or not. What is right is never guessed: an
answer that could mean two of the choices is a fault. A damaged file is refused in one message, with the line of each fault; a
row that asks for what cannot be verified is an item with the reason why it has no score.

    {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}                      MMLU and most others; "B" is 1, too
    {"query": "...", "choices": [...], "gold": 1}     {"ctx": "...", "endings": [...], "label": "1"}
    {"question": "...", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}               ARC
    {"sentence": "The cup fell off _.", "option1": "the shelf", "option2": "the moon", "answer": "1"}         WinoGrande
    {"prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}                        IFEval
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneful.data.rows import Row, shown
from tuneful.data.sources import ByteStream, Place, find_files, joint_sha256
from tuneful.data.tables import is_table, table_rows
from tuneful.data.text_files import text_rows
from tuneful.errors import DataError
from tuneful.evaluation.constraints import RULES, Constraint, fault_of

_QUESTIONS = ("question", "query", "sentence", "ctx", "question_stem", "goal")
_CHOICES = ("choices", "options", "endings")
_GOLD = ("answer", "gold", "answerKey", "label", "target")
_NUMBERED = re.compile(r"(?:option|sol|choice|opt|ending)_?(\d)", re.I)
_INSTRUCTIONS = "instruction_id_list"
_KEYS = frozenset({*_QUESTIONS, *_CHOICES, *_GOLD, _INSTRUCTIONS, "prompt"})
_MAX_FAULTS = 5

Kind = Literal["choices", "instructions"]


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with two choices or more, of which those numbered `gold` (from 0) are right.

    Where the question `has_blank` (a `_`), the choices stand in it.
    """

    source: str
    question: str
    choices: tuple[str, ...]
    gold: tuple[int, ...]
    has_blank: bool = False


@dataclass(frozen=True, slots=True)
class InstructionItem:
    """A prompt and what its answer is held against; or the reason why that cannot be verified."""

    source: str
    prompt: str
    constraints: tuple[Constraint, ...]
    unscored_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A file of items of one kind. `name` stands in the names of its metrics, `sha256` is of the file's bytes."""

    name: str
    file: str
    sha256: str
    items: tuple[ChoiceItem, ...] | tuple[InstructionItem, ...]

    @property
    def kind(self) -> Kind:
        """What its items are."""
        return "choices" if isinstance(self.items[0], ChoiceItem) else "instructions"


def read_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of the files that `names` name, in order; DataError for what is missing or damaged."""
    places = find_files(names) if names else []
    return [_read(place, name) for place, name in zip(places, task_names(places), strict=True)]


def task_names(places: Sequence[Place]) -> list[str]:
    """A name for each file, out of its own: small letters, digits and `_`; numbered where two would be the same."""
    found: list[str] = []
    for place in places:
        stem = Path(place.name).name.partition(".")[0]
        name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "test"
        number = sum(re.fullmatch(rf"{name}(?:_\d+)?", other) is not None for other in found)
        found.append(f"{name}_{number + 1}" if number else name)
    return found


def _read(place: Place, name: str) -> Task:
    items: list[ChoiceItem | InstructionItem] = []
    faults: list[str] = []
    with ByteStream(place) as stream:
        for source, value, fault in _rows(stream):
            found = fault or _item(value, source)
            if isinstance(found, str):
                faults.append(f"{source}: {found}")
            elif items and type(items[0]) is not type(found):
                faults.append(f"{source}: multiple choice and instructions do not go into one file")
            else:
                items.append(found)
        stream.check_unchanged()
        sha256 = joint_sha256([stream.sha256])
    if faults:
        more = f"\nand {len(faults) - _MAX_FAULTS:,} more" if len(faults) > _MAX_FAULTS else ""
        raise DataError(
            "\n".join(faults[:_MAX_FAULTS]) + more + "\nMend these rows, or take them out; docs/evaluation.md"
        )
    if not items:
        raise DataError(f"{place.name}: holds no item")
    reasons = [item.unscored_reason for item in items if isinstance(item, InstructionItem)]
    if reasons and None not in reasons:
        raise DataError(f"{place.name}: none of its {len(items)} items can be scored; {items[0].source}: {reasons[0]}")
    return Task(name, place.name, sha256, tuple(items))  # type: ignore[arg-type]


def _rows(stream: ByteStream) -> Any:
    head = stream.peek(16)
    if stream.compression or not is_table(head):
        return text_rows(stream, _KEYS, _KEYS)
    return _table(head, stream)


def _table(head: bytes, stream: ByteStream) -> Any:
    if stream.path is None:
        raise DataError("stdin: byte 0: Parquet and Arrow are read from files only; save it and name the file")
    for _ in stream.blocks():  # for its hash
        pass
    rows: Sequence[Row] | Any = table_rows(head, stream.path, stream.name)
    return rows


def _item(row: Any, source: str) -> ChoiceItem | InstructionItem | str:
    """The item of a row, or what is wrong with it."""
    if not isinstance(row, Mapping):
        return "no object"
    if _INSTRUCTIONS in row:
        return _instruction_item(row, source)
    key = next((name for name in _QUESTIONS if name in row), None)
    if key is None:
        return (
            f"no item of a test: its keys are {', '.join(shown(str(name)) for name in list(row)[:8])}; expected "
            f"one of {', '.join(_QUESTIONS)} with choices, or `prompt` with `{_INSTRUCTIONS}`"
        )
    question = row[key]
    if not isinstance(question, str) or not question.strip():
        return f"`{key}` is no text"
    found = _choices(row)
    if isinstance(found, str):
        return found
    choices, labels = found
    if key == "sentence" and question.count("_") > 1:
        return "`sentence` has more than one `_`"
    if key == "sentence" and "_" in question and not question.partition("_")[2].strip():
        return "nothing follows the `_` of `sentence`: give the text before it as `question`"
    gold = _gold(row, choices, labels)
    return (
        gold
        if isinstance(gold, str)
        else ChoiceItem(source, question, choices, gold, key == "sentence" and "_" in question)
    )


def _choices(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | str:
    """The choices of a row and their labels, those that it names or none; or what is wrong with them."""
    key = next((name for name in _CHOICES if row.get(name) is not None), None)
    labels: Any = ()
    texts: Any
    if key is not None:
        texts = row[key]
        if isinstance(texts, Mapping):
            texts, labels = texts.get("text"), texts.get("label")
        elif isinstance(texts, list) and texts and all(isinstance(one, Mapping) for one in texts):
            texts, labels = [one.get("text") for one in texts], [one.get("label") for one in texts]
    else:
        numbered = {name: found[1] for name in row if (found := _NUMBERED.fullmatch(name))}
        texts = [row[name] for name in numbered]
        labels = list(numbered.values())
        key = "choices"
        if labels != sorted(labels):
            return f"{', '.join(numbered)} are out of order"
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(one, str) and one.strip() for one in texts):
        return f"`{key}` is no list of two texts or more"
    if not isinstance(labels, (list, tuple)) or (labels and len(labels) != len(texts)):
        return f"`{key}` has not a `label` for each `text`"
    return tuple(texts), tuple(str(label) for label in labels)


def _gold(row: Mapping[str, Any], choices: Sequence[str], labels: Sequence[str]) -> tuple[int, ...] | str:
    """The numbers of the right choices, from 0; or why they cannot be told."""
    key = next((name for name in _GOLD if row.get(name) is not None), None)
    if key is None:
        return f"no right answer: expected one of {', '.join(_GOLD)}"
    values = row[key] if isinstance(row[key], list) else [row[key]]
    found: list[int] = []
    for value in values:
        places = _meant(value, choices, labels)
        if len(places) != 1:
            said = shown(str(value))
            means = (
                f"may mean {' and '.join(f'choice {place + 1}' for place in sorted(places))}; give the index, from 0"
            )
            return f"`{key}` {said!r} {means if places else f'is none of the {len(choices)} choices'}"
        found.extend(places)
    return tuple(dict.fromkeys(found)) or f"`{key}` is empty"


def _meant(value: Any, choices: Sequence[str], labels: Sequence[str]) -> set[int]:
    """Which choices `value` can mean: a number counts from 0; a text is a label of the row's own, else a letter, a number in
    digits, or a choice itself."""
    if isinstance(value, bool):
        return set()
    if isinstance(value, int):
        return {value} if 0 <= value < len(choices) else set()
    if not isinstance(value, str):
        return set()
    if value in labels:
        return {labels.index(value)}
    places = {place for place, choice in enumerate(choices) if choice == value}
    letter = value.strip().strip("().").upper()
    if len(letter) == 1 and letter in string.ascii_uppercase:
        places.add(string.ascii_uppercase.index(letter))
    elif value.strip().isdecimal():
        places.add(int(value))
    return {place for place in places if place < len(choices)}


def _instruction_item(row: Mapping[str, Any], source: str) -> InstructionItem | str:
    prompt, names = row.get("prompt", row.get("instruction")), row[_INSTRUCTIONS]
    if not isinstance(prompt, str) or not prompt.strip():
        return "`prompt` is no text"
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return f"`{_INSTRUCTIONS}` is no list of names"
    arguments = row.get("kwargs", [{}] * len(names))
    if not isinstance(arguments, list) or len(arguments) != len(names):
        return f"`kwargs` is no list of {len(names)} objects, one for each of `{_INSTRUCTIONS}`"
    if not all(isinstance(one, Mapping) for one in arguments):
        return "`kwargs` holds something that is no object"
    if unknown := sorted({name for name in names if name not in RULES}):
        return InstructionItem(source, prompt, (), f"cannot verify {', '.join(map(shown, unknown))}")
    faults = [fault for name, one in zip(names, arguments, strict=True) if (fault := fault_of(name, one))]
    constraints = tuple(Constraint(name, dict(one)) for name, one in zip(names, arguments, strict=True))
    return faults[0] if faults else InstructionItem(source, prompt, constraints)
