"""Text to token ids and back: what a record becomes is what the tokenizer, and so any server, makes of the rendered text.

A record is pieces of known origin (`template.py`). Control tokens count where the template writes them and nowhere else:
`<|im_end|>` in a record is seven ordinary tokens. They divide a text into stretches, and each stretch is encoded in one go,
whoever wrote its parts, so that `.` and `\\n\\n` become the one token that a server sends. Control tokens are those that the
tokenizer's file calls `special`, and those added tokens that the template opens or ends a message with (`<｜User｜>` of
DeepSeek). Everything else that was added to a tokenizer (`<think>`, `<tool_call>`, words of a trade) is what it makes of it.

    pieces      <|im_start|>user\\n | Say it.     | \\n\\nNow.<|im_end|>\\n<|im_start|>assistant\\n
    runs        [1]  "user\\nSay it.\\n\\nNow."  [2]  "\\n"  [1]  "assistant\\n"

The tokenizer is used through a copy of its own description in which no control token can be written: as fast as itself, about
a million tokens a second on two cores, and equal to it wherever a text holds no control token.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from tuneful.encoding.template import FROM_THE_TEMPLATE, Origin, Piece, Template, any_of
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn, rejected_texts, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Run = list[int | str]
"""A text as control tokens (their ids) and the stretches between them; two stretches never stand side by side."""

_WORTH_THREADS = 32
"""Texts below which a batch of them costs more than it saves: waking the tokenizer's threads takes most of a millisecond."""


@dataclass(frozen=True, slots=True)
class _ControlToken:
    """A control token's id, and whether it takes the white space before and behind it."""

    token_id: int
    takes_before: bool
    takes_behind: bool


class TextEncoder:
    """Text to token ids and back, under one tokenizer and one template.

    `end_token_id` closes a response: the template's own end token where the tokenizer has it, else the tokenizer's.
    `stop_token_ids` are all tokens at which an answer ends; `special_token_texts` are the texts that a record may hold and
    only the template may mean; `fingerprint` is over all of tokenizer and template that decides a token. Raises TemplateError
    for a tokenizer without an end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"{tokenizer.name_or_path}: no fast tokenizer (tokenizer.json); convert the tokenizer first"
            )
        description = backend.to_str()
        document = json.loads(description)
        self.template = template
        self._backend = backend
        self._control = _control_tokens(document, template)
        self._at_start, self._behind_a_token, self._behind_a_text = _encoders(document, frozenset(self._control))
        self._any_control = any_of(self._control)
        self._strips = any(token.takes_before or token.takes_behind for token in self._control.values())
        self.control_token_ids = {token.token_id: content for content, token in self._control.items()}
        self._begin_token_ids = _bos_token_ids(tokenizer)
        self.end_token_id = self._find_end(tokenizer)
        self.special_token_texts = tuple(
            sorted(set(filter(str.strip, self._control)) | set(template.stop), key=lambda text: (-len(text), text))
        )
        self._any_special = any_of(self.special_token_texts)
        self.stop_token_ids = {self.end_token_id, tokenizer.eos_token_id, self._call_end_id()} - {None}
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.fingerprint = self._fingerprint(description)

    @property
    def bos_token_ids(self) -> list[int]:
        """What the tokenizer puts before a text, where the template does not write it."""
        return [] if self.template.writes_bos else self._begin_token_ids

    @property
    def begin_token_ids(self) -> list[int]:
        """What the tokenizer puts before a text that no template stands around."""
        return self._begin_token_ids

    @property
    def document_end_id(self) -> int:
        """What closes such a text: the tokenizer's own end token, which closes a response only where the template has none."""
        return next(iter(self.stop_token_ids - {self.end_token_id}), self.end_token_id)

    # Runs

    def run(self, pieces: Iterable[Piece], *, after: Sequence[int | str] = (), strips: bool = True) -> Run:
        """`pieces` as control tokens and stretches of text, as they stand `after` control tokens, which are not in it.

        With `strips` control tokens take the white space that they are said to take.
        """
        run: Run = list(after)
        for piece in pieces:
            if piece.origin is Origin.END and not piece.text:
                run.append(self.end_token_id)
            elif piece.origin in FROM_THE_TEMPLATE:
                self._append_template(run, piece.text)
            else:
                _append(run, piece.text)
        return (self._stripped(run) if strips and self._strips else run)[len(after) :]

    def ids(self, runs: Sequence[Run], *, at_start: bool = True) -> list[list[int]]:
        """The token ids of each run; the first stretch of a run `at_start` opens a text, any other follows a control token."""
        keys = [
            (stretch, at_start and place == 0)
            for run in runs
            for place, stretch in enumerate(run)
            if isinstance(stretch, str)
        ]
        encoded = self.stretch_ids(keys)
        return [
            [
                token_id
                for place, part in enumerate(run)
                for token_id in (encoded[part, at_start and place == 0] if isinstance(part, str) else (part,))
            ]
            for run in runs
        ]

    def stretch_ids(self, keys: Sequence[tuple[str, bool]]) -> dict[tuple[str, bool], Sequence[int]]:
        """The token ids of stretches, each given with whether it opens a text; a batch is encoded in one go."""
        found: dict[tuple[str, bool], Sequence[int]] = {}
        for opens, encoder in ((True, self._at_start), (False, self._behind_a_token)):
            texts = list(dict.fromkeys(text for text, first in keys if first is opens))
            if len(texts) > _WORTH_THREADS:
                encoded = [one.ids for one in encoder.encode_batch_fast(texts, add_special_tokens=False)]
            else:
                encoded = [encoder.encode(text, add_special_tokens=False).ids for text in texts]
            found.update(zip(((text, opens) for text in texts), encoded, strict=True))
        return found

    def continued_ids(self, text: str) -> list[int]:
        """The token ids of `text` where it is written on after other text: without the mark that opens a text."""
        return list(self._behind_a_text.encode(text, add_special_tokens=False).ids)

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a plain text by itself; what looks like a control token is none."""
        return list(self._at_start.encode(text, add_special_tokens=False).ids)

    def rendered_ids(self, text: str) -> list[int]:
        """The token ids of a prompt that somebody else has rendered: its control tokens are such, a begin token stands before it
        where the tokenizer adds one and the text has none."""
        bos = self._begin_token_ids
        run = self.run([Piece(text, Origin.TEMPLATE)], after=bos)
        (ids,) = self.ids([[*bos, *(run[len(bos) :] if bos and run[: len(bos)] == bos else run)]])
        return ids

    def cut_after(self, text: str, num_tokens: int) -> str:
        """The beginning of `text` that takes `num_tokens` tokens or a few less: whole characters, at least one."""
        offsets = self._behind_a_text.encode(text, add_special_tokens=False).offsets
        if num_tokens >= len(offsets):
            return text
        (_, end), (following, _) = offsets[num_tokens - 1], offsets[num_tokens]
        return text[: min(end, following) or offsets[0][1]]

    def _append_template(self, run: Run, text: str) -> None:
        """Text of the template's: its control tokens are recognised."""
        start = 0
        for found in self._any_control.finditer(text):
            _append(run, text[start : found.start()])
            run.append(self._control[found.group()].token_id)
            start = found.end()
        _append(run, text[start:])

    def _stripped(self, run: Run) -> Run:
        """`run` without the white space that its control tokens take, before or behind them."""
        stripped: Run = []
        for place, part in enumerate(run):
            if isinstance(part, str):
                if place and (before := self._control_of(run[place - 1])) and before.takes_behind:
                    part = part.lstrip()
                if place + 1 < len(run) and (after := self._control_of(run[place + 1])) and after.takes_before:
                    part = part.rstrip()
            if part != "":
                stripped.append(part)
        return stripped

    def _control_of(self, part: int | str) -> _ControlToken | None:
        return self._control.get(self.control_token_ids.get(part, "")) if isinstance(part, int) else None

    # Text

    def count_special_tokens(self, conversation: Conversation) -> Counter[str]:
        """How often each of `special_token_texts` stands in what the record itself says. It is encoded as text, and told of."""
        found: Counter[str] = Counter()
        for text in _texts(conversation):
            found.update(self._any_special.findall(text))
        return found

    def text_of(self, pieces: Iterable[Piece]) -> str:
        """Pieces as text, end tokens included."""
        end = self.token_text([self.end_token_id])
        return "".join(piece.text or end if piece.origin is Origin.END else piece.text for piece in pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids; control tokens are left out, but for those inside of a call."""
        said = [one for one in token_ids if one not in self.control_token_ids or one in self._call_token_ids]
        return str(self._backend.decode(said, skip_special_tokens=not self._call_token_ids))

    def token_text(self, token_ids: Sequence[int]) -> str:
        """The text of a few tokens, control tokens included; bytes that are no whole character come out as U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def _call_end_id(self) -> int | None:
        end = self._control.get(self.template.call_end)
        return end.token_id if end else None

    @cached_property
    def _call_token_ids(self) -> frozenset[int]:
        """The control tokens that a call is written with: part of what the model says."""
        return frozenset(one.token_id for text, one in self._control.items() if text in self.template.call_tokens)

    def _find_end(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if (end := self._control.get(self.template.end)) is not None:
            return end.token_id
        if tokenizer.eos_token_id is None:
            raise TemplateError(
                f"{tokenizer.name_or_path}: the tokenizer has no end token, so no response could ever end; set `eos_token` "
                "in its tokenizer_config.json"
            )
        return int(tokenizer.eos_token_id)

    def _fingerprint(self, description: str) -> str:
        end = self.token_text([self.end_token_id])
        kind = [
            self.template.name,
            self.template.chat_template(bos_text="", end_text=end),
            self.template.stop,
            self.bos_token_ids,
            end,
        ]
        return hashlib.sha256((description + json.dumps(kind)).encode("utf-8", "surrogatepass")).hexdigest()


def _append(run: Run, text: str) -> None:
    """`text` after what stands in `run` already: one stretch with the text before it."""
    if not text:
        return
    if run and isinstance(run[-1], str):
        run[-1] += text
    else:
        run.append(text)


def _bos_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before every text: its begin token, or nothing."""
    opening = tokenizer("", add_special_tokens=True)["input_ids"]
    return [tokenizer.bos_token_id] if opening[:1] == [tokenizer.bos_token_id] else []


def _control_tokens(document: dict[str, Any], template: Template) -> dict[str, _ControlToken]:
    """The control tokens of a tokenizer's description, by text: the `special` ones, and those that divide the template's turns.

    A pair of tags (`<think>` and `</think>`) is markup inside a message, wherever the template writes it.
    """
    added = {token["content"]: token for token in document["added_tokens"]}
    asked = template.prompt(Conversation("", (Turn("a", "", "b"),), template.name))
    written = [template.end, *template.stop, *(piece.text for piece in asked if piece.origin is Origin.TEMPLATE)]
    dividing = {
        text for text in any_of(filter(str.strip, added)).findall("\n".join(written)) if not _is_tag(text, added)
    }
    return {
        text: _ControlToken(token["id"], token["lstrip"], token["rstrip"])
        for text, token in added.items()
        if token["special"] or text in dividing
    }


def _is_tag(text: str, added: Collection[str]) -> bool:
    return text[:1] == "<" and (
        text.replace("<", "</", 1) in added or (text.replace("</", "<", 1) in added and text[1:2] == "/")
    )


def _encoders(document: dict[str, Any], control: frozenset[str]) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    """What encodes a text that opens a record, that stands behind a control token, and that goes on behind other text."""
    plain = _without_control_tokens(document, control)
    at_start = Tokenizer.from_str(json.dumps(plain))
    return at_start, _another(plain, _never_first, at_start), _another(plain, _without_start_mark, at_start)


def _without_control_tokens(document: dict[str, Any], control: Collection[str]) -> dict[str, Any]:
    """The tokenizer's description with `control` tokens renamed to what nobody can write, and nothing added around a text.

    They stay in their places, so that every other token keeps its id; the token for the unknown keeps its name, by which the
    model finds it.
    """
    nonce = secrets.token_hex(8)
    model = document["model"]
    hidden = {content: f"\uffff{nonce}n{number}\uffff" for number, content in enumerate(control)}
    added = [{**token, "content": hidden.get(token["content"], token["content"])} for token in document["added_tokens"]]
    if unknown := model.get("unk_token"):
        hidden.pop(unknown, None)
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab = {hidden.get(token, token): token_id for token, token_id in vocab.items()}
    else:
        vocab = [[hidden.get(token, token), *rest] for token, *rest in vocab]
    bare = {"post_processor": None, "truncation": None, "padding": None}
    return {**document, **bare, "added_tokens": added, "model": {**model, "vocab": vocab}}


def _another(document: dict[str, Any], change: Any, same: Tokenizer) -> Tokenizer:
    """The tokenizer with its normalizer and pre-tokenizer changed; `same` where that changes nothing."""
    steps = {name: change(document[name]) for name in ("normalizer", "pre_tokenizer")}
    if all(steps[name] == document[name] for name in steps):
        return same
    return Tokenizer.from_str(json.dumps({**document, **steps}))


def _never_first(step: Any) -> Any:
    """A step as it works behind a control token: a mark that only the first word of a text gets is left out."""
    if isinstance(step, dict) and step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never"}
    return _in_a_sequence(step, _never_first)


def _without_start_mark(step: Any) -> Any:
    """A step as it works inside a text: nothing is put before it."""
    if not isinstance(step, dict):
        return step
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return _in_a_sequence(step, _without_start_mark)


def _in_a_sequence(step: Any, change: Any) -> Any:
    """`step` with `change` made in each step that it is a sequence of."""
    for key in ("normalizers", "pretokenizers"):
        if isinstance(step, dict) and key in step:
            return {**step, key: [kept for part in step[key] if (kept := change(part)) is not None]}
    return step


def _texts(conversation: Conversation) -> list[str]:
    said = [text for turn in conversation.turns for text in texts_of(turn)]
    return [conversation.system, *said, *rejected_texts(conversation)]
