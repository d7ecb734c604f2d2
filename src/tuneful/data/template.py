"""One object renders prompts and responses for training, generation, reports and export: nothing else may.

A template is four verbs: `example` (a conversation as pieces of text), `prompt` (the pieces that stand before the answer),
`stop` (what ends an answer) and `parse` (the answer inside generated text). They are inverse to one another: the prompt is
the untrained prefix of the example, and parsing the trained rest gives the response back. Whether a piece is trained is
known when the piece is made; no marker is ever searched for in rendered text, so text of the user's cannot pose as
structure.

    alpaca         Below is an instruction ... request.\\n\\n### Instruction:\\n{instruction}
                   [\\n\\n### Input:\\n{input}]\\n\\n### Response:\\n{response}<end>
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from tuneful.errors import TemplateError
from tuneful.types import Conversation, Turn


class Origin(Enum):
    """Who wrote a piece, which decides how it is encoded and whether it is trained."""

    TEMPLATE = "template"  # control tokens are recognised; context
    USER = "user"  # plain text, whatever it says; context
    RESPONSE = "response"  # plain text, whatever it says; trained
    END = "end"  # the one end token; trained


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text of one origin. The text of an END piece is empty: which token it is, the tokenizer says."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt format as data.

    A conversation renders as `system` (or `default_system`, or `default_system_with_input`) between `system_start` and
    `system_end`, then a turn at a time: `instruction_start`, the instruction, `input_start` and the input where there is
    one, `response_start`, the response, the end token, `turn_end`. `end` names the control token that closes a response;
    a tokenizer without it closes with its own end token. `stop` are texts that only a next turn could begin with.
    """

    name: str
    system_start: str
    default_system: str
    default_system_with_input: str
    system_end: str
    instruction_start: str
    input_start: str
    response_start: str
    end: str
    turn_end: str
    stop: tuple[str, ...]

    def example(self, conversation: Conversation) -> list[Piece]:
        """The whole conversation; ends with the end token of its last response."""
        return _joined(self._pieces(conversation, len(conversation.turns)))

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """What stands before the last response: what a model is given to answer."""
        return _joined(self._pieces(conversation, len(conversation.turns) - 1))

    def parse(self, generated: str) -> str:
        """The answer in generated text: cut where a next turn begins, outer white space removed."""
        ends = [at for marker in self.stop if (at := generated.find(marker)) >= 0]
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
            f"{{{{- {self.instruction_start!r} + message['content'] + {self.response_start!r} -}}}}"
            f"{{%- elif message['role'] == 'assistant' -%}}{{{{- message['content'] + {end_text!r} -}}}}"
            f"{{%- if not loop.last -%}}{{{{- {self.turn_end!r} -}}}}{{%- endif -%}}{{%- endif -%}}"
            "{%- endfor -%}"
        )

    def _pieces(self, conversation: Conversation, num_answered: int) -> Iterator[Piece]:
        """The conversation with the responses of its first `num_answered` turns; the last turn may still be open."""
        yield from self._opening(conversation)
        for index, turn in enumerate(conversation.turns):
            if index:
                yield Piece(self.turn_end, Origin.TEMPLATE)
            yield from self._asked(turn)
            if index < num_answered:
                yield Piece(turn.response, Origin.RESPONSE)
                yield Piece("", Origin.END)

    def _opening(self, conversation: Conversation) -> Iterator[Piece]:
        default = self.default_system_with_input if conversation.turns[0].input else self.default_system
        if conversation.system or default:
            yield Piece(self.system_start, Origin.TEMPLATE)
            if conversation.system:
                yield Piece(conversation.system, Origin.USER)
            else:
                yield Piece(default, Origin.TEMPLATE)
            yield Piece(self.system_end, Origin.TEMPLATE)

    def _asked(self, turn: Turn) -> Iterator[Piece]:
        yield Piece(self.instruction_start, Origin.TEMPLATE)
        yield Piece(turn.instruction, Origin.USER)
        if turn.input:
            yield Piece(self.input_start, Origin.TEMPLATE)
            yield Piece(turn.input, Origin.USER)
        yield Piece(self.response_start, Origin.TEMPLATE)


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours from the template become one piece, empty ones go: each is encoded as the longest text it can be."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.origin is Origin.TEMPLATE is joined[-1].origin:
            joined[-1] = Piece(joined[-1].text + piece.text, Origin.TEMPLATE)
        elif piece.text or piece.origin is Origin.END:
            joined.append(piece)
    return joined


_ALPACA = Template(
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
        Template(
            name="chatml",
            system_start="<|im_start|>system\n",
            default_system="",
            default_system_with_input="",
            system_end="<|im_end|>\n",
            instruction_start="<|im_start|>user\n",
            input_start="\n\n",
            response_start="<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
            turn_end="\n",
            stop=("<|im_start|>", "<|im_end|>"),
        ),
        Template(
            name="phi-3",
            system_start="<|system|>\n",
            default_system="",
            default_system_with_input="",
            system_end="<|end|>\n",
            instruction_start="<|user|>\n",
            input_start="\n\n",
            response_start="<|end|>\n<|assistant|>\n",
            end="<|end|>",
            turn_end="\n",
            stop=("<|user|>", "<|end|>", "<|assistant|>"),
        ),
    )
}
"""The built-in templates by name. `alpaca` is the chapter's, with one preamble; `alpaca-paired` has the second wording of
the original Alpaca format for records with an input."""


TEMPLATE_FILE = "tuneful.json"
"""The file of a model folder that names the template it was trained with: `{"template": "alpaca"}`."""


def find_template(name: str) -> Template:
    """The built-in template `name`; TemplateError where there is none."""
    if name not in TEMPLATES:
        raise TemplateError(f"no template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
