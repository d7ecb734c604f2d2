"""One object renders prompts and responses for training, generation, reports and export: nothing else may.

A template is four verbs: `example` (a conversation as pieces of text), `prompt` (the pieces that stand before the answer),
`stop` (what ends an answer) and `parse` (the answer inside generated text). They are inverse to one another: the prompt is
the untrained prefix of the example, and parsing the trained rest gives the response back. Who wrote a piece is known when
the piece is made; nothing is ever searched for in rendered text, so text of the user's cannot pose as structure.

The formats here are data, a PromptFormat each. A format that is a program, the tokenizer's own chat template or a user's Jinja
file, has the same four verbs: `chat_template.py`.

    alpaca         Below is an instruction ... request.\\n\\n### Instruction:\\n{instruction}
                   [\\n\\n### Input:\\n{input}]\\n\\n### Response:\\n{response}<end>
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import ClassVar, Protocol

from tuneful.errors import TemplateError
from tuneful.files import cache_root, write_text
from tuneful.types import Conversation, Turn


class Origin(Enum):
    """Who wrote a piece, which decides how it is encoded and whether it is trained."""

    TEMPLATE = "template"  # control tokens are recognised; context
    SYSTEM = "system"  # the record's own system text: plain, whatever it says; context
    USER = "user"  # plain text, whatever it says; context
    TOOL = "tool"  # what a tool answered: plain; context
    GENERATION_PREFIX = "generation_prefix"  # what the model writes around a thought, before a response: as END
    THOUGHT = "thought"  # plain, whatever it says; trained
    RESPONSE = "response"  # plain text, whatever it says; trained
    CALL = "call"  # what the template writes of a call: as END
    ARGUMENT = "argument"  # a text among a call's arguments: plain, whatever it says; trained
    END = "end"  # what ends a response: control tokens are recognised; trained


FROM_THE_TEMPLATE = (Origin.TEMPLATE, Origin.GENERATION_PREFIX, Origin.CALL, Origin.END)
"""The origins whose text may hold control tokens."""
THOUGHT_START, THOUGHT_END = "<think>\n", "\n</think>\n\n"
"""What stands around a thought where the format has no form of its own for it."""


_TRAINED = (Origin.GENERATION_PREFIX, Origin.THOUGHT, Origin.RESPONSE, Origin.CALL, Origin.ARGUMENT, Origin.END)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text of one origin.

    The text of an END piece is that of its control tokens, after the white space that the template may write before them;
    where it is empty, the tokenizer says which token ends. `weight` is that of its turn in the loss, where its origin is one
    that is trained.
    """

    text: str
    origin: Origin
    weight: float = 1.0

    @property
    def is_response(self) -> bool:
        """Whether the assistant wrote it."""
        return self.origin in _TRAINED

    @property
    def is_trained(self) -> bool:
        """Whether the model learns to write it."""
        return self.is_response and self.weight > 0


class Template(Protocol):
    """The four verbs, and how the format is saved with a model.

    `name` is what messages and reports call it. `end` is the control token that closes a response ("" or one that the
    tokenizer lacks: its own end token does), `stop` are texts that only a next turn could begin with, and `writes_bos` says
    that the begin token, if any, is among the pieces.
    """

    @property
    def name(self) -> str:
        """What messages and reports call it."""

    @property
    def end(self) -> str:
        """The control token that closes a response."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that only a next turn could begin with."""

    @property
    def generation_prefix(self) -> str:
        """What the template has the model write before a response, outer white space and control tokens aside."""

    @property
    def call_end(self) -> str:
        """The control token that closes a call of a tool; "" where the template renders none."""

    @property
    def call_tokens(self) -> frozenset[str]:
        """The control tokens that stand inside of a call."""

    @property
    def writes_bos(self) -> bool:
        """Whether the begin token is the template's to write, and not the tokenizer's to add."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the template before the first step, a sentence each."""

    def example(self, conversation: Conversation) -> list[Piece]:
        """The conversation up to the end token of its last response; TemplateError where it cannot be rendered."""

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response: what a model is given to answer. TemplateError as for `example`."""

    def left_out(self, conversation: Conversation) -> tuple[int, int]:
        """How many thoughts are left out, and how many answers are context though nothing marks them so."""

    def parse(self, generated: str) -> str:
        """The answer in generated text."""

    def chat_template(self, *, bos_text: str, end_text: str) -> str:
        """The same format as a Jinja chat template, to be saved with a model."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A prompt format as data.

    A conversation renders as `system` (or `default_system`, or `default_system_with_input`) between `system_start` and
    `system_end`, then a turn at a time: `instruction_start`, the instruction, `input_start` and the input where there is
    one, `instruction_end`; then, where the turn has a response, `response_start`, the response, the end token, and
    `turn_end` if another turn follows. `end` names the control token that closes a response; a tokenizer without it closes
    with its own end token. `stop` are texts that only a next turn could begin with.
    """

    name: str
    system_start: str
    default_system: str
    default_system_with_input: str
    system_end: str
    instruction_start: str
    input_start: str
    instruction_end: str
    response_start: str
    end: str
    turn_end: str
    stop: tuple[str, ...]

    def example(self, conversation: Conversation) -> list[Piece]:
        """The conversation up to the end token of its last response."""
        return joined(self._pieces(conversation, answered=True))

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response: what a model is given to answer."""
        return joined(self._pieces(conversation, answered=False))

    def left_out(self, conversation: Conversation) -> tuple[int, int]:
        """Nothing is: a thought is part of the text."""
        return 0, 0

    def parse(self, generated: str) -> str:
        """The answer in generated text: cut where a next turn begins, outer white space removed."""
        ends = [at for stop in self.stop if (at := generated.find(stop)) >= 0]
        return generated[: min(ends, default=len(generated))].strip()

    def chat_template(self, *, bos_text: str, end_text: str) -> str:
        """The same format as a Jinja chat template, to be saved with a model.

        `bos_text` and `end_text` are the texts of the begin token ("" for none) and of the end token. A user message holds
        the instruction and, where there is one, `input_start` and the input.
        """
        return (
            f"{{{{- {bos_text!r} -}}}}"
            f"{{%- set system = {self.default_system!r} -%}}"
            "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] or system -%}{%- endif -%}"
            f"{{%- if system -%}}{{{{- {self.system_start!r} + system + {self.system_end!r} -}}}}{{%- endif -%}}"
            "{%- for message in messages -%}"
            f"{{%- if message['role'] == 'user' -%}}"
            f"{{{{- {self.instruction_start!r} + message['content'] + {self.instruction_end!r} -}}}}"
            f"{{%- elif message['role'] == 'assistant' -%}}"
            f"{{{{- {self.response_start!r} + message['content'] + {end_text!r} -}}}}"
            f"{{%- if not loop.last -%}}{{{{- {self.turn_end!r} -}}}}{{%- endif -%}}{{%- endif -%}}"
            "{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{- {self.response_start!r} -}}}}{{%- endif -%}}"
        )

    def _pieces(self, conversation: Conversation, *, answered: bool) -> Iterator[Piece]:
        """The conversation up to its last response, which is written if `answered`."""
        _check_no_tools(conversation, self.name)
        yield from self._opening(conversation)
        turns = conversation.answered_turns
        for number, turn in enumerate(turns, start=1):
            if turn.instruction or turn.input or turn.weight:  # a greeting answers nothing
                yield from self._asked(turn)
            if number == len(turns) or turn.response:
                yield Piece(self.response_start, Origin.TEMPLATE)
            if turn.response and (answered or number < len(turns)):
                yield from _said(turn, self.turn_end if number < len(turns) else "")

    def _opening(self, conversation: Conversation) -> Iterator[Piece]:
        default = self.default_system_with_input if conversation.turns[0].input else self.default_system
        said = Piece(conversation.system, Origin.SYSTEM) if conversation.system else Piece(default, Origin.TEMPLATE)
        if said.text:
            yield from (Piece(self.system_start, Origin.TEMPLATE), said, Piece(self.system_end, Origin.TEMPLATE))

    def _asked(self, turn: Turn) -> Iterator[Piece]:
        yield from (Piece(self.instruction_start, Origin.TEMPLATE), Piece(turn.instruction, Origin.USER))
        if turn.input:
            yield from (Piece(self.input_start, Origin.TEMPLATE), Piece(turn.input, Origin.USER))
        yield Piece(self.instruction_end, Origin.TEMPLATE)

    # What a chat template may have, and no format here

    generation_prefix: ClassVar[str] = ""
    writes_bos: ClassVar[bool] = False
    notes: ClassVar[tuple[str, ...]] = ()
    call_end: ClassVar[str] = ""
    call_tokens: ClassVar[frozenset[str]] = frozenset()


def _said(turn: Turn, turn_end: str) -> Iterator[Piece]:
    """What the model writes of a turn: its thought, its response, the end token; then what stands before another turn."""
    if turn.thought:
        yield Piece(THOUGHT_START, Origin.GENERATION_PREFIX, turn.weight)
        yield Piece(turn.thought, Origin.THOUGHT, turn.weight)
        yield Piece(THOUGHT_END, Origin.GENERATION_PREFIX, turn.weight)
    yield Piece(turn.response, Origin.RESPONSE, turn.weight)
    yield Piece("", Origin.END, turn.weight)
    yield Piece(turn_end, Origin.TEMPLATE)


def _check_no_tools(conversation: Conversation, name: str) -> None:
    turns = conversation.turns
    found = {"tools": conversation.tools, "tool_calls": any(turn.calls for turn in turns)}
    found["tool results"] = any(turn.results for turn in turns)
    if fields := [field for field, is_there in found.items() if is_there]:
        raise no_tools(f"template.name={name}", fields)


def model_name(folder: str) -> str:
    """What a user calls the model whose tokenizer lies in `folder`: in a cache that is no path that anybody wrote."""
    path = Path(folder)
    if path.parent == cache_root() / "models":  # the built-in model, with the number of its conversion
        return re.sub(r"-\d+\Z", "", path.name)
    if path.parent.name == "snapshots" and (repository := path.parents[1].name).startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder


def no_tools(where: str, fields: Iterable[str]) -> TemplateError:
    """That a template does not render `fields` of a record."""
    return TemplateError(
        f"{where}: the template has no {', no '.join(fields)}, which the record has; name one that renders them "
        "(template.name=tokenizer of a model that calls tools, or a Jinja file as template.file), or leave such records out"
    )


def without_thoughts(pieces: Iterable[Piece], *, trained: bool) -> list[Piece]:
    """`pieces`, of which thoughts and what the template writes around them are not `trained`; as they are where they shall be."""
    kept = list(pieces)
    if trained:
        return kept
    beside = {place + step for place, one in enumerate(kept) if one.origin is Origin.THOUGHT for step in (-1, 0, 1)}
    around = (Origin.THOUGHT, Origin.GENERATION_PREFIX)
    return [
        replace(one, weight=0.0) if place in beside and one.origin in around else one for place, one in enumerate(kept)
    ]


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours from the template become one piece, empty ones go: each is encoded as the longest text it can be."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.origin is Origin.TEMPLATE is joined[-1].origin:
            joined[-1] = Piece(joined[-1].text + piece.text, Origin.TEMPLATE)
        elif piece.text or piece.origin is Origin.END:
            joined.append(piece)
    return joined


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """What finds each of `texts`, the longest that fits first, as the tokenizer does."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


_ALPACA = PromptFormat(
    name="alpaca",
    system_start="",
    default_system=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ),
    default_system_with_input=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ),
    system_end="",
    instruction_start="\n\n### Instruction:\n",
    input_start="\n\n### Input:\n",
    instruction_end="",
    response_start="\n\n### Response:\n",
    end="",
    turn_end="",
    stop=("### Instruction:", "### Input:", "### Response:"),
)

TEMPLATES = {
    template.name: template
    for template in (
        _ALPACA,
        replace(
            _ALPACA,
            name="alpaca-paired",
            default_system_with_input=(
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request."
            ),
        ),
        PromptFormat(
            name="chatml",
            system_start="<|im_start|>system\n",
            default_system="",
            default_system_with_input="",
            system_end="<|im_end|>\n",
            instruction_start="<|im_start|>user\n",
            input_start="\n\n",
            instruction_end="<|im_end|>\n",
            response_start="<|im_start|>assistant\n",
            end="<|im_end|>",
            turn_end="\n",
            stop=("<|im_start|>", "<|im_end|>"),
        ),
        PromptFormat(
            name="phi-3",
            system_start="<|system|>\n",
            default_system="",
            default_system_with_input="",
            system_end="<|end|>\n",
            instruction_start="<|user|>\n",
            input_start="\n\n",
            instruction_end="<|end|>\n",
            response_start="<|assistant|>\n",
            end="<|end|>",
            turn_end="\n",
            stop=("<|user|>", "<|end|>", "<|assistant|>"),
        ),
    )
}
"""The built-in templates by name. `alpaca` is that of Raschka's book, with one preamble; `alpaca-paired` has the second preamble
of the original Alpaca format for records with an input."""


TEMPLATE_FILE = "tuneful.json"
"""The file of a model folder that names the template it was trained with: `{"template": "alpaca"}`, or
`tokenizer` where it is the folder's chat_template.jinja."""


def find_template(name: str) -> PromptFormat:
    """The built-in template `name`; TemplateError where there is none."""
    if name not in TEMPLATES:
        raise TemplateError(f"no template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def save_template_name(folder: Path, name: str) -> None:
    """Name in a model's folder the template that it was trained with; the last file of a trained model to be written."""
    write_text(folder / TEMPLATE_FILE, json.dumps({"template": name}) + "\n")
