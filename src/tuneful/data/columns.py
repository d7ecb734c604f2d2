"""Columns become fields: which column of a row holds what is asked, the answer, the input, the system text.

A format names its fields; what other formats call the same thing is taken too (`input` and `context`, `output` and `response`,
`system` and `system_prompt`), in any case. Where two columns hold a text for one field, and nobody has said which is meant
(`data.columns`), the row is refused with both names. Text in a column that is no field is counted, to be named before a step is
taken. Pairs, answers that are not wanted, and images are refused: trained as plain answers they teach something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneful.data.marks import MASKING
from tuneful.data.messages import is_prose, looks_like_a_dialogue, looks_like_messages
from tuneful.data.notes import UNUSED, Noted, quoted
from tuneful.data.rows import shown
from tuneful.data.tools import TOOLS
from tuneful.data.values import Fields, from_json_text, is_blank, unfit

ASKS = ("instruction", "prompt", "question")
ANSWERS = ("output", "response", "completion", "answer")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
SAME = {name: names for names in (ASKS, ANSWERS, INPUTS, SYSTEMS, MESSAGES[:2], TOOLS) for name in names}
"""The names that mean the same field, by each of them."""

WEIGHT = "weight"
"""The field of any format that says how much a record counts in the loss; only a column that data.columns names is one."""
RECORD_MARKS = frozenset(("loss", "train", "training", "trainable", *MASKING))
"""What would be a mark on a message; of a whole record it may say as well to which side it belongs, and is not read."""
LABELS = ("label", "kto_tag")
CHOSEN = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
REJECTED = ("rejected", "rejected_response", "rejected_messages", "reject", "non_preferred_output")
_IMAGES = ("image", "images", "img", "image_path", "image_url", "image_file", "picture")
_MEDIA = frozenset((*_IMAGES, "video", "videos", "audio", "audios"))
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tiff")
_MEDIA_ENDINGS = (*_IMAGE_ENDINGS, ".mp4", ".avi", ".webm", ".mp3", ".wav", ".flac", ".ogg")
_PLACEHOLDERS = ("<image>", "<video>", "<audio>", "<|image|>", "<image_1>")
_SUSPECT = frozenset((*_MEDIA, *LABELS, *REJECTED, WEIGHT, *RECORD_MARKS))
_JSON_OPENINGS = ("[", "{", '"[', '"{')
_TEXTS_IN_TURN = frozenset((*MESSAGES, "data", "utterances"))
"""Columns whose lists of texts are read as a conversation; elsewhere such a list may be anything."""


def normal_name(key: str) -> str:
    """A column's name without what people vary: `System Prompt` is `system_prompt`."""
    return key.strip().lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the fields of a format stand in rows of the same keys: the columns of each field, in the order of preference.

    `unused` are the columns that are no field; `suspect` says that one of the keys may hold a pair, a label or an image.
    """

    columns: Mapping[str, Sequence[str]]
    unused: tuple[str, ...]
    suspect: bool

    @property
    def is_plain(self) -> bool:
        """Whether every field stands under its own name and nowhere else."""
        return all(tuple(columns) == (field,) for field, columns in self.columns.items())


def plan_of(fields: Iterable[str], keys: Collection[str], mapped: Mapping[str, str], aside: Collection[str]) -> Plan:
    """The plan of rows with `keys` for a format of these `fields`, under data.columns (`mapped`).

    Columns that are set `aside` hold something else where another column could be meant.
    """
    free = {key: normal_name(key) for key in keys if key not in mapped.values()}
    columns: dict[str, Sequence[str]] = {}
    for field in fields:
        if field in mapped:
            columns[field] = (mapped[field],) if mapped[field] in keys else ()
            continue
        names = SAME.get(field, (field,))
        found = [key for key, name in free.items() if name in names and not (key in fields and key != field)]
        found.sort(key=lambda key: (key != field, free[key] != field, names.index(free[key])))
        columns[field] = [key for key in found if key not in aside] or found
    taken = {key for found in columns.values() for key in found} | set(aside)
    unused = tuple(key for key in keys if key not in taken)
    suspect = not _SUSPECT.isdisjoint(free.values())
    return Plan({field: found for field, found in columns.items() if found}, unused, suspect)


def fields_of(row: Fields, plan: Plan, mapped: Collection[str], noted: Noted) -> Fields:
    """The fields of `row` under `plan`; UnfitError where two columns compete for one field.

    That a field stands under another name is counted, unless the column is among those that were `mapped` by the user.
    """
    if plan.is_plain:
        return row
    fields = {}
    for field, columns in plan.columns.items():
        column = columns[0] if len(columns) == 1 else _one_that_speaks(row, field, columns)
        fields[field] = row[column]
        if column not in mapped and normal_name(column) != field and not is_blank(row[column]):
            noted.add("renamed", quoted(column), quoted(field))
    return fields


def _one_that_speaks(row: Fields, field: str, columns: Sequence[str]) -> str:
    """The column of several that holds a text for `field`; the first where they hold the same."""
    speaking = [column for column in columns if not is_blank(row[column])]
    if not speaking:
        return columns[0]
    first, *others = speaking
    for other in others:
        if not _says_no_more(row[other], row[first], field):
            names = f"{quoted(first)} and {quoted(other)}"
            also = (
                f", and data.columns={INPUTS[0]}={shown(other)} puts the other into the prompt" if field in ASKS else ""
            )
            unfit(
                f"{names} both hold {_MEANING[field]}; name the one that is meant: data.columns={field}={shown(first)}{also}"
            )
    return first


_MEANING = {
    **dict.fromkeys(ASKS, "what is asked"),
    **dict.fromkeys(ANSWERS, "an answer"),
    **dict.fromkeys(INPUTS, "an input"),
    **dict.fromkeys(SYSTEMS, "a system text"),
    **dict.fromkeys(MESSAGES, "messages"),
    **dict.fromkeys(TOOLS, "tools"),
}


def _says_no_more(other: Any, chosen: Any, field: str) -> bool:
    """Whether the text `other` says nothing that `chosen` does not; two answers have to be the same."""
    if not isinstance(other, str) or not isinstance(chosen, str):
        return bool(other == chosen)
    return other.strip() == chosen.strip() if field in ANSWERS else other.strip() in chosen


def message_columns(row: Fields) -> list[str]:
    """The columns of a row of no known format that hold messages, as such or as JSON text."""
    return [
        key
        for key, value in row.items()
        if normal_name(key) not in (*CHOSEN, *REJECTED) and _holds_messages(value, normal_name(key) in _TEXTS_IN_TURN)
    ]


def is_pair(row: Fields) -> bool:
    """Whether a row holds an answer that is chosen and one that is rejected."""
    names = {normal_name(key) for key, value in row.items() if not is_blank(value)}
    return not names.isdisjoint(CHOSEN) and not names.isdisjoint(REJECTED)


def _holds_messages(value: Any, may_be_texts: bool) -> bool:
    if isinstance(value, str) and value.lstrip().startswith(_JSON_OPENINGS):
        if may_be_texts:
            return True  # what is wrong with it is told when it is read
        try:
            value = from_json_text(value, "", Noted())
        except ValueError:
            return False
    return looks_like_messages(value) or (may_be_texts and looks_like_a_dialogue(value))


def no_format_fits(columns: Mapping[str, str], formats: Mapping[str, Sequence[str]]) -> str:
    """Why the fields of data.columns suit none of the `formats`, with their fields; and the setting that is meant, if one is."""
    fault = f"data.columns: {', '.join(map(quoted, columns))} are not fields of one format"
    for fields in formats.values():
        meant = {
            next((one for one in SAME.get(name, (name,)) if one in (*fields, WEIGHT)), ""): at
            for name, at in columns.items()
        }
        if "" not in meant and len(meant) == len(columns):
            return f"{fault}. With the names of one: data.columns={','.join(map('='.join, meant.items()))}"
    known = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in formats.items())
    return f"{fault}. It maps fields to column names, as in instruction=question,output=answer. Fields are {known}"


# What is no plain answer


def check_plain(row: Fields, answer: str, mapped: Mapping[str, str], noted: Noted, *, asks: bool) -> None:
    """UnfitError for pairs, answers that are not wanted, and images; `answer` is the field of the answer.

    A pair whose answer is named in data.columns is read as asked for, and with `asks` no answer is read at all.
    """
    for key, value in row.items():
        name = normal_name(key)
        if is_blank(value):
            continue
        if name in REJECTED and answer not in mapped and not asks:
            unfit(
                f"a preference pair: {quoted(key)} is an answer that is not wanted; train.objective=dpo trains on pairs, and "
                f"data.columns={answer}=COLUMN names the answer to be trained as a plain one"
            )
        if name in LABELS and key not in mapped.values() and not asks:
            _check_label(key, value, name != LABELS[0] or answer == "completion", noted)
        elif name in _MEDIA and _is_media(value):
            unfit(f"{quoted(key)} holds an image or sound, which is not trained; leave such records out")
        elif name == WEIGHT and WEIGHT not in mapped and _is_number(value):
            noted.add("weight_not_asked", quoted(key))
        elif name in RECORD_MARKS and str(value).strip().lower() == ("true" if name in MASKING else "false"):
            noted.add("mark_on_record", quoted(key), str(value).strip().lower())


def _check_label(key: str, value: Any, may_be_number: bool, noted: Noted) -> None:
    """UnfitError where a label is false; 0 and 1 are labels of KTO's only beside its other columns, else numbers of classes."""
    word = str(value).strip().lower()
    if word == "false" or (may_be_number and word in ("0", "0.0")):
        unfit(
            f"{quoted(key)} is {word}: an answer that is not wanted; train.objective=kto trains on labels, and "
            "data.on_error=skip leaves such rows out"
        )
    if word == "true" or (may_be_number and word in ("1", "1.0")):
        noted.add("label", quoted(key))


def _is_media(value: Any) -> bool:
    """Whether a value is an image, a sound, or the name of one: an object with bytes, a path, a list of such."""
    if isinstance(value, list):
        return any(map(_is_media, value))
    if isinstance(value, dict):
        return "bytes" in value or "path" in value or "url" in value
    text = value.lower() if isinstance(value, str) else ""
    return text.startswith(("data:image", "data:audio", "data:video", "http://", "https://")) or text.endswith(
        _MEDIA_ENDINGS
    )


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (list, dict)) and float(value) is not None
    except (ValueError, TypeError, OverflowError):
        return False


# What is not used


METADATA = "tuneful_metadata"
"""The column in which `tuneful synthesize` says how a row was made: never trained, and no text that was forgotten."""


def note_unused(row: Fields, unused: Sequence[str], used: Sequence[str], hint: str, noted: Noted) -> None:
    """Count the columns of `unused` that hold text which stands nowhere in the texts that are `used`.

    Text is at least two words (`is_prose`). A rendering of the whole record, as Alpaca's `text`, holds nothing else.
    """
    for column in unused:
        value = row[column]
        if column != METADATA and is_prose(value) and not _is_known(value, used):
            noted.add(UNUSED, quoted(column), hint.format(column=shown(column)))


def _is_known(value: Any, used: Sequence[str]) -> bool:
    """Whether all that `value` says stands in `used`, or all of `used` in it."""
    if isinstance(value, str):
        text = value.strip()
        return any(text in one for one in used) or (len(used) > 1 and all(one.strip() in text for one in used))
    inner = value.values() if isinstance(value, dict) else value
    return all(_is_known(one, used) for one in inner if is_prose(one))


def note_placeholders(asked: Iterable[str], noted: Noted) -> None:
    """Count texts that hold the place of an image or a sound."""
    for text in asked:
        for placeholder in _PLACEHOLDERS if "<" in text else ():
            if placeholder in text:
                noted.add("placeholder", quoted(placeholder))
