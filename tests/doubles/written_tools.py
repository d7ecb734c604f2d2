"""An oracle of tokens and loss weights for records with tools, thoughts and marks, independent of the package's templates.

A record is made up as messages whose every text carries marks of its own (`k7a...k7z`), and written as a row in one of the
spellings that people use. What it should become is found without the package: transformers' own `apply_chat_template` renders
the messages, the marks say which character is whose, and of an answer that which follows the rendering of the messages before it
(with the generation prompt) up to its end token is what the model has to write. By hand, for each template, stand only the names
under which it takes thoughts, the form of arguments, and the tokens that end an answer and a call.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.doubles.tool_templates import ADDED, CONTROL, ENDS, TEMPLATES
from tests.doubles.written_weights import BYTE_OF, SNIPPETS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tuneful.config import TemplateConfig
from tuneful.data.formats import FormatReader, ReadRow
from tuneful.encoding.chat_template import load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Example


@dataclass(frozen=True)
class Takes:
    """How a template takes a record: the key of thoughts ("" where it drops all), and what it cannot render.

    `after_thought` is what it writes between a thought and what follows, `before_call` between a thought and a call; `middle_end`
    and `call_end` are what ends an answer before the last one, and a call, where that is not `end`.
    """

    end: str
    call_end: str = ""
    middle_end: str = ""
    thought: str = "content"
    text_arguments: bool = False
    null_content: bool = False
    one_call: bool = False
    text_beside: bool = True
    after_thought: str = "\n</think>\n\n"
    before_call: str = "\n</think>\n\n"
    opens: str = ""


TAKES = {
    "hermes": Takes("<|im_end|>", before_call="\n</think>\n\n\n"),
    "qwen3": Takes("<|im_end|>", thought="reasoning_content"),
    "llama": Takes("<|eot|>", one_call=True, text_beside=False),
    "mistral": Takes("</s>"),
    "deepseek": Takes(
        "<|end|>", thought="", text_arguments=True, null_content=True, text_beside=False, opens="<think>\n"
    ),
    "harmony": Takes(
        "<|return|>",
        "<|call|>",
        "<|end|>",
        thought="thinking",
        one_call=True,
        text_beside=False,
        after_thought="<|end|><|start|>assistant<|channel|>final<|message|>",
        before_call="",
    ),
    "granite": Takes("<|end_of_text|>"),
}


@dataclass
class Said:
    """A message of a record that is made up."""

    role: str
    text: str = ""
    thought: str = ""
    calls: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    weight: float = 1.0
    name: str = ""
    call_id: str = ""


class Maker:
    """Makes records up; every text is between marks of its own."""

    def __init__(self, rng: random.Random, takes: Takes, control: Sequence[str]) -> None:
        self.rng, self.takes = rng, takes
        self._snippets = [*(one for one in SNIPPETS if one.strip()), *control, '"', "\\", "{}", "<tool_call>", "'", "<"]
        self._count = 0

    def text(self) -> str:
        """A text between its marks."""
        self._count += 1
        inside = "".join(
            self.rng.choice(self._snippets) + self.rng.choice(("", " ", "\n")) for _ in range(self.rng.randint(1, 4))
        )
        return f"k{self._count}a{inside}k{self._count}z"

    def tools(self) -> list[dict[str, Any]]:
        """One to three tools, or none."""
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": f"Does {name}.",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string", "description": "Where."}, "n": {"type": "integer"}},
                        "required": ["city"],
                    },
                },
            }
            for name in self.rng.sample(("get_weather", "add", "search_files"), self.rng.randint(1, 3))
        ]

    def call(self) -> tuple[str, dict[str, Any], str]:
        """A call: its name, arguments and id."""
        rng = self.rng
        values = (
            self.text,
            lambda: rng.randrange(100),
            lambda: rng.random() < 0.5,
            lambda: [self.text(), {"deep": self.text()}],
        )
        arguments = {key: rng.choice(values)() for key in rng.sample(("city", "n", "x_y"), rng.randint(0, 3))}
        return rng.choice(("get_weather", "add")), arguments, "".join(rng.choices("abcXYZ019", k=9))

    def answer(self, *, calls: bool) -> Said:
        """A message of the assistant's."""
        rng, said = self.rng, Said("assistant")
        if rng.random() < 0.4 and (not calls or self.takes.text_beside or self.takes.thought != "content"):
            said.thought = self.text()
        if calls:
            said.calls = [self.call() for _ in range(1 if self.takes.one_call else rng.choice((1, 1, 2, 3)))]
        if not calls or (self.takes.text_beside and rng.random() < 0.3):
            said.text = self.text()
        said.weight = rng.choice((1.0, 1.0, 1.0, 0.0, 0.5))
        return said

    def record(self) -> tuple[list[Said], list[dict[str, Any]]]:
        """Messages and tools: one to three questions, each with up to two rounds of calls before its answer."""
        rng = self.rng
        said = [Said("system", self.text())] if rng.random() < 0.3 else []
        tools = self.tools() if rng.random() < 0.7 else []
        for _ in range(rng.choice((1, 1, 2, 3))):
            said.append(Said("user", self.text()))
            for _ in range(rng.choice((0, 1, 1, 2)) if tools else 0):
                answer = self.answer(calls=True)
                said.append(answer)
                said += [Said("tool", self.text(), name=name, call_id=call_id) for name, _, call_id in answer.calls]
            said.append(self.answer(calls=False))
        if tools and rng.random() < 0.2:  # the last thing is a call
            said += [Said("user", self.text()), self.answer(calls=True)]
        answers = [one for one in said if one.role == "assistant"]
        if not any(one.weight for one in answers):
            answers[-1].weight = 1.0
        return said, tools


# A row, in one of the spellings that people use


def row_of(rng: random.Random, said: Sequence[Said], tools: Sequence[Any]) -> dict[str, Any]:
    """The record as a row."""
    share = rng.random() < 0.3
    row: dict[str, Any] = {}
    if tools:
        flat = [one["function"] for one in tools] if rng.random() < 0.4 else list(tools)
        row[rng.choice(("tools", "functions"))] = json.dumps(flat) if rng.random() < 0.4 else flat
    if share:
        row["conversations"] = [_sharegpt(rng, one) for one in said]
    else:
        row["messages"] = [_openai(rng, one) for one in said]
    return row


def _openai(rng: random.Random, one: Said) -> dict[str, Any]:
    if one.role == "tool":
        role = rng.choice(("tool", "function", "ipython"))
        return {"role": role, "content": one.text, "name": one.name, "tool_call_id": one.call_id}
    message: dict[str, Any] = {"role": one.role, "content": one.text}
    if one.role == "assistant":
        _mark(rng, one, message)
        _think(rng, one, message, "content")
    if one.calls:
        message["content"] = message["content"] or rng.choice((None, ""))
        message["tool_calls"] = [_called(rng, *call) for call in one.calls]
    return message


def _called(rng: random.Random, name: str, arguments: dict[str, Any], call_id: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments) if rng.random() < 0.5 else arguments}
    return (
        {"id": call_id, "type": "function", "function": function} if rng.random() < 0.5 else {"id": call_id, **function}
    )


def _sharegpt(rng: random.Random, one: Said) -> dict[str, Any]:
    roles = {"system": "system", "user": "human", "assistant": "gpt", "tool": rng.choice(("observation", "tool"))}
    message: dict[str, Any] = {"from": roles[one.role], "value": one.text}
    if one.role == "tool":
        return {**message, "tool_call_id": one.call_id}
    if one.role == "assistant":
        _mark(rng, one, message)
        if one.calls and not one.text:
            calls = [{"id": call_id, "name": name, "arguments": arguments} for name, arguments, call_id in one.calls]
            message |= {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls)}
            if one.thought:
                message["thinking"] = one.thought
            return message
        _think(rng, one, message, "value")
        if one.calls:
            message["tool_calls"] = [_called(rng, *call) for call in one.calls]
    return message


def _mark(rng: random.Random, one: Said, message: dict[str, Any]) -> None:
    if one.weight != 1 or rng.random() < 0.2:
        message[rng.choice(("weight", "loss_weight"))] = one.weight
        if one.weight in (0, 1) and rng.random() < 0.5:
            message.pop("weight", None)
            message.pop("loss_weight", None)
            message[rng.choice(("train", "training"))] = bool(one.weight)


def _think(rng: random.Random, one: Said, message: dict[str, Any], key: str) -> None:
    if one.thought:
        if one.text and rng.random() < 0.4:
            message[key] = f"<think>{rng.choice(('', chr(10)))}{one.thought}\n</think>\n\n{one.text}"
        else:
            message[rng.choice(("reasoning_content", "thinking", "reasoning"))] = one.thought


# What it should become


def rendered(tokenizer: Any, takes: Takes, said: Sequence[Said], tools: Sequence[Any], *, prompt: bool) -> str:
    """The messages as transformers renders them."""
    messages = [_for_template(takes, one) for one in said]
    given: dict[str, Any] = {"tools": list(tools) or None, "add_generation_prompt": prompt}
    if takes.null_content:  # apply_chat_template leaves out what is null, which such a template asks for
        found, _ = render_jinja_template(
            [messages], chat_template=tokenizer.chat_template, **given, **tokenizer.special_tokens_map
        )
        return str(found[0])
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **given))


def _for_template(takes: Takes, one: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": one.role, "content": one.text}
    if one.role == "tool":
        message |= {"name": one.name, "tool_call_id": one.call_id}
    if one.thought and takes.thought == "content":
        message["content"] = f"<think>\n{one.thought}\n</think>\n\n{one.text}"
    elif one.thought and takes.thought:
        message[takes.thought] = one.thought
    if one.calls:
        message["content"] = message["content"] or (None if takes.null_content else "")
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments, ensure_ascii=False) if takes.text_arguments else arguments,
                },
            }
            for name, arguments, call_id in one.calls
        ]
    return message


def expected(
    tokenizer: Any, takes: Takes, said: Sequence[Said], tools: Sequence[Any], settings: dict[str, Any]
) -> tuple[str, list[float]]:
    """The text of the record up to its last end token, and the weight of each character."""
    last = max(at for at, one in enumerate(said) if one.weight and one.role == "assistant")
    said, inner = said[: last + 1], ""
    asked = rendered(tokenizer, takes, said[:last], tools, prompt=True)
    whole = rendered(tokenizer, takes, said, tools, prompt=False)
    if takes.opens and asked.endswith(takes.opens):
        inner = f"{said[last].thought}\n</think>\n\n"
    base = asked.removesuffix(takes.opens)
    if not whole.startswith(base):  # a thought is left out only once there is an answer: what is asked has it
        *_, mark = re.finditer(r"k\d+z", base)
        at = whole.index(mark.group()) + len(mark.group())
        assert whole.startswith(base[mark.end() :], at), (base, whole)
        whole = base + whole[at + len(base) - mark.end() :]
    text = asked + inner + whole[len(base) :]
    weights = [settings["prompt_weight"]] * len(text)
    for at, one in enumerate(said):
        if one.role != "assistant":
            continue
        before = asked if at == last else rendered(tokenizer, takes, said[:at], tools, prompt=True)
        if at != last and (not asked.startswith(before) or (one.thought and one.thought not in asked)):
            continue
        reached = max([text.index(own) + len(own) for own in _texts(one) if own in text], default=len(before))
        ending = takes.call_end if one.calls else takes.end if at == last else takes.middle_end
        stop = text.index(ending or takes.end, reached) + len(ending or takes.end)
        trained = (
            one.weight if at == last or not settings["last_turn"] else settings["prompt_weight"] if one.weight else 0.0
        )
        weights[len(before) : stop] = [trained] * (stop - len(before))
        if one.thought and not settings["train_reasoning"]:
            closing = takes.before_call if one.calls and not one.text else takes.after_thought
            until = text.index(one.thought) + len(one.thought) + len(closing)
            weights[len(before) : until] = [0.0] * (until - len(before))
        if at == last:
            text, weights = text[:stop], weights[:stop]
    return text, weights


def _texts(one: Said) -> list[str]:
    """The texts of a message as they stand in it: those of arguments as JSON."""
    found = [text for text in (one.thought, one.text) if text]
    for _, arguments, _ in one.calls:
        found += [f"k{number}z" for number in re.findall(r"k(\d+)z", json.dumps(arguments))]
    return found


def difference(example: Any, text: str, weights: Sequence[float], tokenizer: Any, encoder: TextEncoder) -> str | None:
    """What is wrong with an example whose text should be `text`, a weight a character; None where nothing is."""
    if not isinstance(example, Example) or example.cut:
        return f"no whole example: {example}"
    contents = [_bytes_of(token_id, tokenizer) for token_id in example.token_ids.tolist()]
    said = b"".join(contents)
    if said != text.encode():
        return f"the tokens say {said.decode(errors='replace')!r}, the text is {text!r}"
    lengths = [len(content) for content in contents]
    wanted = np.repeat(np.array(weights, dtype=np.float32), [len(letter.encode()) for letter in text])
    wanted[: lengths[0]] = 0
    found = np.repeat(example.weights, lengths)
    if len(unlike := np.flatnonzero(found != wanted)):
        at = int(unlike[0])
        return f"byte {at} of {text!r}, {said[at : at + 30]!r}, weighs {found[at]} and should weigh {wanted[at]}"
    inside = np.zeros(len(text), dtype=bool)
    for opened in re.finditer(r"k(\d+)a.*?k\1z", text, re.DOTALL):
        inside[opened.start() : opened.end()] = True
    of_record = np.repeat(inside, [len(letter.encode()) for letter in text])
    control = np.repeat([token_id in encoder.control_token_ids for token_id in example.token_ids.tolist()], lengths)
    if (control & of_record).any():
        return "a control token in text of the record's"
    return None


def _bytes_of(token_id: int, tokenizer: Any) -> bytes:
    token = tokenizer.convert_ids_to_tokens(token_id)
    return bytes([BYTE_OF[token]]) if token in BYTE_OF else str(token).encode()


def tokenizer_of(control: Sequence[str], template: str, end: str) -> Any:
    """Bytes, the control tokens of a template, and added tokens that are none."""
    backend = Tokenizer(models.BPE(vocab=dict(BYTE_OF), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    tokenizer.chat_template = template
    return tokenizer


def check(
    name: str,
    num_conversations: int,
    seed: int,
    *,
    template: str | None = None,
    takes: Takes | None = None,
    control: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare that many random records under a template; counts, and the first differences in words."""
    takes, control = takes or TAKES[name], control or CONTROL[name]
    tokenizer = tokenizer_of(control, template or TEMPLATES[name], ENDS.get(name, takes.end))
    text = TextEncoder(tokenizer, load_template(TemplateConfig(name="tokenizer"), tokenizer))
    rng, counts, differences = random.Random(seed), Counter[str](), []
    for number in range(num_conversations):
        said, tools = Maker(rng, takes, control).record()
        settings: dict[str, Any] = {
            "prompt_weight": rng.choice((0.0, 0.0, 0.25, 1.0)),
            "last_turn": rng.random() < 0.2,
            "train_reasoning": rng.random() < 0.6,
        }
        row = row_of(rng, said, tools)
        read = FormatReader("auto", None).read(row, f"{name}:{number}")
        if not isinstance(read, ReadRow):
            differences.append(f"{name}:{number}: {read}: {json.dumps(row)}")
            continue
        example = Encoder(text, 1_000_000, **settings).example(read.conversation)
        why = difference(example, *expected(tokenizer, takes, said, tools, settings), tokenizer, text)
        counts["records"] += 1
        counts["calls"] += sum(len(one.calls) for one in said)
        counts["thoughts"] += sum(bool(one.thought) for one in said)
        if isinstance(example, Example):
            counts["tokens"] += len(example)
            counts["trained"] += int((example.weights > 0).sum())
        if why:
            differences.append(f"{name}:{number}: {settings}: {why}")
    return {**counts, "differences": len(differences), "first": differences[:5]}
