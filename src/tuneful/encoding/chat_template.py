"""A Jinja chat template, the tokenizer's own or a user's file, as the four verbs of a template.

A chat template is a program: it may trim, drop or move what it is given, and its output does not say who wrote which
part. So it is rendered twice. Once with a sentinel in place of every text of the record, random and thus not to be
forged: what stands around the sentinels is the template's, where they stand is the user's. That frame depends on the
shape of the conversation alone and is kept. And once with the texts themselves: the frame, filled with the texts as
they are or trimmed, must be that rendering, character for character, or the record is refused with both.

    frame      <|im_start|>user\\n  [0]  <|im_end|>\\n<|im_start|>assistant\\n  [1]  <|im_end|>\\n
    rendering  <|im_start|>user\\n  Hi   <|im_end|>\\n<|im_start|>assistant\\n  Yo  <|im_end|>\\n
    pieces     template            user  template                           response end

The trade: two renderings a record, about 40 microseconds, and templates that rewrite text are refused. In return text
that looks like structure stays text, whatever the template is. Templates run in Jinja's sandbox, for a second at most.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneful.config import TemplateConfig
from tuneful.encoding.template import Origin, Piece, Template, find_template, joined
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_TEMPLATE = "tokenizer"
"""`template.name` of a Jinja chat template."""

INPUT_START = "\n\n"
"""What stands between the instruction and the input of a user message."""

_MAX_SECONDS = 1.0
_MAX_CHARACTERS = 1_000_000  # of the source, and of what one operation in it may make
_SHOWN_CHARACTERS = 300
_NO_DATE = "{% set strftime_now = there_is_no_date_in_training %}{{ '' }}"

Shape = tuple[tuple[str, tuple[int | str, ...]], ...]
"""Messages without their texts: (role, parts), where a part is the number of a text, or INPUT_START."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the record, and whose it is."""

    origin: Origin
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the texts of a conversation: literals[0], text slots[0], literals[1], ... literals[-1].

    Where the template marks what the assistant says ({% generation %}), `marked[k]` says that slot k is, and
    `marked_tails[k]` how many characters at the end of literals[k] are. `leads[k]` is None where slot k is not trained, else
    the number of characters at the end of literals[k] that come after the prompt: the model has to write them.
    """

    literals: tuple[str, ...]
    slots: tuple[int, ...]
    marked: tuple[bool, ...]
    marked_tails: tuple[int, ...]
    leads: tuple[int | None, ...] = ()

    def filled(self, texts: Sequence[str]) -> str:
        """The frame with text `slots[k]` of `texts` in each slot."""
        parts = [self.literals[0]]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            parts += (texts[slot], literal)
        return "".join(parts)

    def trimmed(self, rendered: str, texts: Sequence[str]) -> list[str] | None:
        """What stands in each slot of `rendered`: its text, or that without outer white space; None where neither fits."""
        if not rendered.startswith(self.literals[0]):
            return None
        reached = [
            {len(self.literals[0]): (0, "")}
        ]  # after each literal: position -> (position before, text in between)
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            reached.append(
                {
                    start + len(text) + len(literal): (start, text)
                    for start in reached[-1]
                    for text in _variants(texts[slot])
                    if rendered.startswith(text + literal, start)
                }
            )
        if (at := len(rendered)) not in reached[-1]:
            return None
        found = []
        for level in reversed(reached[1:]):
            at, text = level[at]
            found.append(text)
        return found[::-1]


def load_template(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `config` names; a chat template is read, run once and refused here if it does not suit."""
    if config.name != TOKENIZER_TEMPLATE:
        return find_template(config.name)
    source, where = _read(Path(config.file)) if config.file else _own(tokenizer)
    added = tokenizer.added_tokens_decoder.values()
    variables = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(source, where, control_tokens={token.content for token in added if token.special}, **variables)


class ChatTemplate:
    """A Jinja chat template; `where` it is from opens every message, `special_tokens` are `bos_token`, `eos_token` ...

    Raises TemplateError for a template that cannot be rendered, that ends a response with no control token, or whose prompt
    is not the beginning of its training text.
    """

    name = TOKENIZER_TEMPLATE
    writes_bos = True

    def __init__(self, source: str, where: str, *, control_tokens: Collection[str], **special_tokens: str) -> None:
        if len(source) > _MAX_CHARACTERS:
            raise TemplateError(
                f"{where}: {len(source):,} characters, over {_MAX_CHARACTERS:,}: this is no chat template"
            )
        self.where = where
        self._source = source
        self._has_marks = re.search(r"\{%[-+]?\s*generation\b", source) is not None
        self._special_tokens = special_tokens
        self._control_tokens = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._compiled = self._compile()
        self._nonce = secrets.token_hex(8)
        self._bare_frame = lru_cache(maxsize=4096)(self._make_bare_frame)
        self._frame = lru_cache(maxsize=4096)(self._make_frame)
        asked, again = Turn("a", "", "b"), Turn("c", "", "d")
        pieces = self.example(Conversation("", (asked,), where))
        self.end = pieces[-1].text
        self.lead = self._without_control(
            "".join(piece.text for piece in pieces if piece.origin is Origin.GENERATION_PREFIX)
        ).strip()
        self.stop = self._next_turn(Conversation("", (asked, again), where))

    def example(self, conversation: Conversation) -> list[Piece]:
        """The conversation up to the end token of its last response; TemplateError where text of it is changed or lost."""
        pieces = self._pieces(*_shape(conversation, answered=True), is_prompt=False)
        before = pieces[: -3 if pieces[-3].origin is Origin.GENERATION_PREFIX else -2]
        prompt = self.prompt(conversation)
        if before != prompt:
            self._check_prompt(_text(prompt), _text(before))
        return pieces

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response; TemplateError as for `example`."""
        return self._pieces(*_shape(conversation, answered=False), is_prompt=True)

    def parse(self, generated: str) -> str:
        """The answer in generated text: without what the template has the model write first, cut where a turn begins."""
        text = generated.lstrip().removeprefix(self.lead)
        ends = [at for marker in self.stop if (at := text.find(marker)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    def chat_template(self, *, bos_text: str, end_text: str) -> str:
        """The source as it is, the date aside: a template that knows today's would render another prompt tomorrow."""
        return _NO_DATE + self._source if "strftime_now" in self._source else self._source

    # A record's pieces

    def _pieces(self, shape: Shape, texts: Sequence[Text], *, is_prompt: bool) -> list[Piece]:
        frame = self._frame(shape, is_prompt)
        rendered = self._render(_messages(shape, [one.text for one in texts]), is_prompt)
        found = self._found(frame, rendered, [one.text for one in texts])
        pieces: list[Piece] = []
        start = 0  # of what is left of the literal: an end token may have been taken from it
        for number, (slot, text, lead) in enumerate(zip(frame.slots, found, frame.leads, strict=True)):
            literal, start = frame.literals[number][start:], 0
            if lead is None:
                origin = Origin.USER if texts[slot].origin is Origin.RESPONSE else texts[slot].origin
                pieces += (Piece(literal, Origin.TEMPLATE), Piece(text, origin))
                continue
            seam = len(literal) - lead
            end = self._end_of(frame.literals[number + 1])
            pieces += (Piece(literal[:seam], Origin.TEMPLATE), Piece(literal[seam:], Origin.GENERATION_PREFIX))
            pieces += (Piece(text, Origin.RESPONSE), Piece(end, Origin.END))
            start = len(end)
        if is_prompt:
            pieces.append(Piece(frame.literals[-1][start:], Origin.TEMPLATE))
        return joined(pieces)

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

    def _make_frame(self, shape: Shape, is_prompt: bool) -> Frame:
        """The frame of a conversation, with its leads: every trained response stands where generation would put it."""
        frame = self._bare_frame(shape, is_prompt)
        answers = {parts[0]: index for index, (role, parts) in enumerate(shape) if role == "assistant"}
        if missing := set(range(_num_texts(shape))) - set(frame.slots):
            role = next(role for role, parts in shape if min(missing) in parts)
            raise TemplateError(
                f"{self.where}: the template leaves out or changes the {role} text of a conversation with the roles "
                f"{', '.join(role for role, _ in shape)}: it renders {self._sketch(frame)!r}"
            )
        leads: list[int | None] = []
        for number, slot in enumerate(frame.slots):
            trained = slot in answers and (frame.marked[number] or not self._has_marks)
            leads.append(self._lead_of(frame, number, shape[: answers[slot]]) if trained else None)
        if not is_prompt and (leads[-1] is None or frame.slots[-1] != _num_texts(shape) - 1):
            raise TemplateError(
                f"{self.where}: the last thing that the template lets the model say is not its last response, in "
                f"{self._sketch(frame)!r}" + (": {% generation %} has to stand around it" if self._has_marks else "")
            )
        return Frame(frame.literals, frame.slots, frame.marked, frame.marked_tails, tuple(leads))

    def _lead_of(self, frame: Frame, number: int, before: Shape) -> int:
        """How many characters before the response in slot `number` come after its prompt, that of the messages `before`."""
        prompt = self._bare_frame(before, True)
        literal = frame.literals[number]
        same = prompt.slots == frame.slots[:number] and prompt.literals[:-1] == frame.literals[:number]
        if not (same and literal.startswith(prompt.literals[-1])):
            self._check_prompt(self._sketch(prompt), self._sketch(frame))
        lead = len(literal) - len(prompt.literals[-1])
        if self._has_marks and lead > frame.marked_tails[number]:
            raise TemplateError(
                f"{self.where}: the template writes {literal[-lead:]!r} between the prompt and the response and keeps it out of "
                "{% generation %}: nobody would write it. Give it to the prompt (add_generation_prompt), or put it inside"
            )
        if not self._end_of(frame.literals[number + 1]):
            raise TemplateError(
                f"{self.where}: no control token of this tokenizer follows a response (it goes on "
                f"{frame.literals[number + 1][:40]!r}), so no answer would ever end. Write {{{{ eos_token }}}} after it, in a "
                "file of your own (template.file)"
            )
        return lead

    def _make_bare_frame(self, shape: Shape, is_prompt: bool) -> Frame:
        """The frame as a rendering of sentinels shows it."""
        opens, closes = f"q{self._nonce}o", f"q{self._nonce}c"
        sentinels = [f"q{self._nonce}n{slot}q" for slot in range(_num_texts(shape))]
        rendered = self._render(_messages(shape, sentinels), is_prompt, opens, closes)
        literals, slots, marked, marked_tails = [""], [], [], [0]
        depth = 0
        for part in re.split(f"(q{self._nonce}(?:[oc]|n[0-9]+q))", rendered):
            if part in (opens, closes):
                depth += 1 if part == opens else -1
            elif part in sentinels:
                slots.append(sentinels.index(part))
                marked.append(depth > 0)
                literals.append("")
                marked_tails.append(0)
            elif part:
                literals[-1] += part
                marked_tails[-1] = marked_tails[-1] + len(part) if depth else 0
        return Frame(tuple(literals), tuple(slots), tuple(marked), tuple(marked_tails))

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
        """The control token that `literal` begins with, or ""."""
        return next((token for token in self._control_tokens if literal.startswith(token)), "")

    def _without_control(self, text: str) -> str:
        for token in self._control_tokens:
            text = text.replace(token, "")
        return text

    def _sketch(self, frame: Frame) -> str:
        """The frame with numbered blanks for the texts, clipped."""
        return _clipped(frame.filled([f"[{slot + 1}]" for slot in range(max(frame.slots, default=-1) + 1)]))

    def _check_prompt(self, prompt: str, training: str) -> NoReturn:
        prompt, training = _around_the_difference(prompt, training)
        raise TemplateError(
            f"{self.where}: the prompt is not the beginning of the training text, so the model would be asked in a way that it "
            f"was not trained on. Prompt: {prompt!r}. Training text: {training!r}. Fix add_generation_prompt in the template"
        )

    # Jinja

    def _compile(self) -> jinja2.Template:
        try:
            return _sandbox().from_string(self._source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{self.where}:{error.lineno}: not a Jinja template: {error.message}") from None
        except Exception as error:  # a program of somebody else's may fail in any way
            raise TemplateError(f"{self.where}: not a Jinja template: {type(error).__name__}: {error}") from None

    def _render(self, messages: list[dict[str, str]], is_prompt: bool, opens: str = "", closes: str = "") -> str:
        try:
            with _at_most(_MAX_SECONDS):
                return self._compiled.render(
                    **self._special_tokens,
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=is_prompt,
                    generation_opens=opens,
                    generation_closes=closes,
                )
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(f"{self.where}: cannot render a conversation with the roles {roles}: {error}") from None


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: its content, between the two marks that the rendering was given."""

    tags = {"generation"}  # noqa: RUF012, the name that Jinja reads

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of `_marked` with the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[nodes.Expr] = [nodes.Name("generation_opens", "load"), nodes.Name("generation_closes", "load")]
        return nodes.CallBlock(self.call_method("_marked", marks), [], [], body).set_lineno(line)

    def _marked(self, opens: str, closes: str, caller: Any) -> str:
        return f"{opens}{caller()}{closes}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which one operation makes no text beyond reason."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operation, unless its result could be huge; SecurityError then."""
        sizes = [len(value) if isinstance(value, (str, list, tuple)) else value for value in (left, right)]
        if operator == "*" and not all(map(_is_number, (left, right))) and sizes[0] * sizes[1] > _MAX_CHARACTERS:
            raise SecurityError("a product of text that is too long")
        if operator == "**" and right > 64:
            raise SecurityError("a power that is too large")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text formatted with %")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox allows, but for the methods of text that pad it to any length."""
        return attr not in ("center", "ljust", "rjust", "zfill", "expandtabs") and super().is_safe_attribute(
            obj, attr, value
        )


def _sandbox() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for: the names that transformers gives them, today's date aside."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters["tojson"] = _as_json
    sandbox.filters.pop("center")
    sandbox.globals["raise_exception"] = _raise
    return sandbox


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, where the platform can and nobody else counts."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return

    def stop(number: int, frame: Any) -> NoReturn:
        raise TimeoutError(f"the template runs for more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read(path: Path) -> tuple[str, str]:
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except FileNotFoundError:
        raise TemplateError(f"{path}: no such template file (template.file)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read: {error}") from None


def _own(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The tokenizer's chat template; the one called `default` where it brings several."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise TemplateError(
            f"{tokenizer.name_or_path}: the tokenizer brings no chat template of its own; give template.name=alpaca, or a Jinja "
            "file as template.file"
        )
    return own, f"{tokenizer.name_or_path}: its chat template"


def _shape(conversation: Conversation, *, answered: bool) -> tuple[Shape, list[Text]]:
    """The messages of a conversation up to its last response (included if `answered`), without and beside their texts."""
    texts: list[Text] = []
    messages: list[tuple[str, tuple[int | str, ...]]] = []

    def add(role: str, *said: Text) -> None:
        parts: list[int | str] = []
        for one in said:
            if one.text:
                parts += ([INPUT_START] if parts else []) + [len(texts)]
                texts.append(one)
        if parts:
            messages.append((role, tuple(parts)))

    add("system", Text(Origin.SYSTEM, conversation.system))
    turns = conversation.answered_turns
    for number, turn in enumerate(turns, start=1):
        add("user", Text(Origin.USER, turn.instruction), Text(Origin.USER, turn.input))
        if answered or number < len(turns):
            add("assistant", Text(Origin.RESPONSE, turn.response))
    return tuple(messages), texts


def _messages(shape: Shape, texts: Sequence[str]) -> list[dict[str, str]]:
    """The messages with `texts` in them, as a chat template takes them."""
    return [
        {"role": role, "content": "".join(texts[part] if isinstance(part, int) else part for part in parts)}
        for role, parts in shape
    ]


def _num_texts(shape: Shape) -> int:
    return sum(isinstance(part, int) for _, parts in shape for part in parts)


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _variants(text: str) -> list[str]:
    """`text` as templates trim it; where two lead to the same place, the text as it is wins."""
    return [text.strip(), text.rstrip(), text.lstrip(), text]


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
