"""A Jinja chat template, the tokenizer's own or a user's file, as the four verbs of a template.

A chat template is a program: it may trim, drop or move what it is given, and its output does not say who wrote which
part. So it is rendered twice. Once with a sentinel in place of every text of the record: that frame (`frame.py`) depends on
the outline of the conversation alone and is kept. And once with the texts themselves: the frame, filled with the texts as
they are or trimmed, must be that rendering, character for character, or the record is skipped with both in the reason.

    frame      <|im_start|>user\\n  [0]  <|im_end|>\\n<|im_start|>assistant\\n  [1]  <|im_end|>\\n
    rendering  <|im_start|>user\\n  Hi   <|im_end|>\\n<|im_start|>assistant\\n  Yo  <|im_end|>\\n
    pieces     template            user  template                           response end

The trade: two renderings a record, about 40 microseconds, and templates that rewrite text are refused. In return text
that looks like structure stays text, whatever the template is. `jinja_sandbox.py` holds the limits within which it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.config import TemplateConfig
from tuneful.encoding.fixed_date import DATE, fixed_dates, with_fixed_date
from tuneful.encoding.frame import (
    Frame,
    Outline,
    Sentinels,
    Text,
    closing_of,
    messages_of,
    num_texts,
    opened_thought,
    outline_of,
)
from tuneful.encoding.jinja_sandbox import SandboxedTemplate
from tuneful.encoding.template import Origin, Piece, Template, any_of, find_template, joined
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_TEMPLATE = "tokenizer"
"""`template.name` of a Jinja chat template."""

_SHOWN_CHARACTERS = 300


def load_template(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `config` names; a chat template is read and run once: TemplateError where it does not suit."""
    if config.name != TOKENIZER_TEMPLATE:
        return find_template(config.name)
    source, where = _from_file(Path(config.file)) if config.file else _from_tokenizer(tokenizer)
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    variables = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(source, where, added_tokens=added, **variables)


class ChatTemplate:
    """A Jinja chat template; `where` it is from opens every message, `special_tokens` are `bos_token`, `eos_token` ...

    `added_tokens` are the texts of the tokenizer's added tokens, each with whether it is called special: any may end a
    response. Raises TemplateError for a template that cannot be rendered, that ends a response with none of them, or whose
    prompt is not the beginning of its training text.
    """

    name = TOKENIZER_TEMPLATE
    writes_bos = True

    def __init__(self, source: str, where: str, *, added_tokens: Mapping[str, bool], **special_tokens: str) -> None:
        self.where = where
        self._source = source
        self._template = SandboxedTemplate(source, where)
        self._special_tokens = special_tokens
        self._special = any_of(token for token, special in added_tokens.items() if special)
        self._added = any_of(token for token in added_tokens if token.strip())
        self._ending = re.compile(rf"\s*((?:{self._added.pattern})+)")
        self._sentinels = Sentinels()
        self._bare_frame = lru_cache(maxsize=4096)(self._make_bare_frame)
        self._frame = lru_cache(maxsize=4096)(self._make_frame)
        asked, again = Turn("a", "", "b"), Turn("c", "", "d")
        pieces = self.example(Conversation("", (asked,), where))
        self.end = self._added.findall(pieces[-1].text)[0]
        self.generation_prefix = self._without_control(
            _text([piece for piece in pieces if piece.origin is Origin.GENERATION_PREFIX])
        ).strip()
        self.stop = self._next_turn(Conversation("", (asked, again), where))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is fixed, closed or left untrained here that a person may not expect, a sentence each."""
        outline, _ = outline_of(Conversation("", (Turn("a", "", "b"),), self.where), answered=True)
        frame = self._frame(outline, False)
        notes = (
            [f"the template asks for today's date, which is {DATE} in every prompt"]
            if fixed_dates(self._source)
            else []
        )
        if frame.thought:
            notes.append(
                f"the prompt opens a thought ({frame.thought.strip()}), and records have none: the model is trained to close it "
                "at once. Of a record with several turns the last response is trained, the others are context"
            )
        return tuple(notes)

    def example(self, conversation: Conversation) -> list[Piece]:
        """The conversation up to the end token of its last response; TemplateError where text of it is changed or lost."""
        pieces = self._pieces(*outline_of(conversation, answered=True), is_prompt=False)
        before = pieces[: -3 if pieces[-3].origin is Origin.GENERATION_PREFIX else -2]
        prompt = self.prompt(conversation)
        if before != prompt:
            raise self._prompt_mismatch(_text(prompt), _text(before))
        return pieces

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response; TemplateError as for `example`."""
        return self._pieces(*outline_of(conversation, answered=False), is_prompt=True)

    def parse(self, generated: str) -> str:
        """The answer in generated text: without what the template has the model write first, cut where a turn begins."""
        text = generated.lstrip().removeprefix(self.generation_prefix)
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    def chat_template(self, *, bos_text: str, end_text: str) -> str:
        """The source as it is, the date aside: a template that knows today's would render another prompt tomorrow."""
        return with_fixed_date(self._source)

    # A record's pieces

    def _pieces(self, outline: Outline, texts: Sequence[Text], *, is_prompt: bool) -> list[Piece]:
        frame = self._frame(outline, is_prompt)
        plain = [one.text for one in texts]
        found = self._found(frame, self._rendered(outline, plain, is_prompt), plain)
        pieces: list[Piece] = []
        start = 0  # of what is left of the literal: an end token may have been taken from it
        for number, (slot, text, length) in enumerate(zip(frame.slots, found, frame.prefixes, strict=True)):
            literal, start = frame.literals[number][start:], 0
            if length is None:
                origin = Origin.USER if texts[slot].origin is Origin.RESPONSE else texts[slot].origin
                pieces += (Piece(literal, Origin.TEMPLATE), Piece(text, origin))
                continue
            at = len(literal) - length
            end = self._end_of(frame.literals[number + 1])
            weight = texts[slot].weight
            pieces += (Piece(literal[:at], Origin.TEMPLATE), Piece(literal[at:], Origin.GENERATION_PREFIX, weight))
            if frame.thought and number == len(frame.slots) - 1:
                closing = closing_of(frame.thought)
                pieces += (Piece(frame.thought, Origin.TEMPLATE), Piece(closing, Origin.GENERATION_PREFIX, weight))
            pieces += (Piece(text, Origin.RESPONSE, weight), Piece(end, Origin.END, weight))
            start = len(end)
        if is_prompt:
            pieces.append(Piece(frame.literals[-1][start:], Origin.TEMPLATE))
        return joined(pieces)

    def _rendered(self, outline: Outline, texts: Sequence[str], is_prompt: bool) -> str:
        messages = messages_of(outline, texts)
        return self._template.render(messages, self._special_tokens, is_prompt=is_prompt)

    def _found(self, frame: Frame, rendered: str, texts: Sequence[str]) -> Sequence[str]:
        """What stands in each slot of `rendered`; TemplateError where it is not the texts, as they are or trimmed."""
        if (expected := frame.filled(texts)) == rendered:
            return [texts[slot] for slot in frame.slots]
        found = frame.trimmed(rendered, texts)
        if found is None:
            first, second = _around_the_difference(expected, rendered)
            raise TemplateError(
                f"{self.where}: the template changes text of the record. As it stands there: {first!r}. As the template "
                f"renders it: {second!r}. Fix the record, or give a template that leaves text alone (template.file)"
            )
        return found

    # Frames

    def _make_frame(self, outline: Outline, is_prompt: bool) -> Frame:
        """The frame of a conversation, with its prefixes: every trained response stands where generation would put it."""
        frame = self._bare_frame(outline, is_prompt)
        answers = {parts[0]: index for index, (role, parts) in enumerate(outline) if role == "assistant"}
        if missing := set(range(num_texts(outline))) - set(frame.slots):
            role = next(role for role, parts in outline if min(missing) in parts)
            raise TemplateError(
                f"{self.where}: the template leaves out or changes the {role} text of a conversation with the roles "
                f"{', '.join(role for role, _ in outline)}: it renders {self._sketch(frame)!r}. Leave that text out of the "
                "record, or give a template that has it (template.file)"
            )
        marks = self._template.marks_generation
        prefixes: list[int | None] = []
        thought, last = "", len(frame.slots) - 1
        for number, slot in enumerate(frame.slots):
            answers_one = slot in answers and any(role == "user" for role, _ in outline[: answers[slot]])
            trained = answers_one and (frame.marked[number] or not marks)
            opened = self._opened_thought(frame, number, outline[: answers[slot]]) if trained else ""
            if opened and number < last:  # as a server will ask for it, it cannot stand inside a longer conversation
                trained = False
            elif opened:
                thought = opened
            prefixes.append(self._prefix_length(frame, number, outline[: answers[slot]], opened) if trained else None)
        if not is_prompt and (prefixes[-1] is None or frame.slots[-1] != num_texts(outline) - 1):
            raise TemplateError(
                f"{self.where}: the last thing that the template lets the model say is not its last response, in "
                f"{self._sketch(frame)!r}" + (": {% generation %} has to stand around it" if marks else "")
            )
        return replace(frame, prefixes=tuple(prefixes), thought=thought)

    def _opened_thought(self, frame: Frame, number: int, before: Outline) -> str:
        """The opening of a thought in which the prompt of the response in slot `number` ends, where a rendering has none."""
        prompt, literal = self._bare_frame(before, True), frame.literals[number]
        same = prompt.slots == frame.slots[:number] and prompt.literals[:-1] == frame.literals[:number]
        return opened_thought(literal, prompt.literals[-1]) if same else ""

    def _prefix_length(self, frame: Frame, number: int, before: Outline, thought: str) -> int:
        """How many characters before the response in slot `number` come after its prompt, that of the messages `before`, which
        may open a `thought`."""
        prompt = self._bare_frame(before, True)
        literal, asked = frame.literals[number], prompt.literals[-1].removesuffix(thought)
        same = prompt.slots == frame.slots[:number] and prompt.literals[:-1] == frame.literals[:number]
        if not (same and literal.startswith(asked)):
            raise self._prompt_mismatch(self._sketch(prompt), self._sketch(frame))
        length = len(literal) - len(asked)
        if self._template.marks_generation and length > frame.marked_tails[number]:
            raise TemplateError(
                f"{self.where}: the template writes {literal[-length:]!r} between the prompt and the response and keeps it out "
                "of {% generation %}: the model would not learn to write it. Give it to the prompt (add_generation_prompt), or "
                "put it inside"
            )
        if not self._end_of(frame.literals[number + 1]):
            raise TemplateError(
                f"{self.where}: no control token of this tokenizer follows a response (it goes on "
                f"{frame.literals[number + 1][:40]!r}), so no answer would ever end. Write {{{{ eos_token }}}} after it, in a "
                "file of your own (template.file)"
            )
        return length

    def _make_bare_frame(self, outline: Outline, is_prompt: bool) -> Frame:
        """The frame as a rendering of sentinels shows it."""
        count = num_texts(outline)
        messages = messages_of(outline, self._sentinels.texts(count))
        marks = self._sentinels.marks
        rendered = self._template.render(messages, self._special_tokens, is_prompt=is_prompt, marks=marks)
        return self._sentinels.frame(rendered, count)

    def _next_turn(self, two_turns: Conversation) -> tuple[str, ...]:
        """What a next turn begins with; nothing where the template takes one turn only."""
        try:
            pieces = self.example(two_turns)
        except TemplateError:
            return ()
        ended = next((number for number, piece in enumerate(pieces) if piece.origin is Origin.END), len(pieces) - 1)
        following = pieces[ended + 1].text.rstrip() if ended + 1 < len(pieces) else ""
        return (following,) if following.strip() else ()

    def _end_of(self, literal: str) -> str:
        """What ends a response in the `literal` after it, or "": its first control token and the white space before it.

        Where the end token of the tokenizer is one of several in a row, all of them up to it: an answer is not ended before.
        """
        if (found := self._ending.match(literal)) is None:
            return ""
        in_a_row = self._added.findall(found[1])
        eos = self._special_tokens.get("eos_token")
        num_ending = in_a_row.index(eos) + 1 if eos in in_a_row else 1
        return literal[: found.start(1)] + "".join(in_a_row[:num_ending])

    def _without_control(self, text: str) -> str:
        return self._special.sub("", text)

    def _sketch(self, frame: Frame) -> str:
        """The frame with numbered blanks for the texts, clipped."""
        return _clipped(frame.filled([f"[{slot + 1}]" for slot in range(max(frame.slots, default=-1) + 1)]))

    def _prompt_mismatch(self, prompt: str, training: str) -> TemplateError:
        prompt, training = _around_the_difference(prompt, training)
        return TemplateError(
            f"{self.where}: the prompt is not the beginning of the training text, so the model would be asked in a way that it "
            f"was not trained on. Prompt: {prompt!r}. Training text: {training!r}. Fix add_generation_prompt in the template"
        )


def _from_file(path: Path) -> tuple[str, str]:
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except FileNotFoundError:
        raise TemplateError(f"{path}: no such template file (template.file)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read: {error}") from None


def _from_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The tokenizer's chat template; the one called `default` where it brings several."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise TemplateError(
            f"{tokenizer.name_or_path}: the tokenizer brings no chat template of its own; give template.name=alpaca, or a Jinja "
            "file as template.file"
        )
    return source, f"{tokenizer.name_or_path}: its chat template"


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _around_the_difference(first: str, second: str) -> tuple[str, str]:
    """Both texts, or where they are long what stands around the place where they part."""
    at = next(
        (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    start = max(0, at - _SHOWN_CHARACTERS // 2)
    return tuple(("..." if start else "") + _clipped(text[start:]) for text in (first, second))  # type: ignore[return-value]


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
