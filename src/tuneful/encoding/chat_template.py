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

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.config import TemplateConfig
from tuneful.encoding.dialects import (
    PROBE_CALL,
    control_in_names,
    fields_left_out,
    find_dialect,
    written,
)
from tuneful.encoding.fixed_date import DATE, fixed_dates, with_fixed_date
from tuneful.encoding.frame import Frame, Sentinels, Span, closing_of, json_forms, line_after, opened_thought
from tuneful.encoding.jinja_sandbox import SandboxedTemplate
from tuneful.encoding.outline import Dialect, MessageOutline, Outline, Outlined, Text, messages_of, outline_of
from tuneful.encoding.spans import SpanPieces
from tuneful.encoding.template import Origin, Piece, Template, any_of, find_template, joined, model_name, no_tools
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_TEMPLATE = "tokenizer"
"""`template.name` of a Jinja chat template."""

_SHOWN_CHARACTERS = 300
_PLAIN = Dialect()
_EMPTY_THOUGHT = re.compile(r"\A\s*<think>\s*</think>\s*(?=\S)")


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
        self._bare_frame, self._frame = _kept(self._make_bare_frame), _kept(self._make_frame)
        self.generation_prefix = ""
        asked, again = Turn("a", "", "b"), Turn("c", "", "d")
        pieces = self.example(Conversation("", (asked,), where))
        self.end = self._added.findall(pieces[-1].text)[0]
        self.generation_prefix = self._without_control(
            _text([piece for piece in pieces if piece.origin is Origin.GENERATION_PREFIX])
        ).strip()
        self.stop = self._next_turn(Conversation("", (asked, again), where))

    @cached_property
    def dialect(self) -> Dialect:
        """How the template takes calls and thoughts."""
        return find_dialect(self._source, lambda outline, dialect: self._bare_frame(outline, False, dialect))

    @cached_property
    def call_end(self) -> str:
        """The control token that closes a call; "" where the template renders none."""
        try:
            frame = self._bare_frame(PROBE_CALL, False, self.dialect)
        except TemplateError:
            return ""
        rows = list(re.finditer(f"(?:{self._added.pattern})+", frame.literals[-1]))
        if not rows or set(frame.slots) != {0, 1, 2}:
            return ""
        in_a_row, eos = self._added.findall(rows[-1].group()), self._special_tokens.get("eos_token")
        return str(eos if eos in in_a_row else in_a_row[-1])

    @cached_property
    def call_tokens(self) -> frozenset[str]:
        """The control tokens that stand inside of a call."""
        if not self.call_end:
            return frozenset()
        try:
            frame = self._frame(PROBE_CALL, False)
        except TemplateError:
            return frozenset()
        return frozenset(self._added.findall(written(frame, frame.spans[-1])))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is fixed, closed or left untrained here that a person may not expect, a sentence each."""
        frame = self._frame(
            outline_of(Conversation("", (Turn("a", "", "b"),), self.where), _PLAIN, answered=True)[0], False
        )
        notes = (
            [f"the template asks for today's date, which is {DATE} in every prompt"]
            if fixed_dates(self._source)
            else []
        )
        if frame.thought:
            notes.append(
                f"the prompt opens a thought ({frame.thought.strip()}): where a record has none the model is trained to close it "
                "at once. Of a record with several turns the last response is trained, the others are context"
            )
        return tuple(notes)

    def example(self, conversation: Conversation) -> list[Piece]:
        """The conversation up to the end token of its last response; TemplateError where text of it is changed or lost."""
        thought = conversation.answered_turns[-1].thought
        before, written = self._pieces(self._outlined(conversation, answered=True), thought, is_prompt=False)
        prompt = self.prompt(conversation)
        if before != prompt and not conversation.tools and not any(turn.thought for turn in conversation.turns):
            raise self._prompt_mismatch(_text(prompt), _text(before))
        return [*prompt, *written]  # a template may keep more thoughts while the last answer is not there

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response; TemplateError as for `example`."""
        return self._pieces(self._outlined(conversation, answered=False), "", is_prompt=True)[0]

    def left_out(self, conversation: Conversation) -> tuple[int, int]:
        """How many thoughts of a conversation the template leaves out, and how many of its answers are context though nothing
        marks them so. TemplateError as for `example`."""
        turns = [turn for turn in conversation.answered_turns if turn.thought]
        outline = self._outlined(conversation, answered=True).outline
        frame, before = self._frame(outline, False), self._frame(outline.before(len(outline.messages) - 1), True)
        own = set(frame.slots) & set(outline.messages[-1].numbers())
        numbers = {number for message in outline.messages if (number := message.thought_number) is not None}
        kept = len(numbers & (set(before.slots) | own)) + bool(
            frame.thought and conversation.answered_turns[-1].thought
        )
        answers = [at for at in range(len(outline.messages)) if self._answers(outline, at)]
        return len(turns) - kept, len(answers) - len(before.spans) - 1

    def parse(self, generated: str) -> str:
        """The answer in generated text: without what the template has the model write first, cut where a turn begins."""
        text = generated.lstrip().removeprefix(self.generation_prefix)
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    def chat_template(self, *, bos_text: str, end_text: str) -> str:
        """The source as it is, the date aside: a template that knows today's would render another prompt tomorrow."""
        return with_fixed_date(self._source)

    # A record's pieces

    def _outlined(self, conversation: Conversation, *, answered: bool) -> Outlined:
        """The outline in the dialect of the template, which an ordinary conversation does not need.

        Where the template itself writes an empty thought, or has the model close one, that of a response is this one.
        """
        if "</think>" in self.generation_prefix and any("</think>" in turn.response for turn in conversation.turns):
            turns = [replace(turn, response=_EMPTY_THOUGHT.sub("", turn.response)) for turn in conversation.turns]
            conversation = replace(conversation, turns=tuple(turns))
        is_plain = not conversation.tools and not any(
            turn.thought or turn.calls or turn.results for turn in conversation.turns
        )
        return outline_of(conversation, _PLAIN if is_plain else self.dialect, answered=answered)

    def _pieces(self, outlined: Outlined, thought: str, *, is_prompt: bool) -> tuple[list[Piece], list[Piece]]:
        """What stands before the last answer, and that answer; a `thought` is written where the prompt opens one."""
        outline, texts, weights = outlined
        frame = self._frame(outline, is_prompt)
        found = self._found(frame, self._rendered(outline, [one.text for one in texts], is_prompt), texts)
        pieces = SpanPieces(frame, outline, texts, weights)
        before, last = pieces.divided(found, is_prompt=is_prompt)
        if frame.thought and not is_prompt:
            weight, line = weights[-1], line_after(frame.thought)
            opened = [Piece(closing_of(frame.thought), Origin.GENERATION_PREFIX, weight)]
            if thought:
                closing = closing_of(frame.thought).removeprefix(line)
                opened = [
                    Piece(line, Origin.GENERATION_PREFIX, weight),
                    Piece(thought, Origin.THOUGHT, weight),
                    Piece(closing, Origin.GENERATION_PREFIX, weight),
                ]
            before, last = [*before, Piece(frame.thought, Origin.TEMPLATE)], [*opened, *last]
        return joined(before), joined(last)

    def _rendered(
        self, outline: Outline, texts: Sequence[str], is_prompt: bool, dialect: Dialect | None = None, **marks: Any
    ) -> str:
        messages = messages_of(outline, texts, dialect or (_PLAIN if outline.is_plain else self.dialect))
        tools = json.loads(outline.tools) if outline.tools else None
        return self._template.render(messages, self._special_tokens, is_prompt=is_prompt, tools=tools, **marks)

    def _found(self, frame: Frame, rendered: str, texts: Sequence[Text]) -> Sequence[str]:
        """What stands in each slot of `rendered`; TemplateError where it is not the texts, as they are, trimmed or as JSON."""
        plain = [one.text for one in texts]
        if (expected := frame.filled(plain)) == rendered:
            return [plain[slot] for slot in frame.slots]
        in_json = [json_forms(one.text)[-1] if one.origin is Origin.ARGUMENT else one.text for one in texts]
        if frame.filled(in_json) == rendered:
            return [in_json[slot] for slot in frame.slots]
        found = frame.found(rendered, texts)
        if found is None:
            first, second = _around_the_difference(expected, rendered)
            raise TemplateError(
                f"{self.where}: the template changes text of the record. As it stands there: {first!r}. As the template "
                f"renders it: {second!r}. Fix the record, or give a template that leaves text alone (template.file)"
            )
        return found

    # Frames

    def _make_frame(self, outline: Outline, is_prompt: bool) -> Frame:
        """The frame of a conversation, with its spans: every trained answer stands where generation would put it."""
        frame = self._bare_frame(outline, is_prompt)
        if not outline.is_plain and (said := control_in_names(outline, self._special.search)):
            raise TemplateError(
                f"{self.where}: {said[:_SHOWN_CHARACTERS]!r} is a name, a key or a description of tools and holds a control token"
            )
        self._check_all_is_there(outline, frame, [], is_prompt)
        spans: list[Span] = []
        thought, last = "", len(outline.messages) - 1
        for index in range(len(outline.messages)):
            if not self._answers(outline, index):
                continue
            is_last = index == last and not is_prompt
            span, opened = self._span(frame, outline, index, is_last)
            if span is not None and (
                is_last or not opened
            ):  # as a server will ask for it, an opened one cannot stand inside
                spans.append(span)
                thought = opened
        if not outline.is_plain:
            self._check_all_is_there(outline, frame, spans, is_prompt)
        if not is_prompt and (not spans or spans[-1].message != last):
            if outline.messages[last].calls:
                raise TemplateError(
                    f"{self.where}: a call of a tool is not what the prompt asks for, or no control token ends it, in "
                    f"{self._sketch(frame)!r}"
                )
            marks = self._template.marks_generation
            raise TemplateError(
                f"{self.where}: the last thing that the template lets the model say is not its last response, in "
                f"{self._sketch(frame)!r}" + (": {% generation %} has to stand around it" if marks else "")
            )
        return replace(frame, spans=tuple(spans), thought=thought)

    def _answers(self, outline: Outline, index: int) -> bool:
        """Whether message `index` is the assistant's and answers something."""
        before = outline.messages[:index]
        return outline.messages[index].role == "assistant" and any(one.role in ("user", "tool") for one in before)

    def _check_all_is_there(self, outline: Outline, frame: Frame, spans: Sequence[Span], is_prompt: bool) -> None:
        """TemplateError where the template drops something of the record; an earlier thought it may drop."""
        missing = {number for message in outline.messages for number in message.numbers()} - set(frame.slots)
        if not outline.is_plain:
            missing -= {message.thought_number for message in outline.messages[: None if is_prompt else -1]}
            without = self._bare_frame(Outline(outline.messages), is_prompt) if outline.tools else None
            if fields := fields_left_out(outline, frame, without, spans):
                raise no_tools(self.where, fields)
        if missing:
            role = next(message.role for message in outline.messages if min(missing) in message.numbers())
            raise TemplateError(
                f"{self.where}: the template leaves out or changes the {role} text of a conversation with the roles "
                f"{outline.roles}: it renders {self._sketch(frame)!r}. Leave that text out of the "
                "record, or give a template that has it (template.file)"
            )

    def _span(self, frame: Frame, outline: Outline, index: int, is_last: bool) -> tuple[Span | None, str]:
        """What the model has to write of message `index`, and the thought that its prompt opens; None where it is context."""
        message, before = outline.messages[index], outline.before(index)
        own = set(message.numbers()) & set(frame.slots)
        if (number := message.thought_number) is not None and number not in own and not is_last:
            return None, ""  # without its thought it is no answer to learn
        marks = self._template.marks_generation
        if marks and not all(mark for slot, mark in zip(frame.slots, frame.marked, strict=True) if slot in own):
            return None, ""
        prompt = self._bare_frame(before, True)
        first = len(prompt.slots)
        if is_last and not outline.is_plain and own:
            first = min(place for place, slot in enumerate(frame.slots) if slot in own)
            same = prompt.slots[-1:] == frame.slots[first - 1 : first]
        else:
            same = self._begins(prompt, frame)
        literal, asked = frame.literals[first], prompt.literals[-1]
        opened = opened_thought(literal, asked) if same else ""
        if opened and not is_last:
            return None, opened
        asked = asked.removesuffix(opened) if opened else asked
        if not (same and literal.startswith(asked)):
            if not is_last and not outline.is_plain:
                return None, ""  # tools or thoughts stand elsewhere than when this was answered
            if own:
                raise self._prompt_mismatch(self._sketch(prompt), self._sketch(frame))
            return None, ""
        last = first
        while last < len(frame.slots) and frame.slots[last] in own:
            last += 1
        if marks and last > first:
            self._check_marked(frame, first, len(literal) - len(asked))
        found = self._end_in(frame.literals[last], message, len(asked) if last == first else 0)
        if found is None:
            if message.calls:
                return None, ""
            raise TemplateError(
                f"{self.where}: no control token of this tokenizer follows a response (it goes on "
                f"{frame.literals[last][:40]!r}), so no answer would ever end. Write {{{{ eos_token }}}} after it, in a "
                "file of your own (template.file)"
            )
        return Span(index, first, len(asked), last, *found), opened

    def _begins(self, prompt: Frame, frame: Frame) -> bool:
        """Whether `frame` begins with `prompt`, what follows its last text aside."""
        count = len(prompt.slots)
        return prompt.slots == frame.slots[:count] and prompt.literals[:-1] == frame.literals[:count]

    def _check_marked(self, frame: Frame, first: int, length: int) -> None:
        """TemplateError where {% generation %} leaves out the `length` characters before an answer."""
        if length > frame.marked_tails[first]:
            raise TemplateError(
                f"{self.where}: the template writes {frame.literals[first][-length:]!r} between the prompt and the response and "
                "keeps it out of {% generation %}: the model would not learn to write it. Give it to the prompt "
                "(add_generation_prompt), or put it inside"
            )

    def _end_in(self, literal: str, message: MessageOutline, start: int) -> tuple[int, int] | None:
        """Where in the `literal` after the last text of an answer its end token stands, and stops; None where it has none.

        After a response it is the first control token, with the white space before it, and what follows it up to the end token of
        the tokenizer: an answer is not ended before. After a call it is the first token that ends one.
        """
        if message.calls:
            at = literal.find(self.call_end, start) if self.call_end else -1
            return None if at < 0 else (at, at + len(self.call_end))
        if (found := self._ending.match(literal)) is None:
            return None
        in_a_row, eos = self._added.findall(found[1]), self._special_tokens.get("eos_token")
        num_ending = in_a_row.index(eos) + 1 if eos in in_a_row else 1
        return 0, found.start(1) + len("".join(in_a_row[:num_ending]))

    def _make_bare_frame(self, outline: Outline, is_prompt: bool, dialect: Dialect | None = None) -> Frame:
        """The frame as a rendering of sentinels shows it."""
        count = 1 + max((number for message in outline.messages for number in message.numbers()), default=-1)
        rendered = self._rendered(
            outline, self._sentinels.texts(count), is_prompt, dialect, marks=self._sentinels.marks
        )
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


def _kept(make: Callable[..., Frame]) -> Callable[..., Frame]:
    """`make`, whose frames are kept for conversations of the same outline; those of tools are long, and seldom the same."""
    plain, others = lru_cache(maxsize=4096)(make), lru_cache(maxsize=256)(make)
    return lambda outline, *more: (plain if outline.is_plain else others)(outline, *more)


def _from_file(path: Path) -> tuple[str, str]:
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except FileNotFoundError:
        raise TemplateError(f"{path}: no such template file (template.file)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read: {error}") from None


def _from_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The tokenizer's chat template; the one called `default` where it brings several."""
    source, name = tokenizer.chat_template, model_name(tokenizer.name_or_path)
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise TemplateError(
            f"{name}: the tokenizer brings no chat template of its own; give template.name=alpaca, or a Jinja "
            "file as template.file"
        )
    return source, f"the chat template of {name}"


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
